// The parts of the page, in its order; each fills a card with what it has to say of a run.

function hero(card, run) {
  const facts = el("dl", { class: "facts" });
  for (const [name, value] of run.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
  for (const warning of run.warnings) card.append(el("p", { class: "note" }, warning));
  const strip = el("div", { class: "strip", role: "group", "aria-label": "Guesses at some of the steps" });
  const count = Math.min(run.steps.length, runs.length > 1 ? 6 : 10);
  for (let k = 0; k < count; k++) {
    const i = count === 1 ? 0 : Math.round((k * (run.steps.length - 1)) / (count - 1));
    const step = run.steps[i];
    const button = el(
      "button",
      { type: "button", onclick: () => go(i + 1), "aria-label": `Go to step ${step.number}` },
      frame(run, step.x, ""),
      frame(run, step.x0, ""),
      `${step.number}`,
    );
    updates.push(() => (stepOf(run) === step ? button.setAttribute("aria-current", "step") : button.removeAttribute("aria-current")));
    strip.append(button);
  }
  card.append(
    el("div", { class: "hero" }, frame(run, run.picture, `The finished picture: ${run.prompt}`), el("div", {}, facts)),
    strip,
    el("p", {}, "Above: the noisy latents at some of the steps. Below: what the network took them for."),
  );
  if (run.rough) {
    card.append(el("p", { class: "note" }, "The pictures on the way are a quick view of the latents; only the finished one is the decoder’s own."));
  }
}

function tokens(card, run) {
  const special = (text, note) => el("li", { class: "special" }, el("b", {}, text), el("small", {}, note));
  const list = el("ul", { class: "pieces" });
  updates.push(() =>
    list.replaceChildren(
      special("start", ""),
      ...wordsOf(run).map((word) =>
        el("li", {}, el("b", {}, word.text), el("small", {}, `${word.id}`), el("small", {}, `weight ${word.weight}`)),
      ),
      special("end", "and padding"),
    ),
  );
  card.append(list);
  if (run.several) {
    card.append(el("p", {}, "This prompt is several in one; told are the words of the first, here and in 6."));
  }
  if (run.texts.length > 1) {
    card.append(el("p", {}, "This prompt changes on the way; these are its words at the step that is shown."));
  }
}

function meaning(card, run) {
  if (run.near.length) {
    const bars = el("div", { class: "bars" });
    for (const [word, cosine] of run.near) {
      bars.append(
        el("span", {}, word),
        el("i", { style: `width:${Math.max(0, 100 * cosine)}%` }),
        el("data", { value: cosine }, cosine.toFixed(2)),
      );
    }
    card.append(el("h3", {}, "The nearest of the words that Pellucid knows, and their cosine"), bars);
  }
  const [rows, width] = run.vectors.shape;
  const strip = { shape: [1, rows, width], largest: run.vectors.largest, data: run.vectors.data };
  const of = width < run.width ? `the first ${width} of ${run.width}` : `${width}`;
  card.append(
    el(
      "figure",
      { style: "margin-top:1rem" },
      tiles(`The vectors of the prompt, ${rows} rows of ${width} numbers`, () => strip, () => 3),
      caption("What the network gets to read", `A row for each place of the prompt (start, words, end, padding), ${of} numbers in each. Red is above zero, blue below.`),
    ),
  );
}

function beginning(card, run) {
  const [count, height, width] = run.start.shape;
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, tiles("The channels of the first noise", () => run.start), caption(run.redrawn ? "The picture under the noise of the seed" : "The noise of the seed", `${count} channels of ${width}×${height}, a tile for each.`)),
      el("figure", {}, frame(run, run.startPicture, "The first noise through the decoder"), caption("The same through the decoder", run.redrawn ? "" : "Noise in latents is no picture yet.")),
    ),
  );
}

function look(card, run) {
  const [x, x0] = [frame(run, "", ""), frame(run, "", "")];
  const [xWords, x0Words] = [el("span"), el("span")];
  const [clean, noisy] = [el("span", { class: "clean" }), el("span")];
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, x, el("figcaption", {}, el("b", {}, "What the network sees, x"), el("br"), xWords)),
      el("figure", {}, x0, el("figcaption", {}, el("b", {}, "Its guess at the picture, x̂₀"), el("br"), x0Words)),
    ),
    el("div", { class: "share" }, clean, noisy),
  );
  updates.push(() => {
    const step = stepOf(run);
    x.src = step.x;
    x.alt = `The noisy latents at step ${step.number}`;
    x0.src = step.x0;
    x0.alt = `The guess at step ${step.number}`;
    xWords.textContent = `t = ${step.t}: α = ${step.alpha.toFixed(3)}, σ = ${step.sigma.toFixed(3)}`;
    x0Words.textContent =
      `The step ends at α = ${step.alphaAfter.toFixed(3)}, σ = ${step.sigmaAfter.toFixed(3)}.` +
      (step.looks > 1 ? ` This sampler looked ${step.looks} times in this step; the last look is shown.` : "");
    clean.style.width = `${100 * step.clean}%`;
    clean.textContent = step.clean > 0.12 ? `picture ${percent(step.clean)}` : "";
    noisy.textContent = step.clean < 0.88 ? `noise ${percent(1 - step.clean)}` : "";
  });
}

function guidance(card, run) {
  const pictures = [
    ["uncond", "Without the words"],
    ["cond", "With the words"],
    ["x0", `Guided, s = ${run.guidance}`],
  ].map(([part, title]) => {
    const image = frame(run, "", title);
    updates.push(() => (image.src = stepOf(run)[part]));
    return el("figure", {}, image, caption(title));
  });
  const words = el("figcaption");
  const same = () => stepOf(run).difference.largest < 1e-6;
  const factor = () => stepOf(run).eps.largest / stepOf(run).difference.largest;
  card.append(
    el("div", { class: "frames" }, ...pictures),
    el(
      "div",
      { class: "frames", style: "margin-top:1rem" },
      el("figure", {}, tiles("The noise predicted without the words", () => stepOf(run).epsUncond), caption("Noise, without the words")),
      el("figure", {}, tiles("The noise predicted with the words", () => stepOf(run).eps), caption("Noise, with the words")),
      el("figure", {}, tiles("The difference of the two, amplified", () => stepOf(run).difference, () => (same() ? 0 : 1.7)), words),
    ),
  );
  updates.push(() => {
    const step = stepOf(run);
    let told = `with − without, amplified ${factor() < 10 ? factor().toFixed(1) : Math.round(factor())} times`;
    if (same()) {
      told = step.alpha === 0 ? "None yet: x is all noise, whatever the picture will be." : "None: there was no guidance at this step.";
    }
    words.replaceChildren(el("b", {}, "Their difference"), el("br"), told);
  });
}

// ---------------------------------------------------------------- attention

/** The words of the prompt at the step that is shown. */
function wordsOf(run) {
  return run.texts[stepOf(run).text];
}

/** Their texts, and behind them the rest of the row. */
function textsOf(run) {
  return [...wordsOf(run).map((word) => word.text), REST];
}

/** The first word that is not as short as an article. */
function firstNoun(run) {
  return Math.max(0, run.texts[run.texts.length - 1].findIndex((word) => word.text.length > 2));
}

/** Choose word `i` of run `which`, and in the other run the same word if it has it. */
function choose(which, i) {
  const text = textsOf(runs[which])[i];
  const words = runs.map((run, k) => {
    const same = textsOf(run).indexOf(text);
    return k === which ? i : same < 0 ? state.words[k] : same;
  });
  set({ words });
}

/** The shares of one word at every place, {shape, numbers}, by the chosen layer and head. */
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

/** Draw a map over a picture: clear and warm where it is large. Gives its least, mean and most, and its shape. */
function drawMap(canvas, map) {
  const [height, width] = map.shape;
  canvas.width = width;
  canvas.height = height;
  const least = Math.min(...map.numbers);
  const most = Math.max(...map.numbers);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  map.numbers.forEach((value, i) => {
    const heat = most > least ? (value - least) / (most - least) : 0;
    // From dark blue through red to a light yellow, ever more transparent at neither end.
    const red = Math.min(255, 40 + 430 * heat);
    const green = Math.max(0, 380 * heat - 140);
    const blue = Math.max(0, 90 - 160 * heat + Math.max(0, 420 * (heat - 0.7)));
    image.data.set([red, green, blue, 185], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return { least, most, mean: map.numbers.reduce((a, b) => a + b, 0) / map.numbers.length, shape: map.shape };
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
  const most = Math.max(...run.texts.map((words) => words.length));
  for (let i = 0; i <= most; i++) {
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
    const { least, most, mean, shape: [height, width] } = drawLarge(chosen());
    words.replaceChildren(
      el("b", {}, textsOf(run)[chosen()]),
      ` at step ${stepOf(run).number}, ${width}×${height} places`,
      el("br"),
      `from ${percent(least, 1)} (dark) to ${percent(most, 1)} (bright), ${percent(mean, 1)} on the whole`,
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

// ---------------------------------------------------------------- the way, the end, the cost

function pathPlot(place) {
  const [width, height, edge] = [640, 380, 42];
  const points = runs.flatMap((run) => [...run.path.x, ...run.path.x0]);
  const low = [0, 1].map((k) => Math.min(...points.map((p) => p[k])));
  const high = [0, 1].map((k) => Math.max(...points.map((p) => p[k])));
  const at = (p) => {
    const part = [0, 1].map((k) => (p[k] - low[k]) / (high[k] - low[k] || 1));
    return [edge + part[0] * (width - 2 * edge), height - edge - part[1] * (height - 2 * edge)];
  };
  const line = (ways) => ways.map((p) => at(p).map((v) => v.toFixed(1)).join(",")).join(" ");
  const plot = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "The way of the latents and of the guess in a plane" });
  plot.append(
    svg("line", { class: "axis", x1: edge / 2, y1: height - 20, x2: width - edge / 2, y2: height - 20 }),
    svg("line", { class: "axis", x1: 24, y1: edge / 2, x2: 24, y2: height - edge / 2 }),
    svg("text", { x: width - edge / 2, y: height - 5, "text-anchor": "end" }, `first direction, ${percent(record.shares[0])} of the spread`),
    svg("text", { x: 19, y: edge / 2, "text-anchor": "end", transform: `rotate(-90 19 ${edge / 2})` }, `second, ${percent(record.shares[1])}`),
  );
  const here = [];
  // Two runs of one seed begin at one point, which is told once.
  const together = runs.every((run) => String(run.path.x[0]) === String(runs[0].path.x[0]));
  runs.forEach((run, i) => {
    const side = i ? "b" : "a";
    plot.append(
      svg("polyline", { class: `way guess ${side}`, points: line(run.path.x0) }),
      svg("polyline", { class: `way ${side}`, points: line(run.path.x) }),
    );
    run.steps.forEach((step, k) => {
      const [cx, cy] = at(run.path.x[step.number]);
      const dot = svg("circle", { class: `dot ${side}`, cx, cy, r: 4, onclick: () => go(k + 1) });
      dot.append(svg("title", {}, `after step ${step.number}`));
      plot.append(dot);
    });
    const said = (p, words, down) => {
      const [x, y] = at(p);
      const left = x > width / 2; // the words lie towards the middle, where there is room
      plot.append(svg("text", { x: left ? x - 8 : x + 8, y: y + down, "text-anchor": left ? "end" : "start" }, words));
    };
    const whose = runs.length > 1 ? `${names[i]}: ` : "";
    if (i === 0 || !together) said(run.path.x[0], (together ? "" : whose) + (run.redrawn ? "start" : "noise"), -8);
    said(run.path.x0[0], `${whose}first guess`, -8);
    said(run.path.x[run.count], `${whose}picture`, 16);
    const [now, guess] = [svg("circle", { class: `here ${side}`, r: 7 }), svg("rect", { class: `here ${side}`, width: 11, height: 11 })];
    here.push(guess, now);
    updates.push(() => {
      const step = stepOf(run);
      const [cx, cy] = at(run.path.x[step.number]);
      now.setAttribute("cx", cx);
      now.setAttribute("cy", cy);
      const [gx, gy] = at(run.path.x0[step.number - 1]);
      guess.setAttribute("x", gx - 5.5);
      guess.setAttribute("y", gy - 5.5);
    });
  });
  plot.append(...here);
  const legend = el("ul", { class: "legend" }, el("li", {}, "● x after the step that is shown"), el("li", {}, "■ its guess x̂₀"), el("li", {}, "dots: the other steps"));
  place.append(plot, legend);
}

function decoder(card, run) {
  const [count, height, width] = run.latent.shape;
  const [w, h] = run.size;
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, tiles("The channels of the finished latents", () => run.latent), caption("The finished latents", `${count} channels, a tile for each.`)),
      el("figure", {}, frame(run, run.picture, `The finished picture: ${run.prompt}`), caption("The picture", `${w}×${h} pixels of three colours.`)),
    ),
  );
}

function cost(card, run) {
  const parts = {
    text: "Reading the words",
    network: "The network’s looks",
    rest: "Sampler, guidance and this record",
    decoder: "The decoder",
  };
  const whole = Object.values(run.seconds).reduce((a, b) => a + b, 0);
  const bars = el("div", { class: "bars" });
  for (const [part, name] of Object.entries(parts)) {
    const seconds = run.seconds[part];
    bars.append(
      el("span", {}, name),
      el("i", { style: `width:${(100 * seconds) / whole}%;min-width:2px` }),
      el("data", { value: seconds }, `${time(seconds)}, ${percent(seconds / whole)}`),
    );
  }
  const now = el("p", {});
  updates.push(() => {
    const step = stepOf(run);
    now.textContent = `Step ${step.number} looked ${step.looks === 1 ? "once" : `${step.looks} times`}, in ${time(step.seconds)}. All of it took ${time(whole)}.`;
  });
  card.append(bars, now);
}

