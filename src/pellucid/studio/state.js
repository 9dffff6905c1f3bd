/** What all views share: the jobs, the chosen model, the settings in hand. One store, plain functions. */
import { useEffect, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";

export const state = {
  models: [],
  model: null, // its name
  able: null, // capabilities of `model`
  names: { loras: [], embeddings: [] },
  request: {}, // only what the person set; everything else is the model's own default
  jobs: new Map(), // id -> job
  steps: new Map(), // id of a job -> the steps that were reported while this page was open
  queue: { paused: false, running: [], waiting: [], seconds_left: null },
  online: true,
  toasts: [],
  watched: null, // the job that Make shows
};

const watchers = new Set();
export function change(values) {
  Object.assign(state, values);
  for (const watcher of watchers) watcher();
}

/** The store, for a component that is drawn again when anything in it changes. */
export function useStore() {
  const [, again] = useState(0);
  useEffect(() => {
    const watcher = () => again((n) => n + 1);
    watchers.add(watcher);
    return () => watchers.delete(watcher);
  }, []);
  return state;
}

let toastId = 0;
export function toast(text, bad = false) {
  const id = ++toastId;
  change({ toasts: [...state.toasts, { id, text, bad }] });
  setTimeout(() => change({ toasts: state.toasts.filter((t) => t.id !== id) }), bad ? 9000 : 4000);
}

/** Runs `work`; an error becomes a message on the page, and the result is undefined. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    toast(error.message, true);
    return undefined;
  }
}

const KEPT = "pellucid-settings";
const kept = () => {
  try {
    return JSON.parse(localStorage[KEPT] || "{}");
  } catch {
    return {}; // a private window, or something that this page did not write
  }
};

export function setRequest(values) {
  const request = { ...state.request, ...values };
  for (const [name, value] of Object.entries(request))
    if (value === undefined || value === "") delete request[name];
  change({ request });
  try {
    localStorage[KEPT] = JSON.stringify({ model: state.model, request });
  } catch {
    /* a private window keeps nothing */
  }
}

export async function chooseModel(name) {
  const able = await attempt(() => api.capabilities(name));
  if (!able) return;
  const known = new Set(able.fields.map((f) => f.name));
  // A setting that the new model lacks would be refused; one that it has stays.
  const request = Object.fromEntries(
    Object.entries(state.request).filter(([field]) => known.has(field)),
  );
  change({ model: name, able, request });
  setRequest({});
}

function heard(kind, data) {
  if (kind === "job") {
    state.jobs.set(data.id, data);
    if (data.state === "queued") state.steps.delete(data.id); // a retry begins again
  } else if (kind === "step") {
    const job = state.jobs.get(data.id);
    if (job)
      Object.assign(job, {
        step: data.step,
        steps: data.steps,
        first: data.first,
        seconds_left: data.seconds_left,
      });
    state.steps.set(data.id, [...(state.steps.get(data.id) ?? []), data]);
  } else if (kind === "queue") state.queue = data;
  else if (kind === "deleted") state.jobs.delete(data.id);
  change({});
}

async function readJobs() {
  const before = new Map(state.jobs);
  const found = await attempt(() => api.jobs({ limit: 50 }));
  // An event that came while the reply was on its way is newer than the reply.
  for (const job of found?.jobs ?? [])
    if (state.jobs.get(job.id) === before.get(job.id)) state.jobs.set(job.id, job);
  change({});
}

export async function start() {
  let lost = false;
  api.listen(heard, (online) => {
    if (online && lost) readJobs(); // what happened while the server was away
    lost = !online;
    if (online !== state.online) change({ online });
  });
  const found = await attempt(api.models);
  if (!found) return;
  const models = found.models.filter((m) => !m.problem);
  change({ models, request: kept().request ?? {} });
  const name = [kept().model, found.default, models[0]?.name].find((n) =>
    models.some((m) => m.name === n),
  );
  if (name) await chooseModel(name);
  await readJobs();
  const [loras, embeddings] = await Promise.all([attempt(api.loras), attempt(api.embeddings)]);
  change({ names: { ...loras, ...embeddings } });
}

/** Sends a request; Make follows its job. */
export async function draw(request = state.request, model = state.model) {
  const job = await api.submit({ model, request, previews: true });
  if (!state.jobs.has(job.id)) state.jobs.set(job.id, job); // an event may have been faster
  change({ watched: job.id });
  return job;
}

export const active = (job) => Boolean(job) && (job.state === "queued" || job.state === "running");

/** The request that draws picture `index` of a job alone. */
export function alone(job, index) {
  const request = { ...job.request, count: 1 },
    count = job.request.count ?? 1;
  if (request.walk != null) {
    const [from, to] = request.walk_span ?? [0, 1],
      at = count === 1 ? (from + to) / 2 : from + ((to - from) * index) / (count - 1);
    return { ...request, walk_span: [at, at] };
  }
  if (request.variation_seed != null) request.variation_seed += index;
  return { ...request, seed: job.pictures[index]?.seed ?? request.seed };
}

/** The pictures of a job, each with what the views show of it. */
export const picturesOf = (job) =>
  job.pictures.map((p, index) => ({
    ...p,
    job: job.id,
    index,
    key: `${job.id}/${index}`,
    prompt: job.request.prompt ?? "",
    model: job.model,
    request: alone(job, index),
    resolved: job.resolved,
    deleted: job.deleted,
  }));

/** The picture at an address like "#look/JOB/INDEX". */
export async function pictureAt([id, index]) {
  const job = state.jobs.get(id) ?? (await attempt(() => api.job(id)));
  return job ? picturesOf(job)[+index || 0] : undefined;
}
