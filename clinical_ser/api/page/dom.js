// Elements made of text alone, in a language that can change under them.
// The one idea: nothing is ever parsed as markup; what the server sends becomes a text node, and our own words stay tied to what says them.

const TOLD = "data-told";
const wordsOf = new WeakMap();

/** Make an element. A function as a child, or as an attribute's value, is words: it is asked again when the language changes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "function") tell(element, name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  fill(element, ...children);
  return element;
}

/** Put new children into an element; null, false and "" are left out. */
export function fill(element, ...children) {
  const there = children.flat(Infinity).filter(child => child !== undefined && child !== null && child !== false && child !== "");
  if (there.length === 1 && typeof there[0] === "function") {
    tell(element, "", there[0]);
    return;
  }
  wordsOf.get(element)?.delete("");
  element.replaceChildren(...there.map(child => (typeof child === "function" ? el("span", {}, child) : child)));
}

/** Say words in an element's text, or in one of its attributes. */
export function tell(element, attribute, words) {
  const all = wordsOf.get(element) ?? new Map();
  all.set(attribute, words);
  wordsOf.set(element, all);
  element.setAttribute(TOLD, "");
  write(element, attribute, words);
}

/** Say everything again, after the language changed. */
export function retell() {
  for (const element of document.querySelectorAll(`[${TOLD}]`)) {
    for (const [attribute, words] of wordsOf.get(element) ?? []) write(element, attribute, words);
  }
}

function write(element, attribute, words) {
  if (attribute) element.setAttribute(attribute, words());
  else element.textContent = words();
}

/** Have assistive technology say something when it is done with what it says now. */
export function announce(words) {
  const announcer = document.getElementById("announcer");
  fill(announcer);
  // A text that is there already is not said again.
  setTimeout(() => fill(announcer, words()), 100);
}

let asking = null;
/** The answer that is waited for, while the dialogue is open. */

/** Ask in a dialogue; the promise gives the value of the button, or null where it was closed, or something else is being asked. */
export async function ask(title, text, buttons) {
  if (asking) return null;
  const dialog = document.getElementById("dialog");
  fill(document.getElementById("dialog-title"), title);
  fill(document.getElementById("dialog-text"), text);
  dialog.returnValue = "";
  asking = new Promise(answer => dialog.addEventListener("close", () => answer(dialog.returnValue || null), { once: true }));
  const made = buttons.map(({ words, value, main }) =>
    el("button", { type: "button", class: main && "main", onclick: () => dialog.close(value) }, words));
  fill(document.getElementById("dialog-actions"), made);
  dialog.showModal();
  const answer = await asking;
  asking = null;
  return answer;
}

/** Whether the dialogue is open. */
export const isAsking = () => asking !== null;

/** Close the dialogue, if one is open, as if nobody had answered. */
export async function withdraw() {
  if (!asking) return;
  document.getElementById("dialog").close("");
  await asking;
}

/** Hand a file to the person; its name never says whose it is. */
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A labelled field: label, control, hint and the place for what is wrong with it. */
export function field(control, label, hint) {
  const wrong = el("p", { class: "wrong", id: `${control.id}-wrong`, hidden: true });
  const told = hint && el("p", { class: "note", id: `${control.id}-hint` }, hint);
  control.setAttribute("aria-describedby", [told && told.id, wrong.id].filter(Boolean).join(" "));
  return el("div", { class: "field" }, el("label", { for: control.id }, label), told, control, wrong);
}

/** Say what is wrong with a field, or, without words, that nothing is. */
export function fault(control, words) {
  const wrong = document.getElementById(`${control.id}-wrong`);
  wrong.hidden = !words;
  fill(wrong, words);
  if (words) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
  return Boolean(words);
}

/** A choice among options given as [value, words]. */
export function choice(id, options) {
  return el("select", { id }, options.map(([value, words]) => el("option", { value }, words)));
}

/** Terms with what is said of them; those without are left out. */
export function terms(...pairs) {
  const there = pairs.filter(pair => pair && pair[1] !== undefined && pair[1] !== null && pair[1] !== "");
  return el("dl", {}, there.map(([term, said]) => [el("dt", {}, term), el("dd", {}, said)]));
}
