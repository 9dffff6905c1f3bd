import { svg } from "../../../html/modules/drawing.js";
import { el } from "../../../html/modules/elements.js";
import { people } from "../../../html/modules/numbers.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 312, 44, 16, 18, 58];

export function show(place, page) {
  page.cards(place, (card, run, i) => {
    const { t, alpha, sigma } = run.sections.schedule;
    const end = Math.max(t[t.length - 1], ...run.steps.map((step) => step.t));
    const high = Math.max(1, ...run.steps.map((step) => step.sigma));
    // The time of the run goes to the right: from noise, large t, to the picture, t = 0.
    const x = (time) => LEFT + (1 - time / end) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / high) * (HEIGHT - TOP - BOTTOM);
    const curve = (values, name) =>
      svg("polyline", {
        class: `curve ${name}`,
        points: t.map((at, k) => `${x(at).toFixed(1)},${y(values[k]).toFixed(1)}`).join(" "),
      });
    const plot = svg("svg", {
      class: "plot schedule",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label":
        "The schedule: how much picture and noise there is at each time, and the steps of the run",
    });
    for (const value of [0, 0.5, 1]) {
      plot.append(
        svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, people(value)),
      );
    }
    for (const share of [1, 0.75, 0.5, 0.25, 0]) {
      plot.append(
        svg(
          "text",
          {
            x: x(share * end),
            y: HEIGHT - BOTTOM + 20,
            "text-anchor": share === 1 ? "start" : share === 0 ? "end" : "middle",
          },
          people(Math.round(share * end)),
        ),
      );
    }
    plot.append(
      svg(
        "text",
        { x: WIDTH / 2, y: HEIGHT - 8, "text-anchor": "middle" },
        "time t of the network: from noise to picture →",
      ),
      curve(alpha, "alpha"),
      curve(sigma, "sigma"),
    );
    const now = svg("line", { class: "now", y1: TOP - 6, y2: HEIGHT - BOTTOM });
    plot.append(now);
    run.steps.forEach((step, k) => {
      for (const name of ["alpha", "sigma"]) {
        const dot = svg("circle", {
          class: `dot ${name}`,
          cx: x(step.t),
          cy: y(step[name]),
          r: 4,
          onclick: () => page.go(k + 1),
        });
        dot.append(svg("title", {}, `step ${step.number}`));
        plot.append(dot);
      }
    });
    const here = ["alpha", "sigma"].map((name) => svg("circle", { class: `here ${name}`, r: 7 }));
    plot.append(...here);
    const words = el("figcaption", { "aria-live": "off" });
    page.follow(() => {
      const step = page.stepOf(run);
      now.setAttribute("x1", x(step.t));
      now.setAttribute("x2", x(step.t));
      ["alpha", "sigma"].forEach((name, k) => {
        here[k].setAttribute("cx", x(step.t));
        here[k].setAttribute("cy", y(step[name]));
      });
      words.textContent = `Step ${step.number} of ${run.count}: t = ${people(step.t)}, α = ${people(step.alpha)}, σ = ${people(step.sigma)}.`;
    });
    const legend = el(
      "ul",
      { class: "legend" },
      el("li", {}, el("i", { class: "key alpha" }), "α, how much picture"),
      el("li", {}, el("i", { class: "key sigma" }), "σ, how much noise"),
      el("li", {}, "dots: the steps; choose one to go there"),
    );
    card.append(el("figure", { class: i ? "b" : "a" }, plot, words), legend);
  });
}
