// Shows the turns of a conversation, and says aloud what is new in an answer: the visible text is drawn anew as it grows,
// which a screen reader would read from its beginning each time, so whole sentences go to a region of their own.

import { asCurl, asPython } from "./copying.js";
import { findMarks, nameOf } from "./grounding.js";
import { render } from "./markdown.js";
import { thumbnail } from "./pictures.js";
import { tableOf, valueOf } from "./schema.js";
import { showCosts } from "./timings.js";

const $ = (id) => document.getElementById(id);

/**
 * @param onMarks called with a turn and the marks of its answer, to draw them
 * @param onCode called with a title and code to show
 */
export class Turns {
  constructor(onMarks, onCode) {
    this.onMarks = onMarks;
    this.onCode = onCode;
    this.views = new Map();
    this.waiting = new Set();
    this.slow = 0;
  }

  clear() {
    this.views.clear();
    $("turns").replaceChildren();
    $("live").replaceChildren();
    $("no-turns").hidden = false;
  }

  add(turn) {
    $("no-turns").hidden = true;
    const entry = $("turns").appendChild(document.createElement("li"));
    const asked = entry.appendChild(part("div", "asked"));
    if (turn.media.length) {
      const media = asked.appendChild(part("p", "sent"));
      media.append(...turn.media.map(thumbnail));
      media.appendChild(part("span", "visually-hidden")).textContent = `With ${turn.media.map((item) => item.name).join(", ")}.`;
    }
    asked.appendChild(part("p", "question")).textContent = turn.question;
    const answer = entry.appendChild(part("div", "answer"));
    const view = { entry, answer, said: 0 };
    for (const name of ["reasoning", "body", "note", "costs", "actions"]) view[name] = answer.appendChild(part("div", name));
    answer.ariaBusy = "true";
    this.views.set(turn, view);
    this.say("The model answers.");
    toEnd(scroller());
  }

  /** Draw a turn anew, soon: several changes at once are drawn once, and a long text less often than a short one. */
  change(turn) {
    if (turn.state !== "running") return this.draw(turn);
    if (this.waiting.has(turn)) return undefined;
    this.waiting.add(turn);
    return setTimeout(() => {
      if (!this.waiting.delete(turn) || turn.state !== "running") return;
      const began = performance.now();
      this.draw(turn);
      this.slow = performance.now() - began;
    }, Math.max(30, 4 * this.slow));
  }

  draw(turn) {
    const view = this.views.get(turn);
    if (!view) return; // of a conversation that was cleared
    const outer = scroller();
    const atEnd = outer.scrollHeight - outer.scrollTop - outer.clientHeight < 80;
    this.waiting.delete(turn);
    const ended = turn.state !== "running";
    if (turn.reasoning) this.drawReasoning(turn, view, ended);
    this.drawBody(turn, view, ended);
    this.speak(turn, view, ended);
    view.answer.ariaBusy = String(!ended);
    view.answer.classList.toggle("running", !ended);
    if (ended) this.drawEnd(turn, view);
    if (!atEnd) return;
    const isTall = ended && view.entry.offsetHeight > outer.clientHeight;
    if (isTall) view.entry.scrollIntoView({ block: "start" });
    else toEnd(outer);
  }

  drawReasoning(turn, view, ended) {
    let box = view.reasoning.querySelector("details");
    if (!box) {
      box = view.reasoning.appendChild(document.createElement("details"));
      box.appendChild(document.createElement("summary")).textContent = "What it thought";
      box.append(part("div", "thoughts"));
    }
    if (!ended || !box.dataset.whole) box.lastElementChild.textContent = turn.reasoning;
    if (ended) box.dataset.whole = "yes";
  }

  drawBody(turn, view, ended) {
    const value = turn.structured && ended ? valueOf(turn.text) : undefined;
    if (value !== undefined) {
      const raw = document.createElement("details");
      raw.appendChild(document.createElement("summary")).textContent = "As JSON";
      raw.appendChild(document.createElement("pre")).textContent = turn.text.trim();
      const table = part("div", "scroll result");
      Object.assign(table, { tabIndex: 0, role: "region", ariaLabel: "The answer as a table" });
      table.append(tableOf(value));
      view.body.replaceChildren(table, raw);
    } else if (turn.structured) {
      const code = document.createElement("pre");
      code.textContent = turn.text;
      view.body.replaceChildren(code);
    } else {
      render(view.body, turn.text, findMarks(turn.text), (mark, number) => this.chip(turn, mark, number));
    }
    const marks = findMarks(turn.text);
    if (marks.length) this.onMarks(turn, marks);
  }

  /** What stands in the text for a box or a point: pressing it shows them on the picture. */
  chip(turn, mark, number) {
    const out = part("button", "chip");
    out.type = "button";
    out.textContent = `${number} ${nameOf(mark)}`;
    out.ariaLabel = `Show ${nameOf(mark)} on the picture`;
    out.addEventListener("click", () => this.onMarks(turn, findMarks(turn.text)));
    return out;
  }

  drawEnd(turn, view) {
    const notes = { stopped: "Stopped.", failed: turn.error };
    if (turn.state === "done" && turn.finish === "length") notes.done = "Cut off: the answer reached the most tokens it may have.";
    view.note.textContent = notes[turn.state] ?? (turn.text ? "" : "The model said nothing.");
    view.note.classList.toggle("failed", turn.state === "failed");
    if (turn.costs) view.costs.replaceChildren(...showCosts(turn.costs, turn.before));
    const base = new URL(".", location.href).href.slice(0, -1); // without what may stand behind a "?" of a link to here
    const code = (title, write) => {
      const button = part("button", "quiet");
      button.type = "button";
      button.textContent = `Copy as ${title}`;
      button.addEventListener("click", () => this.onCode(title, write(turn.request, base)));
      return button;
    };
    view.actions.replaceChildren(code("curl", asCurl), code("Python", asPython));
  }

  speak(turn, view, ended) {
    if (!ended) {
      const rest = turn.text.slice(view.said);
      const sentence = turn.structured ? null : /^[\s\S]*[.!?:;\n](?=\s)/.exec(rest);
      if (!sentence) return;
      view.said += sentence[0].length;
      return this.say(plainly(sentence[0]));
    }
    const end = { done: "End of the answer.", stopped: "Stopped.", failed: `No answer: ${turn.error}` }[turn.state];
    return this.say(`${plainly(turn.text.slice(view.said))} ${end}`);
  }

  say(text) {
    const live = $("live");
    while (live.childElementCount > 20) live.firstElementChild.remove();
    live.appendChild(document.createElement("p")).textContent = text.trim();
  }
}

/** What scrolls to the newest answer: the history, or on narrow screens the page, at whose end the question is asked. */
function scroller() {
  return getComputedStyle($("history")).overflowY === "auto" ? $("history") : document.scrollingElement;
}

function toEnd(outer) {
  outer.scrollTop = outer.scrollHeight;
}

/** A text without the signs that a reader would spell. */
function plainly(text) {
  return text.replace(/<\/?(ref|box|point)>/g, " ").replace(/[*_`#|]+/g, " ");
}

function part(name, kind) {
  const out = document.createElement(name);
  out.className = kind;
  return out;
}
