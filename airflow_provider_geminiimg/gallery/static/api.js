/* Requests to the gallery and to Airflow's API. */

import { routeTo, withQuery } from "./addresses.js";
import { instanceOf } from "./records.js";

const AIRFLOW = "../api/v2"; // Airflow's own API, beside the gallery
const AIRFLOW_UI = "../ui"; // the API of Airflow's own pages
const RUNS = 8; // requested at once
const MOST_INSTANCES = 2000;

class Trouble extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function getJson(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, { headers: { Accept: "application/json" }, ...options });
    if (answer.ok) return await answer.json();
  } catch {
    throw new Trouble(0, "no answer");
  }
  const body = await answer.json().catch(() => null);
  throw new Trouble(answer.status, typeof body?.detail === "string" ? body.detail : `HTTP ${answer.status}`);
}

/** All DAGs that have images and that this user may read. */
export async function readableDags() {
  const found = [];
  for (let position = 0; position !== null; ) {
    const page = await ask("dags", { position });
    found.push(...page.dags);
    position = page.next;
  }
  return found;
}

/** The gallery's answer at one of its routes; see `routeTo`. */
export const ask = async (which, values = {}) => getJson(routeTo(which, values));

const dagRuns = (dag) => `${AIRFLOW}/dags/${encodeURIComponent(dag)}/dagRuns`;
const dagRun = (dag, run) => `${dagRuns(dag)}/${encodeURIComponent(run)}`;

/* Data from Airflow itself; `null` after a failure: images are then shown without it. */
export const runOf = (dag, run) => getJson(dagRun(dag, run)).catch(() => null);
const instancesOf = (dag, run, query) => getJson(withQuery(`${dagRun(dag, run)}/taskInstances`, query)).catch(() => null);

/** The runs of a DAG, newest first. */
export function runsOfDag(dag, offset) {
  return getJson(withQuery(dagRuns(dag), { order_by: "-run_after", limit: RUNS, offset }));
}

/** The runs of some DAGs, newest first. A read-only POST, because it sends a list. */
export function runsOfDags(dags, offset) {
  const body = JSON.stringify({ dag_ids: dags, order_by: "-run_after", page_limit: RUNS, page_offset: offset });
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  return getJson(`${AIRFLOW}/dags/~/dagRuns/list`, { method: "POST", headers, body });
}

/** A loop of a run: its iterations, and the decisions of its condition. No public API of Airflow 3.4 has these. */
export const loopOf = (dag, run, loop) => (
  getJson(`${AIRFLOW_UI}/grid/loop/${[dag, run, loop].map(encodeURIComponent).join("/")}`).catch(() => null)
);

/**
 * Start of the last attempt of each task instance of a run, and the loop of each task.
 * Earlier images were not made by that attempt.
 */
export async function beginnings(dag, run, task) {
  const began = new Map();
  const loops = new Map();
  for (let offset = 0; offset < MOST_INSTANCES; ) {
    const page = await instancesOf(dag, run, { task_id: task, limit: 100, offset });
    if (!page?.task_instances.length) break;
    for (const ti of page.task_instances) {
      began.set(instanceOf({ ...ti, iteration: ti.loop_iteration?.iteration }), ti.start_date);
      if (ti.loop_iteration) loops.set(ti.task_id, ti.loop_iteration.loop_id);
    }
    offset += page.task_instances.length;
    if (offset >= page.total_entries) break;
  }
  return { began, loops };
}
