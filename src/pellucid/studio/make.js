/** Make: from words to a picture, which is seen while it comes out of the noise. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import {
  active,
  attempt,
  chooseModel,
  draw,
  picturesOf,
  setRequest,
  state,
  useStore,
} from "./state.js";
import { OtherSettings, Settings } from "./fields.js";
import { Picture, Progress, Queue, Wrong } from "./parts.js";
import { Prompt } from "./prompt.js";

/** Width and height; a model of one size has no field for it. */
export function Size() {
  const { able, request } = useStore();
  if (!able?.size.any) return null;
  const unit = able.size.unit,
    own = able.defaults,
    w = request.width ?? own.width,
    h = request.height ?? own.height;
  const round = (v) => Math.max(unit, Math.round(v / unit) * unit);
  const side = (
    name,
    value,
  ) => html`<div class="grow"><label for=${name}>${name === "width" ? "Width" : "Height"}</label><input id=${name} type="number" min=${unit} max="4096" step=${unit} value=${value}
    onChange=${(e) => setRequest({ width: w, height: h, [name]: e.target.value ? round(+e.target.value) : undefined })} /></div>`;
  const shapes = [
    ["1:1", 1],
    ["4:3", 4 / 3],
    ["3:2", 1.5],
    ["16:9", 16 / 9],
  ];
  const area = own.width * own.height;
  return html`<div class="stack" style="gap:.5rem"><div class="row">${side("width", w)}${side("height", h)}<button class="plain" style="align-self:end" title="Swap width and height" onClick=${() => setRequest({ width: h, height: w })}>⇄<span class="hidden">Swap width and height</span></button></div>
    <div class="row">${shapes.map(([name, ratio]) => html`<button class="plain small" onClick=${() => setRequest({ width: round(Math.sqrt(area * ratio)), height: round(Math.sqrt(area / ratio)) })}>${name}</button>`)}</div></div>`;
}

function Seed({ last }) {
  const { request } = useStore();
  const locked = request.seed !== undefined;
  return html`<div><label for="seed">Seed</label><input id="seed" type="number" min="0" placeholder="random" value=${request.seed ?? ""} onInput=${(e) => setRequest({ seed: e.target.value === "" ? undefined : +e.target.value })} />
    <div class="row seed" role="group" aria-label="Seed of the next picture"><button type="button" class="plain small" aria-pressed=${!locked} onClick=${() => setRequest({ seed: undefined })}>Random</button>
    <button type="button" class="plain small" aria-pressed=${locked} disabled=${!locked && last == null} title="Draw with the seed of the last picture" onClick=${() => setRequest({ seed: locked ? undefined : last })}>Keep</button></div></div>`;
}

/** Before the first picture: what to do, and prompts of things that the model knows. */
function Examples() {
  const { able } = useStore();
  const [picked] = useState(() => [Math.random(), Math.random(), Math.random()]);
  const words = able?.words ?? [];
  const [one, two, three] = picked.map((share) => words[Math.floor(share * words.length)]);
  const an = (word) =>
    word.endsWith("s") ? word : `${/^[aeiou]/i.test(word) ? "an" : "a"} ${word}`;
  return html`<div class="stack soft examples"><p>Write what you want to see, then press Draw.</p>
    ${words.length > 2 && html`<div class="row">${[an(one), `${an(three)} on ${an(one)}, teal background`, `${an(two)} and ${an(three)}`].map((prompt) => html`<button type="button" onClick=${() => setRequest({ prompt })}>${prompt}</button>`)}</div>`}</div>`;
}

/** The picture of a job: while it is drawn the estimate of each step, then the slider goes back through them. */
export function Stage({ job, chosen, onChoose, changing = false }) {
  const { steps } = useStore();
  const [at, setAt] = useState(null); // a step that the slider was moved to
  const [what, setWhat] = useState("x0");
  const [kept, setKept] = useState(null);
  const place = useRef();
  const pictures = job ? picturesOf(job) : [],
    picture = pictures[chosen];
  const done = job?.state === "done",
    live = (job && steps.get(job.id)) ?? kept ?? [];
  useEffect(() => {
    setAt(null);
    setKept(null);
    if (active(job)) place.current?.scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  }, [job?.id]);
  useEffect(() => setAt(null), [chosen]);
  const load = () =>
    !live.length && done && attempt(async () => setKept((await api.steps(job.id)).steps));
  // The steps in which the chosen picture was drawn; while they come, those of the newest batch.
  const newest = live.at(-1),
    wanted = done || picture ? chosen : (newest?.first ?? 0);
  const seen = live.filter((s) => s.first <= wanted && wanted < s.first + s.x0.length);
  const step = at === null ? (picture ? null : seen.at(-1)) : seen[at];
  if (!job) return html`<div class="stage"><${Examples} /></div>`;
  return html`<div class="stack" ref=${place}><div class="stage" aria-live="polite" aria-busy=${active(job)}>
      ${
        step
          ? html`<${Picture} url=${step[what][wanted - step.first]} alt=${`Step ${step.step} of ${step.steps}`} width="64" />`
          : picture
            ? html`<${Picture} url=${picture.url} width=${picture.width} alt=${`${job.request.prompt}, seed ${picture.seed}`} />`
            : html`<p class="soft">${job.state === "queued" ? "Waiting for its turn" : job.state === "running" ? "Starting from noise" : ""}</p>`
      }</div>
    ${active(job) ? html`<div class="row"><div class="grow"><${Progress} job=${job} /></div><button onClick=${() => attempt(() => api.cancel(job.id))}>Cancel</button></div>` : null}
    ${job.state === "failed" && html`<p class="note bad" role="alert">${job.error}</p>`}
    ${(job.warnings ?? []).map((w) => html`<p class="note">${w}</p>`)}
    ${
      (done || seen.length > 0) &&
      html`<div class="row"><label for="step" style="margin:0">Steps</label>
      <input id="step" class="grow" style="width:8rem" type="range" min="0" max=${seen.length || 1} value=${at ?? (seen.length || 1)} onPointerDown=${load} onFocus=${load} onInput=${(e) => setAt(+e.target.value >= seen.length ? null : +e.target.value)} aria-valuetext=${step ? `step ${step.step}` : "finished picture"} />
      <span class="small soft numbers" style="min-width:4rem">${step ? `step ${step.step}` : "finished"}</span>
      <span role="group" aria-label="What is shown"><button class="small" aria-pressed=${what === "x0"} onClick=${() => setWhat("x0")} title="The network's estimate of the picture">estimate</button> <button class="small" aria-pressed=${what === "x"} onClick=${() => setWhat("x")} title="What the sampler holds: picture and noise">with noise</button></span></div>`
    }
    ${pictures.length > 1 && html`<div class="thumbs tiny">${pictures.map((p, i) => html`<button class="thumb" aria-pressed=${i === chosen} onClick=${() => onChoose(i)}><${Picture} url=${p.url} width=${p.width} alt=${`Seed ${p.seed}`} /></button>`)}</div>`}
    ${
      picture &&
      done &&
      html`<div class="row"><a class="button" href=${`#look/${picture.key}`}>Look inside</a>${!changing && html`<a class="button" href=${`#change/${picture.key}`}>Change it</a>`}
      <a class="button" href=${picture.url} download=${`${picture.seed}.png`}>Download</a><span class="soft small numbers">seed ${picture.seed}, ${picture.width}×${picture.height}</span></div>`
    }</div>`;
}

export function ModelChoice() {
  const { models, model, able } = useStore();
  const words =
    able?.words &&
    html`<details class="small"><summary>The ${able.words.length} things that this model knows</summary><p class="soft">${able.words.join(", ")}</p></details>`;
  if (models.length < 2) return words;
  return html`<div><label for="model">Model</label><select id="model" value=${model} onChange=${(e) => chooseModel(e.target.value)}>${models.map((m) => html`<option value=${m.name}>${m.name}</option>`)}</select>${words}</div>`;
}

export function Make() {
  const { able, jobs, request, watched } = useStore();
  const [error, setError] = useState(null);
  const [chosen, setChosen] = useState(0);
  const job = jobs.get(watched);
  const submit = async () => {
    setError(null);
    setChosen(0);
    try {
      await draw();
    } catch (e) {
      setError(e);
    }
  };
  useEffect(() => {
    const key = (e) => {
      const shown = state.jobs.get(state.watched); // as it is now, not as it was when this was drawn
      if (e.key === "Escape" && active(shown)) attempt(() => api.cancel(shown.id));
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);
  const wrong = (name) => (error?.field === name ? error.message : null);
  const negative = able?.fields.some((f) => f.name === "negative_prompt");
  return html`<div class="two"><form class="stack" onSubmit=${(e) => {
    e.preventDefault();
    submit();
  }}>
      <h1 class="hidden">Make a picture</h1>
      <${Prompt} value=${request.prompt ?? ""} onChange=${(v) => setRequest({ prompt: v })} onSubmit=${submit} error=${wrong("prompt")} />
      <${ModelChoice} />
      <div class="row"><button class="main" type="submit" disabled=${!able}>Draw</button><span class="soft small">Ctrl + Enter; Escape cancels</span></div>
      <${Wrong} error=${error && !["prompt", "negative_prompt"].includes(error.field) ? error : null} />
      <div class="fields"><div><label for="count">Pictures</label><input id="count" type="number" min="1" max=${able?.fields.find((f) => f.name === "count")?.maximum ?? 100} value=${request.count ?? 1} onInput=${(e) => setRequest({ count: +e.target.value || undefined })} /></div><${Seed} last=${job?.pictures?.[chosen]?.seed} /></div>
      <${Size} /><${OtherSettings} />
      <details><summary>More</summary><div class="stack">
        ${negative && html`<${Prompt} name="negative" label="Negative prompt" rows="2" value=${request.negative_prompt ?? ""} onChange=${(v) => setRequest({ negative_prompt: v })} onSubmit=${submit} error=${wrong("negative_prompt")} />`}
        <${Settings} error=${error} /><button type="button" style="justify-self:start" onClick=${() =>
          setRequest(
            Object.fromEntries(
              Object.keys(request)
                .filter((k) => k !== "prompt")
                .map((k) => [k, undefined]),
            ),
          )}>Back to the model's own settings</button></div></details></form>
    <div class="stack"><${Stage} job=${job} chosen=${chosen} onChoose=${setChosen} /><${Queue} shown=${watched} /></div></div>`;
}
