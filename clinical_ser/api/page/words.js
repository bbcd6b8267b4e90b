// What the page says, in a language: its own texts, and under "report." those of the reports.
// The one idea: words are functions, asked again when the language changes; a text that is not there is an error, since a program lacks it.

import { retell } from "./dom.js";
import { brief, percent } from "./numbers.js";

const texts = {};
let language = "en";

/** Load the texts of these languages. */
export async function loadWords(languages) {
  const loaded = languages.map(async code => {
    const answer = await fetch(`/page/${code}.json`, { credentials: "omit" });
    if (!answer.ok) throw new Error("the page's texts cannot be loaded");
    return [code, await answer.json()];
  });
  // In the order that was asked for, whichever came first.
  Object.assign(texts, Object.fromEntries(await Promise.all(loaded)));
}

/** The languages there are, as [code, name in that language, tag]. */
export const languages = () => Object.entries(texts).map(([code, all]) => [code, all["language.name"], all["language.tag"]]);

/** The language that is spoken. */
export const spoken = () => language;

/** Speak another language. */
export function speak(code) {
  language = code;
  document.documentElement.lang = texts[code]["language.tag"];
  retell();
}

/** Return a text with its placeholders filled. */
export function say(key, values = {}) {
  const text = texts[language][key];
  if (text === undefined) throw new Error(`there is no text ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    if (value === undefined) throw new Error(`the text ${key} lacks ${name}`);
    return typeof value === "function" ? value() : String(value);
  });
}

/** Return words: a function that says a text. Values may be words too. */
export const words = (key, values) => () => say(key, values);

/** Return whether the language has a text. */
export const has = key => texts[language][key] !== undefined;

/** Return the text for a number of things: `key.one` for 1 where the language has one, else `key.other`. */
export const several = (key, n, values = {}) => say(n === 1 && has(`${key}.one`) ? `${key}.one` : `${key}.other`, { n, ...values });

/** Return text that anyone wrote as one line that prints: controls, and marks that turn the direction of what follows, are written out. */
export const plain = text =>
  String(text)
    .replace(/\s+/gu, " ")
    .trim()
    .replace(/[\p{Cc}\p{Cs}\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/gu, mark => `\\u${mark.codePointAt(0).toString(16).padStart(4, "0")}`);

/** Return the word for one of a vocabulary of the reports (`classes`, `sex`), or a cohort's own as plain text. */
export function term(group, word) {
  const key = `report.${group}.${word}`;
  return has(key) ? say(key) : plain(word).replaceAll("_", " ");
}

/** Return what a family or a feature is called. */
export const labelOf = thing => plain(language === "zh" ? thing.label_zh : thing.label_en);

/** Put texts together as the language does: `listed`, `clauses`, `sentences`; what is empty is left out. */
export const joined = (all, how) => all.filter(Boolean).reduce((first, second) => (first ? say(`report.${how}`, { first, second }) : second), "");

/** Write an interval of a probability: 14 to 37 %. */
export const percents = (low, high) => say("report.range", { low: percent(low).replace(/ %$/, ""), high: percent(high) });

/** Write a measured value with its unit. */
export const withUnit = (value, unit) => `${brief(value)} ${unit === "1" || unit === "" ? "" : term("units", unit)}`.trimEnd();

/** Write a moment as the reader's clock shows it. */
export const moment = time => new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" }).format(new Date(time));
