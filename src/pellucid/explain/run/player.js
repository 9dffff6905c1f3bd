// The player: the current step, and everything that is drawn for it.

const slider = document.getElementById("step");
const play = document.getElementById("play");
let timer = null;
let moved = false; // until the user moves, Play starts at the first step

function set(change) {
  Object.assign(state, change);
  for (const update of updates) update();
  const step = runs.map(stepOf).reduce((a, b) => (a.number >= b.number ? a : b));
  const count = Math.max(...runs.map((run) => run.count));
  slider.value = state.step;
  const words = `Step ${step.number} of ${count}: ${percent(1 - step.clean)} noise`;
  slider.setAttribute("aria-valuetext", words);
  document.getElementById("where").textContent = words;
}

function go(step) {
  moved = true;
  set({ step: Math.max(1, Math.min(longest, step)) });
}

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
  play.setAttribute("aria-pressed", "false");
}

function toggle() {
  if (timer !== null) {
    stop();
    return;
  }
  if (state.step === longest || !moved) go(1);
  play.textContent = "Pause";
  play.setAttribute("aria-pressed", "true");
  timer = setInterval(() => {
    go(state.step + 1);
    if (state.step === longest) stop();
  }, 350);
}

slider.max = longest;
slider.addEventListener("input", () => {
  stop();
  go(Number(slider.value));
});
play.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => {
  // Where no control has the focus, the arrow keys change the step and the space bar plays.
  if (event.target.closest("input, select, button, summary, pre, a") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " ") toggle();
  else if (event.key === "ArrowRight") (stop(), go(state.step + 1));
  else if (event.key === "ArrowLeft") (stop(), go(state.step - 1));
  else return;
  event.preventDefault();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readPalette();
  set({});
});

readPalette();
document.body.classList.toggle("wide", runs.length > 1);
cards(document.getElementById("hero"), hero);
const parts = { tokens, meaning, noise: beginning, estimate, guidance, attention, decoder, time: cost };
for (const place of document.querySelectorAll("[data-part]")) cards(place, parts[place.dataset.part]);
attentionControls(document.getElementById("attention-controls"));
pathPlot(document.getElementById("path-plot"));
const note = document.getElementById("note");
note.hidden = !record.note;
note.textContent = record.note ? `${record.note[0].toUpperCase()}${record.note.slice(1)}.` : "";
// The page opens early in the run, where the estimates with the prompt and without it differ most visibly.
set({ step: 1 + Math.round((2 * (longest - 1)) / 9) });
