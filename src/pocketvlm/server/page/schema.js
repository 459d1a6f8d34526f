// JSON-schema mode: the schema that a person wrote → `response_format`, and the JSON of an answer → a table.

export const EXAMPLE = {
  type: "object",
  properties: {
    shop: { type: "string", maxLength: 40 },
    date: { type: "string", pattern: "^[0-9]{4}-[0-9]{2}-[0-9]{2}$" },
    total: { type: "number", minimum: 0, maximum: 100000 },
  },
  required: ["shop", "date", "total"],
  additionalProperties: false,
};

/** `response_format` of a chat completion; throws an Error of one line where the text is no schema. */
export function responseFormat(text) {
  let schema;
  try {
    schema = JSON.parse(text);
  } catch (error) {
    throw new Error(`The schema is not JSON: ${error.message}.`);
  }
  if (schema === null || typeof schema !== "object" || Array.isArray(schema)) {
    throw new Error('The schema must be a JSON object, such as {"type": "object", "properties": {…}}.');
  }
  return { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
}

/**
 * The value of an answer, or undefined where it is no JSON: cut off, or still coming. Numbers that this language would
 * write in another way (11.60, or twenty digits) stay as they were written, where the browser can tell.
 */
export function valueOf(text) {
  const asWritten = (_, value, context) =>
    typeof value === "number" && (context?.source ?? `${value}`) !== `${value}` ? context.source : value;
  try {
    return JSON.parse(text, asWritten);
  } catch {
    return undefined;
  }
}

/**
 * A value as tables in tables: an object becomes a row for each of its names, a list of objects a column for each.
 * Only text nodes are made of it.
 */
export function tableOf(value, depth = 0) {
  if (value === null || typeof value !== "object") return document.createTextNode(value === null ? "–" : String(value));
  if (depth > 8) return document.createTextNode(JSON.stringify(value));
  const table = document.createElement("table");
  const body = table.createTBody();
  if (!Array.isArray(value)) {
    for (const [name, item] of Object.entries(value)) {
      const row = body.insertRow();
      row.append(header(name, "row"));
      row.insertCell().append(tableOf(item, depth + 1));
    }
    return table;
  }
  if (!value.length) return document.createTextNode("none");
  const names = namesOf(value);
  if (!names) {
    const list = document.createElement("ol");
    for (const item of value) list.appendChild(document.createElement("li")).append(tableOf(item, depth + 1));
    return list;
  }
  const heads = table.createTHead().insertRow();
  for (const name of names) heads.append(header(name, "col"));
  for (const item of value) {
    const row = body.insertRow();
    for (const name of names) row.insertCell().append(Object.hasOwn(item, name) ? tableOf(item[name], depth + 1) : "");
  }
  return table;
}

/** The names of a list of objects in order of their coming; null where it is another list. */
function namesOf(list) {
  const isObject = (item) => item !== null && typeof item === "object" && !Array.isArray(item);
  if (!list.every(isObject)) return null;
  const names = [...new Set(list.flatMap((item) => Object.keys(item)))];
  return names.length ? names : null;
}

function header(name, scope) {
  const cell = document.createElement("th");
  cell.scope = scope;
  cell.textContent = name;
  return cell;
}
