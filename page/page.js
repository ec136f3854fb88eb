// What this script adds is convenience: without it the page is complete, only not interactive.
// Names of classes and files become text (textContent), never HTML.
"use strict";
const find = (id) => document.getElementById(id);
const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });
for (const element of document.querySelectorAll(".script[hidden]")) element.hidden = false;

// ---- Tables: a click on a heading sorts.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = make("button", th.textContent);
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
  const share = cell.textContent.includes("%");
  if (share) cell.style.setProperty("--value", cell.dataset.value);  // a bar behind it
}
for (const button of document.querySelectorAll("button.all-rows")) {  // the first ten are there, then all
  const table = button.closest(".classes").querySelector("table");
  table.classList.add("short");
  button.hidden = table.tBodies[0].rows.length <= 10;
  button.addEventListener("click", () => {
    table.classList.remove("short");
    table.rows[11].querySelector("a").focus();
    button.hidden = true;
  });
}

// ---- Mistakes: their pictures are one, and the rest is JSON. It has superclasses and maps where there are some.

const NAMES = ["true", "predicted", "superclass", "predicted_superclass"];
const KEYS = [...NAMES, "from", "to", "runs", "kind", "word"];  // of a filter; "open" in the address is the file of a picture
const AT_ONCE = 60;  // pictures

const holder = find("mistakes-data");
if (holder) {
  const data = JSON.parse(holder.textContent), sprite = find("wrong-images"), nearest = find("nearest-images");
  drawMatrix(data);
  for (const link of document.querySelectorAll("a[data-filter]")) {
    link.href = "#" + link.dataset.filter;
    link.addEventListener("click", () => { if (link.hash === location.hash) goTo(link.hash); });
  }
  Promise.all([sprite, nearest].map((image) => image?.decode())).then(() => browseMistakes(data, sprite, nearest));
}

// To go to the address that the page has already changes nothing, so the event is sent by hand.
function goTo(address) {
  if (location.hash === address) dispatchEvent(new Event("hashchange"));
  else location.hash = address;
}

function percent(share) {
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

// The names by which a filter finds a mistake.
function namesOf(data, mistake) {
  const [truth, predicted] = [mistake.true, mistake.classes[0]];
  const names = { true: data.classes[truth], predicted: data.classes[predicted] };
  if (data.superclasses) {
    names.superclass = data.superclasses[data.superclass_of[truth]];
    names.predicted_superclass = data.superclasses[data.superclass_of[predicted]];
  }
  return names;
}

function addressOf(filter) {
  const chosen = [...KEYS, "open"].filter((key) => filter[key]).map((key) => [key, filter[key]]);
  return chosen.length ? "#" + new URLSearchParams(chosen) : "#mistakes";
}

// Draws picture `index` of a sprite of 32x32 pixels each.
function drawPicture(canvas, sprite, index) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), columns = sprite.naturalWidth / 32;
  const [x, y] = [index % columns, Math.floor(index / columns)];
  context.imageSmoothingEnabled = false;
  context.drawImage(sprite, 32 * x, 32 * y, 32, 32, 0, 0, canvas.width, canvas.height);
}

// As gradcam.to_heatmap and gradcam.overlay do it: the map, enlarged bilinearly and scaled by its maximum, is
// added as light to a dark grey copy of the picture, which the canvas shows already.
function drawEvidence(canvas, map, cells, colours) {
  const side = canvas.width, context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, side, side), heat = new Float64Array(side * side);
  const places = [...Array(side).keys()].map((i) => {
    const at = Math.min(cells - 1, Math.max(0, (i + 0.5) * cells / side - 0.5)), low = Math.floor(at);
    return [low, Math.min(cells - 1, low + 1), at - low];
  });
  const between = (a, b, share) => a + (b - a) * share;
  places.forEach(([top, bottom, down], i) => places.forEach(([left, right, across], j) => {
    const row = (y) => between(map[y * cells + left], map[y * cells + right], across);
    heat[i * side + j] = between(row(top), row(bottom), down);
  }));
  const peak = heat.reduce((a, b) => Math.max(a, b)) || 1;
  heat.forEach((value, i) => {
    const [red, green, blue] = pixels.data.subarray(4 * i, 4 * i + 3);
    const dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
    const colour = 3 * Math.min(255, Math.floor(256 * value / peak));
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 255 * dark + (1 - dark) * colours[colour + c];
  });
  context.putImageData(pixels, 0, 0);
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function browseMistakes(data, sprite, nearest) {
  const [form, list, found, more, dialog] = ["filter", "thumbnails", "found", "more", "mistake"].map(find);
  const maps = bytes(data.maps ?? ""), colours = bytes(data.inferno);
  const cells = Math.sqrt(maps.length / data.images.length / 2);  // of a map, in a row
  const keys = KEYS.filter((key) => form.elements[key]);  // without superclasses some are missing
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog

  data.images.forEach((mistake, index) => { mistake.index = index; });
  for (const key of NAMES.filter((key) => form.elements[key])) {
    const names = key.includes("superclass") ? data.superclasses : data.classes;
    form.elements[key].append(...[...names].sort().map((name) => new Option(name, name)));
  }
  form.elements.runs.parentElement.hidden = !data.runs.length;
  form.elements.kind.append(...data.kinds.map((name) => new Option(name, name)));

  function fits(mistake, filter) {
    const names = namesOf(data, mistake), confidence = 100 * mistake.probabilities[0];
    return NAMES.every((key) => !filter[key] || names[key] === filter[key])
      && confidence >= Number(filter.from || 0) && confidence <= Number(filter.to || 100)
      && (!filter.kind || data.kinds[mistake.kind] === filter.kind)
      && (!filter.word || mistake.file.startsWith(`${filter.word}_s_`))
      && (!filter.runs || mistake.others.some(([c]) => c === mistake.true) === (filter.runs === "right"));
  }

  function show(filter) {
    chosen = data.images.filter((mistake) => fits(mistake, filter));
    const [count, all] = [chosen, data.images].map((images) => images.length.toLocaleString("en"));
    found.textContent = chosen.length ? `${count} of ${all} mistakes` : "No mistake on this page fits this choice.";
    list.replaceChildren();
    showMore();
  }

  function showMore() {
    const from = list.children.length;
    list.append(...chosen.slice(from, from + AT_ONCE).map(thumbnail));
    more.hidden = list.children.length === chosen.length;
  }

  function thumbnail(mistake) {
    const names = namesOf(data, mistake), button = make("button"), picture = make("canvas");
    const predicted = make("b", `${names.predicted} ${percent(mistake.probabilities[0])}`);
    picture.width = picture.height = 32;
    drawPicture(picture, sprite, mistake.index);
    button.append(picture, predicted, " ", make("span", `in truth ${names.true}`));
    button.addEventListener("click", () => enlarge(chosen.indexOf(mistake)));
    return button;
  }

  function enlarge(index) {
    open = (index + chosen.length) % chosen.length;
    const mistake = chosen[open], names = namesOf(data, mistake);
    find("mistake-title").textContent = `${names.true}, taken for ${names.predicted}`;
    const captions = { "mistake-picture": `test image: ${names.true}` };
    if (data.maps) {
      captions["evidence-predicted"] = `for ${names.predicted} rather than ${names.true}`;
      captions["evidence-true"] = `for ${names.true} rather than ${names.predicted}`;
    }
    Object.entries(captions).forEach(([id, text], k) => {
      const canvas = find(id), start = (2 * mistake.index + k - 1) * cells ** 2;
      drawPicture(canvas, sprite, mistake.index);
      if (k) drawEvidence(canvas, maps.subarray(start, start + cells ** 2), cells, colours);
      canvas.ariaLabel = canvas.nextElementSibling.textContent = text;
    });
    if (nearest) ["predicted", "true"].forEach((key, k) => {
      const canvas = find(`nearest-${key}`), similarity = mistake.similarity[k];
      canvas.parentElement.hidden = !similarity;
      drawPicture(canvas, nearest, 2 * mistake.index + k);
      const text = `nearest training image of ${names[key]}, similarity ${similarity.toFixed(2)}`;
      canvas.ariaLabel = canvas.nextElementSibling.textContent = text;
    });
    find("mistake-likely").replaceChildren(...mistake.classes.map((c, i) => {
      const item = make("li"), name = make("span", data.classes[c] + (c === mistake.true ? " (true class)" : ""));
      item.classList.toggle("truth", c === mistake.true);
      item.style.setProperty("--value", mistake.probabilities[i]);
      item.append(name, ` ${percent(mistake.probabilities[i])}`);
      return item;
    }));
    const notes = mistake.others.map(([c, probability], i) =>
      `${data.runs[i]} says ${data.classes[c]} (${percent(probability)}).`);
    if (mistake.covered) {
      const [answer, probability] = mistake.covered;
      notes.unshift(`With the top quarter of what speaks for ${names.predicted} covered it says `
        + `${data.classes[answer]} (${percent(probability)}).`);
    }
    if (mistake.copied >= 0) notes.push(`In the training set these pixels are labelled ${data.classes[mistake.copied]}.`);
    find("mistake-notes").textContent = notes.join(" ");
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = `${[open + 1, chosen.length].map((n) => n.toLocaleString("en")).join(" of ")}`;
    // The way back from a picture leads to the list, not from picture to picture.
    const address = addressOf({ ...choice(), open: mistake.file });
    if (address !== location.hash) history[dialog.open ? "replaceState" : "pushState"](null, "", address);
    if (!dialog.open) {
      dialog.showModal();
      find("mistake-next").focus();
    }
    dialog.scrollTop = 0;
  }

  function choice() {
    return Object.fromEntries(new FormData(form));
  }

  function readAddress() {
    const address = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    if (![...KEYS, "open"].some((key) => key in address)) return false;
    for (const key of keys) form.elements[key].value = address[key] ?? "";
    show(address);
    find("mistakes").focus();
    find("mistakes").scrollIntoView();
    const wanted = chosen.findIndex((mistake) => mistake.file === address.open);
    if (wanted >= 0) enlarge(wanted);
    return true;
  }

  function readForm() {
    history.replaceState(null, "", addressOf(choice()));
    show(choice());
  }

  form.addEventListener("input", readForm);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(readForm));  // the fields are empty only after this event
  more.addEventListener("click", () => {
    const next = list.children.length;
    showMore();
    list.children[next].focus();
  });
  find("show-evidence")?.addEventListener("input", (event) => {
    for (const id of ["evidence-predicted", "evidence-true"]) find(id).parentElement.hidden = !event.target.checked;
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
    if (location.hash.includes("open=")) history.replaceState(null, "", addressOf(choice()));
    // The filter may have changed since, so that there are fewer thumbnails or none.
    while (list.children.length <= open && !more.hidden) showMore();
    list.children[open]?.focus();
  });
  addEventListener("hashchange", () => {
    if (!location.hash.includes("open=")) dialog.close();
    if (location.hash) readAddress();
    else form.reset();  // back to before a choice
  });
  if (!readAddress()) show({});
}

// ---- The confusion matrix, drawn from its counts: a cell says what it counts and leads to its mistakes.

function drawMatrix(data) {
  const [form, canvas, mark, says] = ["matrix-choice", "matrix-cells", "matrix-mark", "matrix-says"].map(find);
  const colours = bytes(data.inferno);
  let coarse, names, groups, counts, totals, [i, j] = [0, 0];

  function draw() {
    coarse = form.elements.by?.value === "superclass";
    const group = (c) => data.superclass_of ? data.superclass_of[c] : 0, share = form.elements.numbers.value;
    // The classes stand in the order of their superclasses.
    const order = [...data.classes.keys()].sort((a, b) => group(a) - group(b) || a - b);
    const place = (c) => coarse ? group(c) : order.indexOf(c);
    names = coarse ? data.superclasses : order.map((c) => data.classes[c]);
    groups = coarse || !data.superclasses ? [] : order.map(group);
    counts = names.map(() => names.map(() => 0));  // of the test images, by row and column
    data.confusion.forEach((row, truth) => row.forEach((count, predicted) => {
      counts[place(truth)][place(predicted)] += count;
    }));
    const largest = Math.max(...counts.flat()), sum = (values) => values.reduce((a, b) => a + b);
    totals = { row: counts.map(sum), column: names.map((_, x) => sum(counts.map((row) => row[x]))) };
    const few = names.length <= 20, side = few ? 80 : 20, context = canvas.getContext("2d");  // numbers need room
    canvas.width = canvas.height = side * names.length;
    find("matrix").style.setProperty("--count", names.length);
    for (const id of ["matrix-rows", "matrix-columns"]) {
      find(id).replaceChildren(...names.map((name) => make("li", name)));
    }
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = "28px system-ui, sans-serif";
    context.lineWidth = 2;
    counts.forEach((row, y) => row.forEach((count, x) => {
      const whole = { count: largest, row: totals.row[y], column: totals.column[x] }[share] || 1;
      const level = Math.round(255 * Math.sqrt(count / whole));  // with the root small shares show as well
      context.fillStyle = `rgb(${colours.subarray(3 * level, 3 * level + 3)})`;
      context.fillRect(side * x, side * y, side, side);
      context.fillStyle = level > 150 ? "black" : "white";
      const number = share === "count" ? count : Math.round(100 * count / whole);
      if (few && number) context.fillText(number, side * (x + 0.5), side * (y + 0.5));
    }));
    context.strokeStyle = "#aaaaaa";
    for (let start = 0, end = 0; start < groups.length; start = end) {
      while (groups[end] === groups[start]) end++;
      context.strokeRect(side * start + 1, side * start + 1, side * (end - start) - 2, side * (end - start) - 2);
    }
    if (says.textContent) moveTo(i, j);
  }

  function moveTo(row, column) {
    [i, j] = [row, column].map((n) => Math.min(names.length - 1, Math.max(0, n)));
    mark.style.cssText = `left: ${100 * j / names.length}%; top: ${100 * i / names.length}%`;
    const of = form.elements.numbers.value === "column" ? totals.column[j] : totals.row[i];
    const what = i === j ? `${names[i]} recognised` : `${names[i]} taken for ${names[j]}`;
    says.textContent = `${what}: ${counts[i][j]} of ${of} ` + (form.elements.numbers.value === "column"
      ? `answers “${names[j]}”` : `images of ${names[i]}`)
      + (of ? ` (${percent(counts[i][j] / of)})` : "");
  }
  function point(event) {
    const box = canvas.getBoundingClientRect();
    moveTo(Math.floor((event.clientY - box.top) / box.height * names.length),
      Math.floor((event.clientX - box.left) / box.width * names.length));
  }
  function lead() {
    if (i !== j && !counts[i][j]) return;
    const [row, column] = coarse ? NAMES.slice(2) : NAMES.slice(0, 2);
    // A cell of the diagonal holds the right answers, so it leads to all mistakes of its class.
    goTo(addressOf(i === j && !coarse ? { [row]: names[i] } : { [row]: names[i], [column]: names[j] }));
  }
  if (innerWidth < 600 && data.superclasses) form.elements.by.value = "superclass";  // a hundred classes need more room
  form.addEventListener("input", draw);
  canvas.addEventListener("focus", () => moveTo(i, j));
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("click", (event) => { point(event); lead(); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Enter") lead();
    if (!step) return;
    event.preventDefault();
    moveTo(i + step[0], j + step[1]);
    mark.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  draw();
}
