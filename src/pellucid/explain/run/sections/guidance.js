import { caption, el } from "../../../html/modules/elements.js";
import { people } from "../../../html/modules/numbers.js";
import { frame, tiles } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const pictures = [
      ["uncond", "Without the prompt"],
      ["cond", "With the prompt"],
      ["x0", `Guided, s = ${run.guidance}`],
    ].map(([part, title]) => {
      const image = frame(run, "", title);
      page.follow(() => (image.src = page.stepOf(run)[part]));
      return el("figure", {}, image, caption(title));
    });
    const seen = el("p", { class: "small" });
    const differenceCaption = el("figcaption");
    const step = () => page.stepOf(run);
    const same = () => step().difference.largest < 1e-6;
    const factor = () => step().eps.largest / step().difference.largest;
    card.append(
      el("div", { class: "frames" }, ...pictures),
      seen,
      el(
        "div",
        { class: "frames below" },
        el(
          "figure",
          {},
          tiles(page, "The predicted noise without the prompt", () => step().epsUncond),
          caption("Noise, without the prompt"),
        ),
        el(
          "figure",
          {},
          tiles(page, "The predicted noise with the prompt", () => step().eps),
          caption("Noise, with the prompt"),
        ),
        el(
          "figure",
          {},
          tiles(
            page,
            "The difference of the two, amplified",
            () => step().difference,
            () => (same() ? 0 : 1.7),
          ),
          differenceCaption,
        ),
      ),
    );
    const most = run.steps.reduce((best, one) => (one.seen > best.seen ? one : best));
    page.follow(() => {
      let description = `with − without, amplified ${people(factor())} times`;
      if (same()) {
        description =
          step().alpha === 0
            ? "None yet: x is pure noise and independent of the picture."
            : "None: there was no guidance at this step.";
      }
      differenceCaption.replaceChildren(el("b", {}, "Their difference"), el("br"), description);
      seen.textContent =
        most.seen === 0
          ? "With the prompt and without it the estimates are the same at every step: there was no guidance."
          : `With the prompt and without it the pixels differ by ${people(step().seen)} of 255 on average at this step; most at step ${most.number}, by ${people(most.seen)}.`;
    });
  });
}
