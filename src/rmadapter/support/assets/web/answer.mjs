// An exported model in a web page: image files in, labels and probabilities out. Nothing leaves the page.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { checked as checkedFamiliarity } from "./familiar.mjs";
import { checked as checkedCalibration } from "./sets.mjs";
import { checked as checkedTaxonomy } from "./taxonomy.mjs";
import { halve, LARGEST, LONGEST, PHOTO, tensor } from "./pixels.mjs";

const ROUNDING = 1e-3; // by which a probability may lie outside 0 to 1
const here = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

// A file, blob or video frame as RGB bytes, upright and on white. What Python refuses, or reduces first, so does this.
export async function decode(source) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(source, options).catch(() => {
    throw Error("is not an image that this browser can read");
  });
  const { width, height } = bitmap;
  if (width * height > LARGEST) throw Error(`has ${width} x ${height} pixels, which is too many: make it smaller`);
  if (Math.max(width, height) > LONGEST * Math.min(width, height))
    throw Error(`has ${width} x ${height} pixels: more than ${LONGEST} times as long as wide`);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8Array(width * height * 3);
  for (let i = 0, at = 0; i < rgba.length; i++) if (i % 4 !== 3) data[at++] = rgba[i];
  const image = { width, height, data };
  return width * height > PHOTO ? halve(image) : image;
}

async function bytes(name) {
  const found = await fetch(here(name)).catch(() => ({ status: "no answer from the server" }));
  if (!found.ok) throw Error(`${name} is missing (${found.status}): copy the whole folder to the server.`);
  return found.arrayBuffer();
}

// A file that is the one that was exported. Browsers compute sums for https and localhost alone.
async function checked(name, sums) {
  const found = await bytes(name), digest = await crypto.subtle?.digest("SHA-256", found);
  const sum = digest && [...new Uint8Array(digest)].map((each) => each.toString(16).padStart(2, "0")).join("");
  if (sum && !sums.includes(sum)) throw Error(`${name} is damaged: copy the folder again, or export it again.`);
  return found;
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// Raises an Error whose message says what to do. ask gives the classes of an image, the most probable first; look also its
// distance from the nearest class mean. calibration, familiarity, tree: null if the model has none.
export async function load() {
  const text = (found) => new TextDecoder().decode(found), sums = text(await bytes("SHA256SUMS"));
  const [labels, transform, model] = await Promise.all(
    ["labels.json", "preprocess.json", "model.onnx"].map((name) => checked(name, sums)));
  const steps = JSON.parse(text(transform)), { size } = steps, names = JSON.parse(text(labels)).map(String);
  const read = async (name, check, classes) =>
    (sums.includes(name) ? check(json(text(await checked(name, sums))), classes) : null);
  const calibration = await read("calibration.json", checkedCalibration, names.length);
  const familiarity = await read("familiarity.json", checkedFamiliarity, names.length);
  const tree = await read("taxonomy.json", checkedTaxonomy, names);
  ort.env.wasm.wasmBinary = await bytes("ort-wasm-simd-threaded.wasm"); // whatever type the server says it has
  const session = await ort.InferenceSession.create(model).catch((error) => {
    throw Error(`The model cannot be started (${error.message}): use a newer browser, or copy the folder again.`);
  });
  if (familiarity && !session.outputNames.includes("distance"))
    throw Error("model.onnx gives no distances of images, as familiarity.json needs: export the run again.");
  const run = (pixels) => session.run({ pixels: new ort.Tensor("float32", pixels, [1, 3, size, size]) });
  await run(new Float32Array(3 * size * size)); // the first run takes longest, so it is not a person's
  const look = async (source) => {
    const { probabilities, distance } = await run(tensor(await decode(source), steps));
    if (!probabilities.data.every((share) => share >= -ROUNDING && share <= 1 + ROUNDING))
      throw Error("model.onnx answers with numbers that are no probabilities: export the run again.");
    const rows = names
      .map((label, place) => ({ label, probability: probabilities.data[place], place }))
      .sort((a, b) => b.probability - a.probability);
    return { rows, distance: distance?.data[0] };
  };
  const ask = async (source) => (await look(source)).rows;
  return { ask, look, labels: names, calibration, familiarity, tree };
}
