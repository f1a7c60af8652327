/* What was paid, as a table, with the basis of each amount.
 *
 * The server adds up some runs of one DAG at a time; this page adds up its answers.
 */

import { asQuery, theQuery, VIEW } from "./addresses.js";
import { ask, readableDags } from "./api.js";
import { $, h } from "./dom.js";
import { BASES, counted, priceOf } from "./format.js";
import { NOT_COUNTED } from "./grid.js";
import { notice } from "./messages.js";

const BY = { month: "Month", day: "Day", dag: "DAG", task: "Task", model: "Model", connection: "Connection" };
const HEAD = ["Paid requests", "Images", "Amount", "Basis", "Perhaps paid", "Without a known price"];
const COUNTS = ["paid", "images", "unknown", "without_price"];

/** The address of the spend of a DAG, or of all. */
export const spendAddress = (dag) => asQuery(new URLSearchParams([...(dag ? [[VIEW[0], dag]] : []), ["spend", "month"]]));

const emptySum = () => ({ ...Object.fromEntries(COUNTS.map((name) => [name, 0])), costs: new Map() });

function add(sum, row) {
  for (const name of COUNTS) sum[name] += row[name];
  for (const cost of row.costs) {
    const which = [cost.currency, cost.basis, cost.estimate].join("/");
    sum.costs.set(which, { ...cost, amount: cost.amount + (sum.costs.get(which)?.amount ?? 0) });
  }
}

/** One line for each amount; the counts are in the first. */
function linesOf(title, sum) {
  const costs = [...sum.costs.values()];
  return [costs[0], ...costs.slice(1)].map((cost, i) => h("tr", null,
    h("th", { scope: "row" }, i ? "" : title),
    ["paid", "images"].map((name) => h("td", null, i ? "" : sum[name].toLocaleString())),
    h("td", null, cost ? priceOf(cost) : ""),
    h("td", null, cost ? (BASES[cost.basis] ?? cost.basis) : ""),
    ["unknown", "without_price"].map((name) => h("td", null, i ? "" : sum[name].toLocaleString()))));
}

function tableOf(by, rows, total) {
  const lines = [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([value, sum]) => linesOf(value, sum));
  return h("table", { class: "spend" },
    h("caption", { class: "spoken" }, `What was paid, by ${BY[by]}`),
    h("thead", null, h("tr", null, [BY[by], ...HEAD].map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", null, lines),
    h("tfoot", null, linesOf("Total", total)));
}

/** Reads the spend of one DAG, part by part, until `take` returns false. */
async function readParts(dag, by, take) {
  for (let after = ""; after !== null; ) {
    const part = await ask("spend", { dag_id: dag, by, after_run: after });
    if (!take(part)) return;
    after = part.next;
  }
}

function warningsOf(seen) {
  const found = [];
  if (!seen.complete) found.push(`Not all records are counted. ${NOT_COUNTED}`);
  if (seen.unreadable) found.push(`${counted(seen.unreadable, "record")} can't be read, and are not counted.`);
  if (seen.more) found.push("A run has more open records than are read at once, and not all are counted.");
  return found.map((text) => h("p", { class: "notice plain" }, text));
}

/** The spend of a DAG, or of all DAGs that this user may read. */
export async function spendView(dag) {
  const by = Object.hasOwn(BY, theQuery().get("spend")) ? theQuery().get("spend") : "month";
  const table = h("div", { "aria-busy": "true" });
  const options = Object.entries(BY).map(([value, text]) => h("option", { value, selected: value === by }, text));
  const choose = (event) => {
    const query = theQuery();
    query.set("spend", event.target.value);
    history.replaceState(null, "", asQuery(query));
    spendView(dag);
  };
  const select = h("select", { name: "spend", onchange: choose }, options);
  const reading = h("p", { class: "quiet" }, "Adding up.");
  $("view").replaceChildren(h("div", { class: "bar" }, h("label", null, "By ", select)), table, reading);
  const rows = new Map();
  const total = emptySum();
  const seen = { complete: true, unreadable: 0, more: false };
  const take = (part) => {
    for (const row of part.rows) {
      if (!rows.has(row.value)) rows.set(row.value, emptySum());
      add(rows.get(row.value), row);
      add(total, row);
    }
    seen.complete &&= part.complete;
    seen.unreadable += part.unreadable;
    seen.more ||= part.more;
    table.replaceChildren(tableOf(by, rows, total));
    return table.isConnected; // until another choice is made
  };
  try {
    for (const each of dag ? [dag] : await readableDags()) {
      if (table.isConnected) await readParts(each, by, take);
    }
    table.replaceChildren(tableOf(by, rows, total));
    reading.replaceWith(...warningsOf(seen));
  } catch (error) {
    reading.replaceWith(notice(error));
  }
  table.removeAttribute("aria-busy");
}
