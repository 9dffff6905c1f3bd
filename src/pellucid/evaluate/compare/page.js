// The controls of the page of a comparison: the samples of two methods under a slider.
import { figuresOf } from "../../html/modules/gallery.js";
import { lively } from "../../html/modules/lively.js";
import { pair } from "../../html/modules/pair.js";

function samples(place) {
  const pictures = figuresOf(place.closest("section").querySelector(".samples"));
  if (pictures.length > 1) place.append(pair(pictures, { width: 640 }).box);
  else place.remove();
}

lively({ samples });
