// Says what went wrong: in the reader's language what kind of thing it was, then the server's own sentence, then the id to ask about.

import { el, fill } from "./dom.js";
import { Problem } from "./server.js";
import { has, plain, say, several, words } from "./words.js";

/** Return words for an error: what kind of thing went wrong. */
export const titleOf = error => () => {
  if (!(error instanceof Problem)) return say("problem.unreachable");
  return has(`problem.${error.status}`) ? say(`problem.${error.status}`) : say(error.status >= 500 ? "problem.server" : "problem.unknown");
};

/** Return the box that says it. `actions` are buttons. */
export function problemBox(error, ...actions) {
  const told = error instanceof Problem;
  return el("div", { class: "notice fail", role: "alert" },
    el("p", { class: "notice-title" }, titleOf(error)),
    told && error.detail && el("p", { class: "line", lang: "en" }, plain(error.detail)),
    told && error.retryAfter !== null && el("p", { class: "line" }, () => several("problem.retry_after", error.retryAfter)),
    told && error.requestId && el("p", { class: "line note" }, words("problem.request", { id: plain(error.requestId) })),
    actions.length > 0 && el("div", { class: "actions" }, actions));
}

/** Return a box for something that went wrong on this side. */
export const wordsBox = (title, ...lines) =>
  el("div", { class: "notice fail", role: "alert" }, el("p", { class: "notice-title" }, title), lines.map(line => el("p", { class: "line" }, line)));

/** Show an error in its place, and throw on what is none of ours to show. */
export function show(slot, error, ...actions) {
  fill(slot, problemBox(error, ...actions));
}
