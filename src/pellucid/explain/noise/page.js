// The controls of the page about noise.
import { caption, el, pageData } from "../../html/modules/elements.js";
import { galleryOf } from "../../html/modules/gallery.js";
import { lively } from "../../html/modules/lively.js";
import { people, percent } from "../../html/modules/numbers.js";
import { pair } from "../../html/modules/pair.js";
import { pixelsOf } from "../../html/modules/pixels.js";
import { slider } from "../../html/modules/slider.js";

const data = pageData();
const nearest = (numbers, to) =>
  numbers.reduce(
    (best, one, i) => (Math.abs(one - to) < Math.abs(numbers[best] - to) ? i : best),
    0,
  );
const galleryIn = (place) => galleryOf(place.closest("section").querySelector(".gallery"));
const number = (value) => (value === null ? "-" : people(value));

/** Any t and any schedule: the noisy picture is computed here, x = α x0 + σ ε. */
async function schedule(place) {
  const [x0, noise] = await Promise.all([pixelsOf(data.picture), pixelsOf(data.noise)]);
  const canvas = el("canvas", { width: x0.width, height: x0.height, role: "img" });
  const context = canvas.getContext("2d");
  const image = context.createImageData(x0.width, x0.height);
  const [first, second, third] = [el("figcaption"), el("figcaption"), el("figcaption")];
  const about = el("p", { class: "quiet" });
  let [which, at] = [
    Math.max(
      0,
      data.schedules.findIndex((one) => one.name.includes("(model")),
    ),
    500,
  ];
  const draw = () => {
    const one = data.schedules[which];
    const i = nearest(one.t, at);
    const [alpha, sigma] = [one.alpha[i], one.sigma[i]];
    for (let k = 0; k < image.data.length; k++) {
      const clean = x0.data[k] / 127.5 - 1;
      const eps = (noise.data[k] / 127.5 - 1) * data.noiseRange;
      image.data[k] = k % 4 === 3 ? 255 : (alpha * clean + sigma * eps + 1) * 127.5;
    }
    context.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `The picture at t = ${people(one.t[i])} of ${one.name}`);
    first.replaceChildren(el("b", {}, `${people(alpha)} × picture`));
    second.replaceChildren(el("b", {}, `+ ${people(sigma)} × noise`));
    third.replaceChildren(
      el("b", {}, `= x at t = ${people(one.t[i])}`),
      el("br"),
      one.left[i] === null ? "" : `${percent(one.left[i])} of its variance is picture`,
    );
    about.textContent = one.about;
  };
  const still = (url, alt) => el("img", { src: url, alt });
  place.append(
    el(
      "div",
      { class: "sides three" },
      el("figure", {}, still(data.picture, "the picture"), first),
      el("figure", {}, still(data.noise, "the noise"), second),
      el("figure", {}, canvas, third),
    ),
    slider({
      name: "t",
      max: 1000,
      step: 10,
      value: at,
      words: (t) => `t = ${t}`,
      change: (t) => ((at = t), draw()),
      marks: ["picture", "noise"],
    }).box,
    slider({
      name: "Schedule",
      max: data.schedules.length - 1,
      value: which,
      words: (i) => data.schedules[i].name,
      change: (i) => ((which = i), draw()),
    }).box,
    about,
  );
  for (const input of place.querySelectorAll("input")) input.dispatchEvent(new Event("input"));
}

/** The same t by small steps and by one jump. */
function steps(place) {
  const { rows } = galleryIn(place);
  const [small, jump] = [
    el("img", { alt: "after small steps" }),
    el("img", { alt: "after one jump" }),
  ];
  const [first, second] = [el("figcaption"), el("figcaption")];
  const show = (i) => {
    const m = data.moments[i];
    small.src = rows[0].urls[i];
    jump.src = rows[1].urls[i];
    const said = (name) =>
      `mean ${people(m[`${name}_mean`])}, variance ${people(m[`${name}_variance`])}`;
    first.replaceChildren(el("b", {}, `After ${m.t + 1} small steps`), el("br"), said("steps"));
    second.replaceChildren(
      el("b", {}, `After one jump to t = ${m.t}`),
      el("br"),
      `${said("jump")}; by the equation ${people(m.mean)} and ${people(m.variance)}`,
    );
  };
  const last = data.moments.length - 1;
  const through = slider({
    name: "t",
    max: last,
    value: Math.floor(last / 2),
    words: (i) => `t = ${data.moments[i].t}`,
    change: show,
    marks: ["picture", "noise"],
  });
  place.append(
    el(
      "div",
      { class: "sides two" },
      el("figure", {}, small, first),
      el("figure", {}, jump, second),
    ),
    through.box,
  );
  through.show();
}

/** One type of noise at a time, with its spectrum. */
function types(place) {
  const { rows } = galleryIn(place);
  const [noise, plane] = [el("img", { alt: "the noise" }), el("img", { alt: "its spectrum" })];
  const words = el("p", { class: "quiet" });
  const show = (i) => {
    const kind = data.types[i];
    noise.src = rows[0].urls[i];
    plane.src = rows[1].urls[i];
    const facts = Object.entries(kind.facts).map(([name, value]) => `${name} ${number(value)}`);
    words.textContent = `${kind.about} ${facts.join(", ")}.`;
  };
  const through = slider({
    name: "Type",
    max: data.types.length - 1,
    words: (i) => data.types[i].name,
    change: show,
  });
  place.append(
    el(
      "div",
      { class: "sides two" },
      el("figure", {}, noise, caption("The noise")),
      el("figure", {}, plane, caption("Its spectrum")),
    ),
    through.box,
    words,
  );
  through.show();
}

/** What the network gets and what it makes of it, under one slider. */
function estimates(place) {
  const { rows } = galleryIn(place);
  const last = data.estimates.length - 1;
  const pictures = [
    { name: "noisy input", url: rows[0].urls[last] },
    { name: "estimate", url: rows[1].urls[last] },
    { name: "the picture, encoded and decoded", url: data.decoded },
  ];
  const shown = pair(pictures, { width: 380 });
  const words = el("p", { class: "quiet" });
  const show = (i) => {
    const one = data.estimates[i];
    pictures[0].url = rows[0].urls[i];
    pictures[1].url = rows[1].urls[i];
    shown.show();
    words.textContent = `The estimate is off by ${percent(one.error)} of the latents, PSNR ${number(one.psnr)} dB.`;
  };
  const through = slider({
    name: "t",
    max: last,
    value: Math.floor(last / 2),
    words: (i) => `t = ${people(data.estimates[i].t)}`,
    change: show,
    marks: ["picture", "noise"],
  });
  place.append(shown.box, through.box, words);
  through.show();
}

lively({ schedule, steps, types, estimates });
