// The page of one or two runs: its state, the player, and the sections that follow the step.
import { el } from "../../html/modules/elements.js";
import { percent } from "../../html/modules/numbers.js";
import { showScrolling } from "../../html/modules/scroll.js";
import { readPalette } from "../../html/modules/tiles.js";
import { hero } from "./hero.js";
import { overview } from "./overview.js";

const NAMES = ["A", "B"];

/** Fill the page. record: its data; shows: for each section the function that fills it. */
export function start(record, shows) {
  const runs = record.runs;
  const longest = Math.max(...runs.map((run) => run.steps.length));
  const state = { step: record.opening, words: runs.map(() => 0), layer: -1, head: -1 };
  const updates = [];

  const set = (change) => {
    Object.assign(state, change);
    for (const update of updates) update();
  };
  const page = {
    record,
    runs,
    state,
    longest,
    names: NAMES,
    /** Call a function now and whenever the step, the colours or a choice change. */
    follow: (update) => updates.push(update),
    set,
    go: (step) => set({ step: Math.max(1, Math.min(longest, step)) }),
    /** The current step of a run: its last one if the other run is longer. */
    stepOf: (run) => run.steps[Math.min(state.step, run.steps.length) - 1],
    /** Add a card for each run to `place`, filled by `part`. */
    cards(place, part) {
      place.classList.toggle("two", runs.length > 1);
      runs.forEach((run, i) => {
        const card = el("div", { class: `run ${i ? "b" : "a"}` });
        if (runs.length > 1)
          card.append(
            el("h3", { class: "tag" }, `${NAMES[i]}: “${run.prompt}”, guidance ${run.guidance}`),
          );
        part(card, run, i);
        place.append(card);
      });
    },
  };

  readPalette();
  document.body.classList.toggle("wide", runs.length > 1);
  overview(document.getElementById("overview"), page);
  page.cards(document.getElementById("hero"), (card, run) => hero(card, run, page));
  for (const [name, show] of Object.entries(shows))
    show(document.querySelector(`[data-part="${name}"]`), page);
  const note = document.getElementById("note");
  note.hidden = !record.note;
  note.textContent = record.note ? `${record.note[0].toUpperCase()}${record.note.slice(1)}.` : "";
  player(page);
  set({});
  showScrolling();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readPalette();
    set({});
  });
}

function player(page) {
  const slider = document.getElementById("step");
  const play = document.getElementById("play");
  const where = document.getElementById("where");
  const count = Math.max(...page.runs.map((run) => run.count));
  let timer = null;
  let moved = false; // until the user moves, Play starts at the first step

  const go = (step) => {
    moved = true;
    page.go(step);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  const toggle = () => {
    if (timer !== null) {
      stop();
      return;
    }
    if (page.state.step === page.longest || !moved) go(1);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      go(page.state.step + 1);
      if (page.state.step === page.longest) stop();
    }, 350);
  };
  const opened = page.state.step;
  page.follow(() => {
    if (page.state.step !== opened) moved = true;
    const step = page.runs.map(page.stepOf).reduce((a, b) => (a.number >= b.number ? a : b));
    slider.value = page.state.step;
    const words = `Step ${step.number} of ${count}: ${percent(1 - step.clean)} noise`;
    slider.setAttribute("aria-valuetext", words);
    where.textContent = words;
  });
  slider.max = page.longest;
  slider.addEventListener("input", () => {
    stop();
    go(Number(slider.value));
  });
  play.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    // Where no control has the focus, the arrow keys change the step and the space bar plays.
    if (
      event.target.closest("input, select, button, summary, pre, a, [tabindex]") ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey
    )
      return;
    if (event.key === " ") toggle();
    else if (event.key === "ArrowRight") (stop(), go(page.state.step + 1));
    else if (event.key === "ArrowLeft") (stop(), go(page.state.step - 1));
    else return;
    event.preventDefault();
  });
}
