// Puts the page together: texts, who is signed in, which view is shown.
// The one idea: what someone may do decides what there is; the server decides again, whatever is shown here.

import { announce, ask as dialogue, el, fill, tell } from "./dom.js";
import { exportView } from "./export.js";
import { forget, isReturn, launch, SignInRefused, takeToken } from "./oidc.js";
import { titleOf } from "./problems.js";
import { openView, resultView, SCREENING } from "./result.js";
import { keepOnlyFor, keepsRecording, screenView } from "./screen.js";
import { isTold } from "./server.js";
import { may, signIn, signOut, whenEnded, who } from "./session.js";
import { refusalWords, signInView } from "./sign_in.js";
import { trailView } from "./trail.js";
import { verifyView } from "./verify.js";
import { languages, loadWords, plain, say, speak, spoken, words } from "./words.js";

const main = document.getElementById("main");
const nav = document.getElementById("nav");
const VIEWS = [
  { name: "screen", scope: "screenings:write" },
  { name: "result", scope: "screenings:read" },
  { name: "trail", scope: "audit:read" },
  { name: "verify", scope: "audit:read" },
  { name: "export", scope: "audit:export" },
];

let configuration = null;
let screening = null;
/** The view of a new screening stays while another is looked at: it may hold a recording. */
let shown = null;
let recent = [];
/** What was sent in this session: {id, whom, at, first}. Who it is of is known nowhere else on the page. */

// --- Which view -------------------------------------------------------------------------------------------------------------------------

const allowed = () => VIEWS.filter(view => may(view.scope));

function show(made, title) {
  if (shown && shown !== screening) shown.end();
  shown = made;
  fill(main, made.element);
  tell(document.querySelector("title"), "", () => `${title()} \u2013 ${say("page.product")}`);
  scrollTo(0, 0);
  made.element.querySelector("h1").focus();
}

function route() {
  if (!who()) return;
  const [name, id] = location.hash.slice(1).split("/");
  const view = allowed().find(one => one.name === name) ?? allowed()[0];
  for (const link of nav.querySelectorAll("a")) {
    if (link.dataset.view === view?.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!view) show({ element: nothingView(), end: () => {} }, words("page.nothing"));
  else show(MADE[view.name](id), words(`nav.${view.name}`));
}

const nothingView = () =>
  el("div", { class: "view" },
    el("h1", { id: "nothing-title", tabindex: -1 }, words("page.nothing")), el("p", {}, words("page.nothing_text")));

const onOther = id => {
  const hash = `#result/${id}`;
  if (location.hash === hash) route();
  else location.hash = hash;
};

const MADE = {
  screen: () => (screening ??= screenView({ limits: configuration.limits, requireNotice: configuration.require_notice, sent })),
  result: id => {
    if (!SCREENING.test(id ?? "")) return openView({ recent, onOther, told: once() });
    const mine = recent.find(one => one.id === id);
    const first = mine?.first;
    // Looked at again, it is asked for again.
    if (mine) mine.first = null;
    return resultView({ id, first, whom: mine?.whom, onOther });
  },
  trail: trailView,
  verify: verifyView,
  export: exportView,
};

function sent(first, whom) {
  recent = [{ id: first.id, whom, at: Date.now(), first }, ...recent.filter(one => one.id !== first.id)];
  if (may("screenings:read")) onOther(first.id);
  else announce(words("screen.sent"));
}

// --- Who ----------------------------------------------------------------------------------------------------------------------------------

function enter(hash) {
  const me = who();
  keepOnlyFor(me);
  fill(document.getElementById("who"), el("strong", {}, plain(me.name ?? me.id)), el("span", { class: "note" }, words(`role.${me.role}`), me.tenant && ` · ${plain(me.tenant)}`));
  document.getElementById("account").hidden = false;
  fill(nav, el("ul", {}, allowed().map(({ name }) => el("li", {}, el("a", { href: `#${name}`, "data-view": name }, words(`nav.${name}`))))));
  nav.hidden = allowed().length < 2;
  if (hash !== null && location.hash !== hash) history.replaceState(null, "", `/${hash}`);
  route();
}

function leave(why) {
  const owner = screening && lastOwner;
  screening?.end(why === "refused", owner);
  if (why !== "refused") keepOnlyFor(null);
  if (shown && shown !== screening) shown.end();
  screening = shown = null;
  recent = [];
  nav.hidden = true;
  fill(nav);
  fill(document.getElementById("who"));
  document.getElementById("account").hidden = true;
  const back = location.hash;
  if (why === "asked") history.replaceState(null, "", "/");
  askWho(words(`ended.${why}`), why === "asked" ? "" : back);
}

let lastOwner = null;
/** Who was signed in last: what was not sent may wait for them. */
let told = null;
/** What the next view has to say first. */
function once() {
  const words = told;
  told = null;
  return words;
}

function askWho(why, back = location.hash) {
  const begin = async token => {
    await signIn(token);
    lastOwner = who();
    enter(null);
  };
  show(signInView({ configuration, why, begin, back, mayGo }), words("sign_in.title"));
}

/** Whether the page may go to a sign-in service, and what it keeps with it. */
async function mayGo() {
  if (!keepsRecording()) return true;
  const answer = await dialogue(words("unsent.title"), words("unsent.elsewhere"), [
    { words: words("unsent.stay_here"), value: "stay", main: true },
    { words: words("unsent.go"), value: "go" },
  ]);
  if (answer === "go") keepOnlyFor(null);
  return answer === "go";
}

async function mayLeave() {
  if (!screening?.holdsRecording() && !keepsRecording()) return true;
  const answer = await dialogue(words("unsent.title"), words("unsent.text"), [
    { words: words("unsent.stay"), value: "stay", main: true },
    { words: words("page.sign_out"), value: "leave" },
  ]);
  return answer === "leave";
}

// --- Start ------------------------------------------------------------------------------------------------------------------------------

function chooseLanguage(code) {
  speak(code);
  for (const button of document.querySelectorAll("#languages button")) button.setAttribute("aria-pressed", String(button.dataset.code === code));
}

function preferred(codes) {
  const wanted = navigator.languages.map(tag => tag.split("-")[0]);
  return wanted.find(code => codes.includes(code)) ?? codes[0];
}

async function signInFromReturn() {
  const { token, kept, screening: meant, expiresIn } = await takeToken();
  if (kept.language && configuration.languages.includes(kept.language)) chooseLanguage(kept.language);
  await signIn(token, expiresIn);
  lastOwner = who();
  told = kept.smart && !meant ? words("sign_in.no_screening") : null;
  enter(kept.smart ? `#result/${meant ?? ""}` : kept.back);
}

async function start() {
  const answer = await fetch("/page/configuration.json", { credentials: "omit", cache: "no-store" });
  if (!answer.ok) throw new Error("the page's configuration cannot be loaded");
  configuration = await answer.json();
  await loadWords(configuration.languages);
  speak(preferred(configuration.languages));
  fill(document.getElementById("languages"), languages().map(([code, name, tag]) =>
    el("button", { type: "button", lang: tag, "data-code": code, "aria-pressed": "false", onclick: () => chooseLanguage(code) }, name)));
  for (const element of document.querySelectorAll("[data-say]")) tell(element, "", words(element.dataset.say));
  for (const element of document.querySelectorAll("[data-say-label]")) tell(element, "aria-label", words(element.dataset.sayLabel));
  chooseLanguage(spoken());
  whenEnded(leave);
  document.getElementById("sign-out").addEventListener("click", async () => (await mayLeave()) && signOut("asked"));
  document.getElementById("skip").addEventListener("click", event => {
    event.preventDefault();
    main.querySelector("h1").focus();
  });
  addEventListener("hashchange", route);
  addEventListener("beforeunload", event => (screening?.holdsRecording() || keepsRecording()) && event.preventDefault());
  try {
    if (location.pathname === "/launch") await launch(configuration.smart, { language: spoken() });
    else if (isReturn()) await signInFromReturn();
    else askWho(null);
  } catch (error) {
    if (!(error instanceof SignInRefused) && !isTold(error)) throw error;
    history.replaceState(null, "", "/");
    askWho(refusalWords(error) ?? titleOf(error), "");
  } finally {
    if (location.pathname !== "/launch") forget();
  }
}

start().catch(error => {
  fill(main,
    el("h1", { tabindex: -1 }, "Speech screening"),
    el("p", { role: "alert" }, "The page could not be loaded. Load it again, and tell whoever runs it if that does not help. ",
      el("span", { lang: "zh-Hans-CN" }, "页面无法载入。请重新载入；如仍无法载入，请告知负责人。")));
  throw error;
});
