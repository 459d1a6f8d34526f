// The model that questions go to: its name where the server has one alone, else a list of it and its adapters.

const KEPT = "pocketvlm-model"; // of sessionStorage: over a reload, and gone with the tab
const $ = (id) => document.getElementById(id);

export class Models {
  /**
   * @param cards of /v1/models: the names of one model, the first of which answers show, and its adapters, which have a parent
   * @param changed called with the name of another one that was chosen
   */
  constructor(cards, changed) {
    this.names = [cards[0].id, ...cards.filter((card) => card.parent).map((card) => card.id)];
    const kept = sessionStorage.getItem(KEPT);
    this.chosen = this.names.includes(kept) ? kept : this.names[0]; // an adapter may be gone since
    $("model").textContent = this.names[0];
    // As texts, whatever is in a name.
    $("models").replaceChildren(...this.names.map((name) => new Option(name, name, false, name === this.chosen)));
    $("model-name").hidden = this.isChoice;
    $("model-choice").hidden = !this.isChoice;
    $("models").addEventListener("change", () => {
      this.chosen = $("models").value;
      sessionStorage.setItem(KEPT, this.chosen);
      changed(this.chosen);
    });
  }

  get isChoice() {
    return this.names.length > 1;
  }
}
