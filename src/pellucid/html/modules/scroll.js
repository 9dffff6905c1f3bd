// What is wider than the window scrolls in itself, and shows that it does.
import { el } from "./elements.js";

/** Every `.scroll` of the page that has more to the side gets an edge, a hint and the focus. */
export function showScrolling(place = document) {
  for (const box of place.querySelectorAll(".scroll")) watch(box);
}

function watch(box) {
  const hint = el("p", { class: "hint", "aria-hidden": "true" });
  box.before(hint);
  const look = () => {
    const more = box.scrollWidth - box.clientWidth > 4;
    box.classList.toggle("left", more && box.scrollLeft > 4);
    box.classList.toggle("right", more && box.scrollLeft < box.scrollWidth - box.clientWidth - 4);
    hint.hidden = !more;
    hint.textContent = "← scrolls sideways →";
    if (more) {
      box.setAttribute("tabindex", "0");
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", "A wide table that scrolls sideways");
    } else {
      box.removeAttribute("tabindex");
      box.removeAttribute("role");
      box.removeAttribute("aria-label");
    }
  };
  box.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(box);
  look();
}
