import { caption, el } from "../../../html/modules/elements.js";
import { frame, tiles } from "../parts.js";

export function show(place, page) {
  page.cards(place, (card, run) => {
    const [count] = run.latent.shape;
    const [w, h] = run.size;
    card.append(
      el(
        "div",
        { class: "frames big" },
        el("figure", {}, tiles(page, "The channels of the finished latents", () => run.latent), caption("The finished latents", `${count} channels, a tile for each.`)),
        el("figure", {}, frame(run, run.picture, `The finished picture: ${run.prompt}`), caption("The picture", `${w}×${h} pixels in three colours.`)),
      ),
    );
  });
}
