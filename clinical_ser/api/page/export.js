// Exports of the trail: which form, of which days, with or without what is about persons; the answer is a folder in a ZIP file.

import { announce, choice, el, fault, field, fill, save } from "./dom.js";
import { show } from "./problems.js";
import { ask, isTold } from "./server.js";
import { hold } from "./session.js";
import { words } from "./words.js";

export const FORMATS = ["jsonl", "csv", "fhir", "ai-act"];

/** The view. */
export function exportView() {
  const format = choice("format", FORMATS.map(one => [one, words(`export.${one}`)]));
  const since = el("input", { id: "export-since", type: "date" });
  const until = el("input", { id: "export-until", type: "date" });
  const payloads = el("input", { id: "payloads", type: "checkbox", "aria-describedby": "payloads-hint" });
  const messages = el("div", {});
  const submit = el("button", { type: "submit", class: "main" }, words("export.do"));
  const form = el("form", { novalidate: true },
    el("div", { class: "fields" },
      field(format, words("export.format")),
      field(since, words("trail.since"), words("trail.days_hint")),
      field(until, words("trail.until"), words("trail.days_hint"))),
    el("p", { class: "tick" }, payloads, el("label", { for: "payloads" }, words("export.payloads"))),
    el("p", { class: "note", id: "payloads-hint" }, words("export.payloads_hint")),
    messages,
    el("p", { class: "actions" }, submit));
  const view = el("div", { class: "view" },
    el("h1", { id: "export-title", tabindex: -1 }, words("export.title")),
    el("p", {}, words("export.text")),
    form);
  const leaving = new AbortController();

  form.addEventListener("submit", async event => {
    event.preventDefault();
    const wrong = [
      fault(since, since.validity.badInput && words("trail.day_wrong")) && since,
      fault(until, (until.validity.badInput || (since.value && until.value && until.value < since.value)) && words("trail.day_wrong")) && until,
    ].filter(Boolean);
    if (wrong.length) wrong[0].focus();
    if (wrong.length || submit.disabled) return;
    const asked = {
      format: format.value,
      ...(since.value ? { since: since.value } : {}),
      ...(until.value ? { until: until.value } : {}),
      payloads: payloads.checked,
    };
    submit.disabled = true;
    const release = hold();
    fill(messages, el("p", {}, words("export.running")), el("progress", { "aria-label": words("export.running") }));
    announce(words("export.running"));
    try {
      const headers = { "Content-Type": "application/json", Accept: "application/zip" };
      const { body } = await ask("/v1/audit/exports", { method: "POST", body: JSON.stringify(asked), headers, as: "blob", signal: leaving.signal });
      save(`audit-${asked.format}.zip`, body);
      fill(messages, el("div", { class: "notice" }, el("p", { class: "notice-title" }, words("export.done")), el("p", { class: "line" }, words("export.verify"))));
      announce(words("export.done"));
    } catch (error) {
      if (leaving.signal.aborted) return;
      if (!isTold(error)) throw error;
      show(messages, error);
    } finally {
      submit.disabled = false;
      release();
    }
  });
  return { element: view, end: () => leaving.abort() };
}
