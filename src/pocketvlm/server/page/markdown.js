// Markdown of a model → elements. The text only ever becomes text nodes, and links lead to http(s) alone: nothing that a
// model writes can be more than words. Pictures are not loaded: their text is shown.

const BLOCK = {
  fence: /^ {0,3}(`{3,}|~{3,})\s*([\w+-]*)/,
  heading: /^ {0,3}(#{1,6})\s+(.*)$/,
  rule: /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/,
  quote: /^ {0,3}>\s?/,
  item: /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/,
  divider: /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/,
};
// No two of these begin alike, and none looks back: the time is that of the text's length.
const INLINE =
  /(`{1,3})([^`]+)\1|\*\*([^*\n]+)\*\*|__([^_\n]+)__|\*([^*\s][^*\n]*)\*|\b_([^_\s][^_\n]*)_\b|~~([^~\n]+)~~|!?\[([^\]\n]{0,500})\]\(([^()\s]{1,2000})\)|(https?:\/\/[^\s<>()"']+)/g;

/**
 * Replace what is in `parent` by a text.
 * @param marks places in the text that are shown by what `showMark(mark, number)` gives
 */
export function render(parent, text, marks = [], showMark = null) {
  // Each mark becomes one private character, which stands for it through all that follows; the model's own are dropped.
  let source = "";
  let from = 0;
  const clean = (piece) => piece.replace(/[\uE000-\uF8FF]/g, "\uFFFD");
  marks.forEach((mark, index) => {
    if (mark.start === undefined) return;
    source += clean(text.slice(from, mark.start)) + String.fromCharCode(0xe000 + index);
    from = mark.end;
  });
  source += clean(text.slice(from));
  const show = (code) => (showMark ? showMark(marks[code - 0xe000], code - 0xe000 + 1) : document.createTextNode(""));
  parent.replaceChildren(...blocks(source.split(/\r\n|\r|\n/), show, 0));
}

function blocks(lines, show, depth) {
  const out = [];
  let at = 0;
  const take = (test) => {
    const start = at;
    while (at < lines.length && test(lines[at])) at++;
    return lines.slice(start, at);
  };
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at++;
    else if ((match = BLOCK.fence.exec(line))) {
      at++;
      const body = take((one) => !one.trim().startsWith(match[1]));
      at++;
      out.push(element("pre", [element("code", [document.createTextNode(body.join("\n"))])]));
    } else if ((match = BLOCK.heading.exec(line))) {
      at++;
      // The page has headings of its own above these.
      out.push(element(`h${Math.min(6, match[1].length + 2)}`, inline(withoutHashes(match[2]), show)));
    } else if (BLOCK.rule.test(line)) {
      at++;
      out.push(element("hr"));
    } else if (BLOCK.quote.test(line)) {
      const inner = take((one) => BLOCK.quote.test(one)).map((one) => one.replace(BLOCK.quote, ""));
      out.push(element("blockquote", depth < 4 ? blocks(inner, show, depth + 1) : inline(inner.join("\n"), show)));
    } else if (line.includes("|") && BLOCK.divider.test(lines[at + 1] ?? "") && (lines[at + 1] ?? "").includes("-")) {
      out.push(table(take((one) => one.includes("|")), show));
    } else if (BLOCK.item.test(line)) {
      out.push(list(take((one) => BLOCK.item.test(one) || /^\s+\S/.test(one)), show, depth));
    } else {
      const first = at++;
      take((one) => one.trim() && !Object.values(BLOCK).some((pattern) => pattern !== BLOCK.divider && pattern.test(one)));
      out.push(element("p", inline(lines.slice(first, at).join("\n"), show)));
    }
  }
  return out;
}

function list(lines, show, depth) {
  const first = BLOCK.item.exec(lines[0]);
  const indent = first[1].length;
  const items = [];
  for (const line of lines) {
    const match = BLOCK.item.exec(line);
    if (match && match[1].length <= indent) items.push([match[3], [], match[2]]);
    else items.at(-1)[1].push(line.slice(Math.min(indent + 2, line.length - line.trimStart().length)));
  }
  const children = items.map(([text, inner]) =>
    element("li", [...inline(text, show), ...(depth < 4 ? blocks(inner, show, depth + 1) : inline(inner.join("\n"), show))]),
  );
  if (first[2] === undefined) return element("ul", children);
  items.forEach(([, , number], index) => number && (children[index].value = Number(number))); // as the model counted
  return element("ol", children);
}

/** A heading without the signs that may close it. (A pattern would look at each of a thousand signs a thousand times.) */
function withoutHashes(text) {
  let end = text.trimEnd().length;
  while (text[end - 1] === "#") end--;
  return end === 0 || /\s/.test(text[end - 1]) ? text.slice(0, end).trimEnd() : text.trimEnd();
}

function table(lines, show) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, kind) => element("tr", cells(line).map((cell) => element(kind, inline(cell, show))));
  const [head, , ...body] = lines;
  const heading = row(head, "th");
  for (const cell of heading.children) cell.scope = "col";
  const out = element("table", [element("thead", [heading]), element("tbody", body.map((line) => row(line, "td")))]);
  const box = element("div", [out], "scroll");
  return Object.assign(box, { tabIndex: 0, role: "region", ariaLabel: "Table" }); // the keyboard scrolls it
}

function inline(text, show) {
  const out = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    out.push(...plain(text.slice(from, match.index), show));
    from = match.index + match[0].length;
    const [whole, , code, strong, strong2, em, em2, struck, label, target, bare] = match;
    if (code !== undefined) out.push(element("code", plain(code, show)));
    else if (strong ?? strong2) out.push(element("strong", inline(strong ?? strong2, show)));
    else if (em ?? em2) out.push(element("em", inline(em ?? em2, show)));
    else if (struck) out.push(element("s", inline(struck, show)));
    else if (target && whole[0] !== "!" && /^https?:\/\//i.test(target)) out.push(link(target, plain(label || target, show)));
    else if (bare) out.push(link(bare, plain(bare, show)));
    else out.push(...plain(whole, show));
  }
  out.push(...plain(text.slice(from), show));
  return out;
}

/** Text nodes with line breaks, and what stands for marks between them. */
function plain(text, show) {
  return text
    .split(/(\n|[\uE000-\uF8FF])/)
    .filter((piece) => piece !== "")
    .map((piece) => {
      if (piece === "\n") return element("br");
      if (piece >= "\uE000" && piece <= "\uF8FF") return show(piece.charCodeAt(0));
      return document.createTextNode(piece);
    });
}

function link(target, children) {
  const out = element("a", children);
  out.href = target;
  out.rel = "noopener noreferrer nofollow";
  out.target = "_blank";
  return out;
}

function element(name, children = [], kind = "") {
  const out = document.createElement(name);
  if (kind) out.className = kind;
  out.append(...children);
  return out;
}
