import { caption, el } from "../../../html/modules/elements.js";
import { frame, tiles } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const [count] = run.latent.shape;
    const stage = run.sections.upscaler; // what comes after the decoder, if anything does
    const [w, h] = stage?.size ?? run.size;
    const picture = stage?.small ?? run.picture;
    card.append(
      el(
        "div",
        { class: "frames big" },
        el(
          "figure",
          {},
          tiles(page, "The channels of the finished latents", () => run.latent),
          caption("The finished latents", `${count} channels, a tile for each.`),
        ),
        el(
          "figure",
          {},
          frame(run, picture, `The decoded picture: ${run.prompt}`),
          caption("The picture", `${w}×${h} pixels in three colours.`),
        ),
      ),
    );
  });
}
