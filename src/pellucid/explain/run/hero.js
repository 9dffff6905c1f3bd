// The top of the page: the picture, its settings, and a strip of the run.
import { el } from "../../html/modules/elements.js";
import { frame } from "./parts.js";

export function hero(card, run, page) {
  const facts = el("dl", { class: "facts" });
  for (const [name, value] of run.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
  for (const warning of run.warnings) card.append(el("p", { class: "note" }, warning));
  const strip = el("div", {
    class: "strip",
    role: "group",
    "aria-label": "Estimates at some of the steps",
  });
  const count = Math.min(run.steps.length, page.runs.length > 1 ? 6 : 10);
  for (let k = 0; k < count; k++) {
    const i = count === 1 ? 0 : Math.round((k * (run.steps.length - 1)) / (count - 1));
    const step = run.steps[i];
    const button = el(
      "button",
      { type: "button", onclick: () => page.go(i + 1), "aria-label": `Go to step ${step.number}` },
      frame(run, step.x, ""),
      frame(run, step.x0, ""),
      `${step.number}`,
    );
    page.follow(() =>
      page.stepOf(run) === step
        ? button.setAttribute("aria-current", "step")
        : button.removeAttribute("aria-current"),
    );
    strip.append(button);
  }
  card.append(
    el(
      "div",
      { class: "hero" },
      frame(run, run.picture, `The finished picture: ${run.prompt}`),
      el("div", {}, facts),
    ),
    strip,
    el(
      "p",
      { class: "small" },
      "Above: the noisy latents at some of the steps. Below: the network’s estimate of the picture.",
    ),
  );
  if (run.rough) {
    card.append(
      el(
        "p",
        { class: "note" },
        "The pictures of the steps are quick approximations; only the finished one comes from the decoder.",
      ),
    );
  }
}
