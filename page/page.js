// What this script adds is convenience: without it the page is complete, only not interactive.
// Names of classes and files become text (textContent), never HTML.
"use strict";
for (const element of document.querySelectorAll(".script[hidden]")) element.hidden = false;

// ---- Tables: a click on a heading sorts.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => th.classList.contains("number")
        ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b)));
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
for (const cell of document.querySelectorAll(".classes td[data-value]")) {
  if (cell.dataset.value <= 1) cell.style.setProperty("--value", cell.dataset.value);  // a bar behind it
}

// ---- Mistakes: their pictures are one, and what is known of them is one JSON.

const KEYS = ["true", "predicted", "superclass", "predicted_superclass", "from", "to"];  // of a filter
const AT_ONCE = 60;  // pictures

const holder = document.getElementById("mistakes-data");
if (holder) {
  const data = JSON.parse(holder.textContent);
  browseMistakes(data);
  for (const figure of document.querySelectorAll("figure[data-cells]")) pointAtCells(figure, data);
  for (const link of document.querySelectorAll("a[data-filter]")) {
    link.href = "#" + link.dataset.filter;
    link.addEventListener("click", () => { if (link.hash === location.hash) goTo(link.hash); });
  }
}

// To go to the address that the page has already changes nothing, so the event is sent by hand.
function goTo(address) {
  if (location.hash === address) dispatchEvent(new Event("hashchange"));
  else location.hash = address;
}

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

function superclassOf(data, c) {
  return data.superclasses[data.superclass_of[c]];
}

// The names by which a filter finds a mistake.
function namesOf(data, mistake) {
  const predicted = mistake.classes[0];
  return {
    true: data.classes[mistake.true],
    predicted: data.classes[predicted],
    superclass: superclassOf(data, mistake.true),
    predicted_superclass: superclassOf(data, predicted),
  };
}

function addressOf(filter) {
  return "#" + new URLSearchParams(KEYS.filter((key) => filter[key]).map((key) => [key, filter[key]]));
}

function browseMistakes(data) {
  const find = (id) => document.getElementById(id);
  const [form, list, found, more, dialog] = ["filter", "thumbnails", "found", "more", "mistake"].map(find);
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog

  for (const key of KEYS.slice(0, 4)) {
    const names = key.includes("superclass") ? data.superclasses : data.classes;
    form.elements[key].append(...[...names].sort().map((name) => new Option(name, name)));
  }

  function fits(mistake, filter) {
    const names = namesOf(data, mistake), confidence = 100 * mistake.probabilities[0];
    return KEYS.slice(0, 4).every((key) => !filter[key] || names[key] === filter[key])
      && confidence >= Number(filter.from || 0) && confidence <= Number(filter.to || 100);
  }

  function describe(filter) {
    const unknown = KEYS.slice(0, 4).find((key) => filter[key] && form.elements[key].value !== filter[key]);
    if (unknown) {
      return `There is no ${unknown.includes("superclass") ? "superclass" : "class"} called ${filter[unknown]}.`;
    }
    if (chosen.length) {
      return `${chosen.length.toLocaleString("en")} of ${data.images.length.toLocaleString("en")} mistakes`;
    }
    if (filter.true && filter.true === filter.predicted) return `${filter.true} as ${filter.true} is right.`;
    return "No mistake on this page fits this choice.";
  }

  function show(filter) {
    chosen = data.images.filter((mistake) => fits(mistake, filter));
    found.textContent = describe(filter);
    list.replaceChildren();
    showMore();
  }

  function showMore() {
    const from = list.children.length;
    list.append(...chosen.slice(from, from + AT_ONCE).map(thumbnail));
    more.hidden = list.children.length === chosen.length;
  }

  function place(element, mistake) {
    const index = data.images.indexOf(mistake);
    const [x, y] = [index % data.columns, Math.floor(index / data.columns)];
    const rows = Math.ceil(data.images.length / data.columns);
    const share = (i, count) => `${100 * i / Math.max(1, count - 1)}%`;
    element.style.backgroundPosition = `${share(x, data.columns)} ${share(y, rows)}`;
  }

  function thumbnail(mistake) {
    const names = namesOf(data, mistake);
    const button = document.createElement("button"), picture = document.createElement("span");
    const predicted = document.createElement("b"), truth = document.createElement("span");
    button.type = "button";
    picture.className = "sprite";
    place(picture, mistake);
    predicted.textContent = `${names.predicted} ${percent(mistake.probabilities[0])}`;
    truth.textContent = `in truth ${names.true}`;
    button.append(picture, predicted, " ", truth);
    button.addEventListener("click", () => {
      enlarge(chosen.indexOf(mistake));
      dialog.showModal();
      find("mistake-next").focus();
    });
    return button;
  }

  function enlarge(index) {
    open = (index + chosen.length) % chosen.length;
    const mistake = chosen[open], names = namesOf(data, mistake);
    place(find("mistake-picture"), mistake);
    find("mistake-picture").setAttribute("aria-label", `a test image of the class ${names.true}`);
    find("mistake-title").textContent = `${names.true}, taken for ${names.predicted}`;
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = `${open + 1} of ${chosen.length}`;
    find("mistake-likely").replaceChildren(...mistake.classes.map((c, i) => {
      const item = document.createElement("li"), name = document.createElement("span");
      name.textContent = data.classes[c] + (c === mistake.true ? " (true class)" : "");
      item.classList.toggle("truth", c === mistake.true);
      item.style.setProperty("--value", mistake.probabilities[i]);
      item.append(name, ` ${percent(mistake.probabilities[i])}`);
      return item;
    }));
  }

  function readAddress() {
    const address = new URLSearchParams(location.hash.slice(1));
    if (!KEYS.some((key) => address.has(key))) return false;
    const filter = Object.fromEntries(KEYS.map((key) => [key, address.get(key) ?? ""]));
    for (const key of KEYS) form.elements[key].value = filter[key];
    show(filter);
    find("mistakes").focus();
    find("mistakes").scrollIntoView();
    return true;
  }

  function readForm() {
    const filter = Object.fromEntries(new FormData(form));
    const address = addressOf(filter);
    history.replaceState(null, "", address === "#" ? "#mistakes" : address);
    show(filter);
  }

  form.addEventListener("input", readForm);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(readForm));  // the fields are empty only after this event
  more.addEventListener("click", () => {
    const next = list.children.length;
    showMore();
    list.children[next].focus();
  });
  find("mistake-previous").addEventListener("click", () => enlarge(open - 1));
  find("mistake-next").addEventListener("click", () => enlarge(open + 1));
  find("mistake-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(open - 1);
    if (event.key === "ArrowRight") enlarge(open + 1);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();  // outside of it
  });
  dialog.addEventListener("close", () => {
    // The filter may have changed since, so that there are fewer thumbnails or none.
    while (list.children.length <= open && !more.hidden) showMore();
    list.children[open]?.focus();
  });
  addEventListener("hashchange", readAddress);
  if (!readAddress()) show({});
}

// ---- Confusion matrices: the cell under the pointer, or chosen by the arrow keys, says what it counts.

function pointAtCells(figure, data) {
  const keys = figure.dataset.cells.split(" "), coarse = keys[0] === "superclass";
  // As in the plot, the classes stand in the order of their superclasses.
  const order = [...data.classes.keys()].sort((a, b) => data.superclass_of[a] - data.superclass_of[b] || a - b);
  const names = coarse ? data.superclasses : order.map((c) => data.classes[c]);
  const place = (c) => coarse ? data.superclass_of[c] : order.indexOf(c);
  const counts = names.map(() => names.map(() => 0));  // of the test images, by row and column
  data.confusion.forEach((row, truth) => row.forEach((count, predicted) => {
    counts[place(truth)][place(predicted)] += count;
  }));

  const svg = figure.querySelector("svg"), image = svg.querySelector("image");
  const cover = document.createElement("div"), cells = document.createElement("button");
  const mark = document.createElement("span"), says = document.createElement("output");
  cover.className = "cover";
  cells.className = "cells";
  cells.type = "button";
  cells.setAttribute("aria-label", "Cells: the arrow keys move, Enter shows the mistakes");
  svg.replaceWith(cover);
  cells.append(mark);
  cover.append(svg, cells, says);
  const [outer, inner] = [svg, image].map((element) => element.getBoundingClientRect());
  cells.style.left = `${100 * (inner.left - outer.left) / outer.width}%`;
  cells.style.top = `${100 * (inner.top - outer.top) / outer.height}%`;
  cells.style.width = `${100 * inner.width / outer.width}%`;
  cells.style.height = `${100 * inner.height / outer.height}%`;

  let [i, j] = [0, 0];
  function moveTo(newRow, newColumn) {
    const last = names.length - 1;
    [i, j] = [newRow, newColumn].map((n) => Math.min(last, Math.max(0, n)));
    mark.style.cssText = `left: ${100 * j / names.length}%; top: ${100 * i / names.length}%; `
      + `width: ${100 / names.length}%; height: ${100 / names.length}%`;
    const total = counts[i].reduce((sum, count) => sum + count), count = counts[i][j];
    says.textContent = i === j ? `${names[i]}: ${count} of ${total} right${coarse ? " superclass" : ""}`
      : `${names[i]} taken for ${names[j]}: ${count || "none"} of ${total}`;
    says.classList.toggle("left", j > last / 2);
    const edge = (cells.offsetLeft + (j + (j > last / 2 ? 0 : 1)) * cells.offsetWidth / names.length);
    says.style.left = j > last / 2 ? "auto" : `${edge}px`;
    says.style.right = j > last / 2 ? `${cover.offsetWidth - edge}px` : "auto";
    says.style.top = `${cells.offsetTop + (i + (i > last / 2 ? -1 : 1)) * cells.offsetHeight / names.length}px`;
  }
  function point(event) {
    const box = cells.getBoundingClientRect();
    moveTo(Math.floor((event.clientY - box.top) / box.height * names.length),
      Math.floor((event.clientX - box.left) / box.width * names.length));
  }
  cells.addEventListener("pointermove", point);
  cells.addEventListener("pointerdown", point);
  cells.addEventListener("focus", () => moveTo(i, j));
  cells.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(i + step[0], j + step[1]);
    mark.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  cells.addEventListener("click", () => {
    // A cell of the diagonal holds the right answers, so it leads to all mistakes of its class.
    goTo(addressOf(i === j && !coarse ? { [keys[0]]: names[i] } : { [keys[0]]: names[i], [keys[1]]: names[j] }));
  });
}
