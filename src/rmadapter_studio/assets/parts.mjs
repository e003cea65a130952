// What both pages are made of: words, requests, elements, bars and the camera. All words are in one file a language.

export const words = JSON.parse(document.getElementById("words").textContent);
const SHOWN = 5, plural = new Intl.PluralRules(words.lang); // answers on a card

// A text of the words, or one of its forms by the number n, with values put in; a value may be an element.
export function told(text, values = {}) {
  const form = typeof text === "string" ? text : text[plural.select(values.n)] ?? text.other;
  return form.split(/\{(\w+)\}/).map((part, i) => (i % 2 ? values[part] : part)).filter((part) => part !== "");
}
export const text = (key, values) => told(key, values).join("");
export const number = (value, digits) =>
  value.toLocaleString(words.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits });
export const percent = (share, digits = 1) => `${number(100 * share, digits)}\u00a0%`;

// What the server says. Raises an Error with a message for the page.
export const send = (method, path, body) => fetch(path, { method, body }).catch(() => {
  throw Error(words.offline);
});
export async function read(response) {
  const found = await response.json().catch(() => null);
  if (!response.ok) throw Error(found?.error ?? text(words.failed, { status: response.status }));
  return found;
}

export function element(name, properties = {}, ...inside) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...inside);
  return found;
}

// A name in any script, which does not turn the text around it.
export const own = (name) => element("bdi", {}, name);
export const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

// Answers, the most probable first.
export const bars = (answers) => element("ol", {}, ...answers.slice(0, SHOWN).map(({ label, probability }) => {
  const full = element("i");
  full.style.width = `${100 * probability}%`;
  return element("li", {}, element("span", {}, own(label)), element("span", {}, percent(probability)),
    element("span", { className: "bar" }, full));
}));

export class Camera {
  constructor(box) {
    this.box = box;
    this.video = box.querySelector("video");
    box.querySelector(".shoot").addEventListener("click", async () => this.take(await this.frame()));
    box.querySelector(".stop").addEventListener("click", () => this.stop());
  }

  // take: what is done with each image that a person takes. Raises an Error where there is no camera.
  async start(take) {
    this.take = take;
    this.last = document.activeElement;
    try {
      this.video.srcObject ??= await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      await this.video.play();
    } catch {
      this.stop();
      throw Error(words.camera.missing);
    }
    this.box.hidden = false;
    this.box.querySelector(".shoot").focus();
    return words.camera.on;
  }

  async frame() {
    const canvas = new OffscreenCanvas(this.video.videoWidth, this.video.videoHeight);
    canvas.getContext("2d").drawImage(this.video, 0, 0);
    return canvas.convertToBlob();
  }

  stop() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    this.box.hidden = true;
    if (this.last?.isConnected) this.last.focus();
  }
}
