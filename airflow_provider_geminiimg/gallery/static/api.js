/* What the gallery and Airflow answer. */

import { routeTo, withQuery } from "./addresses.js";

const AIRFLOW = "../api/v2"; // Airflow's own API, beside the gallery
const RUNS = 8; // that are asked for at once
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

/** What the gallery answers at one of its routes; see `routeTo`. */
export const ask = async (which, values = {}) => getJson(routeTo(which, values));

const dagRuns = (dag) => `${AIRFLOW}/dags/${encodeURIComponent(dag)}/dagRuns`;
const dagRun = (dag, run) => `${dagRuns(dag)}/${encodeURIComponent(run)}`;

/* What Airflow itself says; `null` where it does not: images are shown without it. */
export const runOf = (dag, run) => getJson(dagRun(dag, run)).catch(() => null);
const instancesOf = (dag, run, query) => getJson(withQuery(`${dagRun(dag, run)}/taskInstances`, query)).catch(() => null);

/** The runs of a DAG, newest first. */
export function runsOfDag(dag, offset) {
  return getJson(withQuery(dagRuns(dag), { order_by: "-run_after", limit: RUNS, offset }));
}

/** The runs of some DAGs, newest first. A POST, but one that only reads: it carries a list. */
export function runsOfDags(dags, offset) {
  const body = JSON.stringify({ dag_ids: dags, order_by: "-run_after", page_limit: RUNS, page_offset: offset });
  const headers = { Accept: "application/json", "Content-Type": "application/json" };
  return getJson(`${AIRFLOW}/dags/~/dagRuns/list`, { method: "POST", headers, body });
}

/** When each task instance of a run began its last attempt: what landed before that was not made by it. */
export async function beginnings(dag, run, task) {
  const found = new Map();
  for (let offset = 0; offset < MOST_INSTANCES; ) {
    const page = await instancesOf(dag, run, { task_id: task, limit: 100, offset });
    if (!page?.task_instances.length) break;
    for (const ti of page.task_instances) found.set(`${ti.task_id}/${ti.map_index}`, ti.start_date);
    offset += page.task_instances.length;
    if (offset >= page.total_entries) break;
  }
  return found;
}
