// A slider with a name and words for its value. Arrow keys, Home and End move it.
import { el } from "./elements.js";

let count = 0;

/** words(value): the value in words. change(value): called at once, and whenever it moves. */
export function slider({ name, min = 0, max, step = 1, value = min, words, change, marks = [] }) {
  const id = `slider-${count++}`;
  const output = el("output", { for: id, "aria-live": "off" });
  const input = el("input", { id, type: "range", min, max, step, value });
  const show = () => {
    const said = words(Number(input.value));
    output.textContent = said;
    input.setAttribute("aria-valuetext", said);
    change(Number(input.value));
  };
  input.addEventListener("input", show);
  const box = el("div", { class: "slider" }, el("label", { for: id }, name), input, output);
  if (marks.length > 1)
    box.append(
      el(
        "span",
        { class: "marks", "aria-hidden": "true" },
        ...marks.map((mark) => el("i", {}, mark)),
      ),
    );
  return {
    box,
    show,
    set(to) {
      input.value = to;
      show();
    },
  };
}

/** A menu. options: their texts; change(index): called whenever another is chosen. */
export function menu({ name, options, value = 0, change }) {
  const select = el("select", { onchange: () => change(select.selectedIndex) });
  options.forEach((text, i) => select.append(el("option", { value: i }, text)));
  select.selectedIndex = value;
  return el("label", { class: "menu" }, name, " ", select);
}
