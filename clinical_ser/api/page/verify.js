// The view that verifies the log in the browser and remembers what it saw, so that the next time a smaller or rewritten log is loud.
// The one idea: what was not verified stands beside what was; and what is remembered is replaced only by what fitted it.

import { announce, ask as dialogue, el, field, fill, save } from "./dom.js";
import { count } from "./numbers.js";
import { show } from "./problems.js";
import { ask, isTold, Problem, wait } from "./server.js";
import { hold } from "./session.js";
import { plain, words } from "./words.js";
import { verifyLog } from "./verification.js";

const KEPT = "clinical-ser.audit-log";
const TRIES = 5;
const MARKS = { good: "\u2713", bad: "\u2717", open: "\u25cb" };

/** What this browser saw of the log last: {origin, keys, checkpoint, confirmed}, or null. Nothing else is ever kept in it. */
function remembered() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT));
    const fine = typeof kept?.origin === "string" && typeof kept.checkpoint === "string" && Array.isArray(kept.keys) && kept.keys.every(key => typeof key === "string");
    return fine ? kept : null;
  } catch {
    return null;
  }
}

/** Read what is under /v1/audit/: bytes, null where there are none. A server that is busy is waited for. */
const reader = signal => async path => {
  for (let left = TRIES; ; left -= 1) {
    try {
      return (await ask(`/v1/audit/${path}`, { as: "bytes", signal })).body;
    } catch (error) {
      if (error instanceof Problem && error.status === 404) return null;
      const passes = error instanceof Problem && (error.status === 429 || error.status === 503);
      if (!passes || left <= 1) throw error;
      await wait(error.retryAfter ?? 1, signal);
    }
  }
};

/** The view. */
export function verifyView() {
  const keys = el("textarea", { id: "keys", rows: 2, autocomplete: "off", spellcheck: "false" });
  const messages = el("div", {});
  const place = el("div", {});
  const knows = el("div", {});
  const start = el("button", { type: "submit", class: "main" }, words("verify.start"));
  const form = el("form", { novalidate: true },
    field(keys, words("verify.keys"), words("verify.keys_hint")),
    el("p", { class: "actions" }, start));
  const view = el("div", { class: "view" },
    el("h1", { id: "verify-title", tabindex: -1 }, words("verify.title")),
    el("p", {}, words("verify.text")),
    form, messages, place,
    el("section", { "aria-labelledby": "knows-title" }, el("h2", { id: "knows-title" }, words("verify.knows")), knows));
  let running = null;

  form.addEventListener("submit", event => {
    event.preventDefault();
    if (!running) verify();
  });

  async function verify() {
    running = new AbortController();
    const { signal } = running;
    const bar = el("progress", { "aria-label": words("verify.running") });
    const stage = el("p", {}, words("verify.running"));
    const cancel = el("button", { type: "button", onclick: () => running?.abort() }, words("verify.cancel"));
    const release = hold();
    start.disabled = true;
    fill(messages);
    fill(place, stage, bar, el("p", { class: "actions" }, cancel));
    cancel.focus();
    announce(words("verify.running"));
    const progress = (done, of) => {
      bar.max = Math.max(of, 1);
      bar.value = done;
      fill(stage, words("verify.progress", { done: count(done), of: count(of) }));
    };
    try {
      const trusted = keys.value.split("\n").map(line => line.trim()).filter(Boolean);
      const before = remembered();
      const found = await verifyLog({ read: reader(signal), trusted, remembered: before, progress });
      signal.throwIfAborted();
      const bad = found.findings.some(finding => finding.state === "bad");
      if (!bad) {
        const { checkpoint, keys: signers, note, confirmed } = found;
        localStorage.setItem(KEPT, JSON.stringify({ origin: checkpoint.origin, keys: signers, checkpoint: note, confirmed }));
      }
      report(found, before, bad);
      tellKnown();
    } catch (error) {
      fill(place);
      if (signal.aborted) {
        announce(words("verify.cancelled"));
        fill(place, el("p", { role: "status" }, words("verify.cancelled")));
      } else if (isTold(error)) {
        show(messages, error);
      } else {
        throw error;
      }
    } finally {
      running = null;
      start.disabled = false;
      release();
    }
  }

  function report({ findings, checkpoint, note }, before, bad) {
    const title = words(bad ? "verify.bad" : "verify.good");
    const listed = state => findings.filter(finding => finding.state === state);
    const section = state => listed(state).length > 0 && [
      el("h3", {}, words(`verify.heading_${state}`)),
      el("ul", { class: "findings" }, listed(state).map(finding => el("li", { class: state },
        el("span", { "aria-hidden": "true" }, MARKS[state]), el("span", {}, wordsOf(finding), finding.values.key && el("code", {}, plain(finding.values.key)))))),
    ];
    const keepBoth = () => save("checkpoints.txt", new Blob([[before?.checkpoint, note].filter(Boolean).join("\n")], { type: "text/plain" }));
    fill(place, el("section", { class: bad ? "notice fail verdict-box" : "notice verdict-box", tabindex: -1, "aria-labelledby": "verdict-title", ...(bad ? { role: "alert" } : {}) },
      el("h2", { id: "verdict-title" }, title),
      checkpoint && el("p", {}, words("verify.of", { origin: plain(checkpoint.origin), size: count(checkpoint.size) })),
      bad && el("p", {}, words("verify.bad_next")),
      bad && el("p", { class: "actions" }, el("button", { type: "button", onclick: keepBoth }, words("verify.keep_both"))),
      ["bad", "good", "open"].map(section)));
    place.firstChild.focus();
    announce(title);
  }

  function tellKnown() {
    const kept = remembered();
    if (!kept) {
      fill(knows, el("p", {}, words("verify.knows_nothing")));
      return;
    }
    const size = count(kept.checkpoint.split("\n")[1] ?? "");
    fill(knows,
      el("p", {}, words("verify.knows_log", { origin: plain(kept.origin), size })),
      kept.keys.map(key => el("p", {}, el("code", {}, plain(key)))),
      el("p", { class: "actions" }, el("button", { type: "button", onclick: forget }, words("verify.forget"))));
  }

  async function forget() {
    const answer = await dialogue(words("verify.forget_title"), words("verify.forget_text"), [
      { words: words("verify.forget_keep"), value: "keep", main: true },
      { words: words("verify.forget"), value: "forget" },
    ]);
    if (answer !== "forget") return;
    localStorage.removeItem(KEPT);
    tellKnown();
    document.getElementById("verify-title").focus();
  }

  tellKnown();
  return { element: view, end: () => running?.abort() };
}

const wordsOf = ({ key, values }) => {
  const shown = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, typeof value === "number" ? count(value) : value]));
  return words(`verify.${key}`, shown);
};
