// Cross-attention: a map for each word that means something, by layer and head.
import { el } from "../../../html/modules/elements.js";
import { people, percent } from "../../../html/modules/numbers.js";
import { menu } from "../../../html/modules/slider.js";
import { values } from "../../../html/modules/tiles.js";
import { shape } from "../parts.js";

/** The words of a text: {text, columns, content}; columns: those of its tokens in the maps. */
export function wordsOf(tokens) {
  const words = [];
  tokens.forEach((token, column) => {
    const last = words[words.length - 1];
    if (last && last.number === token.word) last.columns.push(column);
    else
      words.push({
        number: token.word,
        text: token.whole,
        columns: [column],
        content: token.content,
      });
  });
  return words;
}

/** The shares of some columns at every position, {shape, numbers}: layers and heads are averaged. */
export function shares(maps, columns, head) {
  const [height, width] = maps
    .map((map) => map.shape.slice(1, 3))
    .reduce((a, b) => (a[0] * a[1] >= b[0] * b[1] ? a : b));
  const sum = new Float32Array(height * width);
  for (const map of maps) {
    const [heads, h, w, all] = map.shape;
    const numbers = values(map, false);
    const some = head < 0 || head >= heads ? [...Array(heads).keys()] : [head];
    const part = map.largest / 255 / some.length / maps.length;
    for (const k of some) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const at = (k * h + Math.floor((y * h) / height)) * w + Math.floor((x * w) / width);
          for (const column of columns) sum[y * width + x] += part * numbers[at * all + column];
        }
      }
    }
  }
  return { shape: [height, width], numbers: sum };
}

const mean = (numbers) => numbers.reduce((a, b) => a + b, 0) / numbers.length;

/** Colour of a multiple of the word's average: dark at 0, bright at `top`. */
function heat(share) {
  const h = Math.max(0, Math.min(1, share));
  return [
    Math.min(255, 40 + 430 * h),
    Math.max(0, 380 * h - 140),
    Math.max(0, 90 - 160 * h + Math.max(0, 420 * (h - 0.7))),
  ].map(Math.round);
}

/** Draw a map as squares with lines between them, one for each position. */
function drawMap(canvas, [height, width], multiples, top) {
  const side = Math.max(1, Math.floor(320 / Math.max(height, width)));
  const line = side >= 6 ? 1 : 0;
  canvas.width = width * side;
  canvas.height = height * side;
  const context = canvas.getContext("2d");
  multiples.forEach((multiple, i) => {
    context.fillStyle = `rgba(${heat(multiple / top).join(",")},0.72)`;
    context.fillRect((i % width) * side, Math.floor(i / width) * side, side - line, side - line);
  });
}

export function show(place, page) {
  controls(place, page);
  page.cards(place, (card, run, which) => {
    if (!run.layers.length) {
      card.append(
        el(
          "p",
          { class: "note" },
          `${run.model} has no cross-attention: there are no maps to show.`,
        ),
      );
      return;
    }
    card.append(...attention(run, which, page));
  });
}

function attention(run, which, page) {
  const all = () => wordsOf(run.texts[page.stepOf(run).text]);
  const content = () => all().filter((word) => word.content);
  const chosen = () => Math.min(page.state.words[which], content().length - 1);
  const maps = () => {
    const kept = page.stepOf(run).maps;
    return page.state.layer < 0 ? kept : [kept[Math.min(page.state.layer, kept.length - 1)]];
  };
  const measure = (word) => {
    const map = shares(maps(), word.columns, page.state.head);
    return { ...map, mean: mean(map.numbers) };
  };
  const draw = (canvas, { shape: size, numbers, mean: average }) => {
    const multiples = [...numbers].map((value) => value / Math.max(average, 1e-9));
    drawMap(canvas, size, multiples, Math.max(2, ...multiples));
    return [Math.min(...multiples), Math.max(...multiples)];
  };
  const [large, canvas] = overlay(run, page);
  const words = el("figcaption", { "aria-live": "off" });
  const list = el("div", { class: "words", role: "group", "aria-label": "Words" });
  const buttons = Array.from(
    {
      length: Math.max(
        ...run.texts.map((text) => wordsOf(text).filter((word) => word.content).length),
      ),
    },
    (_, i) => {
      const [small, own] = overlay(run, page);
      const [text, share] = [el("span"), el("small")];
      const button = el(
        "button",
        { type: "button", onclick: () => choose(page, which, i) },
        small,
        text,
        share,
      );
      list.append(button);
      return { button, own, text, share };
    },
  );
  const others = el("p", { class: "small" });
  page.follow(() => {
    const measured = content().map((word) => ({ word, ...measure(word) }));
    const whole = measured.reduce((sum, one) => sum + one.mean, 0);
    buttons.forEach(({ button, own, text, share }, i) => {
      button.hidden = i >= measured.length;
      if (button.hidden) return;
      draw(own, measured[i]);
      text.textContent = measured[i].word.text;
      share.textContent = percent(measured[i].mean / Math.max(whole, 1e-9));
      button.setAttribute("aria-pressed", String(chosen() === i));
    });
    const now = measured[chosen()];
    const [low, high] = draw(canvas, now);
    const [height, width] = now.shape;
    words.replaceChildren(
      el("b", {}, now.word.text),
      ` at step ${page.stepOf(run).number}, ${width}×${height} positions: from ${people(low)}× to ${people(high)}× its average`,
      el(
        "span",
        { class: "scale", "aria-hidden": "true" },
        "0×",
        el("i"),
        `${people(Math.max(2, high))}×`,
      ),
      spread(low, high),
    );
    others.textContent = othersSaid(all(), whole, measure, run.sections.attention.rest);
  });
  return [
    el("div", { class: "attend" }, el("figure", {}, large, words), el("div", {}, list, others)),
  ];
}

/** What a range of multiples says. */
function spread(low, high) {
  if (high < 1.25)
    return "Nearly the same everywhere: at this step the word has no place of its own.";
  return high < 2
    ? "Some places get more of it than others."
    : "It acts in some places far more than in others.";
}

/** The shares of everything that has no map, in words. */
function othersSaid(words, whole, measure, restName) {
  const small = new Map();
  for (const word of words)
    if (!word.content) small.set(word.text, (small.get(word.text) ?? 0) + measure(word).mean);
  const rest = 1 - whole - [...small.values()].reduce((a, b) => a + b, 0);
  const listed = [...small].map(([text, share]) => `“${text}” ${percent(share)}`).join(", ");
  return (
    `On average over the positions, the words with a map get ${percent(whole)} of the attention here` +
    `${listed ? `, ${listed}` : ""}, and ${restName} ${percent(Math.max(0, rest))}. The percentages of the words are parts of their ${percent(whole)}.`
  );
}

/** The estimate in grey with a canvas over it. */
function overlay(run, page) {
  const picture = el("img", { alt: "", src: "" });
  const canvas = el("canvas", { "aria-hidden": "true" });
  page.follow(() => (picture.src = page.stepOf(run).x0));
  return [el("div", { class: "over", style: shape(run) }, picture, canvas), canvas];
}

/** Choose word `i` of run `which`, and the same word of the other run if there is one. */
function choose(page, which, i) {
  const contentOf = (run) =>
    wordsOf(run.texts[page.stepOf(run).text]).filter((word) => word.content);
  const { text } = contentOf(page.runs[which])[i];
  const words = page.runs.map((run, k) => {
    const same = contentOf(run).findIndex((word) => word.text === text);
    return k === which ? i : same < 0 ? page.state.words[k] : same;
  });
  page.set({ words });
}

function controls(place, page) {
  const layers = page.runs[0].layers;
  if (layers.length < 2 && (layers.length === 0 || layers[0].heads < 2)) return;
  const box = el("div", { class: "controls" });
  box.append(
    menu({
      name: "Layer",
      options: ["all, averaged", ...layers.map((one) => one.name)],
      change: (i) => page.set({ layer: i - 1 }),
    }),
  );
  const heads = Math.max(...layers.map((one) => one.heads));
  if (heads > 1) {
    const options = ["all, averaged", ...Array.from({ length: heads }, (_, i) => `head ${i + 1}`)];
    box.append(menu({ name: "Head", options, change: (i) => page.set({ head: i - 1 }) }));
  }
  place.before(box);
}
