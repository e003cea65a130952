// The page: it sends images and wishes to the server, and shows what that says. Nothing is computed here.

import { Camera, bars, element, own, percent, sentence } from "./parts.mjs";

const AGAIN = 500, SPOKEN = 10_000; // milliseconds between two looks at a job, and between two sentences about it
const PREFERRED = 0.05, MOST_NAMED = 5; // error, where it can be promised; classes that a card names
const $ = (id) => document.getElementById(id);
let shown = {}; // what was drawn of the state: part -> as JSON
let judged = "", spoken = 0, timer = 0;

async function call(method, path, body) {
  const response = await fetch(path, { method, body }).catch(() => {
    throw Error("The server does not answer: is its terminal still open?");
  });
  const found = await response.json().catch(() => null);
  if (!response.ok) throw Error(found?.error ?? `The server answered with an error (${response.status}): see its terminal.`);
  return found;
}
const ask = (name, wanted = {}) => call("POST", `api/${name}`, JSON.stringify(wanted));
const put = (name, file, more = {}) => call("PUT", `api/${name}?${new URLSearchParams({ name: file.name ?? "camera.png", ...more })}`, file);
const split = (text) => text.split(",").map((name) => name.trim()).filter(Boolean);

// Does something, and says in its section what came of it.
async function doing(section, task) {
  const message = $(section).querySelector(":scope > .message"), say = (text) => (message.textContent = text);
  say("");
  try {
    say((await task(say)) ?? "");
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

// Sends files one by one; bad ones are named and left out.
async function each(files, say, send) {
  const bad = [];
  for (const [i, file] of files.entries()) {
    say(`${i + 1} of ${files.length} …`);
    await send(file).catch((error) => bad.push(error.message));
  }
  return leftOut(bad);
}
const leftOut = (bad, most = 10) =>
  [...bad.slice(0, most), ...(bad.length > most ? [`and ${bad.length - most} more`] : [])].join("\n");

function dropped(zone, take) {
  for (const kind of ["dragover", "dragleave", "drop"])
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
}

// What is drawn

function part(name, value, draw) {
  const text = JSON.stringify(value ?? null);
  if (shown[name] === text) return;
  shown[name] = text;
  draw(value);
}

// The chosen files; emptied, since choosing the same ones again would otherwise change nothing.
function taken(input) {
  const files = [...input.files];
  input.value = "";
  return files;
}

function drawClasses(classes) {
  const active = document.activeElement?.dataset?.key;
  $("classes").replaceChildren(...classes.map(({ label, images, shown }) => {
    const add = (files) => doing("images", (say) => each(files, say, (file) => put("image", file, { label })));
    const input = element("input", { type: "file", accept: $("files").accept, multiple: true });
    input.addEventListener("change", () => add(taken(input)));
    const button = (text, key, press) => {
      const found = element("button", { type: "button" }, text, " ", element("span", { className: "heard" }, own(label)));
      found.dataset.key = `${key} ${label}`;
      found.addEventListener("click", press);
      return found;
    };
    input.setAttribute("aria-label", `Add images of ${label}`);
    input.dataset.key = `add ${label}`;
    const item = element("li", {}, element("strong", {}, own(label)), `: ${images} image${images === 1 ? "" : "s"}`,
      element("div", { className: "shown" }, ...shown.map((name) => element("img", { src: `thumbnail/${name}`, alt: "", loading: "lazy" }))),
      element("div", { className: "row" }, element("span", { className: "button" }, "Add images", input),
        button("Camera", "camera", () => start(camera, "images", (file) => add([file]))),
        button("Remove", "remove", () => doing("images", () => ask("remove", { label })))));
    dropped(item, add);
    return item;
  }));
  if (active) ($("classes").querySelector(`[data-key="${CSS.escape(active)}"]`) ?? $("names")).focus();
}

function drawJob(job) {
  const busy = job && ["waiting", "running"].includes(job.state);
  const message = $(job?.what === "Exporting" ? "get" : "train").querySelector(":scope > .message");
  const focused = $("work").contains(document.activeElement);
  $("work").hidden = !busy;
  for (const id of ["go", "alone"]) $(id).disabled = Boolean(busy);
  if (focused && !busy) $("go").focus();
  if (!job) return;
  const place = job.place ? `${job.what} is waiting for ${job.place} other${job.place === 1 ? "" : "s"} on this machine.` : "";
  const bar = $("work").querySelector("progress");
  if (job.share === null) bar.removeAttribute("value");
  else bar.value = job.share;
  $("far").textContent = place || `${job.what}: ${job.message || "starting"}`;
  const ends = { done: `${job.what} is done.`, failed: job.message, stopped: `${job.what} was stopped; nothing has changed.` };
  if (!busy) message.textContent = ends[job.state];
  else if (Date.now() - spoken > SPOKEN) {
    spoken = Date.now();
    message.textContent = place || `${job.what} ${job.share === null ? "continues" : percent(job.share, 0)}`;
  }
  $("notes").hidden = !job.notes.length;
  $("notes").lastElementChild.replaceChildren(...job.notes.map((note) => element("li", {}, note)));
}

const interval = ({ low, high }) => `${low.toFixed(1)} to ${percent(high / 100)}`;

function drawJudged(found) {
  const before = found?.rows.find((row) => row.name.startsWith("before")), after = found?.rows.at(-1);
  const past = before && before !== after ? `, compared with ${before.right} before` : "";
  $("verdict").textContent = after
    ? `${after.right} of ${found.images} images are right${past}. On other images of this kind, ${interval(after)} are plausible.`
    : "Not known yet: it was not tested on images whose class is known.";
  $("tie").textContent = sentence(found?.tie ?? "");
  $("rates").hidden = !after;
  $("rates").tBodies[0].replaceChildren(...(found?.rows ?? []).map((row) => element("tr", {}, element("td", {}, row.name),
    element("td", {}, percent(row.accuracy / 100)), element("td", {}, interval(row)))));
  $("how").textContent = after ? `${found.images} images, judged ${found.how}.` : "";
  $("doubts").replaceChildren(...[...(found?.doubts ?? []), ...(found?.notes ?? [])].map((text) => element("li", {}, text)));
  $("mistakes").hidden = !found?.mistakes;
  $("mistakes").textContent = `${found?.mistakes} wrong, the most confident first`;
  $("wrong").replaceChildren(...(found?.wrong ?? []).map((one) => element("li", {},
    ...(one.src ? [element("img", { src: one.src, alt: "" })] : []), own(one.true), ", taken for ", own(one.answer),
    ` (${percent(one.probability, 0)})`, element("div", { className: "soft" }, own(one.name)))));
  $("report").hidden = !found?.report;
}

function drawTargets({ targets, exports }) {
  $("targets").replaceChildren(...Object.entries(targets).map(([to, about]) => {
    if (exports.includes(to))
      return element("a", { className: "button", href: `download/${to}`, download: "" }, `Download it ${about}`);
    const button = element("button", { type: "button" }, `Export it ${about}`);
    button.addEventListener("click", () => doing("get", async () => {
      await ask("export", { to });
      return "The export has begun.";
    }));
    return button;
  }));
}

// What may be promised, 5 % where that is possible; else why not.
function drawErrors(model) {
  const errors = model?.errors ?? [], first = errors.includes(PREFERRED) ? PREFERRED : 0;
  $("error").replaceChildren(...[0, ...errors].map((value) =>
    element("option", { value, selected: value === first }, value ? percent(value, 0) : "off")));
  $("error-row").hidden = !errors.length;
  $("share").replaceChildren(...[0, ...model?.shares ?? []].map((value) => element("option", { value }, value ? percent(value, 0) : "off")));
  $("share-row").hidden = !model?.shares.length;
  drawPromise(model);
}

const source = (facts) => facts?.source === "held out" ? "images that were not used for training"
  : "training images, each answered by a classifier that had not seen it";

function drawPromise(model) {
  const error = Number($("error").value), calibration = model?.calibration;
  const few = `promising an error of ${percent(PREFERRED, 0)} needs 19 images that the classifier was not trained on, and there are ${calibration?.images}`;
  const share = Number($("share").value), familiarity = model?.familiarity;
  const more = model?.added ? ` More may be missed, as classes were added by name (${model.added}).` : "";
  $("promised").textContent = error
    ? `An image with more than one possible class is unsure. The right class is missing on at most ${percent(error, 0)} of images like these ${calibration.images} ${source(calibration)}.${more}`
    : !calibration ? "No error can be promised, as this classifier has no answers on images that it was not trained on."
    : model.errors.includes(PREFERRED) ? "" : sentence(few);
  $("kept").textContent = share
    ? `At most ${percent(share, 0)} of images like these ${familiarity.images} ${source(familiarity)}${familiarity.source === "folds" ? "," : ""} are called “none of these”.` : "";
}

// Shows on a card what is decided at the chosen error and share; returns it in words.
function drawDecision(card) {
  const found = card.sets.find(({ error }) => error === Number($("error").value)), paragraph = card.querySelector(".decision");
  const known = card.familiar.find(({ share }) => share === Number($("share").value));
  const word = known && !known.familiar ? "none of these" : found?.decision ?? (known ? "answer" : "");
  const names = found?.set.slice(0, MOST_NAMED).flatMap((label, i) => [i ? ", " : "", own(label)]) ?? [];
  const more = found?.set.length - MOST_NAMED;
  paragraph.hidden = !word;
  const parent = word === "answer" ? found?.parent : "";
  paragraph.replaceChildren(...(word ? [element("strong", {}, word)] : []), ...(parent ? [": ", element("strong", {}, own(parent))] : []),
    ...(word === "unsure" || parent ? [": it may be ", ...names, more > 0 ? ` and ${more} more` : ""] : []));
  return word ? ` (${paragraph.textContent})` : "";
}

function draw(state) {
  part("classes", state.classes, drawClasses);
  part("project", state.project, (project) => {
    const counts = project?.labelled ? `: ${project.labelled} of ${project.images} images have one of ${project.classes} classes. Training uses these.` : "";
    $("project").replaceChildren(...(project?.folder && counts ? ["of ", own(project.folder), counts] : [counts]));
    if (project?.folder) $("removed").replaceChildren("Everything stays on this machine. The labels, and classifiers trained on them, are kept in the folder ",
      own(project.folder), "; all else is removed when the server stops.");
    for (const each of [$("new"), $("classes"), document.querySelector("#images .drop")]) each.hidden = Boolean(project?.folder || counts);
  });
  part("runs", state.runs, (runs) => {
    $("open").hidden = !runs.length;
    $("runs").replaceChildren(...runs.map((run) => element("option", { value: run }, run)));
  });
  part("methods", state.methods, (methods) => $("methods").append(...Object.entries(methods).map(([value, text], i) =>
    element("label", {}, element("input", { type: "radio", name: "method", value, checked: !i }), text))));
  part("base", state.base, (base) => {
    $("base").hidden = !base;
    $("base").textContent = base?.grows === false
      ? "A classifier is open. The images that it was trained on are not here, so it cannot learn from more."
      : "A classifier is open. Images that you add here join those it was trained on, and it learns from all of them.";
    $("methods").hidden = Boolean(base);
  });
  part("job", state.job, drawJob);
  part("model", state.model, (model) => {
    for (const id of ["judge", "try", "more", "get"]) $(id).hidden = !model;
    $("answers").replaceChildren();
    drawErrors(model);
    $("known").firstElementChild.textContent = `Classes it knows (${model?.labels.length})`;
    $("known").lastElementChild.replaceChildren(...(model?.labels ?? []).map((label) => element("li", {}, own(label))));
  });
  part("further", [state.model?.takes_names, state.base?.grows], ([byName, grows]) => {
    $("more").querySelector("form").hidden = !byName;
    const how = byName ? "These are recognised by name alone, without images." : "This classifier knows only classes that it has seen images of.";
    $("how-more").textContent = grows === false
      ? `${how} The images that it was trained on are not here, so it learns no class from images.`
      : `${how} To add a class with images, add it above and train it with the others.`;
  });
  part("get", { targets: state.targets, exports: state.exports }, drawTargets);
  $("with").hidden = Boolean(state.base) || !state.classes.some((one) => one.images);
  $("advice").textContent = state.advice && `${sentence(state.advice)} Whoever starts this page's server chooses the backbone.`;
}

// What is known of another model must not stand under this one, whatever the server says.
async function judge(model) {
  const message = $("judge").querySelector(":scope > .message");
  drawJudged(null);
  judged = model;
  try {
    drawJudged(await call("GET", "api/judged"));
    message.textContent = "";
  } catch (error) {
    judged = null;
    message.textContent = error.message;
  }
}

async function refresh() {
  clearTimeout(timer);
  try {
    const state = await call("GET", "api/state");
    draw(state);
    const model = JSON.stringify(state.model ?? null);
    if (state.model && model !== judged) await judge(model);
    if (["waiting", "running"].includes(state.job?.state)) timer = setTimeout(refresh, AGAIN);
  } catch (error) {
    $("train").querySelector(":scope > .message").textContent = error.message;
  }
}

// What a person does

const camera = new Camera($("images").querySelector(".camera")), eye = new Camera($("try").querySelector(".camera"));
const start = (which, section, take) => doing(section, () => which.start(take));

const takeZip = (files) => files.length && doing("images", async (say) => {
  say(`Reading ${files[0].name} …`);
  const { opened, bad } = await put("zip", files[0]);
  return [opened ? `${opened} is open.` : "The images were added.", leftOut(bad)].filter(Boolean).join("\n");
});
const tryThem = (files) => doing("try", (say) => each(files, say, async (file) => {
  const { classes, sets, familiar, levels, src } = await put("ask", file), name = file.name ?? "camera image";
  const card = element("li", { sets, familiar }, element("img", { alt: "", src }), element("h3", {}, own(name), ": ", own(classes[0].label)),
    element("p", { className: "decision" }), bars(classes), ...(levels.length ? [groups(levels)] : []));
  $("answers").prepend(card);
  drawDecision(card);
}).then((bad) => bad || (files.length === 1 ? said($("answers").firstElementChild) : `${files.length} images.`)));
// The most probable group of each level of a taxonomy.
const groups = (levels) => element("p", { className: "levels" }, "levels above: ",
  ...levels.flatMap((each, i) => [i ? ", " : "", own(each.class), ` ${percent(each.probability, 1)}`]));
const said = (card) => card.querySelector("h3").textContent + drawDecision(card);

$("new").addEventListener("submit", (event) => {
  event.preventDefault();
  doing("images", async () => {
    await ask("classes", { names: split($("names").value) });
    $("names").value = "";
  });
});
$("zip").addEventListener("change", () => takeZip(taken($("zip"))));
$("open").addEventListener("submit", (event) => {
  event.preventDefault();
  doing("images", async () => {
    await ask("open", { run: $("runs").value });
    return `${$("runs").value} is open.`;
  });
});
$("train").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  spoken = Date.now();
  doing("train", async () => {
    await ask("train", { method: document.querySelector("[name=method]:checked").value });
    return "Training has begun.";
  });
});
$("alone").addEventListener("click", () => doing("train", async () => {
  await ask("names");
  return "The classifier is ready: it recognises these classes by their names.";
}));
$("stop").addEventListener("click", () => doing("train", () => ask("stop")));
$("files").addEventListener("change", () => tryThem(taken($("files"))));
for (const id of ["error", "share"])
  $(id).addEventListener("change", () => {
    drawPromise(JSON.parse(shown.model));
    for (const card of $("answers").children) drawDecision(card);
  });
$("look").addEventListener("click", () => start(eye, "try", (file) => tryThem([file])));
$("more").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  doing("more", async () => {
    await ask("add", { names: split($("further").value) });
    $("further").value = "";
    return "Added.";
  });
});
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
dropped(document.querySelector("#images .drop"), takeZip);
dropped(document.querySelector("#try .drop"), tryThem);
if (self !== top) document.querySelector("#report a").target = "_self"; // another tab would not have a frame's cookie
refresh();
