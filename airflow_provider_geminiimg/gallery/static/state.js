/* State of the page: the displayed listings, and the images that are selected for comparison. */

import { $, h, icon, say } from "./dom.js";
import { nameOf } from "./records.js";

const MOST_CHOSEN = 4;

export const listings = []; // of the displayed view
export const chosen = new Map(); // images in the tray, by key

export function setChosen(entry, isChosen) {
  const isFull = isChosen && chosen.size === MOST_CHOSEN;
  if (isFull) say(`${MOST_CHOSEN} images can be compared at once. Take one out first.`);
  else if (isChosen) chosen.set(entry.key, entry);
  else chosen.delete(entry.key);
  showChosen();
}

export function showChosen() {
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
    return h("li", null, h("button", { type: "button", "aria-label": `Take out ${nameOf(entry.image)}`, onclick },
      h("img", { src: entry.image.thumb, alt: "" }), icon("close")));
  }));
  const howMany = `${entries.length} of ${MOST_CHOSEN} chosen`;
  $("tray-text").textContent = entries.length < 2 ? "Choose one to three more to compare" : howMany;
  $("compare-open").disabled = entries.length < 2;
}
