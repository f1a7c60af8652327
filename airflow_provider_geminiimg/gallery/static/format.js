/* Formats numbers, sizes, times and prices. */

import { h } from "./dom.js";

const CLOSE = 0.035; // tolerance for ratios, because models round pixels
const RATIOS = ["1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9", "1:4", "4:1", "1:8", "8:1"];

export const counted = (number, one, many = `${one}s`) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

function amountOf(value, currency) {
  const digits = { minimumFractionDigits: currency === "USD" ? 2 : 0, maximumFractionDigits: 4 };
  if (currency !== "USD") return `${value.toLocaleString(undefined, digits)} ${currency}`;
  return value.toLocaleString(undefined, { ...digits, style: "currency", currency, currencyDisplay: "narrowSymbol" });
}

export const ESTIMATES = ["connection", "google_list"];

export const BASES = {
  gateway: "reported by the gateway",
  connection: "estimated by the connection's price",
  google_list: "estimated by Google's list price",
  reused: "another task of this DAG had paid for it",
};

export function priceOf(cost) {
  if (!cost || cost.amount === null) return "price unknown";
  return (ESTIMATES.includes(cost.basis) ? "≈ " : "") + amountOf(cost.amount, cost.currency);
}

export function durationOf(seconds) {
  if (seconds < 60) return `${seconds.toLocaleString(undefined, { maximumFractionDigits: 1 })} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

export function fileSize(bytes) {
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, "KB"] : [bytes / 1e6, "MB"];
  return `${value.toLocaleString(undefined, { maximumFractionDigits: 1 })} ${unit}`;
}

export function timeOf(iso) {
  const when = new Date(iso);
  const shown = when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return h("time", { datetime: iso, title: when.toLocaleString() }, shown);
}

export function proportion(text) {
  const [width, height] = text.split(":").map(Number);
  return width / height;
}

/** The pixels of an image; nothing if its header does not declare them. */
export const pixels = (image) => image?.width && `${image.width} × ${image.height}`;

export function ratioOf(image) {
  const got = image.width / image.height;
  const near = RATIOS.find((each) => Math.abs(got / proportion(each) - 1) < CLOSE);
  return near ?? `${got.toLocaleString(undefined, { maximumFractionDigits: 2 })}:1`;
}

/** The requested ratio and the actual one; only one of them if they agree. */
export function shapeOf(item, image) {
  const wanted = item.requested?.aspect_ratio;
  if (!image?.width) return { text: wanted, odd: false };
  const odd = Boolean(wanted) && Math.abs(image.width / image.height / proportion(wanted) - 1) >= CLOSE;
  return { text: odd ? `${wanted} asked, ${ratioOf(image)} got` : (wanted ?? ratioOf(image)), odd };
}
