// What the numbers are worth, as pictures.
const band = (low, high) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: low, y1: high, fillcolor: token("--band"), line: { width: 0 }, layer: "below" });
const rule = (at) => ({ type: "line", line: { width: 1, color: token("--quiet") }, layer: "below", ...at });

const agreement = (entry) => (id) => {
  const reach = 1.25 * Math.max(entry.band, ...entry.errors.map(Math.abs));
  const spec = layout(entry.x, entry.y, entry.log);
  spec.yaxis.range = [-reach, reach];
  if (entry.log) Object.assign(spec.xaxis, plainTicks(entry.measured));
  spec.shapes = [band(-entry.band, entry.band), rule({ xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0 })];
  Plotly.react(id, [{
    type: "scatter", mode: "markers", x: entry.measured, y: entry.errors, customdata: entry.labels,
    hovertemplate: "point %{customdata}<br>measured %{x:.4~g}<br>off by %{y:.2~g}<extra></extra>",
    marker: { size: 10, color: heatColour(), line: { width: 1, color: token("--card") } },
  }], spec, config);
};

const intervals = (entry) => (id) => {
  const spec = layout(entry.x, "", false);
  spec.margin.l = 84;
  spec.yaxis.autorange = "reversed";
  spec.shapes = [rule({ yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0 })];
  const far = (end) => entry.drops.map((drop, i) => Math.abs(entry[end][i] - drop));
  Plotly.react(id, [{
    type: "scatter", mode: "markers", x: entry.drops, y: entry.labels, marker: { size: 9, color: heatColour() },
    error_x: { type: "data", symmetric: false, array: far("highs"), arrayminus: far("lows"), thickness: 1.5, width: 4, color: heatColour() },
    hovertemplate: "%{y}: %{x:.3~g}<extra></extra>",
  }], spec, config);
};

/** Where the profile kept them, the networks themselves; the band is ±10 %. */
const heldOutPairs = (entry) => (id) => {
  const ends = [Math.min(...entry.measured, ...entry.predicted) / 1.2, Math.max(...entry.measured, ...entry.predicted) * 1.2];
  const spec = layout("measured (ms)", "predicted (ms)", true);
  Object.assign(spec.xaxis, plainTicks(ends));
  Object.assign(spec.yaxis, { type: "log", ...plainTicks(ends) });
  const line = (factor, dash) => ({ type: "scatter", mode: "lines", x: ends, y: ends.map((end) => factor * end), hoverinfo: "skip",
    line: { width: 1, dash, color: token("--quiet") } });
  Plotly.react(id, [line(1, "solid"), line(0.9, "dot"), line(1.1, "dot"), {
    type: "scatter", mode: "markers", x: entry.measured, y: entry.predicted, marker: { size: 6, color: heatColour(), opacity: 0.7 },
    hovertemplate: "measured %{x:.4~g} ms, predicted %{y:.4~g} ms<extra></extra>",
  }], spec, config);
};

const heldOutShares = (entry) => (id) => {
  const order = entry.errors.map((_, i) => i).sort((one, other) => entry.errors[one] - entry.errors[other]);
  const spec = layout("relative error at most (%)", "networks (%)", false);
  Object.assign(spec.yaxis, { range: [0, 108] });
  Object.assign(spec.xaxis, { rangemode: "tozero" });
  spec.shapes = [rule({ yref: "paper", y0: 0, y1: 1, x0: 100 * entry.mean, x1: 100 * entry.mean })];
  spec.annotations = [{ text: "mean", x: 100 * entry.mean, y: 1, yref: "paper", showarrow: false, xanchor: "left", font: { size: 11, color: token("--quiet") } }];
  Plotly.react(id, [{
    type: "scatter", mode: "lines+markers", x: [0, ...order.map((i) => 100 * entry.errors[i])], y: [0, ...order.map((i) => 100 * entry.shares[i])],
    line: { color: heatColour(), dash: "dot", width: 1.5 }, marker: { size: [0, ...order.map(() => 10)], color: heatColour() },
    hovertemplate: "%{y:.0f} % of networks within ±%{x:.3~g} %<extra></extra>",
  }], spec, config);
};

const growth = (entry) => (id) => {
  const spec = layout("trials", "hypervolume", false);
  Object.assign(spec.yaxis, { rangemode: "tozero" });
  Plotly.react(id, [{ type: "scatter", mode: "lines", line: { shape: "hv", color: heatColour(), width: 2 },
    x: entry.trials, y: entry.volumes, hovertemplate: "after trial %{x}: %{y:.4f}<extra></extra>" }], spec, config);
};

const rungs = (entry) => (id) => {
  const spec = layout("part of the search split (%)", data.axes.searched, true);
  const seen = [...new Set(Object.values(entry).flatMap(({ shares }) => shares))].filter((share) => share !== null);
  Object.assign(spec.xaxis, { tickmode: "array", tickvals: seen, ticktext: seen.map(brief) });
  spec.showlegend = true;
  spec.legend = { orientation: "h", y: 1.12 };
  const colours = { stopped: token("--quiet"), complete: heatColour(), front: token("--accent") };
  Plotly.react(id, Object.entries(entry).filter(([, { count }]) => count > 0).map(([fate, { count, trials, shares, metrics }]) => ({
    type: "scatter", mode: "lines+markers", name: `${fate} (${count})`, x: shares, y: metrics, customdata: trials, connectgaps: false,
    line: { width: 1, color: colours[fate] }, marker: { size: 4, color: colours[fate] }, opacity: 0.8,
    hovertemplate: "trial %{customdata}: %{y:.4~g} on %{x:.3~g} %<extra></extra>",
  })), spec, config);
};

const wireTrust = () => data.runs.forEach((run, index) => {
  run.agreement.forEach((entry, at) => picture(`agreement-${index}-${at}`, agreement(entry)));
  picture(`intervals-${index}`, intervals(run.intervals));
  if (run.heldOut) picture(`held-out-${index}`, (run.heldOut.measured.length ? heldOutPairs : heldOutShares)(run.heldOut));
  picture(`growth-${index}`, growth(run.growth));
  if (run.rungs) picture(`rungs-${index}`, rungs(run.rungs));
});
