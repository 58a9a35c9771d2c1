// Limits of latency, size and drop: a slider and a number box each. What does not keep them is greyed out.
const spans = Object.fromEntries(LIMITS.map((name) => {
  const values = keys.map((key) => data.points[key][`limit_${name}`]).filter((value) => name === "drop" || value > 0);
  return [name, { low: Math.min(...values), high: Math.max(...values) }];
}));
const isLog = (name) => name !== "drop";

/** From a slider's 0 … 1000 to a limit, upwards in even factors (drops: in ever larger steps); its end is no limit. */
const fromSlider = (name, at) => {
  if (at >= 1000) return null;
  const { low, high } = spans[name], share = at / 1000;
  const value = isLog(name) ? low * (high / low) ** share : low + (high - low) * share ** 3;
  // Rounded up, so that the point that stands at the slider's own end still qualifies.
  const step = 10 ** (Math.floor(Math.log10(Math.max(Math.abs(value), 1e-6))) - 2);
  return Number((Math.ceil(value / step - 1e-9) * step).toPrecision(4));
};
const toSlider = (name, limit) => {
  if (limit === null) return 1000;
  const { low, high } = spans[name];
  const share = isLog(name) ? Math.log(Math.max(limit, low) / low) / (Math.log(high / low) || 1) : Math.cbrt((limit - low) / (high - low || 1));
  return Math.round(1000 * Math.min(Math.max(share, 0), 0.999));
};

const limited = (name, value) => {
  state[name] = value;
  showLimits();
  writeAddress();
  if (!greying) requestAnimationFrame(() => { greying = false; FRONTS.forEach(greyOut); }); // once a frame, however fast it moves
  greying = true;
};
let greying = false;

const showLimits = () => {
  for (const name of LIMITS) {
    const slider = byId(`limit-${name}`), box = byId(`number-${name}`);
    slider.value = String(toSlider(name, state[name]));
    slider.setAttribute("aria-valuetext", state[name] === null ? "any" : String(state[name]));
    if (document.activeElement !== box) box.value = state[name] === null ? "" : String(state[name]);
  }
  const within = keys.filter((key) => qualifies(data.points[key]));
  byId("qualify").textContent = isLimited() ? `${within.length} of ${keys.length} points qualify`
    : `No limit is set: all ${keys.length} points qualify`;
  const out = (node, key) => node.classList.toggle("out", !qualifies(data.points[key]));
  document.querySelectorAll("[data-point]").forEach((node) => out(node, node.dataset.point));
  document.querySelectorAll("tr[data-row]").forEach((node) => out(node, node.dataset.row));
  for (const option of byId("pick").options) option.toggleAttribute("data-out", !qualifies(data.points[option.value]));
  showBest(within);
};

/** Of what qualifies: the most accurate by the search split, the fastest, the smallest. */
const showBest = (within) => {
  const candidates = within.filter((key) => !data.points[key].baseline);
  byId("best").replaceChildren();
  if (!isLimited() || !candidates.length) return;
  const least = (value) => candidates.reduce((one, other) => (value(data.points[other]) < value(data.points[one]) ? other : one));
  const found = [["most accurate", (p) => (data.maximize ? -p.searched[0] : p.searched[0])], ["fastest", (p) => p.limit_ms],
    ["smallest", (p) => p.limit_kb]];
  const said = found.map(([name, value]) => {
    const key = least(value);
    return make("span", { kids: [`${name}: `, make("button", { text: data.points[key].name, at: { type: "button", "data-key": key } })] });
  });
  byId("best").append(make("span", { text: "Within these limits " }), ...said);
};

const wireLimits = () => {
  for (const name of LIMITS) {
    byId(`limit-${name}`).addEventListener("input", (event) => limited(name, fromSlider(name, Number(event.target.value))));
    byId(`number-${name}`).addEventListener("input", (event) => {
      const text = event.target.value.trim(), value = Number(text);
      if (text === "" || Number.isFinite(value)) limited(name, text === "" ? null : value);
    });
  }
  byId("limits").addEventListener("reset", (event) => {
    event.preventDefault();
    LIMITS.forEach((name) => { state[name] = null; byId(`number-${name}`).value = ""; });
    limited("ms", null);
  });
  byId("limits").addEventListener("submit", (event) => event.preventDefault());
};
