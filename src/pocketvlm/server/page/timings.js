// What an answer cost: tokens, seconds of each stage, and how that compares with the answer before.

const STAGES = [
  ["preprocess", "preprocess"],
  ["queue", "queue"],
  ["encode", "encode"],
  ["prefill", "prefill"],
  ["decode", "decode"],
];

/**
 * Elements that show it.
 * @param now {usage, timings, mode, first} of this answer; `first` are the seconds until its first words were here
 * @param before the same of the answer before, or null
 */
export function showCosts(now, before) {
  return [tokens(now), bar(now.timings), legend(now), ...(before ? [comparison(now, before)] : [])];
}

export function seconds(value) {
  return value < 0.9995 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

function tokens({ usage, timings, mode }) {
  const out = document.createElement("p");
  out.className = "tokens-used";
  const cached = usage.prompt_tokens_details?.cached_tokens;
  const views = timings.views.length === 1 ? "one view" : `${timings.views.length} views`;
  const seen = usage.visual_tokens ? ` (${usage.visual_tokens} visual of ${views} at ${mode})` : "";
  const rate = timings.decode > 0 && usage.completion_tokens > 1 ? usage.completion_tokens / timings.decode : 0;
  out.textContent =
    `${usage.prompt_tokens} tokens in${seen}${cached ? `, ${cached} from the cache` : ""}; ` +
    `${usage.completion_tokens} out${rate ? `, ${rate.toFixed(rate < 10 ? 1 : 0)} a second` : ""}`;
  return out;
}

/** The stages beside one another, as wide as they took long. For the eye alone: the legend says it in words. */
function bar(timings) {
  const out = document.createElement("div");
  out.className = "bar";
  out.ariaHidden = "true";
  for (const [name] of STAGES) {
    const part = document.createElement("span");
    part.className = `stage-${name}`;
    part.style.flexGrow = String(1000 * (timings[name] || 0));
    out.append(part);
  }
  return out;
}

function legend({ timings, first }) {
  const out = document.createElement("dl");
  out.className = "stages";
  for (const [name, label] of STAGES) out.append(entry(label, seconds(timings[name] || 0), `stage-${name}`));
  if (first !== null) out.append(entry("first words in the browser", seconds(first)));
  out.append(entry("total on the server", seconds(timings.total), "whole"));
  return out;
}

function entry(label, value, kind = "") {
  const out = document.createElement("div");
  if (kind) out.className = kind;
  out.appendChild(document.createElement("dt")).textContent = label;
  out.appendChild(document.createElement("dd")).textContent = value;
  return out;
}

function comparison(now, before) {
  const out = document.createElement("p");
  out.className = "comparison";
  const modes = now.mode === before.mode ? "" : ` (${before.mode} → ${now.mode})`;
  const visual = change(before.usage.visual_tokens, now.usage.visual_tokens, String);
  const stages = change(before.timings.encode + before.timings.prefill, now.timings.encode + now.timings.prefill, seconds);
  // The time of all of an answer says something about pictures only where the answers are as long.
  const isAsLong = before.usage.completion_tokens === now.usage.completion_tokens;
  const total = isAsLong ? `; total ${change(before.timings.total, now.timings.total, seconds)}` : "";
  const cached = [now, before].some((one) => one.usage.prompt_tokens_details?.cached_tokens);
  const hint = cached ? " What is in the cache is not computed again." : "";
  out.textContent = `Against the answer before${modes}: visual tokens ${visual}; encode and prefill ${stages}${total}.${hint}`;
  return out;
}

function change(from, to, show) {
  if (show(from) === show(to)) return `${show(to)} as before`;
  const percent = from > 0 ? ` (${to >= from ? "+" : "−"}${Math.round(Math.abs(to / from - 1) * 100)} %)` : "";
  return `${show(from)} → ${show(to)}${percent}`;
}
