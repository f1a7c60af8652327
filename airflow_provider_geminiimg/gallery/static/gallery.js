/* The gallery's page: what a DAG, a run, a task or a task instance has made, and what it still waits for.
 *
 * What must stay true:
 * - What others wrote (prompts, names, messages of a gateway) goes into the page as text, never as markup: this page
 *   has the full power that its user has over Airflow.
 * - A thumbnail is asked for when its place comes onto the screen, and not before.
 * - Every address is relative: Airflow may live under a sub-path.
 * - Whatever can be done with a mouse can be done with the keyboard, and what arrives is said to a screen reader.
 */

const PAGE = 60; // pictures that are asked for at once
const SAMPLE = 12; // pictures of a run where many runs are shown
const LOOK = 200; // the most that one request may bring
const RUNS = 8;
const HOME = "?browse"; // not empty, so that nothing is taken from the page around
const PAUSE = 3000; // milliseconds between two looks at what is under way
const LONGEST_PAUSE = 60_000;
const MARGIN = 16; // pixels around a picture that fits
const MOST_CHOSEN = 4;
const FEW = 2; // troubles that are shown without being asked for
const CLOSE = 0.035; // pixels are whole, and models round them: a ratio this near is the one that was asked for
const RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8", "8:1"];

const STANDINGS = {
  landed: { label: "Landed", tone: "good" },
  waiting: { label: "Being sent", tone: "busy" },
  "in-flight": { label: "In flight", tone: "busy" },
  "to-collect": { label: "Paid, to collect", tone: "warn" },
  unknown: { label: "Outcome unknown", tone: "bad" },
  failed: { label: "Failed", tone: "bad" },
  unreadable: { label: "Record unreadable", tone: "bad" },
};
const REFUSED = { label: "Refused", tone: "bad" };
const BUSY = ["waiting", "in-flight"];
const TROUBLES = ["unknown", "failed", "unreadable"];
const BASES = {
  gateway: "by the gateway's word",
  connection: "estimated by the connection's price",
  google_list: "estimated by Google's list price",
  reused: "another task of this DAG had paid for it",
};
const ESTIMATES = ["connection", "google_list"];
const ORIGINS = {
  new: ["good", "New", "The task's last attempt made it."],
  reused: ["plain", "Reused", "It was there before, and the task's last attempt paid nothing for it."],
  earlier: ["plain", "Earlier", "A later picture has taken its place."],
};
const BILLED = { no: "No money was spent.", yes: "It was paid for.", unknown: "Money may have been spent." };
const RUN_TONES = { success: "good", failed: "bad", running: "busy", queued: "busy" };
const REFUSALS = {
  0: "Airflow does not answer. Check your connection; this page tries again by itself where something is under way.",
  401: "You are not signed in, or no longer. Reload Airflow and sign in.",
  403: "You have no right to see these pictures. Whoever may read the DAG's XComs may: ask your Airflow administrator.",
  404: "There is nothing here: the run, the DAG or the picture is gone, or its address is wrong.",
};

const $ = (id) => document.getElementById(id);
const say = (text) => { $("live").textContent = text; };
const counted = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/* Elements and text */

function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

const chip = (tone, text, title) => h("span", { class: `chip ${tone}`, title }, text);

const originChip = (origin) => (ORIGINS[origin] ? [chip(...ORIGINS[origin])] : []);

function notice(error) {
  const text = REFUSALS[error.status] ?? `The gallery could not read this (${error.message}). Reload to try again.`;
  return h("p", { class: "notice", role: "alert" }, icon("warning"), text);
}

function amount(value, currency) {
  const digits = { minimumFractionDigits: currency === "USD" ? 2 : 0, maximumFractionDigits: 4 };
  if (currency !== "USD") return `${value.toLocaleString(undefined, digits)} ${currency}`;
  return value.toLocaleString(undefined, { ...digits, style: "currency", currency, currencyDisplay: "narrowSymbol" });
}

function price(cost) {
  if (!cost || cost.amount === null) return "price unknown";
  return (ESTIMATES.includes(cost.basis) ? "≈ " : "") + amount(cost.amount, cost.currency);
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toLocaleString(undefined, { maximumFractionDigits: 1 })} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function size(bytes) {
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "KB"] : [bytes / 1e6, "MB"];
  return `${value.toLocaleString(undefined, { maximumFractionDigits: 1 })} ${unit}`;
}

function moment(iso) {
  const when = new Date(iso);
  const shown = when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return h("time", { datetime: iso, title: when.toLocaleString() }, shown);
}

function name(image) {
  try {
    return decodeURIComponent(image.name);
  } catch {
    return image.name;
  }
}

function proportion(text) {
  const [width, height] = text.split(":").map(Number);
  return width / height;
}

/** How large an image is; none where its header does not tell. */
const pixels = (image) => image?.width && `${image.width} × ${image.height}`;

function ratio(image) {
  const got = image.width / image.height;
  const near = RATIOS.find((each) => Math.abs(got / proportion(each) - 1) < CLOSE);
  return near ?? `${got.toLocaleString(undefined, { maximumFractionDigits: 2 })}:1`;
}

/** The ratio that was asked for and the one that came: one text where they agree, both where they don't. */
function shape(item, image) {
  const wanted = item.requested?.aspect_ratio;
  if (!image?.width) return { text: wanted, odd: false };
  const odd = Boolean(wanted) && Math.abs(image.width / image.height / proportion(wanted) - 1) >= CLOSE;
  return { text: odd ? `${wanted} asked, ${ratio(image)} got` : (wanted ?? ratio(image)), odd };
}

const label = (item) => item.task_id + (item.map_index >= 0 ? ` [${item.map_index}]` : "");
const workOf = (item) => [item.task_id, item.map_index, item.item].join("/");
const keyOf = (item) => `${workOf(item)}/${item.n}`;
const standingOf = (item) => (item.error?.code === "content_refused" ? REFUSED : STANDINGS[item.standing]);

/* Airflow */

class Trouble extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function get(address, query = {}, options = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  const search = given.length ? `?${new URLSearchParams(given)}` : "";
  let answer;
  try {
    answer = await fetch(address + search, { headers: { Accept: "application/json" }, ...options });
    if (answer.ok) return await answer.json();
  } catch {
    throw new Trouble(0, "no answer");
  }
  const body = await answer.json().catch(() => null);
  throw new Trouble(answer.status, typeof body?.detail === "string" ? body.detail : `HTTP ${answer.status}`);
}

/** What Airflow itself says; `null` where it does not: pictures are shown without it. */
const airflow = (address, query, options) => get(`../api/v2/${address}`, query, options).catch(() => null);

const apiOf = (dag, run) => `api/dags/${encodeURIComponent(dag)}/runs/${encodeURIComponent(run)}`;
const ofRun = (dag, run) => `dags/${encodeURIComponent(dag)}/dagRuns/${encodeURIComponent(run)}`;

/** The runs of some DAGs, newest first. A POST, but one that only reads: it carries a list. */
function runsOf(dags, offset) {
  const body = JSON.stringify({ dag_ids: dags, order_by: "-run_after", page_limit: RUNS, page_offset: offset });
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  return get("../api/v2/dags/~/dagRuns/list", {}, { method: "POST", headers, body });
}

/** When each task instance of a run began its last attempt: what landed before that was not made by it. */
async function beginnings(dag, run, task) {
  const found = new Map();
  for (let offset = 0; offset < 2000; ) {
    const page = await airflow(`${ofRun(dag, run)}/taskInstances`, { task_id: task, limit: 100, offset });
    if (!page?.task_instances.length) break;
    for (const ti of page.task_instances) found.set(`${ti.task_id}/${ti.map_index}`, ti.start_date);
    offset += page.task_instances.length;
    if (offset >= page.total_entries) break;
  }
  return found;
}

/* Thumbnails, and whatever else waits until it is on the screen */

function whenSeen(margin, seen, unseen = () => {}) {
  const watch = (entries) => {
    for (const { isIntersecting, target } of entries) (isIntersecting ? seen : unseen)(target);
  };
  return new IntersectionObserver(watch, { rootMargin: margin });
}

const thumbnails = whenSeen(
  "0px",
  (frame) => {
    const image = frame.querySelector("img");
    if (image && !image.hasAttribute("src")) image.src = image.dataset.src;
  },
  (frame) => {
    const image = frame.querySelector("img");
    // Who scrolls past does not wait for it; a request that has not come back is taken back.
    if (image?.hasAttribute("src") && !image.complete) image.removeAttribute("src");
  },
);

function thumbnail(image, alt) {
  const element = h("img", { alt, "data-src": image.thumb, decoding: "async", draggable: "false" });
  element.addEventListener("load", () => element.classList.add("loaded"));
  element.addEventListener("error", () => {
    if (element.hasAttribute("src")) element.replaceWith(icon("picture"));
  });
  return element;
}

function framed(frame) {
  thumbnails.observe(frame);
  return frame;
}

/** Calls `more` whenever the end of a list comes near, until it answers that there is no more. */
function endless(parent, more) {
  const end = h("div", { class: "end", "aria-hidden": "true" });
  let asking = false;
  const watch = whenSeen("900px", async () => {
    if (asking) return;
    asking = true;
    const goesOn = await more();
    asking = false;
    watch.unobserve(end);
    if (goesOn) watch.observe(end); // tells again at once where the end is still near
  });
  parent.append(end);
  watch.observe(end);
  return end;
}

/* One picture, or what stands in for one */

function facts(item, image) {
  const { text, odd } = shape(item, image);
  const list = [
    ["Model", item.model, "wide"],
    ["Resolution", item.requested?.resolution],
    ["Ratio", text, odd ? "odd" : null],
    ["Pixels", pixels(image)],
    ["Cost", item.cost && item.standing === "landed" ? price(item.cost) : null],
    ["Time", item.seconds !== null && item.seconds !== undefined ? duration(item.seconds) : null],
  ];
  const shown = list.filter(([, value]) => value);
  return h("ul", { class: "facts" }, shown.map(([what, value, kind]) => h(
    "li", { class: kind, title: `${what}: ${value}` }, h("span", { class: "spoken" }, `${what}: `), value,
  )));
}

function describe(item, image) {
  return item.prompt || `${name(image)}, made by ${label(item)}`;
}

function pictureCard(entry) {
  const { item, image } = entry;
  const title = name(image);
  const choose = h("input", { type: "checkbox", "aria-label": `Compare ${title}` });
  choose.checked = chosen.has(entry.key);
  choose.addEventListener("change", () => setChosen(entry, choose.checked));
  const open = { type: "button", class: "frame", "aria-label": `Open ${title}`, onclick: () => lightbox.open(entry) };
  return h("li", { class: "card", "data-key": entry.key },
    framed(h("button", open, thumbnail(image, describe(item, image)))),
    h("div", { class: "text" },
      h("p", { class: "name", title }, title),
      h("p", { class: "by" }, label(item), h("span", { class: "origin" })),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      facts(item, image),
      item.mismatch && h("p", { class: "reason warn" }, icon("warning"), item.mismatch),
      h("label", { class: "choose" }, choose, h("span", { "aria-hidden": "true" }, "Compare"))));
}

/** Where a picture is on its way, or may not be shown. */
function otherCard(entry) {
  const { item, image } = entry;
  const { label: state, tone } = image ? { label: "Not shown", tone: "warn" } : standingOf(item);
  const isBusy = BUSY.includes(item.standing);
  return h("li", { class: `card ${tone}`, "data-key": entry.key },
    h("div", { class: "frame", "aria-hidden": "true" }, isBusy ? h("span", { class: "pulse" }) : icon("warning")),
    h("div", { class: "text" },
      h("p", { class: "name" }, image ? name(image) : label(item)),
      h("p", { class: "by" }, image ? label(item) : null, chip(tone, state)),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      h("p", { class: "next" }, image ? image.why : item.next),
      facts(item, image)));
}

/** What came to no picture: why, and what to do about it. */
function troubleRow({ key, item }) {
  const { label: state, tone } = standingOf(item);
  const { message = null, hint = null } = item.error ?? {};
  const reason = hint && message.endsWith(hint) ? message.slice(0, -hint.length) : message;
  const next = hint ? hint : [item.next, !item.error && BILLED[item.billed]].filter(Boolean).join(" ");
  return h("li", { class: `trouble ${tone}`, "data-key": key }, icon("warning"),
    h("div", null,
      h("p", { class: "by" }, h("strong", null, label(item)), chip(tone, state), h("span", null, item.model)),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      reason && h("p", { class: "reason" }, reason),
      h("p", { class: "next" }, next)));
}

/* The pictures of one run */

const listings = [];

class Listing {
  /**
   * @param where its `dag`, `run`, `task` and `index`, as far as the page is about them
   * @param filters what a person chose among them
   * @param limit how many to show at most; `null`: all, in pages
   */
  constructor(where, filters = {}, limit = null) {
    Object.assign(this, { where, filters, limit, items: [], next: null, entries: [], cards: new Map() });
    Object.assign(this, { summary: null, run: null, began: new Map(), pause: PAUSE, visible: true });
    this.address = apiOf(where.dag, where.run);
    this.totals = h("div", { class: "totals" });
    this.grid = h("ul", { class: "grid", "aria-label": `Pictures of ${where.run}` });
    this.grid.addEventListener("keydown", walk);
    this.troubles = h("ul", { class: "troubles", "aria-label": `Requests of ${where.run} that made no picture` });
    this.attention = h("details", { class: "attention", hidden: true }, h("summary"), this.troubles);
    this.below = h("div", { class: "below" });
    this.element = h("div", { class: "listing" }, this.attention, this.grid, this.below);
    listings.push(this);
  }

  get query() {
    return { task_id: this.filters.task ?? this.where.task, map_index: this.where.index };
  }

  get isBusy() {
    const standings = this.summary?.standings ?? {};
    return BUSY.some((each) => standings[each]) || RUN_TONES[this.run?.state] === "busy";
  }

  page(after, limit) {
    const { model, state } = this.filters;
    return get(`${this.address}/pictures`, { ...this.query, model, standing: state, after, limit });
  }

  readSummary() {
    return get(`${this.address}/summary`, { task_id: this.where.task, map_index: this.where.index });
  }

  /** The first page, and all that surrounds it. */
  async load() {
    this.grid.setAttribute("aria-busy", "true");
    const surroundings = Promise.all([this.readSummary(), airflow(ofRun(this.where.dag, this.where.run))]);
    surroundings.catch(() => {}); // said below, where it is waited for
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
    if (!this.next) return false;
    this.reading ??= this.readMore().finally(() => { this.reading = null; });
    return this.reading;
  }

  /** The page after those that are shown, once for all who ask for it; whether another one follows. */
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
    return this.next !== null;
  }

  take({ items, next }) {
    this.next = next;
    this.show(items);
  }

  async readBeginnings() {
    if (!this.items.some((item) => item.landed_at)) return;
    const { dag, run, task } = this.where;
    this.began = await beginnings(dag, run, task);
    this.showOrigins();
  }

  schedule() {
    clearTimeout(this.timer);
    if (this.summary === null || this.isBusy) this.timer = setTimeout(() => this.look(), this.pause);
  }

  /** What has changed since the last look, as long as somebody may see it. */
  async look() {
    if (document.hidden || !this.visible || !this.element.isConnected) {
      this.asleep = true;
      return;
    }
    this.asleep = false;
    const since = performance.now();
    try {
      const { dag, run } = this.where;
      const [summary, state] = await Promise.all([this.readSummary(), airflow(ofRun(dag, run))]);
      const changed = JSON.stringify(summary) !== JSON.stringify(this.summary);
      const ended = state !== null && state.state !== this.run?.state;
      [this.summary, this.run] = [summary, state ?? this.run];
      if (changed) await this.again();
      this.surround();
      if (changed || ended) this.readBeginnings();
      // A long list takes long to read: looking at it never takes more than a part of anybody's time.
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

  /** Read again what is shown; what is new among it is said. */
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
    const names = arrived.slice(0, 3).map((entry) => label(entry.item)).join(", ");
    say(`${counted(arrived.length, "picture")} arrived: ${names}${arrived.length > 3 ? " and more" : ""}.`);
  }

  /** Make the grid show these items, in this order, leaving alone what has not changed. */
  show(items) {
    this.items = items;
    const pictures = (item) => (item.images.length ? item.images : [null]);
    this.entries = items.flatMap((item) => pictures(item).map((image, i) => (
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
    const isTrouble = ({ item }) => TROUBLES.includes(item.standing);
    const troubles = this.entries.filter(isTrouble);
    this.arrange(this.grid, this.entries.filter((entry) => !isTrouble(entry)));
    this.arrange(this.troubles, troubles);
    if (this.attention.hidden) this.attention.open = troubles.length <= FEW;
    this.attention.hidden = !troubles.length;
    this.attention.firstChild.textContent = `${counted(troubles.length, "request")} made no picture`;
    this.showOrigins();
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
    const make = TROUBLES.includes(entry.item.standing) ? troubleRow : entry.image?.href ? pictureCard : otherCard;
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

  /** @param last the number of the last submission of each item of work */
  originOf(item, last = new Map()) {
    if (last.get(workOf(item)) > item.n) return "earlier";
    if (item.reused_from) return "reused";
    const began = this.began.get(`${item.task_id}/${item.map_index}`);
    if (!began || !item.landed_at) return "";
    return new Date(item.landed_at) < new Date(began) ? "reused" : "new";
  }

  /** Totals, and what to say below the pictures. */
  surround() {
    const seen = this.summary;
    if (!seen) return;
    const state = this.run?.state && chip(RUN_TONES[this.run.state] ?? "plain", `Run ${this.run.state}`);
    this.totals.replaceChildren(...totals(seen), ...(state ? [state] : []));
    this.below.replaceChildren(...this.rest(seen));
    this.changed?.();
  }

  rest(seen) {
    if (!seen.looked_at && !this.limit) return [empty(this)];
    if (!seen.looked_at) return [h("p", { class: "quiet" }, this.isBusy ? "No picture yet." : "No pictures.")];
    const nothing = "No picture here is like that. Choose other filters to see more.";
    if (!this.items.length && this.next) return [h("p", { class: "quiet" }, "None so far. Looking further.")];
    if (!this.items.length) return [h("p", { class: "notice plain" }, nothing)];
    if (!this.limit || !this.next) return [];
    const { dag, run, task } = this.where;
    return [h("a", { class: "button", href: address(dag, run, task) }, "All pictures of this run")];
  }
}

/** The arrow keys go from card to card, up and down by what lies there. */
function walk(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 };
  const step = steps[event.key];
  const card = event.target.closest(".card");
  if (!step || !card || !event.target.matches(".frame")) return;
  event.preventDefault();
  const frames = [...this.querySelectorAll("button.frame")];
  const here = frames.indexOf(event.target);
  const { left } = event.target.getBoundingClientRect();
  const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  for (let i = here + step; frames[i]; i += step) {
    if (sideways || Math.abs(frames[i].getBoundingClientRect().left - left) < 2) {
      frames[i].focus();
      return;
    }
  }
}

/** The shape that most pictures have is the shape of every frame, so that nothing moves when a picture comes. */
function setShape(grid, entries) {
  const seen = {};
  for (const { item, image } of entries) {
    const each = image?.width ? ratio(image) : item.requested?.aspect_ratio;
    if (each) seen[each] = (seen[each] ?? 0) + 1;
  }
  const [most] = Object.entries(seen).sort((a, b) => b[1] - a[1])[0] ?? ["1:1"];
  const value = String(Math.min(Math.max(proportion(most), 0.75), 16 / 9));
  if (grid.style.getPropertyValue("--shape") !== value) grid.style.setProperty("--shape", value);
}

function totals(seen) {
  const total = (text, title) => h("span", { class: "total", title }, text);
  const isPart = seen.not_started && !seen.more;
  const number = isPart ? `${seen.pictures.toLocaleString()} of ${counted(seen.wanted, "picture")}`
    : counted(seen.pictures, "picture") + (seen.more ? " or more" : "");
  const costs = seen.costs.map((cost) => total(price(cost), BASES[cost.basis]));
  const others = Object.entries(seen.standings).filter(([standing]) => standing !== "landed");
  return [
    h("span", { class: "total strong" }, number),
    ...costs,
    ...(seen.without_price ? [total(`${seen.without_price.toLocaleString()} without a price`)] : []),
    ...others.map(([standing, count]) => {
      const { label: text, tone } = STANDINGS[standing];
      return chip(tone, `${count.toLocaleString()} ${text.toLowerCase()}`);
    }),
    ...(seen.not_started ? [chip("plain", `${seen.not_started.toLocaleString()} not started`)] : []),
  ];
}

const EXAMPLE = `GeminiImageGenerateOperator(
    task_id="hero",
    prompt="A lighthouse keeper drinking coffee at dawn",
)`;

/** @param listing `null` where the page is about more than one run */
function empty(listing) {
  const code = (text) => h("code", null, text);
  const place = (title, ...said) => h("div", { class: "empty" }, icon("picture"), h("h2", null, title), said);
  if (listing?.isBusy) {
    const soon = "The run is under way. Pictures appear here as soon as they are asked for, and arrive as they land.";
    return place("No picture yet", h("p", null, soon));
  }
  const whose = listing && (listing.where.task ? "This task" : "This run");
  return place(whose ? `${whose} has made no pictures` : "There are no pictures yet",
    h("p", null, "Pictures appear here when a task makes them with ", code("GeminiImageGenerateOperator"),
      " or edits them with ", code("GeminiImageEditOperator"), ":"),
    h("pre", { tabindex: "0" }, code(EXAMPLE)),
    listing && h("p", { class: "quiet" }, "Airflow shows this tab on every DAG and task. ",
      code("[geminiimg] gallery_tabs"), " in Airflow's configuration says whether it does."));
}

/* Choosing and comparing */

const chosen = new Map();

function setChosen(entry, isChosen) {
  const isFull = isChosen && chosen.size === MOST_CHOSEN;
  if (isFull) say(`${MOST_CHOSEN} pictures can be compared at once. Take one out first.`);
  else if (isChosen) chosen.set(entry.key, entry);
  else chosen.delete(entry.key);
  showChosen();
}

function showChosen() {
  for (const listing of listings) {
    for (const [key, { element }] of listing.cards) {
      const box = element.querySelector(".choose input");
      if (box) box.checked = chosen.has(key);
      element.classList.toggle("chosen", chosen.has(key));
    }
  }
  const entries = [...chosen.values()];
  $("tray").hidden = !entries.length;
  $("chosen").replaceChildren(...entries.map((entry) => {
    const onclick = () => setChosen(entry, false);
    return h("li", null, h("button", { type: "button", "aria-label": `Take out ${name(entry.image)}`, onclick },
      h("img", { src: entry.image.thumb, alt: "" }), icon("close")));
  }));
  const howMany = `${entries.length} of ${MOST_CHOSEN} chosen`;
  $("tray-text").textContent = entries.length < 2 ? "Choose one to three more to compare" : howMany;
  $("compare-open").disabled = entries.length < 2;
}

/** A picture in a box that it fits into, or is larger than and moves about in. */
class Stage {
  constructor(box, changed) {
    Object.assign(this, { box, changed, image: box.querySelector("img"), factor: 1 });
    new ResizeObserver(() => this.draw()).observe(box);
    this.image.addEventListener("load", () => this.draw());
    this.image.addEventListener("dblclick", () => this.zoom(this.factor > 1 ? 1 : this.actual));
    box.addEventListener("pointerdown", (event) => this.grab(event));
  }

  /** @param picture with its `href` and, where known, `thumb`, `width` and `height` */
  show(picture, alt) {
    this.picture = picture;
    this.image.alt = alt;
    this.image.src = picture.thumb ?? picture.href;
    this.box.classList.add("waits");
    const full = new Image();
    full.src = picture.href;
    full.decode().catch(() => {}).then(() => {
      if (this.picture !== picture) return;
      this.image.src = picture.href; // where it can't be shown, the browser says so itself
      this.box.classList.remove("waits");
    });
    this.zoom(1);
  }

  get width() {
    return this.picture?.width ?? this.image.naturalWidth;
  }

  get height() {
    return this.picture?.height ?? this.image.naturalHeight;
  }

  get fit() {
    const [width, height] = [this.box.clientWidth - 2 * MARGIN, this.box.clientHeight - 2 * MARGIN];
    return Math.min(Math.max(width, 1) / this.width, Math.max(height, 1) / this.height, 1) || 1;
  }

  get actual() {
    return Math.max(1, 1 / this.fit);
  }

  zoom(factor) {
    this.factor = Math.min(Math.max(factor, 1), Math.max(8, 4 * this.actual));
    this.draw();
  }

  draw() {
    if (!this.picture || !this.width) return;
    const { box, image } = this;
    const [halfWidth, halfHeight] = [box.clientWidth / 2, box.clientHeight / 2];
    const across = (box.scrollLeft + halfWidth) / box.scrollWidth;
    const down = (box.scrollTop + halfHeight) / box.scrollHeight;
    box.classList.toggle("zoomed", this.factor > 1);
    image.style.width = `${Math.floor(this.width * this.fit * this.factor)}px`;
    image.style.height = `${Math.floor(this.height * this.fit * this.factor)}px`;
    box.scrollTo(across * box.scrollWidth - halfWidth, down * box.scrollHeight - halfHeight);
    this.changed?.(Math.round(100 * this.fit * this.factor));
  }

  grab(event) {
    if (this.factor === 1 || event.button !== 0) return;
    const { box } = this;
    const [x, y] = [event.clientX + box.scrollLeft, event.clientY + box.scrollTop];
    const drag = (moved) => box.scrollTo(x - moved.clientX, y - moved.clientY);
    const drop = () => box.removeEventListener("pointermove", drag);
    box.setPointerCapture(event.pointerId);
    box.addEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, drop, { once: true });
  }
}

/** What both dialogs have: buttons that say what they do, keys for them, and a way back to where the focus was. */
class Dialog {
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

class Compare extends Dialog {
  constructor() {
    super("compare", {
      close: () => this.element.close(),
      in: () => this.zoom(this.stages[0].factor * 1.5),
      out: () => this.zoom(this.stages[0].factor / 1.5),
      fit: () => this.zoom(1),
    }, { "+": "in", "=": "in", "-": "out", 0: "fit" });
    this.stages = [];
  }

  /** @param pictures each with `image`, and `item` where the record is known; `role` where it is not the result */
  open(pictures) {
    const same = (read) => new Set(pictures.map((each) => JSON.stringify(read(each) ?? null))).size === 1;
    const rows = [
      ["Prompt", ({ item }) => item?.prompt],
      ["Model", ({ item }) => item?.model],
      ["Asked", ({ item }) => item && asked(item)],
      ["Pixels", ({ image }) => pixels(image)],
      ["Cost", ({ item }) => item && price(item.cost)],
      ["Time", ({ item }) => item?.seconds && duration(item.seconds)],
      ["Run", ({ where }) => where?.run],
    ].filter(([, read]) => pictures.some(read));
    const row = (each) => ([what, read]) => [
      h("dt", { class: same(read) ? null : "odd" }, what),
      h("dd", null, read(each) || "not recorded"),
    ];
    const panes = pictures.map((each) => h("figure", { class: "pane" },
      h("div", { class: "stage", tabindex: "0", role: "group", "aria-label": `Picture ${name(each.image)}` }, h("img")),
      h("figcaption", null,
        h("p", { class: "name" }, name(each.image)),
        h("p", { class: "by" }, each.role ?? (each.item && label(each.item))),
        h("dl", null, rows.flatMap(row(each))))));
    $("panes").replaceChildren(...panes);
    $("panes").dataset.count = pictures.length;
    super.open();
    this.stages = panes.map((pane, i) => new Stage(pane.querySelector(".stage"), i ? null : () => {
      $("compare-zoom").textContent = `${Math.round(100 * (this.stages[0]?.factor ?? 1))} %`;
    }));
    this.stages.forEach((stage, i) => {
      const { item, image } = pictures[i];
      stage.show(image, item ? describe(item, image) : name(image));
      stage.box.addEventListener("scroll", () => this.follow(stage));
    });
  }

  zoom(factor) {
    for (const stage of this.stages) stage.zoom(factor);
  }

  /** All show the same part of their picture. */
  follow(leader) {
    if (this.leader && this.leader !== leader) return;
    this.leader = leader;
    const room = (box) => [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight];
    const [width, height] = room(leader.box);
    const [across, down] = [leader.box.scrollLeft / (width || 1), leader.box.scrollTop / (height || 1)];
    for (const { box } of this.stages) {
      if (box !== leader.box) box.scrollTo(across * room(box)[0], down * room(box)[1]);
    }
    requestAnimationFrame(() => { this.leader = null; });
  }

  closed() {
    $("panes").replaceChildren(); // lets go of the full-size pictures
    super.closed();
  }
}

/* One picture, large */

function asked(item) {
  const settings = Object.entries(item.requested ?? {}).map(([what, value]) => `${what.replaceAll("_", " ")} ${value}`);
  return settings.join(", ") || "nothing special";
}

function paid({ cost, images }) {
  const whole = images.length > 1 && `for ${images.length} pictures`;
  return [price(cost), BASES[cost?.basis], whole].filter(Boolean).join(" ");
}

async function copy(text, button) {
  const said = button.lastChild;
  let done = false;
  try {
    await navigator.clipboard.writeText(text); // only there over https, and on this machine
    done = true;
  } catch {
    const field = h("textarea", { readonly: true, class: "spoken" });
    field.value = text;
    button.after(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  said.textContent = done ? "Copied" : "Could not copy: select it by hand";
  say(done ? "Copied." : "Could not copy.");
  setTimeout(() => { said.textContent = "Copy"; }, 2000);
}

class Lightbox extends Dialog {
  constructor() {
    super("lightbox", {
      close: () => this.element.close(),
      before: () => this.step(-1),
      after: () => this.step(1),
      in: () => this.stage.zoom(this.stage.factor * 1.5),
      out: () => this.stage.zoom(this.stage.factor / 1.5),
      fit: () => this.stage.zoom(1),
      actual: () => this.stage.zoom(this.stage.actual),
    }, { ArrowLeft: "before", ArrowRight: "after", "+": "in", "=": "in", "-": "out", 0: "fit", 1: "actual" });
    this.stage = new Stage(this.element.querySelector(".stage"), (percent) => {
      $("lightbox-zoom").textContent = `${percent} %`;
    });
  }

  open(entry) {
    this.show(entry);
    super.open();
    this.stage.draw();
    this.stage.box.focus();
  }

  back() {
    return this.entry.listing.cards.get(this.entry.key)?.element.querySelector(".frame") ?? super.back();
  }

  get all() {
    return this.entry.listing.entries.filter((entry) => entry.image?.href);
  }

  get place() {
    return this.all.findIndex((entry) => entry.key === this.entry.key);
  }

  async step(by) {
    const { listing } = this.entry;
    const isLast = () => by > 0 && this.place + 1 >= this.all.length && !listing.limit && this.element.open;
    while (isLast() && await listing.more()); // nothing follows a page that can't be read
    const to = this.all[this.place + by];
    if (!to) return;
    this.show(to);
    say(`${name(to.image)}, ${this.place + 1} of ${this.all.length}`);
  }

  show(entry) {
    this.entry = entry;
    const { item, image } = entry;
    this.stage.show(image, describe(item, image));
    $("lightbox-title").textContent = name(image);
    const goesOn = entry.listing.next && !entry.listing.limit;
    $("lightbox-place").textContent = `${this.place + 1} of ${this.all.length}${goesOn ? " and more" : ""}`;
    this.element.querySelector("[data-do=before]").disabled = this.place === 0;
    this.element.querySelector("[data-do=after]").disabled = this.place + 1 === this.all.length && !goesOn;
    $("lightbox-about").replaceChildren(...this.about(entry));
    $("lightbox-about").parentElement.scrollTop = 0;
    if (item.inputs || item.operation === "edit") this.chain(entry);
  }

  about(entry) {
    const { item, image, listing } = entry;
    const choose = h("input", { type: "checkbox" });
    choose.checked = chosen.has(entry.key);
    choose.addEventListener("change", () => {
      setChosen(entry, choose.checked);
      choose.checked = chosen.has(entry.key);
    });
    const uri = h("button", { type: "button", class: "button small", "aria-label": "Copy the URI" }, icon("copy"));
    uri.append(h("span", null, "Copy"));
    uri.addEventListener("click", () => copy(image.uri, uri));
    const rows = [
      ["Prompt", item.prompt && h("span", { class: "whole" }, item.prompt)],
      ["Task", [label(item), ...originChip(listing.originOf(item))]],
      ["Model", `${item.model}, ${item.gateway}`],
      ["Asked", asked(item)],
      ["Got", [...(image.width ? [pixels(image), ratio(image)] : []), image.media_type, size(image.size)].join(", ")],
      ["Cost", paid(item)],
      ["Time", item.seconds === null ? null : duration(item.seconds)],
      ["Landed", item.landed_at && moment(item.landed_at)],
      ["URI", [h("span", { class: "uri" }, image.uri), uri]],
      ["SHA-256", h("span", { class: "uri" }, image.sha256)],
      ["Job", item.job_id && h("span", { class: "uri" }, item.job_id)],
      ["Copied from", item.reused_from && h("span", { class: "uri" }, item.reused_from)],
    ].filter(([, value]) => value);
    return [
      item.mismatch && h("p", { class: "reason warn" }, icon("warning"), item.mismatch),
      h("p", { class: "do" },
        h("a", { class: "button strong", href: image.href, download: name(image) }, icon("download"), "Download"),
        h("label", { class: "button" }, choose, "Compare")),
      h("div", { class: "chain" }),
      h("dl", null, rows.flatMap(([what, value]) => [h("dt", null, what), h("dd", null, value)])),
    ].filter(Boolean);
  }

  /** What the picture was made from, beside it. */
  async chain(entry) {
    const { item } = entry;
    const place = this.element.querySelector(".chain");
    let sources;
    try {
      const query = { task_id: item.task_id, map_index: item.map_index, item: item.item, n: item.n };
      ({ sources } = await get(`${entry.listing.address}/sources`, query));
    } catch (error) {
      place.replaceChildren(h("h3", null, "Made from"), notice(error));
      return;
    }
    if (!sources.length || this.entry !== entry) return;
    const list = h("ul", { class: "sources" }, sources.map((source) => this.source(source, entry)));
    place.replaceChildren(h("h3", null, "Made from"), list);
  }

  source({ role: kind, name: named, picture, why }, entry) {
    const role = kind === "source" ? "Source" : "Reference";
    const image = { ...picture, name: named };
    const text = [h("span", { class: "name" }, name(image)), h("span", { class: "by" }, role)];
    if (!picture?.href) {
      return h("li", { class: "hidden-source" },
        h("span", { class: "frame" }, icon("warning")),
        h("div", null, text, h("span", { class: "reason" }, why ?? picture?.why)));
    }
    const onclick = () => compare.open([{ image, item: null, role, where: { run: picture.run_id } }, entry]);
    return h("li", null, h("button", { type: "button", onclick },
      h("span", { class: "frame" }, h("img", { src: picture.thumb, alt: "" })),
      h("span", null, text, h("span", { class: "spoken" }, "Show it beside the result"))));
  }

  closed() {
    this.stage.image.removeAttribute("src");
    super.closed();
  }
}

const compare = new Compare();
const lightbox = new Lightbox();

/* Views */

/* Airflow 3.1 puts ids into the query as they are: a plus in it is a plus, and a space is always written %20. */
const theQuery = () => new URLSearchParams(location.search.replaceAll("+", "%2B"));
const asAddress = (query) => `?${query.toString().replaceAll("+", "%20")}`;

/** The address of a view: of this page, with another query. */
function address(dag, run, task, index) {
  const given = Object.entries({ dag_id: dag, run_id: run, task_id: task, map_index: index });
  const search = new URLSearchParams(given.filter(([, value]) => value !== null && value !== undefined));
  return asAddress(search);
}

function head(where, title) {
  const steps = [["Images", HOME]];
  if (where.dag) steps.push([where.dag, address(where.dag)]);
  if (where.run) steps.push([where.run, address(where.dag, where.run)]);
  if (where.task) steps.push([where.task, address(where.dag, where.run, where.task)]);
  steps.pop();
  $("trail").replaceChildren(h("ol", null, steps.map(([text, href]) => h("li", null, h("a", { href }, text)))));
  $("trail").hidden = !steps.length;
  $("title").textContent = title;
  document.title = where.dag ? `${title} · Images` : "Images";
}

const runHead = (run, href) => h("div", { class: "run-head" },
  h("h2", null, h("a", { href }, run.dag_run_id)), h("p", { class: "quiet" }, moment(run.run_after)));

/** Recent runs of all DAGs that have pictures and that this user may read. */
async function browse() {
  head({}, "Images");
  const grid = h("ul", { class: "runs", "aria-label": "Recent runs with pictures" });
  const { dags } = await get("api/dags");
  $("view").replaceChildren(grid);
  let offset = 0;
  endless($("view"), async () => {
    const page = dags.length ? await runsOf(dags, offset).catch((error) => { $("view").append(notice(error)); }) : null;
    const runs = page?.dag_runs ?? [];
    offset += runs.length;
    const cards = await Promise.all(runs.map(runCard));
    grid.append(...cards.filter(Boolean));
    const goesOn = runs.length > 0 && offset < page.total_entries;
    if (!goesOn && !grid.children.length && !$("view").querySelector(".notice")) grid.replaceWith(empty(null));
    return goesOn;
  });
}

async function runCard(run) {
  const from = apiOf(run.dag_id, run.dag_run_id);
  const read = [get(`${from}/summary`), get(`${from}/pictures`, { standing: "landed", limit: 4 })];
  const [seen, { items }] = await Promise.all(read).catch(() => [null, { items: [] }]);
  if (!seen?.looked_at) return null;
  const images = items.flatMap((item) => item.images.filter((image) => image.href)).slice(0, 4);
  const frames = images.map((image) => framed(h("span", { class: "frame" }, thumbnail(image, ""))));
  if (!frames.length) frames.push(h("span", { class: "frame" }, icon("picture")));
  return h("li", { class: "run-card" },
    h("a", { href: address(run.dag_id, run.dag_run_id) },
      h("span", { class: "mosaic", "data-count": frames.length, "aria-hidden": "true" }, frames),
      h("span", { class: "name" }, run.dag_id), h("span", { class: "by" }, run.dag_run_id)),
    h("p", { class: "quiet" }, moment(run.run_after), " ", chip(RUN_TONES[run.state] ?? "plain", run.state)),
    h("div", { class: "totals" }, totals(seen)));
}

/** The runs of a DAG, or of one of its tasks, newest first. */
function ofDag(where) {
  head(where, where.task ?? where.dag);
  const list = h("div", { class: "sections" });
  $("view").replaceChildren(list);
  let offset = 0;
  const near = whenSeen("200px", (section) => {
    section.listing.visible = true;
    if (section.loaded) section.listing.wake();
    else {
      section.loaded = true;
      section.listing.load().then(() => section.classList.add("loaded"));
    }
  }, (section) => { section.listing.visible = false; });
  endless($("view"), async () => {
    const query = { order_by: "-run_after", limit: RUNS, offset };
    const page = await get(`../api/v2/dags/${encodeURIComponent(where.dag)}/dagRuns`, query)
      .catch((error) => { $("view").append(notice(error)); });
    const runs = page?.dag_runs ?? [];
    offset += runs.length;
    for (const run of runs) {
      const listing = new Listing({ ...where, run: run.dag_run_id }, {}, SAMPLE);
      const section = h("section", { class: "run", "aria-label": `Run ${run.dag_run_id}` },
        runHead(run, address(where.dag, run.dag_run_id, where.task)), listing.totals, listing.element);
      section.listing = listing;
      list.append(section);
      near.observe(section);
    }
    if (!runs.length && !offset && page) list.append(empty(null));
    return runs.length > 0 && offset < page.total_entries;
  });
}

const FILTERS = [
  { name: "task", label: "Task", all: "All tasks", options: (seen) => seen.tasks.map((task) => [task, task]) },
  { name: "model", label: "Model", all: "All models", options: (seen) => seen.models.map((model) => [model, model]) },
  {
    name: "state", label: "State", all: "All states",
    options: (seen) => Object.entries(seen.standings).map(
      ([standing, count]) => [standing, `${STANDINGS[standing].label} (${count.toLocaleString()})`],
    ),
  },
];

/** One run, or one task or task instance of it: all its pictures. */
function ofRunView(where) {
  head(where, where.task ? label({ task_id: where.task, map_index: Number(where.index ?? -1) }) : where.run);
  const query = theQuery();
  const filters = Object.fromEntries(FILTERS.map(({ name: each }) => [each, query.get(each) || null]));
  const bar = h("div", { class: "bar" });
  const place = h("div");
  $("view").replaceChildren(bar, place);
  const show = () => {
    for (const old of listings.splice(0)) clearTimeout(old.timer);
    const listing = new Listing(where, { ...filters });
    const selects = h("div", { class: "filters", role: "group", "aria-label": "Filters" });
    bar.replaceChildren(listing.totals, selects);
    place.replaceChildren(listing.element);
    listing.changed = () => refresh(selects, listing.summary, filters, choose);
    return listing.load().then(() => {
      if (listing.items.length || listing.next) endless(place, () => listing.more());
    });
  };
  const choose = async (which, value) => {
    filters[which] = value || null;
    const search = theQuery();
    if (value) search.set(which, value);
    else search.delete(which);
    history.replaceState(null, "", asAddress(search));
    await show();
    bar.querySelector(`select[name=${which}]`)?.focus();
    say(`${counted(listings[0].entries.length, "picture")} shown.`);
  };
  show();
}

/** The filters, as far as there is something to choose. */
function refresh(bar, seen, filters, choose) {
  for (const { name: which, label: text, all, options } of FILTERS) {
    const list = [["", all], ...options(seen)];
    const worth = list.length > 2 || filters[which];
    let select = bar.querySelector(`select[name=${which}]`);
    if (!select && worth) {
      select = h("select", { name: which, onchange: () => choose(which, select.value) });
      bar.append(h("label", null, h("span", { class: "spoken" }, text), select));
    }
    if (!select || select.dataset.seen === JSON.stringify(list)) continue;
    select.dataset.seen = JSON.stringify(list);
    const now = filters[which] ?? "";
    if (!list.some(([value]) => value === now)) list.push([now, now]);
    select.replaceChildren(...list.map(([value, shown]) => h("option", { value, selected: value === now }, shown)));
  }
}

/* Light and dark follow Airflow's own switch, or the browser's outside of it. */
function followTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let outer = null;
  try {
    if (parent !== window) outer = parent.document.documentElement;
  } catch {
    // embedded elsewhere: the browser's choice holds
  }
  const themed = () => outer?.classList.contains("dark") || outer?.classList.contains("light");
  const set = () => {
    const isDark = themed() ? outer.classList.contains("dark") : dark.matches;
    document.documentElement.className = isDark ? "dark" : "light";
  };
  if (outer) new MutationObserver(set).observe(outer, { attributeFilter: ["class"] });
  dark.addEventListener("change", set);
  set();
}

/** Airflow's page around this one may have got the query instead: then it is taken from there. */
function takeQuery() {
  try {
    if (parent !== window && !location.search && parent.location.pathname.includes("/plugin/")) {
      history.replaceState(null, "", parent.location.search || location.href);
    }
  } catch {
    // embedded elsewhere
  }
}

function start() {
  followTheme();
  takeQuery();
  const query = theQuery();
  // Airflow leaves what it has no value for as it stands, braces and all.
  const given = (which) => (/^\{\w+\}$/.test(query.get(which) ?? "") ? null : query.get(which) || null);
  const index = given("map_index");
  const [dag, run, task] = ["dag_id", "run_id", "task_id"].map(given);
  const where = { dag, run, task, index: /^-?\d+$/.test(index) ? index : null };
  $("compare-open").addEventListener("click", () => compare.open([...chosen.values()]));
  $("compare-clear").addEventListener("click", () => {
    chosen.clear();
    showChosen();
    $("view").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) for (const listing of listings) listing.wake();
  });
  if (!where.dag) browse().catch((error) => $("view").replaceChildren(notice(error)));
  else if (!where.run) ofDag(where);
  else ofRunView(where);
}

start();
