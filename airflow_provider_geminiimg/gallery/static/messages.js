/* Messages that are shown in place of images. */

import { h, icon } from "./dom.js";

const REFUSALS = {
  0: "Airflow does not answer. Check your connection. While images are in progress, the page retries.",
  401: "You are not signed in, or your session has expired. Reload Airflow and sign in.",
  403: "You have no right to see these images. Ask your Airflow administrator for access to the DAG's XComs.",
  404: "There is nothing here: the run, the DAG or the image was deleted, or its address is wrong.",
};

export function notice(error) {
  const text = REFUSALS[error.status] ?? `The gallery could not read this (${error.message}). Reload to try again.`;
  return h("p", { class: "notice", role: "alert" }, icon("warning"), text);
}

const EXAMPLE = `GeminiImageGenerateOperator(
    task_id="hero",
    prompt="A lighthouse keeper drinking coffee at dawn",
)`;

/** @param listing `null` if the page shows more than one run */
export function emptyNote(listing) {
  const code = (text) => h("code", null, text);
  const place = (title, ...said) => h("div", { class: "empty" }, icon("image"), h("h2", null, title), said);
  if (listing?.isBusy) {
    const soon = "The run is in progress. Images appear here as soon as they are requested.";
    return place("No image yet", h("p", null, soon));
  }
  const whose = listing && (listing.where.task ? "This task" : "This run");
  return place(whose ? `${whose} has made no images` : "There are no images yet",
    h("p", null, "Images appear here when a task makes them with ", code("GeminiImageGenerateOperator"),
      " or edits them with ", code("GeminiImageEditOperator"), ":"),
    h("pre", { tabindex: "0" }, code(EXAMPLE)),
    listing && h("p", { class: "quiet" }, "Airflow shows this tab on every DAG and task. ",
      code("[geminiimg] gallery_tabs"), " in Airflow's configuration says whether it does."));
}
