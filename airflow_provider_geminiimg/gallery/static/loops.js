/* The iterations of a task in a loop (Airflow 3.4), as a chain: each revises the image of the one before. */

import { viewAddress } from "./addresses.js";
import { ask, loopOf } from "./api.js";
import { chip, h, icon } from "./dom.js";
import { counted, ESTIMATES, priceOf } from "./format.js";
import { chainOf, labelOf, statusOf } from "./records.js";

const MOST_ITEMS = 200; // that are read for a chain
const MOST_LOOPS = 8; // whose decisions are read
const MOST_CHAINS = 12; // above the images of a run

const inputs = (item) => item.inputs ?? [];
const isEqual = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const nameOfChain = (item) => labelOf({ ...item, iteration: null });
const isShown = ({ images }) => images.some((image) => image.href);

const isMadeBy = (image, items) => items.some(({ images }) => images.some((each) => each.sha256 === image));
const othersOf = (item, earlier) => inputs(item).filter((image) => !isMadeBy(image, earlier));

/** What an iteration asks for that the one before did not. A prompt is only there if prompts are recorded. */
function changesOf(item, earlier) {
  const before = earlier.at(-1);
  if (!before) return [];
  const settings = (of) => ({ operation: of.operation, model: of.model, ...of.requested });
  const [now, then] = [settings(item), settings(before)];
  const names = new Set([...Object.keys(then), ...Object.keys(now)]);
  const changes = [...names].filter((each) => !isEqual(now[each], then[each])).map((each) => (
    [each.replaceAll("_", " "), `${then[each] ?? "not set"} → ${now[each] ?? "not set"}`]
  ));
  if (item.prompt && item.prompt !== before.prompt) changes.push(["prompt", item.prompt]);
  const others = othersOf(item, earlier);
  if (!isEqual(others, othersOf(before, earlier))) changes.push(["other input images", others.length || "none"]);
  return changes;
}

/** The iteration that made an input image of this item; the last one if several did. */
function sourceOf(item, earlier) {
  const found = earlier.filter((each) => inputs(item).some((image) => isMadeBy(image, [each]))).pop();
  if (found) return `From iteration ${found.iteration}`;
  return inputs(item).length ? `From ${counted(inputs(item).length, "input image")}` : "From the prompt";
}

/** What all these requests cost, by currency; one estimate makes the sum an estimate. */
function spentOn(items) {
  const sums = new Map();
  const paid = items.filter(({ billed }) => billed === "yes");
  const priced = paid.filter(({ cost }) => (cost?.amount ?? null) !== null);
  for (const { cost: { amount, currency, basis } } of priced) {
    const before = sums.get(currency) ?? { amount: 0, basis };
    const isEstimate = ESTIMATES.includes(basis);
    sums.set(currency, { amount: before.amount + amount, currency, basis: isEstimate ? basis : before.basis });
  }
  const without = paid.length - priced.length;
  const perhaps = items.filter(({ status }) => status === "unknown").length;
  return [
    ...[...sums.values()].map(priceOf),
    ...(without ? [`${without} without a price`] : []),
    ...(perhaps ? [`${perhaps} with unknown outcome`] : []),
  ].join(", ") || "nothing";
}

/** The chains of these items: those of a task with more than one iteration, each a list of steps. */
function chainsOf(items) {
  const found = new Map();
  for (const item of items) {
    if (!Number.isInteger(item.iteration)) continue;
    found.set(chainOf(item), [...(found.get(chainOf(item)) ?? []), item]);
  }
  return new Map([...found].map(([key, all]) => [key, stepsOf(all)]).filter(([, steps]) => steps.length > 1));
}

function stepsOf(all) {
  const numbers = [...new Set(all.map((item) => item.iteration))].sort((a, b) => a - b);
  const last = (number) => {
    const tried = all.filter((item) => item.iteration === number);
    return tried.filter(isShown).pop() ?? tried.pop();
  };
  const items = numbers.map(last);
  return items.map((item, i) => ({
    item,
    image: item.images.find((image) => image.href),
    source: sourceOf(item, items.slice(0, i)),
    changes: changesOf(item, items.slice(0, i)),
    spent: spentOn(all.filter((each) => each.iteration <= item.iteration)),
  }));
}

/** The chains of a listing. If the listing leaves out iterations, their items are read. */
export async function readChains(listing) {
  const { task, index } = listing.where;
  const { iteration, model, state } = listing.filters;
  if (!iteration && !model && !state) return chainsOf(listing.items);
  const query = { task_id: listing.filters.task ?? task, map_index: index, limit: MOST_ITEMS };
  const { items } = await ask("images", { ...listing.names, ...query }).catch(() => listing);
  return chainsOf(items);
}

/** Whether the loop goes on after each iteration, and why, by loop and iteration. */
export async function readDecisions({ dag, run }, loops) {
  const names = [...new Set(loops.values())].slice(0, MOST_LOOPS);
  const read = await Promise.all(names.map((each) => loopOf(dag, run, each)));
  return new Map(read.flatMap((loop, i) => (loop ? decisionsOf(names[i], loop) : [])));
}

function decisionsOf(name, loop) {
  const last = Math.max(...loop.iterations.map(({ index }) => index));
  const stopped = loop.status === "ran_to_cap" ? last : loop.stopped_at_iteration;
  return loop.iterations.map(({ index, decision_reason: reason }) => {
    if (index === loop.failed_at_iteration) return [`${name}/${index}`, { tone: "bad", text: "Failed", reason }];
    if (index === stopped) return [`${name}/${index}`, { tone: "good", text: "Loop stopped here", reason }];
    return [`${name}/${index}`, index < last ? { tone: "plain", text: "Loop went on", reason } : { reason }];
  });
}

function stepElement(step, listing, open, current) {
  const { item, image, source, changes, spent } = step;
  const { tone, text, reason } = listing.decisions.get(`${listing.loops.get(item.task_id)}/${item.iteration}`) ?? {};
  const entry = image && listing.entries.find((each) => each.image?.href === image.href);
  const { dag, run } = listing.where;
  const href = viewAddress(dag, run, item.task_id, item.map_index < 0 ? null : item.map_index, item.iteration);
  const place = { class: "step", "aria-label": `Open iteration ${item.iteration} of ${nameOfChain(item)}` };
  const frame = h("span", { class: "frame" }, image ? h("img", { src: image.thumb, alt: "" }) : icon("image"));
  const status = image ? null : statusOf(item);
  return h("li", { "aria-current": item.iteration === current?.iteration ? "step" : null },
    entry ? h("button", { type: "button", ...place, onclick: () => open(entry) }, frame)
      : h("a", { href, ...place }, frame),
    h("p", { class: "by" }, h("strong", null, `Iteration ${item.iteration}`),
      status && chip(status.tone, status.label), text && chip(tone, text)),
    reason && h("p", { class: "said" }, reason),
    h("p", { class: "by" }, source),
    changes.map(([what, value]) => h("p", { class: "prompt", title: value },
      h("span", { class: "quiet" }, `${what}: `), value)),
    h("p", { class: "by" }, `${spent} so far`));
}

/**
 * The chain of an item; nothing if its task has one iteration.
 * @param open takes the entry of a step that is chosen
 * @param current the item that is shown in the large view
 */
export function chainElement(listing, item, open, current = null) {
  const steps = listing.chains.get(chainOf(item));
  const label = `Iterations of ${nameOfChain(item)}`;
  const shown = steps?.map((step) => stepElement(step, listing, open, current));
  return steps && h("ol", { class: "loop", "aria-label": label }, shown);
}

/** Replaces the content of `place`; a step that has the focus keeps it. */
export function replaceSteps(place, ...shown) {
  const focused = [...place.querySelectorAll(".step")].indexOf(document.activeElement);
  place.replaceChildren(...shown);
  if (focused >= 0) place.querySelectorAll(".step")[focused]?.focus();
}

/** Shows the chains of a run, above its images, and returns whether anything has changed. */
export function showChains(place, listing, open) {
  const { chains, decisions, loops, entries } = listing;
  const text = JSON.stringify([[...chains], [...decisions], [...loops], entries.map((entry) => entry.key)]);
  if (place.dataset.seen === text) return false;
  place.dataset.seen = text;
  const shown = [...chains.values()].slice(0, MOST_CHAINS).map((steps) => h("section", null,
    h("h2", null, `${nameOfChain(steps[0].item)}: ${counted(steps.length, "iteration")}`),
    chainElement(listing, steps[0].item, open)));
  replaceSteps(place, ...shown);
  return true;
}
