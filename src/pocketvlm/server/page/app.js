// Ties the page together: the model's card, then pictures on one side and the conversation on the other.

import { models, onKeyWanted } from "./api.js";
import { Conversation } from "./conversation.js";
import { askForKey, listenToDialogs, showCode } from "./dialogs.js";
import { listenForFiles } from "./media.js";
import { Models } from "./models.js";
import { Pictures } from "./pictures.js";
import { EXAMPLE, responseFormat } from "./schema.js";
import { Turns } from "./turns.js";

const $ = (id) => document.getElementById(id);

function showError(message) {
  const line = document.createElement("p");
  line.textContent = message;
  const close = line.appendChild(document.createElement("button"));
  Object.assign(close, { type: "button", className: "remove", textContent: "×", ariaLabel: "Dismiss this message" });
  close.addEventListener("click", () => {
    line.remove();
    $("question").focus();
  });
  $("alert").append(line);
  line.scrollIntoView({ block: "nearest" }); // on a phone it is below the pictures
}

function showTitle(model) {
  document.title = `${model} – pocketvlm`;
}

async function begin() {
  onKeyWanted(askForKey);
  listenToDialogs();
  let cards;
  try {
    cards = await models();
  } catch (error) {
    showError(`${error.message} Reload the page to try again.`);
    return;
  }
  const choice = new Models(cards, (name) => {
    conversation.model = name;
    showTitle(name);
  });
  showTitle(choice.chosen);
  const pictures = new Pictures(cards[0].pocketvlm, showError);
  const turns = new Turns((turn, marks) => pictures.mark(marks, turn.picture), showCode);
  const conversation = new Conversation(choice.chosen, pictures, {
    turnAdded: (turn) => {
      pictures.mark([]);
      turns.add(turn);
    },
    turnChanged: (turn) => turns.change(turn),
    runningChanged: (isRunning) => {
      const hadFocus = document.activeElement === $("stop");
      $("stop").hidden = !isRunning;
      $("ask").disabled = isRunning;
      if (hadFocus) $("question").focus();
    },
  });
  const take = (files) => {
    $("alert").replaceChildren();
    return pictures.add(files);
  };
  listenForFiles(take, {
    files: $("files"),
    camera: $("camera"),
    choose: $("choose"),
    photograph: $("photograph"),
    stage: $("stage"),
  });
  listenToComposer(conversation);
  $("anew").addEventListener("click", () => {
    conversation.clear();
    turns.clear();
    pictures.clear();
    $("alert").replaceChildren();
    $("question").value = "";
    $("question").focus();
  });
  for (const id of ["choose", "photograph", "ask"]) $(id).disabled = false; // till now nobody listened to them
  document.documentElement.dataset.ready = "yes";
}

function listenToComposer(conversation) {
  $("schema").value = JSON.stringify(EXAMPLE, null, 2);
  $("schema-mode").addEventListener("change", () => ($("schema-box").hidden = !$("schema-mode").checked));
  $("schema-box").hidden = !$("schema-mode").checked; // browsers keep what was ticked over a reload
  const ask = async () => {
    const question = $("question").value.trim();
    if (conversation.isRunning) return;
    $("alert").replaceChildren();
    if (!question) {
      showError("Write a question first.");
      $("question").focus();
      return;
    }
    let wanted = null;
    try {
      if ($("schema-mode").checked) wanted = responseFormat($("schema").value);
    } catch (error) {
      showError(error.message);
      $("schema").focus();
      return;
    }
    $("question").value = "";
    const { turns } = conversation;
    const turn = await conversation.ask(question, { thinking: $("thinking").checked, responseFormat: wanted });
    const isLost = turn === null || (!turn.text && turn.state !== "done");
    if (isLost && conversation.turns === turns) $("question").value ||= question; // to try again
  };
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  $("stop").addEventListener("click", () => conversation.stop());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) conversation.stop();
  });
}

begin();
