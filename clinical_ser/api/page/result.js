// One screening: waiting for it, its result, the report, files to take along, and the clinician's review.
// The one idea: as in the report, a number is shown only where there is an answer, and never without its interval and what it is stated for.

import { announce, el, fault, field, fill, save, terms } from "./dom.js";
import { percent, points } from "./numbers.js";
import { problemBox, show } from "./problems.js";
import { checkList, verdict } from "./quality.js";
import { ask, isTold, Problem, seconds, Unreachable, wait } from "./server.js";
import { hold, may, who } from "./session.js";
import { joined, labelOf, moment, percents, plain, say, spoken, term, words } from "./words.js";

export const SCREENING = /^[0-9a-f]{32}$/;
const POLL_S = 2;
const LONGEST_POLL_S = 30;
const LONGEST_HOLD_MS = 30 * 60_000;
/** Waiting keeps the session so long at most, and only while the server answers: nobody may be there any more. */
const NUMBERED = new Set(["flagged", "not_flagged", "classified"]);
/** Answers that come with a number; the server's JSON has one for "cannot tell" too, which is for engineers. */
const DECISIONS = ["agreed", "overridden", "undecided"];

/** The view. `first` is what the server answered when it was sent, if it was sent from here; `whom` names the person then. */
export function resultView({ id, first, whom, onOther }) {
  const body = el("div", {});
  const messages = el("div", {});
  const view = el("div", { class: "view" },
    el("h1", { id: "result-title", tabindex: -1 }, words("result.title")),
    whom && el("p", { class: "facts" }, words("result.whom", { whom: plain(whom) })),
    el("p", { class: "facts" }, words("result.number"), " ", el("code", {}, id)),
    messages,
    body,
    otherForm(onOther));
  const stop = new AbortController();
  follow(id, first, stop.signal, { body, messages });
  return { element: view, end: () => stop.abort(new DOMException("left", "AbortError")) };
}

/** The view that only asks which screening to open; `told` is said first. */
export function openView({ recent, onOther, told }) {
  return {
    element: el("div", { class: "view" },
      el("h1", { id: "open-title", tabindex: -1 }, words("result.open_title")),
      told && el("div", { class: "notice", role: "alert" }, el("p", { class: "notice-title" }, told)),
      recent.length > 0 && el("section", { "aria-labelledby": "recent-title" },
        el("h2", { id: "recent-title" }, words("result.recent")),
        el("ul", {}, recent.map(one => el("li", {}, el("a", { href: `#result/${one.id}` }, plain(one.whom)), " ", el("span", { class: "note" }, () => moment(one.at)))))),
      otherForm(onOther)),
    end: () => {},
  };
}

function otherForm(onOther) {
  const input = el("input", { id: "other", type: "text", autocomplete: "off", spellcheck: "false", maxlength: 40 });
  const form = el("form", { novalidate: true, class: "other" },
    field(input, words("result.another"), words("result.other_hint")),
    el("button", { type: "submit" }, words("result.open")));
  form.addEventListener("submit", event => {
    event.preventDefault();
    const id = input.value.trim().toLowerCase();
    if (fault(input, !SCREENING.test(id) && words("result.other_wrong"))) input.focus();
    else onOther(id);
  });
  return form;
}

// --- Waiting ----------------------------------------------------------------------------------------------------------------------------

async function follow(id, first, signal, { body, messages }) {
  const until = Date.now() + LONGEST_HOLD_MS;
  let release = hold(until);
  try {
    let answer = first ? { body: first, header: () => null } : null;
    for (let told = false; ; told = true) {
      answer ??= await asked(id, signal, messages, () => release());
      release();
      release = hold(until);
      const { body: screening, header } = answer;
      if (screening.state === "done" || screening.state === "failed") {
        fill(messages);
        render(screening, body);
        if (told) announce(words(screening.state === "done" ? "result.ready" : "result.failed"));
        return;
      }
      fill(body, el("p", {}, words(`result.${screening.state === "running" ? "running" : "accepted"}`)),
        el("progress", { "aria-label": words("result.waiting") }));
      if (!told) announce(words("result.accepted"));
      await pause(Math.min(LONGEST_POLL_S, Math.max(1, seconds(header("Retry-After")) ?? POLL_S)), signal);
      answer = null;
    }
  } catch (error) {
    if (signal.aborted) return;
    if (!isTold(error)) throw error;
    fill(body);
    show(messages, error);
  } finally {
    release();
  }
}

/** Ask until there is an answer: a network that comes back, or a server that is busy, is waited for. */
async function asked(id, signal, messages, onSilence) {
  for (;;) {
    try {
      const answer = await ask(`/v1/screenings/${id}`, { signal });
      fill(messages);
      return answer;
    } catch (error) {
      const passes = error instanceof Unreachable || (error instanceof Problem && (error.status === 429 || error.status === 503));
      if (!passes) throw error;
      onSilence();
      show(messages, error);
      await pause(Math.min(LONGEST_POLL_S, error.retryAfter || 2 * POLL_S), signal);
    }
  }
}

/** Wait; a page that comes to the front again, where timers had slept, does not wait on. */
async function pause(s, signal) {
  const woken = new AbortController();
  const wake = () => document.visibilityState === "visible" && woken.abort(null);
  document.addEventListener("visibilitychange", wake);
  try {
    await wait(s, AbortSignal.any([signal, woken.signal]));
  } catch (error) {
    if (signal.aborted) throw error;
  } finally {
    document.removeEventListener("visibilitychange", wake);
  }
}

// --- The result -------------------------------------------------------------------------------------------------------------------------

function render(screening, body) {
  const { result } = screening;
  if (screening.state === "failed" || !result) {
    fill(body, el("div", { class: "notice fail" },
      el("p", { class: "notice-title" }, words("result.failed")),
      screening.failure && el("p", { class: "line", lang: "en" }, plain(screening.failure.detail)),
      el("p", { class: "line" }, words("result.failed_next"))));
    return;
  }
  fill(body,
    result.model.simulated && el("div", { class: "notice fail" },
      el("p", { class: "notice-title" }, words("report.simulated.title")),
      el("p", { class: "line" }, words("report.simulated.text"))),
    part("answer", words("report.answer.title"), answerOf(result)),
    part("quality", words("report.quality.title"), el("p", {}, verdict(result.quality)), checkList(result.quality, words("report.quality.title"))),
    NUMBERED.has(result.status) && result.explanation?.families.length > 0 && movedBy(result.explanation),
    part("next", words("report.next.title"), el("p", {}, words(`report.next.${result.status}`))),
    el("div", { class: "notice fail" },
      el("p", { class: "notice-title" }, words("report.safety.title")),
      el("p", { class: "line" }, words("report.safety.text")),
      el("p", { class: "line" }, words("result.contacts"))),
    noticesOf(screening),
    part("take", words("result.take"), filesOf(screening)),
    may("reviews:write") || screening.reviews.length > 0 ? reviewOf(screening) : null,
    part("about", words("report.about.title"), el("p", {}, words("report.about.text")), el("p", { class: "note", lang: "en" }, plain(result.intended_use))),
    part("record", words("report.record.title"), recordOf(screening)));
}

const part = (id, title, ...children) => el("section", { "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title` }, title), children);

const classOf = label => term("classes", label);

function answerOf(result) {
  const one = result.probability;
  const label = () => (one ? classOf(one.label) : "");
  const lines = NUMBERED.has(result.status) ? numbered(result, one, label) : [result.status === "not_usable" ? words("report.answer.not_usable") : doubt(result, label)];
  return [
    el("p", { class: "answer" }, words(`report.status.${result.status}`, { label })),
    lines.map((line, i) => el("p", { class: i === 1 && NUMBERED.has(result.status) ? "probability" : "" }, line)),
    NUMBERED.has(result.status) && result.classes.length > 0 && classTable(result),
  ];
}

function numbered(result, one, label) {
  const interval = () => percents(one.interval.low, one.interval.high);
  const level = `${Number((100 * one.interval.level).toPrecision(6))}`;
  const stated = result.classes.length > 0 ? words("report.answer.equal") : words("report.answer.stated", { share: percent(one.prevalence), label });
  return [
    words(`report.answer.${result.status}`, { label }),
    words("report.answer.probability", { label, value: percent(one.value), level, interval }),
    stated,
    words("report.answer.interval_means"),
  ];
}

const doubt = (result, label) => () => {
  if (!result.classes.length) return say("report.answer.indeterminate", { label });
  if (!result.prediction_set.length) return say("report.answer.indeterminate_none");
  return say("report.answer.indeterminate_of_several", { labels: joined(result.prediction_set.map(classOf), "listed") });
};

function classTable(result) {
  const classes = [...result.classes].sort((one, other) => other.value - one.value);
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": words("report.classes_figure.title") },
    el("table", {},
      el("caption", {}, words("report.classes_figure.title")),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, words("report.classes_figure.column")),
        el("th", { scope: "col" }, words("report.classes_figure.probability")),
        el("th", { scope: "col" }, words("report.interval", { level: `${Number((100 * classes[0].interval.level).toPrecision(6))}` })))),
      el("tbody", {}, classes.map(one => el("tr", {}, el("th", { scope: "row" }, () => classOf(one.label)),
        el("td", {}, percent(one.value)), el("td", {}, () => percents(one.interval.low, one.interval.high)))))));
}

function movedBy(explanation) {
  const label = () => classOf(explanation.target);
  const driver = explanation.families.find(family => family.main_driver);
  const ends = { base: percent(explanation.base_probability), value: percent(explanation.probability) };
  const first = driver
    ? () => say("report.families.driver", { label: labelOf(driver), share: percent(driver.rank_agreement) })
    : words("report.families.no_driver");
  return part("families", words("report.families.title", { label }),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": words("report.families.column") },
      el("table", { class: "full" },
        el("thead", {}, el("tr", {}, ["column", "points", "remark"].map(one => el("th", { scope: "col" }, words(`report.families.${one}`))))),
        el("tbody", {}, explanation.families.map(family =>
          el("tr", { class: family.stable ? "" : "unstable" },
            el("th", { scope: "row" }, () => labelOf(family)),
            el("td", {}, () => say("result.with_interval", {
              value: points(family.probability.value),
              interval: say("report.range", { low: points(family.probability.low), high: points(family.probability.high) }),
            })),
            el("td", {}, effectWords(family))))))),
    el("p", {}, first),
    el("p", { class: "note" }, words(explanation.reference.subjects === null ? "report.families.start_average" : "report.families.start", ends)),
    el("p", { class: "note" }, words("report.families.no_cause")));
}

/** A main driver also raises or lowers, which the sign says and words have to as well. */
const effectWords = family => () => {
  const direction = say(`report.families.${family.stable ? (family.probability.value > 0 ? "raises" : "lowers") : "unstable"}`);
  return family.main_driver ? say("report.listed", { first: direction, second: say("report.families.main_driver") }) : direction;
};

function noticesOf(screening) {
  const all = [...new Set([...screening.notices, ...screening.result.notices])];
  if (screening.result.model.signature !== "trusted") all.unshift(words("report.caution.untrusted"));
  return all.length > 0 && part("notices", words("report.caution.title"),
    el("ul", {}, all.map(one => (typeof one === "function" ? el("li", {}, one) : el("li", { lang: "en" }, plain(one))))));
}

function recordOf({ id, audit, accepted_at: accepted, finished_at: finished, result }) {
  const copied = el("span", { class: "note" });
  const copy = async () => {
    await navigator.clipboard.writeText(audit.record);
    fill(copied, words("result.copied"));
    announce(words("result.copied"));
  };
  return terms(
    audit && [words("report.record.record"), [el("code", { id: "record-string" }, audit.record), " ",
      navigator.clipboard && el("button", { type: "button", onclick: copy }, words("result.copy")), copied]],
    audit && [words("result.index"), String(audit.index)],
    [words("report.record.model"), () => say("report.record.model_is", {
      name: plain(result.model.name), version: plain(result.model.version), signature: say(`report.signature.${result.model.signature}`),
    })],
    [words("report.record.digest"), el("code", {}, plain(result.model.digest))],
    [words("report.record.recording"), el("code", {}, plain(result.recording.sha256))],
    [words("result.accepted_at"), () => moment(accepted)],
    finished && [words("result.finished_at"), () => moment(finished)],
    [words("result.number"), el("code", {}, id)]);
}

// --- The report and files ---------------------------------------------------------------------------------------------------------------

function filesOf({ id }) {
  const short = id.slice(0, 8);
  const messages = el("div", {});
  const place = el("div", {});
  const stage = el("p", { class: "note", role: "status" });
  const fetched = async (path, accept) => {
    fill(messages);
    fill(stage, words("result.fetching"));
    try {
      return (await ask(path, { as: "blob", headers: { Accept: accept, "Accept-Language": spoken() } })).body;
    } catch (error) {
      if (!isTold(error)) throw error;
      show(messages, error);
      return null;
    } finally {
      fill(stage);
    }
  };
  const download = (path, accept, name) => async () => {
    const blob = await fetched(path, accept);
    if (!blob) return;
    save(name, blob);
    fill(stage, words("result.saved"));
  };
  const showReport = async () => {
    const blob = await fetched(`/v1/screenings/${id}/report`, "text/html");
    if (!blob) return;
    // It is of the server, and still shown with nothing allowed: no scripts, no forms, no origin.
    const url = URL.createObjectURL(new Blob([blob], { type: "text/html; charset=utf-8" }));
    const frame = el("iframe", { sandbox: "", title: words("result.report_title"), src: url, tabindex: 0 });
    frame.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
    const hide = el("button", { type: "button", onclick: () => (fill(place), opener.focus()) }, words("result.report_hide"));
    fill(place, frame, el("p", { class: "actions" }, hide));
    frame.focus();
  };
  const opener = el("button", { type: "button", class: "main", onclick: showReport }, words("result.report_show"));
  return [
    el("p", { class: "actions" },
      opener,
      el("button", { type: "button", onclick: download(`/v1/screenings/${id}/report`, "application/pdf", `report-${short}.pdf`) }, words("result.report_pdf")),
      el("button", { type: "button", onclick: download(`/v1/screenings/${id}/fhir`, "application/fhir+json", `screening-${short}.fhir.json`) }, words("result.fhir"))),
    stage,
    messages,
    place,
  ];
}

// --- The review -------------------------------------------------------------------------------------------------------------------------

function reviewOf(screening) {
  const list = el("div", {});
  const showReviews = () => fill(list, screening.reviews.length === 0
    ? el("p", {}, words("review.none"))
    : el("ul", { class: "reviews" }, screening.reviews.map(one => el("li", {},
      el("strong", {}, words(`review.${one.decision}`)), " ",
      el("span", { class: "note" }, () => joined([one.name ? plain(one.name) : "", moment(one.time)], "listed")),
      el("p", { class: "reason" }, plain(one.reason))))));
  showReviews();
  return part("review", words("review.title"), el("p", {}, words("review.text")), list,
    may("reviews:write") && reviewForm(screening, showReviews));
}

function reviewForm(screening, showReviews) {
  const reason = el("textarea", { id: "reason", rows: 4, required: true, maxlength: 10_000 });
  const messages = el("div", {});
  const wrong = el("p", { class: "wrong", id: "decision-wrong", hidden: true });
  const radios = DECISIONS.map(one => el("input", { type: "radio", name: "decision", id: `decision-${one}`, value: one }));
  const submit = el("button", { type: "submit", class: "main" }, words("review.record"));
  const group = el("fieldset", { "aria-describedby": "decision-wrong" },
    el("legend", {}, words("review.decision")), wrong,
    radios.map((radio, i) => el("p", { class: "tick" }, radio, el("label", { for: radio.id }, words(`review.${DECISIONS[i]}_form`)))));
  const form = el("form", { novalidate: true }, group, field(reason, words("review.reason"), words("review.reason_hint")), messages, el("p", { class: "actions" }, submit));
  let busy = false;
  form.addEventListener("submit", async event => {
    event.preventDefault();
    const decision = radios.find(radio => radio.checked);
    wrong.hidden = Boolean(decision);
    fill(wrong, !decision && words("review.decision_missing"));
    const missing = fault(reason, !reason.value.trim() && words("review.reason_missing"));
    if (!decision) radios[0].focus();
    else if (missing) reason.focus();
    if (!decision || missing || busy) return;
    busy = true;
    submit.disabled = true;
    fill(messages);
    try {
      const sent = { decision: decision.value, reason: reason.value.trim() };
      const { body } = await ask(`/v1/screenings/${screening.id}/review`, {
        method: "POST", body: JSON.stringify(sent), headers: { "Content-Type": "application/json" },
      });
      screening.reviews = [...screening.reviews, { ...sent, name: who().name, time: body.time, index: body.index }];
      showReviews();
      form.reset();
      const done = words("review.recorded", { index: body.index, time: () => moment(body.time) });
      fill(messages, el("div", { class: "notice", tabindex: -1 }, el("p", { class: "notice-title" }, done)));
      messages.firstChild.focus();
      announce(done);
    } catch (error) {
      if (!isTold(error)) throw error;
      // Without an answer nobody knows here whether it was recorded; the screening, opened again, shows it.
      fill(messages, problemBox(error), error instanceof Unreachable && el("p", {}, words("review.unsure")));
    } finally {
      busy = false;
      submit.disabled = false;
    }
  });
  return form;
}
