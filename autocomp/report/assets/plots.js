// What all pictures share. A picture is drawn when it comes into view, and again when the colours change. Plotly takes its
// time to be read (a second on a slow machine), so the page comes alive without it.
const config = { displayModeBar: false, responsive: true, displaylogo: false };
const drawers = new Map();
const inView = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && !inView.has(target.id)) { inView.add(target.id); drawers.get(target.id)(target.id); }
  }
}, { rootMargin: "200px" });

/** Draw into an element, if the page has it, as soon as it is seen. */
const picture = (id, draw) => {
  if (!byId(id)) return;
  drawers.set(id, draw);
};
const startDrawing = () => {
  document.head.append(make("script", { text: byId("plotly-source").textContent }));
  drawers.forEach((_, id) => watcher.observe(byId(id)));
};
const redraw = (id) => { if (inView.has(id)) drawers.get(id)(id); };
const redrawAll = () => inView.forEach(redraw);

const layout = (xTitle, yTitle, logX) => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { color: token("--ink"), family: "system-ui, 'Liberation Sans', sans-serif", size: 12 },
  margin: { l: 56, r: 16, t: 22, b: 48 },
  showlegend: false,
  dragmode: false,
  hoverlabel: { align: "left", bgcolor: token("--card"), bordercolor: token("--line"), font: { color: token("--ink") } },
  xaxis: { title: { text: xTitle, standoff: 8, font: { size: narrow() ? 11 : 13 } }, type: logX ? "log" : "linear",
    gridcolor: token("--line"), zeroline: false, nticks: 8, minor: { ticks: "" } },
  yaxis: { title: { text: yTitle, standoff: 6, font: { size: narrow() ? 11 : 13 } }, gridcolor: token("--line"), zeroline: false },
});

/** Ticks that read as plain numbers on a log axis of less than a few decades. */
const plainTicks = (values) => {
  const low = Math.min(...values), high = Math.max(...values), ticks = [];
  const fine = [1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.2, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9];
  const steps = high / low < 2 ? fine : high / low < 4 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 100 ? [1, 2, 5] : [1];
  for (let decade = Math.floor(Math.log10(low)) - 1; decade <= Math.ceil(Math.log10(high)); decade += 1) {
    for (const step of steps) ticks.push(Number((step * 10 ** decade).toPrecision(2)));
  }
  return { tickmode: "array", tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en")) };
};

const heatColour = () => `rgb(${token("--heat")})`;
