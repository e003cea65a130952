// The page for labelling: it sends labels to the server, and shows what that proposes.

import { Camera, element, number, own, percent, read, send, text, told, words } from "./parts.mjs";

const LOOKS = ["suspects", "mistakes", "unfamiliar"]; // at labels, and at what the model makes of the images
const PAGE = 24, AGAIN = 400; // images at once; milliseconds between two looks at what is being computed
const GONE = 410; // status, if the server does not know the visitor, and the labels are in its folder
const $ = (id) => document.getElementById(id);
let state = null, cards = [], passedOver = 0, current = 0, anchor = 0, timer = 0, version = -1;

let coming = null; // the visit that is being begun
async function call(method, path, body, again = true) {
  const response = await send(method, path, body);
  if (response.status === GONE && again) {
    coming ??= fetch("label").catch(() => {}).finally(() => (coming = null)); // its answer sets the cookie
    await coming;
    return call(method, path, body, false);
  }
  return read(response);
}
const ask = (name, wanted = {}) => call("POST", `api/label/${name}`, JSON.stringify(wanted));

async function doing(place, task) {
  $(place).textContent = "";
  try {
    $(place).textContent = (await task()) ?? "";
  } catch (error) {
    $(place).textContent = error.message;
  }
  await refresh();
}

// What is drawn

function drawState() {
  for (const section of document.querySelectorAll(".once")) section.hidden = !state;
  $("scan").hidden = !state;
  if (!state) return;
  const shown = (id, key, values, wanted) => {
    $(id).hidden = !wanted;
    $(id).textContent = wanted ? text(key, values) : "";
  };
  shown("count", words.count, state, true);
  shown("encoding", words.encoding, state, state.encoded < state.images);
  shown("missing", words.missing, { n: state.missing }, state.missing);
  $("bad").hidden = !state.bad.length;
  $("bad").firstElementChild.textContent = text(words.bad, { n: state.bad.length });
  $("bad").lastElementChild.replaceChildren(...state.bad.map((one) => element("li", {}, one)));
  $("undo").disabled = !state.undoable;
  if (state.trouble) $("message").textContent = state.trouble;
  drawClasses();
  drawViews();
  drawLook();
}

function drawClasses() {
  const focused = document.activeElement?.dataset?.key;
  $("labels").replaceChildren(...state.classes.map(({ label, images, right, judged }, i) => {
    const button = (inside, key, press, name) => {
      const found = element("button", { type: "button" }, ...inside);
      found.dataset.key = `${key} ${label}`;
      if (name) found.setAttribute("aria-label", name);
      found.addEventListener("click", press);
      return found;
    };
    const key = i < 9 ? [" ", element("kbd", {}, String(i + 1))] : [];
    const pick = button([own(label), ...key], "pick", () => give(label));
    pick.className = "pick";
    const facts = [text(words.class_count, { n: images }), ...(judged ? [text(words.class_right, { right, judged })] : [])];
    return element("li", {}, pick, element("div", { className: "soft" }, facts.join(", ")), element("div", { className: "row" },
      button([words.show], "show", () => see(`labelled ${label}`), text(words.show_class, { label })),
      button([words.remove], "remove", () => doing("message", () => ask("remove", { label })), text(words.remove_class, { label }))));
  }));
  if (focused) ($("labels").querySelector(`[data-key="${CSS.escape(focused)}"]`) ?? $("names")).focus();
}

const pairOf = ({ label, answer }) => `confused ${JSON.stringify([label, answer])}`;

function drawViews() {
  const labelled = state.classes.filter((one) => one.images).map(({ label }) => [`labelled ${label}`, text(words.views.labelled, { label })]);
  const views = [...state.orders.map((order) => [order, words.views[order]]), ...labelled, ["skipped", words.views.skipped],
    ...LOOKS.map((look) => [look, words.views[look]]), ...state.confusions.map((one) => [pairOf(one), text(words.views.confused, one)])];
  const before = $("view").value;
  // a pair that is no longer confused stays while it is shown
  if (before.startsWith("confused ") && !views.some(([value]) => value === before)) {
    const [label, answer] = JSON.parse(before.slice("confused ".length));
    views.push([before, text(words.views.confused, { label, answer })]);
  }
  $("view").replaceChildren(...views.map(([value, name]) => element("option", { value }, name)));
  $("view").value = views.some(([value]) => value === before) ? before : views[0][0];
  const [kind] = $("view").value.split(" ");
  $("meaning").textContent = [words.meanings[kind], state.orders.includes(kind) && kind !== "sure" ? words.unproven : ""].join(" ");
}

const row = (...cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
const interval = ({ low, high }) => `${number(low, 0)} – ${percent(high / 100, 0)}`;
const picture = (id) => element("img", { src: `picture/${id}`, alt: "", loading: "lazy" });

// Drawn anew only when it has changed, so that no button loses the focus for nothing.
let confused = "";
function drawConfused() {
  const now = JSON.stringify(state.confusions);
  if (confused === now) return;
  confused = now;
  const focused = document.activeElement?.dataset?.pair;
  $("confused").hidden = !state.confusions.length;
  $("confused").querySelector("ul").replaceChildren(...state.confusions.map((one) => {
    const pair = { label: own(one.label), answer: own(one.answer), n: one.images };
    const button = element("button", { type: "button" }, element("span", { className: "shots" }, ...one.shown.map(picture)),
      ...told(words.confusion, pair));
    button.dataset.pair = pairOf(one);
    button.addEventListener("click", () => visit(pairOf(one)));
    return element("li", {}, button);
  }));
  if (focused) $("confused").querySelector(`[data-pair="${CSS.escape(focused)}"]`)?.focus();
}

function drawLook() {
  const judged = state.accuracy;
  const values = judged && { ...judged, low: percent(judged.low / 100, 0), high: percent(judged.high / 100, 0) };
  $("accuracy").textContent = judged ? text(words.accuracy, values) : words.unjudged;
  $("chosen").hidden = !judged;
  for (const id of ["suspects", "mistakes"]) {
    $(id).hidden = !state[id];
    $(id).textContent = text(words[id], { n: state[id] });
  }
  $("unfamiliar").hidden = !judged;
  $("each").hidden = !judged;
  const rows = judged ? state.classes.filter((one) => one.judged) : [];
  $("each").querySelector("tbody").replaceChildren(...rows.map((one) => row(own(one.label), text(words.class_rate, one), interval(one))));
  drawConfused();
  const points = state.curve;
  $("curve").hidden = points.length < 2;
  $("curve").querySelector("tbody").replaceChildren(...points.map((one) => row(String(one.labelled), percent(one.right / one.images), interval(one))));
  if (points.length < 2) return;
  const most = points.at(-1).labelled;
  const at = (one, share) => `${((320 * one.labelled) / most).toFixed(1)},${(120 - 1.2 * share).toFixed(1)}`;
  $("line").setAttribute("d", `M${points.map((one) => at(one, (100 * one.right) / one.images)).join("L")}`);
  const ends = [...points.map((one) => at(one, one.high)), ...points.toReversed().map((one) => at(one, one.low))];
  $("band").setAttribute("d", `M${ends.join("L")}Z`);
}

function drawCard(card, i) {
  const [best] = card.answers, [kind] = $("view").value.split(" "), paragraph = (className, ...inside) => element("p", { className }, ...inside);
  const lines = [];
  if (card.label) lines.push(paragraph("label", ...told(words.is, { label: own(card.label) })));
  else if (card.skipped) lines.push(paragraph("label", words.is_skipped));
  if (card.suggested && kind === "suspects") lines.push(paragraph("", ...told(words.suggested, { label: own(card.suggested) })));
  else if (card.suggested) lines.push(paragraph("", ...told(words.taken, { label: own(card.suggested), share: percent(best.probability, 0) })));
  else if (!card.label && best) lines.push(paragraph("", ...told(words.proposal, { label: own(best.label), share: percent(best.probability, 0) })));
  else if (!card.label && !card.skipped) lines.push(paragraph("soft", words.no_proposal));
  const reason = card.score === null ? "" : text(words.reasons[kind] ?? "", { score: card.score.toLocaleString(words.lang, { minimumSignificantDigits: 2, maximumSignificantDigits: 2 }) });
  if (reason && !card.label) lines.push(paragraph("soft", reason));
  const copies = card.copies.length
    ? [paragraph("soft", text(words.copies, { n: card.copies.length })), element("div", { className: "copies" }, ...card.copies.slice(0, 4).map(picture))]
    : [];
  const item = element("li", { id: `card-${card.id}`, tabIndex: i === current ? 0 : -1, className: card.label || card.skipped ? "done" : "" },
    picture(card.id), ...lines, ...copies, paragraph("soft", own(card.name)));
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", String(Boolean(card.selected)));
  item.addEventListener("click", (event) => {
    if (event.shiftKey) range(i);
    else {
      card.selected = !card.selected;
      anchor = i;
    }
    move(i, true);
  });
  return item;
}

function drawCards() {
  const focused = $("grid").contains(document.activeElement);
  current = Math.max(0, Math.min(current, cards.length - 1));
  $("grid").replaceChildren(...cards.map(drawCard));
  $("grid").hidden = !cards.length;
  $("empty").hidden = Boolean(cards.length) || !state;
  const done = state && state.labelled + state.skipped >= state.images && state.images;
  $("empty").textContent = done ? words.all_done : words.empty;
  if (focused) $("grid").children[current]?.focus({ preventScroll: true });
}

// Moving and selecting

function move(to, stay = false) {
  current = Math.max(0, Math.min(to, cards.length - 1));
  if (!stay) anchor = current;
  [...$("grid").children].forEach((item, i) => {
    item.tabIndex = i === current ? 0 : -1;
    item.setAttribute("aria-selected", String(Boolean(cards[i].selected)));
  });
  $("grid").children[current]?.focus();
}

function range(to) {
  const [low, high] = [Math.min(anchor, to), Math.max(anchor, to)];
  cards.forEach((card, i) => (card.selected = card.selected || (i >= low && i <= high)));
}

function columns() {
  const items = [...$("grid").children];
  return Math.max(items.findIndex((item) => item.offsetTop > items[0].offsetTop), 0) || items.length;
}

// The selected cards, or else the current one.
function chosen() {
  if ($("grid").ariaBusy === "true") throw Error(words.turning);
  const some = cards.filter((card) => card.selected);
  const found = some.length ? some : cards.slice(current, current + 1);
  if (!found.length) throw Error(words.nothing_selected);
  return found;
}
const numbers = (some) => some.flatMap((card) => [card.id, ...($("together").checked ? card.copies : [])]);

// After a step: nothing is selected, and the next card without a label is the current one.
function passed(some) {
  for (const card of cards) card.selected = false;
  const last = cards.indexOf(some.at(-1));
  const next = cards.findIndex((card, i) => i > last && !card.label && !card.skipped);
  current = next >= 0 ? next : Math.min(last + 1, cards.length - 1);
  anchor = current;
  drawCards();
}

// What a person does

// Requests go out one after the other, in the order of the keys.
let sent = Promise.resolve();
const inTurn = (work) => (sent = sent.catch(() => {}).then(work));

// Shows a step at once, so that the next key is for the next card, and takes it back if the server refuses.
async function step(some, marks, work) {
  const before = some.map(({ label, skipped, suggested, changed }) => ({ label, skipped, suggested, changed }));
  some.forEach((card, i) => Object.assign(card, { suggested: "", changed: true, ...marks[i] }));
  passed(some);
  try {
    await inTurn(work);
  } catch (error) {
    some.forEach((card, i) => Object.assign(card, before[i]));
    drawCards();
    throw error;
  }
}

const give = (label) => doing("message", async () => {
  const some = chosen(), ids = numbers(some);
  await step(some, some.map(() => ({ label, skipped: false })), () => ask("set", { ids, label }));
  return text(label ? words.labelled : words.unlabelled, { n: ids.length, label });
});
const skip = () => doing("message", async () => {
  const some = chosen(), ids = numbers(some);
  await step(some, some.map(() => ({ label: "", skipped: true })), () => ask("skip", { ids }));
  return text(words.skipped, { n: ids.length });
});
const accept = () => doing("message", async () => {
  const some = chosen().filter((card) => card.suggested || card.answers.length), byLabel = new Map();
  if (!some.length) throw Error(words.nothing_proposed);
  const labels = some.map((card) => card.suggested || card.answers[0].label);
  labels.forEach((label, i) => byLabel.set(label, [...(byLabel.get(label) ?? []), ...numbers([some[i]])]));
  await step(some, labels.map((label) => ({ label, skipped: false })), async () => {
    for (const [label, ids] of byLabel) await ask("set", { ids, label });
  });
  return [...byLabel].map(([label, ids]) => text(words.labelled, { n: ids.length, label })).join(" ");
});
const undo = () => doing("message", async () => {
  const changed = await inTurn(() => ask("undo")), shown = new Map(cards.map((card) => [card.id, card]));
  for (const card of changed) {
    const known = shown.get(card.id);
    if (known) Object.assign(known, { label: card.label, skipped: card.skipped, changed: false });
  }
  if (changed.length && !changed.some((card) => shown.has(card.id))) cards = changed;
  const first = cards.findIndex((card) => changed.some((one) => one.id === card.id));
  current = first >= 0 ? first : current;
  drawCards();
  return text(words.undone, { n: changed.length });
});
async function next(more = false) {
  const [kind, ...rest] = $("view").value.split(" "), open = state.orders.includes(kind) || kind === "unfamiliar";
  passedOver = more && !open ? passedOver + cards.filter((card) => !card.changed).length : 0;
  const wanted = state.orders.includes(kind) ? { view: "open", order: kind } : { view: kind, start: passedOver };
  if (kind === "labelled") wanted.label = rest.join(" ");
  if (kind === "confused") [wanted.label, wanted.answer] = JSON.parse(rest.join(" "));
  const before = version;
  $("grid").ariaBusy = "true"; // no key may label what is about to be replaced
  try {
    cards = await inTurn(() => ask("cards", { ...wanted, n: PAGE }));
  } finally {
    $("grid").ariaBusy = "false";
  }
  version = before; // these may be older than what was asked for meanwhile
  current = anchor = 0;
  drawCards();
}
const turn = (more = true) => doing("message", async () => {
  await next(more);
  $("grid").firstElementChild?.focus();
});
function see(view) {
  $("view").value = view;
  drawViews();
  doing("message", () => next());
}
// Shows a view, and goes to its first image.
function visit(view) {
  $("view").value = view;
  drawViews();
  return turn(false);
}
async function enlarge() {
  const card = cards[current];
  if (!card) return;
  $("large").querySelector("img").src = `picture/${card.id}?size=large`;
  $("near").hidden = true;
  $("large").showModal();
  const found = await ask("near", { id: card.id }).catch(() => []);
  if (cards[current] !== card) return;
  $("near").hidden = !found.length;
  $("near").querySelector("ul").replaceChildren(...found.map(({ id, label, similarity }) => element("li", {}, picture(id),
    ...told(words.similarity, { label: own(label), similarity: number(similarity, 2) }))));
}

const KEYS = {
  ArrowLeft: -1, ArrowRight: 1, ArrowUp: "up", ArrowDown: "down", " ": "toggle", Enter: accept, 0: () => give(state.none), s: skip,
  u: undo, n: () => turn(), z: enlarge, a: () => every(true), Escape: () => every(false), Delete: () => give(""), Backspace: () => give(""),
};
function every(selected) {
  for (const card of cards) card.selected = selected;
  move(current);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("large").open || !state) return;
  const inGrid = $("grid").contains(document.activeElement) || document.activeElement === document.body;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!inGrid) return;
  let action = KEYS[key];
  if (/^[1-9]$/.test(key)) action = () => {
    const one = state.classes[Number(key) - 1];
    if (one) give(one.label);
    else $("message").textContent = text(words.no_class, { n: key });
  };
  if (action === undefined) return;
  event.preventDefault();
  if (action === "up") action = -columns();
  if (action === "down") action = columns();
  if (typeof action === "number") {
    if (event.shiftKey) range(Math.max(0, Math.min(current + action, cards.length - 1)));
    move(current + action, event.shiftKey);
  } else if (action === "toggle") {
    if (cards[current]) cards[current].selected = !cards[current].selected;
    move(current);
  } else action();
});

for (const [id, action] of Object.entries({ none: () => give(state.none), skip, clear: () => give(""), undo, next: () => turn(), accept, zoom: enlarge, all: () => every(true) }))
  $(id).addEventListener("click", action);
// the card may have been drawn anew meanwhile
$("large").addEventListener("close", () => $("grid").children[current]?.focus());
$("view").addEventListener("change", () => see($("view").value));
for (const id of LOOKS) $(id).addEventListener("click", () => visit(id));
$("scan").addEventListener("click", () => doing("sent", () => ask("scan")));
$("new").addEventListener("submit", (event) => {
  event.preventDefault();
  doing("message", async () => {
    await ask("classes", { names: $("names").value.split(",").map((name) => name.trim()).filter(Boolean) });
    $("names").value = "";
  });
});

const put = (kind, file, name) => call("PUT", `api/label/${kind}?${new URLSearchParams({ name })}`, file);
async function upload(files) {
  const bad = [];
  for (const [i, file] of files.entries()) {
    $("sent").textContent = text(words.sending, { i: i + 1, n: files.length });
    const kind = file.name.toLowerCase().endsWith(".zip") ? "zip" : "image";
    const found = await put(kind, file, file.name).catch((error) => [error.message]);
    bad.push(...(found ?? []));
  }
  const more = bad.length > 10 ? [text(words.and_more, { n: bad.length - 10 })] : [];
  return [...(bad.length < files.length ? [words.sent] : []), ...bad.slice(0, 10), ...more].join("\n");
}
const camera = new Camera($("more").querySelector(".camera"));
$("photograph").addEventListener("click", () => doing("sent", () => camera.start((picture) => doing("sent", async () => {
  await put("image", picture, "camera.png");
  return words.photographed;
}))));
$("files").addEventListener("change", () => {
  const files = [...$("files").files];
  $("files").value = "";
  if (files.length) doing("sent", () => upload(files));
});
const zone = document.querySelector(".drop");
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
for (const kind of ["dragover", "dragleave", "drop"])
  zone.addEventListener(kind, (event) => {
    zone.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) doing("sent", () => upload([...event.dataTransfer.files]));
  });

// New proposals for the images that are shown; their order stays.
async function follow() {
  version = state.version;
  if (!cards.length) return state.images ? next() : drawCards();
  const found = await ask("answers", { ids: cards.map((card) => card.id) });
  for (const card of cards) card.answers = found[card.id] ?? card.answers; // others may be shown meanwhile
  drawCards();
}

async function refresh() {
  clearTimeout(timer);
  try {
    state = await ask("state");
    drawState();
    if (state && (state.version !== version || !cards.length)) await follow();
    if (state?.fitting) timer = setTimeout(refresh, AGAIN);
  } catch (error) {
    $("sent").textContent = error.message;
  }
}
refresh();
