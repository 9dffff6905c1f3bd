/** Learn: noise with sliders, the autoencoder and CLIP on a picture of one's own, the GAN that diffusion replaced. */
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { active, attempt, picturesOf, useStore } from "./state.js";
import { NoiseLab } from "./noise_lab.js";
import { Choose, Picture, Progress, Wrong } from "./parts.js";

// kind of a job: title, what its page shows
const PAGES = {
  noise: ["More about noise", "Kinds of noise, the schedules of this model, and what its network makes of the noised picture."],
  autoencoder: ["The autoencoder", "The picture as latents and back: what is kept, what is lost, and what each channel holds."],
  clip: ["CLIP", "How near this picture is to words and to other words, in the space that steers the network."],
};

/** A page that the server makes of a picture. */
function Page({ kind, picture }) {
  const { jobs, model } = useStore();
  const [first, setFirst] = useState(null), [error, setError] = useState(null);
  useEffect(() => {
    let current = true;
    setFirst(null);
    setError(null);
    api.submit({ kind, model, request: { image: picture.id, prompt: picture.prompt ?? "" } }).then((job) => current && setFirst(job), (e) => current && setError(e));
    return () => { current = false; };
  }, [kind, picture.id, model]);
  const job = first && (jobs.get(first.id) ?? first);
  if (error) return html`<${Wrong} error=${error} />`;
  if (job?.state === "done") return html`<iframe title=${PAGES[kind][0]} src=${job.explanation} sandbox="allow-scripts" />`;
  if (job && !active(job)) return html`<p class="note bad" role="alert">${job.error ?? "Cancelled"}</p>`;
  return html`<div class="card" role="status">${job ? html`<${Progress} job=${job} />` : "Waiting"}</div>`;
}

export function Learn() {
  const { jobs } = useStore();
  const [schedules, setSchedules] = useState(null), [picture, setPicture] = useState(null), [choosing, setChoosing] = useState(false), [page, setPage] = useState(null);
  useEffect(() => { attempt(api.schedules).then(setSchedules); }, []);
  const newest = [...jobs.values()].filter((j) => j.kind === "generate" && j.state === "done" && j.pictures.length).sort((a, b) => b.number - a.number)[0];
  const shown = picture ?? (newest && picturesOf(newest)[0]) ?? null;
  return html`<div class="stack"><div class="head"><h1>Learn</h1><a class="button" href="/docs" target="_blank" rel="noopener">The interface for programs</a></div>
    <p>Diffusion goes from a picture to noise in small steps, and a network learns the way back. Move the sliders to see the way there.</p>
    ${shown ? html`${schedules && html`<${NoiseLab} schedules=${schedules} url=${shown.url} />`}` : html`<div class="empty"><p>The lab needs a picture. Make one, or take one of your own.</p></div>`}
    <div class="row"><button aria-expanded=${choosing} onClick=${() => setChoosing(!choosing)}>${choosing ? "Keep this picture" : "Another picture"}</button></div>
    ${choosing && html`<${Choose} onChoose=${(p) => { setPicture(p); setChoosing(false); }} />`}
    ${shown && html`<h2>Inside the parts</h2><div class="cards">${Object.entries(PAGES).map(([kind, [title, text]]) => html`<button class="card" aria-pressed=${page === kind} onClick=${() => setPage(kind)}><span class="stack"><b>${title}</b><span class="small soft">${text}</span></span></button>`)}</div>
      ${page && html`<${Page} kind=${page} picture=${shown} />`}`}</div>`;
}
