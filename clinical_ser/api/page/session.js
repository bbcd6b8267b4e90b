// Who is signed in, what they may do, and when that ends.
// The one idea: everything of a session lives in this page's memory, so that signing out is forgetting it.

import { announce, ask as dialogue, isAsking, withdraw } from "./dom.js";
import { ask, authorise, whenRefused } from "./server.js";
import { clock } from "./numbers.js";
import { words } from "./words.js";

/** After so long without a key, a click or work in progress the session ends; a reader is warned before, and can stay (WCAG 2.2, 2.2.1). */
export const IDLE_MS = 15 * 60_000;
const WARNING_MS = 2 * 60_000;
const SAID_AGAIN_S = [60, 20];

let me = null;
let ended = () => {};
let lastActive = 0;
let expires = Infinity;
let warned = false;
const holds = new Set();
/** Until when each piece of work in progress keeps the session, by the clock. */

/** Who is signed in: {id, name, tenant, role, scopes}, or null. */
export const who = () => me;

/** Whether they may do this. */
export const may = scope => Boolean(me?.scopes.includes(scope));

/** Sign in with a token, good for so many seconds where that is known; throws what the server answers where it is not good. */
export async function signIn(token, expiresIn) {
  const { body } = await ask("/v1/me", { token });
  authorise(token);
  me = body;
  lastActive = Date.now();
  expires = Number.isFinite(expiresIn) ? Date.now() + expiresIn * 1000 : Infinity;
}

/** End the session, saying why: `asked`, `idle`, `refused`. */
export function signOut(why) {
  if (!me) return;
  me = null;
  authorise(null);
  withdraw();
  ended(why);
}

/** Have this called with the reason when a session ends. */
export function whenEnded(call) {
  ended = call;
}

/** Keep the session from ending by itself while work is in progress (a recording, an answer that is waited for), at most until then; returns what ends that. */
export function hold(until = Infinity) {
  const held = { until };
  holds.add(held);
  return () => {
    const now = Date.now();
    // What was let go of before, or held no longer, is no activity.
    if (holds.delete(held) && until > now) lastActive = now;
  };
}

function look() {
  if (!me) return;
  const now = Date.now();
  // A page that slept past the end of a hold was kept until then, and no longer.
  for (const { until } of holds) lastActive = Math.max(lastActive, Math.min(until, now));
  const left = lastActive + IDLE_MS - now;
  if (left <= 0) signOut("idle");
  else if (left <= WARNING_MS && !warned) warn();
  else if (expires - now <= WARNING_MS && !warned && !isAsking()) tellOfExpiry();
}

/** The sign-in service said how long its token lasts; nothing here can make that longer. */
async function tellOfExpiry() {
  const end = expires;
  const text = words("idle.expiry_text", { left: () => clock(Math.max(0, Math.ceil((end - Date.now()) / 1000))) });
  const timer = setInterval(() => (document.getElementById("dialog-text").textContent = text()), 1000);
  await dialogue(words("idle.expiry_title"), text, [{ words: words("page.understood"), value: "read", main: true }]);
  clearInterval(timer);
  // Put aside for the other warning, it is told again after that.
  if (!warned && expires === end) expires = Infinity;
}

async function warn() {
  warned = true;
  // Whatever else was being asked is not answered any more.
  await withdraw();
  const leftS = () => Math.max(0, Math.ceil((lastActive + IDLE_MS - Date.now()) / 1000));
  const text = words("idle.text", { left: () => clock(leftS()) });
  const timer = setInterval(() => {
    document.getElementById("dialog-text").textContent = text();
    if (SAID_AGAIN_S.includes(leftS())) announce(text);
  }, 1000);
  const answer = await dialogue(words("idle.title"), text, [{ words: words("idle.stay"), value: "stay", main: true }, { words: words("page.sign_out"), value: "out" }]);
  clearInterval(timer);
  warned = false;
  if (!me) return;
  if (answer === "out") signOut("asked");
  // Closed with Escape, someone is there as well.
  else lastActive = Date.now();
}

setInterval(look, 1000);
whenRefused(() => signOut("refused"));
for (const kind of ["keydown", "pointerdown", "input"]) {
  document.addEventListener(kind, () => {
    if (!warned) lastActive = Date.now();
  }, { capture: true, passive: true });
}
