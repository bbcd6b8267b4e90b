// The audit trail as a table, newest first, with what each record says.
// The one idea: a person's name goes to the server in a body and never in an address.

import { announce, choice, el, fault, field, fill, save, terms } from "./dom.js";
import { eventsOf, isCut, nextPage } from "./audit_event.js";
import { show } from "./problems.js";
import { ask, isTold } from "./server.js";
import { has, joined, moment, plain, say, several, words } from "./words.js";

const PAGE = 50;
export const KINDS = [
  "inference", "quality_rejection", "submission", "report", "review", "disclosure", "notice", "model", "configuration", "access_denied",
  "federated_round", "drift_alarm", "erasure", "legal_hold", "audit_export", "service",
];
const OUTCOMES = [["0", "success"], ["4", "refused"], ["8", "failed"]];
const RECORD = /^clinical-ser:result:[0-9a-f]{64}$/;
const SPOKEN_APART = new Set(["actor", "kind", "version", "result"]);

const known = (group, word) => () => (has(`${group}.${word}`) ? say(`${group}.${word}`) : plain(word));

/** The view. */
export function trailView() {
  const kind = choice("kind", [["", words("trail.any")], ...KINDS.map(one => [one, words(`kind.${one}`)])]);
  const outcome = choice("outcome", [["", words("trail.any")], ...OUTCOMES.map(([code, one]) => [code, words(`outcome.${one}`)])]);
  const since = el("input", { id: "since", type: "date" });
  const until = el("input", { id: "until", type: "date" });
  const person = el("input", { id: "person", type: "text", autocomplete: "off", spellcheck: "false", maxlength: 500 });
  const record = el("input", { id: "record", type: "text", autocomplete: "off", spellcheck: "false", maxlength: 200 });
  const messages = el("div", {});
  const rows = el("tbody", {});
  const found = el("p", { role: "status" });
  const more = el("p", { class: "actions" });
  const form = el("form", { novalidate: true, role: "search", "aria-label": words("trail.filters") },
    el("div", { class: "fields" },
      field(kind, words("trail.kind")),
      field(outcome, words("trail.outcome")),
      field(since, words("trail.since"), words("trail.days_hint")),
      field(until, words("trail.until"), words("trail.days_hint")),
      field(person, words("trail.person"), words("trail.person_hint")),
      field(record, words("trail.record"), words("trail.record_hint"))),
    el("p", { class: "actions" }, el("button", { type: "submit", class: "main" }, words("trail.search"))));
  const table = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": words("trail.rows") },
    el("table", { class: "full trail" },
      el("thead", {}, el("tr", {}, ["index", "time", "kind", "outcome", "who", "details"].map(one => el("th", { scope: "col" }, words(`trail.column_${one}`))))),
      rows));
  const view = el("div", { class: "view" },
    el("h1", { id: "trail-title", tabindex: -1 }, words("trail.title")),
    el("p", {}, words("trail.text")),
    form, messages, found, table, more);

  let running = null;
  let shown = 0;
  let asked = null;

  form.addEventListener("submit", event => {
    event.preventDefault();
    const wrong = [
      fault(since, since.validity.badInput && words("trail.day_wrong")) && since,
      fault(until, (until.validity.badInput || (since.value && until.value && until.value < since.value)) && words("trail.day_wrong")) && until,
      fault(record, record.value.trim() && !RECORD.test(record.value.trim()) && words("trail.record_wrong")) && record,
    ].filter(Boolean);
    if (wrong.length) wrong[0].focus();
    else search();
  });

  function search() {
    asked = new URLSearchParams({ _count: String(PAGE) });
    if (since.value) asked.append("date", `ge${since.value}`);
    if (until.value) asked.append("date", `le${until.value}`);
    if (kind.value) asked.append("type", kind.value);
    if (outcome.value) asked.append("outcome", outcome.value);
    if (record.value.trim()) asked.append("entity", record.value.trim());
    if (person.value.trim()) asked.append("subject", person.value.trim());
    shown = 0;
    fill(rows);
    load(null);
  }

  async function load(page) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    const parameters = new URLSearchParams(asked);
    if (page !== null) parameters.set("page", page);
    const personal = parameters.has("subject");
    fill(messages);
    fill(more);
    fill(found, words("trail.loading"));
    try {
      const { body } = personal
        ? await ask("/v1/AuditEvent/_search", { method: "POST", body: parameters, signal })
        : await ask(`/v1/AuditEvent?${parameters}`, { signal });
      const events = eventsOf(body);
      rows.append(...events.flatMap(rowsOf));
      shown += events.length;
      const next = nextPage(body);
      fill(found, () => joined([several("trail.found", shown), isCut(body) ? say("trail.cut") : "", next === null ? say("trail.end") : ""], "sentences"));
      if (next !== null) fill(more, el("button", { type: "button", onclick: () => load(next) }, words("trail.more")));
      if (page !== null) (rows.querySelectorAll("button")[shown - events.length] ?? table).focus();
    } catch (error) {
      if (signal.aborted) return;
      if (!isTold(error)) throw error;
      fill(found);
      show(messages, error, el("button", { type: "button", onclick: () => load(page) }, words("screen.again")));
    }
  }

  search();
  return { element: view, end: () => running?.abort() };
}

function rowsOf(event) {
  const id = `details-${event.resource.id}`;
  const place = el("td", { colspan: 6 });
  const row = el("tr", { id, hidden: true, class: "details" }, place);
  const number = event.index === null ? "" : String(event.index);
  const button = el("button", { type: "button", "aria-expanded": "false", "aria-controls": id, "aria-label": words("trail.details_of", { index: number }) }, words("trail.details"));
  button.addEventListener("click", () => {
    row.hidden = !row.hidden;
    button.setAttribute("aria-expanded", String(!row.hidden));
    if (!place.hasChildNodes()) fill(place, detailsOf(event));
  });
  const flags = event.flags.map(flag => el("span", { class: "flag" }, known("flag", flag)));
  return [
    el("tr", {},
      el("th", { scope: "row" }, number),
      el("td", {}, () => moment(event.time)),
      el("td", {}, known("kind", event.kind), flags),
      el("td", { class: event.outcome }, known("outcome", event.outcome)),
      el("td", {}, event.name ? plain(event.name) : plain(event.who), " ", el("span", { class: "note" }, known("role", event.role))),
      el("td", {}, button)),
    row,
  ];
}

function detailsOf(event) {
  const messages = el("div", {});
  const proof = async () => {
    fill(messages);
    try {
      save(`record-${event.index}.tlog-proof`, (await ask(`/v1/audit/proof/${event.index}`, { as: "blob" })).body);
      announce(words("result.saved"));
    } catch (error) {
      if (!isTold(error)) throw error;
      show(messages, error);
    }
  };
  const told = Object.entries(event.payload ?? {}).filter(([name]) => !SPOKEN_APART.has(name));
  return [
    terms(
      [words("trail.time_utc"), plain(event.time)],
      [words("trail.account"), plain(event.who)],
      [words("trail.client"), plain(event.client)],
      event.purpose && [words("trail.purpose"), known("purpose", event.purpose)],
      event.result && [words("trail.record"), el("code", {}, plain(event.result))],
      event.model && [words("report.record.digest"), el("code", {}, plain(event.model))],
      [words("report.record.software"), plain(event.software)],
      event.state && [words("trail.state"), known("state", event.state)],
      ...told.map(([name, value]) => [el("span", { lang: "en" }, plain(name).replaceAll("_", " ")), valueOf(value)])),
    event.index !== null && el("p", { class: "actions" }, el("button", { type: "button", onclick: proof }, words("trail.proof"))),
    messages,
    el("details", {}, el("summary", {}, words("trail.fhir")),
      el("pre", { class: "scroll", tabindex: 0, role: "region", "aria-label": words("trail.fhir") }, JSON.stringify(event.resource, null, 2))),
  ];
}

/** Write what a payload says under a name: text as it is, whatever has parts as JSON. */
function valueOf(value) {
  if (value === null || value === "" || (Array.isArray(value) && !value.length)) return words("trail.nothing");
  return typeof value === "object" ? el("code", {}, plain(JSON.stringify(value))) : plain(value);
}
