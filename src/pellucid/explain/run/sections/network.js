// The network as a drawing, from its config: shapes, skip connections, where time and text enter.
import { svg } from "../../../html/modules/drawing.js";
import { el } from "../../../html/modules/elements.js";

const WIDTH = 760;

export function show(place, page) {
  page.cards(place, (card, run, i) => {
    const shape = run.sections.network;
    const draw = { unet, mmdit }[shape.kind];
    if (i > 0 && JSON.stringify(shape) === JSON.stringify(page.runs[0].sections.network)) {
      card.append(el("p", {}, "The same network as on the other side."));
      return;
    }
    if (!draw) return;
    const { drawing, said } = draw(shape);
    card.append(el("div", { class: "scroll" }, drawing), el("p", { class: "small" }, said));
  });
}

function canvas(height, label) {
  return svg("svg", {
    class: "network",
    viewBox: `0 0 ${WIDTH} ${height}`,
    role: "img",
    "aria-label": label,
  });
}

/** A box with two lines, and marks for what enters it. */
function block(x, y, width, height, title, words, marks = []) {
  const made = svg(
    "g",
    { class: "block" },
    svg("rect", { x, y, width, height, rx: 7 }),
    svg("text", { class: "title", x: x + 12, y: y + 21 }, title),
    svg("text", { x: x + 12, y: y + 38 }, words),
  );
  marks.forEach((name, i) =>
    made.append(
      svg("circle", { class: `mark ${name}`, cx: x + width - 13 - 16 * i, cy: y + 15, r: 5.5 }),
    ),
  );
  return made;
}

/** A line through points that ends in an arrow head; all its parts are level or upright. */
function arrow(points, name = "") {
  const [[x1, y1], [x2, y2]] = points.slice(-2);
  const [dx, dy] = [Math.sign(x2 - x1), Math.sign(y2 - y1)];
  const head = [
    [x2, y2],
    [x2 - 8 * dx - 4 * dy, y2 - 8 * dy - 4 * dx],
    [x2 - 8 * dx + 4 * dy, y2 - 8 * dy + 4 * dx],
  ];
  const drawn = (corners) => corners.map((corner) => corner.join(",")).join(" ");
  return svg(
    "g",
    { class: `flow ${name}` },
    svg("polyline", { points: drawn(points) }),
    svg("polygon", { points: drawn(head) }),
  );
}

const times = (size) => size.join("×");
const blocks = (count, attention) =>
  `${count} residual${attention ? ` + ${count} attention${attention > 1 ? `, ${attention} deep` : ""}` : count === 1 ? " block" : " blocks"}`;

function unet(shape) {
  const [box, high, step, down, top] = [232, 50, 78, 26, 74];
  const count = shape.levels.length;
  const height = top + step * count + high + 66;
  const drawing = canvas(height, `A U-Net with ${count} levels`);
  const right = WIDTH - box - 4;
  const marks = (attention) => (attention ? ["time", "text"] : ["time"]);
  const extra = shape.map ? ` + ${shape.map} of the text` : "";
  drawing.append(
    svg("text", { class: "end", x: 4, y: 16 }, `in: x, ${times(shape.size)} × ${shape.in}${extra}`),
    svg(
      "text",
      { class: "end", x: WIDTH - 4, y: 16, "text-anchor": "end" },
      `out: the prediction, ${times(shape.size)} × ${shape.out}`,
    ),
    arrow([
      [box / 2, 24],
      [box / 2, top - 14],
    ]),
    arrow([
      [WIDTH - box / 2, top - 14],
      [WIDTH - box / 2, 24],
    ]),
  );
  shape.levels.forEach((level, i) => {
    const [x, y] = [4 + down * i, top + step * i - 12];
    const title = `${times(level.size)} × ${level.channels}`;
    drawing.append(
      arrow(
        [
          [x + box, y + high / 2],
          [right - down * i, y + high / 2],
        ],
        "skip",
      ),
      svg(
        "text",
        { class: "skips", x: WIDTH / 2, y: y + high / 2 - 6, "text-anchor": "middle" },
        `${level.skips} skips`,
      ),
      block(x, y, box, high, title, blocks(level.down, level.attention), marks(level.attention)),
      block(
        right - down * i,
        y,
        box,
        high,
        title,
        blocks(level.up, level.attention),
        marks(level.attention),
      ),
    );
    const next = i + 1 < count;
    if (next) {
      drawing.append(
        arrow([
          [x + box / 2 + down, y + high],
          [x + box / 2 + down, y + step],
        ]),
        arrow([
          [right - down * i + box / 2 - down, y + step],
          [right - down * i + box / 2 - down, y + high],
        ]),
      );
    }
  });
  const last = shape.levels[count - 1];
  const y = top + step * (count - 1) - 12;
  const x = 4 + down * (count - 1);
  const middle = y + step;
  const wide = 268;
  drawing.append(
    block(
      WIDTH / 2 - wide / 2,
      middle,
      wide,
      high,
      `${times(last.size)} × ${last.channels}: the bottom`,
      `2 residual${shape.mid ? ` + 1 attention${shape.mid > 1 ? `, ${shape.mid} deep` : ""}` : " blocks"}`,
      marks(shape.mid),
    ),
    arrow([
      [x + box / 2, y + high],
      [x + box / 2, middle + high / 2],
      [WIDTH / 2 - wide / 2, middle + high / 2],
    ]),
    arrow([
      [WIDTH / 2 + wide / 2, middle + high / 2],
      [WIDTH - x - box / 2, middle + high / 2],
      [WIDTH - x - box / 2, y + high],
    ]),
  );
  const pooled = shape.pooled
    ? ` and the pooled text (${shape.pooled} numbers)${shape.sizes ? ` with ${shape.sizes} sizes` : ""}`
    : "";
  drawing.append(
    svg("circle", { class: "mark time", cx: 10, cy: height - 26, r: 5.5 }),
    svg(
      "text",
      { x: 22, y: height - 22 },
      `time t${pooled} → ${shape.time} numbers, to every residual block`,
    ),
    svg("circle", { class: "mark text", cx: 10, cy: height - 6, r: 5.5 }),
    svg(
      "text",
      { x: 22, y: height - 2 },
      `text: ${shape.tokens} tokens of ${shape.textWidth} numbers, to every attention`,
    ),
  );
  const text = shape.levels.filter((level) => level.attention).map((level) => times(level.size));
  const said = `The text has cross-attention at ${text.length ? text.join(", ") : "no level"}${shape.mid ? ` and at the bottom, ${times(last.size)}` : ""}${shape.map ? `; it also draws ${shape.map} channels of the input` : ""}.`;
  return { drawing, said };
}

function mmdit(shape) {
  const height = 360;
  const drawing = canvas(height, "A transformer with two streams");
  const [left, right, wide] = [20, 400, 300];
  const patches = shape.patches[0] * shape.patches[1];
  drawing.append(
    block(
      left,
      8,
      wide,
      50,
      `x: ${times(shape.size)} × ${shape.in}`,
      `${times(shape.patches)} patches of ${shape.patch}×${shape.patch}`,
    ),
    block(right, 8, wide, 50, `text: ${shape.tokens} tokens`, `of ${shape.textWidth} numbers`, [
      "text",
    ]),
    arrow([
      [left + wide / 2, 58],
      [left + wide / 2, 96],
    ]),
    arrow([
      [right + wide / 2, 58],
      [right + wide / 2, 96],
    ]),
    svg("rect", { class: "stack", x: 4, y: 98, width: 712, height: 168, rx: 10 }),
    svg("text", { class: "title", x: 20, y: 122 }, `${shape.layers} layers, each:`),
    block(left, 134, wide, 50, `${patches} patches × ${shape.width}`, "weights of the picture", [
      "time",
    ]),
    block(right, 134, wide, 50, `${shape.tokens} tokens × ${shape.width}`, "weights of the text", [
      "time",
      "text",
    ]),
    block(
      left,
      202,
      right + wide - left,
      50,
      "joint attention",
      `${shape.heads} heads; patches and tokens attend to all of both${shape.dual ? `; ${shape.dual} layers attend twice` : ""}`,
    ),
    arrow([
      [left + wide / 2, 184],
      [left + wide / 2, 200],
    ]),
    arrow([
      [right + wide / 2, 184],
      [right + wide / 2, 200],
    ]),
    arrow([
      [left + wide / 2, 266],
      [left + wide / 2, 284],
    ]),
    block(
      left,
      286,
      wide,
      50,
      `out: ${times(shape.size)} × ${shape.out}`,
      "patches back to latents",
    ),
    svg("circle", { class: "mark time", cx: right + 6, cy: 306, r: 5.5 }),
    svg("text", { x: right + 18, y: 310 }, "time t and the pooled text"),
    svg("text", { x: right + 18, y: 328 }, `(${shape.pooled} numbers) scale and shift each layer`),
  );
  return {
    drawing,
    said: "There are no levels and no skip connections: every layer has the same shape.",
  };
}
