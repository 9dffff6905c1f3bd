// The sections of the page in order, apart from attention and path; each fills a card for a run.

function hero(card, run) {
  const facts = el("dl", { class: "facts" });
  for (const [name, value] of run.facts) facts.append(el("dt", {}, name), el("dd", {}, value));
  for (const warning of run.warnings) card.append(el("p", { class: "note" }, warning));
  const strip = el("div", { class: "strip", role: "group", "aria-label": "Estimates at some of the steps" });
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
    el("p", {}, "Above: the noisy latents at some of the steps. Below: the network’s estimate of the picture."),
  );
  if (run.rough) {
    card.append(el("p", { class: "note" }, "The pictures of the steps are quick approximations; only the finished one comes from the decoder."));
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
    card.append(el("p", {}, "This prompt combines several; the words here and in section 6 are those of the first."));
  }
  if (run.texts.length > 1) {
    card.append(el("p", {}, "This prompt changes during the run; these are its words at the current step."));
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
    card.append(el("h3", {}, "The nearest of the known words, with their cosines"), bars);
  }
  const [rows, width] = run.vectors.shape;
  const strip = { shape: [1, rows, width], largest: run.vectors.largest, data: run.vectors.data };
  const of = width < run.width ? `the first ${width} of ${run.width}` : `${width}`;
  card.append(
    el(
      "figure",
      { style: "margin-top:1rem" },
      tiles(`The vectors of the prompt, ${rows} rows of ${width} numbers`, () => strip, () => 3),
      caption("The network’s text input", `A row for each token of the prompt (start, words, end, padding), ${of} numbers in each. Red is above zero, blue below.`),
    ),
  );
}

function beginning(card, run) {
  const [count, height, width] = run.start.shape;
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, tiles("The channels of the first noise", () => run.start), caption(run.imageToImage ? "The picture with the noise of the seed" : "The noise of the seed", `${count} channels of ${width}×${height}, a tile for each.`)),
      el("figure", {}, frame(run, run.startPicture, "The first noise through the decoder"), caption("The same through the decoder", run.imageToImage ? "" : "Noise in latents does not look like a picture.")),
    ),
  );
}

function estimate(card, run) {
  const [x, x0] = [frame(run, "", ""), frame(run, "", "")];
  const [xCaption, x0Caption] = [el("span"), el("span")];
  const [clean, noisy] = [el("span", { class: "clean" }), el("span")];
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, x, el("figcaption", {}, el("b", {}, "The network’s input, x"), el("br"), xCaption)),
      el("figure", {}, x0, el("figcaption", {}, el("b", {}, "Its estimate of the picture, x̂₀"), el("br"), x0Caption)),
    ),
    el("div", { class: "share" }, clean, noisy),
  );
  updates.push(() => {
    const step = stepOf(run);
    x.src = step.x;
    x.alt = `The noisy latents at step ${step.number}`;
    x0.src = step.x0;
    x0.alt = `The estimate at step ${step.number}`;
    xCaption.textContent = `t = ${step.t}: α = ${step.alpha.toFixed(3)}, σ = ${step.sigma.toFixed(3)}`;
    x0Caption.textContent =
      `The step ends at α = ${step.alphaAfter.toFixed(3)}, σ = ${step.sigmaAfter.toFixed(3)}.` +
      (step.evaluations > 1 ? ` This sampler evaluated the network ${step.evaluations} times in this step; the last one is shown.` : "");
    clean.style.width = `${100 * step.clean}%`;
    clean.textContent = step.clean > 0.12 ? `picture ${percent(step.clean)}` : "";
    noisy.textContent = step.clean < 0.88 ? `noise ${percent(1 - step.clean)}` : "";
  });
}

function guidance(card, run) {
  const pictures = [
    ["uncond", "Without the prompt"],
    ["cond", "With the prompt"],
    ["x0", `Guided, s = ${run.guidance}`],
  ].map(([part, title]) => {
    const image = frame(run, "", title);
    updates.push(() => (image.src = stepOf(run)[part]));
    return el("figure", {}, image, caption(title));
  });
  const differenceCaption = el("figcaption");
  const same = () => stepOf(run).difference.largest < 1e-6;
  const factor = () => stepOf(run).eps.largest / stepOf(run).difference.largest;
  card.append(
    el("div", { class: "frames" }, ...pictures),
    el(
      "div",
      { class: "frames", style: "margin-top:1rem" },
      el("figure", {}, tiles("The predicted noise without the prompt", () => stepOf(run).epsUncond), caption("Noise, without the prompt")),
      el("figure", {}, tiles("The predicted noise with the prompt", () => stepOf(run).eps), caption("Noise, with the prompt")),
      el("figure", {}, tiles("The difference of the two, amplified", () => stepOf(run).difference, () => (same() ? 0 : 1.7)), differenceCaption),
    ),
  );
  updates.push(() => {
    const step = stepOf(run);
    let description = `with − without, amplified ${factor() < 10 ? factor().toFixed(1) : Math.round(factor())} times`;
    if (same()) {
      description = step.alpha === 0 ? "None yet: x is pure noise and independent of the picture." : "None: there was no guidance at this step.";
    }
    differenceCaption.replaceChildren(el("b", {}, "Their difference"), el("br"), description);
  });
}

function decoder(card, run) {
  const [count, height, width] = run.latent.shape;
  const [w, h] = run.size;
  card.append(
    el(
      "div",
      { class: "frames big" },
      el("figure", {}, tiles("The channels of the finished latents", () => run.latent), caption("The finished latents", `${count} channels, a tile for each.`)),
      el("figure", {}, frame(run, run.picture, `The finished picture: ${run.prompt}`), caption("The picture", `${w}×${h} pixels in three colours.`)),
    ),
  );
}

function cost(card, run) {
  const parts = {
    text: "Text encoder",
    network: "Network evaluations",
    rest: "Sampler, guidance and recording",
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
    now.textContent = `Step ${step.number} evaluated the network ${step.evaluations === 1 ? "once" : `${step.evaluations} times`}, in ${time(step.seconds)}. The whole run took ${time(whole)}.`;
  });
  card.append(bars, now);
}
