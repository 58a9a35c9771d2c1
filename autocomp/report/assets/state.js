// What the page knows, and what the reader chose; the latter stays in the address, so that a link shares it.
const data = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => window.innerWidth < 700;
const keys = Object.keys(data.points);
const LIMITS = ["ms", "kb", "drop"];
const state = { chosen: data.chosen, beside: data.base, ms: null, kb: null, drop: null, all: false,
  whole: data.axes.range === null }; // whole: the front's pictures show all points

/** An element with text and children; text is never read as HTML. */
const make = (tag, { text, cls, kids = [], at = {} } = {}) => {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  if (cls) node.className = cls;
  for (const [name, value] of Object.entries(at)) node.setAttribute(name, value);
  node.append(...kids);
  return node;
};

/** Three significant digits or more, with thousands. */
const brief = (value) => value.toLocaleString("en", { maximumSignificantDigits: Math.abs(value) >= 1000 ? 4 : 3 });

const qualifies = (point) => LIMITS.every((name) => state[name] === null || point[`limit_${name}`] <= state[name]);
const isLimited = () => LIMITS.some((name) => state[name] !== null);

const readAddress = () => {
  const said = new URLSearchParams(location.hash.slice(1));
  const known = (key, otherwise) => (key !== null && Object.hasOwn(data.points, key) ? key : otherwise);
  state.chosen = known(said.get("point"), data.chosen);
  state.beside = known(said.get("beside"), data.base);
  for (const name of LIMITS) {
    const value = said.get(name);
    state[name] = value !== null && value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : null;
  }
};

const writeAddress = () => {
  const said = new URLSearchParams({ point: state.chosen });
  if (state.beside !== data.base) said.set("beside", state.beside);
  for (const name of LIMITS) if (state[name] !== null) said.set(name, String(state[name]));
  history.replaceState(null, "", `#${said}`);
};
