/** Small components that more than one view uses. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { active, attempt, pictureAt, picturesOf, toast, useStore } from "./state.js";

/** Small pictures are shown with their pixels, enlarged. */
export const Picture = ({ url, alt = "", width = 512, ...rest }) =>
  html`<img src=${url} alt=${alt} class=${width <= 128 ? "small-pixels" : ""} ...${rest} />`;

/** Seconds for people: "8 s", "2 min 5 s". */
export function time(seconds) {
  if (seconds == null) return "";
  const s = Math.max(0, Math.round(seconds));
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

export function Progress({ job }) {
  if (job.state === "queued")
    return html`<span class="soft">${job.place > 0 ? `Number ${job.place} in the queue${job.seconds_left != null ? `, done in ${time(job.seconds_left)}` : ""}` : "Waiting"}</span>`;
  if (job.state !== "running")
    return html`<span class="soft">${{ done: "Done", failed: "Failed", cancelled: "Cancelled" }[job.state]}</span>`;
  const count = job.request.count ?? 1;
  return html`<span class="soft numbers">${job.steps ? `Step ${job.step} of ${job.steps}` : "Starting"}${count > 1 ? `, picture ${Math.min(count, (job.first ?? 0) + 1)} of ${count}` : ""}${job.seconds_left != null ? `, ${time(job.seconds_left)} left` : ""}</span>
    <progress max=${(job.steps || 1) * count} value=${(job.step || 0) + (job.first || 0) * (job.steps || 1)} aria-label="Progress" />`;
}

/** The queue: what runs and what waits; cancel, reorder, pause. `shown`: the id of the job that the page shows. */
export function Queue({ shown = null }) {
  const { jobs, queue } = useStore();
  const waiting = [...queue.running, ...queue.waiting].map((id) => jobs.get(id)).filter(active);
  const failed = [...jobs.values()].filter((j) => j.state === "failed" && !j.deleted).slice(-3);
  const alone = waiting.every((job) => job.id === shown); // its progress is on the page already
  if (alone && !failed.length && !queue.paused) return null;
  return html`<section class="card" aria-labelledby="queue">
    <div class="head"><h2 id="queue">Queue</h2><span class="row">${queue.seconds_left != null && waiting.length > 1 && html`<span class="soft small numbers">all done in ${time(queue.seconds_left)}</span>`}
      <button type="button" class="plain" onClick=${() => attempt(() => api.pause(!queue.paused))}>${queue.paused ? "Go on" : "Pause"}</button></span></div>
    ${queue.paused && html`<p class="note">The queue is paused. A job that runs is finished first.</p>`}
    <ol class="jobs">${waiting.map(
      (job) => html`<li key=${job.id}>
      <span class="text">${job.kind === "explain" ? "Look inside: " : ""}${job.request.prompt || "(no prompt)"}</span>
      <span class="row">${job.state === "queued" && job.place > 1 && html`<button type="button" class="plain" title="Draw this next" onClick=${() => attempt(() => api.mark(job.id, { place: 1 }))}>↑<span class="hidden">Draw this next</span></button>`}
        <button type="button" class="plain" onClick=${() => attempt(() => api.cancel(job.id))}>Cancel</button></span>
      <${Progress} job=${job} /></li>`,
    )}
    ${failed.map(
      (
        job,
      ) => html`<li key=${job.id}><span class="text" title=${job.error}>${job.request.prompt}: ${job.error}</span>
      <span class="row"><button type="button" class="plain" onClick=${() => attempt(() => api.retry(job.id))}>Retry</button><button type="button" class="plain" onClick=${() => attempt(() => api.mark(job.id, { deleted: true }))}>Remove</button></span></li>`,
    )}</ol></section>`;
}

/** A file from a button, a drop or the clipboard. `take(upload, file)` gets what the server says of it. */
export function DropZone({ take, children, label = "Choose a picture" }) {
  const [over, setOver] = useState(false);
  const input = useRef();
  const send = async (file) => {
    if (!file) return;
    const upload = await attempt(() => api.upload(file));
    if (upload) take(upload, file);
  };
  useEffect(() => {
    const paste = (event) => {
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (file) {
        event.preventDefault();
        send(file);
      }
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  });
  return html`<div class=${over ? "dropping" : ""} onDragOver=${(e) => {
    e.preventDefault();
    setOver(true);
  }} onDragLeave=${() => setOver(false)}
      onDrop=${(e) => {
        e.preventDefault();
        setOver(false);
        const key = e.dataTransfer.getData("pellucid/picture");
        if (key) pictureAt(key.split("/")).then((p) => p && take(p));
        else send(e.dataTransfer.files[0]);
      }}>
    ${children}
    <input type="file" class="hidden" tabindex="-1" aria-hidden="true" accept="image/*" ref=${input} onChange=${(
      e,
    ) => {
      send(e.target.files[0]);
      e.target.value = "";
    }} />
    <button onClick=${() => input.current.click()}>${label}</button></div>`;
}

/** Two pictures over each other; what is left of the handle is the first. */
export function TwoPictures({ first, second, names = ["first", "second"] }) {
  const [at, setAt] = useState(50);
  return html`<div class="stack"><div class="over stage">
      <${Picture} url=${second.url} width=${second.width} alt=${names[1]} />
      <${Picture} url=${first.url} width=${first.width} alt=${names[0]} style=${`clip-path: inset(0 ${100 - at}% 0 0)`} /></div>
    <input type="range" min="0" max="100" value=${at} aria-label=${`How much of ${names[0]} is shown`} onInput=${(e) => setAt(+e.target.value)} />
    <div class="row small soft"><span class="grow">${names[0]}</span><span>${names[1]}</span></div></div>`;
}

const plain = (value) =>
  Array.isArray(value)
    ? value.map(plain).join(", ")
    : value === true
      ? "yes"
      : value === false
        ? "no"
        : typeof value === "number" && !Number.isInteger(value)
          ? String(+value.toPrecision(4))
          : String(value);

/** Settings as a list; those that differ from `other` are marked. */
export function Facts({ request, other = null, only = false }) {
  const shown = Object.entries(request).filter(
    ([name, v]) => v !== null && v !== "" && !(Array.isArray(v) && !v.length),
  );
  const differs = (name) => other && JSON.stringify(request[name]) !== JSON.stringify(other[name]);
  const rows = shown.filter(([name]) => !only || differs(name));
  return html`<dl class="facts">${rows.map(([name, value]) => html`<dt>${name.replaceAll("_", " ")}</dt><dd class=${differs(name) ? "differs" : ""}>${plain(value)}</dd>`)}</dl>`;
}

/** One picture of the history, small. */
export function Thumb({ picture, onClick, pressed }) {
  return html`<button type="button" class="thumb" aria-pressed=${pressed} onClick=${onClick} draggable onDragStart=${(e) => e.dataTransfer.setData("pellucid/picture", picture.key)}>
    <${Picture} url=${picture.width <= 320 ? picture.url : api.pictureUrl(picture.id, { side: 320 })} width=${picture.width} alt=${picture.prompt || `Picture of seed ${picture.seed}`} loading="lazy" />
    ${picture.favourite && html`<span class="star" aria-label="favourite">★</span>`}
    <span class="text soft">${picture.prompt || `seed ${picture.seed}`}</span></button>`;
}

/** A picture is chosen from the newest ones, or from a file. */
export function Choose({ onChoose, label = "Choose a file", files = true }) {
  const [list, setList] = useState([]);
  const [search, setSearch] = useState("");
  useEffect(() => {
    let current = true; // only the reply to the newest question is shown
    const timer = setTimeout(
      () =>
        api.jobs({ limit: 30, q: search, state: "done" }).then(
          (r) =>
            current && setList(r.jobs.filter((j) => j.kind === "generate").flatMap(picturesOf)),
          (e) => toast(e.message, true),
        ),
      150,
    );
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [search]);
  return html`<div class="stack">${
    files &&
    html`<${DropZone} label=${label} take=${(u) => onChoose({ ...u, url: api.pictureUrl(u.id), request: u.request ?? u.settings?.request ?? {} })}>
      <p class="soft">Drop a picture here, paste one, choose a file, or take one of these.</p></${DropZone}>`
  }
    <div><label class="hidden" for="find">Search</label><input id="find" type="search" placeholder="Search" value=${search} onInput=${(e) => setSearch(e.target.value)} /></div>
    <div class="thumbs">${list.map((p) => html`<${Thumb} key=${p.key} picture=${p} onClick=${() => onChoose(p)} />`)}</div></div>`;
}

export function Wrong({ error }) {
  return error && html`<p class="note bad" role="alert">${error.message}</p>`;
}
