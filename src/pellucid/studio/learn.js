/** Learn: noise with sliders, the autoencoder and CLIP on a picture of one's own, the GAN that diffusion replaced. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { active, attempt, picturesOf, useStore } from "./state.js";
import { NoiseLab } from "./noise_lab.js";
import { Choose, Picture, Progress, Wrong } from "./parts.js";

// kind of a job: title, what its page shows
const PAGES = {
  noise: [
    "More about noise",
    "Kinds of noise, the schedules of this model, and what its network makes of the noised picture.",
  ],
  autoencoder: [
    "The autoencoder",
    "The picture as latents and back: what is kept, what is lost, and what each channel holds.",
  ],
  clip: [
    "CLIP",
    "How near this picture is to words and to other words, in the space that steers the network.",
  ],
};

/** A page that the server makes of a picture. */
function Page({ kind, picture }) {
  const { jobs, model } = useStore();
  const [first, setFirst] = useState(null),
    [error, setError] = useState(null);
  const place = useRef();
  useEffect(() => {
    let current = true;
    setFirst(null);
    setError(null);
    place.current?.scrollIntoView({ block: "nearest" });
    api.submit({ kind, model, request: { image: picture.id, prompt: picture.prompt ?? "" } }).then(
      (job) => current && setFirst(job),
      (e) => current && setError(e),
    );
    return () => {
      current = false;
    };
  }, [kind, picture.id, model]);
  const job = first && (jobs.get(first.id) ?? first);
  const content = error
    ? html`<${Wrong} error=${error} />`
    : job?.state === "done"
      ? html`<iframe title=${PAGES[kind][0]} src=${job.explanation} sandbox="allow-scripts" />`
      : job && !active(job)
        ? html`<p class="note bad" role="alert">${job.error ?? "Cancelled"}</p>`
        : html`<div class="card" role="status">${job ? html`<${Progress} job=${job} />` : "Waiting"}</div>`;
  return html`<div class="page" ref=${place}>${content}</div>`;
}

/** A GAN draws in one step, so its picture follows the slider at once. */
function Gan() {
  const [gans, setGans] = useState(null),
    [name, setName] = useState(""),
    [prompt, setPrompt] = useState("");
  const [seed, setSeed] = useState(1),
    [towards, setTowards] = useState(2),
    [share, setShare] = useState(0);
  useEffect(() => {
    attempt(api.gans).then((found) => setGans(found?.gans ?? []));
  }, []);
  if (!gans) return null;
  const gan = gans.find((each) => each.name === name) ?? gans[0];
  const shown = gan?.classes.includes(prompt) ? prompt : (gan?.classes[0] ?? "");
  const number = (id, title, value, set) =>
    html`<div><label for=${id}>${title}</label><input id=${id} type="number" min="0" step="1" value=${value} onInput=${(e) => set(Math.max(0, Math.trunc(+e.target.value) || 0))} /></div>`;
  const choice = (id, title, value, all, set) =>
    html`<div><label for=${id}>${title}</label><select id=${id} value=${value} onChange=${(e) => set(e.target.value)}>${all.map((each) => html`<option value=${each}>${each}</option>`)}</select></div>`;
  return html`<section class="stack" aria-label="GAN"><h2>The GAN beside diffusion</h2>
    <p>A generative adversarial network goes from noise to a picture in one step, where diffusion takes many. It is fast, and every point between two noises is a picture. But it learns by a contest of two networks, which may not converge, and it may draw only a few kinds of picture.</p>
    ${
      gan
        ? html`<div class="two"><div class="stack"><div class="fields">${
            gans.length > 1 &&
            choice(
              "gan",
              "GAN",
              gan.name,
              gans.map((each) => each.name),
              setName,
            )
          }${gan.classes.length > 0 && choice("gan-class", "What", shown, gan.classes, setPrompt)}${number("gan-seed", "From seed", seed, setSeed)}${number("gan-towards", "To seed", towards, setTowards)}</div>
      <div><label for="gan-share">On the way: ${Math.round(share * 100)} %</label><input id="gan-share" type="range" min="0" max="1" step="0.02" value=${share} onInput=${(e) => setShare(+e.target.value)} /></div></div>
      <div class="stage"><img class="small-pixels" alt=${`Picture of the GAN ${gan.name}`} src=${api.ganUrl(gan.name, { seed, towards, share, prompt: shown })} /></div></div>`
        : html`<p class="note">There is no GAN among the models. Train one with <code>pellucid train gan</code> and put its file into the folder of models.</p>`
    }</section>`;
}

export function Learn() {
  const { jobs } = useStore();
  const [schedules, setSchedules] = useState(null),
    [picture, setPicture] = useState(null),
    [choosing, setChoosing] = useState(false),
    [page, setPage] = useState(null);
  useEffect(() => {
    attempt(api.schedules).then(setSchedules);
  }, []);
  const newest = [...jobs.values()]
    .filter((j) => j.kind === "generate" && j.state === "done" && j.pictures.length)
    .sort((a, b) => b.number - a.number)[0];
  const shown = picture ?? (newest && picturesOf(newest)[0]) ?? null;
  return html`<div class="stack"><div class="head"><h1>Learn</h1><a class="button" href="/docs" target="_blank" rel="noopener">The interface for programs</a></div>
    <p>Diffusion goes from a picture to noise in small steps, and a network learns the way back. Move the sliders to see the way there.</p>
    ${shown ? html`${schedules && html`<${NoiseLab} schedules=${schedules} url=${shown.url} />`}` : html`<div class="empty"><p>The lab needs a picture. Make one, or take one of your own.</p></div>`}
    <div class="row"><button aria-expanded=${choosing} onClick=${() => setChoosing(!choosing)}>${choosing ? "Keep this picture" : "Another picture"}</button></div>
    ${
      choosing &&
      html`<${Choose} onChoose=${(p) => {
        setPicture(p);
        setChoosing(false);
      }} />`
    }
    ${
      shown &&
      html`<h2>Inside the parts</h2><div class="cards">${Object.entries(PAGES).map(([kind, [title, text]]) => html`<button class="card" aria-pressed=${page === kind} onClick=${() => setPage(kind)}><span class="stack"><b>${title}</b><span class="small soft">${text}</span></span></button>`)}</div>
      ${page && html`<${Page} kind=${page} picture=${shown} />`}`
    }
    <${Gan} /></div>`;
}
