/* The shape of the grid, its arrow keys, and the totals above it. */

import { chip, h } from "./dom.js";
import { BASES, counted, priceOf, proportion, ratioOf } from "./format.js";
import { STATUSES } from "./records.js";

export const NOT_COUNTED = "An earlier version wrote this ledger, so the records are read each time, and only some of a large "
  + "run. `jobs collect` or `jobs reindex` counts them once.";

/** The arrow keys move between cards, up and down by their position on the screen. */
export function walk(event) {
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

/** All frames have the most common shape of the images, so that nothing moves when an image is loaded. */
export function setShape(grid, entries) {
  const seen = {};
  for (const { item, image } of entries) {
    const each = image?.width ? ratioOf(image) : item.requested?.aspect_ratio;
    if (each) seen[each] = (seen[each] ?? 0) + 1;
  }
  const [most] = Object.entries(seen).sort((a, b) => b[1] - a[1])[0] ?? ["1:1"];
  const value = String(Math.min(Math.max(proportion(most), 0.75), 16 / 9));
  if (grid.style.getPropertyValue("--shape") !== value) grid.style.setProperty("--shape", value);
}

export function totalsOf(seen) {
  const total = (text, title) => h("span", { class: "total", title }, text);
  const isPart = seen.not_started && !seen.more;
  const number = isPart ? `${seen.images.toLocaleString()} of ${counted(seen.wanted, "image")}`
    : counted(seen.images, "image") + (seen.more ? " or more" : "");
  const costs = seen.costs.map((cost) => total(priceOf(cost), BASES[cost.basis]));
  const others = Object.entries(seen.statuses).filter(([status]) => status !== "landed");
  return [
    h("span", { class: "total strong" }, number),
    ...costs,
    ...(seen.without_price ? [total(`${seen.without_price.toLocaleString()} without a price`)] : []),
    ...others.map(([status, count]) => {
      const { label: text, tone } = STATUSES[status];
      return chip(tone, `${count.toLocaleString()} ${text.toLowerCase()}`);
    }),
    ...(seen.not_started ? [chip("plain", `${seen.not_started.toLocaleString()} not started`)] : []),
    ...(seen.complete ? [] : [total("Not all records are counted yet", NOT_COUNTED)]),
  ];
}
