/* Entry point of the page: shows the stored and pending images of a DAG, a run, a task or a task instance.
 *
 * Invariants: everything can be done with the keyboard, and new images are announced to screen readers.
 */

import { FRAME, theQuery, VIEW } from "./addresses.js";
import { compare } from "./compare.js";
import { $ } from "./dom.js";
import { notice } from "./messages.js";
import { chosen, listings, showChosen } from "./state.js";
import { followTheme } from "./theme.js";
import { browse, ofDag, ofRunView, ofSpend } from "./views.js";

/** Reads the query from this page, or from Airflow's surrounding page if this one has none. */
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
  // Airflow leaves a placeholder without a value unchanged, including its braces.
  const given = (which) => (/^\{\w+\}$/.test(query.get(which) ?? "") ? null : query.get(which) || null);
  const [dag, run, task, place] = VIEW.map(given);
  const where = { dag, run, task, index: /^-?\d+$/.test(place) ? place : null };
  $("compare-open").addEventListener("click", () => compare.open([...chosen.values()]));
  $("compare-clear").addEventListener("click", () => {
    chosen.clear();
    showChosen();
    $("view").focus();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) for (const listing of listings) listing.wake();
  });
  if (query.has("spend")) ofSpend(where);
  else if (!where.dag) browse().catch((error) => $("view").replaceChildren(notice(error)));
  else if (!where.run) ofDag(where);
  else ofRunView(where);
}

start();
