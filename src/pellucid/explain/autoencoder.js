// The controls of the page about the autoencoder.
import { el, pageData } from "../html/modules/elements.js";
import { figuresOf } from "../html/modules/gallery.js";
import { pointAt } from "../html/modules/hover.js";
import { lively } from "../html/modules/lively.js";
import { people } from "../html/modules/numbers.js";
import { pair } from "../html/modules/pair.js";
import { pixelsOf } from "../html/modules/pixels.js";

const data = pageData();
const NAMES = ["the picture", "encoded and decoded", "the difference"];

function compare(place) {
  const pictures = figuresOf(place.closest("section").querySelector(".row")).map((one, i) => ({
    name: NAMES[i],
    url: one.url,
  }));
  place.append(pair(pictures, { width: 560 }).box);
}

/** Point at a place of the picture: the numbers of its latents. */
async function values(place) {
  const [row] = [...place.closest("section").querySelectorAll(".channels")];
  const channels = await Promise.all(figuresOf(row).map((one) => pixelsOf(one.url)));
  const [{ width, height }] = channels;
  const decoded = document.querySelectorAll("section .row img")[1].src;
  const pixels = await pixelsOf(decoded);
  const spot = el("i", { class: "spot", hidden: "" });
  const stage = el(
    "div",
    { class: "pointed" },
    el("img", { src: decoded, alt: "", width: 320 }),
    spot,
  );
  const words = el(
    "p",
    { class: "told", role: "status" },
    "Point at the picture, or use the arrow keys: each place of the latents is a square of the picture.",
  );
  const cells = el("div", { class: "cells" });
  const bars = data.channels.map((_, i) => {
    const [bar, value] = [el("i"), el("b")];
    cells.append(
      el("div", {}, el("span", {}, String(i)), el("span", { class: "bar" }, bar), value),
    );
    return { bar, value };
  });
  const show = (x, y) => {
    spot.hidden = false;
    Object.assign(spot.style, {
      left: `${(100 * x) / width}%`,
      top: `${(100 * y) / height}%`,
      width: `${100 / width}%`,
      height: `${100 / height}%`,
    });
    const at =
      4 *
      (Math.floor(((y + 0.5) * pixels.height) / height) * pixels.width +
        Math.floor(((x + 0.5) * pixels.width) / width));
    words.textContent = `Column ${x + 1}, row ${y + 1} of ${width}×${height}: ${channels.length} numbers stand for ${Math.round(pixels.width / width)}×${Math.round(pixels.height / height)} pixels. The pixel in the middle has the colours ${[...pixels.data.slice(at, at + 3)].join(", ")} of 255.`;
    data.channels.forEach(({ mean, deviation }, i) => {
      // A channel's picture: grey is its mean, black and white are three deviations away.
      const share = channels[i].data[4 * (y * width + x)] / 127.5 - 1;
      const value = mean + 3 * deviation * share;
      const end =
        Math.abs(share) < 0.999 ? "" : share < 0 ? "≤ " : "≥ "; /* the picture shows no more */
      bars[i].value.textContent = end + people(Number(value.toPrecision(2)));
      const part = Math.min(1, Math.abs(value) / data.largest) * 50;
      bars[i].bar.className = value < 0 ? "minus" : "";
      Object.assign(bars[i].bar.style, {
        left: value < 0 ? `${50 - part}%` : "50%",
        width: `${part}%`,
      });
    });
  };
  pointAt(stage, {
    columns: width,
    rows: height,
    show,
    leave: () => (spot.hidden = true),
    name: "The decoded picture; arrow keys move to another place of the latents",
  });
  place.append(el("div", { class: "sides" }, el("div", {}, stage), el("div", {}, words, cells)));
  show(Math.floor(width / 2), Math.floor(height / 2));
}

lively({ compare, values });
