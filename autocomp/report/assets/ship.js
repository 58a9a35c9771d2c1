// The command to copy, and the files that this page can write by itself.
const showShipping = (point) => {
  byId("command").textContent = point.command;
  document.querySelector('[data-download="plan"]').disabled = planOf(point) === null;
  const card = document.querySelector('[data-download="card"]');
  card.disabled = point.card === null;
  card.title = point.card === null ? "autocomp export writes it beside the file" : "";
};

/** plan.json as autocomp writes it: what is done to each layer that the plan names. */
const planText = (point) => {
  const run = data.runs[point.run], plan = planOf(point);
  const layers = Object.fromEntries(run.layers.flatMap(([name], i) => (plan.parts[i] < 0 ? [] : [[name, run.parts[plan.parts[i]]]])));
  const whole = plan.adjusted.length ? { adjustments: plan.adjusted } : {};
  return `${JSON.stringify({ ...whole, dropped_blocks: plan.dropped, layers })}\n`;
};

const download = (name, text, type) => {
  const link = make("a", { at: { href: URL.createObjectURL(new Blob([text], { type })), download: name } });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};

const downloads = {
  plan: (point) => download("plan.json", planText(point), "application/json"),
  card: (point) => download("MODEL_CARD.md", point.card, "text/markdown"),
  table: (point) => download("front.csv", data.runs[point.run].table, "text/csv"),
};

const copy = async (text, said) => {
  try {
    await navigator.clipboard.writeText(text);
    byId("copied").textContent = said;
  } catch {
    getSelection().selectAllChildren(byId("command"));
    byId("copied").textContent = "this browser does not let the page copy; the command is selected";
  }
};

const wireShipping = () => {
  byId("copy").addEventListener("click", () => copy(byId("command").textContent, "command copied"));
  byId("link").addEventListener("click", () => { writeAddress(); copy(location.href, "link copied"); });
  document.querySelectorAll("[data-download]").forEach((button) => {
    button.addEventListener("click", () => downloads[button.dataset.download](data.points[state.chosen]));
  });
};
