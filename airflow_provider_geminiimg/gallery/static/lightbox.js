/* The large view of one image, with its details. */

import { ask } from "./api.js";
import { compare } from "./compare.js";
import { Dialog } from "./dialog.js";
import { $, h, icon, say } from "./dom.js";
import { durationOf, fileSize, pixels, ratioOf, timeOf } from "./format.js";
import { chainElement, replaceSteps } from "./loops.js";
import { notice } from "./messages.js";
import { askedFor, describe, labelOf, nameOf, originChip, paidFor } from "./records.js";
import { Stage } from "./stage.js";
import { chosen, setChosen } from "./state.js";

async function copyText(text, button) {
  const said = button.lastChild;
  let done = false;
  try {
    await navigator.clipboard.writeText(text); // available only over https, and on this machine
    done = true;
  } catch {
    const field = h("textarea", { readonly: true, class: "spoken" });
    field.value = text;
    button.after(field);
    field.select();
    done = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  said.textContent = done ? "Copied" : "Could not copy: select it by hand";
  say(done ? "Copied." : "Could not copy.");
  setTimeout(() => { said.textContent = "Copy"; }, 2000);
}

class Lightbox extends Dialog {
  constructor() {
    super("lightbox", {
      close: () => this.element.close(),
      before: () => this.step(-1),
      after: () => this.step(1),
      in: () => this.stage.zoom(this.stage.factor * 1.5),
      out: () => this.stage.zoom(this.stage.factor / 1.5),
      fit: () => this.stage.zoom(1),
      actual: () => this.stage.zoom(this.stage.actual),
    }, { ArrowLeft: "before", ArrowRight: "after", "+": "in", "=": "in", "-": "out", 0: "fit", 1: "actual" });
    this.stage = new Stage(this.element.querySelector(".stage"), (percent) => {
      $("lightbox-zoom").textContent = `${percent} %`;
    });
  }

  open(entry) {
    this.show(entry);
    super.open();
    this.stage.draw();
    this.stage.box.focus();
  }

  back() {
    return this.entry.listing.cards.get(this.entry.key)?.element.querySelector(".frame") ?? super.back();
  }

  get all() {
    return this.entry.listing.entries.filter((entry) => entry.image?.href);
  }

  get place() {
    return this.all.findIndex((entry) => entry.key === this.entry.key);
  }

  async step(by) {
    const { entry } = this;
    const { listing } = entry;
    const isLast = () => by > 0 && this.place + 1 >= this.all.length && !listing.limit && this.element.open;
    while (isLast() && await listing.more()); // stops at a page that cannot be read
    const to = this.all[this.place + by];
    if (!to || this.entry !== entry) return; // the user has moved on while the page was read
    this.show(to);
    say(`${nameOf(to.image)}, ${this.place + 1} of ${this.all.length}`);
  }

  show(entry) {
    this.entry = entry;
    const { item, image } = entry;
    this.stage.show(image, describe(item, image));
    $("lightbox-title").textContent = nameOf(image);
    const goesOn = entry.listing.goesOn && !entry.listing.limit;
    $("lightbox-place").textContent = `${this.place + 1} of ${this.all.length}${goesOn ? " and more" : ""}`;
    this.element.querySelector("[data-do=before]").disabled = this.place === 0;
    this.element.querySelector("[data-do=after]").disabled = this.place + 1 === this.all.length && !goesOn;
    $("lightbox-about").replaceChildren(...this.about(entry));
    this.showIterations(entry.listing);
    $("lightbox-about").parentElement.scrollTop = 0;
    if (item.inputs.length || item.operation === "edit") this.chain(entry);
  }

  /** Shows the iterations of the image's loop, as far as the listing knows them; a click shows another one. */
  showIterations(listing) {
    if (this.entry?.listing !== listing) return;
    const turn = (entry) => {
      this.show(entry);
      this.element.querySelector("[aria-current] .step").focus();
    };
    const chain = chainElement(listing, this.entry.item, turn, this.entry.item);
    if (chain) replaceSteps(this.element.querySelector(".iterations"), h("h3", null, "Iterations"), chain);
  }

  about(entry) {
    const { item, image, listing } = entry;
    const choose = h("input", { type: "checkbox" });
    choose.checked = chosen.has(entry.key);
    choose.addEventListener("change", () => {
      setChosen(entry, choose.checked);
      choose.checked = chosen.has(entry.key);
    });
    const uri = h("button", { type: "button", class: "button small", "aria-label": "Copy the URI" }, icon("copy"));
    uri.append(h("span", null, "Copy"));
    uri.addEventListener("click", () => copyText(image.uri, uri));
    const rows = [
      ["Prompt", item.prompt && h("span", { class: "whole" }, item.prompt)],
      ["Task", [labelOf(item), ...originChip(listing.originOf(item))]],
      ["Model", `${item.model}, ${item.gateway}`],
      ["Asked", askedFor(item)],
      ["Got", [...(image.width ? [pixels(image), ratioOf(image)] : []), image.media_type, fileSize(image.size)].join(", ")],
      ["Cost", paidFor(item)],
      ["Time", item.seconds === null ? null : durationOf(item.seconds)],
      ["Landed", item.landed_at && timeOf(item.landed_at)],
      ["URI", [h("span", { class: "uri" }, image.uri), uri]],
      ["SHA-256", h("span", { class: "uri" }, image.sha256)],
      ["Job", item.job_id && h("span", { class: "uri" }, item.job_id)],
      ["Copied from", item.reused_from && h("span", { class: "uri" }, item.reused_from)],
    ].filter(([, value]) => value);
    return [
      item.mismatch && h("p", { class: "reason warn" }, icon("warning"), item.mismatch),
      h("p", { class: "do" },
        h("a", { class: "button strong", href: image.href, download: nameOf(image) }, icon("download"), "Download"),
        h("label", { class: "button" }, choose, "Compare")),
      h("div", { class: "chain" }),
      h("div", { class: "iterations" }),
      h("dl", null, rows.flatMap(([what, value]) => [h("dt", null, what), h("dd", null, value)])),
    ].filter(Boolean);
  }

  /** Shows the source images beside the image. */
  async chain(entry) {
    const { item } = entry;
    const place = this.element.querySelector(".chain");
    let sources;
    try {
      const { task_id, map_index, iteration, n } = item;
      const which = { task_id, map_index, iteration, item: item.item, n };
      ({ sources } = await ask("sources", { ...entry.listing.names, ...which }));
    } catch (error) {
      place.replaceChildren(h("h3", null, "Made from"), notice(error));
      return;
    }
    if (!sources.length || this.entry !== entry) return;
    const list = h("ul", { class: "sources" }, sources.map((source) => this.source(source, entry)));
    place.replaceChildren(h("h3", null, "Made from"), list);
  }

  source({ role: kind, name: named, image: shown, why }, entry) {
    const role = kind === "source" ? "Source" : "Reference";
    const image = { ...shown, name: named };
    const text = [h("span", { class: "name" }, nameOf(image)), h("span", { class: "by" }, role)];
    if (!shown?.href) {
      return h("li", { class: "hidden-source" },
        h("span", { class: "frame" }, icon("warning")),
        h("div", null, text, h("span", { class: "reason" }, why ?? shown?.why)));
    }
    const onclick = () => compare.open([{ image, item: null, role, where: { run: image.run_id } }, entry]);
    return h("li", null, h("button", { type: "button", onclick },
      h("span", { class: "frame" }, h("img", { src: image.thumb, alt: "" })),
      h("span", null, text, h("span", { class: "spoken" }, "Show it beside the result"))));
  }

  closed() {
    this.stage.element.removeAttribute("src");
    super.closed();
  }
}

export const lightbox = new Lightbox();
