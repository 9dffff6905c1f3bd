// What every page with plots, wide tables or controls does.
import { hoverPlots } from "./hover.js";
import { showScrolling } from "./scroll.js";

/** Fill the page's panels, each with the function of its name, and make plots and tables answer. */
export function lively(controls = {}) {
  for (const place of document.querySelectorAll("[data-control]"))
    controls[place.dataset.control](place);
  hoverPlots();
  showScrolling();
}
