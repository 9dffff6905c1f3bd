// The controls of the page about CLIP: choose two in the table, and see their angle.
import { el, pageData } from "../html/modules/elements.js";
import { lively } from "../html/modules/lively.js";
import { slider } from "../html/modules/slider.js";

const data = pageData();

function angle(place) {
  const table = place.closest("section").querySelector(".matrix");
  const cells = [...table.rows].slice(1).map((row) => [...row.cells].slice(1));
  const heads = [...table.rows].slice(1).map((row) => row.cells[0]);
  const said = el("p", { class: "told", role: "status" });
  const pictures = el("div", { class: "chosen-two" });
  const clock = document.getElementById("angle");
  const hand = clock.querySelector(".second");
  let chosen = null;
  const choose = (i, j) => {
    chosen?.classList.remove("chosen");
    chosen = cells[i][j];
    chosen.classList.add("chosen");
    const cosine = data.cosines[i][j];
    const degrees = (Math.acos(Math.max(-1, Math.min(1, cosine))) * 180) / Math.PI;
    const turn = (degrees * Math.PI) / 180;
    hand.setAttribute("x2", 50 + 44 * Math.cos(turn));
    hand.setAttribute("y2", 50 - 44 * Math.sin(turn));
    const face = (k) => heads[k].querySelector("img")?.cloneNode() ?? "";
    pictures.replaceChildren(clock, ...[face(i), face(j)].filter(Boolean));
    said.textContent = `“${data.names[i]}” and “${data.names[j]}”: cosine ${cosine.toFixed(2)}, an angle of ${degrees.toFixed(0)}°.`;
  };
  cells.forEach((row, i) =>
    row.forEach((cell, j) => {
      cell.setAttribute("tabindex", "0");
      cell.setAttribute("aria-label", `${data.names[i]} and ${data.names[j]}: ${cell.textContent}`);
      cell.addEventListener("click", () => choose(i, j));
      cell.addEventListener("pointerenter", () => choose(i, j));
      cell.addEventListener("focus", () => choose(i, j));
      cell.addEventListener("keydown", (event) => {
        const [down, right] = {
          ArrowDown: [1, 0],
          ArrowUp: [-1, 0],
          ArrowRight: [0, 1],
          ArrowLeft: [0, -1],
        }[event.key] ?? [0, 0];
        const next = cells[i + down]?.[j + right];
        if (!next || (!down && !right)) return;
        event.preventDefault();
        next.focus();
      });
    }),
  );
  clock.removeAttribute("hidden");
  place.append(pictures, said);
  choose(0, Math.min(data.pictures, data.names.length - 1));
}

/** Which cosines stand out: those below the slider are faint. */
function above(place) {
  const table = place.closest("section").querySelector(".matrix");
  const cells = [...table.querySelectorAll("td")];
  const values = data.cosines.flat();
  const through = slider({
    name: "Show from",
    min: -1,
    max: 1,
    step: 0.05,
    value: -1,
    words: (low) =>
      `cosine ${low.toFixed(2)}: ${values.filter((value) => value >= low).length} of ${values.length}`,
    change: (low) => cells.forEach((cell, i) => (cell.style.opacity = values[i] >= low ? 1 : 0.15)),
  });
  place.append(through.box);
  through.show();
}

lively({ angle, above });
