// What this script adds is convenience: without it every text, picture and chart of the page can be read.
// Names of classes and files become text (textContent), never HTML.
"use strict";
const find = (id) => document.getElementById(id);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;
const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const data = JSON.parse(find("page-data").textContent);
for (const element of all(".script[hidden]")) element.hidden = false;

// ---- Navigation marks the section that is read.

const headings = all("section h2");
function markSection() {
  const end = innerHeight + scrollY > document.documentElement.scrollHeight - 2;
  const reached = end ? headings.at(-1) : headings.filter((h2) => h2.getBoundingClientRect().top < innerHeight / 3).at(-1);
  for (const link of all("nav a")) link.ariaCurrent = link.hash === `#${reached?.id}`;
}
addEventListener("scroll", markSection, { passive: true });
markSection();
find("sections").addEventListener("click", () => find("sections").hidePopover());

// A grid of buttons is one stop of the tabulator, in which the arrow keys move.
function moveByArrows(grid) {
  const stopAt = (stop) => all("button, a", grid).forEach((item) => { item.tabIndex = item === stop ? 0 : -1; });
  grid.addEventListener("keydown", (event) => {
    const items = all("button, a", grid), at = document.activeElement.getBoundingClientRect();
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    const away = (item) => {  // how far it lies in the direction of the key
      const box = item.getBoundingClientRect(), [x, y] = [box.left - at.left, box.top - at.top];
      return dx * x + dy * y < 1 || Math.abs(dx ? y : x) > 1 ? Infinity : Math.abs(x + y);
    };
    const next = items.reduce((best, item) => away(item) < away(best) ? item : best, document.activeElement);
    next.focus();
  });
  grid.addEventListener("focusin", (event) => stopAt(event.target));
  stopAt(grid.querySelector("button, a"));
}
for (const matrix of all(".matrix-table")) moveByArrows(matrix);

// What a picture is taken for, and whether that is right.
function showAnswer(caption, before, [answer, probability], truth) {
  const [sign, className] = answer === truth ? ["✓", "right"] : ["✗", "wrong"];
  caption.replaceChildren(before, make("span", { textContent: `${sign}\u00a0${data.classes[answer]} ${percent(probability, 0)}`, className }));
}

// ---- Maps of mistakes: a byte for each cell, 128 for 0, and a bit for each pixel that was covered.

const maps = bytes(data.maps ?? ""), colours = bytes(data.inferno), coveredPixels = bytes(data.covered_pixels ?? "");
const cells = Math.sqrt(maps.length / data.images.length);  // of a map, in a row

function paint(canvas, side, colourOf) {  // side x side squares
  const context = canvas.getContext("2d");
  canvas.width = canvas.height = side;  // this empties it
  for (let i = 0; i < side ** 2; i++) {
    context.fillStyle = colourOf(i);
    context.fillRect(i % side, Math.floor(i / side), 1, 1);
  }
}

// The light of a map, which the style sheet lays over the grey picture: as gradcam.overlay.
function paintMap(canvas, mistake, sign) {
  paint(canvas, cells, (cell) => {
    const value = Math.max(0, sign * (maps[mistake * cells ** 2 + cell] - 128)) / 127, level = 3 * Math.round(255 * value);
    return `rgb(${colours.subarray(level, level + 3)})`;
  });
}

function paintCover(canvas, mistake) {
  paint(canvas, data.side, (pixel) => {
    const bit = data.side ** 2 * mistake + pixel;
    return coveredPixels[bit >> 3] >> (7 - bit % 8) & 1 ? `rgb(${data.fill})` : "transparent";
  });
}

// One mistake in the section on maps, of which a button covers a quarter.
function coverLive() {
  const states = all("#live [data-state]"), buttons = all("[data-covers]");
  const show = (name) => {
    for (const state of states) state.hidden = state.dataset.state !== name;
    for (const button of buttons) button.ariaPressed = button.dataset.covers === name;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => show(button.ariaPressed === "true" ? "none" : button.dataset.covers));
  }
  find("live").className = "playing";
  show("none");
}
if (find("live")) coverLive();
if (find("puzzle")) playGame();

// ---- Class mode, by ?class in the address: what answers a question is hidden until votes were taken for it.

function askFirst(form) {
  const section = form.closest("section"), votes = form.querySelector(".votes"), { truth, low, high } = form.dataset, { vote, show } = form.elements;
  form.hidden = false;
  section.classList.add("guessing");
  const mark = (tag, values, textContent = "") => {
    const element = votes.appendChild(make(tag, { textContent }));
    for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
  };
  const levels = {};  // how many votes lie over each place
  const add = () => {
    const at = 2 * Math.round(vote.value / 2), level = levels[at] ?? 0;
    levels[at] = level + 1;
    mark("i", { at, level });
    votes.style.setProperty("--most", Math.max(...Object.values(levels)));
    votes.ariaLabel = `${all("i", votes).length} votes`;
  };
  const choose = () => {
    form.querySelector("output").value = vote.value;
    form.querySelector("button").disabled = false;
  };
  form.addEventListener("input", choose);
  vote.addEventListener("click", add);
  votes.addEventListener("click", ({ clientX }) => {
    if (vote.disabled) return;
    const { left, width } = votes.getBoundingClientRect();
    vote.value = (100 * (clientX - left)) / width;
    choose();
    add();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    add();
  });
  show.addEventListener("click", () => {
    section.classList.remove("guessing");
    mark("b", { low, high });
    mark("strong", { at: truth }, `it is ${Math.round(truth)}${low === high ? "" : ` (${Math.round(low)} to ${Math.round(high)})`}`);
    for (const element of form.elements) element.disabled = true;
    form.querySelector(".soft").hidden = true;
    section.querySelector("h2").focus({ preventScroll: true });
    form.scrollIntoView({ block: "nearest" });
  });
}

if (new URLSearchParams(location.search).has("class")) {
  document.body.classList.add("class-mode");
  all("form.guess").forEach(askFirst);
}

// ---- Two viewers: the pictures are parts of one sheet, which the style sheet places.

function viewCorruptions() {
  const form = find("corruption-choice"), { answers, true: truths } = data.corruptions, tests = Object.keys(answers);
  const { name, severity } = form.elements, table = find("corruption-table");
  function draw() {
    const isCue = `${name.value}/0` in answers, level = Number(severity.value);
    const test = isCue ? `${name.value}/0` : level ? `${name.value}/${level}` : "clean/0";
    severity.disabled = isCue;
    form.querySelector("output").textContent = severity.ariaValueText = isCue ? "one strength" : level || "0, clean";
    all("#corrupted figure").forEach((figure, i) => {
      figure.firstElementChild.style.setProperty("--row", tests.indexOf(test));
      showAnswer(figure.lastElementChild, `${data.classes[truths[i]]}: `, answers[test][i], truths[i]);
    });
    for (const row of all("tr[data-name]", table)) row.classList.toggle("chosen", row.dataset.name === name.value);
  }
  form.addEventListener("input", draw);
  for (const th of all("tbody th", table)) th.replaceChildren(make("button", { textContent: th.textContent }));
  table.addEventListener("click", (event) => {  // a row sets the pictures, a cell also the slider
    const row = event.target.closest("tr[data-name]"), cell = event.target.closest("td[data-value]");
    if (!row) return;
    name.value = row.dataset.name;
    if (cell && cell.cellIndex <= 5) severity.value = cell.cellIndex;  // the last is the mean
    draw();
  });
  moveByArrows(table.tBodies[0]);
  draw();
}

function viewAttacks() {
  const form = find("attack-choice"), { answers, epsilons, true: truths } = data.attacks, rows = all(".attacks > *");
  const { step } = form.elements, columns = truths.length + 1;  // the first names the row
  function draw() {
    const epsilon = epsilons[step.value];
    form.querySelector("output").textContent = step.ariaValueText = `${epsilon}/255`;
    const stored = epsilon < 1 ? "; below one level" : "";
    find("attack-says").textContent = `${epsilon <= 2 ? "The pictures look alike" : ""}${stored}`;
    for (const rule of all("[id^=epsilon-rule-]")) rule.classList.toggle("chosen", rule.id === `epsilon-rule-${step.value}`);
    rows.forEach((item, i) => {
      const row = Math.floor(i / columns), sheet = item.matches(".sheet") ? item : item.querySelector(".sheet");
      if (!row || !sheet) return;
      const attack = Math.floor((row - 1) / 2), part = (row - 1) % 2;  // the change, then the picture with it
      sheet.style.setProperty("--row", 1 + 2 * (attack * epsilons.length + Number(step.value)) + part);
    });
    for (const { dataset, lastElementChild: caption } of all("figure.attacked")) {
      showAnswer(caption, "", answers[dataset.attack][epsilon][dataset.place], truths[dataset.place]);
    }
  }
  form.addEventListener("input", draw);
  draw();
}

if (data.corruptions) viewCorruptions();
if (find("attack-choice")) viewAttacks();

// ---- Mistakes: their pictures are parts of one sheet, and the rest is JSON. They have superclasses and maps where there are some.

function browseMistakes() {
  const [form, list, more, dialog] = ["filter", "thumbnails", "more", "mistake"].map(find);
  const columns = Math.ceil(Math.sqrt(data.images.length));  // of the sheet
  const atOnce = innerWidth < 600 ? 3 : 20;
  const choice = () => Object.fromEntries(new FormData(form));
  const buttonAt = (place) => all("button", list)[place];
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog

  data.images.forEach((mistake, index) => {
    const classes = { true: mistake.true, predicted: mistake.answers[0][0][0] }, names = { kind: data.kinds[mistake.kind] };  // a filter finds it by
    for (const [key, c] of Object.entries(classes)) {
      names[key] = data.classes[c];
      if (data.superclasses) names[key === "true" ? "superclass" : "predicted_superclass"] = data.superclasses[data.superclass_of[c]];
    }
    Object.assign(mistake, { index, names });
  });
  for (const select of all("select:not([name=kind])", form)) {
    const names = select.name.includes("superclass") ? data.superclasses : data.classes;
    select.append(...[...names].sort().map((name) => new Option(name)));
  }

  const anyClass = find("any-class");  // a second way to a class, beside the accuracy
  const recallOf = (name) => data.scores[data.classes.indexOf(name)][0];
  anyClass.append(...[...data.classes].sort().map((name) => new Option(`${name}: ${recallOf(name)}`, name)));
  anyClass.addEventListener("input", () => { location.hash = addressOf({ true: anyClass.value }); });
  anyClass.closest("label").hidden = false;

  const fits = (mistake, filter) => Object.entries(mistake.names).every(([key, name]) => !filter[key] || name === filter[key]);

  function addressOf(filter) {
    const wanted = Object.entries(filter).filter(([, value]) => value);
    return wanted.length ? `#${new URLSearchParams(wanted)}` : "#mistakes";
  }

  function show(filter) {
    chosen = data.images.filter((mistake) => fits(mistake, filter));
    const [count, every] = [chosen, data.images].map((images) => images.length.toLocaleString("en"));
    const wanted = Object.keys(filter).filter((key) => filter[key]).join(), scores = wanted === "true" ? `; ${data.scores[data.classes.indexOf(filter.true)].join(", ")}` : "";
    find("found").textContent = (chosen.length ? `${count} of ${every} mistakes` : "No mistake on this page fits all choices") + scores;
    list.replaceChildren();
    showMore();
    if (chosen.length) buttonAt(0).tabIndex = 0;
  }

  function showMore() {
    const from = list.children.length;
    list.append(...chosen.slice(from, from + atOnce).map(drawItem));
    more.hidden = list.children.length === chosen.length;
  }

  function placePictures(inside, { index }) {
    inside.style.setProperty("--column", index % columns);
    inside.style.setProperty("--row", Math.floor(index / columns));
  }

  function drawItem(mistake) {  // a picture of the list, or without pictures a row of the table
    const item = find("mistake-item").content.firstElementChild.cloneNode(true);
    const texts = { ...mistake.names, confidence: percent(mistake.confidence), truth: percent(mistake.truth), file: mistake.file };
    for (const part of all("[data-text]", item)) part.textContent = texts[part.dataset.text];
    placePictures(item, mistake);
    return item;
  }

  function drawMistake(mistake) {
    const { true: truth, predicted } = mistake.names, figures = all("figure", dialog), canvases = all("canvas", dialog);
    const captions = [`${truth}, taken for ${predicted} (${percent(mistake.confidence)})`];
    placePictures(dialog, mistake);
    if (canvases.length) {
      const [answer, probability] = mistake.covered, sign = answer === mistake.true ? "✓" : "✗";
      const marks = [...maps.subarray(mistake.index * cells ** 2, (mistake.index + 1) * cells ** 2)].map((value) => value - 128);
      for (const [a, b, sign] of [[predicted, truth, 1], [truth, predicted, -1]]) {
        const most = Math.max(...marks.map((mark) => sign * mark));  // of 127, in both maps together
        captions.push(`${most > 12 ? "what speaks" : most > 0 ? "little is marked" : "nothing is marked"} for ${a} rather than ${b}`);
      }
      captions.push(`the quarter that favours ${predicted} (the game: an eighth) covered: ${sign} ${data.classes[answer]} (${percent(probability)})`);
      paintMap(canvases[0], mistake.index, 1);
      paintMap(canvases[1], mistake.index, -1);
      paintCover(canvases[2], mistake.index);
    }
    figures.forEach((figure, i) => {
      figure.firstElementChild.ariaLabel = figure.lastElementChild.textContent = captions[i];
    });
  }

  function enlarge(index) {
    open = (index + chosen.length) % chosen.length;
    const mistake = chosen[open], { names } = mistake, place = mistake.rank === 2 ? "second" : `number ${mistake.rank}`;
    find("mistake-title").textContent = `${names.true}, taken for ${names.predicted}`;
    const copied = mistake.copied < 0 ? "" : ` In the training set these pixels are labelled ${data.classes[mistake.copied]}.`;
    find("mistake-notes").textContent = `It is taken for ${names.predicted} with ${percent(mistake.confidence)}; ${names.true} is ${place}, `
      + `with ${percent(mistake.truth)}. Kind: ${form.elements.kind.options[mistake.kind + 1].text}.${copied}`;
    if (data.side) drawMistake(mistake);
    find("mistake-runs").replaceChildren();
    mistake.answers.forEach((answers, run) => {
      const row = find("mistake-runs").insertRow();
      row.append(make("th", { textContent: data.runs[run], scope: "row" }));
      for (const [c, probability] of answers) {
        const text = `${data.classes[c]} ${percent(probability)}`;
        row.insertCell().append(c === mistake.true ? make("span", { className: "truth", textContent: text }) : text);
      }
    });
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = [open + 1, chosen.length].map((n) => n.toLocaleString("en")).join(" of ");
    history.replaceState(null, "", addressOf({ ...choice(), true: names.true, open: mistake.file }));
    if (!dialog.open) {
      dialog.showModal();
      find("mistake-next").focus();
    }
    dialog.scrollTop = 0;
  }

  function readAddress() {
    if (!location.hash.includes("=") || location.hash.startsWith("#puzzle=")) return false;
    const { open: file, ...filter } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    // Files of two classes may have one name, so a picture is found by class and file, among all mistakes.
    const amongAll = file && Object.keys(filter).join() === "true";
    for (const field of all("[name]", form)) field.value = amongAll ? "" : filter[field.name] ?? "";
    show(choice());
    const wanted = chosen.findIndex((mistake) => mistake.file === file && (!filter.true || mistake.names.true === filter.true));
    find("all-mistakes").focus();
    find("all-mistakes").scrollIntoView();
    if (wanted >= 0) enlarge(wanted);
    return true;
  }

  function readForm() {
    history.replaceState(null, "", addressOf(choice()));
    show(choice());
  }

  form.addEventListener("input", ({ target }) => {  // a class may lie outside of the superclass that was chosen
    const wider = { true: "superclass", predicted: "predicted_superclass" }[target.name];
    if (target.value && form.elements[wider]) form.elements[wider].value = "";
    readForm();
  });
  form.addEventListener("reset", () => setTimeout(readForm));  // the fields are empty only after this event
  more.addEventListener("click", () => {
    const next = list.children.length;
    showMore();
    buttonAt(next).focus();
  });
  list.addEventListener("click", (event) => {
    const place = all("button", list).indexOf(event.target.closest("button"));
    if (place >= 0) enlarge(place);
  });
  moveByArrows(list);
  find("mistake-previous").addEventListener("click", () => enlarge(open - 1));
  find("mistake-next").addEventListener("click", () => enlarge(open + 1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") enlarge(open - 1);
    if (event.key === "ArrowRight") enlarge(open + 1);
  });
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", addressOf(choice()));
    while (list.children.length <= open && !more.hidden) showMore();
    buttonAt(open)?.focus({ preventScroll: true });
  });
  addEventListener("hashchange", readAddress);
  for (const link of all("main a[href*='=']")) {  // the address that the page has already
    link.addEventListener("click", () => { if (link.hash === location.hash) readAddress(); });
  }
  show({});
  readAddress();
}
if (data.images.length) browseMistakes();
