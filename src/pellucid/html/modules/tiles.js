// Numbers as pictures: packed arrays, and channels as tiles of two colours.

const unpacked = new Map();

/** The numbers of {shape, largest, data}: -127 to 127, or 0 to 255 if not signed. */
export function values(packed, signed = true) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    unpacked.set(packed, signed ? new Int8Array(bytes.buffer) : bytes);
  }
  return unpacked.get(packed);
}

function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

const palette = new Uint8ClampedArray(3 * 256);

/** The colours of the page's scheme, light or dark. */
export function readPalette() {
  const [zero, plus, minus] = ["--zero", "--plus", "--minus"].map(colour);
  for (let v = -128; v < 128; v++) {
    const end = v < 0 ? minus : plus;
    for (let c = 0; c < 3; c++)
      palette[3 * (v + 128) + c] = zero[c] + (end[c] - zero[c]) * Math.abs(v / 127);
  }
}

/** Latents (C, h, w) as one tile per channel; with `scale` 1 only the largest number has full colour. */
export function drawTiles(canvas, packed, scale) {
  const [count, height, width] = packed.shape;
  const columns = count === 1 ? 1 : 2 ** Math.ceil(Math.log2(count) / 2);
  const rows = Math.ceil(count / columns);
  const gap = count > 1 ? Math.max(1, Math.round(width / 16)) : 0;
  canvas.width = columns * (width + gap) - gap;
  canvas.height = rows * (height + gap) - gap;
  const context = canvas.getContext("2d");
  const numbers = values(packed);
  for (let c = 0; c < count; c++) {
    const tile = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      const at =
        3 *
        (Math.max(-127, Math.min(127, Math.round(numbers[c * width * height + i] * scale))) + 128);
      tile.data.set([palette[at], palette[at + 1], palette[at + 2], 255], 4 * i);
    }
    context.putImageData(
      tile,
      (c % columns) * (width + gap),
      Math.floor(c / columns) * (height + gap),
    );
  }
}
