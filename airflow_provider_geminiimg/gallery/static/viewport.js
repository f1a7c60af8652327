/* Thumbnails, and whatever else waits until it is on the screen.
 *
 * What must stay true: a thumbnail is asked for when its place comes onto the screen, and not before.
 */

import { h, icon } from "./dom.js";

export function whenSeen(margin, seen, unseen = () => {}) {
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

export function thumbnail(image, alt) {
  const element = h("img", { alt, "data-src": image.thumb, decoding: "async", draggable: "false" });
  element.addEventListener("load", () => element.classList.add("loaded"));
  element.addEventListener("error", () => {
    if (element.hasAttribute("src")) element.replaceWith(icon("image"));
  });
  return element;
}

export function framed(frame) {
  thumbnails.observe(frame);
  return frame;
}

/** Calls `more` whenever the end of a list comes near, until it answers that there is no more. */
export function endless(parent, more) {
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
