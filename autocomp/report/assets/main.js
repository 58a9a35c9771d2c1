// The page comes alive.
const arrive = () => {
  readAddress();
  if (hidden(state.chosen)) showWhole(true);
  choose(state.chosen);
  showLimits();
};
FRONTS.forEach((id) => picture(id, (it) => {
  const fresh = !byId(it).on;
  fronts(it);
  if (!fresh) return;
  byId(it).on("plotly_click", (event) => { const key = event.points[0].customdata; if (key) pick(key); });
  if (data.axes.range !== null) byId(it).on("plotly_doubleclick", () => (state.all ? FRONTS.forEach(redraw) : toggleWhole()));
}));
const toggleWhole = () => { showWhole(!state.whole); FRONTS.forEach(redraw); };
const toTop = (id) => {
  byId(id).scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  byId(`${id}-title`).focus({ preventScroll: true });
};

arrive();
showLegend();
wireLimits();
wireShipping();
wireTrust();
data.runs.forEach(trialTable);

byId("pick").addEventListener("change", (event) => pick(event.target.value));
byId("beside").addEventListener("change", (event) => pick(state.chosen, event.target.value));
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-key]");
  if (button) { pick(button.dataset.key); toTop("point"); return; }
  // A link within the page must not take the place of the choice in its address.
  const link = event.target.closest('a[href^="#"]');
  if (link) { event.preventDefault(); toTop(link.getAttribute("href").slice(1)); }
});
byId("window")?.addEventListener("click", toggleWhole);
byId("more")?.addEventListener("click", () => {
  const open = byId("points").classList.toggle("whole");
  byId("more").setAttribute("aria-expanded", String(open));
  byId("more").textContent = open ? "only the points worth a look" : `all ${keys.length} points`;
});
byId("all-trials").addEventListener("change", (event) => {
  state.all = event.target.checked;
  byId("others").textContent = othersTold();
  byId("basis").hidden = state.all;
  if (byId("window")) byId("window").parentElement.hidden = state.all;
  FRONTS.forEach(redraw);
});
window.addEventListener("hashchange", arrive);
window.addEventListener("resize", () => showStrips(data.points[state.chosen], data.points[state.beside]));
window.addEventListener("beforeprint", () => {
  byId("layers").open = true;
  document.querySelectorAll(".plot").forEach(({ id }) => { if (window.Plotly && drawers.has(id)) { inView.add(id); redraw(id); } });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
document.documentElement.dataset.ready = "true";
requestAnimationFrame(() => setTimeout(startDrawing, 0)); // after the page was painted
