// Pages of which the model was not sure: a person corrects them by keyboard and exports lines for `pocketvlm tune`.
"use strict";
const review = JSON.parse(document.getElementById("review").textContent);

/** A number as it is written: 11.60 is what the page shows, and what is learnt from it. */
class Digits {
  constructor(text) {
    this.text = text;
  }
}

const NUMBERS = { number: /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/, integer: /^-?(0|[1-9]\d*)$/ };
const isLeaf = (value) => value === null || typeof value !== "object" || value instanceof Digits;
const nameOf = (keys) => keys.map((key) => key.replace(/[\\.]/g, "\\$&")).join(".");
const pages = review.pages.map((page) => ({ ...page, data: withDigits(page.data, page.digits), checked: false }));
const [picture, form, title, place] = ["picture", "fields", "title", "place"].map((id) => document.getElementById(id));
let current = 0;

/** A copy in which numbers are `Digits`. */
function withDigits(value, digits, keys = []) {
  if (typeof value === "number") return new Digits(digits[nameOf(keys)] ?? String(value));
  if (isLeaf(value)) return value;
  const inner = Object.entries(value).map(([key, part]) => [key, withDigits(part, digits, [...keys, key])]);
  return Array.isArray(value) ? inner.map(([, part]) => part) : Object.fromEntries(inner);
}

/** Every value that is no object and no array, with the keys that lead to it; items that may go, arrays that may grow. */
function entries(value, page, keys = []) {
  if (isLeaf(value)) return [{ keys, value }];
  const inner = Object.entries(value).map(([key, part]) => [part, [...keys, key]]);
  if (!Array.isArray(value)) return inner.flatMap(([part, at]) => entries(part, page, at));
  const items = inner.flatMap(([part, at]) => [{ keys: at, removes: true }, ...entries(part, page, at)]);
  return nameOf(keys) in page.arrays ? [...items, { keys, adds: true }] : items;
}

const at = (data, keys) => keys.reduce((inner, key) => inner[key], data);

function setAt(data, keys, value) {
  at(data, keys.slice(0, -1))[keys.at(-1)] = value;
}

/** The same table, in which names that begin with `from` and a number count up or down from `first` on; null: they go. */
function renamed(table, array, first, step) {
  const head = `${array}.`;
  return Object.fromEntries(
    Object.entries(table).flatMap(([name, value]) => {
      const [, number, rest] = (name.startsWith(head) && name.slice(head.length).match(/^(\d+)((?:\..*)?)$/s)) || [];
      if (number === undefined || Number(number) < first) return [[name, value]];
      return Number(number) === first && step < 0 ? [] : [[`${head}${Number(number) + step}${rest}`, value]];
    }),
  );
}

function removeItem(page, keys) {
  const [array, index] = [nameOf(keys.slice(0, -1)), Number(keys.at(-1))];
  at(page.data, keys.slice(0, -1)).splice(index, 1);
  for (const table of ["kinds", "confidence", "arrays"]) page[table] = renamed(page[table], array, index, -1);
  page.checked = false;
  show(current);
}

function addItem(page, keys) {
  const [array, items] = [nameOf(keys), at(page.data, keys)];
  const { item, kinds, arrays } = page.arrays[array];
  const name = `${array}.${items.length}`;
  const inside = (field) => (field ? `${name}.${field}` : name);
  for (const [field, kind] of Object.entries(kinds)) page.kinds[inside(field)] = kind;
  for (const [field, more] of Object.entries(arrays)) page.arrays[inside(field)] = more;
  items.push(withDigits(structuredClone(item), {}));
  page.checked = false;
  show(current);
  form.querySelector(`[name^="${CSS.escape(name)}"]`)?.focus();
}

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

/** A field whose value keeps its type: what was a number stays one, and null has the type of the schema. */
function control({ keys, value }, page) {
  const { kind, nullable } = page.kinds[nameOf(keys)];
  const shown = value instanceof Digits ? value.text : value === null ? "" : String(value);
  const lines = kind === "string" ? shown.split("\n").length : 1; // an input would take the ends of lines out
  const input = document.createElement(kind === "boolean" ? "select" : lines > 1 ? "textarea" : "input");
  if (kind === "boolean") {
    for (const text of [...(nullable ? [""] : []), "true", "false"]) input.append(new Option(text, text, false, text === shown));
  } else {
    if (kind in NUMBERS) input.inputMode = "decimal";
    if (lines > 1) input.rows = lines;
    if (kind === "nothing") [input.readOnly, input.placeholder] = [true, "nothing"];
    input.value = shown;
  }
  const read = () => {
    const text = kind in NUMBERS ? input.value.trim() : input.value;
    const isNull = text === "" && (kind === "string" || kind === "nothing" ? value === null : nullable);
    const isWrong = kind in NUMBERS && !isNull && !(NUMBERS[kind].test(text) && Number.isFinite(Number(text)));
    input.setCustomValidity(isWrong ? `${kind === "integer" ? "a whole number, such as 3" : "a number, such as 11.60"}` : "");
    if (isWrong) return;
    const made = isNull ? null : kind === "boolean" ? text === "true" : kind in NUMBERS ? new Digits(text) : text;
    setAt(page.data, keys, made);
  };
  input.addEventListener("input", read);
  if (value === null && !nullable) read(); // a new item's: what it is, a person must say
  return input;
}

function show(number) {
  current = Math.max(0, Math.min(pages.length - 1, number));
  const page = pages[current];
  picture.src = page.picture;
  picture.alt = `page ${page.page} of ${page.file}`;
  title.textContent = `${page.file}, page ${page.page}`;
  form.replaceChildren();
  for (const leaf of entries(page.data, page)) {
    const name = nameOf(leaf.keys);
    if (leaf.adds || leaf.removes) {
      const [word, act] = leaf.adds ? ["Add to", addItem] : ["Remove", removeItem];
      form.append(button(`${word} ${name}`, () => act(page, leaf.keys)));
      continue;
    }
    const sure = page.confidence[name];
    const field = document.createElement("div");
    field.className = sure !== undefined && sure < review.threshold ? "field doubtful" : "field";
    const input = control(leaf, page);
    input.id = `field-${name}`;
    input.name = name;
    const label = document.createElement("label");
    label.htmlFor = input.id;
    label.textContent = name;
    const note = document.createElement("span");
    note.className = "help";
    note.textContent = sure === undefined ? "" : `${Math.round(sure * 100)} %`;
    field.append(label, note, input);
    form.append(field);
  }
  report();
  (form.querySelector(".doubtful :is(input, select, textarea)") ?? form.querySelector("input, select, textarea"))?.focus();
}

function report() {
  const checked = pages.filter((page) => page.checked).length;
  place.textContent = `${current + 1} of ${pages.length}, ${checked} checked`;
}

/** The next doubtful field; behind the last one the page is checked, and the next page comes. */
function forward() {
  const wrong = form.querySelector(":invalid");
  if (wrong) {
    wrong.reportValidity();
    return;
  }
  const here = document.activeElement;
  const fields = [...form.querySelectorAll(".doubtful :is(input, select, textarea)")];
  const isBehind = (field) => here.compareDocumentPosition(field) & Node.DOCUMENT_POSITION_FOLLOWING;
  // From a field that is sure as well: the next doubtful one, or the first.
  const next = fields.find(isBehind) ?? (fields.includes(here) ? undefined : fields[0]);
  if (next) {
    next.focus();
    return;
  }
  pages[current].checked = true;
  if (current + 1 < pages.length) show(current + 1);
  else report();
}

/** JSON with a space behind commas and colons, as the model was asked for it. */
function spaced(value) {
  if (value instanceof Digits) return value.text;
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, inner]) => `${JSON.stringify(key)}: ${spaced(inner)}`)
    .join(", ")}}`;
}

function exported() {
  return pages
    .filter((page) => page.checked)
    .map((page) =>
      JSON.stringify({
        messages: [
          { role: "user", content: `<image>${review.question}` },
          { role: "assistant", content: spaced(page.data) },
        ],
        images: [page.source],
      }),
    )
    .map((line) => `${line}\n`)
    .join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([exported()], { type: "application/jsonl" }));
  link.download = "corrections.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.keyCode === 229) return; // Enter there takes a word of an input method (229: Safari)
  const step = { PageDown: 1, PageUp: -1 }[event.key];
  if (event.key === "Enter" && !event.shiftKey && document.activeElement.matches("#fields :is(input, select, textarea)")) forward();
  else if (step) show(current + step);
  else if (event.key === "s" && (event.ctrlKey || event.metaKey)) save();
  else return;
  event.preventDefault();
});
document.getElementById("right").addEventListener("click", () => {
  [...form.querySelectorAll(".doubtful :is(input, select, textarea)")].at(-1)?.focus();
  forward();
});
document.getElementById("save").addEventListener("click", save);
form.closest("form").addEventListener("submit", (event) => event.preventDefault());
show(0);
