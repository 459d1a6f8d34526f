// Boxes and points in an answer → marks to draw. Coordinates are 0 to 1000 of the picture's width and height, in every form:
//   <ref>the star</ref><box>10 20 300 400</box> and <point>150 200</point>, as the published model writes them;
//   JSON with box, bbox, bbox_2d or point, point_2d beside an optional label.

export const SCALE = 1000;
const NUMBER = "\\d{1,4}(?:\\.\\d+)?";
const BETWEEN = "[\\s,()\\[\\]]+";
const TAG = new RegExp(
  `(?:<ref>([^<]{0,200})</ref>\\s*)?<(box|point)>[\\s(\\[]*(${NUMBER}(?:${BETWEEN}${NUMBER}){1,3})[\\s)\\]]*</(?:box|point)>`,
  "g",
);
const NAMES = { box: 4, bbox: 4, bbox_2d: 4, point: 2, point_2d: 2 };
const LABELS = ["label", "ref", "name", "text"];
const MOST = 200; // no picture has room for more

/** The marks of a text in order: {label, box: [x1, y1, x2, y2]} or {label, point: [x, y]}, with start and end in the text. */
export function findMarks(text) {
  const marks = [];
  for (const match of text.matchAll(TAG)) {
    const mark = markOf(match[3].match(new RegExp(NUMBER, "g")).map(Number), match[1]?.trim());
    if (mark && match[2] in mark) marks.push({ ...mark, start: match.index, end: match.index + match[0].length });
  }
  return marks.length ? marks.slice(0, MOST) : marksOfJSON(text);
}

function marksOfJSON(text) {
  const found = [];
  for (const piece of [text, ...[...text.matchAll(/```(?:json)?\s*([\s\S]*?)```/g)].map((match) => match[1])]) {
    try {
      collect(JSON.parse(piece), found);
    } catch {
      // not JSON, or not yet
    }
  }
  return found.slice(0, MOST);
}

function collect(value, found) {
  if (Array.isArray(value)) return value.forEach((item) => collect(item, found));
  if (value === null || typeof value !== "object") return;
  const label = LABELS.map((name) => value[name]).find((one) => typeof one === "string");
  for (const [name, item] of Object.entries(value)) {
    const lists = Array.isArray(item) && Array.isArray(item[0]) ? item : [item];
    const marks = name in NAMES ? lists.map((list) => isCoordinates(list, NAMES[name]) && markOf(list, label)) : [];
    if (marks.some(Boolean)) found.push(...marks.filter(Boolean));
    else collect(item, found);
  }
}

function isCoordinates(list, length) {
  return Array.isArray(list) && list.length === length && list.every(Number.isFinite);
}

/** One mark; null where the numbers are no place in a picture. */
function markOf(numbers, label = "") {
  if (numbers.some((number) => number < 0 || number > SCALE)) return null;
  if (numbers.length === 2) return { label, point: numbers };
  if (numbers.length !== 4) return null;
  const [x1, y1, x2, y2] = numbers;
  return { label, box: [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)] };
}

/** How a mark reads: its label, or what it is. */
export function nameOf(mark) {
  return mark.label || (mark.box ? `box ${mark.box.map(Math.round).join(" ")}` : `point ${mark.point.map(Math.round).join(" ")}`);
}
