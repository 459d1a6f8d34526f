// Draws over a picture, in its own pixels: the views that the model sees, and boxes and points of an answer.

import { SCALE, nameOf } from "./grounding.js";

const NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * Draw everything anew.
 * @param svg lies over the picture, which is shown as large as it fits
 * @param size {width, height} of the picture in pixels
 * @param plan its views, or null
 * @param marks of an answer, numbered from 1
 */
export function draw(svg, size, plan, marks) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  const shown = svg.getBoundingClientRect();
  // Pixels of the picture for one of the screen: labels and corners are as large on a thumbnail as on a poster.
  const unit = 1 / Math.max(1e-6, Math.min(shown.width / size.width, shown.height / size.height));
  if (plan) drawViews(svg, plan, unit);
  marks.forEach((mark, index) => drawMark(svg, mark, index + 1, size, unit));
  svg.setAttribute("aria-label", describe(plan, marks));
}

/** One sentence about the views, for people who read them. */
export function describePlan(plan) {
  const [overview, ...slices] = plan.views;
  if (!plan.grid) return `one view at ${overview.downsample_mode}`;
  const fine = slices.filter((view) => view.downsample_mode === "4x").length;
  const rates = fine === slices.length ? "at 4x" : fine ? `${fine} of them at 4x` : "at 16x";
  const [rows, columns] = plan.grid;
  return `overview at ${overview.downsample_mode} and ${slices.length} slices (${rows} × ${columns}) ${rates}`;
}

function describe(plan, marks) {
  const parts = [];
  if (plan) parts.push(`Views drawn over the picture: ${describePlan(plan)}, ${plan.visual_tokens} visual tokens.`);
  if (marks.length) parts.push(`Marked by the answer: ${marks.map(nameOf).join(", ")}.`);
  return parts.join(" ") || "Nothing is drawn over the picture.";
}

/** Slices with their labels in their first corners; the overview, which is all of them, has its label in the last. */
function drawViews(svg, plan, unit) {
  const [overview, ...slices] = plan.views;
  if (!plan.grid) return drawView(svg, overview, unit);
  for (const view of slices) drawView(svg, view, unit);
  const [, , right, bottom] = overview.box;
  const text = `overview ${overview.downsample_mode} · ${overview.visual_tokens}`;
  const width = labelWidth(text, unit);
  if (width + 8 * unit > right || bottom < 60 * unit) return undefined;
  const kind = `view rate-${overview.downsample_mode}`;
  return drawLabel(svg, kind, text, right - width - 4 * unit, bottom - 22 * unit, unit);
}

function drawView(svg, view, unit) {
  const [left, top, right, bottom] = view.box;
  const [width, height] = [right - left, bottom - top];
  const kind = `view rate-${view.downsample_mode}`;
  add(svg, "rect", { class: kind, x: left + unit, y: top + unit, width: less(width, 2 * unit), height: less(height, 2 * unit) });
  const long = `${view.downsample_mode} · ${view.visual_tokens}`;
  const text = [long, `${view.visual_tokens}`].find((one) => width > labelWidth(one, unit) + 8 * unit);
  if (text && height > 26 * unit) drawLabel(svg, kind, text, left + 4 * unit, top + 4 * unit, unit);
}

function drawMark(svg, mark, number, size, unit) {
  const group = add(svg, "g", { class: "mark", "data-mark": number });
  const [sx, sy] = [size.width / SCALE, size.height / SCALE];
  const text = mark.label ? `${number} ${mark.label.slice(0, 40)}` : `${number}`;
  if (mark.point) {
    const [x, y] = [mark.point[0] * sx, mark.point[1] * sy];
    add(group, "circle", { class: "point", cx: x, cy: y, r: 6 * unit });
    return drawLabel(group, "mark", text, x + 9 * unit, y - 9 * unit, unit, size);
  }
  const [x1, y1, x2, y2] = mark.box;
  const box = { x: x1 * sx, y: y1 * sy, width: Math.max((x2 - x1) * sx, unit), height: Math.max((y2 - y1) * sy, unit) };
  add(group, "rect", { class: "box", ...box });
  return drawLabel(group, "mark", text, box.x, box.y - 20 * unit, unit, size);
}

function drawLabel(parent, kind, text, x, y, unit, within = null) {
  const [width, height] = [labelWidth(text, unit), 18 * unit];
  if (within) {
    x = Math.min(Math.max(x, 0), Math.max(0, within.width - width));
    y = Math.min(Math.max(y, 0), Math.max(0, within.height - height));
  }
  const group = add(parent, "g", { class: `label ${kind}` });
  add(group, "rect", { x, y, width, height, rx: 3 * unit });
  add(group, "text", { x: x + 5 * unit, y: y + 13 * unit, "font-size": 12 * unit }).textContent = text;
}

const labelWidth = (text, unit) => (10 + 7.2 * text.length) * unit;
const less = (length, by) => Math.max(length - by, length / 2);

function add(parent, name, attributes) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}
