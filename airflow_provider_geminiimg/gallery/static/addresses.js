/* Addresses: the gallery's routes, as the server hands them to this page, and the page's own views.
 *
 * What must stay true: every address is relative, because Airflow may live under a path.
 */

const declared = JSON.parse(document.body.dataset.gallery);

export const PAGE = declared.page_size; // images that are asked for at once
export const LOOK = declared.max_page_size; // the most that one request may bring
export const VIEW = declared.view; // the names in the query that say what the page is about: DAG, run, task, index
export const FRAME = declared.frame; // the part of the path by which Airflow's page around this one is known
export const HOME = "?browse"; // not empty, so that nothing is taken from the page around

const isGiven = ([, value]) => value !== null && value !== undefined;

export function withQuery(path, query) {
  const given = Object.entries(query).filter(isGiven);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/**
 * The address of one of the gallery's routes.
 * @param values what stands in its path and its query, by name; `null` is left out
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

/* Airflow 3.1 puts ids into the query as they are: a plus in it is a plus, and a space is always written %20. */
export const theQuery = () => new URLSearchParams(location.search.replaceAll("+", "%2B"));
export const asQuery = (query) => `?${query.toString().replaceAll("+", "%20")}`;

/** The address of a view: of this page, with another query. */
export function viewAddress(dag, run, task, index) {
  const given = [dag, run, task, index].map((value, i) => [VIEW[i], value]).filter(isGiven);
  return asQuery(new URLSearchParams(given));
}
