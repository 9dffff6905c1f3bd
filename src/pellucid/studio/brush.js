/** A mask painted over a picture: size, softness, erase, undo, invert, zoom; by pointer or by keyboard. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Picture } from "./parts.js";

const PAINT = "0 150 190"; // seen on white and on black; the mask itself is where there is paint
const KEPT = 20; // strokes that can be undone

/** `paper`: a ref that gets { canvas, empty() }. The canvas is painted where the picture is redrawn. */
export function Brush({ picture, paper }) {
  const canvas = useRef();
  const strokes = useRef([]);
  const last = useRef(null);
  const cursor = useRef({ x: picture.width / 2, y: picture.height / 2 });
  const [size, setSize] = useState(Math.max(6, Math.round(picture.width / 6)));
  const [soft, setSoft] = useState(0.3);
  const [erase, setErase] = useState(false);
  const [zoom, setZoom] = useState(1);
  const [undoable, setUndoable] = useState(0);
  const [mark, setMark] = useState(null); // where the keyboard's brush is, while the canvas has the focus

  const context = () => canvas.current.getContext("2d", { willReadFrequently: true });
  useEffect(() => {
    strokes.current = [];
    setUndoable(0);
    context().clearRect(0, 0, picture.width, picture.height);
    paper.current = {
      canvas: canvas.current,
      empty: () =>
        !context()
          .getImageData(0, 0, picture.width, picture.height)
          .data.some((v, i) => i % 4 === 3 && v > 0),
    };
  }, [picture.id]);

  const keep = () => {
    strokes.current = [
      ...strokes.current.slice(1 - KEPT),
      context().getImageData(0, 0, picture.width, picture.height),
    ];
    setUndoable(strokes.current.length);
  };
  const undo = () => {
    const image = strokes.current.pop();
    if (image) context().putImageData(image, 0, 0);
    setUndoable(strokes.current.length);
  };
  const dab = (x, y) => {
    const c = context(),
      r = size / 2,
      inner = r * (1 - soft);
    const shade = c.createRadialGradient(x, y, inner * 0.99, x, y, r);
    shade.addColorStop(0, `rgb(${PAINT} / 1)`);
    shade.addColorStop(1, `rgb(${PAINT} / 0)`);
    c.globalCompositeOperation = erase ? "destination-out" : "source-over";
    c.fillStyle = soft > 0.02 ? shade : `rgb(${PAINT})`;
    c.beginPath();
    c.arc(x, y, r, 0, 7);
    c.fill();
  };
  const line = (to) => {
    const from = last.current ?? to,
      n = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, size / 6)));
    for (let i = 1; i <= n; i++)
      dab(from.x + ((to.x - from.x) * i) / n, from.y + ((to.y - from.y) * i) / n);
    last.current = to;
  };
  const at = (e) => {
    const box = canvas.current.getBoundingClientRect();
    return {
      x: ((e.clientX - box.left) / box.width) * picture.width,
      y: ((e.clientY - box.top) / box.height) * picture.height,
    };
  };
  const down = (e) => {
    if (e.button) return;
    canvas.current.setPointerCapture(e.pointerId);
    keep();
    last.current = null;
    setMark(null);
    line(at(e));
  };
  const move = (e) => {
    if (e.buttons & 1 && last.current) line(at(e));
  };
  const up = () => {
    last.current = null;
  };
  const invert = () => {
    keep();
    const c = context(),
      image = c.getImageData(0, 0, picture.width, picture.height);
    for (let i = 0; i < image.data.length; i += 4) {
      image.data.set(PAINT.split(" ").map(Number), i);
      image.data[i + 3] = 255 - image.data[i + 3];
    }
    c.putImageData(image, 0, 0);
  };
  const clear = () => {
    keep();
    context().clearRect(0, 0, picture.width, picture.height);
  };
  const key = (e) => {
    const stride = Math.max(1, size / 4),
      step = {
        ArrowLeft: [-stride, 0],
        ArrowRight: [stride, 0],
        ArrowUp: [0, -stride],
        ArrowDown: [0, stride],
      }[e.key];
    const c = cursor.current;
    if (step) {
      e.preventDefault();
      const to = {
        x: Math.min(picture.width, Math.max(0, c.x + step[0])),
        y: Math.min(picture.height, Math.max(0, c.y + step[1])),
      };
      if (e.shiftKey) {
        last.current = c;
        line(to);
        last.current = null;
      }
      cursor.current = to;
      setMark(to);
    } else if (e.key === " " || e.key === "Enter") {
      e.preventDefault();
      keep();
      dab(c.x, c.y);
    } else if (e.key === "[") setSize(Math.max(1, size * 0.8));
    else if (e.key === "]") setSize(size * 1.25);
    else if (e.key === "z" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      undo();
    }
  };
  const ratio = picture.width / picture.height;
  const percent = (v, all) => `${(100 * v) / all}%`;
  return html`<div class="stack"><div class="brush stage"><div class="sheet" style=${`width:calc(min(100%, ${60 * ratio}vh) * ${zoom})`}>
      <${Picture} url=${picture.url} width=${picture.width} alt="The picture under the mask" style="width:100%" />
      <canvas ref=${canvas} width=${picture.width} height=${picture.height} tabindex="0" role="application" aria-label="Mask. Arrow keys move the brush, Space paints, Shift with an arrow key paints a line."
        onPointerDown=${down} onPointerMove=${move} onPointerUp=${up} onPointerCancel=${up} onKeyDown=${key} onBlur=${() => setMark(null)} />
      ${mark && html`<span aria-hidden="true" style=${`position:absolute;pointer-events:none;border:2px solid var(--accent);border-radius:50%;width:${percent(size, picture.width)};aspect-ratio:1;left:${percent(mark.x - size / 2, picture.width)};top:${percent(mark.y - size / 2, picture.height)}`} />`}</div></div>
    <div class="fields"><div><label for="size">Brush size</label><input id="size" type="range" min="1" max=${Math.round(picture.width / 2)} value=${size} onInput=${(e) => setSize(+e.target.value)} /></div>
      <div><label for="soft">Softness</label><input id="soft" type="range" min="0" max="1" step="0.05" value=${soft} onInput=${(e) => setSoft(+e.target.value)} /></div>
      <div><label for="zoom">Zoom</label><input id="zoom" type="range" min="1" max="4" step="0.25" value=${zoom} onInput=${(e) => setZoom(+e.target.value)} /></div></div>
    <div class="row"><button type="button" aria-pressed=${erase} onClick=${() => setErase(!erase)}>Erase</button><button type="button" disabled=${!undoable} onClick=${undo}>Undo</button><button type="button" onClick=${invert}>Invert</button><button type="button" onClick=${clear}>Clear</button></div></div>`;
}

/** The painted canvas as a PNG: white is redrawn, black stays. */
export function maskFile(canvas) {
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [canvas.width, canvas.height];
  const c = sheet.getContext("2d");
  c.drawImage(canvas, 0, 0);
  c.globalCompositeOperation = "source-in";
  c.fillStyle = "white";
  c.fillRect(0, 0, sheet.width, sheet.height);
  c.globalCompositeOperation = "destination-over";
  c.fillStyle = "black";
  c.fillRect(0, 0, sheet.width, sheet.height);
  return new Promise((made) => sheet.toBlob(made, "image/png"));
}
