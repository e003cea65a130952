// What the theme leaves out for keyboards, screen readers and narrow screens.

// what the theme shows beside a page, and on narrow screens only after its menu buttons
const LISTS = {
  __navigation: [".sidebar-drawer", "Pages"],
  __toc: [".toc-drawer", "Sections of this page"],
};

function label() {
  for (const [selector, text] of Object.values(LISTS)) {
    document.querySelector(selector)?.setAttribute("aria-label", text);
  }
  for (const caption of document.querySelectorAll(".caption[role=heading]")) {
    caption.setAttribute("aria-level", "2");
  }
  for (const corner of document.querySelectorAll("th")) {
    if (!corner.textContent.trim()) {
      corner.replaceWith(document.createElement("td")); // it is the header of nothing
    }
  }
}

// the theme's menu buttons are labels of hidden boxes, which no key reaches
function addButtons() {
  for (const [id, [selector, text]] of Object.entries(LISTS)) {
    const box = document.getElementById(id);
    const list = document.querySelector(selector);
    if (!box || !list) {
      continue;
    }
    const labels = [...document.querySelectorAll(`label[for="${id}"]:not(.overlay)`)];
    const buttons = labels.map((each) => asButton(each, text));
    let opener = null;
    const show = (open) => {
      box.checked = open;
      buttons.forEach((button) => button.setAttribute("aria-expanded", open));
    };
    show(box.checked);
    for (const button of buttons) {
      button.addEventListener("click", () => {
        opener = button;
        show(!box.checked);
        if (box.checked) {
          const entries = [...list.querySelectorAll("a, input")];
          entries.find((each) => each.offsetParent)?.focus({ preventScroll: true });
        }
      });
    }
    box.addEventListener("change", () => show(box.checked)); // a click beside the list
    list.addEventListener("click", (event) => {
      if (event.target.closest("a")) {
        show(false);
      }
    });
    list.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !list.contains(event.relatedTarget)) {
        show(false);
      }
    });
    list.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && box.checked) {
        show(false);
        opener?.focus();
      }
    });
  }
}

function asButton(label, text) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = label.className;
  button.setAttribute("aria-label", text);
  button.append(...label.childNodes);
  label.replaceWith(button);
  return button;
}

// arrow keys scroll only what has the focus
function focusWide() {
  for (const block of document.querySelectorAll("article pre, article .table-wrapper")) {
    if (block.scrollWidth > block.clientWidth) {
      block.tabIndex = 0;
    } else {
      block.removeAttribute("tabindex");
    }
  }
}

// no line ends within a word such as --out or zero-shot, unless it is long
function keepWords() {
  for (const code of document.querySelectorAll("article code.literal, .highlight-bash pre")) {
    const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) {
      texts.push(walker.currentNode);
    }
    for (const text of texts.filter((each) => each.data.includes("-"))) {
      text.replaceWith(...text.data.split(/(\S+)/).map(asWord));
    }
  }
}

function asWord(text) {
  if (!text.includes("-") || text.length > 30) {
    return text;
  }
  const word = document.createElement("span");
  word.className = "word";
  word.textContent = text;
  return word;
}

document.addEventListener("DOMContentLoaded", label);
document.addEventListener("DOMContentLoaded", addButtons);
document.addEventListener("DOMContentLoaded", keepWords);
window.addEventListener("load", focusWide);
window.addEventListener("resize", focusWide);
