/** History: everything that was made; search, favourites, the bin; settings of a dropped picture. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { attempt, change, chooseModel, picturesOf, setRequest, toast, useStore } from "./state.js";
import { DropZone, Facts, Picture, Thumb } from "./parts.js";
import { settingsOf } from "./requests.js";

/** Puts settings into Make; what this model does not have is named. */
export async function useSettings(request, model, { models, able }) {
  if (model && models.some((m) => m.name === model) && model !== able?.name)
    await chooseModel(model);
  change({ request: {} }); // what was set before stays no longer
  setRequest(settingsOf(request));
  location.hash = "make";
  if (request.image || request.mask)
    toast(
      "The picture that it began from is not among the settings. Choose it again under Change.",
    );
}

function Details({ picture, onChange, onClose }) {
  const store = useStore();
  const mark = (values) =>
    attempt(async () => {
      await api.mark(picture.job, values);
      onChange();
    });
  const favour = () =>
    attempt(async () => {
      await api.markPicture(picture.job, picture.index, { favourite: !picture.favourite });
      onChange();
    });
  const { request } = picture,
    place = useRef();
  useEffect(() => place.current.scrollIntoView({ block: "nearest" }), []); // on a phone it is above the list
  return html`<aside ref=${place} class="card stack" aria-label="The chosen picture"><div class="head" style="margin:0"><h2>Picture</h2><button class="plain" onClick=${onClose}>Close</button></div>
    <div class="stage"><${Picture} url=${picture.url} width=${picture.width} alt=${picture.prompt} /></div>
    <div class="row">${
      picture.deleted
        ? html`<button onClick=${() => mark({ deleted: false })}>Take out of the bin</button><button onClick=${() =>
            confirm("Delete this picture for good?") &&
            attempt(async () => {
              await api.remove(picture.job);
              onClose();
              onChange();
            })}>Delete for good</button>`
        : html`<button class="main" onClick=${() => useSettings(request, picture.model, store)}>Use these settings again</button>
        <button aria-pressed=${picture.favourite} onClick=${favour}>${picture.favourite ? "★" : "☆"} Favourite</button>
        <a class="button" href=${`#look/${picture.key}`}>Look inside</a><a class="button" href=${`#change/${picture.key}`}>Change it</a>
        <a class="button" href=${picture.url} download=${`${picture.seed}.png`}>Download</a><a class="button" href=${api.pictureUrl(picture.id, { metadata: false })} download=${`${picture.seed}.png`} title="The file says nothing of how it was made">Without metadata</a>
        <button class="plain" onClick=${() => mark({ deleted: true })}>To the bin</button>`
    }</div>
    <${Facts} request=${{ model: picture.model, seed: picture.seed, ...request }} /></aside>`;
}

const shown = (jobs) => jobs.filter((j) => j.kind === "generate").flatMap(picturesOf);

export function History() {
  const store = useStore();
  const [search, setSearch] = useState(""),
    [only, setOnly] = useState("all");
  const [list, setList] = useState([]),
    [next, setNext] = useState(null),
    [chosen, setChosen] = useState(null),
    [read, setRead] = useState(null);
  const ask = (before) =>
    api.jobs({
      q: search,
      state: "done",
      favourite: only === "favourites" ? true : undefined,
      deleted: only === "bin",
      before,
      limit: 60,
    });
  const wanted = (jobs) => shown(jobs).filter((p) => only !== "favourites" || p.favourite);
  const asked = useRef(0); // only the reply to the newest question is shown
  const load = () =>
    attempt(async () => {
      const mine = ++asked.current,
        r = await ask();
      if (mine !== asked.current) return;
      const found = wanted(r.jobs);
      setList(found);
      setNext(r.next);
      setChosen((c) => found.find((p) => p.key === c?.key) ?? null);
    });
  const finished = [...store.jobs.values()].filter((j) => j.state === "done").length;
  useEffect(() => {
    const timer = setTimeout(load, 150);
    return () => clearTimeout(timer);
  }, [search, only, finished]);
  const more = () =>
    attempt(async () => {
      const mine = asked.current,
        r = await ask(next);
      if (mine !== asked.current) return;
      setList([...list, ...wanted(r.jobs)]);
      setNext(r.next);
    });
  const dropped = (u) => {
    const s = u.settings ?? null;
    if (s?.program) setRead(s);
    else toast("This picture holds no settings", true);
  };
  return html`<div class="stack"><div class="head"><h1>History</h1><${DropZone} take=${dropped} label="Read the settings of a picture…"><span class="small soft">Drop a picture of A1111, ComfyUI, InvokeAI, Fooocus or Pellucid here. </span></${DropZone}></div>
    <div class="row"><div class="grow"><label class="hidden" for="search">Search in prompts and settings</label><input id="search" type="search" placeholder="Search in prompts and settings" value=${search} onInput=${(e) => setSearch(e.target.value)} /></div>
      <div role="group" aria-label="Which pictures">${[
        ["all", "All"],
        ["favourites", "Favourites"],
        ["bin", "Bin"],
      ].map(
        ([key, title]) =>
          html`<button aria-pressed=${only === key} onClick=${() => setOnly(key)}>${title}</button> `,
      )}</div></div>
    ${
      read &&
      html`<section class="card stack"><div class="head" style="margin:0"><h2>Settings of the dropped picture${read.program ? ` (${read.program})` : ""}</h2><button class="plain" onClick=${() => setRead(null)}>Close</button></div>
      ${read.problem && html`<p class="note small">${read.problem}</p>`}${read.unused.length > 0 && html`<p class="note small">Not used here: ${read.unused.join(", ")}</p>`}<${Facts} request=${{ ...read.names, ...read.request }} /><div class="row"><button class="main" onClick=${() => useSettings(read.request, read.names.model, store)}>Use these settings</button></div></section>`
    }
    <div class=${chosen ? "two chosen" : ""}>
      <div class="stack">${list.length ? html`<div class="thumbs">${list.map((p) => html`<${Thumb} key=${p.key} picture=${p} pressed=${p.key === chosen?.key} onClick=${() => setChosen(p)} />`)}</div>` : html`<div class="empty"><p>${search || only !== "all" ? "Nothing found." : "Nothing was made yet."}</p>${!search && only === "all" && html`<a class="button" href="#make">Make a picture</a>`}</div>`}
        ${next && html`<button style="justify-self:center" onClick=${more}>Older pictures</button>`}</div>
      ${chosen && html`<${Details} key=${chosen.key} picture=${chosen} onChange=${load} onClose=${() => setChosen(null)} />`}</div></div>`;
}
