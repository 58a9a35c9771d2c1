// Every trial, a page of them at a time: what it was, what came of it, and what the sampler expected.
const PAGE = 10;
const ORDERS = [["in order", (t) => t[0]], [`least ${data.lost}`, (t) => t[3]], ["fastest", (t) => t[4]], ["smallest", (t) => t[5]]];

const trialRow = (run, index, [number, kind, metric, drop, ms, kb, plan, uniform, why, error]) => {
  const told = (value, unit = "") => (value === null ? "–" : brief(value) + unit);
  const numbers = [told(metric, data.units[0]), told(drop, data.units[1]), told(ms), told(kb)];
  const marks = [onFront(index, number) ? "front" : null, uniform ? "all layers alike" : null, kind === "complete" ? null : kind].filter(Boolean);
  const first = make("th", { text: String(number), at: { scope: "row" } });
  marks.forEach((text) => first.append(" ", make("span", { text, cls: "badge" })));
  const said = make("td", { text: error ?? why ?? "–", cls: "said" });
  return make("tr", { kids: [first, ...numbers.map((text) => make("td", { text })), make("td", { text: plan, cls: "said" }), said] });
};

const trialTable = (run, index) => {
  const box = byId(`trials-${index}`);
  let page = 0, order = 0;
  const select = make("select", { at: { "aria-label": "order of the trials" }, kids: ORDERS.map(([text], i) => make("option", { text, at: { value: i } })) });
  const back = make("button", { text: "earlier", at: { type: "button" } }), on = make("button", { text: "later", at: { type: "button" } });
  const where = make("span", { at: { role: "status" } }), body = make("tbody");
  const titles = ["trial", "metric (search)", data.lost, "ms", "kB", "plan", "what was expected, or what went wrong"];
  const show = () => {
    const value = ORDERS[order][1];
    const sorted = [...run.trials].sort((one, other) => (value(one) ?? Infinity) - (value(other) ?? Infinity) || one[0] - other[0]);
    const last = Math.max(Math.ceil(sorted.length / PAGE) - 1, 0);
    page = Math.min(Math.max(page, 0), last);
    const shown = sorted.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...shown.map((trial) => trialRow(run, index, trial)));
    where.textContent = ` ${page * PAGE + 1} to ${page * PAGE + shown.length} of ${sorted.length} `;
    back.disabled = page === 0;
    on.disabled = page === last;
  };
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  select.addEventListener("change", () => { order = Number(select.value); page = 0; show(); });
  const table = make("table", { cls: "numbers", kids: [head(titles), body] });
  box.replaceChildren(make("p", { kids: [select, " ", back, where, on] }),
    make("div", { cls: "scroll", kids: [table], at: { role: "region", tabindex: "0", "aria-label": "trials" } }));
  show();
};
