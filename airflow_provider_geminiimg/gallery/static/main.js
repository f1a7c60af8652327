/* The gallery's page: what a DAG, a run, a task or a task instance has made, and what it still waits for.
 *
 * What must stay true: whatever can be done with a mouse can be done with the keyboard, and what arrives is said to a
 * screen reader.
 */

import { FRAME, theQuery, VIEW } from "./addresses.js";
import { compare } from "./compare.js";
import { $ } from "./dom.js";
import { notice } from "./messages.js";
import { chosen, listings, showChosen } from "./state.js";
import { followTheme } from "./theme.js";
import { browse, ofDag, ofRunView } from "./views.js";

/** Airflow's page around this one may have got the query instead: then it is taken from there. */
function takeQuery() {
  try {
    if (parent !== window && !location.search && parent.location.pathname.includes(`/${FRAME}/`)) {
      history.replaceState(null, "", parent.location.search || location.href);
    }
  } catch {
    // embedded elsewhere
  }
}

function start() {
  followTheme();
  takeQuery();
  const query = theQuery();
  // Airflow leaves what it has no value for as it stands, braces and all.
  const given = (which) => (/^\{\w+\}$/.test(query.get(which) ?? "") ? null : query.get(which) || null);
  const [dag, run, task, index] = VIEW.map(given);
  const where = { dag, run, task, index: /^-?\d+$/.test(index) ? index : null };
  $("compare-open").addEventListener("click", () => compare.open([...chosen.values()]));
  $("compare-clear").addEventListener("click", () => {
    chosen.clear();
    showChosen();
    $("view").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) for (const listing of listings) listing.wake();
  });
  if (!where.dag) browse().catch((error) => $("view").replaceChildren(notice(error)));
  else if (!where.run) ofDag(where);
  else ofRunView(where);
}

start();
