// What the theme leaves out for keyboards, screen readers and narrow screens.

const LABELS = { ".sidebar-drawer": "Pages", ".toc-drawer": "Sections of this page" };

function label() {
  for (const [selector, text] of Object.entries(LABELS)) {
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
document.addEventListener("DOMContentLoaded", keepWords);
window.addEventListener("load", focusWide);
window.addEventListener("resize", focusWide);
