// What this script adds is convenience: without it the page is complete, only not interactive.
// Names of classes and files become text (textContent), never HTML.
"use strict";
const find = (id) => document.getElementById(id);
const make = (tag, text = "", className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
const data = JSON.parse(find("page-data").textContent);
for (const element of document.querySelectorAll(".script[hidden]")) element.hidden = false;

function percent(share, digits = 1) {
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// ---- Navigation marks the section that is read.

const sections = [...document.querySelectorAll("section h2")];
function markSection() {
  const end = innerHeight + scrollY > document.documentElement.scrollHeight - 2;
  const reached = end ? sections.at(-1) : sections.filter((h2) => h2.getBoundingClientRect().top < 120).at(-1);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${reached?.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", markSection, { passive: true });
markSection();
find("sections").addEventListener("click", (event) => {
  if (event.target.closest("a") && find("sections").matches(":popover-open")) find("sections").hidePopover();
});
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details:not(.code)")) part.open = true; });

// ---- Tables: a click on a heading sorts. A grid of links or pictures is one stop of the tabulator.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = make("button");
    button.append(...th.childNodes);
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
for (const button of document.querySelectorAll("button.all-rows")) {  // the first ten are there, then all
  const table = button.closest(".classes").querySelector("table");
  button.addEventListener("click", () => {
    table.classList.remove("short");
    table.rows[11].querySelector("a").focus();
    button.hidden = true;
  });
}

function moveByArrows(grid, choose = "button, a") {
  const items = () => [...grid.querySelectorAll(choose)].filter((item) => item.offsetParent);
  grid.addEventListener("keydown", (event) => {
    const all = items(), place = all.indexOf(document.activeElement);
    const columns = all.filter((item) => item.offsetTop === all[0].offsetTop && item.offsetParent === all[0].offsetParent).length || 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step || place < 0 || !all[place + step]) return;
    event.preventDefault();
    all[place + step].focus();
  });
  grid.addEventListener("focusin", (event) => {
    for (const item of grid.querySelectorAll(choose)) item.tabIndex = item === event.target ? 0 : -1;
  });
  grid.querySelectorAll(choose).forEach((item, place) => { item.tabIndex = place ? -1 : 0; });
}
for (const body of document.querySelectorAll(".classes tbody")) moveByArrows(body);

// ---- The game: all 137 ways to cover one or two of 16 squares, and the answers to them, are in the data.

function playPuzzles() {
  const part = (name) => find(`puzzle-${name}`), grid = part("picture"), fill = `rgb(${data.fill})`;
  const tries = data.puzzles.map(() => null);  // of each: what the reader covered; [] for "Show me", null before
  let place = 0, hidden = [];
  part("static").hidden = true;
  const squares = Array.from({ length: 16 }, (_, square) => {
    const button = make("button");
    button.type = "button";
    button.ariaLabel = `row ${Math.floor(square / 4) + 1}, column ${square % 4 + 1}`;
    button.addEventListener("click", () => cover(square));
    grid.append(button);
    return button;
  });
  moveByArrows(grid);

  function cover(square) {
    if (hidden.includes(square)) hidden = hidden.filter((other) => other !== square);
    else if (hidden.length < 2) hidden = [...hidden, square];
    else return draw("Two squares are covered already: uncover one of them first.");
    draw();
  }

  function answersTo(puzzle, cells) {
    const key = [...cells].sort((a, b) => a - b).join();
    return puzzle.answers[data.covers.findIndex((cover) => cover.join() === key)];
  }

  function turns(puzzle, cells) {
    return answersTo(puzzle, cells)[0] === puzzle.true;
  }

  function drawResult(who, cells) {  // the picture as it was covered, and what it is taken for
    const puzzle = data.puzzles[place], [c, p] = answersTo(puzzle, cells), figure = make("figure"), caption = make("figcaption", `${who}: `);
    const picture = make("span", "", "grid4 puzzles"), right = c === puzzle.true;
    picture.style.setProperty("--column", place);
    for (const square of squares.keys()) picture.append(make("span"));
    for (const square of cells) picture.children[square].style.background = fill;
    caption.append(make("span", `${right ? "✓" : "✗"} ${data.classes[c]} ${p}\u00a0%`, right ? "right" : "wrong"));
    figure.append(picture, caption);
    return figure;
  }

  function drawResults() {
    const puzzle = data.puzzles[place], tried = tries[place], random = make("figure");
    part("results").replaceChildren();
    if (!tried) return;
    random.append(make("span", percent(puzzle.random, 0), "tile"), make("figcaption", "of all pairs turn it: a random one"));
    if (tried.length) part("results").append(drawResult("you", tried));
    if (puzzle.by_map !== null) part("results").append(drawResult("the map", data.covers[puzzle.by_map]));
    if (puzzle.best !== null) part("results").append(drawResult("the best", data.covers[puzzle.best]));
    part("results").append(random);
  }

  function drawTally() {
    let [played, you, map, chance, possible] = [0, 0, 0, 0, 0];
    part("dots").replaceChildren(...tries.map((tried, i) => {
      const puzzle = data.puzzles[i], dot = make("i", "", tried ? "seen" : "");
      if (tried?.length) {
        played += 1;
        you += turns(puzzle, tried);
        map += puzzle.by_map !== null && turns(puzzle, data.covers[puzzle.by_map]);
        chance += puzzle.random;
        possible += puzzle.best !== null;
        dot.className = turns(puzzle, tried) ? "won" : "lost";
      }
      dot.classList.toggle("now", i === place);
      return dot;
    }));
    part("dots").ariaLabel = `Mistake ${place + 1} of ${tries.length}; you played ${played}`;
    const ofMap = data.puzzles[0].by_map === null ? "" : ` · the map ${map}`;
    part("tally").textContent = played ? `you ${you}${ofMap} · chance ${chance.toFixed(1)} · possible ${possible} of ${played}` : "";
    part("end").hidden = tries.includes(null);
  }

  function draw(says = part("says").textContent) {
    const puzzle = data.puzzles[place], tried = tries[place], name = (c) => data.classes[c], answer = answersTo(puzzle, tried ? hidden : []);
    grid.style.setProperty("--column", place);
    squares.forEach((button, square) => {
      button.ariaPressed = hidden.includes(square);
      button.style.background = hidden.includes(square) ? fill : "";
    });
    part("title").textContent = `In truth ${name(puzzle.true)}. The network says ${name(puzzle.answers[0][0])} (${puzzle.answers[0][1]}\u00a0%).`;
    part("answers").replaceChildren(...[0, 2, 4].filter((k) => k < answer.length).map((k) => {
      const isTrue = answer[k] === puzzle.true;
      return make("li", `${isTrue && !k ? "✓ " : ""}${name(answer[k])} ${answer[k + 1]}\u00a0%`, isTrue ? k ? "truth" : "right" : "");
    }));
    part("says").textContent = says;
    part("commit").textContent = hidden.length === 1 ? "I cover this one" : "I cover these two";
    part("commit").hidden = part("show").hidden = Boolean(tried);
    part("more").hidden = !tried;
    part("more").href = `#${new URLSearchParams({ true: name(puzzle.true), open: puzzle.file })}`;
    drawResults();
    drawTally();
  }

  function reveal(cells) {
    const puzzle = data.puzzles[place], solved = turns(puzzle, cells) ? "Solved: with yours" : "Not turned: with yours";
    tries[place] = cells;
    const yours = cells.length ? `${solved} it says ${data.classes[answersTo(puzzle, cells)[0]]}. ` : "";
    draw(`${yours}${puzzle.best === null ? "No one or two squares turn it. " : ""}Cover on: the list follows.`);
    part("next").focus();
  }

  part("commit").addEventListener("click", () => { if (hidden.length) reveal(hidden); else draw("Choose one or two squares first."); });
  part("show").addEventListener("click", () => reveal([]));
  part("next").addEventListener("click", () => {
    place = (place + 1) % tries.length;
    hidden = tries[place] ?? [];
    draw("");
  });
  draw("");
}
if (find("puzzle")) playPuzzles();

// ---- Class mode: what answers a question is covered until the reader has guessed it by a slider.

const guesses = document.querySelectorAll("form.guess");

function coverAnswer(form, covered) {
  form.hidden = !covered;
  for (const part of document.querySelectorAll(`[data-guess='${form.dataset.of}']`)) part.classList.toggle("guessing", covered);
}

function tellAnswer(form, guess) {
  const { truth, then } = form.dataset, rows = form.nextElementSibling;
  rows.replaceChildren(...[["you said", guess], ["it is", truth]].filter(([, value]) => value).map(([who, value]) => make("b", `${who} ${value}`)), then);
  for (const row of rows.children) row.style.setProperty("--value", row.textContent.split(" ").at(-1));
  coverAnswer(form, false);
  rows.hidden = false;
  rows.focus();
}

for (const form of guesses) {
  form.guess.addEventListener("input", () => { form.querySelector("output").textContent = form.guess.value; });
  form.skip.addEventListener("click", () => tellAnswer(form, ""));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    tellAnswer(form, form.guess.value);
  });
}

function setClassMode(on) {
  document.body.classList.toggle("class-mode", on);
  for (const form of guesses) coverAnswer(form, on);
  scrollTo(0, 0);
}
function beginClassMode() {  // it lasts, whatever the reader opens
  if (location.hash === "#class" && !document.body.classList.contains("class-mode")) setClassMode(true);
}
find("class-end").addEventListener("click", () => {
  history.replaceState(null, "", location.pathname);
  setClassMode(false);
});
addEventListener("hashchange", beginClassMode);
beginClassMode();

// ---- Two buttons choose the temperature: the style sheet shows what belongs to it.

find("temperatures")?.addEventListener("click", (event) => {
  const chosen = event.target.value;
  if (!chosen) return;
  document.body.classList.toggle("at-temperature", chosen === "with_temperature");
  for (const button of find("temperatures").children) button.ariaPressed = button.value === chosen;
});

// ---- Two viewers: the pictures are parts of one sheet, which the style sheet places.

function showAnswer(caption, [answer, probability], truth) {
  const right = answer === truth, line = make("span", `${right ? "✓" : "✗"} ${data.classes[answer]} ${percent(probability, 0)}`, right ? "right" : "wrong");
  caption.replaceChildren(`${data.classes[truth]}: `, line);
}

function viewCorruptions() {
  const form = find("corruption-choice"), { answers, true: truths } = data.corruptions, tests = Object.keys(answers);
  const slider = form.elements.severity, table = find("corruption-table");
  function draw() {
    const name = form.elements.name.value, isCue = `${name}/0` in answers;
    const test = isCue ? `${name}/0` : Number(slider.value) ? `${name}/${slider.value}` : "clean/0";
    slider.disabled = isCue;
    form.querySelector("output").textContent = slider.ariaValueText = isCue ? "one strength" : Number(slider.value) ? slider.value : "0, clean";
    find("corrupted").querySelectorAll("figure").forEach((figure, i) => {
      figure.firstElementChild.style.setProperty("--row", tests.indexOf(test));
      showAnswer(figure.lastElementChild, answers[test][i], truths[i]);
    });
    for (const row of table.querySelectorAll("tr[data-name]")) row.classList.toggle("chosen", row.dataset.name === name);
  }
  form.addEventListener("input", draw);
  for (const th of table.querySelectorAll("tbody th")) {  // a row sets the pictures, a cell also the slider
    const button = make("button", th.textContent);
    th.replaceChildren(button);
  }
  table.addEventListener("click", (event) => {
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
    const step = Number(form.elements.step.value);
    form.querySelector("output").textContent = form.elements.step.ariaValueText = `${epsilons[step]}/255`;
    const stored = epsilons[step] < 1 ? "less than one level: no file of 8 bits can hold it" : `${epsilons[step]} of 255 levels`;
    find("attack-says").textContent = `${stored}; the change is enlarged ${100 / epsilons[step]} times`;
    document.querySelectorAll("[id^=epsilon-rule-]").forEach((rule) => rule.classList.toggle("chosen", rule.id === `epsilon-rule-${step}`));
    document.querySelectorAll(".attacked-row").forEach((row, attack) => {
      row.querySelectorAll("figure").forEach((figure, i) => {
        const first = 1 + 2 * (attack * epsilons.length + step);
        figure.querySelectorAll(".sheet").forEach((sheet, k) => sheet.style.setProperty("--row", first + k));
        showAnswer(figure.lastElementChild, answers[row.dataset.attack][epsilons[step]][i], truths[i]);
      });
    });
  }
  form.addEventListener("input", draw);
  draw();
}

if (data.corruptions) viewCorruptions();
if (data.attacks) viewAttacks();

// ---- Mistakes: their pictures are one, and the rest is JSON. It has superclasses and maps where there are some.

const NAMES = ["true", "predicted", "superclass", "predicted_superclass"];
const KEYS = [...NAMES, "from", "to", "kind"];  // of a filter; "open" in the address is the file of a picture
const AT_ONCE = innerWidth < 600 ? 9 : 20;
const sprite = find("mistake-images");  // without it the mistakes are a table
if (sprite) sprite.decode().then(browseMistakes);
else if (data.images.length) browseMistakes();

// The names by which a filter finds a mistake.
function namesOf(mistake) {
  const [truth, predicted] = [mistake.true, mistake.answers[0][0][0]];
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

// Draws a mistake's picture, n pixels wide in the sheet; change(pixel, x, y), with x and y below n, may give each pixel another colour.
function drawPicture(canvas, index, change = null) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), side = canvas.width, n = data.side;
  const columns = sprite.naturalWidth / n;
  context.imageSmoothingEnabled = false;
  context.drawImage(sprite, n * (index % columns), n * Math.floor(index / columns), n, n, 0, 0, side, side);
  if (!change) return;
  const pixels = context.getImageData(0, 0, side, side);
  for (let i = 0; i < side * side; i++) {
    const pixel = pixels.data.subarray(4 * i, 4 * i + 3);
    pixel.set(change(pixel, Math.floor(n * (i % side) / side), Math.floor(n * Math.floor(i / side) / side)));
  }
  context.putImageData(pixels, 0, 0);
}

function browseMistakes() {
  const [form, list, found, more, dialog] = ["filter", "thumbnails", "found", "more", "mistake"].map(find);
  const maps = bytes(data.maps ?? ""), colours = bytes(data.inferno), coveredPixels = bytes(data.covered_pixels ?? "");
  const cells = Math.sqrt(maps.length / data.images.length);  // of a map, in a row
  const keys = KEYS.filter((key) => form.elements[key]);  // without superclasses some are missing
  const kindName = (mistake) => form.elements.kind.options[mistake.kind + 1].text;
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog
  let pushed = false;  // whether the dialog has an entry of its own in the history
  let closed = false;  // whether this entry is just being left, as the dialog was closed

  data.images.forEach((mistake, index) => { mistake.index = index; });
  for (const key of NAMES.filter((key) => form.elements[key])) {
    const names = key.includes("superclass") ? data.superclasses : data.classes;
    form.elements[key].append(...[...names].sort().map((name) => new Option(name, name)));
  }

  function fits(mistake, filter) {
    const names = namesOf(mistake), confidence = 100 * mistake.confidence;
    return NAMES.every((key) => !filter[key] || names[key] === filter[key])
      && confidence >= Number(filter.from || 0) && confidence <= Number(filter.to || 100)
      && (!filter.kind || data.kinds[mistake.kind] === filter.kind);
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
    list.append(...chosen.slice(from, from + AT_ONCE).map(sprite ? thumbnail : tableRow));
    if (from === 0 && chosen.length) buttonAt(0).tabIndex = 0;
    more.hidden = list.children.length === chosen.length;
  }

  function buttonAt(place) {
    return list.querySelectorAll("button")[place];
  }

  function tableRow(mistake) {
    const names = namesOf(mistake), row = make("tr"), cell = make("td"), button = make("button", names.predicted);
    button.tabIndex = -1;
    button.addEventListener("click", () => enlarge(chosen.indexOf(mistake)));
    cell.append(button);
    row.append(cell, make("td", percent(mistake.confidence), "number"), make("td", names.true), make("td", percent(mistake.truth), "number"));
    row.append(make("td", mistake.file));
    return row;
  }

  function thumbnail(mistake) {
    const names = namesOf(mistake), button = make("button", "", "thumb"), picture = make("canvas");
    picture.width = picture.height = data.side;
    drawPicture(picture, mistake.index);
    button.append(picture, make("b", `${names.predicted} ${percent(mistake.confidence)}`), " ", make("span", `in truth ${names.true}`));
    button.tabIndex = -1;
    button.addEventListener("click", () => enlarge(chosen.indexOf(mistake)));
    return button;
  }

  // The light of a map, which the style sheet lays over the grey picture: as gradcam.overlay.
  function drawMap(canvas, mistake, sign) {
    const cell = canvas.width / cells, context = canvas.getContext("2d");
    for (let i = 0; i < cells ** 2; i++) {
      const value = Math.max(0, sign * (maps[mistake.index * cells ** 2 + i] - 128)) / 127, level = 3 * Math.round(255 * value);
      context.fillStyle = `rgb(${colours.subarray(level, level + 3)})`;
      context.fillRect(cell * (i % cells), cell * Math.floor(i / cells), cell, cell);
    }
  }

  function caption(id, text) {
    find(id).ariaLabel = find(id).closest("figure").querySelector("figcaption").textContent = text;
  }

  function drawMistake(mistake, names) {
    if (!sprite) return;
    drawPicture(find("mistake-picture"), mistake.index);
    caption("mistake-picture", `${names.true}, called ${names.predicted} (${percent(mistake.confidence)})`);
    if (!data.maps) return;
    for (const [id, sign, speaksFor, against] of [["mistake-for", 1, names.predicted, names.true], ["mistake-against", -1, names.true, names.predicted]]) {
      drawMap(find(id), mistake, sign);
      find(id).parentElement.style.backgroundImage = `url(${find("mistake-picture").toDataURL()})`;
      caption(id, `what speaks for ${speaksFor} rather than ${against}`);
    }
    const start = data.side ** 2 * mistake.index, [answer, probability] = mistake.covered;
    drawPicture(find("mistake-covered"), mistake.index, (pixel, x, y) => {
      const bit = start + data.side * y + x;
      return coveredPixels[bit >> 3] >> (7 - bit % 8) & 1 ? data.fill : pixel;
    });
    caption("mistake-covered", `the quarter that favours ${names.predicted} covered: ${data.classes[answer]} (${percent(probability)})`);
  }

  // In words: what it is taken for, where the truth stands, what other runs say, and what covering does.
  function followThrough(mistake, names) {
    const [, ...others] = mistake.answers.map(([[c]]) => c), place = mistake.rank === 2 ? "second" : `number ${mistake.rank}`;
    const said = [`It is taken for ${names.predicted} with ${percent(mistake.confidence)}; ${names.true} is ${place}, with ${percent(mistake.truth)}.`];
    others.forEach((c, i) => {
      const also = c === mistake.answers[0][0][0] ? "also " : "", right = c === mistake.true ? ", which is right" : "";
      said.push(`For ${data.runs[i + 1]} it is ${also}${data.classes[c]}${right}.`);
    });
    if (mistake.covered) {
      const [c, p] = mistake.covered, still = c === mistake.answers[0][0][0] ? "still " : "";
      said.push(`With the quarter covered that favours ${names.predicted}, it ${still}says ${data.classes[c]} with ${percent(p)}.`);
    }
    return [...said, `Kind: ${kindName(mistake)}.`];
  }

  function enlarge(index) {
    open = (index + chosen.length) % chosen.length;
    const mistake = chosen[open], names = namesOf(mistake);
    find("mistake-title").textContent = `${names.true}, taken for ${names.predicted}`;
    drawMistake(mistake, names);
    find("mistake-runs").replaceChildren(...mistake.answers.map((answers, run) => {
      const row = make("tr"), name = make("th", data.runs[run]);
      name.scope = "row";
      row.append(name, ...answers.map(([c, probability]) => {
        const cell = make("td", `${data.classes[c]} ${percent(probability)}`);
        if (c === mistake.true) cell.replaceChildren(make("b", `✓ ${cell.textContent}`));
        return cell;
      }));
      return row;
    }));
    const notes = followThrough(mistake, names);
    if (mistake.copied >= 0) notes.push(`In the training set these pixels are labelled ${data.classes[mistake.copied]}.`);
    find("mistake-notes").textContent = notes.join(" ");
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = [open + 1, chosen.length].map((n) => n.toLocaleString("en")).join(" of ");
    // The way back from a picture leads to the list, not from picture to picture.
    const address = addressOf({ ...choice(), true: names.true, open: mistake.file });
    if (address !== `#${new URLSearchParams(location.hash.slice(1))}`) {
      history[dialog.open ? "replaceState" : "pushState"](null, "", address);
      pushed ||= !dialog.open;
    }
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
    const { open: file, ...filter } = address;
    // Files of two classes may have one name, so a picture is found by class and file, among all mistakes.
    if (file && Object.keys(filter).join() === "true") form.reset();
    else for (const key of keys) form.elements[key].value = filter[key] ?? "";
    show(choice());
    const wanted = chosen.findIndex((mistake) => mistake.file === file && (!filter.true || namesOf(mistake).true === filter.true));
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
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(readForm));  // the fields are empty only after this event
  more.addEventListener("click", () => {
    const next = list.children.length;
    showMore();
    buttonAt(next).focus();
  });
  moveByArrows(list);
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
    if (location.hash.includes("open=")) {
      closed = pushed;
      if (pushed) history.back();
      else history.replaceState(null, "", addressOf(choice()));
    }
    pushed = false;
    // The filter may have changed since, so that there are fewer thumbnails or none.
    while (list.children.length <= open && !more.hidden) showMore();
    buttonAt(open)?.focus({ preventScroll: true });
  });
  addEventListener("hashchange", () => {
    if (closed) {  // the list stays as it is, with the focus in it
      closed = false;
      return;
    }
    if (!location.hash.includes("open=")) dialog.close();
    readAddress();
  });
  for (const link of document.querySelectorAll("main a[href*='=']")) {  // the address that the page has already
    link.addEventListener("click", () => { if (link.hash === location.hash) readAddress(); });
  }
  if (!readAddress()) show({});
}
