"use strict";
// The record of one or two runs, from `#record`, and functions that draw its numbers.
// The functions in `updates` draw what depends on the current step.

const record = JSON.parse(document.getElementById("record").textContent);
const runs = record.runs;
const longest = Math.max(...runs.map((run) => run.steps.length));
const state = { step: longest, words: runs.map(firstNoun), layer: -1, head: -1 };
const updates = [];
const names = ["A", "B"];
const REST = "rest";

// ---------------------------------------------------------------- elements

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function caption(title, words = "") {
  return el("figcaption", {}, el("b", {}, title), words ? el("br") : "", words);
}

function frame(run, url, alt) {
  return el("img", { class: "frame", src: url, alt, style: shape(run) });
}

function shape(run) {
  return `--shape:${run.size[0]}/${run.size[1]}`;
}

function percent(share, digits = 0) {
  return `${(100 * share).toFixed(digits)} %`;
}

function time(seconds) {
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

/** Add a card for each run to `place`, filled by `part`. */
function cards(place, part) {
  place.classList.toggle("two", runs.length > 1);
  runs.forEach((run, i) => {
    const card = el("div", { class: `run ${i ? "b" : "a"}` });
    if (runs.length > 1) {
      card.append(el("h3", { class: "tag" }, `${names[i]}: “${run.prompt}”, guidance ${run.guidance}`));
    }
    part(card, run, i);
    place.append(card);
  });
}

/** The current step of a run: its last one if the other run is longer. */
function stepOf(run) {
  return run.steps[Math.min(state.step, run.steps.length) - 1];
}

// ---------------------------------------------------------------- numbers as pictures

const unpacked = new Map();

/** The numbers of {shape, largest, data}: -127 to 127, or 0 to 255 if not signed. */
function values(packed, signed = true) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    unpacked.set(packed, signed ? new Int8Array(bytes.buffer) : bytes);
  }
  return unpacked.get(packed);
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

let palette;
function readPalette() {
  const [zero, plus, minus] = ["--zero", "--plus", "--minus"].map(colour);
  palette = new Uint8ClampedArray(3 * 256);
  for (let v = -128; v < 128; v++) {
    const end = v < 0 ? minus : plus;
    for (let c = 0; c < 3; c++) palette[3 * (v + 128) + c] = zero[c] + (end[c] - zero[c]) * Math.abs(v / 127);
  }
}

/** Latents (C, h, w) as one tile per channel; with `scale` 1 only the largest number has full colour. */
function drawTiles(canvas, packed, scale) {
  const [count, height, width] = packed.shape;
  const columns = count === 1 ? 1 : 2 ** Math.ceil(Math.log2(count) / 2);
  const rows = Math.ceil(count / columns);
  const gap = count > 1 ? Math.max(1, Math.round(width / 16)) : 0;
  canvas.width = columns * (width + gap) - gap;
  canvas.height = rows * (height + gap) - gap;
  const context = canvas.getContext("2d");
  const numbers = values(packed);
  for (let c = 0; c < count; c++) {
    const tile = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const at = 3 * (Math.max(-127, Math.min(127, Math.round(numbers[c * width * height + i] * scale))) + 128);
      tile.data.set([palette[at], palette[at + 1], palette[at + 2], 255], 4 * i);
    }
    context.putImageData(tile, (c % columns) * (width + gap), Math.floor(c / columns) * (height + gap));
  }
}

/** A canvas of tiles that is redrawn for every step and colour scheme. */
function tiles(alt, of, scale = () => 1.7) {
  const canvas = el("canvas", { class: "tiles", role: "img", "aria-label": alt });
  updates.push(() => drawTiles(canvas, of(), scale()));
  return canvas;
}
