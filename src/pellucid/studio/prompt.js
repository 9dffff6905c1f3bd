/** The prompt's text field: live tokens, borders of chunks, names completed while typing. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import * as api from "./api.js";
import { completion } from "./requests.js";
import { useStore } from "./state.js";

const CHOICES = 8;

export function Prompt({
  name = "prompt",
  label = "Prompt",
  value,
  onChange,
  onSubmit,
  rows = 3,
  error = null,
}) {
  const { able, model, names } = useStore();
  const [read, setRead] = useState(null);
  const [open, setOpen] = useState(null); // { from, list, at, chosen }
  const field = useRef();

  useEffect(() => {
    // counted when typing pauses
    if (!model || !value) return setRead(null);
    const timer = setTimeout(
      () => api.tokens(model, value).then(setRead, () => setRead(null)),
      250,
    );
    return () => clearTimeout(timer);
  }, [value, model]);

  const complete = (text, at) => {
    const found = completion(text.slice(0, at), { ...names, words: able?.words ?? [] });
    setOpen(
      found.list.length
        ? { from: found.from, list: found.list.slice(0, CHOICES), at, chosen: -1 }
        : null,
    );
  };
  useEffect(() => {
    // names may come while somebody types
    const { current } = field;
    if (current === document.activeElement && value) complete(value, current.selectionStart);
  }, [names]);
  const take = (chosen) => {
    const text = value.slice(0, open.from) + chosen.text + value.slice(open.at);
    const cursor = open.from + chosen.text.length;
    onChange(text);
    setOpen(null);
    requestAnimationFrame(() => {
      field.current.focus();
      field.current.setSelectionRange(cursor, cursor);
    });
  };
  const key = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      onSubmit?.();
      return;
    }
    if (!open) return;
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) {
      event.preventDefault();
      setOpen({ ...open, chosen: (open.chosen + move + open.list.length) % open.list.length });
    } else if ((event.key === "Enter" || event.key === "Tab") && open.chosen >= 0) {
      event.preventDefault();
      take(open.list[open.chosen]);
    } else if (event.key === "Escape") {
      event.stopPropagation();
      setOpen(null);
    }
  };
  const id = `prompt-${name}`;
  // One reading for each part of the run that has a text of its own, such as [a:b:0.5].
  const readings = read
    ? read.prompts.flatMap((p) => p.readings.map((r) => ({ ...r, weight: p.weight })))
    : [];
  const most = Math.max(1, ...readings.map((r) => r.chunks.length));
  const plain =
    readings.length < 2 &&
    most === 1 &&
    readings.every((r) => r.chunks[0].every((t) => t.weight === 1));
  return html`<div class=${`field ${error ? "bad" : ""}`}><label for=${id}>${label}</label>
    <div class="menu"><textarea id=${id} ref=${field} rows=${rows} value=${value} spellcheck aria-autocomplete="list" aria-controls=${open ? `${id}-list` : null} aria-describedby=${`${id}-count`}
      onInput=${(e) => {
        onChange(e.target.value);
        complete(e.target.value, e.target.selectionStart);
      }} onKeyDown=${key} onBlur=${() => setTimeout(() => setOpen(null), 150)} />
    ${
      open &&
      html`<ul id=${`${id}-list`} role="listbox" aria-label="Completions">${open.list.map(
        (each, i) =>
          html`<li role="option" aria-selected=${i === open.chosen} onMouseDown=${(e) => {
            e.preventDefault();
            take(each);
          }}>${each.name}${each.kind && html` <span class="small soft">${each.kind}</span>`}</li>`,
      )}</ul>`
    }</div>
    ${error && html`<p class="wrong" role="alert">${error}</p>`}
    <p class="help numbers" id=${`${id}-count`}>${read ? `${read.count} of ${most * read.chunk_size} tokens${most > 1 ? `, ${most} chunks` : ""}` : " "}</p>
    ${read?.regions?.length > 1 && html`<p class="help">Drawn one by one: ${read.regions.map((r) => r.prompt).join(" · ")}</p>`}
    ${
      read &&
      !plain &&
      html`<div class="tokens" aria-hidden="true">${readings.map(
        (
          r,
        ) => html`${readings.length > 1 && html`<span class="chunk">${r.weight !== 1 ? `weight ${r.weight}, ` : ""}steps ${r.steps.map(([a, b]) => (a === b ? a : `${a} to ${b}`)).join(", ")}</span>`}
      ${r.chunks.map((chunk, i) => html`${r.chunks.length > 1 && html`<span class="chunk">chunk ${i + 1}</span>`}${chunk.map((t) => html`<span class=${t.weight > 1 ? "strong" : t.weight < 1 ? "weak" : ""} title=${`weight ${t.weight}`}>${t.token.replace("</w>", "")}${t.weight !== 1 ? ` ${+t.weight.toFixed(2)}` : ""}</span>`)}`)}`,
      )}</div>`
    }
    ${read?.warnings?.map((w) => html`<p class="note small" key=${w}>${w}</p>`)}</div>`;
}
