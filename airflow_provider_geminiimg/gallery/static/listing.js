/* The images of one run: read in pages, and updated while images are in progress. */

import { LOOK, PAGE, viewAddress } from "./addresses.js";
import { ask, beginnings, runOf } from "./api.js";
import { otherCard, imageCard, troubleRow } from "./cards.js";
import { $, chip, h, say } from "./dom.js";
import { counted } from "./format.js";
import { setShape, totalsOf, walk } from "./grid.js";
import { lightbox } from "./lightbox.js";
import { readChains, readDecisions, showChains } from "./loops.js";
import { emptyNote, notice } from "./messages.js";
import { BUSY, instanceOf, keyOf, labelOf, originChip, RUN_TONES, TROUBLES, workOf } from "./records.js";
import { listings } from "./state.js";

const PAUSE = 3000; // milliseconds between two updates
const LONGEST_PAUSE = 60_000;
const FEW = 2; // failures that are shown expanded
const WINDOW = 2000; // shown at once

export class Listing {
  /**
   * @param where the `dag`, `run`, `task` and `index` that the page shows, as far as they are given
   * @param filters the selected filters
   * @param limit maximum number of images; `null`: all, in pages
   * @param begin where the images begin: a `position`, or `after` an earlier page
   */
  constructor(where, filters = {}, limit = null, begin = {}) {
    Object.assign(this, { where, filters, limit, start: begin, items: [], next: null, entries: [], cards: new Map() });
    Object.assign(this, { summary: null, run: null, began: new Map(), pause: PAUSE, visible: true });
    Object.assign(this, { loops: new Map(), chains: new Map(), decisions: new Map() });
    this.totals = h("div", { class: "totals" });
    this.grid = h("ul", { class: "grid", "aria-label": `Images of ${where.run}` });
    this.grid.addEventListener("keydown", walk);
    this.troubles = h("ul", { class: "troubles", "aria-label": `Requests of ${where.run} that made no image` });
    this.attention = h("details", { class: "attention", hidden: true }, h("summary"), this.troubles);
    this.iterations = h("div", { class: "loops" });
    this.below = h("div", { class: "below" });
    this.element = h("div", { class: "listing" }, this.attention, this.iterations, this.grid, this.below);
    listings.push(this);
  }

  get names() {
    return { dag_id: this.where.dag, run_id: this.where.run };
  }

  get query() {
    const { task, index } = this.where;
    return { task_id: this.filters.task ?? task, map_index: index, iteration: this.filters.iteration };
  }

  get isBusy() {
    const statuses = this.summary?.statuses ?? {};
    return BUSY.some((each) => statuses[each]) || RUN_TONES[this.run?.state] === "busy";
  }

  page(after, limit) {
    const { model, state } = this.filters;
    const begin = after === null ? this.start : { after };
    return ask("images", { ...this.names, ...this.query, model, status: state, ...begin, limit });
  }

  readSummary() {
    const { task, index } = this.where;
    return ask("summary", { ...this.names, task_id: task, map_index: index });
  }

  /** Loads the first page, the totals and the filters. */
  async load() {
    this.grid.setAttribute("aria-busy", "true");
    const surroundings = Promise.all([this.readSummary(), runOf(this.where.dag, this.where.run)]);
    surroundings.catch(() => {}); // handled below, where it is awaited
    try {
      this.take(await this.page(null, this.limit ?? PAGE));
      [this.summary, this.run] = await surroundings;
      this.surround();
      this.readBeginnings();
    } catch (error) {
      this.below.replaceChildren(notice(error));
      if (error.status !== 0) return;
    } finally {
      this.grid.removeAttribute("aria-busy");
    }
    this.schedule();
  }

  async more() {
    if (!this.goesOn) return false;
    this.reading ??= this.readMore().finally(() => { this.reading = null; });
    return this.reading;
  }

  /** Loads the next page, once for concurrent callers; returns whether another page follows. */
  async readMore() {
    try {
      const { items, next } = await this.page(this.next, PAGE);
      this.next = next;
      this.show([...this.items, ...items]);
      this.surround();
    } catch (error) {
      this.below.replaceChildren(notice(error));
      return false;
    }
    return this.goesOn;
  }

  /** Whether a further page is shown below. */
  get goesOn() {
    return this.next !== null && this.items.length < WINDOW;
  }

  take({ items, next }) {
    this.next = next;
    this.show(items);
  }

  async readBeginnings() {
    if (!this.items.some((item) => item.landed_at)) return;
    const { dag, run, task } = this.where;
    Object.assign(this, await beginnings(dag, run, task));
    this.showOrigins();
    this.readLoops();
  }

  /** Shows the chains of tasks in loops; the decisions are of Airflow, which may not tell them. */
  async readLoops() {
    if (this.limit || !this.items.some((item) => Number.isInteger(item.iteration))) return;
    const show = () => {
      if (showChains(this.iterations, this, (entry) => lightbox.open(entry))) lightbox.showIterations(this);
    };
    this.chains = await readChains(this);
    show();
    if (!this.chains.size) return;
    this.decisions = await readDecisions(this.where, this.loops);
    show();
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.summary === null || this.isBusy) this.timer = setTimeout(() => this.look(), this.pause);
  }

  /** Updates the images while the page is visible. */
  async look() {
    if (document.hidden || !this.visible || !this.element.isConnected) {
      this.asleep = true;
      return;
    }
    this.asleep = false;
    const since = performance.now();
    try {
      const { dag, run } = this.where;
      const [summary, state] = await Promise.all([this.readSummary(), runOf(dag, run)]);
      const changed = JSON.stringify(summary) !== JSON.stringify(this.summary);
      const ended = state !== null && state.state !== this.run?.state;
      [this.summary, this.run] = [summary, state ?? this.run];
      if (changed) await this.again();
      this.surround();
      if (changed || ended) this.readBeginnings();
      else this.readLoops(); // a decision changes no record
      // A long list takes long to read: the pause grows with the duration of an update.
      this.pause = Math.min(Math.max(PAUSE, 4 * (performance.now() - since)), LONGEST_PAUSE);
    } catch (error) {
      this.below.replaceChildren(notice(error));
      if (error.status !== 0) return;
      this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
    }
    this.schedule();
  }

  wake() {
    if (this.asleep) this.look();
  }

  /** Reads the shown records again, and announces new images. */
  async again() {
    const wanted = Math.max(this.items.length, this.limit ?? PAGE);
    let [items, next] = [[], null];
    do {
      const page = await this.page(next, Math.min(this.limit ?? LOOK, LOOK));
      items = [...items, ...page.items];
      next = page.next;
    } while (next && items.length < wanted);
    const before = new Set(this.entries.filter((entry) => entry.image).map((entry) => entry.key));
    this.take({ items, next });
    const arrived = this.entries.filter((entry) => entry.image && !before.has(entry.key));
    for (const { key } of arrived) this.cards.get(key).element.classList.add("arrived");
    if (!arrived.length) return;
    const names = arrived.slice(0, 3).map((entry) => labelOf(entry.item)).join(", ");
    say(`${counted(arrived.length, "image")} arrived: ${names}${arrived.length > 3 ? " and more" : ""}.`);
  }

  /** Shows these items in the grid, in this order; unchanged cards are kept. */
  show(items) {
    this.items = items;
    const images = (item) => (item.images.length ? item.images : [null]);
    this.entries = items.flatMap((item) => images(item).map((image, i) => (
      { key: [this.where.dag, this.where.run, keyOf(item), i].join("/"), item, image, where: this.where, listing: this }
    )));
    if (this.entries.length) setShape(this.grid, this.entries);
    const wanted = new Set(this.entries.map((entry) => entry.key));
    for (const [key, { element }] of this.cards) {
      if (!wanted.has(key)) {
        element.remove();
        this.cards.delete(key);
      }
    }
    const isTrouble = ({ item }) => TROUBLES.includes(item.status);
    const troubles = this.entries.filter(isTrouble);
    this.arrange(this.grid, this.entries.filter((entry) => !isTrouble(entry)));
    this.arrange(this.troubles, troubles);
    if (this.attention.hidden) this.attention.open = troubles.length <= FEW;
    this.attention.hidden = !troubles.length;
    this.attention.firstChild.textContent = `${counted(troubles.length, "request")} made no image`;
    this.showOrigins();
    this.readLoops();
  }

  arrange(list, entries) {
    let at = list.firstElementChild;
    for (const entry of entries) {
      const element = this.card(entry, (old, fresh) => { if (at === old) at = fresh; });
      if (at === element) at = at.nextElementSibling;
      else list.insertBefore(element, at);
    }
  }

  card(entry, replaced) {
    const known = this.cards.get(entry.key);
    if (known?.item === entry.item) return known.element;
    const text = JSON.stringify([entry.item, entry.image]);
    if (known?.text === text) {
      known.item = entry.item;
      return known.element;
    }
    const make = TROUBLES.includes(entry.item.status) ? troubleRow : entry.image?.href ? imageCard : otherCard;
    const element = make(entry);
    this.cards.set(entry.key, { item: entry.item, text, element });
    if (known) {
      const focused = known.element.contains(document.activeElement);
      known.element.replaceWith(element);
      replaced(known.element, element);
      if (focused) (element.querySelector(".frame") ?? this.grid).focus();
    }
    return element;
  }

  showOrigins() {
    const last = new Map(this.items.map((item) => [workOf(item), item.n]));
    for (const entry of this.entries) {
      const place = this.cards.get(entry.key).element.querySelector(".origin");
      const origin = this.originOf(entry.item, last);
      if (!place || place.dataset.origin === origin) continue;
      place.dataset.origin = origin;
      place.replaceChildren(...originChip(origin));
    }
  }

  /** @param last the number of the last submission of each item */
  originOf(item, last = new Map()) {
    if (last.get(workOf(item)) > item.n) return "earlier";
    if (item.reused_from) return "reused";
    const began = this.began.get(instanceOf(item));
    if (!began || !item.landed_at) return "";
    return new Date(item.landed_at) < new Date(began) ? "reused" : "new";
  }

  /** Shows the totals, and the text below the images. */
  surround() {
    const seen = this.summary;
    if (!seen) return;
    const state = this.run?.state && chip(RUN_TONES[this.run.state] ?? "plain", `Run ${this.run.state}`);
    this.totals.replaceChildren(...totalsOf(seen), ...(state ? [state] : []));
    this.below.replaceChildren(...this.rest(seen));
    this.changed?.();
  }

  furtherButton() {
    const onclick = () => {
      this.further(this.next);
      $("view").scrollIntoView();
    };
    return h("button", { type: "button", class: "button", onclick }, "Further images");
  }

  rest(seen) {
    if (!seen.looked_at && !this.limit) return [emptyNote(this)];
    if (!seen.looked_at) return [h("p", { class: "quiet" }, this.isBusy ? "No image yet." : "No images.")];
    const nothing = "No image here is like that. Choose other filters to see more.";
    if (!this.items.length && this.next) return [h("p", { class: "quiet" }, "None so far. Looking further.")];
    if (!this.items.length) return [h("p", { class: "notice plain" }, nothing)];
    if (!this.next) return [];
    if (!this.limit) return this.goesOn ? [] : [this.furtherButton()];
    const { dag, run, task } = this.where;
    return [h("a", { class: "button", href: viewAddress(dag, run, task) }, "All images of this run")];
  }
}
