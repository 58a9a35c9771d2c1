"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const byId = (id) => document.getElementById(id);
  const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => window.innerWidth < 700;
  let chosen = data.chosen;
  let whole = data.front.range === null; // whether the front's pictures show all points

  /** An element with text and children; text is never read as HTML. */
  const make = (tag, { text, cls, kids = [] } = {}) => {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    if (cls) node.className = cls;
    node.append(...kids);
    return node;
  };

  const layout = (xTitle, yTitle, logX) => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: token("--ink"), family: "system-ui, 'Liberation Sans', sans-serif", size: 12 },
    margin: { l: 56, r: 16, t: 22, b: 48 },
    showlegend: false,
    dragmode: false,
    hoverlabel: { align: "left", bgcolor: token("--card"), bordercolor: token("--line"), font: { color: token("--ink") } },
    xaxis: { title: { text: xTitle, standoff: 8, font: { size: narrow() ? 11 : 13 } }, type: logX ? "log" : "linear", gridcolor: token("--line"), zeroline: false,
      nticks: 8, minor: { ticks: "" } },
    yaxis: { title: { text: yTitle, standoff: 6, font: { size: narrow() ? 11 : 13 } }, gridcolor: token("--line"), zeroline: false },
  });

  /** Ticks that read as plain numbers on a log axis of less than a few decades. */
  const plainTicks = (values) => {
    const low = Math.min(...values), high = Math.max(...values), ticks = [];
    const steps = high / low < 4 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 100 ? [1, 2, 5] : [1];
    for (let decade = Math.floor(Math.log10(low)) - 1; decade <= Math.ceil(Math.log10(high)); decade += 1) {
      for (const step of steps) ticks.push(Number((step * 10 ** decade).toPrecision(2)));
    }
    return { tickmode: "array", tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en")) };
  };

  const config = { displayModeBar: false, responsive: true, displaylogo: false };

  const drawFront = (id, x, shade, xTitle, shadeTitle) => {
    const points = data.front.points;
    const ring = points.map((p) => (p.trial === chosen ? 3 : 1));
    const values = points.map((p) => p[x]);
    const shades = points.map((p) => Math.log10(p[shade]));
    const bar = plainTicks(points.map((p) => p[shade]));
    const bars = x === "ms" && !data.front.timed;
    const trace = {
      type: "scatter", mode: "markers+text", x: values, y: points.map((p) => p.metric),
      customdata: points.map((p) => p.trial), hovertext: points.map((p) => p.hover), hoverinfo: "text",
      text: points.map((p) => p.label),
      textposition: points.map((p) => (p.baseline ? "bottom left" : "top center")),
      textfont: { color: token("--quiet"), size: 10 }, cliponaxis: false,
      error_x: { type: "data", array: points.map((p) => p.error_ms), visible: bars, thickness: 1, width: 0, color: token("--quiet") },
      marker: {
        opacity: 1, size: points.map((p) => (p.trial === chosen ? 17 : 12)), color: shades, colorscale: "Viridis",
        symbol: points.map((p) => (p.baseline ? "diamond" : "circle")),
        line: { width: ring, color: points.map((p) => (p.trial === chosen ? token("--accent") : token("--card"))) },
        showscale: !narrow(),
        colorbar: { title: { text: shadeTitle, side: "right" }, thickness: 10, outlinewidth: 0, tickmode: "array",
          tickvals: bar.tickvals.map(Math.log10), ticktext: bar.ticktext },
      },
    };
    const spec = layout(xTitle, data.front.metric, true);
    Object.assign(spec.xaxis, plainTicks(values));
    if (!whole) spec.yaxis.range = data.front.range;
    // Both pictures share one range: a double click is answered for both, not by plotly for one.
    Plotly.react(id, [trace], spec, data.front.range === null ? config : { ...config, doubleClick: false });
  };

  const drawFronts = () => {
    drawFront("front-latency", "ms", "kb", data.front.latency, "size (kB)");
    drawFront("front-size", "kb", "ms", "size of the file (kB)", "latency (ms)");
  };

  const showWhole = (wanted) => {
    whole = wanted;
    byId("window").parentElement.dataset.whole = String(whole);
    byId("window").textContent = whole ? "zoom in" : "see all";
  };

  const drawAgreement = (entry, index) => {
    if (!entry.labels.length) return;
    const reach = 1.25 * Math.max(entry.band, ...entry.errors.map(Math.abs));
    const spec = layout(entry.x, entry.y, entry.log);
    spec.yaxis.range = [-reach, reach];
    if (entry.log) Object.assign(spec.xaxis, plainTicks(entry.measured));
    spec.shapes = [
      { type: "rect", xref: "paper", x0: 0, x1: 1, y0: -entry.band, y1: entry.band, fillcolor: token("--band"), line: { width: 0 }, layer: "below" },
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { width: 1, color: token("--quiet") }, layer: "below" },
    ];
    const trace = {
      type: "scatter", mode: "markers", x: entry.measured, y: entry.errors, customdata: entry.labels,
      hovertemplate: "point %{customdata}<br>measured %{x:.4~g}<br>off by %{y:.2~g}<extra></extra>",
      marker: { size: 10, color: `rgb(${token("--heat")})`, line: { width: 1, color: token("--card") } },
    };
    Plotly.react(`agreement-${index}`, [trace], spec, config);
  };

  const drawAll = () => {
    drawFronts();
    data.agreement.forEach(drawAgreement);
  };

  const row = (cells, tag = "td") => make("tr", { kids: cells.map((text, i) => make(i === 0 ? "th" : tag, { text })) });

  const showNumbers = (point) => {
    const head = make("thead", { kids: [row(["", "predicted", "measured"], "th")] });
    const body = make("tbody", { kids: point.numbers.map((cells) => row(cells)) });
    const said = [...point.changes, point.runtime ? `verified with ${point.runtime}` : null,
      point.dropped.length ? `left out: ${point.dropped.join(", ")}` : null].filter(Boolean);
    const words = make("div", { kids: [
      ...said.map((text) => make("p", { text })),
      ...point.notes.map((text) => make("span", { text, cls: "badge" })),
    ] });
    const table = make("div", { cls: "scroll", kids: [make("table", { cls: "pairs", kids: [head, body] })] });
    byId("point-numbers").replaceChildren(make("div", { cls: "pairs-box", kids: [table, words] }));
  };

  const heat = ([share, text]) => {
    const cell = make("td", { text, cls: share < 1 ? "heat" : "heat same" });
    if (share < 1) {
      const depth = 0.18 + 0.82 * (1 - share);
      cell.style.background = `rgb(${token("--heat")} / ${depth.toFixed(2)})`;
      if (depth > 0.6) cell.classList.add("strong");
    }
    return cell;
  };

  const showPlan = (point) => {
    if (point.plan === null) {
      byId("point-plan").replaceChildren(make("p", { text: "The plan of this point was not found in the run folder.", cls: "quiet" }));
      return;
    }
    const titles = ["layer", "kind", "weight", "channels kept", "rank kept", "bits", "weights kept"];
    const lines = point.plan.map(([dropped, ...cells], index) => {
      const [name, kind, shape] = data.layers[index];
      const left = [make("th", { text: name }), make("td", { text: kind, cls: "quiet" }), make("td", { text: shape, cls: "quiet" })];
      const out = dropped ? cells.map(() => heat([0, "left out"])) : cells.map(heat);
      return make("tr", { kids: [...left, ...out] });
    });
    const head = make("thead", { kids: [make("tr", { kids: titles.map((text) => make("th", { text })) })] });
    byId("point-plan").replaceChildren(make("table", { cls: "plan", kids: [head, make("tbody", { kids: lines })] }));
  };

  const choose = (trial) => {
    chosen = trial;
    const point = data.points[String(trial)];
    byId("pick").value = String(trial);
    showNumbers(point);
    showPlan(point);
    if (point.command) byId("command").textContent = point.command;
    document.querySelectorAll("tr[data-row]").forEach((line) => line.classList.toggle("chosen", line.dataset.row === String(trial)));
    document.documentElement.dataset.chosen = String(trial);
    drawAll();
  };

  /** The reader's own choice must not stay outside the pictures. */
  const pick = (trial) => {
    if (data.front.hidden.includes(trial)) showWhole(true);
    choose(trial);
  };

  choose(chosen);
  byId("pick").addEventListener("change", (event) => pick(Number(event.target.value)));
  document.querySelectorAll("button[data-trial]").forEach((button) => {
    button.addEventListener("click", () => { pick(Number(button.dataset.trial)); byId("point").scrollIntoView({ behavior: "smooth" }); });
  });
  for (const id of ["front-latency", "front-size"]) {
    byId(id).on("plotly_click", (event) => choose(event.points[0].customdata));
  }
  if (data.front.range !== null) {
    const toggle = () => { showWhole(!whole); drawFronts(); };
    byId("window").addEventListener("click", toggle);
    for (const id of ["front-latency", "front-size"]) byId(id).on("plotly_doubleclick", toggle);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choose(chosen));
  document.documentElement.dataset.ready = "true";
})();
