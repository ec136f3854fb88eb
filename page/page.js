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

// ---- Navigation marks the section that is read; a button copies the commands above it.

const sections = [...document.querySelectorAll("section h2")];
function markSection() {
  // The last sections may be too short to reach the top: there the one of the address counts.
  const end = innerHeight + scrollY > document.documentElement.scrollHeight - 2, top = (h2) => h2.getBoundingClientRect().top;
  const wanted = sections.find((h2) => `#${h2.id}` === location.hash && top(h2) > 0) ?? sections.at(-1);
  const reached = end ? wanted : sections.filter((h2) => top(h2) < 120).at(-1) ?? sections[0];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${reached.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}
addEventListener("scroll", markSection, { passive: true });
addEventListener("hashchange", markSection);
markSection();
find("sections").addEventListener("click", (event) => {
  if (event.target.closest("a") && find("sections").matches(":popover-open")) find("sections").hidePopover();
});
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
  });
}

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

// ---- Two viewers: the pictures are parts of one sheet, which the style sheet places.

function showAnswer(caption, [answer, probability], truth) {
  const line = make("span", "", answer === truth ? "right" : "wrong"), sign = make("span", answer === truth ? "✓" : "✗");
  sign.ariaHidden = "true";
  line.append(sign, ` ${data.classes[answer]} ${percent(probability, 0)}`);
  caption.replaceChildren(`${data.classes[truth]}: `, line);
}

function viewCorruptions() {
  const form = find("corruption-choice"), { answers, true: truths } = data.corruptions, tests = Object.keys(answers);
  form.addEventListener("input", () => {
    const severity = Number(form.elements.severity.value);
    const test = severity ? `${form.elements.name.value}/${severity}` : "clean/0";
    form.querySelector("output").textContent = form.elements.severity.ariaValueText = severity || "0, clean";
    find("corrupted").querySelectorAll("figure").forEach((figure, i) => {
      figure.firstElementChild.style.setProperty("--row", tests.indexOf(test));
      showAnswer(figure.lastElementChild, answers[test][i], truths[i]);
    });
  });
  form.querySelector("output").textContent = form.elements.severity.value;
}

function viewAttacks() {
  const form = find("attack-choice"), { answers, epsilons, true: truths } = data.attacks;
  function draw() {
    const step = Number(form.elements.step.value);
    form.querySelector("output").textContent = form.elements.step.ariaValueText = `${epsilons[step]}/255`;
    find("attacked").querySelectorAll("figure").forEach((figure, i) => {
      const [, change, attacked] = figure.querySelectorAll(".sheet");
      change.style.setProperty("--row", 1 + 2 * step);
      attacked.style.setProperty("--row", 2 + 2 * step);
      showAnswer(figure.lastElementChild, answers[step][i], truths[i]);
    });
  }
  form.addEventListener("input", draw);
  draw();
}

if (data.corruptions) viewCorruptions();
if (data.attacks) viewAttacks();

// ---- The name of a class shows one of its pictures.

const example = make("span", "", "sheet examples");
example.id = "example";
for (const link of document.querySelectorAll("td a[data-filter]")) {
  const place = data.classes.indexOf(link.textContent);
  if (place < 0) continue;
  for (const event of ["pointerenter", "focus"]) link.addEventListener(event, () => {
    const { left, bottom } = link.getBoundingClientRect();
    example.style.cssText = `left: ${left}px; top: ${bottom + 4}px; --column: ${place % 10}; --row: ${Math.floor(place / 10)}`;
    document.body.append(example);
  });
  for (const event of ["pointerleave", "blur"]) link.addEventListener(event, () => example.remove());
}

// ---- The temperature moves the points of the reliability diagram.

function drawIn(svg, tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const name in attributes) element.setAttribute(name, attributes[name]);
  svg.append(element);
  return element;
}

function moveTemperature() {
  const svg = find("reliability"), slider = find("temperature"), [left, top, right, bottom] = svg.dataset.axes.split(" ").map(Number);
  const points = drawIn(svg, "g", { fill: "var(--orange)" });
  find("reliability-points").style.display = "none";
  function draw() {
    const { temperature, ece, confidence, bins: [x, y, count] } = data.temperatures[Number(slider.value)];
    points.replaceChildren();
    count.forEach((n, i) => {
      const r = 2 + 20 * Math.sqrt(n / data.num_test);  // as plots.point_radius
      if (n) drawIn(points, "circle", { cx: left + x[i] * (right - left), cy: bottom - y[i] * (bottom - top), r });
    });
    slider.ariaValueText = temperature.toFixed(2);
    find("temperature-says").textContent = `${temperature.toFixed(2)}: ECE ${percent(ece)}, mean confidence ${percent(confidence)}`;
  }
  slider.addEventListener("input", draw);
  draw();
}
moveTemperature();

// ---- Mistakes: their pictures are one, and the rest is JSON. It has superclasses and maps where there are some.

const NAMES = ["true", "predicted", "superclass", "predicted_superclass"];
const KEYS = [...NAMES, "from", "to", "runs", "kind", "word"];  // of a filter; "open" in the address is the file of a picture
const AT_ONCE = innerWidth < 600 ? 24 : 60;  // pictures
const sprite = find("wrong-images"), nearest = find("nearest-images");

drawMatrix();
for (const link of document.querySelectorAll("a[data-filter]")) {
  link.href = "#" + link.dataset.filter;
  link.addEventListener("click", () => { if (link.hash === location.hash) goTo(link.hash); });
}
if (sprite) Promise.all([sprite, nearest].map((image) => image?.decode())).then(browseMistakes);

// To go to the address that the page has already changes nothing, so the event is sent by hand.
function goTo(address) {
  if (location.hash === address) dispatchEvent(new Event("hashchange"));
  else location.hash = address;
}

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

// Draws picture `index` of a sheet of 32x32 pixels each.
function drawPicture(canvas, sheet, index) {
  const context = canvas.getContext("2d", { willReadFrequently: true }), columns = sheet.naturalWidth / 32;
  const [x, y] = [index % columns, Math.floor(index / columns)];
  context.imageSmoothingEnabled = false;
  context.drawImage(sheet, 32 * x, 32 * y, 32, 32, 0, 0, canvas.width, canvas.height);
}

// Changes the pixels of a canvas: change(pixel, x, y), each from 0 to 31, returns red, green and blue.
function repaint(canvas, change) {
  const side = canvas.width, context = canvas.getContext("2d"), pixels = context.getImageData(0, 0, side, side);
  for (let i = 0; i < side; i++) {
    for (let j = 0; j < side; j++) {
      const pixel = pixels.data.subarray(4 * (i * side + j), 4 * (i * side + j) + 3);
      pixel.set(change(pixel, Math.floor(32 * j / side), Math.floor(32 * i / side)));
    }
  }
  context.putImageData(pixels, 0, 0);
}

// A grid of pictures is one stop of the tabulator; the arrow keys move inside.
function moveByArrows(grid) {
  grid.addEventListener("keydown", (event) => {
    const items = [...grid.children], place = items.indexOf(document.activeElement);
    const columns = items.filter((item) => item.offsetTop === items[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!step || !items[place + step]) return;
    event.preventDefault();
    items[place + step].focus();
  });
  grid.addEventListener("focusin", (event) => {
    for (const item of grid.children) item.tabIndex = item === event.target ? 0 : -1;
  });
}

function browseMistakes() {
  const [form, list, found, more, dialog] = ["filter", "thumbnails", "found", "more", "mistake"].map(find);
  const maps = bytes(data.maps ?? ""), colours = bytes(data.inferno), coveredPixels = bytes(data.covered_pixels ?? "");
  const cells = Math.sqrt(maps.length / data.images.length / 2);  // of a map, in a row
  const keys = KEYS.filter((key) => form.elements[key]);  // without superclasses some are missing
  let chosen = [];  // the mistakes that fit the filter
  let open = 0;  // the one of them in the dialog
  let pushed = false;  // whether the dialog has an entry of its own in the history
  let closed = false;  // whether this entry is just being left, as the dialog was closed

  data.images.forEach((mistake, index) => { mistake.index = index; });
  for (const key of NAMES.filter((key) => form.elements[key])) {
    const names = key.includes("superclass") ? data.superclasses : data.classes;
    form.elements[key].append(...[...names].sort().map((name) => new Option(name, name)));
  }
  form.elements.runs.parentElement.hidden = data.runs.length < 2;
  form.elements.kind.append(...data.kinds.map((name) => new Option(name, name)));

  function answersOfRuns(mistake) {
    const [own, ...others] = mistake.answers.map(([[c]]) => c);
    if (others.includes(mistake.true)) return "right";
    return others.every((c) => c === own) ? "same" : "wrong";
  }

  function fits(mistake, filter) {
    const names = namesOf(mistake), confidence = 100 * mistake.confidence;
    return NAMES.every((key) => !filter[key] || names[key] === filter[key])
      && confidence >= Number(filter.from || 0) && confidence <= Number(filter.to || 100)
      && (!filter.kind || data.kinds[mistake.kind] === filter.kind)
      && (!filter.word || mistake.file.startsWith(`${filter.word}_s_`))
      && (!filter.runs || answersOfRuns(mistake) === filter.runs || filter.runs === "wrong" && answersOfRuns(mistake) === "same");
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
    list.append(...chosen.slice(from, from + AT_ONCE).map((mistake) => thumbnail(mistake, () => enlarge(chosen.indexOf(mistake)))));
    if (from === 0 && list.firstElementChild) list.firstElementChild.tabIndex = 0;
    more.hidden = list.children.length === chosen.length;
  }

  function thumbnail(mistake, lead) {
    const names = namesOf(mistake), button = make("button", "", "thumb"), picture = make("canvas");
    picture.width = picture.height = 32;
    drawPicture(picture, sprite, mistake.index);
    button.append(picture, make("b", `${names.predicted} ${percent(mistake.confidence)}`), " ", make("span", `in truth ${names.true}`));
    button.tabIndex = -1;
    button.addEventListener("click", lead);
    return button;
  }

  // Shows the picture, one of the two maps, or the picture with the top quarter of the first map covered.
  function view() {
    const mistake = chosen[open], names = namesOf(mistake), canvas = find("mistake-picture");
    const kind = document.querySelector("#views input:checked").value;
    const map = maps.subarray((2 * mistake.index + (kind === "against")) * cells ** 2);
    drawPicture(canvas, sprite, mistake.index);
    let says = `${names.true}, called ${names.predicted} (${percent(mistake.confidence)})`;
    if (kind === "for" || kind === "against") {
      repaint(canvas, ([red, green, blue], x, y) => {  // as gradcam.overlay
        const dark = 0.35 * (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
        const level = 3 * map[Math.floor(cells * y / 32) * cells + Math.floor(cells * x / 32)];
        return [...colours.subarray(level, level + 3)].map((colour) => 255 * dark + (1 - dark) * colour);
      });
      says = `${cells}x${cells} cells; both maps have one scale`;
    }
    if (kind === "covered") {
      const start = 1024 * mistake.index, [answer, probability] = mistake.covered;
      repaint(canvas, (pixel, x, y) => {
        const bit = start + 32 * y + x;
        return coveredPixels[bit >> 3] >> (7 - bit % 8) & 1 ? data.mean : pixel;
      });
      says = `called ${data.classes[answer]} (${percent(probability)}); the map was enlarged smoothly`;
    }
    canvas.ariaLabel = find("mistake-says").textContent = says;
  }

  function enlarge(index) {
    open = (index + chosen.length) % chosen.length;
    const mistake = chosen[open], names = namesOf(mistake);
    find("mistake-title").textContent = `${names.true}, taken for ${names.predicted}`;
    if (data.maps) {
      find("view-for").textContent = `for ${names.predicted} rather than ${names.true}`;
      find("view-against").textContent = `for ${names.true} rather than ${names.predicted}`;
      find("view-covered").textContent = `the quarter most for ${names.predicted} covered`;
    }
    view();
    if (nearest) ["predicted", "true"].forEach((key, k) => {
      const canvas = find(`nearest-${key}`), similarity = mistake.similarity[k];
      canvas.parentElement.hidden = !similarity;
      drawPicture(canvas, nearest, 2 * mistake.index + k);
      canvas.ariaLabel = canvas.nextElementSibling.textContent = `nearest of ${data.searched.toLocaleString("en")} training images, of ${names[key]}: similarity ${similarity.toFixed(2)}`;
    });
    find("mistake-runs").replaceChildren(...mistake.answers.map((answers, run) => {
      const row = make("tr"), name = make("th", data.runs[run]);
      name.scope = "row";
      row.append(name, ...answers.slice(0, -1).map(([c, probability]) => {
        const cell = make("td", `${data.classes[c]} ${percent(probability)}`);
        if (c === mistake.true) cell.replaceChildren(make("b", `✓ ${cell.textContent}`));
        return cell;
      }));
      return row;
    }));
    const notes = [`Kind: ${data.kinds[mistake.kind]}.`], own = mistake.answers[0];
    if (!own.slice(0, -1).some(([c]) => c === mistake.true)) notes.unshift(`This network gives ${names.true} ${percent(own.at(-1))}.`);
    if (mistake.copied >= 0) notes.push(`In the training set these pixels are labelled ${data.classes[mistake.copied]}.`);
    find("mistake-notes").textContent = notes.join(" ");
    find("mistake-file").textContent = mistake.file;
    find("mistake-place").textContent = [open + 1, chosen.length].map((n) => n.toLocaleString("en")).join(" of ");
    // The way back from a picture leads to the list, not from picture to picture.
    const address = addressOf({ ...choice(), open: mistake.file });
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
    for (const key of keys) form.elements[key].value = address[key] ?? "";
    show(address);
    const wanted = chosen.findIndex((mistake) => mistake.file === address.open);
    if (wanted >= 0) {
      enlarge(wanted);
    } else {
      find("mistakes").focus();
      find("mistakes").scrollIntoView();
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
  document.querySelector("nav a[href='#mistakes']").addEventListener("click", () => { form.reset(); });
  more.addEventListener("click", () => {
    const next = list.children.length;
    showMore();
    list.children[next].focus();
  });
  moveByArrows(list);
  find("views").addEventListener("input", view);
  find("mistake-previous").addEventListener("click", () => enlarge(open - 1));
  find("mistake-next").addEventListener("click", () => enlarge(open + 1));
  find("mistake-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "radio") return;  // there the arrow keys choose
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
    list.children[open]?.focus({ preventScroll: true });
  });
  addEventListener("hashchange", () => {
    if (closed) {  // the list stays as it is, with the focus in it
      closed = false;
      return;
    }
    if (!location.hash.includes("open=")) dialog.close();
    if (!location.hash || location.hash === "#mistakes") show(choice());
    else readAddress();
  });
  if (!readAddress()) show({});
  chooseRange(thumbnail);
}

// ---- Two ends of a slider choose a range of confidence.

function chooseRange(thumbnail) {
  const [from, to, says, list, link] = ["range-from", "range-to", "range-says", "range-thumbnails", "range-link"].map(find);
  const svg = find("histogram"), [left, top, right, bottom] = svg.dataset.axes.split(" ").map(Number);
  const shade = drawIn(svg, "rect", { y: top, height: bottom - top, fill: "var(--ink)", opacity: 0.12 });
  from.parentElement.style.marginLeft = `${left - 12}px`;  // the middle of a thumb stands at its value
  from.parentElement.style.width = `${right - left + 24}px`;
  function draw(event) {
    if (Number(from.value) > Number(to.value)) (event?.target === from ? from : to).value = event?.target === from ? to.value : from.value;
    const [low, high] = [Number(from.value), Number(to.value)], sum = (counts) => counts.slice(low, high).reduce((a, b) => a + b, 0);
    const [good, wrong] = data.confidence_counts.map(sum), answers = good + wrong;
    shade.setAttribute("x", left + low / 100 * (right - left));
    shade.setAttribute("width", (high - low) / 100 * (right - left));
    says.textContent = `${low} to ${high} %: ${answers.toLocaleString("en")} answers, coverage ${percent(answers / data.num_test)}; `
      + `${wrong.toLocaleString("en")} wrong, risk ${answers ? percent(wrong / answers) : "none"}`;
    link.href = `#from=${low}&to=${high}`;
    const fitting = data.images.filter((mistake) => 100 * mistake.confidence >= low && 100 * mistake.confidence <= high).slice(0, 6);
    list.replaceChildren(...fitting.map((mistake) => thumbnail(mistake, () => goTo(`#from=${low}&to=${high}&open=${encodeURIComponent(mistake.file)}`))));
    if (list.firstElementChild) list.firstElementChild.tabIndex = 0;
    else list.textContent = "none on this page";
  }
  moveByArrows(list);
  for (const end of [from, to]) end.addEventListener("input", draw);
  draw();
}

// ---- The confusion matrix, drawn from its counts: a cell says what it counts and leads to its mistakes.

function drawMatrix() {
  const [form, canvas, mark, says] = ["matrix-choice", "matrix-cells", "matrix-mark", "matrix-says"].map(find);
  const colours = bytes(data.inferno), colour = (level) => `rgb(${colours.subarray(3 * level, 3 * level + 3)})`;
  let coarse, names, groups, counts, totals, touched, [i, j] = [0, 0];

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
    const sum = (values) => values.reduce((a, b) => a + b);
    totals = { row: counts.map(sum), column: names.map((_, x) => sum(counts.map((row) => row[x]))) };
    const shares = counts.map((row, y) => row.map((count, x) => {
      if (x === y && form.elements.diagonal.checked) return 0;
      return share === "count" ? count : count / ({ row: totals.row[y], column: totals.column[x] }[share] || 1);
    }));
    const largest = Math.max(...shares.flat()) || 1;
    const few = names.length <= 20, side = few ? 80 : 20, context = canvas.getContext("2d");  // numbers need room
    canvas.width = canvas.height = side * names.length;
    find("matrix").style.setProperty("--count", names.length);
    for (const id of ["matrix-rows", "matrix-columns"]) {
      find(id).replaceChildren(...names.map((name) => make("li", name)));
    }
    const stops = [...Array(17).keys()].map((k) => `${colour(Math.round(255 * Math.sqrt(k / 16)))} ${100 * k / 16}%`);
    find("matrix-scale").style.background = `linear-gradient(90deg, ${stops})`;
    find("matrix-largest").textContent = share === "count" ? largest : percent(largest, 0);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = "28px system-ui, sans-serif";
    context.lineWidth = 2;
    shares.forEach((row, y) => row.forEach((value, x) => {
      const level = Math.round(255 * Math.sqrt(value / largest));  // with the root small shares show as well
      context.fillStyle = colour(level);
      context.fillRect(side * x, side * y, side, side);
      context.fillStyle = level > 150 ? "black" : "white";
      const number = share === "count" ? value : Math.round(100 * value);
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
  canvas.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") point(event); });
  canvas.addEventListener("click", (event) => {
    const before = `${i} ${j}`;
    point(event);
    // On touch the first tap reads a cell and the second goes to its mistakes.
    if (event.pointerType !== "touch" || touched === `${i} ${j}` && before === touched) lead();
    touched = `${i} ${j}`;
  });
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
