// The chosen point, beside another one: numbers, strips, and a table layer by layer.
const row = (cells, tag = "td") => make("tr", { kids: cells.map((text, i) => (i === 0 ? make("th", { text, at: { scope: "row" } }) : make(tag, { text }))) });
const head = (names) => make("thead", { kids: [make("tr", { kids: names.map((text) => make(text ? "th" : "td", { text, at: text ? { scope: "col" } : {} })) })] });

const showNumbers = (point, other) => {
  const both = other === point ? [point] : [point, other];
  const titles = both.flatMap((each) => [`${each.name}, predicted`, "measured on the file"]);
  const names = data.runs[point.run].quantities;
  const body = names.map((name, i) => row([name, ...both.flatMap((each) => each.numbers[i])]));
  const table = make("table", { cls: "pairs", kids: [head(["", ...titles]), make("tbody", { kids: body })] });
  byId("point-numbers").replaceChildren(
    make("div", { cls: "scroll", kids: [table], at: { role: "region", tabindex: "0", "aria-label": "predicted and measured" } }),
    make("div", { cls: "about", kids: both.map(about) }));
};

const about = (point) => {
  const plan = planOf(point);
  const said = [...point.changes, point.than, point.runtime ? `verified with ${point.runtime}` : null,
    plan && plan.dropped.length ? `left out: ${plan.dropped.join(", ")}` : null,
    plan && plan.adjusted.length ? `the whole network: ${plan.adjusted.join(", ")}` : null, otherTime(point)].filter(Boolean);
  return make("div", { kids: [make("h3", { text: point.name }), ...said.map((text) => make("p", { text })),
    ...point.notes.flatMap((text) => [make("span", { text, cls: "badge" }), " "])] });
};

const showStrips = (point, other) => {
  const both = other === point || other.baseline ? [point] : [point, other];
  byId("point-strips").replaceChildren(...both.flatMap((each) => [make("h3", { text: `${each.name}, from input to output` }), strip(each)]));
};

const heat = ([share, text]) => {
  const cell = make("td", { text, cls: share < 1 ? "heat" : "heat same" });
  if (share < 1) cell.style.setProperty("--d", (1 - share).toFixed(2));
  return cell;
};

const showTable = (point, other) => {
  const plan = planOf(point), run = data.runs[point.run];
  if (plan === null) { byId("point-plan").replaceChildren(); return; }
  const theirs = other !== point && other.run === point.run ? planOf(other) : null;
  const titles = ["layer", "kind", "weight", ...ROWS, ...(theirs ? [`in ${other.name}`] : [])];
  const lines = plan.rows.map(([dropped, ...cells], i) => {
    const [name, kind, size] = run.layers[i];
    const left = [make("th", { text: name, at: { scope: "row" } }), make("td", { text: kind, cls: "quiet" }), make("td", { text: size, cls: "quiet" })];
    const mine = cells.slice(0, 4).map((cell) => heat(dropped ? [0, "left out"] : cell));
    const same = theirs && theirs.cells[i] === plan.cells[i];
    const right = theirs ? [make("td", { text: same ? "the same" : theirs.rows[i][5], cls: same ? "quiet" : "" })] : [];
    return make("tr", { kids: [...left, ...mine, ...right] });
  });
  byId("point-plan").replaceChildren(make("table", { cls: "plan", kids: [head(titles), make("tbody", { kids: lines })] }));
};

/** Show the chosen point everywhere. */
const choose = (key, beside = state.beside) => {
  Object.assign(state, { chosen: key, beside });
  const point = data.points[key], other = data.points[beside];
  byId("pick").value = key;
  byId("beside").value = beside;
  showNumbers(point, other);
  showStrips(point, other);
  showTable(point, other);
  showShipping(point);
  document.querySelectorAll("tr[data-row]").forEach((line) => line.classList.toggle("chosen", line.dataset.row === key));
  document.querySelectorAll("[data-point]").forEach((card) => card.classList.toggle("chosen", card.dataset.point === key));
  document.querySelectorAll(".of-run").forEach((part) => part.classList.toggle("shown", Number(part.dataset.run) === point.run));
  document.documentElement.dataset.chosen = key;
  FRONTS.forEach(redraw);
};

/** The reader's own choice: it must not stay outside the pictures, and goes into the address. */
const pick = (key, beside = state.beside) => {
  if (hidden(key)) showWhole(true);
  choose(key, beside);
  writeAddress();
};
