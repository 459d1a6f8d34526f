// Files that were dropped, pasted, chosen or photographed → what the page shows and sends. Reads nothing else.

export class MediaError extends Error {}

let count = 0;

/**
 * Read one file: {id, name, kind, size, url, data}. `url` is for this page to show, `data` a data: URL to send.
 * Whether the server can read it only the server knows; what it certainly cannot is refused here, in one line.
 */
export async function readMedia(file, maxBytes) {
  const head = await file.slice(0, 1024).text();
  if (file.type === "application/pdf" || head.includes("%PDF-")) {
    throw new MediaError(
      `${file.name} is a PDF document, which this page does not read yet. Save its pages as PNG or JPEG and add those.`,
    );
  }
  if (file.size === 0) throw new MediaError(`${file.name} is empty.`);
  if (file.size > maxBytes) {
    const most = Math.floor(maxBytes / 2 ** 20);
    throw new MediaError(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB, at most ${most} MB are taken.`);
  }
  const kind = isClip(file) ? "video" : "image";
  return { id: ++count, name: file.name, kind, size: file.size, url: URL.createObjectURL(file), data: await dataURL(file) };
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
  return message.replace(/^images\[\d+\]: (The data: URL)?/, (_, subject) => (subject ? name : `${name}: `));
}

function dataURL(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new MediaError(`${file.name} cannot be read by this browser.`));
    reader.readAsDataURL(file);
  });
}
