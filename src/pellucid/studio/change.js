/** Change: a picture of one's own or of the history is redrawn, in whole or in part, or between two prompts. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { draw, pictureAt, picturesOf, toast, useStore } from "./state.js";
import { Brush, maskFile } from "./brush.js";
import { Field, Settings, fieldOf } from "./fields.js";
import { Frame } from "./frame.js";
import { ModelChoice, Stage } from "./make.js";
import { Choose, Picture, Queue, Wrong } from "./parts.js";
import { Prompt } from "./prompt.js";
import { OWN_DEFAULTS, modelOf, promptOf, requestOf } from "./requests.js";

// name: title, the field that the model must have, whether it starts from a picture
const WAYS = {
  redraw: ["Redraw", "image", true],
  brush: ["Brush", "mask", true],
  extend: ["Extend", "extend", true],
  enlarge: ["Second pass", "hires", false],
  variations: ["Variations", "variation_strength", false],
  mix: ["Mix", "mix", false],
  walk: ["Walk", "walk", false],
};

export function Change({ arguments: [id, index] }) {
  const { able, jobs, model, models, request } = useStore();
  const [picture, setPicture] = useState(null);
  const [own, setOwn] = useState({}); // the settings of this view; those of Make stay as they are
  const [way, setWay] = useState("redraw");
  const [error, setError] = useState(null);
  const [made, setMade] = useState([]); // ids of the jobs of the last "Draw"
  const [job, setJob] = useState(null); // the one that is shown
  const [chosen, setChosen] = useState(0);
  const [share, setShare] = useState(0.5);
  const paper = useRef(null);
  const set = (values) => setOwn((o) => ({ ...o, ...values }));

  useEffect(() => {
    if (id) pictureAt([id, index]).then((p) => p && setPicture(p));
  }, [id, index]);

  if (!able) return null;
  const ways = Object.entries(WAYS).filter(([, [, name]]) => fieldOf(able, name));
  const [, , needsPicture] = WAYS[way];
  const unit = able.size.unit;
  const extend = own.extend ?? [0, 0, 0, 0];
  const prompt = promptOf(own, picture, request);
  const field = (name) => {
    const f = fieldOf(able, name);
    return (
      f &&
      html`<${Field} field=${{ ...f, default: OWN_DEFAULTS[name] ?? f.default }} value=${own[name]} error=${error?.field === name ? error.message : null} onChange=${(v) => set({ [name]: v })} />`
    );
  };

  const submit = async () => {
    setError(null);
    setChosen(0);
    const { image, mask, extend: _, mix, walk, ...shared } = request;
    const form = {
      base: { ...shared, prompt },
      own,
      picture,
      share,
      random: Math.floor(Math.random() * 2 ** 31),
    };
    if (needsPicture && !picture) return toast("Choose a picture first", true);
    if (way === "extend" && !extend.some(Boolean))
      return toast("Drag the frame outwards first", true);
    if (way === "brush" && (!paper.current || paper.current.empty()))
      return toast("Paint where the picture is redrawn", true);
    try {
      if (way === "brush") form.mask = (await api.upload(await maskFile(paper.current.canvas))).id;
      const ids = [];
      for (const wish of [requestOf[way](form)].flat())
        ids.push((await draw(wish, modelOf(way, picture, model, models))).id);
      setMade(ids);
      setJob(ids[0]);
    } catch (e) {
      setError(e);
    }
  };
  const done = jobs.get(job);
  return html`<div class="two"><form class="stack" onSubmit=${(e) => {
    e.preventDefault();
    submit();
  }}><h1 class="hidden">Change a picture</h1>
      <div class="row" role="group" aria-label="What to change">${ways.map(
        ([name, [title]]) =>
          html`<button type="button" aria-pressed=${name === way} onClick=${() => {
            setWay(name);
            setError(null);
          }}>${title}</button>`,
      )}</div>
      <${Prompt} value=${prompt} label=${way === "mix" || way === "walk" ? "First prompt" : "Prompt"} onChange=${(v) => set({ prompt: v })} onSubmit=${submit} />
      ${(way === "mix" || way === "walk") && html`<${Prompt} name="second" label="Second prompt" rows="2" value=${own.second ?? ""} onChange=${(v) => set({ second: v })} onSubmit=${submit} />`}
      ${way === "mix" && html`<div><label for="share">How much of each</label><input id="share" type="range" min="0" max="1" step="0.05" value=${share} aria-valuetext=${`${Math.round(share * 100)} % of the second prompt`} onInput=${(e) => setShare(+e.target.value)} /><div class="row small soft"><span class="grow">first</span><span class="numbers">${Math.round(share * 100)} % second</span></div></div>${field("mix_by")}`}
      ${way === "walk" && field("walk_by")}
      ${(way === "walk" || way === "variations") && html`<div><label for="many">Pictures</label><input id="many" type="number" min="2" max="64" value=${own.count ?? (way === "walk" ? 8 : 4)} onInput=${(e) => set({ count: +e.target.value || undefined })} /></div>`}
      ${needsPicture && field("strength")}
      ${way === "brush" && html`<details><summary>Mask</summary><div class="fields">${["inpaint_fill", "mask_blur", "mask_grow", "only_masked", "padding"].map(field)}</div></details>`}
      ${way === "enlarge" && html`<div class="fields">${["hires", "hires_strength", "hires_steps", "hires_upscaler"].map(field)}</div>`}
      ${way === "variations" && field("variation_strength")}
      <button class="main" type="submit" style="justify-self:start">Draw</button><${Wrong} error=${error} />
      <details><summary>More</summary><div class="stack"><${ModelChoice} /><${Settings} error=${error} names=${["steps", "guidance", "sampler", "spacing"]} /></div></details></form>
    <div class="stack">${
      done &&
      html`<${Stage} job=${done} chosen=${chosen} onChoose=${setChosen} changing />
        ${
          made.length > 1 &&
          html`<div class="thumbs tiny">${made.map((each, i) => {
            const first = jobs.get(each)?.pictures?.[0];
            return html`<button type="button" class="thumb" key=${each} aria-pressed=${each === job} onClick=${() => setJob(each)}>${first ? html`<${Picture} url=${first.url} width=${first.width} alt=${`Variation ${i + 1}`} />` : html`<span class="text soft">${i + 1}</span>`}</button>`;
          })}</div>`
        }
        ${
          done.state === "done" &&
          done.pictures?.[0] &&
          html`<div class="row"><button onClick=${() => {
            setPicture(picturesOf(done)[chosen]);
            setJob(null);
          }}>Go on with this picture</button><button class="plain" onClick=${() => setJob(null)}>Back to the first picture</button></div>`
        }`
    }
      ${
        !done &&
        (needsPicture || way === "enlarge" || way === "variations") &&
        (picture
          ? html`${
              way === "brush"
                ? html`<${Brush} picture=${picture} paper=${paper} />`
                : way === "extend"
                  ? html`<${Frame} picture=${picture} extend=${extend} unit=${unit} onChange=${(v) => set({ extend: v })} />`
                  : html`<div class="stage"><${Picture} url=${picture.url} width=${picture.width} alt=${picture.prompt ?? "The picture that is changed"} /></div>`
            }
          <button type="button" style="justify-self:start" onClick=${() => setPicture(null)}>Another picture</button>`
          : html`<${Choose} onChoose=${setPicture} />`)
      }
      ${!done && (way === "mix" || way === "walk") && html`<div class="stage"><p class="soft">${way === "mix" ? "One picture of two prompts." : "Pictures on the way from one prompt to the other, from the same noise."}</p></div>`}
      <${Queue} shown=${job} /></div></div>`;
}
