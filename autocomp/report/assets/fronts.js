// The front: the metric against latency and size, and these two against each other.
const SYMBOLS = ["circle", "square", "triangle-up", "cross", "star", "hexagon"];
const COLOURS = ["#2f7ebc", "#d95f02", "#1b9e77", "#9a6fd0", "#c7407b", "#8a8a1c"];
const FRONTS = ["front-ms", "front-kb", "front-both"];

/** A point's numbers, on the footing that is shown: [metric, ms, kB]. */
const place = (point) => (state.all ? point.searched : [point.metric, point.ms, point.kb]);

const axesOf = (id) => {
  const latency = state.all ? "latency (ms, predicted)" : data.axes.latency;
  const metric = state.all ? data.axes.searched : data.axes.metric;
  return {
    "front-ms": { x: 1, y: 0, shade: 2, names: [latency, metric, "size (kB)"] },
    "front-kb": { x: 2, y: 0, shade: 1, names: [state.all ? "predicted size (kB)" : "size of the file (kB)", metric, "latency (ms)"] },
    "front-both": { x: 1, y: 2, shade: 0, names: [latency, state.all ? "predicted size (kB)" : "size of the file (kB)", metric] },
  }[id];
};

const frontTrials = new Set(keys.map((key) => `${data.points[key].run}/${data.points[key].trial}`));
const onFront = (run, trial) => frontTrials.has(`${run}/${trial}`);
const MOST_OTHERS = 800;

/** Trials that are not on the front, as [metric, ms, kB]. */
const allOthers = data.runs.flatMap((run, index) => run.trials
  .filter(([number, kind, metric]) => kind === "complete" && metric !== null && !onFront(index, number))
  .map(([number, , metric, , ms, kb, plan, uniform]) => ({ at: [metric, ms, kb], uniform,
    said: [`${data.several ? `${run.name}, ` : ""}trial ${number}`, uniform ? `all layers alike: ${uniform}` : plan] })));
/** Of very many, some from all along the search: more could not be told apart. Those that treat every layer alike all stay. */
const stride = Math.ceil(allOthers.length / MOST_OTHERS);
const others = allOthers.filter((trial, i) => trial.uniform || i % stride === 0);
const othersTold = () => (state.all && others.length < allOthers.length
  ? `${others.length} of ${allOthers.length} trials off the front are drawn, taken evenly over the search` : "");
/** For plotly, which reads tags in its texts. */
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

const background = (axes) => {
  if (!state.all) return [];
  const trace = (trials, symbol, size, colour) => ({
    type: "scatter", mode: "markers", x: trials.map((t) => t.at[axes.x]), y: trials.map((t) => t.at[axes.y]),
    hovertext: trials.map((t) => t.said.map(escaped).join("<br>")), hoverinfo: "text",
    marker: { symbol, size, color: token(colour), opacity: 0.55, line: { width: 0 } },
  });
  return [trace(others.filter((t) => !t.uniform), "circle", 5, "--quiet"), trace(others.filter((t) => t.uniform), "x", 9, "--accent")];
};

/** Put every name where there is room for it in a picture that is drawn. */
const arrange = (id, names, x, y) => {
  const { xaxis, yaxis } = byId(id)._fullLayout, [width, height] = [xaxis._length, yaxis._length];
  const at = names.map((_, i) => [xaxis.d2p(x[i]), yaxis.d2p(y[i])]);
  const seen = names.map((name, i) => (at[i][0] >= 0 && at[i][0] <= width && at[i][1] >= 0 && at[i][1] <= height ? name : ""));
  Plotly.restyle(id, { textposition: [spotsFor(seen, at, width, height)] }, [byId(id).data.length - 1]);
};

const fronts = (id) => {
  const axes = axesOf(id), places = keys.map((key) => place(data.points[key])), points = keys.map((key) => data.points[key]);
  const x = places.map((p) => p[axes.x]), y = places.map((p) => p[axes.y]), z = places.map((p) => p[axes.shade]);
  const own = (key) => key === state.chosen || key === state.beside;
  const shadeIsMetric = axes.shade === 0;
  const bar = shadeIsMetric ? null : plainTicks(z);
  // The metric's name in two lines: beside a low picture it is cut off at both ends.
  const barTitle = shadeIsMetric ? axes.names[2].replace(/ (\([^(]*)$/, "<br>$1") : axes.names[2];
  const colour = data.several ? { color: points.map((p) => COLOURS[p.run % COLOURS.length]) } : {
    color: shadeIsMetric ? z : z.map(Math.log10), colorscale: "Viridis", reversescale: !shadeIsMetric, showscale: !narrow(),
    ...(shadeIsMetric && data.axes.range !== null && !state.all ? { cmin: data.axes.range[0], cmax: data.axes.range[1] } : {}),
    colorbar: { title: { text: barTitle, side: "right" }, thickness: 10, outlinewidth: 0,
      ...(shadeIsMetric ? {} : { tickmode: "array", tickvals: bar.tickvals.map(Math.log10), ticktext: bar.ticktext }) },
  };
  const windowed = axes.y === 0 && !state.whole && !state.all; // which is of what the points measured
  const shown = x.filter((_, i) => !windowed || (y[i] >= data.axes.range[0] && y[i] <= data.axes.range[1]));
  const names = points.map((p, i) => (p.listed || own(keys[i]) ? [...new Set([p.label, p.mark])].join(" ") : ""));
  const bars = id === "front-ms" && !state.all && !data.axes.timed;
  const trace = {
    type: "scatter", mode: "markers+text", x, y, customdata: keys, hovertext: points.map((p) => p.hover), hoverinfo: "text",
    text: names, textfont: { color: token("--quiet"), size: NAME_SIZE, family: NAME_FONT }, cliponaxis: false,
    error_x: { type: "data", array: points.map((p) => p.error_ms), visible: bars, thickness: 1, width: 0, color: token("--quiet") },
    marker: {
      ...colour, opacity: opacities(),
      size: keys.map((key, i) => (key === state.chosen ? 17 : own(key) || points[i].listed ? 12 : 8)),
      symbol: points.map((p) => (p.baseline ? "diamond" : SYMBOLS[p.run % SYMBOLS.length])),
      line: { width: keys.map((key) => (key === state.chosen ? 3 : 1)),
        color: keys.map((key) => (key === state.chosen ? token("--accent") : token("--card"))) },
    },
  };
  const spec = layout(axes.names[0], axes.names[1], true);
  const behind = background(axes);
  const reach = (i, mine) => [...mine, ...behind.flatMap((t) => (i === axes.x ? t.x : t.y))];
  Object.assign(spec.xaxis, plainTicks(reach(axes.x, x)));
  if (axes.y !== 0) Object.assign(spec.yaxis, { type: "log" }, plainTicks(reach(axes.y, y)));
  else if (windowed) {
    const [low, high] = [Math.min(...shown), Math.max(...shown)].map(Math.log10), room = 0.08 * (high - low) + 0.02;
    spec.yaxis.range = data.axes.range;
    Object.assign(spec.xaxis, plainTicks(shown), { range: [low - room, high + room] });
  }
  spec.shapes = limitLines(axes);
  // The pictures share one range: a double click is answered for all, not by plotly for one.
  Plotly.react(id, [...behind, trace], spec, data.axes.range === null ? config : { ...config, doubleClick: false });
  arrange(id, names, x, y);
};

const opacities = () => keys.map((key) => (qualifies(data.points[key]) ? 1 : 0.2));

/** Grey out in a picture that is there already: thousands of other trials need not be drawn anew for that. */
const greyOut = (id) => {
  const picture = byId(id);
  if (!inView.has(id)) return;
  Plotly.restyle(picture, { "marker.opacity": [opacities()] }, [picture.data.length - 1]);
  Plotly.relayout(picture, { shapes: limitLines(axesOf(id)) });
};

const limitLines = (axes) => {
  const line = { width: 1, dash: "dot", color: token("--accent") };
  const by = { 1: state.ms, 2: state.kb }, shapes = [];
  if (state.all) return shapes;
  if (by[axes.x] !== null) shapes.push({ type: "line", yref: "paper", x0: by[axes.x], x1: by[axes.x], y0: 0, y1: 1, line });
  if (axes.y === 2 && state.kb !== null) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: state.kb, y1: state.kb, line });
  return shapes;
};

/** Which run has which colour; only where there are several. */
const showLegend = () => {
  if (!data.several) return;
  const marks = "●■▲✚★⬢";
  byId("legend").append(...data.runs.map((run, i) => make("span", { kids: [
    make("span", { text: marks[i % marks.length], at: { style: `color: ${COLOURS[i % COLOURS.length]}`, "aria-hidden": "true" } }), ` ${run.name}`] })));
};

const showWhole = (wanted) => {
  state.whole = wanted;
  const button = byId("window");
  if (!button) return;
  button.parentElement.dataset.whole = String(wanted);
  button.textContent = wanted ? "zoom in" : "see all";
};

const hidden = (key) => data.axes.range !== null
  && (data.points[key].metric < data.axes.range[0] || data.points[key].metric > data.axes.range[1]);
