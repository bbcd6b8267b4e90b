// Signing in: at the site's own sign-in service, or with an access key. The key stays in memory.

import { el, fault, field, fill } from "./dom.js";
import { leaveToSignIn, SignInRefused } from "./oidc.js";
import { problemBox, wordsBox } from "./problems.js";
import { isTold, Problem } from "./server.js";
import { plain, spoken, words } from "./words.js";

/** The view. `why` is words for what ended the last session, or kept one from beginning; `begin(token)` signs in; `mayGo()` says whether this page may be left for it. */
export function signInView({ configuration, why, begin, back, mayGo }) {
  const messages = el("div", {});
  const key = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", maxlength: 4096 });
  const submit = el("button", { type: "submit", class: configuration.issuers.length ? "" : "main" }, words("sign_in.with_key"));
  const form = configuration.api_keys && el("form", { novalidate: true, autocomplete: "off", "aria-labelledby": "key-title" },
    el("h2", { id: "key-title" }, words("sign_in.key_title")),
    field(key, words("sign_in.key"), words("sign_in.key_hint")),
    el("p", { class: "actions" }, submit));
  const services = configuration.issuers.map(service =>
    el("button", { type: "button", class: "main", onclick: async () => (await mayGo()) && leaveToSignIn(service, { back, language: spoken() }) },
      words("sign_in.with", { name: plain(service.name) })));
  const view = el("div", { class: "view narrow" },
    el("h1", { id: "sign-in-title", tabindex: -1 }, words("sign_in.title")),
    why && el("div", { class: "notice", role: "alert" }, el("p", { class: "notice-title" }, why)),
    el("p", {}, words("sign_in.text")),
    messages,
    services.length > 0 && el("p", { class: "actions" }, services),
    form,
    !services.length && !form && el("p", {}, words("sign_in.none")));

  if (form) {
    form.addEventListener("submit", async event => {
      event.preventDefault();
      const given = key.value.trim();
      // Only what a header can carry is a key; the rest is not sent to find out.
      if (fault(key, !/^[\x21-\x7e]+$/.test(given) && words("sign_in.key_missing"))) {
        key.focus();
        return;
      }
      if (submit.disabled) return;
      submit.disabled = true;
      fill(messages);
      try {
        await begin(given);
      } catch (error) {
        if (!isTold(error)) throw error;
        fill(messages, error instanceof Problem && error.status === 401 ? wordsBox(words("sign_in.key_unknown")) : problemBox(error));
        key.focus();
      } finally {
        submit.disabled = false;
        key.value = "";
      }
    });
  }
  return { element: view, end: () => {} };
}

/** Words for a sign-in that did not come about. */
export const refusalWords = error => (error instanceof SignInRefused ? words(`sign_in.${error.key}`) : null);
