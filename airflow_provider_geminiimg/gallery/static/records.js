/* Labels of records and of their states. */

import { chip } from "./dom.js";
import { BASES, priceOf } from "./format.js";

export const STATUSES = {
  landed: { label: "Landed", tone: "good" },
  waiting: { label: "Being sent", tone: "busy" },
  "in-flight": { label: "In flight", tone: "busy" },
  "to-collect": { label: "Paid, to collect", tone: "warn" },
  unknown: { label: "Outcome unknown", tone: "bad" },
  failed: { label: "Failed", tone: "bad" },
  unreadable: { label: "Record unreadable", tone: "bad" },
};

const REFUSED = { label: "Refused", tone: "bad" };
export const BUSY = ["waiting", "in-flight"];
export const TROUBLES = ["unknown", "failed", "unreadable"];

const ORIGINS = {
  new: ["good", "New", "The task's last attempt made it."],
  reused: ["plain", "Reused", "It existed before, and the task's last attempt paid nothing for it."],
  earlier: ["plain", "Earlier", "The task has a newer image."],
};

export const BILLED = { no: "No money was spent.", yes: "It was paid for.", unknown: "Money may have been spent." };
export const RUN_TONES = { success: "good", failed: "bad", running: "busy", queued: "busy" };

export function nameOf(image) {
  try {
    return decodeURIComponent(image.name);
  } catch {
    return image.name;
  }
}

/** The iteration of a loop, from 0; nothing outside loops. */
const inLoop = ({ iteration }) => (Number.isInteger(iteration) ? `, iteration ${iteration}` : "");

export const labelOf = (item) => item.task_id + (item.map_index >= 0 ? ` [${item.map_index}]` : "") + inLoop(item);
export const instanceOf = (item) => [item.task_id, item.iteration ?? "", item.map_index].join("/");
export const workOf = (item) => `${instanceOf(item)}/${item.item}`;
export const chainOf = (item) => [item.task_id, item.map_index, item.item].join("/"); // the same in all iterations
export const keyOf = (item) => `${workOf(item)}/${item.n}`;
export const statusOf = (item) => (item.error?.code === "content_refused" ? REFUSED : STATUSES[item.status]);
export const originChip = (origin) => (ORIGINS[origin] ? [chip(...ORIGINS[origin])] : []);

export function describe(item, image) {
  return item.prompt || `${nameOf(image)}, made by ${labelOf(item)}`;
}

export function askedFor(item) {
  const settings = Object.entries(item.requested ?? {}).map(([what, value]) => `${what.replaceAll("_", " ")} ${value}`);
  return settings.join(", ") || "nothing special";
}

export function paidFor({ cost, images }) {
  const whole = images.length > 1 && `for ${images.length} images`;
  return [priceOf(cost), BASES[cost?.basis], whole].filter(Boolean).join(" ");
}
