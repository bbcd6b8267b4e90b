// Asks the server, and turns whatever goes wrong into one of two errors: a problem that it tells (RFC 9457), or no answer at all.
// The one idea: the token is here and nowhere else: in memory, sent to this server alone, and gone with the page.

const LONGEST_S = 120;
const PROBLEM_TEXT = 2_000;

let bearer = null;
let onRefusal = () => {};

/** The server's own words for what it did not do. */
export class Problem extends Error {
  constructor(status, told, requestId, retryAfter) {
    super(`the server answers ${status}`);
    this.status = status;
    this.kind = text(told.type).replace(/^.*[:/]/, "");
    // The trail's search speaks FHIR in its refusals too.
    this.detail = text(told.detail ?? told.issue?.[0]?.diagnostics);
    this.requestId = text(told.request_id) || requestId || "";
    this.retryAfter = retryAfter;
  }
}

/** There was no answer: the network, or a server that is gone. */
export class Unreachable extends Error {}

const text = value => (typeof value === "string" ? value.slice(0, PROBLEM_TEXT) : "");

/** Whether an error is one that a person is told; any other is a fault of the page. */
export const isTold = error => error instanceof Problem || error instanceof Unreachable;

/** Ask with this token from now on; null for none. */
export function authorise(token) {
  bearer = token;
}

/** Have this called when the server no longer knows who asks. */
export function whenRefused(call) {
  onRefusal = call;
}

/** Ask, and return {status, header: name => value, body}; the body as `json`, `text`, `blob` or `bytes`. */
export async function ask(path, { method = "GET", body, headers = {}, as = "json", signal, token = bearer } = {}) {
  const limit = AbortSignal.timeout(LONGEST_S * 1000);
  let answer, content;
  try {
    answer = await fetch(path, {
      method,
      body,
      headers: { ...headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) },
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    content = await answer.blob();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    throw new Unreachable(error.name);
  }
  if (!answer.ok) throw problemOf(answer.status, await content.text(), name => answer.headers.get(name));
  return { status: answer.status, header: name => answer.headers.get(name), body: await READ[as](content) };
}

/** Read what a server of ours never sends otherwise: an answer that is no JSON came from something in between. */
function parsed(content) {
  try {
    return JSON.parse(content);
  } catch {
    throw new Unreachable("unreadable");
  }
}

const READ = {
  json: async blob => parsed(await blob.text()),
  text: blob => blob.text(),
  blob: async blob => blob,
  bytes: async blob => new Uint8Array(await blob.arrayBuffer()),
};

/** Send a large body and be told how much of it has left; returns {status, headers: name => value, body}. fetch cannot tell. */
export function upload(path, body, { headers = {}, onProgress = () => {}, signal } = {}) {
  const sent = new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries({ ...headers, ...(bearer ? { Authorization: `Bearer ${bearer}` } : {}) })) {
      request.setRequestHeader(name, value);
    }
    request.upload.addEventListener("progress", event => onProgress(event.loaded / Math.max(event.total, 1)));
    request.addEventListener("load", () => {
      const header = name => request.getResponseHeader(name);
      if (request.status < 200 || request.status > 299) reject(problemOf(request.status, request.responseText, header));
      else resolve({ status: request.status, header, text: request.responseText });
    });
    request.addEventListener("error", () => reject(new Unreachable("error")));
    request.addEventListener("abort", () => reject(signal?.reason ?? new Unreachable("abort")));
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
  return sent.then(({ status, header, text: content }) => ({ status, header, body: parsed(content) }));
}

function problemOf(status, content, header) {
  let told = {};
  try {
    told = JSON.parse(content) ?? {};
  } catch {
    // A proxy's own page: its status is all there is to say.
  }
  const problem = new Problem(status, told, header("X-Request-Id"), seconds(header("Retry-After")));
  if (status === 401 && bearer) onRefusal();
  return problem;
}

/** Read Retry-After in seconds (RFC 9110 section 10.2.3), null where there is none. */
export function seconds(header) {
  if (header === null || header === undefined) return null;
  if (/^\d{1,6}$/.test(header)) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, Math.round((date - Date.now()) / 1000));
}

/** Wait so many seconds, or until the signal says to stop. */
export function wait(s, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, s * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
