// Two pictures under one slider: the left part shows the first, the right part the second.
import { el } from "./elements.js";
import { menu, slider } from "./slider.js";

/** pictures: [{name, url}], at least two. With more, menus choose the two. */
export function pair(pictures, { width = 480, first = 0, second = 1, name = "Divide" } = {}) {
  const chosen = [first, second];
  const images = [el("img", { alt: "" }), el("img", { alt: "" })];
  const tags = [el("span", { class: "left" }), el("span", { class: "right" })];
  const stage = el(
    "div",
    { class: "stage" },
    images[1],
    images[0],
    el("i", { class: "divide" }),
    ...tags,
  );
  const show = () => {
    chosen.forEach((which, i) => {
      images[i].src = pictures[which].url;
      images[i].alt = pictures[which].name;
      tags[i].textContent = pictures[which].name;
    });
    divide.show();
  };
  const divide = slider({
    name,
    max: 100,
    value: 50,
    words: (at) => `${at} %`,
    change: (at) => stage.style.setProperty("--at", `${at}%`),
  });
  const follow = (event) => {
    if (event.type === "pointermove" && event.buttons === 0) return;
    const box = stage.getBoundingClientRect();
    divide.set(Math.round((100 * (event.clientX - box.left)) / box.width));
  };
  stage.addEventListener("pointerdown", follow);
  stage.addEventListener("pointermove", follow);
  const made = el("div", { class: "pair", style: `--wide:${width}px` }, stage, divide.box);
  if (pictures.length > 2) {
    const options = pictures.map((one) => one.name);
    const choose = (i) => (which) => {
      chosen[i] = which;
      show();
    };
    made.append(
      el(
        "div",
        { class: "controls" },
        menu({ name: "Left", options, value: first, change: choose(0) }),
        menu({ name: "Right", options, value: second, change: choose(1) }),
      ),
    );
  }
  show();
  return { box: made, stage, pictures, show };
}
