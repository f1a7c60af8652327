/* Two to four images side by side. */

import { Dialog } from "./dialog.js";
import { $, h } from "./dom.js";
import { durationOf, pixels, priceOf } from "./format.js";
import { askedFor, describe, labelOf, nameOf } from "./records.js";
import { Stage } from "./stage.js";

class Compare extends Dialog {
  constructor() {
    super("compare", {
      close: () => this.element.close(),
      in: () => this.zoom(this.stages[0].factor * 1.5),
      out: () => this.zoom(this.stages[0].factor / 1.5),
      fit: () => this.zoom(1),
    }, { "+": "in", "=": "in", "-": "out", 0: "fit" });
    this.stages = [];
  }

  /** @param images each with `image`, with `item` if the record is known, and with `role` if it is a source */
  open(images) {
    const same = (read) => new Set(images.map((each) => JSON.stringify(read(each) ?? null))).size === 1;
    const rows = [
      ["Prompt", ({ item }) => item?.prompt],
      ["Model", ({ item }) => item?.model],
      ["Asked", ({ item }) => item && askedFor(item)],
      ["Pixels", ({ image }) => pixels(image)],
      ["Cost", ({ item }) => item && priceOf(item.cost)],
      ["Time", ({ item }) => item?.seconds && durationOf(item.seconds)],
      ["Run", ({ where }) => where?.run],
    ].filter(([, read]) => images.some(read));
    const row = (each) => ([what, read]) => [
      h("dt", { class: same(read) ? null : "odd" }, what),
      h("dd", null, read(each) || "not recorded"),
    ];
    const panes = images.map((each) => h("figure", { class: "pane" },
      h("div", { class: "stage", tabindex: "0", role: "group", "aria-label": `Image ${nameOf(each.image)}` }, h("img")),
      h("figcaption", null,
        h("p", { class: "name" }, nameOf(each.image)),
        h("p", { class: "by" }, each.role ?? (each.item && labelOf(each.item))),
        h("dl", null, rows.flatMap(row(each))))));
    $("panes").replaceChildren(...panes);
    $("panes").dataset.count = images.length;
    super.open();
    this.stages = panes.map((pane, i) => new Stage(pane.querySelector(".stage"), i ? null : () => {
      $("compare-zoom").textContent = `${Math.round(100 * (this.stages[0]?.factor ?? 1))} %`;
    }));
    this.stages.forEach((stage, i) => {
      const { item, image } = images[i];
      stage.show(image, item ? describe(item, image) : nameOf(image));
      stage.box.addEventListener("scroll", () => this.follow(stage));
    });
  }

  zoom(factor) {
    for (const stage of this.stages) stage.zoom(factor);
  }

  /** Shows the same part in all images. */
  follow(leader) {
    if (this.leader && this.leader !== leader) return;
    this.leader = leader;
    const room = (box) => [box.scrollWidth - box.clientWidth, box.scrollHeight - box.clientHeight];
    const [width, height] = room(leader.box);
    const [across, down] = [leader.box.scrollLeft / (width || 1), leader.box.scrollTop / (height || 1)];
    for (const { box } of this.stages) {
      if (box !== leader.box) box.scrollTo(across * room(box)[0], down * room(box)[1]);
    }
    requestAnimationFrame(() => { this.leader = null; });
  }

  closed() {
    $("panes").replaceChildren(); // releases the full-size images
    super.closed();
  }
}

export const compare = new Compare();
