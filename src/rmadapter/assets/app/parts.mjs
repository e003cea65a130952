// What the page is made of: elements, bars and the camera.

const SHOWN = 5; // answers on a card

export function element(name, properties = {}, ...inside) {
  const found = Object.assign(document.createElement(name), properties);
  found.append(...inside);
  return found;
}

// A name in any script, which does not turn the text around it.
export const own = (name) => element("bdi", {}, name);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;
export const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

// Answers, the most probable first.
export const bars = (answers) => element("ol", {}, ...answers.slice(0, SHOWN).map(({ label, probability }) => {
  const full = element("i");
  full.style.width = `${100 * probability}%`;
  return element("li", {}, element("span", {}, own(label)), element("span", {}, percent(probability)),
    element("span", { className: "bar" }, full));
}));

export class Camera {
  // said: what a person hears once it is on, and where there is none.
  constructor(box, said = { on: "The camera is on.", missing: "No camera is available to this page." }) {
    this.box = box;
    this.said = said;
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
      throw Error(this.said.missing);
    }
    this.box.hidden = false;
    this.box.querySelector(".shoot").focus();
    return this.said.on;
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
