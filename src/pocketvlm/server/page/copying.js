// A request of the page → the same as a command of the shell or as Python. Files are named, not pasted into it, and a key
// is never part of it: both read OPENAI_API_KEY.

/**
 * @param request a function of how a medium is written, giving the body of the request
 * @param base the address of the server, without a slash at its end
 */
export function asCurl(request, base) {
  const { body, media } = withPlaces(request);
  // A here-document without quotes, so that the shell puts files into it; what else it would read is escaped.
  let text = JSON.stringify(body, null, 2).replace(/[\\$`]/g, "\\$&");
  for (const [place, item] of media) {
    text = text.replaceAll(place, () => `data:${typeOf(item)};base64,$(base64 < ${quoted(item.name)} | tr -d '\\n')`);
  }
  return [
    `curl --silent --show-error ${quoted(`${base}/v1/chat/completions`)} \\`,
    `  -H "Authorization: Bearer \${OPENAI_API_KEY:-none}" \\`,
    "  -H 'Content-Type: application/json' \\",
    "  --data-binary @- <<END_OF_REQUEST",
    text,
    "END_OF_REQUEST",
    "",
  ].join("\n");
}

/** A word of the shell, whatever is in it. */
function quoted(word) {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

export function asPython(request, base) {
  const { body, media } = withPlaces(request);
  const { model, messages, response_format, ...rest } = body;
  const named = { model, messages, ...(response_format ? { response_format } : {}) };
  let options = Object.entries(named).map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  if (Object.keys(rest).length) options.push(`    extra_body=${literal(rest, 1)},`);
  let call = options.join("\n");
  for (const [place, item] of media) {
    const made = `data_url(${JSON.stringify(item.name)}, ${JSON.stringify(typeOf(item))})`;
    const written = new RegExp(`"${place}(#[0-9,]+)?"`, "g"); // pages of a document stand behind its URL
    call = call.replace(written, (_, pages) => (pages ? `${made} + ${JSON.stringify(pages)}` : made));
  }
  const helper = [
    "def data_url(path, media_type):",
    '    content = base64.b64encode(Path(path).read_bytes()).decode()',
    '    return f"data:{media_type};base64,{content}"',
    "",
    "",
  ];
  return [
    ...(media.length ? ["import base64"] : []),
    "import os",
    ...(media.length ? ["from pathlib import Path"] : []),
    "",
    "from openai import OpenAI",
    "",
    "",
    ...(media.length ? helper : []),
    `client = OpenAI(base_url=${JSON.stringify(`${base}/v1`)}, api_key=os.environ.get("OPENAI_API_KEY", "none"))`,
    "completion = client.chat.completions.create(",
    call,
    ")",
    "print(completion.choices[0].message.content)",
    "",
  ].join("\n");
}

/** The body with a word in place of each medium that stands nowhere else, and these words with their media. */
function withPlaces(request) {
  const media = [];
  const mark = `medium-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
  const body = request((item) => {
    const place = `${mark}-${media.length}-`;
    media.push([place, item]);
    return place;
  });
  return { body, media };
}

function typeOf(item) {
  return /^data:([\w.+-]+\/[\w.+-]+)/.exec(item.data)?.[1] ?? "application/octet-stream";
}

/** A JSON value in Python. Strings of both are the same, once what stands outside of ASCII is as it is. */
function literal(value, depth) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const items = isList
    ? value.map((item) => `${pad}${literal(item, depth + 1)},`)
    : Object.entries(value).map(([name, item]) => `${pad}${JSON.stringify(name)}: ${literal(item, depth + 1)},`);
  const [open, close] = isList ? "[]" : "{}";
  return items.length ? `${open}\n${items.join("\n")}\n${end}${close}` : open + close;
}
