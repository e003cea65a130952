// What the theme leaves out for keyboards and screen readers.

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

document.addEventListener("DOMContentLoaded", label);
window.addEventListener("load", focusWide);
window.addEventListener("resize", focusWide);
