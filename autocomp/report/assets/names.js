// Where names stand at their points, so that they cover neither each other nor the points.
const NAME_SIZE = 10, NAME_FONT = "system-ui, 'Liberation Sans', sans-serif";
const LINE = 12, MARK = 7, APART = 4; // of a name's height, of half a marker, and between two names, in pixels
const pen = document.createElement("canvas").getContext("2d");
const widthOf = (name) => { pen.font = `${NAME_SIZE}px ${NAME_FONT}`; return pen.measureText(name).width; };
const SPOTS = ["bottom right", "top right", "bottom left", "top left", "middle right", "middle left", "bottom center", "top center"];

/** What a name covers at a spot of a point: {left, right, top, bottom} in pixels. */
const boxOf = (name, [x, y], spot) => {
  const [up, across] = spot.split(" "), width = widthOf(name);
  const left = { right: x + MARK, left: x - width - MARK, center: x - width / 2 }[across];
  const top = { top: y - MARK - LINE, bottom: y + MARK, middle: y - LINE / 2 }[up];
  return { left, right: left + width, top, bottom: top + LINE };
};

const shared = (one, other) => Math.max(0, Math.min(one.right, other.right) - Math.max(one.left, other.left))
  * Math.max(0, Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top));

/** A spot for every name, as plotly has it; the first ones have the first choice. Names are empty where a point has none.
 *  at: the points' places in pixels, from the left and the top of a picture of so many pixels. */
const spotsFor = (names, at, width, height) => {
  const taken = at.map(([x, y]) => ({ left: x - MARK, right: x + MARK, top: y - MARK, bottom: y + MARK }));
  return names.map((name, i) => {
    if (!name) return SPOTS[0];
    const covered = (spot) => {
      const box = boxOf(name, at[i], spot);
      const outside = (box.right - box.left) * LINE - shared(box, { left: 0, right: width, top: 0, bottom: height });
      return 2 * outside + taken.reduce((sum, other) => sum + shared(box, other), 0);
    };
    const best = SPOTS.reduce((one, other) => (covered(other) < covered(one) - 1 ? other : one));
    const box = boxOf(name, at[i], best);
    taken.push({ ...box, left: box.left - APART, right: box.right + APART });
    return best;
  });
};
