// A new screening: whom it is of, a recording (microphone or file) with the gate beside it, and sending it.
// The one idea: a recording is lost by nothing but a person's choice: what fails can be tried again, with the same key, and is answered once.

import { announce, ask as dialogue, choice, el, fault, field, fill } from "./dom.js";
import { clock, megabytes } from "./numbers.js";
import { problemBox, show, titleOf, wordsBox } from "./problems.js";
import { checkList, verdict } from "./quality.js";
import { Recorder } from "./recorder.js";
import { ask, isTold, Problem, upload, wait } from "./server.js";
import { hold, may, who } from "./session.js";
import { plain, say, words } from "./words.js";

export const REQUEST_TYPE = "application/vnd.clinical-ser.screening";
const GATE_EVERY_S = 3;
const GATE_HEARS_S = 60;
/** What the live gate hears at most: a minute is what it asks for twice over, and an hour every three seconds is more than a network carries. */
const OLDEST_YEARS = 130;
const QUIET_DBFS = -40;
const LEVEL_SAID_EVERY_MS = 10_000;
const SEXES = ["female", "male", "other"];
const MICROPHONE_FAULTS = new Set(["NotAllowedError", "NotFoundError", "NotReadableError", "NotSupportedError"]);

let kept = null;
/** A recording that was not sent when the session ended against the person's will: {owner, draft}. */

/** Whether there is a recording whose maker has to sign in again. */
export const keepsRecording = () => kept !== null;

/** Let go of it, unless it is of this person. */
export function keepOnlyFor(me) {
  // One tenant's account is nobody to another, whatever it is called.
  if (kept && (kept.owner.id !== me?.id || kept.owner.tenant !== me.tenant)) kept = null;
}

/** The view. `sent(view, subject)` is called with the server's first answer. */
export function screenView({ limits, requireNotice, sent }) {
  const subject = el("input", { id: "subject", type: "text", required: true, autocomplete: "off", spellcheck: "false", maxlength: 500 });
  const sex = choice("sex", [["", words("screen.not_stated")], ...SEXES.map(one => [one, words(`report.said_sex.${one}`)])]);
  const age = el("input", { id: "age", type: "number", min: 0, max: OLDEST_YEARS, inputmode: "decimal", step: "any", autocomplete: "off" });
  const task = el("input", { id: "task", type: "text", autocomplete: "off", maxlength: 100 });
  const day = el("input", { id: "day", type: "date" });
  const model = choice("model", []);
  const notice = el("input", { id: "notice", type: "text", required: requireNotice, autocomplete: "off", maxlength: 100 });
  const timeline = el("input", { id: "timeline", type: "checkbox" });
  const file = el("input", { id: "file", type: "file", accept: "audio/*,.wav,.flac,.mp3,.m4a,.ogg,.opus", hidden: true });
  const messages = el("div", {});
  const modelMessages = el("div", {});
  const panel = el("div", { class: "panel", tabindex: -1, id: "recording", role: "group", "aria-labelledby": "recording-title" });
  const sending = el("div", { class: "sending" });
  const submit = el("button", { type: "submit", class: "main" }, words("screen.send"));

  let recorder = null;
  let draft = null;
  let request = null;
  let release = () => {};
  let gate = null;
  let busy = false;
  let ended = false;

  const form = el("form", { novalidate: true, autocomplete: "off" },
    el("fieldset", {},
      el("legend", {}, words("screen.person")),
      el("div", { class: "fields" },
        field(subject, words("screen.subject"), words("screen.subject_hint")),
        field(sex, words("screen.sex"), words("screen.reference_hint")),
        field(age, words("screen.age"), words("screen.reference_hint")))),
    el("fieldset", {},
      el("legend", {}, words("screen.setting")),
      el("div", { class: "fields" },
        field(task, words("screen.task"), words("screen.task_hint")),
        field(day, words("screen.day"), words("screen.day_hint")),
        may("models:read") && field(model, words("screen.model")),
        field(notice, words("screen.notice"), words("screen.notice_hint"))),
      el("p", { class: "tick" }, timeline, el("label", { for: "timeline" }, words("screen.timeline"))),
      modelMessages),
    el("section", { class: "recording", "aria-labelledby": "recording-title" },
      el("h2", { id: "recording-title" }, words("screen.recording")),
      el("p", {}, words("report.quality.general")),
      panel,
      file),
    messages,
    sending,
    el("p", { class: "actions" }, submit));
  const view = el("div", { class: "view" },
    el("h1", { id: "screen-title", tabindex: -1 }, words("screen.title")),
    el("p", {}, words("report.about.text")),
    form);

  form.addEventListener("submit", event => {
    event.preventDefault();
    send();
  });
  file.addEventListener("change", () => file.files[0] && choose(file.files[0]));
  for (const kind of ["dragenter", "dragover"]) {
    panel.addEventListener(kind, event => {
      event.preventDefault();
      panel.classList.add("over");
    });
  }
  panel.addEventListener("dragleave", () => panel.classList.remove("over"));
  panel.addEventListener("drop", event => {
    event.preventDefault();
    panel.classList.remove("over");
    if (!recorder && !busy && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
  });
  model.addEventListener("change", () => draft && judge(draft));

  // --- What the panel shows -----------------------------------------------------------------------------------------------------------

  function offer(...before) {
    fill(panel, before,
      el("p", { class: "actions" },
        el("button", { type: "button", onclick: record, class: draft ? "" : "main" }, words(draft ? "screen.record_again" : "screen.record")),
        el("button", { type: "button", onclick: () => file.click() }, words("screen.choose"))),
      el("p", { class: "note" }, words("screen.drop")));
  }

  function refuse(...lines) {
    fill(messages, wordsBox(...lines));
  }

  // --- Recording ----------------------------------------------------------------------------------------------------------------------

  async function record() {
    if (recorder || busy) return;
    if (draft && !(await sure())) return;
    forget();
    const meter = levelMeter();
    busy = true;
    try {
      recorder = await Recorder.start({ maxSeconds: limits.recording_s, maxBytes: limits.body_bytes, onLevel: meter.show, onEnd: why => stop(why) });
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      offer();
      const why = MICROPHONE_FAULTS.has(error.name) ? error.name : "NotReadableError";
      refuse(words("microphone.title"), words(`microphone.${why}`));
      return;
    } finally {
      busy = false;
    }
    // The browser's question may outlast the session; nothing is recorded that nobody sees.
    if (ended) {
      forget();
      return;
    }
    release = hold();
    showRecording(meter);
    gate = new AbortController();
    watch(gate.signal);
  }

  function showRecording(meter) {
    const found = el("div", { id: "gate" });
    const pause = el("button", { type: "button", onclick: togglePause }, words("screen.pause"));
    const stopButton = el("button", { type: "button", class: "main", onclick: () => stop() }, words("screen.stop"));
    function togglePause() {
      const paused = pause.dataset.paused !== "yes";
      pause.dataset.paused = paused ? "yes" : "";
      paused ? recorder.pause() : recorder.resume();
      fill(pause, words(paused ? "screen.resume" : "screen.pause"));
      fill(meter.state, words(paused ? "screen.paused" : "screen.running"));
      announce(words(paused ? "screen.paused" : "screen.running"));
    }
    fill(messages);
    fill(panel,
      meter.element,
      el("p", { class: "actions" }, stopButton, pause, el("button", { type: "button", onclick: throwAway }, words("screen.discard"))),
      el("h3", {}, words("screen.gate")),
      found);
    fill(found, el("p", {}, words("screen.gate_waits", { s: GATE_EVERY_S })));
    meter.follow(() => recorder);
    stopButton.focus();
    announce(words("screen.running"));
  }

  /** Ask the gate about what there is so far, again and again, until recording ends or the gate cannot be asked. */
  async function watch(signal) {
    let said = "";
    try {
      for (;;) {
        await wait(GATE_EVERY_S, signal);
        try {
          const quality = await assess(recorder.last(GATE_HEARS_S), signal);
          fill(document.getElementById("gate"), el("p", {}, verdict(quality)), checkList(quality, words("screen.gate")));
          if (quality.verdict !== said) announce(verdict(quality));
          said = quality.verdict;
        } catch (error) {
          if (signal.aborted || !isTold(error)) throw error;
          if (!(error instanceof Problem && error.retryAfter)) {
            fill(document.getElementById("gate"), el("p", {}, titleOf(error)), el("p", {}, words("screen.gate_stopped")));
            return;
          }
          await wait(error.retryAfter, signal);
        }
      }
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  const assess = async (blob, signal) => {
    const named = model.value ? `?model=${encodeURIComponent(model.value)}` : "";
    const headers = { "Content-Type": blob.type.startsWith("audio/") ? blob.type : "application/octet-stream" };
    return (await ask(`/v1/quality${named}`, { method: "POST", body: blob, headers, signal })).body;
  };

  async function stop(why) {
    if (!recorder || busy) return;
    busy = true;
    gate.abort();
    const one = recorder;
    const blob = await one.stop();
    // With the last block, which came while it stopped.
    const { seconds } = one;
    // The session has taken it, or let it go.
    if (ended) return;
    recorder = null;
    busy = false;
    release();
    if (!day.value) day.value = today();
    take({ blob, seconds, name: null });
    if (why) refuse(words(`screen.ended_${why}`), words("screen.ended_kept"));
    announce(words("screen.stopped", { time: clock(seconds) }));
  }

  async function throwAway() {
    const one = recorder;
    one?.pause();
    if (!(await sure())) {
      if (recorder === one && document.querySelector("[data-paused=yes]") === null) one?.resume();
      return;
    }
    forget();
    offer();
    panel.querySelector("button").focus();
    announce(words("screen.discarded"));
  }

  const sure = async () =>
    (await dialogue(words("discard.title"), words("discard.text"), [
      { words: words("discard.keep"), value: "keep", main: true },
      { words: words("discard.do"), value: "discard" },
    ])) === "discard";

  /** Let go of the microphone, the recording and what was asked about it. */
  function forget() {
    gate?.abort();
    recorder?.discard();
    release();
    if (draft?.url) URL.revokeObjectURL(draft.url);
    recorder = draft = request = null;
    file.value = "";
    fill(messages);
  }

  // --- A recording that is there ------------------------------------------------------------------------------------------------------

  async function choose(chosen) {
    if (recorder || busy) return;
    if (draft && !(await sure())) return;
    forget();
    offer();
    if (chosen.size > limits.body_bytes) {
      refuse(words("screen.too_large"), words("screen.too_large_text", { size: megabytes(chosen.size), most: megabytes(limits.body_bytes) }));
      return;
    }
    take({ blob: chosen, seconds: null, name: chosen.name });
  }

  function take(taken) {
    draft = { ...taken, url: URL.createObjectURL(taken.blob), quality: el("div", { id: "gate" }) };
    const told = draft.name === null ? words("screen.recorded", { time: clock(draft.seconds) }) : words("screen.chosen", { size: megabytes(draft.blob.size) });
    offer(
      el("p", {}, el("strong", {}, told), draft.name !== null && el("span", { class: "file" }, plain(draft.name))),
      el("audio", { controls: true, preload: "metadata", src: draft.url, "aria-label": words("screen.listen") }),
      draft.quality,
      el("p", { class: "actions" }, el("button", { type: "button", onclick: throwAway }, words("screen.discard"))));
    panel.focus();
    judge(draft);
  }

  /** Have the gate judge the whole recording. */
  async function judge(judged) {
    gate?.abort();
    if (judged.blob.size > limits.at_once_bytes) {
      fill(judged.quality, el("p", {}, words("screen.gate_later")));
      return;
    }
    gate = new AbortController();
    const { signal } = gate;
    fill(judged.quality, el("p", {}, words("screen.gate_asked")));
    try {
      const quality = await assess(judged.blob, signal);
      fill(judged.quality, el("h3", {}, words("screen.gate_whole")), el("p", {}, verdict(quality)), checkList(quality, words("screen.gate_whole")));
      announce(verdict(quality));
    } catch (error) {
      if (signal.aborted) return;
      if (!isTold(error)) throw error;
      show(judged.quality, error);
    }
  }

  // --- Sending ------------------------------------------------------------------------------------------------------------------------

  function metadata() {
    return {
      subject: subject.value.trim(),
      ...(model.value ? { model: model.value } : {}),
      ...(sex.value ? { sex: sex.value } : {}),
      ...(age.value ? { age: age.valueAsNumber } : {}),
      ...(task.value.trim() ? { task: task.value.trim() } : {}),
      ...(day.value ? { recorded_on: day.value } : {}),
      ...(notice.value.trim() ? { notice: notice.value.trim() } : {}),
      ...(timeline.checked ? { timeline: true } : {}),
    };
  }

  function check() {
    const wrongAge = age.validity.badInput || (age.value && !(age.valueAsNumber >= 0 && age.valueAsNumber <= OLDEST_YEARS));
    const faults = [
      fault(subject, !subject.value.trim() && words("screen.subject_missing")) && subject,
      fault(age, wrongAge && words("screen.age_wrong", { most: OLDEST_YEARS })) && age,
      fault(notice, requireNotice && !notice.value.trim() && words("screen.notice_missing")) && notice,
      fault(day, (day.validity.badInput || day.value > today()) && words("screen.day_wrong")) && day,
    ].filter(Boolean);
    faults[0]?.focus();
    if (faults.length) return false;
    if (draft) return true;
    refuse(words("screen.recording_missing"));
    panel.focus();
    return false;
  }

  async function send() {
    if (busy || recorder || !check()) return;
    const line = JSON.stringify(metadata());
    // The same recording with the same words is the same request, however often it has to be sent.
    if (request?.line !== line) request = { line, key: crypto.randomUUID() };
    const progress = el("progress", { max: 1, "aria-label": words("screen.sending") });
    const stage = el("p", {}, words("screen.sending"));
    const whom = subject.value.trim();
    fill(messages);
    fill(sending, stage, progress);
    announce(words("screen.sending"));
    busy = true;
    submit.disabled = true;
    const done = hold();
    try {
      const onProgress = share => {
        progress.value = share;
        if (share < 1) return;
        progress.removeAttribute("value");
        fill(stage, words("screen.answering"));
      };
      const headers = { "Content-Type": REQUEST_TYPE, "Idempotency-Key": request.key };
      const { body } = await upload("/v1/screenings", new Blob([line, "\n", draft.blob]), { headers, onProgress });
      // Whoever is there now does not learn whom it was of.
      if (ended) return;
      forget();
      clear();
      offer();
      sent(body, whom);
    } catch (error) {
      if (!isTold(error)) throw error;
      const again = el("button", { type: "button", class: "main", onclick: send }, words("screen.again"));
      fill(messages, problemBox(error, again), el("p", { class: "note" }, words("screen.not_lost")));
      if (messages.isConnected) again.focus();
    } finally {
      busy = false;
      submit.disabled = false;
      fill(sending);
      done();
    }
  }

  /** What is of one person is not left standing for the next. */
  function clear() {
    for (const control of [subject, sex, age, task, day, notice]) control.value = "";
    timeline.checked = false;
  }

  async function loadModels() {
    try {
      const { models } = (await ask("/v1/models")).body;
      fill(model, models.map(one => el("option", { value: one.id, selected: one.default }, modelWords(one))));
    } catch (error) {
      if (!isTold(error)) throw error;
      show(modelMessages, error, el("button", { type: "button", onclick: () => (fill(modelMessages), loadModels()) }, words("screen.again")));
    }
  }

  offer();
  if (may("models:read")) loadModels();
  keepOnlyFor(who());
  if (kept) take(kept.draft);
  kept = null;
  return {
    element: view,
    /** Whether something would be lost if the page went away now. */
    holdsRecording: () => Boolean(recorder || draft),
    /** The session is over: `keep` where the person, {id, tenant}, may come back to what was not sent. */
    end: async (keep, owner) => {
      ended = true;
      const seconds = recorder?.seconds;
      const blob = recorder && keep ? await recorder.stop() : draft?.blob;
      kept = keep && blob ? { owner, draft: { blob, seconds: seconds ?? draft?.seconds ?? null, name: draft ? draft.name : null } } : null;
      forget();
    },
  };
}

const modelWords = one => () => {
  const name = say("screen.model_is", { name: plain(one.id), version: plain(one.version) });
  return one.simulated ? say("report.listed", { first: name, second: say("screen.simulated") }) : name;
};

function today() {
  const now = new Date();
  return [now.getFullYear(), now.getMonth() + 1, now.getDate()].map(part => String(part).padStart(2, "0")).join("-");
}

/** The level as a meter and in words, and the time. Words are said when they change, and not more often than is bearable. */
function levelMeter() {
  const state = el("strong", {}, words("screen.running"));
  const elapsed = el("span", { class: "time" }, "0:00");
  const meter = el("meter", { min: -60, max: 0, low: QUIET_DBFS, high: -3, optimum: -20, value: -60, "aria-label": words("level.label") });
  const told = el("span", {}, words("level.waiting"));
  const clip = el("strong", { class: "clip", hidden: true }, words("level.clipped"));
  const said = el("span", { class: "unseen", role: "status" });
  let recorder = () => null;
  let loudest = -60;
  let shownAt = 0;
  let saidAt = -Infinity;
  let saidWord = "";
  let clippedAt = -Infinity;

  function show({ dbfs, clipped }) {
    const now = performance.now();
    loudest = Math.max(loudest, dbfs);
    if (clipped) clippedAt = now;
    if (now - shownAt < 250) return;
    shownAt = now;
    meter.value = Math.max(-60, loudest);
    const loud = now - clippedAt < 3000;
    const word = loud ? "level.loud" : loudest < QUIET_DBFS ? "level.quiet" : "level.good";
    fill(told, words(word));
    clip.hidden = clippedAt === -Infinity;
    elapsed.textContent = clock(recorder()?.seconds ?? 0);
    if (word !== saidWord && now - saidAt > LEVEL_SAID_EVERY_MS) {
      fill(said, words("level.said", { level: words(word), time: elapsed.textContent }));
      saidWord = word;
      saidAt = now;
    }
    loudest = -60;
  }

  const element = el("div", { class: "level" },
    el("p", {}, state, el("span", { class: "unseen" }, words("level.time")), elapsed),
    meter,
    el("p", { class: "note" }, told, clip),
    said);
  return { element, state, show, follow: from => (recorder = from) };
}
