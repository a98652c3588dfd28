// The view of an Explorer: Python draws, this only tells it what was asked for.
function labelled(text, input) {
  const label = document.createElement("label");
  label.append(text, input);
  return label;
}

function render({ model, el }) {
  const form = document.createElement("form");
  const n = Object.assign(document.createElement("input"), { type: "number", min: 1 });
  const filter = Object.assign(document.createElement("input"), {
    type: "text",
    placeholder: "{price: {$lt: 50}}",
    spellcheck: false,
  });
  const apply = Object.assign(document.createElement("button"), { type: "submit", textContent: "Apply" });
  form.className = "sddb-controls";
  form.append(labelled("Show", n), labelled("Filter", filter), apply);
  const page = document.createElement("div");
  page.setAttribute("aria-live", "polite");

  const draw = () => {
    const focused = page.contains(document.activeElement) ? document.activeElement : null;
    const held = focused?.dataset ?? {};
    page.innerHTML = model.get("html"); // drawn by autoescaping templates
    page.firstElementChild?.prepend(form); // inside, where the style applies
    if (form.contains(focused)) focused.focus();
    else page.querySelector(`[data-act="${held.act}"][data-rank="${held.rank}"]`)?.focus();
    page.removeAttribute("aria-busy");
  };
  const settings = () => {
    n.value = model.get("n");
    n.max = model.get("most");
    filter.value = model.get("filter");
  };
  const ask = (message) => {
    page.setAttribute("aria-busy", "true");
    model.send(message);
  };

  page.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-act]");
    if (button) ask({ act: button.dataset.act, rank: button.dataset.rank ?? 0 });
  });
  page.addEventListener("submit", (event) => {
    event.preventDefault();
    ask({ act: "narrow", n: n.value, filter: filter.value });
  });
  // Typed text is not for the notebook's keyboard shortcuts.
  page.addEventListener("keydown", (event) => event.target.matches("input") && event.stopPropagation());
  model.on("change:html", draw);
  model.on("change:n change:filter", settings);
  settings();
  draw();
  el.append(page);
  return () => {
    model.off("change:html", draw);
    model.off("change:n change:filter", settings);
  };
}

export default { render };
