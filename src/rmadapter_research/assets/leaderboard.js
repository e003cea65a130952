const form = document.querySelector("form");
const apply = () => {
  const wanted = [...form.elements].filter((select) => select.value).map((select) => [select.name, select.value]);
  for (const part of document.querySelectorAll("[data-part]"))
    part.hidden = wanted.some(([name, value]) => name in part.dataset && part.dataset[name] !== value);
  for (const board of document.querySelectorAll("section[data-part]"))
    board.hidden ||= ![...board.querySelectorAll("tr[data-part]")].some((row) => !row.hidden);
  const shown = document.querySelectorAll("section[data-part]:not([hidden])").length;
  document.querySelector("#shown").textContent = `${shown} of ${document.querySelectorAll("section[data-part]").length} boards`;
};
form.hidden = false;
form.addEventListener("change", apply);
form.addEventListener("reset", () => setTimeout(apply));
apply();
