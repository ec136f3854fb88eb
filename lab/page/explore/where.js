// ---- Which pictures: a property is chosen, and its numbers come when a row is guessed. Those of the first, of which the
// heading speaks, are seen at once.

function chooseProperty() {
  const buttons = all("button", find("property-choice")), parts = all(".property"), seen = recall("properties") ?? { 0: null };

  function show(chosen) {
    parts.forEach((part, k) => { part.hidden = k !== chosen; });
    buttons.forEach((button, k) => { button.ariaPressed = k === chosen; });
    const part = parts[chosen], rows = all("tbody tr", part), isOpen = chosen in seen, row = rows[seen[chosen]];
    part.classList.toggle("asked", !isOpen);
    for (const old of all(".asking", part)) old.remove();
    const guess = part.querySelector(".guess");
    if (chosen) guess.textContent = isOpen ? "Shown without a guess." : "Which of these rows will be right least often, beside others of the same classes? Look at the pictures, and guess.";
    if (row) guess.textContent = `You chose ${row.querySelector("th").textContent}: ${row.lastElementChild.textContent.trim().replace(")", ") points")}.`;
    if (isOpen) return;
    const open = (k) => {
      seen[chosen] = k;
      remember("properties", seen);
      show(chosen);
      buttons[chosen].focus({ preventScroll: true });
    };
    const ask = (place, textContent, k) => place.appendChild(make("button", { type: "button", className: "asking", textContent })).addEventListener("click", () => open(k));
    rows.forEach((row, k) => ask(row.lastElementChild, "This one", k));
    ask(guess, "Show without a guess", null);
  }

  buttons.forEach((button, k) => button.addEventListener("click", () => show(k)));
}
if (find("property-choice")) chooseProperty();
