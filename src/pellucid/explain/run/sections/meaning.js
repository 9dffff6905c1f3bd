import { caption, el } from "../../../html/modules/elements.js";
import { menu } from "../../../html/modules/slider.js";
import { tiles } from "../parts.js";

const SAME = 0.999; // the word itself

export function show(place, page) {
  page.cards(place, (card, run) => {
    const { near, space } = run.sections.meaning;
    if (near.length) {
      const bars = el("div", { class: "bars" });
      const title = el("h3");
      const choose = (i) => {
        title.textContent = `The nearest words to “${near[i].word}”, with their cosines`;
        bars.replaceChildren(...near[i].others.flatMap((pair) => bar(pair, space)));
      };
      choose(0);
      if (near.length > 1)
        card.append(menu({ name: "Word", options: near.map((one) => one.word), change: choose }));
      card.append(title, bars);
      if (space)
        card.append(
          el("p", { class: "small" }, "The mark in each bar is the median of all pairs of words."),
        );
    }
    const [rows, width] = run.vectors.shape;
    const strip = { shape: [1, rows, width], largest: run.vectors.largest, data: run.vectors.data };
    const of = width < run.width ? `the first ${width} of ${run.width}` : `${width}`;
    card.append(
      el(
        "figure",
        { class: "below" },
        tiles(
          page,
          `The vectors of the prompt, ${rows} rows of ${width} numbers`,
          () => strip,
          () => 3,
        ),
        caption(
          "The network’s text input",
          `A row for each token of the prompt (start, words, end, padding), ${of} numbers in each. Red is above zero, blue below.`,
        ),
      ),
    );
  });
}

function bar([word, cosine], space) {
  const own = cosine >= SAME;
  const track = el(
    "span",
    { class: own ? "track own" : "track" },
    el("i", { style: `width:${Math.max(0, 100 * cosine)}%` }),
  );
  if (space) track.append(el("u", { style: `left:${Math.max(0, 100 * space[1])}%` }));
  return [
    el("span", {}, word),
    track,
    el("data", { value: cosine }, own ? "1: the word itself" : cosine.toFixed(2)),
  ];
}
