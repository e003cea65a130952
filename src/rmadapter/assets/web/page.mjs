// What the page does: images in, a card for each, and one sentence about them all for those who listen.

import { load } from "./answer.mjs";
import { chosen, decide, ERRORS, limits, needed } from "./sets.mjs";

const SHOWN = 5; // answers on a card
const [state, drop, files, camera, shoot, video, answers, known, promise, error, promised] =
  ["state", "drop", "files", "camera", "shoot", "video", "answers", "known", "promise", "error", "promised"].map(
    (id) => document.getElementById(id));
const cards = []; // each with its rows
let bounds = null; // limits of the classes at the chosen error

function element(name, ...inside) {
  const found = document.createElement(name);
  found.append(...inside);
  return found;
}

// A name in any script, which does not turn the text around it.
const own = (name) => element("bdi", name);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function row({ label, probability }) {
  const full = element("i"), bar = element("span", full);
  full.style.width = percent(probability).replace(" ", "");
  bar.className = "bar";
  return element("li", element("span", own(label)), element("span", percent(probability)), bar);
}

function card(blob, name, found) {
  const image = element("img");
  image.alt = "";
  image.src = URL.createObjectURL(blob);
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  const decision = element("p"), made = element("li", image, element("h2", own(name), ": ", own(found[0].label)),
    decision, element("ol", ...found.slice(0, SHOWN).map(row)));
  cards.push({ decision, found });
  decideCard(cards.at(-1));
  return made;
}

// Shows on a card which classes may be right; returns what is decided, "" without a promised error.
function decideCard({ decision, found }) {
  decision.hidden = !bounds;
  if (!bounds) return "";
  const inside = chosen(found, bounds), decided = decide(inside), more = inside.length - SHOWN;
  const names = inside.slice(0, SHOWN).flatMap(({ label }, i) => [i ? ", " : "", own(label)]);
  decision.replaceChildren(element("strong", decided),
    ...(decided === "answer" ? [] : [": it may be ", ...names, more > 0 ? ` or one of ${more} others` : ""]));
  return decided;
}

// Offers the errors for which the calibration has enough images.
function offerErrors(calibration, labels) {
  const images = calibration?.shares.length ?? 0;
  for (const each of ERRORS.filter((each) => images >= needed(each))) {
    const option = element("option", `${100 * each} %`);
    option.value = each;
    error.append(option);
  }
  promise.hidden = error.options.length < 2;
  error.addEventListener("change", () => {
    const share = Number(error.value), more = labels.length - calibration.known;
    bounds = share ? limits(calibration, share, labels.length) : null;
    const decided = cards.map(decideCard), answered = decided.filter((each) => each === "answer").length;
    const source = calibration.source === "held out" ? "images that were not drawn"
      : "training images, each answered by a model that had not seen it";
    promised.textContent = share ? `The right class is missing on at most ${100 * share} % of images like these ${images} ` +
      `${source}.${more ? ` Nothing is promised for images of the ${more} classes that were added by name.` : ""}` : "";
    if (share && cards.length) state.textContent = `At ${100 * share} %: answers for ${answered} of ${cards.length} images.`;
  });
}

// Adds a card, and returns what is to be said of it.
async function show(ask, blob, name) {
  try {
    const found = await ask(blob);
    answers.prepend(card(blob, name, found));
    const doubt = bounds && decide(chosen(found, bounds)) === "unsure" ? ", unsure" : "";
    return [own(name), ": ", own(found[0].label), `, ${percent(found[0].probability)}${doubt}. `];
  } catch (error) {
    answers.prepend(element("li", element("h2", own(name), " ", error.message)));
    return [own(name), ` ${error.message}. `];
  }
}

async function showAll(ask, blobs) {
  const told = [];
  for (const [i, blob] of blobs.entries()) {
    const name = blob.name ?? "camera image";
    state.replaceChildren("Looking at ", own(name), blobs.length > 1 ? `, ${i + 1} of ${blobs.length}.` : ".");
    told.push(...(await show(ask, blob, name)));
  }
  const all = element("span", ...told);
  all.className = blobs.length > 1 ? "heard" : ""; // the cards show it
  if (blobs.length) state.replaceChildren(blobs.length > 1 ? `${blobs.length} images. ` : "", all);
}

function stop() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = shoot.hidden = true;
  camera.textContent = "Use the camera";
}

async function watch() {
  if (video.srcObject) return stop();
  camera.disabled = true; // else a second press would ask for a second camera, which nothing stops
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
    video.hidden = shoot.hidden = false;
    camera.textContent = "Stop the camera";
    state.textContent = "The camera is on.";
  } catch {
    stop();
    state.textContent = "No camera is available to this page.";
  }
  camera.disabled = false;
}

async function frame() {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob();
}

// Raises an Error whose message tells the user what to do.
export async function start() {
  const { ask, labels, calibration } = await load();
  offerErrors(calibration, labels);
  let last = Promise.resolve(); // the model takes one image after the other
  const take = (blobs) => (last = last.then(() => showAll(ask, blobs)));

  files.addEventListener("change", () => {
    take([...files.files]);
    files.value = ""; // so that choosing the same ones again is a change, too
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  camera.addEventListener("click", watch);
  shoot.addEventListener("click", async () => take([await frame()]));

  known.firstChild.textContent = `Classes it knows (${labels.length})`;
  known.lastChild.replaceChildren(...labels.map((label) => element("li", own(label))));
  known.hidden = files.disabled = camera.disabled = false;
  state.textContent = "Ready.";
}
