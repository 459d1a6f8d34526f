// Documents (PDF, TIFF) and pictures that browsers do not show (HEIC): the server draws their pages, a person chooses.

import { APIError, documentPages } from "./api.js";
import { nameIn, numbered } from "./media.js";

const $ = (id) => document.getElementById(id);
const LARGE = 1008; // pixels of the side of a page that is looked at; in the dialog they are small

/**
 * The pages of a document that are wanted, as pictures of the tray; none where nobody wanted any.
 * @param file {name, size, data}, as `readMedia` gives a document
 * @param room how many pictures there is room for
 */
export async function chosenPages(file, room, signal) {
  const first = await ask(file, "", undefined, signal);
  const pages = first.pages === 1 ? [1] : await choose(file, first, room, signal);
  if (!pages.length || signal.aborted) return [];
  const { previews } = await ask(file, first.pages === 1 ? "" : `#${pages.join(",")}`, LARGE, signal);
  const whole = { name: file.name, data: file.data, hasPages: first.pages > 1 };
  return previews.map(({ page, image }) =>
    numbered({
      name: first.pages === 1 ? file.name : `${file.name}, page ${page}`,
      kind: "image",
      size: file.size,
      url: image ?? "",
      data: urlOf(whole, file.data, [page]),
      document: whole,
      page,
    }),
  );
}

/** Media in the order of a message: neighbours that are pages of one document go together, and are sent once. */
export function together(items) {
  const groups = [];
  for (const item of items) {
    const last = groups.at(-1);
    if (item.document && last?.[0].document === item.document) last.push(item);
    else groups.push([item]);
  }
  return groups;
}

/** The URL of what `together` put together, where `url` says how a file is written. */
export function urlOfAll(items, url) {
  const [{ document: whole }] = items;
  if (!whole) return url(items[0]);
  return urlOf(whole, url(whole), items.map((item) => item.page));
}

function urlOf(whole, url, pages) {
  return whole.hasPages ? `${url}#${pages.join(",")}` : url;
}

async function ask(file, choice, side, signal) {
  try {
    return await documentPages(`${file.data}${choice}`, side, signal);
  } catch (error) {
    if (error instanceof APIError) error.message = nameIn(error.message, file.name);
    throw error;
  }
}

/** Let a person choose; returns numbers of pages, from 1, in their order. */
async function choose(file, first, room, signal) {
  const dialog = $("pages-dialog");
  $("pages-title").textContent = `Pages of ${file.name}`;
  $("pages-list").replaceChildren();
  const boxes = () => [...$("pages-list").querySelectorAll("input")];
  const chosen = () => boxes().filter((box) => box.checked);
  const report = () => {
    const count = chosen().length;
    const over = count > room;
    const most = over ? `, and there is room for ${room}: leave some out` : ` of ${first.pages}`;
    $("pages-note").textContent = `${count} page${count === 1 ? " is" : "s are"} chosen${most}.`;
    $("pages-add").disabled = count === 0 || over;
  };
  const show = (previews, areChosen) => {
    for (const preview of previews) $("pages-list").append(entryOf(preview, areChosen && chosen().length < room));
    $("pages-more").hidden = boxes().length >= first.pages;
    report();
  };
  show(first.previews, true);
  const more = async () => {
    const from = boxes().length + 1;
    const to = Math.min(first.pages, from + first.previews.length - 1);
    $("pages-more").disabled = true;
    try {
      const next = await ask(file, `#${from}-${to}`, undefined, signal);
      show(next.previews, false);
      boxes()[from - 1]?.focus();
    } catch (error) {
      $("pages-note").textContent = error.message;
    }
    $("pages-more").disabled = false;
  };
  const listening = new AbortController();
  const { signal: whileOpen } = listening;
  let pages = [];
  $("pages-list").addEventListener("change", report, { signal: whileOpen });
  $("pages-more").addEventListener("click", more, { signal: whileOpen });
  $("pages-cancel").addEventListener("click", () => dialog.close(), { signal: whileOpen });
  $("pages-none").addEventListener(
    "click",
    () => {
      for (const box of boxes()) box.checked = false;
      report();
    },
    { signal: whileOpen },
  );
  $("pages-form").addEventListener(
    "submit",
    (event) => {
      event.preventDefault();
      pages = chosen().map((box) => Number(box.value));
      dialog.close();
    },
    { signal: whileOpen },
  );
  signal.addEventListener("abort", () => dialog.close(), { signal: whileOpen });
  const closed = new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.showModal();
  boxes().find((box) => !box.disabled)?.focus();
  await closed;
  listening.abort();
  $("pages-list").replaceChildren();
  return signal.aborted ? [] : pages;
}

function entryOf(preview, isChosen) {
  const entry = document.createElement("li");
  const label = entry.appendChild(document.createElement("label"));
  const box = label.appendChild(document.createElement("input"));
  Object.assign(box, { type: "checkbox", value: preview.page, checked: isChosen && preview.image !== null });
  box.disabled = preview.image === null;
  if (preview.image !== null) label.appendChild(Object.assign(document.createElement("img"), { src: preview.image, alt: "" }));
  const name = label.appendChild(document.createElement("span"));
  name.textContent = preview.image === null ? `Page ${preview.page} cannot be read` : `Page ${preview.page}`;
  return entry;
}
