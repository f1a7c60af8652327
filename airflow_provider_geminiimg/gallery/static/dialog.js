/* A dialog with buttons and keys, which restores the focus when it closes. */

import { $ } from "./dom.js";

/** Common part of both dialogs: labelled buttons, their keys, and the return of the focus. */
export class Dialog {
  constructor(id, actions, keys) {
    this.element = $(id);
    this.keys = keys;
    this.element.addEventListener("click", (event) => actions[event.target.closest("[data-do]")?.dataset.do]?.());
    this.element.addEventListener("keydown", (event) => {
      const action = actions[keys[event.key]];
      if (!action || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      action();
    });
    this.element.addEventListener("close", () => this.closed());
  }

  open() {
    if (!this.element.open) {
      this.opener = document.activeElement;
      this.element.showModal();
    }
  }

  back() {
    return this.opener;
  }

  closed() {
    const target = this.back();
    (target?.isConnected ? target : $("view")).focus();
  }
}
