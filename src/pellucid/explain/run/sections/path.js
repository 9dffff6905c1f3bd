// The path of the latents and of the estimate in a plane.
import { svg } from "../../../html/modules/drawing.js";
import { el } from "../../../html/modules/elements.js";
import { percent } from "../../../html/modules/numbers.js";

export function show(place, page) {
  const { runs, names } = page;
  const [width, height, edge] = [640, 380, 42];
  const points = runs.flatMap((run) => [...run.path.x, ...run.path.x0]);
  const low = [0, 1].map((k) => Math.min(...points.map((p) => p[k])));
  const high = [0, 1].map((k) => Math.max(...points.map((p) => p[k])));
  const at = (p) => {
    const part = [0, 1].map((k) => (p[k] - low[k]) / (high[k] - low[k] || 1));
    return [edge + part[0] * (width - 2 * edge), height - edge - part[1] * (height - 2 * edge)];
  };
  const line = (points) =>
    points
      .map((p) =>
        at(p)
          .map((v) => v.toFixed(1))
          .join(","),
      )
      .join(" ");
  const plot = svg("svg", {
    class: "plot",
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": "The path of the latents and of the estimate in a plane",
  });
  plot.append(
    svg("line", {
      class: "axis",
      x1: edge / 2,
      y1: height - 20,
      x2: width - edge / 2,
      y2: height - 20,
    }),
    svg("line", { class: "axis", x1: 24, y1: edge / 2, x2: 24, y2: height - edge / 2 }),
    svg(
      "text",
      { x: width - edge / 2, y: height - 5, "text-anchor": "end" },
      `first component, ${percent(page.record.shares[0])} of the variance`,
    ),
    svg(
      "text",
      { x: 19, y: edge / 2, "text-anchor": "end", transform: `rotate(-90 19 ${edge / 2})` },
      `second, ${percent(page.record.shares[1])}`,
    ),
  );
  const here = [];
  // Two runs of one seed start at one point, which gets one label.
  const together = runs.every((run) => String(run.path.x[0]) === String(runs[0].path.x[0]));
  runs.forEach((run, i) => {
    const side = i ? "b" : "a";
    plot.append(
      svg("polyline", { class: `trail estimate ${side}`, points: line(run.path.x0) }),
      svg("polyline", { class: `trail ${side}`, points: line(run.path.x) }),
    );
    run.steps.forEach((step, k) => {
      const [cx, cy] = at(run.path.x[step.number]);
      const dot = svg("circle", {
        class: `dot ${side}`,
        cx,
        cy,
        r: 4,
        onclick: () => page.go(k + 1),
      });
      dot.append(svg("title", {}, `after step ${step.number}`));
      plot.append(dot);
    });
    const label = (p, text, down) => {
      const [x, y] = at(p);
      const left = x > width / 2; // the label extends towards the middle, where there is room
      plot.append(
        svg(
          "text",
          { x: left ? x - 8 : x + 8, y: y + down, "text-anchor": left ? "end" : "start" },
          text,
        ),
      );
    };
    const owner = runs.length > 1 ? `${names[i]}: ` : "";
    if (i === 0 || !together)
      label(run.path.x[0], (together ? "" : owner) + (run.imageToImage ? "start" : "noise"), -8);
    label(run.path.x0[0], `${owner}first estimate`, -8);
    label(run.path.x[run.count], `${owner}picture`, 16);
    const [now, estimated] = [
      svg("circle", { class: `here ${side}`, r: 7 }),
      svg("rect", { class: `here ${side}`, width: 11, height: 11 }),
    ];
    here.push(estimated, now);
    page.follow(() => {
      const step = page.stepOf(run);
      const [cx, cy] = at(run.path.x[step.number]);
      now.setAttribute("cx", cx);
      now.setAttribute("cy", cy);
      const [gx, gy] = at(run.path.x0[step.number - 1]);
      estimated.setAttribute("x", gx - 5.5);
      estimated.setAttribute("y", gy - 5.5);
    });
  });
  plot.append(...here);
  const legend = el(
    "ul",
    { class: "legend" },
    el("li", {}, "● x after the current step"),
    el("li", {}, "■ its estimate x̂₀"),
    el("li", {}, "dots: the other steps; choose one to go there"),
  );
  place.append(el("div", { class: "run" }, plot, legend));
}
