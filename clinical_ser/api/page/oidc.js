// Signs in at the site's own sign-in service: OAuth 2 authorisation code with PKCE (RFC 7636, S256), as OpenID Connect or as a SMART launch.
// The one idea: what has to outlive the redirect (verifier, state, nonce) lies in sessionStorage until the page is back, and is taken out before
// anything is done with it; the token never lies anywhere.

import { Unreachable } from "./server.js";

const KEPT = "clinical-ser.sign-in";
const LONGEST_S = 30;
const SCREENING = /^[0-9a-f]{32}$/;

/** A sign-in that did not come about; `key` says why, among the page's texts under `sign_in.`. */
export class SignInRefused extends Error {
  constructor(key) {
    super(key);
    this.key = key;
  }
}

const base64url = bytes => btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
const secret = () => base64url(crypto.getRandomValues(new Uint8Array(32)));
const bare = address => address.replace(/\/+$/, "");
const redirectUri = () => `${location.origin}/`;

/** Go to a sign-in service; `kept` comes back with the token. */
export async function leaveToSignIn(service, kept, extra = {}) {
  const pending = {
    state: secret(),
    nonce: secret(),
    verifier: secret(),
    issuer: service.issuer ?? null,
    authorization_endpoint: service.authorization_endpoint,
    token_endpoint: service.token_endpoint,
    client_id: service.client_id,
    openid: service.scope.split(" ").includes("openid"),
    kept,
  };
  const challenge = base64url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(pending.verifier))));
  sessionStorage.setItem(KEPT, JSON.stringify(pending));
  const address = new URL(service.authorization_endpoint);
  const asked = {
    response_type: "code",
    client_id: service.client_id,
    redirect_uri: redirectUri(),
    scope: service.scope,
    state: pending.state,
    nonce: pending.nonce,
    code_challenge: challenge,
    code_challenge_method: "S256",
    ...extra,
  };
  for (const [name, value] of Object.entries(asked)) address.searchParams.set(name, value);
  location.assign(address);
}

/** Start as a record system asks (SMART App Launch): only for one that the site knows; throws SignInRefused otherwise. */
export function launch(services, kept) {
  const asked = new URLSearchParams(location.search);
  const iss = asked.get("iss") ?? "";
  const service = services.find(one => bare(one.iss) === bare(iss));
  history.replaceState(null, "", "/launch");
  if (!service) throw new SignInRefused("unknown_record_system");
  const launched = asked.get("launch");
  return leaveToSignIn(service, { ...kept, smart: true }, { aud: iss, ...(launched ? { launch: launched } : {}) });
}

/** Whether the page was come back to from a sign-in service. */
export const isReturn = () => ["code", "error"].some(name => new URLSearchParams(location.search).has(name));

/** Take the token; returns {token, kept, screening} or throws SignInRefused. The address is clean, and nothing is kept, before it is asked for. */
export async function takeToken() {
  const answer = new URLSearchParams(location.search);
  history.replaceState(null, "", "/");
  const raw = sessionStorage.getItem(KEPT);
  sessionStorage.removeItem(KEPT);
  const pending = raw && JSON.parse(raw);
  // Whoever made this browser come here with another code did not see this browser leave.
  if (!pending || answer.get("state") !== pending.state) throw new SignInRefused("state");
  if (answer.has("iss") && !isOf(answer.get("iss"), pending)) throw new SignInRefused("issuer");
  if (answer.has("error") || !answer.get("code")) throw new SignInRefused(answer.get("error") === "access_denied" ? "denied" : "failed");
  const told = await exchange(pending, answer.get("code"));
  if (typeof told.access_token !== "string" || told.token_type?.toLowerCase() !== "bearer") throw new SignInRefused("failed");
  // The token came over TLS from the service itself (OpenID Connect Core 3.1.3.7): what is checked is that it answers this very sign-in.
  if ((pending.openid || told.id_token !== undefined) && claims(told.id_token).nonce !== pending.nonce) throw new SignInRefused("state");
  return { token: told.access_token, kept: pending.kept, screening: screeningIn(told.appContext), expiresIn: told.expires_in };
}

/** Whether the service that answers (RFC 9207) is the one that was asked: by its name, or, where the site did not say that, by its host. */
function isOf(iss, { issuer, authorization_endpoint: endpoint }) {
  if (issuer !== null) return bare(iss) === bare(issuer);
  return URL.canParse(iss) && new URL(iss).origin === new URL(endpoint).origin;
}

/** Forget a sign-in that was begun and not finished. */
export const forget = () => sessionStorage.removeItem(KEPT);

async function exchange(pending, code) {
  const body = new URLSearchParams({
    grant_type: "authorization_code",
    code,
    redirect_uri: redirectUri(),
    client_id: pending.client_id,
    code_verifier: pending.verifier,
  });
  let answer;
  try {
    const signal = AbortSignal.timeout(LONGEST_S * 1000);
    answer = await fetch(pending.token_endpoint, { method: "POST", body, signal, credentials: "omit", cache: "no-store", redirect: "error" });
    if (!answer.ok) throw new SignInRefused("failed");
    return await answer.json();
  } catch (error) {
    if (error instanceof SignInRefused) throw error;
    throw answer ? new SignInRefused("failed") : new Unreachable(error.name);
  }
}

function claims(token) {
  try {
    return JSON.parse(atob(String(token).split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))) ?? {};
  } catch {
    return {};
  }
}

/** Read which screening a record system's link meant: SMART's appContext, an id or JSON with one; null where it says none. */
function screeningIn(context) {
  if (context === undefined || context === null || context === "") return null;
  let id = context;
  try {
    id = typeof context === "string" ? JSON.parse(context) : context;
  } catch {
    // An id of hex digits is no JSON, or a number too large to be one.
  }
  const named = typeof id === "object" && id !== null ? id.screening : context;
  return typeof named === "string" && SCREENING.test(named) ? named : null;
}
