"use strict";

// Tables: a click on a header sorts by its column, another click the other way round; cells without a number stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const number = (row) => parseFloat(row.cells[column].textContent.replace("<", ""));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = column ? "descending" : "ascending";
      const second = column ? "ascending" : "descending";
      const order = header.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows];
      const known = column ? rows.filter((row) => !isNaN(number(row))) : rows;
      const unknown = rows.filter((row) => !known.includes(row));
      known.sort((a, b) =>
        sign * (column ? number(a) - number(b) : a.cells[0].textContent.localeCompare(b.cells[0].textContent)));
      body.append(...known, ...unknown);
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
    });
  });
}

// The gallery: what is chosen, in the order that is chosen.
const form = document.querySelector("form.filters");
if (form) {
  const gallery = document.querySelector(".gallery");
  const figures = [...gallery.children];
  const unknown = figures.filter((figure) => isNaN(parseFloat(figure.dataset.value)));
  const known = figures.filter((figure) => !unknown.includes(figure));
  const show = () => {
    const { first, ...wanted } = Object.fromEntries(new FormData(form));
    gallery.append(...(first === "least" ? [...known].reverse() : known), ...unknown);
    for (const figure of figures) {
      figure.hidden = Object.entries(wanted).some(([key, value]) => value && figure.dataset[key] !== value);
    }
    const count = figures.filter((figure) => !figure.hidden).length;
    form.querySelector("output").textContent = `${count} of ${figures.length}`;
  };
  form.addEventListener("change", show);
  form.hidden = false;
  show();
}

// Pairs: the left picture is drawn over the right one as far as a slider says.
for (const pair of document.querySelectorAll(".pair")) {
  const slider = document.createElement("input");
  const [left, right] = pair.querySelectorAll("span");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50 });
  slider.setAttribute("aria-label", `how much of ${left.textContent} is seen, the rest is ${right.textContent}`);
  slider.addEventListener("input", () => pair.style.setProperty("--cut", `${slider.value}%`));
  pair.classList.add("live");
  pair.append(slider);
}

// Pictures alone are enlarged by a click.
const dialog = document.querySelector("dialog");
document.querySelectorAll(".gallery figure > img, .plot img").forEach((image) => {
  const enlarge = () => {
    dialog.querySelectorAll("div, p").forEach((old) => old.remove());
    const caption = document.createElement("p");
    const frame = document.createElement("div");
    caption.textContent = image.closest("figure").querySelector("figcaption").textContent;
    frame.append(image.cloneNode());
    dialog.prepend(frame, caption);
    dialog.showModal();
  };
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  image.addEventListener("click", enlarge);
  image.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      enlarge();
    }
  });
});
