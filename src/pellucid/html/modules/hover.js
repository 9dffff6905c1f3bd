// Values under the pointer: of curves, of pictures. Arrow keys move along a curve that has the focus.
import { el } from "./elements.js";
import { people } from "./numbers.js";

/** Every plot of the page shows the values of its curves at the pointer, or at the place of the arrow keys. */
export function hoverPlots(place = document) {
  for (const plot of place.querySelectorAll("svg[data-plot]")) hoverPlot(plot);
}

function hoverPlot(plot) {
  const { x, x_label: label, series } = JSON.parse(plot.dataset.plot);
  const [width, height] = [plot.viewBox.baseVal.width, plot.viewBox.baseVal.height];
  const line = el("i", { class: "cursor", hidden: "" });
  const said = plot.nextElementSibling;
  const keys = [...said.children];
  const numbers = keys.map((key) => key.appendChild(el("b")));
  const place = el(
    "span",
    { class: "place" },
    "Point at the plot, or use the arrow keys, to read its values.",
  );
  said.setAttribute("role", "status");
  said.prepend(place);
  plot.after(line);
  plot.setAttribute("tabindex", "0");
  const grid = [...new Set(series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const scale = x.log ? Math.log : (v) => v;
  const at = (value) =>
    x.start + ((scale(value) - scale(x.low)) / (scale(x.high) - scale(x.low))) * (x.end - x.start);
  let now = -1;
  const show = (i) => {
    now = Math.max(0, Math.min(grid.length - 1, i));
    line.hidden = false;
    line.style.height = `${plot.getBoundingClientRect().height}px`;
    line.style.left = `${(100 * at(grid[now])) / width}%`;
    place.replaceChildren(`${label || "x"} = `, el("b", {}, people(grid[now])));
    series.forEach((one, i) => {
      const k = nearest(one.x, grid[now]);
      keys[i].hidden = false;
      numbers[i].textContent = one.y[k] === null ? " -" : ` ${people(one.y[k])}`;
    });
  };
  const hide = () => (line.hidden = true);
  plot.addEventListener("pointermove", (event) => {
    const seen = plot.getBoundingClientRect();
    const where = ((event.clientX - seen.left) / seen.width) * width;
    show(
      grid.reduce(
        (best, value, i) =>
          Math.abs(at(value) - where) < Math.abs(at(grid[best]) - where) ? i : best,
        0,
      ),
    );
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -grid.length, End: grid.length }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show((now < 0 ? 0 : now) + step);
  });
}

function nearest(numbers, value) {
  return numbers.reduce(
    (best, one, i) => (Math.abs(one - value) < Math.abs(numbers[best] - value) ? i : best),
    0,
  );
}

/** Calls `show(x, y)` with the position under the pointer, 0 to 1, and `leave()` without one.
 * Arrow keys move it by `steps` parts of the picture. */
export function pointAt(element, { columns, rows, show, leave, name }) {
  let place = [Math.floor(columns / 2), Math.floor(rows / 2)];
  const to = (column, row) => {
    place = [Math.max(0, Math.min(columns - 1, column)), Math.max(0, Math.min(rows - 1, row))];
    show(...place);
  };
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "application");
  element.setAttribute("aria-label", name);
  element.addEventListener("pointermove", (event) => {
    const box = element.getBoundingClientRect();
    to(
      Math.floor(((event.clientX - box.left) / box.width) * columns),
      Math.floor(((event.clientY - box.top) / box.height) * rows),
    );
  });
  element.addEventListener("pointerleave", leave);
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[
      event.key
    ];
    if (!step) return;
    event.preventDefault();
    to(place[0] + step[0], place[1] + step[1]);
  });
}
