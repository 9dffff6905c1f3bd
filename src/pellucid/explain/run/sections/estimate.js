import { el } from "../../../html/modules/elements.js";
import { people, percent } from "../../../html/modules/numbers.js";
import { frame } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const [x, x0] = [frame(run, "", ""), frame(run, "", "")];
    const [xCaption, x0Caption] = [el("span"), el("span")];
    const [bar, clean, noisy] = [el("i"), el("span"), el("span")];
    card.append(
      el(
        "div",
        { class: "frames big" },
        el(
          "figure",
          {},
          x,
          el("figcaption", {}, el("b", {}, "The network’s input, x"), el("br"), xCaption),
        ),
        el(
          "figure",
          {},
          x0,
          el("figcaption", {}, el("b", {}, "Its estimate of the picture, x̂₀"), el("br"), x0Caption),
        ),
      ),
      el("div", { class: "share", "aria-hidden": "true" }, bar),
      el(
        "p",
        { class: "small shares" },
        el("span", {}, el("i", { class: "key clean" }), clean),
        el("span", {}, el("i", { class: "key" }), noisy),
      ),
    );
    page.follow(() => {
      const step = page.stepOf(run);
      x.src = step.x;
      x.alt = `The noisy latents at step ${step.number}`;
      x0.src = step.x0;
      x0.alt = `The estimate at step ${step.number}`;
      xCaption.textContent = `t = ${people(step.t)}: α = ${people(step.alpha)}, σ = ${people(step.sigma)}`;
      x0Caption.textContent =
        `The step ends at α = ${people(step.alphaAfter)}, σ = ${people(step.sigmaAfter)}.` +
        (step.evaluations > 1
          ? ` This sampler evaluated the network ${step.evaluations} times in this step; the last one is shown.`
          : "");
      bar.style.width = `${100 * step.clean}%`;
      clean.textContent = `picture ${percent(step.clean)}`;
      noisy.textContent = `noise ${percent(1 - step.clean)}`;
    });
  });
}
