/** Compare: one setting against another in a grid, or two pictures under a slider. */
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { picturesOf, setRequest, useStore } from "./state.js";
import { Prompt } from "./prompt.js";
import { Choose, Facts, Picture, TwoPictures, Wrong } from "./parts.js";

const read = (text, field) =>
  text
    .split(",")
    .map((v) => v.trim())
    .filter(Boolean)
    .map((v) => (["integer", "number"].includes(field?.type) ? Number(v) : v));

function Axis({ name, title, axis, onChange, fields, none }) {
  const field = fields.find((f) => f.name === axis.field);
  return html`<div class="row" style="align-items:end"><div style="width:10rem"><label for=${`${name}-field`}>${title}</label><select id=${`${name}-field`} value=${axis.field} onChange=${(e) => onChange({ field: e.target.value, values: "" })}>
      ${none && html`<option value="">none</option>`}${fields.map((f) => html`<option value=${f.name}>${f.name.replaceAll("_", " ")}</option>`)}</select></div>
    <div class="grow"><label for=${`${name}-values`}>Values, with commas</label><input id=${`${name}-values`} value=${axis.values} disabled=${!axis.field} placeholder=${field?.choices ? field.choices.slice(0, 3).join(", ") : (field?.default ?? "")} onInput=${(e) => onChange({ ...axis, values: e.target.value })} /></div></div>`;
}

function Cell({ cell, job }) {
  const error = cell.error ?? job.error;
  if (error) return html`<p class="note bad small">${error}</p>`;
  const [picture] = picturesOf(job);
  if (picture)
    return html`<a href=${`#look/${picture.key}`}><${Picture} url=${picture.url} width=${picture.width} alt=${`${cell.x}, ${cell.y ?? ""}`} /></a>`;
  return html`<span class="soft">${{ queued: "waiting", running: `step ${job.step ?? 0}` }[job.state] ?? job.state}</span>`;
}

function Plot() {
  const { able, model, request, jobs } = useStore();
  const [x, setX] = useState({ field: "guidance", values: "1, 3, 7" }),
    [y, setY] = useState({ field: "steps", values: "4, 8" });
  const [grid, setGrid] = useState(null),
    [error, setError] = useState(null);
  if (!able) return null;
  const fields = [
    { name: "prompt", type: "string" },
    { name: "seed", type: "integer" },
    ...able.fields.filter(
      (f) =>
        (f.choices || ["integer", "number", "boolean"].includes(f.type)) &&
        !["seed", "count"].includes(f.name),
    ),
  ];
  const axis = (a) => ({
    field: a.field,
    values: read(
      a.values,
      fields.find((f) => f.name === a.field),
    ),
  });
  const submit = async () => {
    setError(null);
    try {
      const seed = request.seed ?? Math.floor(Math.random() * 2 ** 31);
      setGrid(
        await api.grid({
          model,
          request: { ...request, seed, count: 1 },
          x: axis(x),
          ...(y.field ? { y: axis(y) } : {}),
        }),
      );
    } catch (e) {
      setError(e);
    }
  };
  return html`<form class="stack" onSubmit=${(e) => {
    e.preventDefault();
    submit();
  }}><${Prompt} value=${request.prompt ?? ""} onChange=${(v) => setRequest({ prompt: v })} onSubmit=${submit} rows="2" />
      <${Axis} name="x" title="Across" axis=${x} onChange=${setX} fields=${fields} /><${Axis} name="y" title="Down" axis=${y} onChange=${setY} fields=${fields} none />
      <button class="main" style="justify-self:start">Draw the grid</button><${Wrong} error=${error} /></form>
    ${
      grid &&
      html`<div class="grid-scroll" tabindex="0" role="region" aria-label="The grid"><table class="plot"><thead><tr><td></td>${grid.x.values.map((v) => html`<th scope="col">${grid.x.field.replaceAll("_", " ")} ${String(v)}</th>`)}</tr></thead>
      <tbody>${grid.rows.map((row, j) => html`<tr><th scope="row">${grid.y ? `${grid.y.field.replaceAll("_", " ")} ${grid.y.values[j]}` : ""}</th>${row.map((cell) => html`<td><${Cell} cell=${cell} job=${cell.job && (jobs.get(cell.job.id) ?? cell.job)} /></td>`)}</tr>`)}</tbody></table></div>`
    }`;
}

function Pair() {
  const [pair, setPair] = useState([null, null]);
  const [a, b] = pair;
  const choose = (p) => setPair(a ? [a, p] : [p, null]);
  if (!a || !b)
    return html`<div class="stack"><p>${a ? "Now the second picture." : "Choose the first picture."}</p>${a && html`<div style="width:8rem"><${Picture} url=${a.url} width=${a.width} alt="The first picture" /></div>`}<${Choose} onChoose=${choose} /></div>`;
  const settings = (p) => ({
    model: p.model,
    ...(p.resolved ?? p.request),
    seed: p.seed ?? p.request.seed,
  });
  return html`<div class="two chosen"><${TwoPictures} first=${a} second=${b} />
    <div class="stack"><h2>What differs</h2><h3>First</h3><${Facts} request=${settings(a)} other=${settings(b)} only /><h3>Second</h3><${Facts} request=${settings(b)} other=${settings(a)} only />
      <button style="justify-self:start" onClick=${() => setPair([null, null])}>Two other pictures</button></div></div>`;
}

export function Compare() {
  const [what, setWhat] = useState("grid");
  useEffect(() => setWhat("grid"), []);
  return html`<div class="stack"><div class="head"><h1>Compare</h1><div role="group" aria-label="What to compare"><button aria-pressed=${what === "grid"} onClick=${() => setWhat("grid")}>Grid of settings</button> <button aria-pressed=${what === "pair"} onClick=${() => setWhat("pair")}>Two pictures</button></div></div>
    ${what === "grid" ? html`<${Plot} />` : html`<${Pair} />`}</div>`;
}
