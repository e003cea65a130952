// An exported model in a web page: image files in, labels and probabilities out. Nothing leaves the page.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { tensor } from "./pixels.mjs";

const here = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = { wasm: here("ort-wasm-simd-threaded.wasm") };
ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;

// A file, blob or video frame as RGB bytes, upright and on white.
export async function decode(source) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(source, options);
  const { width, height } = bitmap, canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8Array(width * height * 3);
  for (let i = 0, at = 0; i < rgba.length; i++) if (i % 4 !== 3) data[at++] = rgba[i];
  return { width, height, data };
}

export async function load() {
  const json = async (name) => (await fetch(here(name))).json();
  const [labels, transform, session] = await Promise.all([
    json("labels.json"), json("preprocess.json"), ort.InferenceSession.create(here("model.onnx")),
  ]);
  return async (source) => {
    const pixels = tensor(await decode(source), transform), { size } = transform;
    const { probabilities } = await session.run({ pixels: new ort.Tensor("float32", pixels, [1, 3, size, size]) });
    return labels
      .map((label, i) => ({ label: String(label), probability: probabilities.data[i] }))
      .sort((a, b) => b.probability - a.probability);
  };
}
