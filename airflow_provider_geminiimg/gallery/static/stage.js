/* An image that can be zoomed and moved. */

const MARGIN = 16; // pixels around an image that fits

/** An image in a box: fitted to the box, or enlarged and movable. */
export class Stage {
  constructor(box, changed) {
    Object.assign(this, { box, changed, element: box.querySelector("img"), factor: 1 });
    new ResizeObserver(() => this.draw()).observe(box);
    this.element.addEventListener("load", () => this.draw());
    this.element.addEventListener("dblclick", () => this.zoom(this.factor > 1 ? 1 : this.actual));
    box.addEventListener("pointerdown", (event) => this.grab(event));
  }

  /** @param image with its `href` and, if known, `thumb`, `width` and `height` */
  show(image, alt) {
    this.image = image;
    this.element.alt = alt;
    this.element.src = image.thumb ?? image.href;
    this.box.classList.add("waits");
    const full = new Image();
    full.src = image.href;
    full.decode().catch(() => {}).then(() => {
      if (this.image !== image) return;
      this.element.src = image.href; // if it cannot be shown, the browser says so
      this.box.classList.remove("waits");
    });
    this.zoom(1);
  }

  get width() {
    return this.image?.width ?? this.element.naturalWidth;
  }

  get height() {
    return this.image?.height ?? this.element.naturalHeight;
  }

  get fit() {
    const [width, height] = [this.box.clientWidth - 2 * MARGIN, this.box.clientHeight - 2 * MARGIN];
    return Math.min(Math.max(width, 1) / this.width, Math.max(height, 1) / this.height, 1) || 1;
  }

  get actual() {
    return Math.max(1, 1 / this.fit);
  }

  zoom(factor) {
    this.factor = Math.min(Math.max(factor, 1), Math.max(8, 4 * this.actual));
    this.draw();
  }

  draw() {
    if (!this.image || !this.width) return;
    const { box, element } = this;
    const [halfWidth, halfHeight] = [box.clientWidth / 2, box.clientHeight / 2];
    const across = (box.scrollLeft + halfWidth) / box.scrollWidth;
    const down = (box.scrollTop + halfHeight) / box.scrollHeight;
    box.classList.toggle("zoomed", this.factor > 1);
    element.style.width = `${Math.floor(this.width * this.fit * this.factor)}px`;
    element.style.height = `${Math.floor(this.height * this.fit * this.factor)}px`;
    box.scrollTo(across * box.scrollWidth - halfWidth, down * box.scrollHeight - halfHeight);
    this.changed?.(Math.round(100 * this.fit * this.factor));
  }

  grab(event) {
    if (this.factor === 1 || event.button !== 0) return;
    const { box } = this;
    const [x, y] = [event.clientX + box.scrollLeft, event.clientY + box.scrollTop];
    const drag = (moved) => box.scrollTo(x - moved.clientX, y - moved.clientY);
    const drop = () => box.removeEventListener("pointermove", drag);
    box.setPointerCapture(event.pointerId);
    box.addEventListener("pointermove", drag);
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, drop, { once: true });
  }
}
