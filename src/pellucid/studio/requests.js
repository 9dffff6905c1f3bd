/** What the views ask for: requests from what a form says. Plain functions, without a page. */

const MASK = ["strength", "mask_blur", "mask_grow", "inpaint_fill", "only_masked", "padding"];
const OF_FILES = ["image", "mask", "mask_invert", "extend", ...MASK, "refiner", "refiner_at"];
const SECOND = ["hires", "hires_strength", "hires_steps", "hires_upscaler"];

/** Change draws with these where nothing is typed: a second pass and a variation are what it is there for. */
export const OWN_DEFAULTS = { hires: 2, variation_strength: 0.2 };

const given = (own, names) =>
  Object.fromEntries(names.filter((n) => own[n] !== undefined).map((n) => [n, own[n]]));

/** Whether it is known what made a picture: a job of this server, or what its file says. */
export const isRecorded = (picture) =>
  Boolean(picture?.job) || picture?.request?.prompt !== undefined;

/** The prompt of Change: what was typed, else that of the picture, else that of Make. */
export const promptOf = (own, picture, request) =>
  own.prompt ?? picture?.request?.prompt ?? request.prompt ?? "";

function fromPicture({ base, picture }, more) {
  const { width, height, ...rest } = base; // the picture has its own size
  return { ...rest, image: picture.id, ...more };
}

/** What made the picture, with the prompt of the form; a picture without a record is the start. */
function again(form, strength) {
  const { base, picture } = form;
  if (!picture) return base;
  if (!isRecorded(picture)) return fromPicture(form, strength === undefined ? {} : { strength });
  return { ...picture.request, prompt: base.prompt };
}

/**
 * Of each way of Change: the request, or a list of them. The form has `base`, the settings of Make with the
 * prompt of Change; `own`, the settings of Change; `picture`, the one that is changed; `share` of the second
 * prompt, 0 to 1; `mask`, the id of a picture; `random`, a seed.
 */
export const requestOf = {
  redraw: (form) => fromPicture(form, given(form.own, ["strength"])),
  brush: (form) => fromPicture(form, { ...given(form.own, MASK), mask: form.mask }),
  extend: (form) =>
    fromPicture(form, { ...given(form.own, ["strength"]), extend: form.own.extend }),
  // With strength 0 the first pass leaves a picture without a record as it is.
  enlarge: (form) => ({
    ...again(form, 0),
    hires: OWN_DEFAULTS.hires,
    ...given(form.own, SECOND),
    count: 1,
  }),
  variations: (form) => {
    const { own, picture, base, random } = form;
    const seed = picture?.seed ?? picture?.request?.seed ?? base.seed ?? 0;
    const one = {
      ...again(form),
      seed,
      count: 1,
      variation_strength: own.variation_strength ?? OWN_DEFAULTS.variation_strength,
    };
    return Array.from({ length: own.count ?? 4 }, (_, i) => ({
      ...one,
      variation_seed: (own.variation_seed ?? random) + i,
    }));
  },
  mix: ({ base, own, share }) => ({
    ...base,
    mix: [[own.second ?? "", Math.max(0.01, share / Math.max(0.01, 1 - share))]],
    ...given(own, ["mix_by"]),
  }),
  walk: ({ base, own }) => ({
    ...base,
    walk: own.second ?? "",
    count: own.count ?? 8,
    ...given(own, ["walk_by"]),
  }),
};

/** The model for a way of Change: that of the picture where what made it is drawn again. */
export const modelOf = (way, picture, selected, models) =>
  ["enlarge", "variations"].includes(way) &&
  isRecorded(picture) &&
  models.some((m) => m.name === picture.model)
    ? picture.model
    : selected;

/** A request as the server stores it for an explanation: without defaults, and without a refiner. */
function plain(request) {
  if (!request) return null;
  const { refiner, refiner_at, count, ...rest } = request;
  return JSON.stringify(
    Object.entries(count > 1 ? { ...rest, count } : rest).sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

/** The job that explains this run, or these two, and has not failed; undefined: there is none. */
export const explanationOf = (jobs, model, request, versus) =>
  [...jobs].find(
    (job) =>
      job.kind === "explain" &&
      ["queued", "running", "done"].includes(job.state) &&
      !job.deleted &&
      job.model === model &&
      plain(job.request) === plain(request) &&
      plain(job.versus) === plain(versus),
  );

/**
 * What can complete the text before the cursor: `from`, where that begins, and a list of { name, kind, text }.
 * `kind` is "" for a word that the model knows.
 */
export function completion(before, { loras, embeddings, words }) {
  const inside = /<lora:([^:<>]*)$/.exec(before);
  const part = (inside ?? /([\p{L}\d_-]{2,})$/u.exec(before))?.[1];
  if (part === undefined) return { from: before.length, list: [] };
  const typed = part.toLowerCase();
  const begin = (names) => names.filter((name) => name.toLowerCase().startsWith(typed));
  const longer = (names) => begin(names).filter((name) => name.toLowerCase() !== typed);
  const tags = begin(loras).map((name) => ({
    name,
    kind: "LoRA",
    text: inside ? `${name}:1>` : `<lora:${name}:1>`,
  }));
  const own = longer(embeddings).map((name) => ({ name, kind: "embedding", text: name }));
  const known = longer(words).map((name) => ({ name, kind: "", text: name }));
  return { from: before.length - part.length, list: inside ? tags : [...own, ...tags, ...known] };
}

/** The settings of a picture for Make: without its refiner and the picture that it began from, and without the
 *  embeddings that its prompts name, which are found by their names again. */
export function settingsOf(request) {
  const prompts = JSON.stringify([
    request.prompt,
    request.negative_prompt,
    request.mix,
    request.walk,
  ]).toLowerCase();
  const embeddings = (request.embeddings ?? []).filter(
    (name) => !prompts.includes(name.toLowerCase()),
  );
  const kept = Object.entries({ ...request, embeddings: embeddings.length ? embeddings : null });
  return Object.fromEntries(
    kept.filter(
      ([name, value]) => value !== null && value !== undefined && !OF_FILES.includes(name),
    ),
  );
}
