// Cross-attention: a map for each word, by layer and head.

/** The words of the prompt at the current step. */
function wordsOf(run) {
  return run.texts[stepOf(run).text];
}

/** Their texts, followed by the rest of the row. */
function textsOf(run) {
  return [...wordsOf(run).map((word) => word.text), REST];
}

/** The first word that is longer than an article. */
function firstNoun(run) {
  return Math.max(0, run.texts[run.texts.length - 1].findIndex((word) => word.text.length > 2));
}

/** Choose word `i` of run `which`, and the same word of the other run if there is one. */
function choose(which, i) {
  const text = textsOf(runs[which])[i];
  const words = runs.map((run, k) => {
    const same = textsOf(run).indexOf(text);
    return k === which ? i : same < 0 ? state.words[k] : same;
  });
  set({ words });
}

/** The shares of one word at every position, {shape, numbers}, for the chosen layer and head. */
function mapOf(run, word) {
  const maps = stepOf(run).maps;
  const chosen = state.layer < 0 ? maps : [maps[Math.min(state.layer, maps.length - 1)]];
  const [height, width] = chosen.map((map) => map.shape.slice(1, 3)).reduce((a, b) => (a[0] * a[1] >= b[0] * b[1] ? a : b));
  const sum = new Float32Array(height * width);
  for (const map of chosen) {
    const [heads, h, w, words] = map.shape;
    const numbers = values(map, false);
    const some = state.head < 0 || state.head >= heads ? [...Array(heads).keys()] : [state.head];
    const part = map.largest / 255 / some.length / chosen.length;
    for (const head of some) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const at = (head * h + Math.floor((y * h) / height)) * w + Math.floor((x * w) / width);
          sum[y * width + x] += part * numbers[at * words + word];
        }
      }
    }
  }
  return { shape: [height, width], numbers: sum };
}

/** Draw a map over a picture: bright where it is large. Returns its minimum, mean, maximum and shape. */
function drawMap(canvas, map) {
  const [height, width] = map.shape;
  canvas.width = width;
  canvas.height = height;
  const minimum = Math.min(...map.numbers);
  const maximum = Math.max(...map.numbers);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  map.numbers.forEach((value, i) => {
    const heat = maximum > minimum ? (value - minimum) / (maximum - minimum) : 0;
    // From dark blue through red to light yellow.
    const red = Math.min(255, 40 + 430 * heat);
    const green = Math.max(0, 380 * heat - 140);
    const blue = Math.max(0, 90 - 160 * heat + Math.max(0, 420 * (heat - 0.7)));
    image.data.set([red, green, blue, 185], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return { minimum, maximum, mean: map.numbers.reduce((a, b) => a + b, 0) / map.numbers.length, shape: map.shape };
}

function overlay(run) {
  const picture = el("img", { alt: "", src: "" });
  const canvas = el("canvas", { "aria-hidden": "true" });
  const box = el("div", { class: "over", style: shape(run) }, picture, canvas);
  const draw = (word) => {
    picture.src = stepOf(run).x0;
    return drawMap(canvas, mapOf(run, word));
  };
  return [box, draw];
}

function attention(card, run, which) {
  if (!run.layers.length) {
    card.append(el("p", { class: "note" }, `${run.model} has no cross-attention: there are no maps to show.`));
    return;
  }
  const [large, drawLarge] = overlay(run);
  const words = el("figcaption", { "aria-live": "off" });
  const list = el("div", { class: "words", role: "group", "aria-label": "Words" });
  const chosen = () => Math.min(state.words[which], wordsOf(run).length);
  const maximum = Math.max(...run.texts.map((words) => words.length));
  for (let i = 0; i <= maximum; i++) {
    const [small, draw] = overlay(run);
    const [text, share] = [el("span"), el("small")];
    const button = el("button", { type: "button", onclick: () => choose(which, i) }, small, text, share);
    updates.push(() => {
      button.hidden = i > wordsOf(run).length;
      if (button.hidden) return;
      const { mean } = draw(i);
      text.textContent = textsOf(run)[i];
      share.textContent = percent(mean, 1);
      button.setAttribute("aria-pressed", String(chosen() === i));
    });
    list.append(button);
  }
  updates.push(() => {
    const { minimum, maximum, mean, shape: [height, width] } = drawLarge(chosen());
    words.replaceChildren(
      el("b", {}, textsOf(run)[chosen()]),
      ` at step ${stepOf(run).number}, ${width}×${height} positions`,
      el("br"),
      `from ${percent(minimum, 1)} (dark) to ${percent(maximum, 1)} (bright), ${percent(mean, 1)} on average`,
    );
  });
  card.append(el("div", { class: "attend" }, el("figure", {}, large, words), list));
}

function attentionControls(place) {
  const layers = runs[0].layers;
  if (layers.length < 2 && (layers.length === 0 || layers[0].heads < 2)) return;
  const layer = el("select", { onchange: (event) => set({ layer: Number(event.target.value) }) });
  layer.append(el("option", { value: -1 }, "all, averaged"));
  layers.forEach((one, i) => layer.append(el("option", { value: i }, one.name)));
  const heads = Math.max(...layers.map((one) => one.heads));
  place.append(el("label", {}, "Layer ", layer));
  if (heads < 2) return;
  const head = el("select", { onchange: (event) => set({ head: Number(event.target.value) }) });
  head.append(el("option", { value: -1 }, "all, averaged"));
  for (let i = 0; i < heads; i++) head.append(el("option", { value: i }, `head ${i + 1}`));
  place.append(el("label", {}, "Head ", head));
}
