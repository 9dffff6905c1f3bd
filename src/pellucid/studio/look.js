/** Look: the glass pane. The page of `explain` for a picture, or for two runs of which one setting differs. */
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { active, pictureAt, state, useStore } from "./state.js";
import { explanationOf } from "./requests.js";
import { Field, described, fieldOf } from "./fields.js";
import { Choose, Facts, Picture, Progress, Wrong } from "./parts.js";

const CHANGES = ["prompt", "guidance", "sampler", "steps", "spacing"];

/** The explanation of one run, or of two from the same noise. */
function Pane({ picture, changes }) {
  const { jobs } = useStore();
  const [first, setFirst] = useState(null),
    [error, setError] = useState(null);
  useEffect(() => {
    let current = true;
    setFirst(null);
    setError(null);
    const versus = Object.keys(changes).length ? { ...picture.request, ...changes } : null;
    let own = null; // the job, if this pane submitted it
    const leave = () =>
      own && active(state.jobs.get(own.id) ?? own) && api.cancel(own.id).catch(() => {}); // it may just have ended
    api
      .jobs({ q: String(picture.request.seed ?? ""), limit: 200 })
      .then(async (found) => {
        const known = explanationOf(found.jobs, picture.model, picture.request, versus);
        if (!known && current)
          own = await api.submit({
            kind: "explain",
            model: picture.model,
            request: picture.request,
            versus,
          });
        if (current) setFirst(known ?? own);
        else leave();
      })
      .catch((e) => current && setError(e));
    return () => {
      current = false;
      leave();
    };
  }, [picture.key, changes]);
  const job = first && (jobs.get(first.id) ?? first);
  if (error) return html`<${Wrong} error=${error} />`;
  if (job?.state === "done")
    return html`<iframe title="Inside this picture" src=${job.explanation} sandbox="allow-scripts" />`;
  if (job && !active(job))
    return html`<p class="note bad" role="alert">${job.error ?? "Cancelled"}</p>`;
  return html`<div class="card stack" role="status"><p>The picture is drawn once more, and what happens inside is recorded.</p>${job && html`<${Progress} job=${job} />`}</div>`;
}

export function Look({ arguments: [id, index] }) {
  const { able } = useStore();
  const [picture, setPicture] = useState(null),
    [changes, setChanges] = useState({}),
    [draft, setDraft] = useState({});
  useEffect(() => {
    setPicture(null);
    setChanges({});
    setDraft({});
    if (id) pictureAt([id, index]).then((p) => p && setPicture(p));
  }, [id, index]);
  if (!id)
    return html`<div class="stack"><h1>Look inside a picture</h1><p class="soft">What each word attended to, what guidance added, the steps, the schedule and the parts of the network, with their source and equations.</p>
    <${Choose} files=${false} onChoose=${(p) => {
      location.hash = `look/${p.key}`;
    }} /></div>`;
  if (!picture) return html`<p class="soft">Reading…</p>`;
  const set = (name, value) =>
    setDraft(
      Object.fromEntries(
        Object.entries({ ...draft, [name]: value }).filter(([, v]) => v !== undefined),
      ),
    );
  return html`<div class="stack"><div class="head"><h1>Look inside</h1><a class="button" href="#look">Another picture</a></div>
    <div class="two"><div class="card row top-row"><${Picture} url=${picture.url} width=${picture.width} alt=${picture.prompt} class="beside" /><${Facts} request=${{ prompt: picture.prompt, model: picture.model, seed: picture.seed, ...Object.fromEntries(["steps", "guidance", "sampler", "spacing"].map((n) => [n, picture.resolved[n]])) }} /></div>
      <form class="card stack" onSubmit=${(e) => {
        e.preventDefault();
        setChanges(draft);
      }}><h2>Change one thing, see both runs</h2><div class="fields">
        ${CHANGES.map((name) => {
          const f = fieldOf(able, name);
          return (
            f &&
            html`<${Field} key=${name} wide=${name === "prompt"} field=${described(able, { ...f, default: picture.resolved[name] ?? f.default }, draft[name])} value=${draft[name]} onChange=${(v) => set(name, v)} />`
          );
        })}</div>
        <div class="row"><button class="main" disabled=${!Object.keys(draft).length}>Draw both</button>${
          Object.keys(changes).length > 0 &&
          html`<button type="button" class="plain" onClick=${() => {
            setDraft({});
            setChanges({});
          }}>Only the picture</button>`
        }</div></form></div>
    <${Pane} picture=${picture} changes=${changes} /></div>`;
}
