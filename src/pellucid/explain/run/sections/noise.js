import { caption, el } from "../../../html/modules/elements.js";
import { frame, tiles } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const [count, height, width] = run.start.shape;
    card.append(
      el(
        "div",
        { class: "frames big" },
        el(
          "figure",
          {},
          tiles(page, "The channels of the first noise", () => run.start),
          caption(
            run.imageToImage ? "The picture with the noise of the seed" : "The noise of the seed",
            `${count} channels of ${width}×${height}, a tile for each.`,
          ),
        ),
        el(
          "figure",
          {},
          frame(run, run.startPicture, "The first noise through the decoder"),
          caption(
            "The same through the decoder",
            run.imageToImage ? "" : "Noise in latents does not look like a picture.",
          ),
        ),
      ),
    );
  });
}
