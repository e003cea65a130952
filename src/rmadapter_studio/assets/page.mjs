// The page: it sends images and wishes to the server, and shows what that says. Nothing is computed here.

import { Camera, bars, element, number, own, percent, read, send, sentence, text, told, words } from "./parts.mjs";

const AGAIN = 500, SPOKEN = 10_000; // milliseconds between two looks at a job, and between two sentences about it
const PREFERRED = 0.05, MOST_NAMED = 5; // error, where it can be promised; classes that a card names
const $ = (id) => document.getElementById(id);
let shown = {}; // what was drawn of the state: part -> as JSON
let judged = "", spoken = 0, timer = 0;

const call = async (method, path, body) => read(await send(method, path, body));
const ask = (name, wanted = {}) => call("POST", `api/${name}`, JSON.stringify(wanted));
const put = (name, file, more = {}) => call("PUT", `api/${name}?${new URLSearchParams({ name: file.name ?? "camera.png", ...more })}`, file);
const split = (names) => names.split(",").map((name) => name.trim()).filter(Boolean);

// Does something, and says in its section what came of it.
async function doing(section, task) {
  const message = $(section).querySelector(":scope > .message"), say = (said) => (message.textContent = said);
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
    say(text(words.sending, { i: i + 1, n: files.length }));
    await send(file).catch((error) => bad.push(error.message));
  }
  return leftOut(bad);
}
const leftOut = (bad, most = 10) =>
  [...bad.slice(0, most), ...(bad.length > most ? [text(words.and_more, { n: bad.length - most })] : [])].join("\n");

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
  const now = JSON.stringify(value ?? null);
  if (shown[name] === now) return;
  shown[name] = now;
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
    const button = (word, key, press) => {
      const found = element("button", { type: "button" }, word, " ", element("span", { className: "heard" }, own(label)));
      found.dataset.key = `${key} ${label}`;
      found.addEventListener("click", press);
      return found;
    };
    input.setAttribute("aria-label", text(words.add_images_of, { label }));
    input.dataset.key = `add ${label}`;
    const item = element("li", {}, ...told(words.class_images, { label: element("strong", {}, own(label)), n: images }),
      element("div", { className: "shown" }, ...shown.map((name) => element("img", { src: `thumbnail/${name}`, alt: "", loading: "lazy" }))),
      element("div", { className: "row" }, element("span", { className: "button" }, words.add_images, input),
        button(words.use_camera_for, "camera", () => start(camera, "images", (file) => add([file]))),
        button(words.remove, "remove", () => doing("images", () => ask("remove", { label })))));
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
  const said = words.jobs[job.what], place = job.place ? text(said.waiting, { n: job.place }) : "";
  const bar = $("work").querySelector("progress");
  if (job.share === null) bar.removeAttribute("value");
  else bar.value = job.share;
  $("far").textContent = place || (job.message ? text(said.running, job) : said.starting);
  const ends = { done: said.done, failed: job.message, stopped: said.stopped };
  if (!busy) message.textContent = ends[job.state];
  else if (Date.now() - spoken > SPOKEN) {
    spoken = Date.now();
    message.textContent = place || (job.share === null ? said.continues : text(said.share, { share: percent(job.share, 0) }));
  }
  $("notes").hidden = !job.notes.length;
  $("notes").lastElementChild.replaceChildren(...job.notes.map((note) => element("li", {}, note)));
}

const interval = ({ low, high }) => text(words.interval, { low: number(low, 1), high: percent(high / 100) });

function drawJudged(found) {
  const before = found?.rows.find((row) => row.name.startsWith("before")), after = found?.rows.at(-1);
  const verdict = before && before !== after ? words.verdict_before : words.verdict;
  $("verdict").textContent = after
    ? text(verdict, { share: number(after.accuracy, 0), right: after.right, images: found.images, before: before?.right, interval: interval(after) })
    : words.unjudged;
  $("tie").textContent = sentence(found?.tie ?? "");
  $("rates").hidden = !after;
  $("rates").tBodies[0].replaceChildren(...(found?.rows ?? []).map((row) => element("tr", {}, element("td", {}, row.name),
    element("td", {}, percent(row.accuracy / 100)), element("td", {}, interval(row)))));
  $("how").textContent = after ? text(words.how, found) : "";
  $("doubts").replaceChildren(...[...(found?.doubts ?? []), ...(found?.notes ?? [])].map((one) => element("li", {}, one)));
  $("mistakes").hidden = !found?.mistakes;
  $("mistakes").textContent = found?.mistakes ? text(words.mistakes, { n: found.mistakes }) : "";
  $("wrong").replaceChildren(...(found?.wrong ?? []).map((one) => element("li", {},
    ...(one.src ? [element("img", { src: one.src, alt: "" })] : []), ...told(words.mistake, { label: own(one.true), answer: own(one.answer), share: percent(one.probability, 0) }),
    element("div", { className: "soft" }, own(one.name)))));
  $("report").hidden = !found?.report;
}

function drawTargets({ targets, exports }) {
  $("targets").replaceChildren(...targets.map((to) => {
    if (exports.includes(to))
      return element("a", { className: "button", href: `download/${to}`, download: "" }, words.targets[to].download);
    const button = element("button", { type: "button" }, words.targets[to].export);
    button.addEventListener("click", () => doing("get", async () => {
      await ask("export", { to });
      return words.exporting;
    }));
    return button;
  }));
}

// What may be promised, 5 % where that is possible; else why not.
function drawErrors(model) {
  const errors = model?.errors ?? [], first = errors.includes(PREFERRED) ? PREFERRED : 0;
  $("error").replaceChildren(...[0, ...errors].map((value) =>
    element("option", { value, selected: value === first }, value ? percent(value, 0) : words.off)));
  $("error-row").hidden = !errors.length;
  $("share").replaceChildren(...[0, ...model?.shares ?? []].map((value) => element("option", { value }, value ? percent(value, 0) : words.off)));
  $("share-row").hidden = !model?.shares.length;
  drawPromise(model);
}

function drawPromise(model) {
  const error = Number($("error").value), calibration = model?.calibration;
  const share = Number($("share").value), familiarity = model?.familiarity;
  const number = (own) => own.grouped ? text(words.groups_of, { n: own.images }) : own.images;
  const promised = () => [text(words.promised[calibration.source], { share: percent(error, 0), images: number(calibration) }),
    ...(model.added ? [text(words.promised_added, { n: model.added })] : [])].join(" ");
  $("promised").textContent = error ? promised()
    : !calibration ? words.no_promise
    : model.broken.includes(PREFERRED) ? text(words.broken, { share: percent(PREFERRED, 0) })
    : model.errors.includes(PREFERRED) ? "" : text(words.few, { share: percent(PREFERRED, 0), images: calibration.images });
  $("kept").textContent = share
    ? text(words.kept[familiarity.source], { share: percent(share, 0), images: number(familiarity) }) : "";
}

// Shows on a card what is decided at the chosen error and share; returns it in words.
function drawDecision(card) {
  const found = card.sets.find(({ error }) => error === Number($("error").value)), paragraph = card.querySelector(".decision");
  const known = card.familiar.find(({ share }) => share === Number($("share").value));
  const word = known && !known.familiar ? "none of these" : found?.decision ?? (known ? "answer" : "");
  const names = element("span", {}, ...found?.set.slice(0, MOST_NAMED).flatMap((label, i) => [i ? ", " : "", own(label)]) ?? []);
  const n = found?.set.length - MOST_NAMED;
  paragraph.hidden = !word;
  const parent = word === "answer" ? found?.parent : "";
  paragraph.replaceChildren(...(word ? [element("strong", {}, words.decisions[word])] : []),
    ...(parent ? told(words.group, { parent: element("strong", {}, own(parent)) }) : []),
    ...(word === "unsure" || parent ? told(n > 0 ? words.may_be_more : words.may_be, { names, n }) : []));
  return word ? ` (${paragraph.textContent})` : "";
}

function draw(state) {
  part("classes", state.classes, drawClasses);
  part("project", state.project, (project) => {
    const counts = project?.labelled ? (project.folder ? words.labelled_in : words.labelled) : "";
    $("project").replaceChildren(...told(counts, { ...project, folder: own(project?.folder) }));
    if (project?.folder) $("removed").replaceChildren(...told(words.kept_in_folder, { folder: own(project.folder) }));
    for (const each of [$("new"), $("classes"), document.querySelector("#images .drop")]) each.hidden = Boolean(project?.folder || counts);
  });
  part("runs", state.runs, (runs) => {
    $("open").hidden = !runs.length;
    $("runs").replaceChildren(...runs.map((run) => element("option", { value: run }, run)));
  });
  part("methods", state.methods, (methods) => $("methods").append(...methods.map((value, i) =>
    element("label", {}, element("input", { type: "radio", name: "method", value, checked: !i }), words.methods[value]))));
  part("base", state.base, (base) => {
    $("base").hidden = !base;
    $("base").textContent = base?.grows === false ? words.open_alone : words.open_grows;
    $("methods").hidden = Boolean(base);
  });
  part("job", state.job, drawJob);
  part("model", state.model, (model) => {
    for (const id of ["judge", "try", "more", "get"]) $(id).hidden = !model;
    $("answers").replaceChildren();
    drawErrors(model);
    $("known").firstElementChild.textContent = text(words.known, { n: model?.labels.length });
    $("known").lastElementChild.replaceChildren(...(model?.labels ?? []).map((label) => element("li", {}, own(label))));
  });
  part("further", [state.model?.takes_names, state.base?.grows], ([byName, grows]) => {
    $("more").querySelector("form").hidden = !byName;
    $("how-more").textContent = [byName ? words.by_name : words.not_by_name, grows === false ? words.images_gone : words.with_images].join(" ");
  });
  part("get", { targets: state.targets, exports: state.exports }, drawTargets);
  $("with").hidden = Boolean(state.base) || !state.classes.some((one) => one.images);
  $("advice").textContent = state.advice && text(words.advice, { advice: sentence(state.advice) });
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
  say(text(words.reading, files[0]));
  const { opened, bad } = await put("zip", files[0]);
  return [opened ? text(words.opened, { run: opened }) : words.sent, leftOut(bad)].filter(Boolean).join("\n");
});
const tryThem = (files) => doing("try", (say) => each(files, say, async (file) => {
  const { classes, sets, familiar, levels, src } = await put("ask", file), name = file.name ?? words.camera_image;
  const card = element("li", { sets, familiar }, element("img", { alt: "", src }), element("h3", {}, own(name), ": ", own(classes[0].label)),
    element("p", { className: "decision" }), bars(classes), ...(levels.length ? [groups(levels)] : []));
  $("answers").prepend(card);
  drawDecision(card);
}).then((bad) => bad || (files.length === 1 ? said($("answers").firstElementChild) : text(words.tried, { n: files.length }))));
// The most probable group of each level of a taxonomy.
const groups = (levels) => element("p", { className: "levels" }, ...told(words.levels, {
  levels: element("span", {}, ...levels.flatMap((each, i) => [i ? ", " : "", own(each.class), ` ${percent(each.probability, 1)}`])) }));
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
    return text(words.opened, { run: $("runs").value });
  });
});
$("train").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  spoken = Date.now();
  doing("train", async () => {
    await ask("train", { method: document.querySelector("[name=method]:checked").value });
    return words.begun;
  });
});
$("alone").addEventListener("click", () => doing("train", async () => {
  await ask("names");
  return words.by_names;
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
    return words.added;
  });
});
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
dropped(document.querySelector("#images .drop"), takeZip);
dropped(document.querySelector("#try .drop"), tryThem);
if (self !== top) document.querySelector("#report a").target = "_self"; // another tab would not have a frame's cookie
refresh();
