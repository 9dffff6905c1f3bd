/** The noise lab: x = alpha * x0 + sigma * eps, computed here, so that the sliders answer at once. */
import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";

const SIDE = 192;

/** A generator of uniform numbers from a seed (mulberry32): the same seed is the same noise. */
function uniform(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** Gaussian noise of the picture's shape, RGB in turn (Box and Muller 1958). */
function gaussian(seed) {
  const next = uniform(seed),
    noise = new Float32Array(SIDE * SIDE * 3);
  for (let i = 0; i < noise.length; i += 2) {
    const r = Math.sqrt(-2 * Math.log(1 - next())),
      angle = 2 * Math.PI * next();
    noise[i] = r * Math.cos(angle);
    if (i + 1 < noise.length) noise[i + 1] = r * Math.sin(angle);
  }
  return noise;
}

/** The picture at `url` as numbers from -1 to 1. */
async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const sheet = document.createElement("canvas");
  sheet.width = sheet.height = SIDE;
  const c = sheet.getContext("2d", { willReadFrequently: true });
  c.fillStyle = "white";
  c.fillRect(0, 0, SIDE, SIDE);
  const scale = Math.min(SIDE / image.width, SIDE / image.height),
    w = image.width * scale,
    h = image.height * scale;
  c.imageSmoothingEnabled = image.width > 128;
  c.drawImage(image, (SIDE - w) / 2, (SIDE - h) / 2, w, h);
  const data = c.getImageData(0, 0, SIDE, SIDE).data,
    out = new Float32Array(SIDE * SIDE * 3);
  for (let i = 0; i < SIDE * SIDE; i++)
    for (let j = 0; j < 3; j++) out[3 * i + j] = data[4 * i + j] / 127.5 - 1;
  return out;
}

/** The curves of a schedule, with the place of the slider. */
function Curves({ schedule, at }) {
  const n = schedule.alpha.length,
    path = (values) =>
      values.map((v, i) => `${i ? "L" : "M"}${(i / (n - 1)) * 100},${40 - v * 40}`).join("");
  const x = (at / (n - 1)) * 100;
  return html`<svg class="curves" viewBox="-1 -1 102 42" role="img" aria-label="alpha falls and sigma rises with t">
    <path d=${path(schedule.alpha)} class="alpha" /><path d=${path(schedule.sigma)} class="sigma" /><line x1=${x} x2=${x} y1="0" y2="40" class="at" />
    <circle cx=${x} cy=${40 - schedule.alpha[at] * 40} r="1.2" class="alpha" /><circle cx=${x} cy=${40 - schedule.sigma[at] * 40} r="1.2" class="sigma" /></svg>`;
}

/** schedules: { name: { alpha: [...], sigma: [...] } } as the server lists them. */
export function NoiseLab({ schedules, url }) {
  const canvas = useRef();
  const [x0, setX0] = useState(null),
    [seed, setSeed] = useState(0),
    [name, setName] = useState(Object.keys(schedules)[0]),
    [share, setShare] = useState(0.35);
  const [noise, setNoise] = useState(() => gaussian(0));
  useEffect(() => {
    pixels(url).then(setX0, () => setX0(null));
  }, [url]);
  useEffect(() => setNoise(gaussian(seed)), [seed]);
  const schedule = schedules[name],
    at = Math.round(share * (schedule.alpha.length - 1)),
    alpha = schedule.alpha[at],
    sigma = schedule.sigma[at];
  useEffect(() => {
    if (!x0) return;
    const c = canvas.current.getContext("2d"),
      image = c.createImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE * SIDE; i++) {
      for (let j = 0; j < 3; j++)
        image.data[4 * i + j] = (alpha * x0[3 * i + j] + sigma * noise[3 * i + j] + 1) * 127.5;
      image.data[4 * i + 3] = 255;
    }
    c.putImageData(image, 0, 0);
  }, [x0, noise, alpha, sigma]);
  const ratio = (alpha / Math.max(sigma, 1e-6)) ** 2;
  return html`<div class="two lab"><div class="stage"><canvas ref=${canvas} width=${SIDE} height=${SIDE} class="small-pixels" role="img" aria-label=${`The picture with noise: alpha ${alpha.toFixed(2)}, sigma ${sigma.toFixed(2)}`} /></div>
    <div class="stack"><div><label for="time">Time t: ${Math.round(share * 100)} % of the way to noise</label><input id="time" type="range" min="0" max="1" step="0.01" value=${share} onInput=${(e) => setShare(+e.target.value)} /></div>
      <div><label for="schedule">Noise schedule</label><select id="schedule" value=${name} onChange=${(e) => setName(e.target.value)}>${Object.keys(schedules).map((n) => html`<option value=${n}>${n.replaceAll("_", " ")}</option>`)}</select></div>
      <${Curves} schedule=${schedule} at=${at} />
      <p class="equation">x = α · x₀ + σ · ε = <b class="alpha">${alpha.toFixed(2)}</b> · picture + <b class="sigma">${sigma.toFixed(2)}</b> · noise</p>
      <p class="small soft numbers">Signal to noise: ${ratio >= 1000 ? "over 1000" : ratio < 0.001 ? "under 0.001" : +ratio.toPrecision(2)}. Any step is reached in one jump, because a sum of Gaussians is a Gaussian again (Ho et al. 2020, equation 4).</p>
      <button style="justify-self:start" onClick=${() => setSeed(seed + 1)}>Other noise</button></div></div>`;
}
