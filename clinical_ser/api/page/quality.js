// Shows what the gate found: each check with its verdict in a word, what was measured and recommended, and what to do about it.

import { el } from "./dom.js";
import { plain, say, spoken, term, withUnit, words } from "./words.js";

const IN_UNIT = { share: [100, "%"], "bit/s": [0.001, "kbit/s"] };
const WORST_FIRST = { fail: 0, warn: 1, pass: 2 };

function inUnit(value, unit) {
  const [factor, shown] = IN_UNIT[unit] ?? [1, unit];
  return withUnit(factor * value, shown);
}

/** Return words for what a check found, in numbers where they say more than its name. */
const found = check => () => {
  const what = term("checks", check.name);
  const limit = check.warn_limit ?? check.fail_limit;
  if (check.value === null || limit === null || check.name === "complete" || check.topic === "noise_unknown") return what;
  const [value, needed] = [check.value, limit].map(number => inUnit(number, check.unit));
  const fault = check.verdict !== "pass";
  if (fault && value === needed) return say(check.bound === "at_least" ? "report.quality.close" : "report.quality.over", { what, limit: needed });
  return say("report.quality.check", { what, value, limit: say(`report.quality.${check.bound}`, { limit: needed }) });
};

const advice = check => () => plain(spoken() === "zh" ? check.advice_zh : check.advice);

/** Return words for the verdict on the whole recording. */
export const verdict = quality => words(`report.quality.${quality.verdict}`);

/** Return the checks as a list, the worst first. */
export function checkList(quality, label) {
  const checks = [...quality.checks].sort((one, other) => WORST_FIRST[one.verdict] - WORST_FIRST[other.verdict]);
  return el("ul", { class: "checks", "aria-label": label }, checks.map(check =>
    el("li", { class: check.verdict },
      el("strong", { class: "verdict" }, words(`verdict.${check.verdict}`)),
      el("span", {}, el("span", {}, found(check)), check.advice && el("span", { class: "advice" }, advice(check))))));
}
