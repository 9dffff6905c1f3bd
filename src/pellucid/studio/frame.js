/** Outpainting: the frame around a picture is dragged outwards. */
import { html, useRef } from "./vendor/preact-htm.js";
import { Picture } from "./parts.js";

const SIDES = ["left", "top", "right", "bottom"];

/** `extend`: pixels added at the left, top, right and bottom, in steps of `unit`. */
export function Frame({ picture, extend, unit, onChange }) {
  const box = useRef();
  const start = useRef(null);
  const [left, top, right, bottom] = extend,
    width = picture.width + left + right,
    height = picture.height + top + bottom;
  const round = (v) => Math.min(2048, Math.max(0, Math.round(v / unit) * unit));
  const set = (side, value) => onChange(extend.map((v, i) => (i === side ? round(value) : v)));
  const down = (side) => (e) => {
    e.target.setPointerCapture(e.pointerId);
    start.current = {
      side,
      x: e.clientX,
      y: e.clientY,
      value: extend[side],
      scale: width / box.current.getBoundingClientRect().width,
    };
  };
  const move = (e) => {
    const s = start.current;
    if (!s || !(e.buttons & 1)) return;
    const way = [s.x - e.clientX, s.y - e.clientY, e.clientX - s.x, e.clientY - s.y][s.side];
    set(s.side, s.value + way * s.scale);
  };
  const key = (side) => (e) => {
    const out = [
      ["ArrowLeft", "ArrowRight"],
      ["ArrowUp", "ArrowDown"],
      ["ArrowRight", "ArrowLeft"],
      ["ArrowDown", "ArrowUp"],
    ][side].indexOf(e.key);
    if (out >= 0) {
      e.preventDefault();
      set(side, extend[side] + (out ? -unit : unit));
    }
  };
  const handle = [
    "left:0;top:calc(50% - 1.5rem);width:1rem;height:3rem;cursor:ew-resize",
    "top:0;left:calc(50% - 1.5rem);width:3rem;height:1rem;cursor:ns-resize",
    "right:0;top:calc(50% - 1.5rem);width:1rem;height:3rem;cursor:ew-resize",
    "bottom:0;left:calc(50% - 1.5rem);width:3rem;height:1rem;cursor:ns-resize",
  ];
  return html`<div class="stack"><div class="stage" style="padding:1rem"><div ref=${box} style=${`position:relative;width:min(100%, ${(60 * width) / height}vh);aspect-ratio:${width}/${height};border:2px dashed var(--accent);touch-action:none`}>
      <div style=${`position:absolute;left:${(100 * left) / width}%;top:${(100 * top) / height}%;width:${(100 * picture.width) / width}%`}><${Picture} url=${picture.url} width=${picture.width} alt="The picture in its new frame" style="width:100%" /></div>
      ${SIDES.map(
        (name, i) =>
          html`<button type="button" role="slider" aria-label=${`Extend at the ${name}`} aria-valuemin="0" aria-valuemax="2048" aria-valuenow=${extend[i]} aria-valuetext=${`${extend[i]} pixels`} style=${`position:absolute;padding:0;background:var(--accent);${handle[i]}`} onPointerDown=${down(i)} onPointerMove=${move} onPointerUp=${() => {
            start.current = null;
          }} onKeyDown=${key(i)} />`,
      )}</div></div>
    <div class="fields">${SIDES.map((name, i) => html`<div><label for=${`extend-${name}`}>${name[0].toUpperCase() + name.slice(1)}</label><input id=${`extend-${name}`} type="number" min="0" max="2048" step=${unit} value=${extend[i]} onChange=${(e) => set(i, +e.target.value)} /></div>`)}</div>
    <p class="small soft numbers">The new picture has ${width}×${height} pixels.</p></div>`;
}
