// Moves the cut with the slider and shows a block's layers; one figure of a page per script.
(() => {
  const figure = document.currentScript.closest("figure");
  const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const all = (selector) => [...figure.querySelectorAll(selector)];
  const cell = (row, tag, words) => { row.appendChild(document.createElement(tag)).textContent = words; };

  function show(number) {
    const step = data.steps[number];
    all("[data-block]").forEach((block) => {
      const [side, figures, place] = data.plans[step.plan].blocks[block.dataset.block];
      block.setAttribute("class", `block ${side}`);
      const lines = block.querySelectorAll("text");
      lines[1].textContent = figures;
      lines[2].textContent = place;
    });
    all("[data-tensor]").forEach((tensor) => {
      const lines = step.sent[tensor.dataset.tensor];
      tensor.classList.toggle("off", !lines);
      tensor.querySelectorAll("text").forEach((line, row) => { line.textContent = lines ? lines[row] : ""; });
    });
    all("[data-sent]").forEach((edge) => edge.classList.toggle("sent", edge.dataset.sent in step.sent));
    const body = figure.querySelector("tbody");
    body.replaceChildren();
    for (const words of step.rows) {
      const row = body.appendChild(document.createElement("tr"));
      words.forEach((word) => cell(row, "td", word));
    }
    figure.querySelector(".cut-table").hidden = step.rows.length === 0;
    figure.querySelector(".cut-sentence").textContent = step.sentence;
    const output = figure.querySelector("output");
    if (output) output.textContent = step.link;
  }

  const slider = figure.querySelector("input");
  if (slider) {
    slider.addEventListener("input", () => show(Number(slider.value)));
    show(Number(slider.value));
  }

  // On a narrow screen, begin where the cut is.
  const picture = figure.querySelector(".picture");
  const first = figure.querySelector(".tensor:not(.off) rect") || figure.querySelector(".block rect");
  if (first) {
    const box = first.getBoundingClientRect(), frame = picture.getBoundingClientRect();
    picture.scrollLeft += box.left + box.width / 2 - frame.left - frame.width / 2;
  }

  const card = figure.appendChild(document.createElement("div"));
  card.className = "cut-card";
  card.hidden = true;
  let pinned = null;

  function open(block) {
    const { name, layers } = data.blocks[block.dataset.block];
    card.replaceChildren();
    const table = document.createElement("table");
    cell(table.createCaption(), "b", `${name}: ${layers.length} ${layers.length === 1 ? "layer" : "layers"}`);
    const head = table.createTHead().insertRow();
    ["layer", "operators", "device", "server"].forEach((word) => cell(head, "th", word));
    const body = table.createTBody();
    layers.forEach((layer) => layer.forEach((word, column) => {
      cell(column ? body.lastChild : body.insertRow(), "td", word);
    }));
    card.appendChild(table);
    card.style.left = 0;
    card.hidden = false;
    const place = block.getBoundingClientRect(), frame = figure.getBoundingClientRect();
    const left = Math.min(place.left - frame.left, frame.width - card.offsetWidth);
    card.style.left = `${Math.max(left, 0)}px`;
    card.style.top = `${place.bottom - frame.top + 6}px`;
  }

  function close() { card.hidden = true; pinned = null; }

  all("[data-block]").forEach((block) => {
    block.querySelector("title").remove();
    block.addEventListener("pointerenter", () => { if (!pinned) open(block); });
    block.addEventListener("pointerleave", () => { if (!pinned) close(); });
    block.addEventListener("focus", () => { if (!pinned) open(block); });
    block.addEventListener("click", (event) => { event.stopPropagation(); open(block); pinned = block; });
  });
  card.addEventListener("click", (event) => event.stopPropagation());
  document.addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
})();
