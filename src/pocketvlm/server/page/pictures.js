// The pictures and clips of the conversation: which there are, which one is shown, and how the model would see it.

import { APIError, viewPlans } from "./api.js";
import { chosenPages, together, urlOfAll } from "./documents.js";
import { MediaError, isClip, nameIn, readMedia } from "./media.js";
import { describePlan, draw } from "./overlay.js";

export const MODES = ["16x", "4x", "auto"];
const $ = (id) => document.getElementById(id);

/**
 * @param about the model's card: what it takes, and how it sees pictures by itself
 * @param onError called with one line
 */
export class Pictures {
  constructor(about, onError) {
    this.about = about;
    this.onError = onError;
    this.items = [];
    this.shown = null;
    this.marks = { marks: [], item: null };
    this.read = []; // all that were ever added: questions show those that were removed since
    this.cleared = new AbortController(); // ends what is still read or planned when all of it is given up
    this.settled = Promise.resolve(); // until all that was added or planned anew so far is there
    for (const input of document.querySelectorAll("input[name=rate]")) {
      input.checked = input.value === about.downsample_mode;
      input.addEventListener("change", () => this.show());
    }
    $("slices").append(new Option(`${about.max_slice_nums} (the model's own)`, ""));
    for (const count of [1, 2, 4, 9, 16, 36]) {
      if (count !== about.max_slice_nums) $("slices").append(new Option(count === 1 ? "1 (none)" : `${count}`, count));
    }
    $("slices").addEventListener("change", () => this.planAnew());
    $("show-views").addEventListener("change", () => this.drawOver());
    new ResizeObserver(() => this.drawOver()).observe($("canvas"));
    this.show();
  }

  get mode() {
    return document.querySelector("input[name=rate]:checked")?.value ?? this.about.downsample_mode;
  }

  /** `mm_processor_kwargs` of what is chosen now. */
  get options() {
    return { downsample_mode: this.mode, ...this.slices };
  }

  get slices() {
    const chosen = $("slices").value;
    return chosen ? { max_slice_nums: Number(chosen) } : {};
  }

  /** Add files one by one: one that cannot be read keeps none of the others away. */
  add(files) {
    const { signal } = this.cleared;
    return (this.settled = this.settled.then(() => this.addNow(files, signal)));
  }

  async addNow(files, signal) {
    for (const file of files) {
      if (signal.aborted) break;
      try {
        $("reading").textContent = `Reading ${file.name}…`;
        this.checkCounts(file);
        const read = await readMedia(file, this.about.max_media_bytes);
        const items = read.kind === "document" ? await chosenPages(read, this.room, signal) : [read];
        this.read.push(...items);
        await this.plan(items, signal);
        if (signal.aborted) break;
        this.items.push(...items);
        this.shown = items[0] ?? this.shown;
        this.show();
      } catch (error) {
        if (signal.aborted) break;
        const isSaid = error instanceof MediaError || error instanceof APIError;
        this.onError(isSaid ? error.message : `${file.name} cannot be read: ${error.message}`);
      }
    }
    $("reading").textContent = "";
  }

  remove(item) {
    const at = this.items.indexOf(item);
    this.items.splice(at, 1);
    if (this.shown === item) this.shown = this.items[Math.min(at, this.items.length - 1)] ?? null;
    this.show();
    (document.querySelector("#tray button[aria-pressed=true]") ?? $("choose")).focus();
  }

  /** Give up all of them, and what is still being read. */
  clear() {
    this.cleared.abort();
    this.cleared = new AbortController();
    for (const item of this.read) URL.revokeObjectURL(item.url);
    this.read = [];
    this.items = [];
    this.shown = null;
    this.marks = { marks: [], item: null };
    $("reading").textContent = "";
    this.show();
  }

  /** Draw marks of an answer: over one picture, or over whichever is shown. */
  mark(marks, item = null) {
    this.marks = { marks, item };
    const isHidden = item && item !== this.shown && this.items.includes(item) && marks.length;
    if (!isHidden) return this.drawOver(); // often, while an answer streams
    this.shown = item;
    return this.show();
  }

  checkCounts(file) {
    const clip = isClip(file);
    const [most, what] = clip ? [this.about.max_videos, "clips"] : [this.about.max_images, "pictures"];
    const has = this.items.filter((item) => (item.kind === "video") === clip).length;
    if (has >= most) throw new MediaError(`${file.name} is one too many: the most here is ${most} ${what}.`);
  }

  /** How many more pictures may be added. */
  get room() {
    return this.about.max_images - this.items.filter((item) => item.kind === "image").length;
  }

  /** Plan a picture, or pages of one document. */
  async plan(items, signal) {
    if (items[0]?.kind !== "image") return;
    try {
      const found = await viewPlans([urlOfAll(items, (item) => item.data)], MODES, this.slices, signal);
      items.forEach((item, number) => {
        const { plans, width, height } = found[number];
        Object.assign(item, { plans, width, height });
      });
    } catch (error) {
      error.message = nameIn(error.message, (items[0].document ?? items[0]).name);
      throw error;
    }
  }

  planAnew() {
    const { signal } = this.cleared;
    this.settled = this.settled.then(async () => {
      if (signal.aborted) return;
      $("reading").textContent = this.items.length ? "Planning the views anew…" : "";
      for (const items of together(this.items)) {
        await this.plan(items, signal).catch((error) => signal.aborted || this.onError(error.message));
      }
      $("reading").textContent = "";
      this.show();
    });
  }

  show() {
    const item = this.shown;
    $("empty").hidden = item !== null;
    $("canvas").hidden = item === null;
    const isPicture = item?.kind === "image";
    for (const id of ["picture", "overlay"]) $(id).toggleAttribute("hidden", !isPicture);
    $("clip").hidden = item?.kind !== "video";
    if (isPicture && $("picture").src !== item.url) {
      $("picture").src = item.url;
      $("picture").alt = item.name;
    }
    if (item === null) {
      $("picture").removeAttribute("src");
      $("picture").alt = "";
    }
    if (item?.kind === "video" && $("clip").src !== item.url) $("clip").src = item.url;
    if (item?.kind !== "video" && $("clip").hasAttribute("src")) $("clip").removeAttribute("src");
    this.showTray();
    this.showTokens();
    this.showNumbers();
    this.drawOver();
  }

  drawOver() {
    const item = this.shown;
    if (item?.kind !== "image") {
      $("overlay").replaceChildren();
      $("overlay").setAttribute("aria-label", "");
      return;
    }
    const marks = this.marks.item === null || this.marks.item === item ? this.marks.marks : [];
    draw($("overlay"), item, $("show-views").checked ? item.plans[this.mode] : null, marks);
  }

  showTokens() {
    const pictures = this.items.filter((item) => item.kind === "image");
    const clips = this.items.length - pictures.length;
    for (const mode of MODES) {
      const count = pictures.reduce((sum, item) => sum + item.plans[mode].visual_tokens, 0);
      const known = pictures.length ? `${count}` : "";
      $(`tokens-${mode}`).textContent = [known, clips ? (clips > 1 ? `${clips} clips` : "clip") : ""].filter(Boolean).join(" + ");
    }
  }

  showNumbers() {
    const item = this.shown;
    const plan = item?.plans?.[this.mode];
    $("views").hidden = !plan;
    $("view-rows").replaceChildren(...(plan?.views.map((view, index) => viewRow(view, index, plan.grid)) ?? []));
    if (!item) $("summary").textContent = "";
    else if (!plan) $("summary").textContent = `${item.name}: its frames become views when you ask about it.`;
    else {
      const plural = plan.visual_tokens === 1 ? "" : "s";
      const size = `${item.width} × ${item.height} pixels`;
      $("summary").textContent = `${item.name}: ${size}, ${describePlan(plan)}, ${plan.visual_tokens} visual token${plural}.`;
    }
  }

  showTray() {
    const hadFocus = document.activeElement?.closest?.("#tray li")?.dataset.id;
    $("tray").replaceChildren(...this.items.map((item) => this.trayEntry(item)));
    if (hadFocus) document.querySelector(`#tray li[data-id="${hadFocus}"] button`)?.focus();
  }

  trayEntry(item) {
    const entry = document.createElement("li");
    entry.dataset.id = item.id;
    const choose = entry.appendChild(document.createElement("button"));
    choose.type = "button";
    choose.className = "thumbnail";
    choose.ariaPressed = String(item === this.shown);
    choose.ariaLabel = `Show ${item.name}`;
    choose.append(thumbnail(item));
    choose.addEventListener("click", () => {
      this.shown = item;
      this.show();
    });
    const remove = entry.appendChild(document.createElement("button"));
    remove.type = "button";
    remove.className = "remove";
    remove.ariaLabel = `Remove ${item.name}`;
    remove.textContent = "×";
    remove.addEventListener("click", () => this.remove(item));
    return entry;
  }
}

/** A small picture of a medium; of a clip a sign. */
export function thumbnail(item) {
  const out = document.createElement(item.kind === "image" ? "img" : "span");
  if (item.kind === "image") Object.assign(out, { src: item.url, alt: "" });
  else Object.assign(out, { textContent: "▶", className: "clip-sign", ariaHidden: "true" });
  return out;
}

function viewRow(view, index, grid) {
  const row = document.createElement("tr");
  const place = grid ? `slice ${Math.ceil(index / grid[1])}, ${((index - 1) % grid[1]) + 1}` : "";
  const [left, top, right, bottom] = view.box.map(Math.round);
  const cells = [`${left}, ${top} to ${right}, ${bottom}`, `${view.rows} × ${view.columns}`, view.downsample_mode, view.visual_tokens];
  const head = row.appendChild(document.createElement("th"));
  head.scope = "row";
  head.textContent = index === 0 ? "overview" : place;
  for (const text of cells) row.insertCell().textContent = text;
  return row;
}
