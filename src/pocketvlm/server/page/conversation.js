// The conversation: its turns, the request that continues it, and the answer as it streams in.

import { chat } from "./api.js";
import { together, urlOfAll } from "./documents.js";

/**
 * @param model the name to ask for; another one may be set, which the next question goes to
 * @param pictures those of the left side: they belong to the conversation, each to the question that it came with
 * @param listener told of every change: turnAdded(turn), turnChanged(turn), runningChanged(isRunning)
 */
export class Conversation {
  constructor(model, pictures, listener) {
    this.model = model;
    this.pictures = pictures;
    this.listener = listener;
    this.turns = [];
    this.abort = null;
  }

  get isRunning() {
    return this.abort !== null;
  }

  /**
   * Ask; returns the turn when its answer has ended, whichever way: its `state` is "done", "stopped" or "failed" then.
   * Null where it was stopped before it was sent.
   * @param options {thinking, responseFormat}
   */
  async ask(question, { thinking, responseFormat }) {
    this.abort = new AbortController();
    this.listener.runningChanged(true);
    try {
      await this.pictures.settled;
      if (this.abort.signal.aborted) return null;
      const turn = this.begin(question, thinking, responseFormat);
      this.listener.turnAdded(turn);
      await this.run(turn);
      this.listener.turnChanged(turn);
      return turn;
    } finally {
      this.abort = null;
      this.listener.runningChanged(false);
    }
  }

  stop() {
    this.abort?.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
  }

  begin(question, thinking, responseFormat) {
    const sent = new Set(this.turns.flatMap((turn) => turn.media));
    const media = this.pictures.items.filter((item) => !sent.has(item));
    const turn = { question, media, text: "", reasoning: "", state: "running", structured: Boolean(responseFormat) };
    const here = this.pictures.items.length;
    turn.model = this.model;
    turn.mode = here ? this.pictures.mode : "";
    turn.picture = this.pictures.items.length === 1 ? this.pictures.items[0] : null; // whose coordinates boxes are of
    turn.before = this.turns.findLast((one) => one.costs)?.costs ?? null;
    this.turns.push(turn);
    const known = this.turns.slice();
    const kept = new Set(this.pictures.items);
    const options = here ? { mm_processor_kwargs: this.pictures.options } : {};
    // Asked for anew when it is sent and when it is copied: media are written in another way then.
    turn.request = (urlOf) => ({
      model: turn.model,
      messages: messagesOf(known, kept, urlOf),
      skip_special_tokens: false, // the tags of boxes and points
      ...options,
      ...(thinking ? { chat_template_kwargs: { enable_thinking: true } } : {}),
      ...(responseFormat ? { response_format: responseFormat } : {}),
    });
    return turn;
  }

  async run(turn) {
    const began = performance.now();
    let first = null;
    const stream = { stream: true, stream_options: { include_usage: true, include_timings: true } };
    try {
      for await (const chunk of chat({ ...turn.request((item) => item.data), ...stream }, this.abort.signal)) {
        const choice = chunk.choices[0];
        if (choice?.delta.content || choice?.delta.reasoning_content) first ??= (performance.now() - began) / 1000;
        turn.text += choice?.delta.content ?? "";
        turn.reasoning += choice?.delta.reasoning_content ?? "";
        if (choice?.finish_reason) turn.finish = choice.finish_reason;
        if (chunk.timings) turn.costs = { usage: chunk.usage, timings: chunk.timings, mode: turn.mode, first };
        this.listener.turnChanged(turn);
      }
      turn.state = "done";
    } catch (error) {
      turn.state = this.abort.signal.aborted ? "stopped" : "failed";
      turn.error = error.message;
    }
  }
}

/** The messages of turns; a picture that was removed since is left out, and so is an answer that never came. */
function messagesOf(turns, kept, urlOf) {
  const messages = [];
  turns.forEach((turn, index) => {
    const isLast = index === turns.length - 1;
    const answer = isLast ? "" : turn.text;
    if (!isLast && !answer) return; // but its pictures: they come with the next question that was answered
    const waiting = unanswered(turns, index).flatMap((one) => one.media);
    const media = [...waiting, ...turn.media].filter((item) => kept.has(item));
    const parts = together(media).map((items) => partOf(items, urlOf));
    messages.push({
      role: "user",
      content: parts.length ? [...parts, { type: "text", text: turn.question }] : turn.question,
    });
    if (!isLast) messages.push({ role: "assistant", content: answer });
  });
  return messages;
}

/** The turns directly before this one that have no answer. */
function unanswered(turns, index) {
  let from = index;
  while (from > 0 && !turns[from - 1].text) from--;
  return turns.slice(from, index);
}

function partOf(items, urlOf) {
  const kind = items[0].kind === "video" ? "video_url" : "image_url";
  return { type: kind, [kind]: { url: urlOfAll(items, urlOf) } };
}
