// The two dialogs: the key that a server wants, and the code of a request. Escape closes both.

const $ = (id) => document.getElementById(id);

/** Ask for a key; null where none is given. */
export function askForKey(refused) {
  const dialog = $("key-dialog");
  $("key-note").textContent = refused
    ? "The server refused that key. Check that all of it was pasted."
    : "It is kept until this tab is closed, and sent to this server only.";
  $("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let given = null;
    const submit = (event) => {
      event.preventDefault();
      const typed = $("key").value.trim();
      if (/^[\x21-\x7e]+$/.test(typed)) {
        given = typed;
        dialog.close();
      } else $("key-note").textContent = "A key is made of letters, digits and signs of ASCII, without spaces.";
    };
    const cancel = () => dialog.close();
    $("key-form").addEventListener("submit", submit);
    $("key-cancel").addEventListener("click", cancel);
    dialog.addEventListener(
      "close",
      () => {
        $("key-form").removeEventListener("submit", submit);
        $("key-cancel").removeEventListener("click", cancel);
        $("key").value = "";
        resolve(given);
      },
      { once: true },
    );
  });
}

/** Show code, and copy it where the browser allows that: over plain HTTP only on the machine itself. */
export async function showCode(title, code) {
  $("code-title").textContent = `This request as ${title}`;
  $("code").value = code;
  $("code-note").textContent = "";
  $("code-dialog").showModal();
  $("code").focus();
  $("code").select();
  $("code").scrollTop = 0;
  try {
    await navigator.clipboard.writeText(code);
    $("code-note").textContent = "Copied. Run it where the files are; a key is read from OPENAI_API_KEY.";
  } catch {
    $("code-note").textContent = "Copy it with Ctrl+C or ⌘C: it is selected. A key is read from OPENAI_API_KEY.";
  }
}

export function listenToDialogs() {
  $("code-close").addEventListener("click", () => $("code-dialog").close());
}
