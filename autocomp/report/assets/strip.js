// A network as a strip: what a point does to each layer, and where its time and bytes go, before and after.
const SVG = "http://www.w3.org/2000/svg";
const ROWS = ["channels kept", "rank kept", "bits", "weights kept"];
const BAND = 18, BARS = 54, GAP = 20;

const shape = (tag, at, kids = []) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(at)) node.setAttribute(name, String(value));
  node.append(...kids);
  return node;
};
const title = (text) => { const node = document.createElementNS(SVG, "title"); node.textContent = text; return node; };
const label = (text, x, y, cls = "strip-label") => { const node = shape("text", { x, y, class: cls }); node.textContent = text; return node; };

const planOf = (point) => {
  const run = data.runs[point.run], plan = run.plans[String(point.trial)];
  return plan ? { ...plan, rows: plan.cells.map((at) => run.cells[at]) } : null;
};
const baseOf = (point) => data.points[keys.find((key) => data.points[key].run === point.run && data.points[key].baseline)];

/** Bars of what each layer takes after, in front of what it took before. */
const bars = (before, after, width, top, names, unit) => {
  const most = Math.max(...before, ...after, 1e-9);
  return names.flatMap((name, i) => {
    const [old, now] = [before[i], after[i]].map((value) => (BARS * value) / most);
    return [
      shape("rect", { class: "before", x: i * width + 1, y: top + BARS - old, width: width - 2, height: old }),
      shape("rect", { class: "after", x: i * width + 1, y: top + BARS - now, width: width - 2, height: Math.max(now, 0.5) }),
      shape("rect", { class: "aim", x: i * width, y: top, width, height: BARS }, [title(`${name}: ${brief(before[i])} → ${brief(after[i])} ${unit}`)]),
    ];
  });
};

const heatBand = (rows, which, width, top, names) => rows.flatMap((row, i) => {
  const [share, text, short] = row[0] ? [0, "left out"] : row[which + 1];
  const cell = shape("rect", { class: share < 1 ? "cell" : "cell same", x: i * width + 0.5, y: top, width: width - 1, height: BAND,
    style: `--d:${(1 - share).toFixed(2)}` }, [title(`${names[i]}: ${ROWS[which]} ${text}`)]);
  const room = short && share < 1 && width >= 20;
  return room ? [cell, label(short, (i + 0.5) * width, top + BAND - 5, "strip-value")] : [cell];
});

const strip = (point) => {
  const run = data.runs[point.run], plan = planOf(point);
  if (plan === null) return make("p", { cls: "quiet", text: "The plan of this point was not found in the run folder." });
  const names = run.layers.map(([name]) => name), spent = run.spent[point.hash], base = run.spent[baseOf(point).hash];
  const told = spent && base, room = Math.max(byId("point-strips").clientWidth - 30, 280);
  const width = Math.max(room / (names.length + (told ? 1 : 0)), 12), kids = [];
  let top = 14;
  ROWS.forEach((name, which) => {
    if (plan.rows.every((row) => !row[0] && row[which + 1][0] >= 1)) return; // nothing was done of this kind
    kids.push(label(name, 0, top - 3), ...heatBand(plan.rows, which, width, top, names));
    top += BAND + GAP;
  });
  if (kids.length === 0) { kids.push(label("nothing was done to any layer", 0, top)); top += GAP; }
  if (told) {
    const whole = [...names, "no layer of its own"], sum = (values) => values.reduce((total, value) => total + value, 0);
    for (const [what, mine, other, scale, unit] of [["time, predicted", "us", "otherUs", 1, "µs"], ["bytes, predicted", "bytes", "otherBytes", 1e-3, "kB"]]) {
      const [before, after] = [base, spent].map((one) => [...one[mine], one[other]].map((value) => value * scale));
      kids.push(label(`${what}: ${brief(sum(before))} → ${brief(sum(after))} ${unit}`, 0, top - 3), ...bars(before, after, width, top, whole, unit));
      top += BARS + GAP;
    }
  }
  if (width >= 26) { // room for names, from the upper left down to the right
    const last = told ? ["no layer"] : [];
    [...names, ...last].forEach((name, i) => {
      const node = label(name.length > 18 ? `…${name.slice(-17)}` : name, 0, 0, "strip-name");
      node.setAttribute("transform", `translate(${(i + 0.5) * width - 4} ${top - GAP + 16}) rotate(35)`);
      kids.push(node);
    });
    top += 74;
  }
  const across = width * (names.length + (told ? 1 : 0));
  const svg = shape("svg", { viewBox: `0 0 ${across + 24} ${top - GAP + 6}`, width: across + 24, height: top - GAP + 6, role: "img",
    "aria-label": `${point.name}, layer by layer from input to output; the same stands in the table below` }, kids);
  return make("div", { cls: "scroll strip", kids: [svg], at: { role: "region", tabindex: "0", "aria-label": `strip of ${point.name}` } });
};

/** What takes time besides the layers; or that the run does not tell. */
const otherTime = (point) => {
  const spent = data.runs[point.run].spent[point.hash];
  if (!spent) return "Where its time and bytes go, layer by layer, is not told by this run; `autocomp verify` writes it.";
  return spent.others.length ? `no layer of its own (predicted): ${spent.others.join(", ")}` : null;
};
