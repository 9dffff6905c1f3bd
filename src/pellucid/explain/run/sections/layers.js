import { caption, el } from "../../../html/modules/elements.js";
import { frame } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const stage = run.sections.layers;
    if (!stage?.canvas)
      return card.append(
        el(
          "p",
          {},
          stage
            ? "The canvas is the small picture above."
            : "The picture of this run is its canvas.",
        ),
      );
    card.append(
      el(
        "div",
        { class: "frames" },
        el(
          "figure",
          {},
          frame(run, stage.canvas, "The canvas: the things on white"),
          caption("The canvas", "Each thing in its region."),
        ),
        el(
          "figure",
          {},
          frame(run, stage.cut, "The things, cut out, on grey"),
          caption("Cut out", "Grey is where nothing is."),
        ),
        el(
          "figure",
          {},
          frame(run, run.picture, `The picture: ${run.prompt}`),
          caption("The picture", "The layers on their ground."),
        ),
      ),
    );
  });
}
