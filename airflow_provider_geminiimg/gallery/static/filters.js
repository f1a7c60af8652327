/* The filters of a run by task, iteration of a loop, model and state. */

import { h } from "./dom.js";
import { STATUSES } from "./records.js";

export const FILTERS = [
  { name: "task", label: "Task", all: "All tasks", options: (seen) => seen.tasks.map((task) => [task, task]) },
  {
    name: "iteration", label: "Iteration", all: "All iterations",
    options: (seen) => seen.iterations.map((each) => [String(each), `Iteration ${each}`]),
  },
  { name: "model", label: "Model", all: "All models", options: (seen) => seen.models.map((model) => [model, model]) },
  {
    name: "state", label: "State", all: "All states",
    options: (seen) => Object.entries(seen.statuses).map(
      ([status, count]) => [status, `${STATUSES[status].label} (${count.toLocaleString()})`],
    ),
  },
];

/** The filters that have more than one option. */
export function showFilters(bar, seen, filters, choose) {
  for (const { name: which, label: text, all, options } of FILTERS) {
    const list = [["", all], ...options(seen)];
    const worth = list.length > 2 || filters[which];
    let select = bar.querySelector(`select[name=${which}]`);
    if (!select && worth) {
      select = h("select", { name: which, onchange: () => choose(which, select.value) });
      bar.append(h("label", null, h("span", { class: "spoken" }, text), select));
    }
    if (!select || select.dataset.seen === JSON.stringify(list)) continue;
    select.dataset.seen = JSON.stringify(list);
    const now = filters[which] ?? "";
    if (!list.some(([value]) => value === now)) list.push([now, now]);
    select.replaceChildren(...list.map(([value, shown]) => h("option", { value, selected: value === now }, shown)));
  }
}
