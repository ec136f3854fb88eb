// What this script adds is convenience: without it the page is complete, only not interactive.
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
  const reached = end ? headings.at(-1) : headings.filter((h2) => h2.getBoundingClientRect().top < 120).at(-1);
  for (const link of all("nav a")) link.ariaCurrent = link.hash === `#${reached?.id}`;
}
addEventListener("scroll", markSection, { passive: true });
markSection();
find("sections").addEventListener("click", () => find("sections").hidePopover());
addEventListener("beforeprint", () => all("details:not(.code)").forEach((part) => { part.open = true; }));

// ---- Tables: a click on a heading sorts. A grid of links or pictures is one stop of the tabulator.

for (const th of all("table.sortable thead th")) {
  const body = th.closest("table").tBodies[0], isNumber = th.classList.contains("number");
  th.replaceChildren(make("button", { textContent: th.textContent }));
  th.firstElementChild.addEventListener("click", () => {
    const order = th.ariaSort === "ascending" ? "descending" : "ascending";
    for (const other of th.parentElement.cells) other.ariaSort = other === th ? order : null;
    const value = (row) => row.cells[th.cellIndex].dataset.value ?? row.cells[th.cellIndex].textContent;
    const rows = [...body.rows].sort((a, b) => isNumber ? value(a) - value(b) : value(a).localeCompare(value(b)));
    body.append(...(order === "ascending" ? rows : rows.reverse()));
  });
}

function moveByArrows(grid) {
  const stopAt = (stop) => all("button, a", grid).forEach((item) => { item.tabIndex = item === stop ? 0 : -1; });
  grid.addEventListener("keydown", (event) => {
    const shown = all("button, a", grid).filter((item) => item.offsetParent), place = shown.indexOf(document.activeElement), [first] = shown;
    const columns = shown.filter((item) => item.offsetTop === first.offsetTop && item.offsetParent === first.offsetParent).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step || place < 0 || !shown[place + step]) return;
    event.preventDefault();
    shown[place + step].focus();
  });
  grid.addEventListener("focusin", (event) => stopAt(event.target));
  stopAt(grid.querySelector("button, a"));
}
for (const body of all(".classes tbody")) moveByArrows(body);

// What a picture is taken for, and whether that is right.
function showAnswer(caption, before, [answer, probability], truth) {
  const [sign, className] = answer === truth ? ["✓", "right"] : ["✗", "wrong"];
  caption.replaceChildren(`${before}: `, make("span", { textContent: `${sign} ${data.classes[answer]} ${percent(probability, 0)}`, className }));
}

// ---- The game: all 137 ways to cover none, one or two of 16 squares, and the answers to them, are in the data:
// class and percent of the first, of the second, of the third.

function playPuzzles() {
  const part = (name) => find(`puzzle-${name}`), squares = all("button", part("picture")), random = part("random"), fill = `rgb(${data.fill})`;
  const coversOf = (puzzle) => ({ you: puzzle.tried, "the map": puzzle.by_map, "the best": puzzle.best });
  const turns = (puzzle, cover) => puzzle.answers[cover]?.[0] === puzzle.true;
  const wasPlayed = (puzzle) => puzzle.tried > 0, wasSeen = (puzzle) => puzzle.tried !== undefined;
  let place = 0, cover = 0;  // `tried` of a puzzle is what the reader committed; 0, which covers nothing, after "Show me"
  part("static").hidden = true;
  squares.forEach((button, square) => button.addEventListener("click", () => toggle(square)));
  moveByArrows(part("picture"));

  function toggle(square) {
    const before = data.covers[cover], others = before.filter((other) => other !== square);
    if (others.length === 2) return draw("Two squares are covered already: uncover one of them first.");
    const cells = before.includes(square) ? others : [...others, square].sort((a, b) => a - b);
    cover = data.covers.findIndex((other) => other.join() === cells.join());
    draw();
  }

  function drawResult(puzzle, who, covered) {  // the picture as it is covered, and what it is taken for
    const figure = make("figure"), picture = make("span", { className: "grid4 puzzles" }), caption = make("figcaption");
    const [answer, share] = puzzle.answers[covered];
    picture.style.setProperty("--column", place);
    picture.append(...data.covers[covered].map((square) => {
      return make("span", { style: `grid-area: ${Math.floor(square / 4) + 1} / ${square % 4 + 1}; background: ${fill}` });
    }));
    showAnswer(caption, who, [answer, share / 100], puzzle.true);
    figure.append(picture, caption);
    return figure;
  }

  function drawTally() {
    const played = data.puzzles.filter(wasPlayed);
    const count = (who) => played.filter((puzzle) => turns(puzzle, coversOf(puzzle)[who])).length;
    const chance = played.reduce((sum, puzzle) => sum + puzzle.random, 0), ofMap = data.maps ? ` · the map ${count("the map")}` : "";
    part("dots").replaceChildren(...data.puzzles.map((puzzle, i) => {
      const result = turns(puzzle, puzzle.tried) ? "won" : "lost";
      const state = wasPlayed(puzzle) ? result : wasSeen(puzzle) ? "seen" : "";
      return make("i", { className: i === place ? `${state} now` : state });
    }));
    part("dots").ariaLabel = `Mistake ${place + 1} of ${data.puzzles.length}; you played ${played.length}`;
    const possible = `possible ${count("the best")} of ${played.length}`;
    part("tally").textContent = played.length ? `you ${count("you")}${ofMap} · chance ${chance.toFixed(1)} · ${possible}` : "";
    part("end").hidden = !data.puzzles.every(wasSeen);
  }

  function draw(says = part("says").textContent) {
    const puzzle = data.puzzles[place], seen = wasSeen(puzzle), name = (c) => data.classes[c], answer = puzzle.answers[seen ? cover : 0];
    part("picture").style.setProperty("--column", place);
    squares.forEach((button, square) => {
      button.ariaPressed = data.covers[cover].includes(square);
      button.style.background = data.covers[cover].includes(square) ? fill : "";
    });
    part("title").textContent = `In truth ${name(puzzle.true)}. The network says ${name(puzzle.answers[0][0])} (${puzzle.answers[0][1]}\u00a0%).`;
    part("answers").replaceChildren(...[0, 2, 4].filter((k) => k < answer.length).map((k) => {
      const isTrue = answer[k] === puzzle.true, textContent = `${isTrue && !k ? "✓ " : ""}${name(answer[k])} ${answer[k + 1]}\u00a0%`;
      return make("li", { textContent, className: isTrue ? k ? "truth" : "right" : "" });
    }));
    part("says").textContent = says;
    part("commit").textContent = data.covers[cover].length === 1 ? "I cover this one" : "I cover these two";
    part("commit").hidden = part("show").hidden = seen;
    part("more").hidden = random.hidden = !seen;
    part("more").href = `#${new URLSearchParams({ true: name(puzzle.true), open: puzzle.file })}`;
    const results = Object.entries(coversOf(puzzle)).filter(([, covered]) => seen && covered);
    part("results").replaceChildren(...results.map(([who, covered]) => drawResult(puzzle, who, covered)), random);
    random.firstElementChild.textContent = percent(puzzle.random, 0);
    drawTally();
  }

  function reveal(committed) {
    const puzzle = data.puzzles[place], solved = turns(puzzle, committed) ? "Solved: with yours" : "Not turned: with yours";
    puzzle.tried = committed;
    const yours = committed ? `${solved} it says ${data.classes[puzzle.answers[committed][0]]}. ` : "";
    draw(`${yours}${puzzle.best === null ? "No one or two squares turn it. " : ""}Cover on: the list follows.`);
    part("next").focus();
  }

  part("commit").addEventListener("click", () => cover ? reveal(cover) : draw("Choose one or two squares first."));
  part("show").addEventListener("click", () => reveal(0));
  part("next").addEventListener("click", () => {
    place = (place + 1) % data.puzzles.length;
    cover = data.puzzles[place].tried ?? 0;
    draw("");
  });
  draw("");
}
if (find("puzzle")) playPuzzles();

// ---- Class mode: what answers a question is covered until the reader has guessed it by a slider.

function coverAnswer(form, covered) {
  form.hidden = !covered;
  form.nextElementSibling.hidden = covered;
  for (const part of all(`[data-guess='${form.dataset.of}']`)) part.classList.toggle("guessing", covered);
}

for (const form of all("form.guess")) {
  form.addEventListener("input", () => { form.querySelector("output").value = form.guess.value; });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const told = form.nextElementSibling, [yours] = told.children;
    yours.hidden = event.submitter === form.skip;
    yours.textContent = `you said ${form.guess.value}`;
    yours.style.setProperty("--value", form.guess.value);
    coverAnswer(form, false);
    told.focus();
  });
}

function setClassMode() {  // by its addresses; it lasts, whatever else the reader opens
  const isOn = document.body.classList.contains("class-mode");
  if (location.hash !== (isOn ? "#top" : "#class")) return;
  document.body.classList.toggle("class-mode");
  for (const form of all("form.guess")) coverAnswer(form, !isOn);
}
addEventListener("hashchange", setClassMode);
setClassMode();

// ---- Two viewers: the pictures are parts of one sheet, which the style sheet places.

function viewCorruptions() {
  const form = find("corruption-choice"), { answers, true: truths } = data.corruptions, tests = Object.keys(answers);
  const slider = form.elements.severity, table = find("corruption-table");
  function draw() {
    const name = form.elements.name.value, isCue = `${name}/0` in answers, severity = Number(slider.value);
    const test = isCue ? `${name}/0` : severity ? `${name}/${severity}` : "clean/0";
    slider.disabled = isCue;
    form.querySelector("output").textContent = slider.ariaValueText = isCue ? "one strength" : severity || "0, clean";
    all("#corrupted figure").forEach((figure, i) => {
      figure.firstElementChild.style.setProperty("--row", tests.indexOf(test));
      showAnswer(figure.lastElementChild, data.classes[truths[i]], answers[test][i], truths[i]);
    });
    for (const row of all("tr[data-name]", table)) row.classList.toggle("chosen", row.dataset.name === name);
  }
  form.addEventListener("input", draw);
  for (const th of all("tbody th", table)) th.replaceChildren(make("button", { textContent: th.textContent }));
  table.addEventListener("click", (event) => {  // a row sets the pictures, a cell also the slider
    const row = event.target.closest("tr[data-name]"), cell = event.target.closest("td[data-value]");
    if (!row) return;
    form.elements.name.value = row.dataset.name;
    if (cell && cell.cellIndex <= 5) slider.value = cell.cellIndex;  // the last is the mean
    draw();
  });
  for (const body of table.tBodies) moveByArrows(body);
  draw();
}

function viewAttacks() {
  const form = find("attack-choice"), { answers, epsilons, true: truths } = data.attacks;
  function draw() {
    const step = Number(form.elements.step.value), epsilon = epsilons[step];
    form.querySelector("output").textContent = form.elements.step.ariaValueText = `${epsilon}/255`;
    const stored = epsilon < 1 ? "less than one level: no file of 8 bits can hold it" : `${epsilon} of 255 levels`;
    find("attack-says").textContent = `${stored}; the change is enlarged ${100 / epsilon} times`;
    for (const rule of all("[id^=epsilon-rule-]")) rule.classList.toggle("chosen", rule.id === `epsilon-rule-${step}`);
    all(".attacked-row").forEach((row, attack) => all("figure", row).forEach((figure, i) => {
      const first = 1 + 2 * (attack * epsilons.length + step);
      all(".sheet", figure).forEach((sheet, k) => sheet.style.setProperty("--row", first + k));
      showAnswer(figure.lastElementChild, data.classes[truths[i]], answers[row.dataset.attack][epsilon][i], truths[i]);
    }));
  }
  form.addEventListener("input", draw);
  draw();
}

if (data.corruptions) viewCorruptions();
if (data.attacks) viewAttacks();

// ---- Mistakes: their pictures are parts of one sheet, and the rest is JSON. They have superclasses and maps where there are some.

function browseMistakes() {
  const [form, list, more, dialog] = ["filter", "thumbnails", "more", "mistake"].map(find);
  const maps = bytes(data.maps ?? ""), colours = bytes(data.inferno), coveredPixels = bytes(data.covered_pixels ?? "");
  const cells = Math.sqrt(maps.length / data.images.length);  // of a map, in a row
  const columns = Math.ceil(Math.sqrt(data.images.length));  // of the sheet
  const atOnce = innerWidth < 600 ? 9 : 20;
  const choice = () => Object.fromEntries(new FormData(form));
  const buttonAt = (place) => list.querySelectorAll("button")[place];
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog
  let closed = false;  // whether this entry is just being left, as the dialog was closed

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
    select.append(...[...names].sort().map((name) => new Option(name, name)));
  }

  function fits(mistake, filter) {
    const confidence = 100 * mistake.confidence;
    return Object.entries(mistake.names).every(([key, name]) => !filter[key] || name === filter[key])
      && confidence >= Number(filter.from || 0) && confidence <= Number(filter.to || 100);
  }

  function addressOf(filter) {
    const wanted = Object.entries(filter).filter(([, value]) => value);
    return wanted.length ? `#${new URLSearchParams(wanted)}` : "#mistakes";
  }

  function show(filter) {
    chosen = data.images.filter((mistake) => fits(mistake, filter));
    const [count, every] = [chosen, data.images].map((images) => images.length.toLocaleString("en"));
    find("found").textContent = chosen.length ? `${count} of ${every} mistakes` : "No mistake on this page fits this choice.";
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

  function paint(figure, side, colourOf) {  // over the picture, side x side squares
    const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d");
    canvas.width = canvas.height = side;  // this empties it
    for (let i = 0; i < side ** 2; i++) {
      context.fillStyle = colourOf(i);
      context.fillRect(i % side, Math.floor(i / side), 1, 1);
    }
  }

  // The light of a map, which the style sheet lays over the grey picture: as gradcam.overlay.
  function lightOf(mistake, cell, sign) {
    const value = Math.max(0, sign * (maps[mistake.index * cells ** 2 + cell] - 128)) / 127, level = 3 * Math.round(255 * value);
    return `rgb(${colours.subarray(level, level + 3)})`;
  }

  function isCovered(mistake, pixel) {
    const bit = data.side ** 2 * mistake.index + pixel;
    return coveredPixels[bit >> 3] >> (7 - bit % 8) & 1;
  }

  function drawMistake(mistake) {
    const { true: truth, predicted } = mistake.names, figures = all("figure", dialog);
    const captions = [`${truth}, called ${predicted} (${percent(mistake.confidence)})`];
    placePictures(dialog, mistake);
    if (figures.length > 1) {
      const [answer, probability] = mistake.covered;
      captions.push(...[[predicted, truth], [truth, predicted]].map(([a, b]) => `what speaks for ${a} rather than ${b}`));
      captions.push(`the quarter that favours ${predicted} covered: ${data.classes[answer]} (${percent(probability)})`);
      paint(figures[1], cells, (cell) => lightOf(mistake, cell, 1));
      paint(figures[2], cells, (cell) => lightOf(mistake, cell, -1));
      paint(figures[3], data.side, (pixel) => isCovered(mistake, pixel) ? `rgb(${data.fill})` : "transparent");
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
        const said = `${data.classes[c]} ${percent(probability)}`;
        row.insertCell().append(c === mistake.true ? make("b", { textContent: `✓ ${said}` }) : said);
      }
    });
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = [open + 1, chosen.length].map((n) => n.toLocaleString("en")).join(" of ");
    // The way back from a picture leads to the list, not from picture to picture.
    const address = addressOf({ ...choice(), true: names.true, open: mistake.file });
    if (address !== `#${new URLSearchParams(location.hash.slice(1))}`) {
      if (dialog.open) history.replaceState(history.state, "", address);
      else history.pushState("an entry of the dialog", "", address);
    }
    if (!dialog.open) {
      dialog.showModal();
      find("mistake-next").focus();
    }
    dialog.scrollTop = 0;
  }

  function readAddress() {
    if (!location.hash.includes("=")) return false;
    const { open: file, ...filter } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    // Files of two classes may have one name, so a picture is found by class and file, among all mistakes.
    const amongAll = file && Object.keys(filter).join() === "true";
    for (const field of all("[name]", form)) field.value = amongAll ? "" : filter[field.name] ?? "";
    show(choice());
    const wanted = chosen.findIndex((mistake) => mistake.file === file && (!filter.true || mistake.names.true === filter.true));
    if (wanted >= 0) {
      enlarge(wanted);
    } else {
      find("all-mistakes").focus();
      find("all-mistakes").scrollIntoView();
    }
    return true;
  }

  function readForm() {
    history.replaceState(null, "", addressOf(choice()));
    show(choice());
  }

  form.addEventListener("input", readForm);
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
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());  // outside of it
  dialog.addEventListener("close", () => {
    if (location.hash.includes("open=")) {
      closed = Boolean(history.state);
      if (closed) history.back();
      else history.replaceState(null, "", addressOf(choice()));
    }
    // The filter may have changed since, so that there are fewer thumbnails or none.
    while (list.children.length <= open && !more.hidden) showMore();
    buttonAt(open)?.focus({ preventScroll: true });
  });
  addEventListener("hashchange", () => {
    if (!location.hash.includes("open=")) dialog.close();
    if (!closed) readAddress();  // else the list stays as it is, with the focus in it
    closed = false;
  });
  for (const link of all("main a[href*='=']")) {  // the address that the page has already
    link.addEventListener("click", () => { if (link.hash === location.hash) readAddress(); });
  }
  if (!readAddress()) show({});
}
if (data.images.length) browseMistakes();
