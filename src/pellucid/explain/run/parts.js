// What several sections draw: pictures of the run, and numbers as tiles.
import { el } from "../../html/modules/elements.js";
import { drawTiles } from "../../html/modules/tiles.js";

export function shape(run) {
  return `--shape:${run.size[0]}/${run.size[1]}`;
}

export function frame(run, url, alt) {
  return el("img", { class: "frame", src: url, alt, style: shape(run) });
}

/** A canvas of tiles that is redrawn for every step and colour scheme. */
export function tiles(page, alt, of, scale = () => 1.7) {
  const canvas = el("canvas", { class: "tiles", role: "img", "aria-label": alt });
  page.follow(() => drawTiles(canvas, of(), scale()));
  return canvas;
}
