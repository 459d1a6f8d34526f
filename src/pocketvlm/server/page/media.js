// Files that were dropped, pasted, chosen or photographed → what the page shows and sends. Reads nothing else.

export class MediaError extends Error {}

let count = 0;

/**
 * Read one file: {id, name, kind, size, url, data}. `url` is for this page to show, `data` a data: URL to send. A
 * "document" has no `url`: the server has to draw its pages.
 * Whether the server can read it only the server knows; what it certainly cannot is refused here, in one line.
 */
export async function readMedia(file, maxBytes) {
  if (file.size === 0) throw new MediaError(`${file.name} is empty.`);
  if (file.size > maxBytes) {
    const most = Math.floor(maxBytes / 2 ** 20);
    throw new MediaError(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB, at most ${most} MB are taken.`);
  }
  const data = await dataURL(file);
  if (await isDocument(file)) return { name: file.name, kind: "document", size: file.size, data };
  const kind = isClip(file) ? "video" : "image";
  return numbered({ name: file.name, kind, size: file.size, url: URL.createObjectURL(file), data });
}

/** A medium with a number of its own. */
export function numbered(item) {
  return { id: ++count, ...item };
}

/** PDF, TIFF and HEIC, by their first bytes: what browsers show no picture of. */
async function isDocument(file) {
  const head = new TextDecoder("latin1").decode(await file.slice(0, 1024).arrayBuffer());
  const isTiff = /^(II[*+]\0|MM\0[*+])/.test(head);
  const isHeic = /^[^]{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)/.test(head) && !/^[^]{4}ftyp[^]{0,56}avi[fs]/.test(head);
  return isTiff || isHeic || file.type === "application/pdf" || head.includes("%PDF-");
}

export function isClip(file) {
  return file.type.startsWith("video/") || (!file.type && /\.(mp4|m4v|mov|mkv|webm|avi|mpe?g|m?ts|flv|ogv|3gp|wmv)$/i.test(file.name));
}

/** The files of a paste or a drop. What is pasted is called image.png by every browser: it gets a number. */
export function filesOf(transfer, pasted = false) {
  return [...(transfer?.files ?? [])].map((file) => {
    if (!pasted || !/^image\.\w+$/.test(file.name)) return file;
    return new File([file], file.name.replace("image", `pasted-${++count}`), { type: file.type });
  });
}

/** Call `take` with the files of every way into the page. */
export function listenForFiles(take, { files, camera, choose, photograph, stage }) {
  choose.addEventListener("click", () => files.click());
  photograph.addEventListener("click", () => camera.click());
  for (const input of [files, camera]) {
    input.addEventListener("change", () => {
      const chosen = [...input.files];
      input.value = ""; // the same file may be chosen again
      take(chosen);
    });
  }
  document.addEventListener("paste", (event) => {
    const pasted = filesOf(event.clipboardData, true);
    if (!pasted.length) return;
    event.preventDefault();
    take(pasted);
  });
  // Anywhere on the page: a file that misses a small target would replace the page.
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      stage.classList.add("over");
    });
  }
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("over");
  });
  window.addEventListener("drop", (event) => {
    stage.classList.remove("over");
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    take(filesOf(event.dataTransfer));
  });
}

/** How a message of the server, which knows places and no names, reads for this file. */
export function nameIn(message, name) {
  const bare = message.replace(/^(images\[\d+\]|document): /, "");
  return bare.includes("The data: URL") ? bare.replace("The data: URL", name) : `${name}: ${bare}`;
}

function dataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new MediaError(`${file.name} cannot be read by this browser.`));
    reader.readAsDataURL(file);
  });
}
