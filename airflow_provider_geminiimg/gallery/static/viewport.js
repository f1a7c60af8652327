/* Loads thumbnails and further pages when they come onto the screen.
 *
 * Invariant: a thumbnail is requested when its place comes onto the screen, and not before.
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
    // A request is cancelled if the user scrolls past before it returns.
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

/** Calls `more` whenever the end of a list comes near, until it returns false. */
export function endless(parent, more) {
  const end = h("div", { class: "end", "aria-hidden": "true" });
  let asking = false;
  const watch = whenSeen("900px", async () => {
    if (asking) return;
    asking = true;
    const goesOn = await more();
    asking = false;
    watch.unobserve(end);
    if (goesOn) watch.observe(end); // fires again immediately if the end is still near
  });
  parent.append(end);
  watch.observe(end);
  return end;
}
