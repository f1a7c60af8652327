/* Addresses: the gallery's routes, which the server passes to this page, and the page's own views.
 *
 * Invariant: every address is relative, because Airflow may be served under a path.
 */

const declared = JSON.parse(document.body.dataset.gallery);

export const PAGE = declared.page_size; // images per request
export const LOOK = declared.max_page_size; // maximum per request
export const VIEW = declared.view; // the query parameters: DAG, run, task, index, iteration
export const FRAME = declared.frame; // the path segment that identifies Airflow's surrounding page
export const HOME = "?browse"; // not empty, so that the query of the surrounding page is not used

const isGiven = ([, value]) => value !== null && value !== undefined;

export function withQuery(path, query) {
  const given = Object.entries(query).filter(isGiven);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/**
 * Returns the address of one of the gallery's routes.
 * @param values for its path and its query, by name; `null` values are left out
 */
export function routeTo(which, values) {
  const { path, query } = declared.routes[which];
  const rest = { ...values };
  const filled = path.replaceAll(/\{(\w+)\}/g, (_, part) => {
    const value = rest[part];
    delete rest[part];
    return encodeURIComponent(value);
  });
  const unknown = Object.keys(rest).find((each) => !query.includes(each));
  if (unknown) throw new Error(`${which} takes no ${unknown}`);
  return withQuery(filled, rest);
}

/* Airflow 3.1 inserts ids into the query without encoding: a plus is a plus, and a space is always %20. */
export const theQuery = () => new URLSearchParams(location.search.replaceAll("+", "%2B"));
export const asQuery = (query) => `?${query.toString().replaceAll("+", "%20")}`;

/** The address of a view: this page with another query. */
export function viewAddress(dag, run, task, index, iteration) {
  const given = [dag, run, task, index, iteration].map((value, i) => [VIEW[i], value]).filter(isGiven);
  return asQuery(new URLSearchParams(given));
}
