/* The card of one image, or of a request without an image. */

import { chip, h, icon } from "./dom.js";
import { durationOf, pixels, priceOf, shapeOf } from "./format.js";
import { lightbox } from "./lightbox.js";
import { BILLED, BUSY, describe, labelOf, nameOf, statusOf } from "./records.js";
import { chosen, setChosen } from "./state.js";
import { framed, thumbnail } from "./viewport.js";

function factsOf(item, image) {
  const { text, odd } = shapeOf(item, image);
  const list = [
    ["Model", item.model, "wide"],
    ["Resolution", item.requested?.resolution],
    ["Ratio", text, odd ? "odd" : null],
    ["Pixels", pixels(image)],
    ["Cost", item.cost && item.status === "landed" ? priceOf(item.cost) : null],
    ["Time", item.seconds !== null && item.seconds !== undefined ? durationOf(item.seconds) : null],
  ];
  const shown = list.filter(([, value]) => value);
  return h("ul", { class: "facts" }, shown.map(([what, value, kind]) => h(
    "li", { class: kind, title: `${what}: ${value}` }, h("span", { class: "spoken" }, `${what}: `), value,
  )));
}

export function imageCard(entry) {
  const { item, image } = entry;
  const title = nameOf(image);
  const choose = h("input", { type: "checkbox", "aria-label": `Compare ${title}` });
  choose.checked = chosen.has(entry.key);
  choose.addEventListener("change", () => setChosen(entry, choose.checked));
  const open = { type: "button", class: "frame", "aria-label": `Open ${title}`, onclick: () => lightbox.open(entry) };
  return h("li", { class: "card", "data-key": entry.key },
    framed(h("button", open, thumbnail(image, describe(item, image)))),
    h("div", { class: "text" },
      h("p", { class: "name", title }, title),
      h("p", { class: "by" }, labelOf(item), h("span", { class: "origin" })),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      factsOf(item, image),
      item.mismatch && h("p", { class: "reason warn" }, icon("warning"), item.mismatch),
      h("label", { class: "choose" }, choose, h("span", { "aria-hidden": "true" }, "Compare"))));
}

/** The card of an image that is in progress, or that may not be shown. */
export function otherCard(entry) {
  const { item, image } = entry;
  const { label: state, tone } = image ? { label: "Not shown", tone: "warn" } : statusOf(item);
  const isBusy = BUSY.includes(item.status);
  return h("li", { class: `card ${tone}`, "data-key": entry.key },
    h("div", { class: "frame", "aria-hidden": "true" }, isBusy ? h("span", { class: "pulse" }) : icon("warning")),
    h("div", { class: "text" },
      h("p", { class: "name" }, image ? nameOf(image) : labelOf(item)),
      h("p", { class: "by" }, image ? labelOf(item) : null, chip(tone, state)),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      h("p", { class: "next" }, image ? image.why : item.next),
      factsOf(item, image)));
}

/** A failed request: the reason, and what to do. */
export function troubleRow({ key, item }) {
  const { label: state, tone } = statusOf(item);
  const { message = null, hint = null } = item.error ?? {};
  const reason = hint && message.endsWith(hint) ? message.slice(0, -hint.length) : message;
  const next = hint ? hint : [item.next, !item.error && BILLED[item.billed]].filter(Boolean).join(" ");
  return h("li", { class: `trouble ${tone}`, "data-key": key }, icon("warning"),
    h("div", null,
      h("p", { class: "by" }, h("strong", null, labelOf(item)), chip(tone, state), h("span", null, item.model)),
      item.prompt && h("p", { class: "prompt", title: item.prompt }, item.prompt),
      reason && h("p", { class: "reason" }, reason),
      h("p", { class: "next" }, next)));
}
