import { caption, el } from "../../../html/modules/elements.js";
import { people } from "../../../html/modules/numbers.js";
import { pair } from "../../../html/modules/pair.js";
import { frame } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const stage = run.sections.upscaler;
    if (!stage)
      return card.append(
        el("p", {}, "This run shows the small picture: there was no second stage."),
      );
    const last = stage.steps[stage.steps.length - 1];
    const sharp = stage.sharpen ? " Its finest detail is added once more." : "";
    card.append(
      el(
        "div",
        { class: "frames" },
        el(
          "figure",
          {},
          frame(run, stage.small, "The small picture"),
          caption("The small picture", `${stage.size.join("×")} pixels, from the first stage.`),
        ),
        el(
          "figure",
          {},
          frame(run, stage.bicubic, "The small picture, enlarged without a network"),
          caption("Bicubic, U", "Larger, with nothing new in it."),
        ),
        el(
          "figure",
          {},
          frame(run, last.picture, "The result of the second stage"),
          caption("The second stage", "Crisp edges, fewer stains."),
        ),
      ),
    );
    stage.steps.forEach((step, i) => {
      const of = `step ${i + 1} of the second stage`;
      card.append(
        el(
          "div",
          { class: "frames below" },
          el(
            "figure",
            {},
            frame(run, step.x, `The noisy residual at ${of}`),
            caption(`Step ${i + 1}: the noisy residual, x`, `u = ${people(step.u)}; grey is 0.`),
          ),
          el(
            "figure",
            {},
            frame(run, step.residual, `The estimated residual at ${of}`),
            caption("The estimate, r̂", "What bicubic lacks."),
          ),
          el(
            "figure",
            {},
            frame(run, step.picture, `The picture at ${of}`),
            caption("Bicubic plus r̂", `The picture at this step.${sharp}`),
          ),
        ),
      );
    });
    const compared = [
      { name: "bicubic", url: stage.bicubic },
      { name: "second stage", url: last.picture },
    ];
    card.append(el("div", { class: "below" }, pair(compared, { width: 420 }).box));
  });
}
