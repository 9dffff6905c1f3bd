import { el } from "../../../html/modules/elements.js";
import { percent, time } from "../../../html/modules/numbers.js";

const PARTS = {
  text: "Text encoder",
  network: "Network evaluations",
  rest: "Sampler, guidance and recording",
  decoder: "The decoder",
  upscaler: "Super-resolution",
};

export function show(place, page) {
  page.cards(place, (card, run) => {
    const whole = Object.values(run.seconds).reduce((a, b) => a + b, 0);
    const bars = el("div", { class: "bars" });
    for (const [part, name] of Object.entries(PARTS)) {
      const seconds = run.seconds[part];
      if (seconds === undefined) continue;
      bars.append(
        el("span", {}, name),
        el("span", { class: "track" }, el("i", { style: `width:${(100 * seconds) / whole}%` })),
        el("data", { value: seconds }, `${time(seconds)}, ${percent(seconds / whole)}`),
      );
    }
    const now = el("p", {});
    page.follow(() => {
      const step = page.stepOf(run);
      now.textContent = `Step ${step.number} evaluated the network ${step.evaluations === 1 ? "once" : `${step.evaluations} times`}, in ${time(step.seconds)}. The whole run took ${time(whole)}.`;
    });
    card.append(bars, now);
  });
}
