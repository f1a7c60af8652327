/* Jumps into a long run, and back to its beginning. */

import { PAGE } from "./addresses.js";
import { h } from "./dom.js";

/**
 * The elements of a listing for jumps; none where all images are on the first page, or are not counted.
 * @param show shows the listing from another start
 */
export function jumps(listing, show) {
  const { complete, looked_at: all } = listing.summary;
  if (!complete || all <= PAGE) return [];
  const go = () => {
    if (input.checkValidity() && input.value) show({ position: input.valueAsNumber - 1 });
  };
  const input = h("input", { type: "number", name: "position", min: 1, max: all, step: 1, onchange: go });
  const elements = [h("label", null, "Go to image ", input, ` of ${all.toLocaleString()}`)];
  const isMoved = Object.values(listing.start).some(Boolean);
  if (isMoved) elements.push(h("button", { type: "button", class: "button", onclick: () => show() }, "To the first"));
  return elements;
}
