/** All that the studio asks of the server. Nothing else here uses the network. */

export class Refused extends Error {
  constructor(status, { message, field = null }) {
    super(message);
    Object.assign(this, { status, field });
  }
}

async function call(method, path, body, type = "application/json") {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["content-type"] = type;
    options.body = type === "application/json" ? JSON.stringify(body) : body;
  }
  let reply;
  try {
    reply = await fetch(`/api/${path}`, options);
  } catch {
    throw new Refused(0, {
      message: "The server does not answer. Is “pellucid serve” still running?",
    });
  }
  const data = reply.headers.get("content-type")?.includes("json")
    ? await reply.json()
    : await reply.text();
  if (!reply.ok)
    throw new Refused(reply.status, data?.error ?? { message: String(data) || reply.statusText });
  return data;
}

const query = (values) =>
  new URLSearchParams(
    Object.entries(values).filter(([, v]) => v !== undefined && v !== null && v !== ""),
  ).toString();

export const models = () => call("GET", "models");
export const capabilities = (name) =>
  call("GET", `models/${encodeURIComponent(name)}/capabilities`);
export const loras = () => call("GET", "loras");
export const embeddings = () => call("GET", "embeddings");
export const tokens = (model, prompt) => call("POST", "tokens", { model, prompt });

/** Stores a picture; what it says of itself comes with it. */
export async function upload(file) {
  const stored = await call("POST", "pictures", file, "application/octet-stream");
  return { ...stored, settings: await call("GET", `pictures/${stored.id}/settings`) };
}
export const pictureUrl = (id, { side, metadata } = {}) => {
  const asked = query({ side, metadata });
  return `/api/pictures/${id}${asked && `?${asked}`}`;
};

export const submit = (job) => call("POST", "jobs", job);
export const jobs = (values = {}) => call("GET", `jobs?${query(values)}`);
export const job = (id) => call("GET", `jobs/${id}`);
export const cancel = (id) => call("POST", `jobs/${id}/cancel`);
export const retry = (id) => call("POST", `jobs/${id}/retry`);
export const mark = (id, values) => call("PATCH", `jobs/${id}`, values);
export const markPicture = (id, index, values) =>
  call("PATCH", `jobs/${id}/pictures/${index}`, values);
export const remove = (id) => call("DELETE", `jobs/${id}`);
export const steps = (id) => call("GET", `jobs/${id}/steps`);
export const queue = () => call("GET", "queue");
export const pause = (paused) => call("PATCH", "queue", { paused });

export const grid = (body) => call("POST", "grids", body);
export const readGrid = (id) => call("GET", `grids/${id}`);

/** Server-sent events of everything: `heard(kind, data)`, `connected(true|false)`. The browser connects
 *  again by itself. */
export function listen(heard, connected) {
  const source = new EventSource("/api/events");
  for (const kind of ["job", "step", "queue", "deleted"])
    source.addEventListener(kind, (event) => heard(kind, JSON.parse(event.data)));
  source.onopen = () => connected(true);
  source.onerror = () => connected(false);
}
export const gans = () => call("GET", "gans");
export const ganUrl = (name, asked) =>
  `/api/gans/${encodeURIComponent(name)}/picture?${query(asked)}`;
/** The curves alpha and sigma of each noise schedule. */
export const schedules = () => call("GET", "schedules");
