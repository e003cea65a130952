// What the page does: images in, a card for each, and one sentence about them all for those who listen.

import { load } from "./answer.mjs";
import { judge, NONE, possible } from "./familiar.mjs";
import { chosen, decide, ERRORS, isKept, limits, rank } from "./sets.mjs";
import { best, common } from "./taxonomy.mjs";

const SHOWN = 5; // answers on a card
const [state, drop, files, camera, shoot, video, answers, known, promise, error, promised, away, share, kept] =
  ["state", "drop", "files", "camera", "shoot", "video", "answers", "known", "promise", "error", "promised", "away", "share",
    "kept"].map((id) => document.getElementById(id));
const cards = []; // each with its rows and distance
let bounds = null; // limits of the classes at the chosen error
let tree = null; // of the labels, if they have parents
let isNone = null; // says whether an image is none of the classes, at the chosen share

function element(name, ...inside) {
  const found = document.createElement(name);
  found.append(...inside);
  return found;
}

// A name in any script, which does not turn the text around it.
const own = (name) => element("bdi", name);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;

function row({ label, probability }) {
  const full = element("i"), bar = element("span", full);
  full.style.width = `${100 * probability}%`;
  bar.className = "bar";
  return element("li", element("span", own(label)), element("span", percent(probability)), bar);
}

// The most probable group of each level of a taxonomy.
const levels = (groups) => element("div", "Levels above: ",
  ...groups.flatMap(({ label, probability }, i) => [i ? ", " : "", own(label), ` ${percent(probability)}`]));

function card(blob, name, { rows, distance }) {
  const image = element("img");
  image.alt = "";
  image.src = URL.createObjectURL(blob);
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  const decision = element("p"), made = element("li", image, element("h2", own(name), ": ", own(rows[0].label)),
    decision, element("ol", ...rows.slice(0, SHOWN).map(row)), ...(tree ? [levels(best(tree, rows))] : []));
  cards.push({ decision, rows, distance });
  decideCard(cards.at(-1));
  return made;
}

// What is decided for an image, "" if nothing is promised, the rows in its set, and the parent that answers for several.
function decided({ rows, distance }) {
  const inside = bounds ? chosen(rows, bounds) : [];
  if (isNone?.(rows, distance)) return { word: NONE, inside };
  const parent = tree && inside.length > 1 ? common(tree, inside) : null;
  return { word: parent !== null ? "answer" : bounds ? decide(inside) : isNone ? "answer" : "", inside, parent };
}

// Shows on a card which classes may be right, or that none is; returns what is decided.
function decideCard(card) {
  const { word, inside, parent } = decided(card), more = inside.length - SHOWN;
  const names = inside.slice(0, SHOWN).flatMap(({ label }, i) => [i ? ", " : "", own(label)]);
  card.decision.hidden = !word;
  card.decision.replaceChildren(element("strong", word), ...(parent ? [": ", element("strong", own(parent))] : []),
    ...(word === "unsure" || parent ? [": it may be ", ...names, more > 0 ? ` and ${more} more` : ""] : []));
  return word;
}

// Decides all cards again, and says so. what: the promise that was chosen, "" for none.
function decideAll(what) {
  const words = cards.map(decideCard), count = (word) => words.filter((each) => each === word).length;
  const none = isNone ? `, ${count(NONE)} ${count(NONE) === 1 ? "is" : "are"} ${NONE}` : "";
  if (what && cards.length) state.textContent = `${what}: answers for ${count("answer")} of ${cards.length} images${none}.`;
}

// Offers shares in a list, which is hidden if there are none.
function offer(list, line, shares, onChange) {
  for (const each of shares) {
    const option = element("option", `${100 * each} %`);
    option.value = each;
    list.append(option);
  }
  line.hidden = !shares.length;
  list.addEventListener("change", () => onChange(Number(list.value)));
}

const named = (images, { source, grouped }) => `images like these ${images} ${grouped ? "groups of " : ""}${source === "held out" ? "images that were not drawn"
  : "training images, each answered by a model that had not seen it"}`;

// Answers of folds are of other models than the one that promises.
const opening = ({ source }, word) => source === "folds" ? `Estimated on the training images, ${word.toLowerCase()}` : word;

// Offers the errors for which the calibration has enough images, and that were kept where it was judged.
function offerErrors(calibration, labels) {
  const images = calibration?.shares.length ?? 0;
  offer(error, promise, ERRORS.filter((each) => rank(images, each) && isKept(calibration, each)), (chosenError) => {
    const more = labels.length - calibration.known;
    bounds = chosenError ? limits(calibration, chosenError, labels.length) : null;
    promised.textContent = chosenError ? `${opening(calibration, "The")} right class is missing on at most ` +
      `${100 * chosenError} % of ${named(images, calibration)}, in nine of ten calibrations like this one.` +
      `${more ? ` More may be missed, as classes were added by name (${more}).` : ""}` : "";
    decideAll(chosenError && `At ${100 * chosenError} %`);
  });
}

// Offers the shares to turn away for which the familiarity has enough images.
function offerShares(familiarity) {
  const shares = familiarity ? ERRORS.filter((each) => possible(familiarity, each)) : [];
  offer(share, away, shares, (chosenShare) => {
    isNone = chosenShare ? judge(familiarity, chosenShare) : null;
    kept.textContent = chosenShare ? `${opening(familiarity, "At")} most ${100 * chosenShare} % of ` +
      `${named(familiarity.sure.length, familiarity)}, are called so, in nine of ten draws like this one.` : "";
    decideAll(chosenShare && `Turning away ${100 * chosenShare} %`);
  });
}

// Adds a card, and returns what is to be said of it.
async function show(look, blob, name) {
  try {
    const found = await look(blob), { word, parent } = decided(found), [first] = found.rows;
    answers.prepend(card(blob, name, found));
    const doubt = ["unsure", NONE].includes(word) ? `, ${word}` : "";
    const wider = parent ? [", answer: ", own(parent)] : [];
    return [own(name), ": ", own(first.label), `, ${percent(first.probability)}${doubt}`, ...wider, ". "];
  } catch (error) {
    answers.prepend(element("li", element("h2", own(name), " ", error.message)));
    return [own(name), ` ${error.message}. `];
  }
}

async function showAll(look, blobs) {
  const told = [];
  for (const [i, blob] of blobs.entries()) {
    const name = blob.name ?? "camera image";
    state.replaceChildren("Looking at ", own(name), blobs.length > 1 ? `, ${i + 1} of ${blobs.length}.` : ".");
    told.push(...(await show(look, blob, name)));
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
  const { look, labels, calibration, familiarity, tree: parents } = await load();
  tree = parents;
  offerErrors(calibration, labels);
  offerShares(familiarity);
  let last = Promise.resolve(); // the model takes one image after the other
  const take = (blobs) => (last = last.then(() => showAll(look, blobs)));

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
