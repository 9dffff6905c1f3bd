/** Form fields from what the server says of a model: no table of settings stands here. */
import { html } from "./vendor/preact-htm.js";
import { setRequest, useStore } from "./state.js";

const PAIRS = new Set(["interval"]); // written as two numbers from 0 to 1
const title = (name) =>
  (name[0].toUpperCase() + name.slice(1)).replaceAll("_", " ").replace(/^Clip/, "CLIP");
const shown = (value) => (Array.isArray(value) ? value.join(", ") : String(value));

/** One field. `value` undefined means: the model's own default, which the empty field shows. */
export function Field({ field, value, onChange, error = null, wide = false }) {
  const id = `field-${field.name}`,
    hint = `${id}-help`;
  const common = { id, "aria-describedby": hint, "aria-invalid": error ? "true" : null };
  const standard = field.default == null ? "" : shown(field.default);
  let control;
  if (field.type === "boolean" && field.default == null)
    // the model decides
    control = html`<select ...${common} value=${value ?? ""} onChange=${(e) => onChange(e.target.value === "" ? undefined : e.target.value === "true")}>
      <option value="">default</option><option value="true">yes</option><option value="false">no</option></select>`;
  else if (field.type === "boolean")
    control = html`<div class="check"><input type="checkbox" ...${common} checked=${value ?? field.default ?? false} onChange=${(e) => onChange(e.target.checked)} /><label for=${id}>${title(field.name)}</label></div>`;
  else if (field.choices)
    control = html`<select ...${common} value=${value ?? ""} onChange=${(e) => onChange(e.target.value || undefined)}>
      <option value="">${standard ? `${standard} (default)` : "default"}</option>
      ${field.choices.map((c) => html`<option value=${c}>${c}</option>`)}</select>`;
  else if (field.type === "integer" || field.type === "number")
    control = html`<input type="number" inputmode="decimal" ...${common} value=${value ?? ""} placeholder=${standard} min=${field.minimum} max=${field.maximum} step=${field.type === "integer" ? 1 : "any"}
      onInput=${(e) => onChange(e.target.value === "" ? undefined : +e.target.value)} />`;
  else if (PAIRS.has(field.name)) {
    const [a, b] = value ?? field.default;
    control = html`<div class="pair" role="group" aria-label=${title(field.name)}>${[a, b].map((v, i) => html`<input type="number" step="0.05" min="0" max="1" value=${v} aria-label=${`${title(field.name)}, ${i ? "to" : "from"}`} onInput=${(e) => onChange(i ? [a, +e.target.value] : [+e.target.value, b])} />`)}</div>`;
  } else
    control = html`<input type="text" ...${common} value=${value ?? ""} placeholder=${standard} onInput=${(e) => onChange(e.target.value || undefined)} />`;
  return html`<div class=${`field ${error ? "bad" : ""} ${wide ? "wide" : ""}`}>${(field.type !== "boolean" || field.default == null) && html`<label for=${PAIRS.has(field.name) ? null : id}>${title(field.name)}</label>`}${control}
    ${error ? html`<p class="wrong" id=${hint}>${error}</p>` : html`<p class="help" id=${hint}>${field.help}</p>`}</div>`;
}

// These have controls of their own in the views.
const ELSEWHERE = new Set([
  "prompt",
  "negative_prompt",
  "seed",
  "count",
  "width",
  "height",
  "image",
  "mask",
  "extend",
  "strength",
  "loras",
  "embeddings",
  "mix",
  "walk",
  "walk_span",
  "mask_invert",
  "mask_grow",
  "mask_blur",
  "inpaint_fill",
  "only_masked",
  "padding",
  "refiner",
]);

// Those of them that Make has.
const IN_MAKE = new Set(["prompt", "negative_prompt", "seed", "count", "width", "height"]);
const isSetting = (f) =>
  !ELSEWHERE.has(f.name) &&
  (f.choices || ["boolean", "integer", "number"].includes(f.type) || PAIRS.has(f.name));

/** What is set and has no field in Make, such as the LoRAs of a picture whose settings are used again. */
export function OtherSettings() {
  const { able, request } = useStore();
  const names = Object.keys(request).filter(
    (name) => !IN_MAKE.has(name) && !able?.fields.some((f) => f.name === name && isSetting(f)),
  );
  if (!able || !names.length) return null;
  return html`<div class="row" role="group" aria-label="Other settings">${names.map(
    (
      name,
    ) => html`<button key=${name} type="button" class="small" title="Remove this setting" onClick=${() => setRequest({ [name]: undefined })}>
    <span class="cut">${title(name)}: ${shown(request[name])}</span><span aria-hidden="true">✕</span></button>`,
  )}</div>`;
}

/** The settings under "More", in the groups of the request. */
export function Settings({ error, names = null }) {
  const { able, request } = useStore();
  if (!able) return null;
  const fields = able.fields.filter((f) => (names ? names.includes(f.name) : isSetting(f)));
  const groups = new Map([["", []]]); // fields without a group come first
  for (const f of fields) groups.set(f.group, [...(groups.get(f.group) ?? []), f]);
  return html`${[...groups].map(
    ([
      group,
      list,
    ]) => html`<div class="stack" key=${group}>${group && html`<h3>${group}</h3>`}<div class="fields">
    ${list.filter((f) => !f.needs || request[f.needs] !== undefined).map((f) => html`<${Field} key=${f.name} field=${described(able, f, request[f.name])} value=${request[f.name]} error=${error?.field === f.name ? error.message : null} onChange=${(v) => setRequest({ [f.name]: v })} />`)}</div></div>`,
  )}`;
}

/** A sampler is described by what it does, in place of a list of names. */
export const described = (able, field, value) =>
  field.name === "sampler"
    ? {
        ...field,
        help: able.samplers.find((s) => s.name === (value ?? field.default))?.help ?? field.help,
      }
    : field;

export const fieldOf = (able, name) => able?.fields.find((f) => f.name === name);
