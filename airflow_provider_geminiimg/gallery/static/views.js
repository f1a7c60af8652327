/* The views of the page: recent runs, the runs of a DAG, one run. */

import { asQuery, HOME, theQuery, viewAddress } from "./addresses.js";
import { ask, readableDags, runsOfDag, runsOfDags } from "./api.js";
import { $, chip, h, icon, say } from "./dom.js";
import { FILTERS, showFilters } from "./filters.js";
import { counted, timeOf } from "./format.js";
import { totalsOf } from "./grid.js";
import { jumps } from "./jumps.js";
import { Listing } from "./listing.js";
import { emptyNote, notice } from "./messages.js";
import { labelOf, RUN_TONES } from "./records.js";
import { spendAddress, spendView } from "./spend.js";
import { listings } from "./state.js";
import { endless, framed, thumbnail, whenSeen } from "./viewport.js";

const SAMPLE = 12; // images per run in a view of several runs

function showHead(where, title) {
  const steps = [["Images", HOME]];
  if (where.dag) steps.push([where.dag, viewAddress(where.dag)]);
  if (where.run) steps.push([where.run, viewAddress(where.dag, where.run)]);
  if (where.task) steps.push([where.task, viewAddress(where.dag, where.run, where.task)]);
  steps.pop();
  $("trail").replaceChildren(h("ol", null, steps.map(([text, href]) => h("li", null, h("a", { href }, text)))));
  $("trail").hidden = !steps.length;
  $("title").textContent = title;
  document.title = where.dag ? `${title} · Images` : "Images";
}

const runHead = (run, href) => h("div", { class: "run-head" },
  h("h2", null, h("a", { href }, run.dag_run_id)), h("p", { class: "quiet" }, timeOf(run.run_after)));

const spendLink = (dag) => h("p", null, h("a", { class: "button", href: spendAddress(dag) }, "Spend"));

/** What was paid for a DAG, or for all. */
export function ofSpend(where) {
  showHead({ ...where, run: "spend" }, "Spend");
  return spendView(where.dag);
}

/** Recent runs of all DAGs that have images and that this user may read. */
export async function browse() {
  showHead({}, "Images");
  const grid = h("ul", { class: "runs", "aria-label": "Recent runs with images" });
  const dags = await readableDags();
  $("view").replaceChildren(spendLink(null), grid);
  let offset = 0;
  endless($("view"), async () => {
    const page = dags.length ? await runsOfDags(dags, offset).catch((error) => { $("view").append(notice(error)); }) : null;
    const runs = page?.dag_runs ?? [];
    offset += runs.length;
    const cards = await Promise.all(runs.map(runCard));
    grid.append(...cards.filter(Boolean));
    const goesOn = runs.length > 0 && offset < page.total_entries;
    if (!goesOn && !grid.children.length && !$("view").querySelector(".notice")) grid.replaceWith(emptyNote(null));
    return goesOn;
  });
}

async function runCard(run) {
  const names = { dag_id: run.dag_id, run_id: run.dag_run_id };
  const read = [ask("summary", names), ask("images", { ...names, status: "landed", limit: 4 })];
  const [seen, { items }] = await Promise.all(read).catch(() => [null, { items: [] }]);
  if (!seen?.looked_at) return null;
  const images = items.flatMap((item) => item.images.filter((image) => image.href)).slice(0, 4);
  const frames = images.map((image) => framed(h("span", { class: "frame" }, thumbnail(image, ""))));
  if (!frames.length) frames.push(h("span", { class: "frame" }, icon("image")));
  return h("li", { class: "run-card" },
    h("a", { href: viewAddress(run.dag_id, run.dag_run_id) },
      h("span", { class: "mosaic", "data-count": frames.length, "aria-hidden": "true" }, frames),
      h("span", { class: "name" }, run.dag_id), h("span", { class: "by" }, run.dag_run_id)),
    h("p", { class: "quiet" }, timeOf(run.run_after), " ", chip(RUN_TONES[run.state] ?? "plain", run.state)),
    h("div", { class: "totals" }, totalsOf(seen)));
}

/** The runs of a DAG, or of one of its tasks, newest first. */
export function ofDag(where) {
  showHead(where, where.task ?? where.dag);
  const list = h("div", { class: "sections" });
  $("view").replaceChildren(spendLink(where.dag), list);
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
    const page = await runsOfDag(where.dag, offset).catch((error) => { $("view").append(notice(error)); });
    const runs = page?.dag_runs ?? [];
    offset += runs.length;
    for (const run of runs) {
      const listing = new Listing({ ...where, run: run.dag_run_id }, {}, SAMPLE);
      const section = h("section", { class: "run", "aria-label": `Run ${run.dag_run_id}` },
        runHead(run, viewAddress(where.dag, run.dag_run_id, where.task)), listing.totals, listing.element);
      section.listing = listing;
      list.append(section);
      near.observe(section);
    }
    if (!runs.length && !offset && page) list.append(emptyNote(null));
    return runs.length > 0 && offset < page.total_entries;
  });
}

/** One run, or one task or task instance of it: all its images. */
export function ofRunView(where) {
  showHead(where, where.task ? labelOf({ task_id: where.task, map_index: Number(where.index ?? -1) }) : where.run);
  const query = theQuery();
  const filters = Object.fromEntries(FILTERS.map(({ name: each }) => [each, query.get(each) || null]));
  const bar = h("div", { class: "bar" });
  const place = h("div");
  $("view").replaceChildren(bar, place);
  const show = (first = {}) => {
    for (const old of listings.splice(0)) clearTimeout(old.timer);
    const listing = new Listing(where, { ...filters }, null, first);
    const selects = h("div", { class: "filters", role: "group", "aria-label": "Filters" });
    const jump = h("div", { class: "jump" });
    bar.replaceChildren(listing.totals, selects, jump);
    place.replaceChildren(listing.element);
    listing.further = (after) => show({ after });
    listing.changed = () => {
      showFilters(selects, listing.summary, filters, choose);
      if (!jump.contains(document.activeElement)) jump.replaceChildren(...jumps(listing, show));
    };
    return listing.load().then(() => {
      if (listing.items.length || listing.next) endless(place, () => listing.more());
    });
  };
  const choose = async (which, value) => {
    filters[which] = value || null;
    const search = theQuery();
    if (value) search.set(which, value);
    else search.delete(which);
    history.replaceState(null, "", asQuery(search));
    await show();
    bar.querySelector(`select[name=${which}]`)?.focus();
    say(`${counted(listings[0].entries.length, "image")} shown.`);
  };
  show();
}
