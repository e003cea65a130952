// From an image's bytes to what the model takes, with the very numbers of Pillow: its resize works on 8 bits in two
// passes, with weights as whole numbers of 2^-22.

const ONE = 2 ** 22;
const FILTERS = {
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0)],
  bilinear: [1, (x) => (x < 1 ? 1 - x : 0)],
};

// For each of `to` places: where its window among `from` begins, and its weights.
function windows(from, to, [support, filter]) {
  const scale = from / to, wide = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const start = Math.max(Math.trunc(centre - support * wide + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support * wide + 0.5), from);
    const weights = [];
    for (let x = start; x < end; x++) weights.push(filter(Math.abs((x - centre + 0.5) * (1 / wide))));
    const sum = weights.reduce((a, b) => a + b, 0);
    return [start, weights.map((w) => (sum ? w / sum : w)).map((w) => Math.trunc(w * ONE + (w < 0 ? -0.5 : 0.5)))];
  });
}

const byte = (sum) => Math.min(Math.max(Math.floor(sum / ONE), 0), 255);

// Pillow reduces what is larger than an ordinary photo before anything else: each 2 x 2 pixels become their mean.
export const PHOTO = 24e6, LARGEST = 89478485, LONGEST = 100;

export function halve({ width, height, data }) {
  const toWidth = Math.ceil(width / 2), toHeight = Math.ceil(height / 2), found = new Uint8Array(toWidth * toHeight * 3);
  for (let y = 0, at = 0; y < toHeight; y++) {
    const rows = [2 * y, Math.min(2 * y + 1, height - 1)].map((row) => row * width);
    for (let x = 0; x < toWidth; x++) {
      const left = 2 * x, right = Math.min(left + 1, width - 1);
      for (let c = 0; c < 3; c++, at++) {
        let sum = 2;
        for (const row of rows) sum += data[(row + left) * 3 + c] + data[(row + right) * 3 + c];
        found[at] = sum >> 2;
      }
    }
  }
  return { width: toWidth, height: toHeight, data: found };
}

function across({ width, height, data }, toWidth, filter) {
  const found = new Uint8Array(toWidth * height * 3), places = windows(width, toWidth, FILTERS[filter]);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < toWidth; x++)
      for (let c = 0, [start, weights] = places[x]; c < 3; c++) {
        let sum = ONE / 2;
        for (let i = 0, at = (y * width + start) * 3 + c; i < weights.length; i++, at += 3) sum += data[at] * weights[i];
        found[(y * toWidth + x) * 3 + c] = byte(sum);
      }
  return { width: toWidth, height, data: found };
}

function down({ width, height, data }, toHeight, filter) {
  const found = new Uint8Array(width * toHeight * 3), row = width * 3;
  windows(height, toHeight, FILTERS[filter]).forEach(([start, weights], y) => {
    for (let x = 0; x < row; x++) {
      let sum = ONE / 2;
      for (let i = 0, at = start * row + x; i < weights.length; i++, at += row) sum += data[at] * weights[i];
      found[y * row + x] = byte(sum);
    }
  });
  return { width, height: toHeight, data: found };
}

// An image is {width, height, data: RGB bytes}. Each pass rounds, so their order counts: since Pillow 13 the height
// comes first where it loses more than twice as many pixels as the width.
export function resize(image, toWidth, toHeight, filter) {
  const { width, height } = image, lost = height - toHeight;
  const passes = [
    (found) => (toWidth === width ? found : across(found, toWidth, filter)),
    (found) => (toHeight === height ? found : down(found, toHeight, filter)),
  ];
  if (lost > 0 && lost > 2 * (width - toWidth)) passes.reverse();
  return passes.reduce((found, pass) => pass(found), image);
}

// Python's round, which takes the even one of two that are equally near.
function round(x) {
  const low = Math.floor(x), rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

// The square that the model sees, cut or filled as preprocess.json says.
export function square(image, { size, resize: how, interpolation, fill }) {
  const { width, height } = image;
  if (how === "squash") return resize(image, size, size, interpolation);
  const ratio = Math.max(width / size, height / size), short = Math.min(width, height);
  const small = how === "longest"
    ? resize(image, round(width / ratio), round(height / ratio), interpolation)
    : resize(image, Math.trunc((size * width) / short), Math.trunc((size * height) / short), interpolation);
  const [left, top] = [small.width, small.height].map((side) =>
    how === "longest" ? -Math.floor((size - side) / 2) : round((side - size) / 2));
  const data = new Uint8Array(size * size * 3).fill(fill);
  for (let y = Math.max(0, -top); y < size && y + top < small.height; y++)
    for (let x = Math.max(0, -left); x < size && x + left < small.width; x++)
      for (let c = 0; c < 3; c++)
        data[(y * size + x) * 3 + c] = small.data[((y + top) * small.width + x + left) * 3 + c];
  return { width: size, height: size, data };
}

// float32 [3, size, size]
export function tensor(image, transform) {
  const { data } = square(image, transform), area = transform.size ** 2, found = new Float32Array(3 * area);
  for (let c = 0; c < 3; c++) {
    const mean = Math.fround(transform.mean[c]), std = Math.fround(transform.std[c]);
    for (let i = 0; i < area; i++)
      found[c * area + i] = Math.fround(Math.fround(Math.fround(data[i * 3 + c] / 255) - mean) / std);
  }
  return found;
}
