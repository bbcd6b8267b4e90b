// Verifies a log as a stranger would: checkpoint, signature, every leaf, and what this browser saw before.
// The one idea: nothing is believed because the server says it; each finding is what was computed here, and what could not be is said too.

import { equal, Frontier, HASH_BYTES, leafHash, perfectRoot } from "./merkle.js";
import { ED25519, fits, FormatError, parseCheckpoint, parseKey, parseNote, sameKey } from "./notes.js";

const TILE = 256;
const TILE_LEVEL = 8;
const LENGTH_BYTES = 2;

/** Return the path of a tile, or of a bundle of `entries` (c2sp.org/tlog-tiles). */
export function tilePath(level, n, width = TILE) {
  const digits = String(n);
  const parts = digits.padStart(Math.ceil(digits.length / 3) * 3, "0").match(/\d{3}/g);
  const name = parts.map((part, i) => (i < parts.length - 1 ? `x${part}` : part)).join("/");
  return `tile/${level}/${name}${width === TILE ? "" : `.p/${width}`}`;
}

/**
 * Verify a log.
 *
 * `read(path)` gives the bytes under /v1/audit/, null where there are none; `trusted` are key lines that someone vouches for; `remembered` is what
 * this browser saw last, {origin, keys, checkpoint, confirmed}, or null; `progress(done, of)` is called along the way.
 *
 * Returns {findings, checkpoint, note, keys, confirmed}: `confirmed` where somebody vouched for the keys, and not the server alone; findings are {state: "good" | "bad" | "open", key, values}, words under `verify.`.
 */
export async function verifyLog({ read, trusted, remembered, progress = () => {} }) {
  const findings = [];
  const say = (state, key, values = {}) => findings.push({ state, key, values });
  let note, checkpoint, signatures, text, keys;
  try {
    note = utf8(await read("checkpoint"));
    ({ text, signatures } = parseNote(note));
    checkpoint = parseCheckpoint(text);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    say("bad", "checkpoint_unreadable");
    return { findings, checkpoint: null, note: note ?? "", keys: [], confirmed: false };
  }
  const known = await readKeys(trusted, say, "key_unreadable");
  const before = remembered && (await whatWasSeen(remembered, checkpoint, say));
  const vouched = known.length ? known : before?.keys ?? [];
  const pasted = known.length > 0;
  // That this browser has seen a key before makes it no better than where it came from.
  const confirmed = pasted || (vouched.length > 0 && remembered.confirmed === true);
  keys = await checkSignature({ checkpoint, signatures, text, vouched, pasted, confirmed, read, say });
  if (!remembered) say("open", "first_time");
  await checkTree({ read, checkpoint, before: before?.checkpoint ?? null, progress, say });
  const cosigned = signatures.filter(one => one.name !== checkpoint.origin).length;
  if (cosigned) say("open", "cosignatures", { n: cosigned });
  say("open", "payloads");
  return { findings, checkpoint, note, keys: keys.map(key => key.line), confirmed };
}

function utf8(raw) {
  if (raw === null) throw new FormatError("nothing");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
  } catch {
    throw new FormatError("UTF-8");
  }
}

async function readKeys(lines, say, fault) {
  const keys = [];
  for (const line of lines) {
    try {
      keys.push(await parseKey(line));
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      say("bad", fault);
    }
  }
  return keys;
}

/** Compare with what this browser saw last: another log, a smaller one, another key. */
async function whatWasSeen(remembered, checkpoint, say) {
  const keys = await readKeys(remembered.keys, say, "key_unreadable");
  let seen;
  try {
    seen = parseCheckpoint(parseNote(remembered.checkpoint).text);
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    say("bad", "seen_unreadable");
    return { checkpoint: null, keys };
  }
  if (remembered.origin !== checkpoint.origin) {
    say("bad", "other_log");
    return { checkpoint: null, keys };
  }
  if (checkpoint.size < seen.size) say("bad", "shrunk", { before: seen.size, now: checkpoint.size });
  return { checkpoint: seen, keys };
}

/** Return the keys that signed: of those that someone vouches for, or else of those that the server itself gives. */
async function checkSignature({ checkpoint, signatures, text, vouched, pasted, confirmed, read, say }) {
  const own = vouched.length ? vouched : await readKeys(await offered(read), say, "server_key_unreadable");
  const fitting = [];
  let unable = false;
  let forged = false;
  for (const key of own.filter(one => one.name === checkpoint.origin)) {
    for (const { signature } of signatures.filter(one => one.name === key.name && one.keyId === key.keyId)) {
      const ok = key.algorithm === ED25519 ? await fits(key, text, signature) : null;
      if (ok === true) fitting.push(key);
      else if (ok === false) forged = true;
      else unable = true;
    }
  }
  if (forged) say("bad", "signature_forged");
  else if (fitting.length) say("good", vouched.length ? (pasted ? "signature_pasted" : "signature_remembered") : "signature_server");
  else if (unable) say("open", "signature_unable");
  else say("bad", vouched.length ? "signature_other_key" : "signature_missing");
  if (!confirmed) say("open", "key_unconfirmed", { key: own.map(key => key.line).join("\n") });
  if (vouched.length) await compareWithServer(vouched, read, say);
  return forged ? [] : fitting.length ? fitting : unable ? own : [];
}

/** Say so where the server now gives out keys that nobody vouched for: a key that was changed, or a server that is another. */
async function compareWithServer(vouched, read, say) {
  const given = await readKeys(await offered(read), say, "server_key_unreadable");
  if (!vouched.some(key => given.some(one => sameKey(one, key)))) say("bad", "key_differs");
}

async function offered(read) {
  const raw = await read("keys");
  return raw === null ? [] : utf8(raw).split("\n").map(line => line.trim()).filter(Boolean);
}

/** Make the tree anew from every leaf, and hold it against the checkpoint and against the tree that was seen before. */
async function checkTree({ read, checkpoint, before, progress, say }) {
  const tree = new Frontier();
  const hashes = [];
  let rootBefore = before?.size === 0 ? await tree.root() : null;
  const tiles = Math.ceil(checkpoint.size / TILE);
  const width = n => Math.min(TILE, checkpoint.size - n * TILE);
  progress(0, checkpoint.size);
  let coming = tiles ? entries(read, 0, width(0)) : null;
  for (let n = 0; n < tiles; n += 1) {
    const leaves = await coming;
    coming = n + 1 < tiles ? entries(read, n + 1, width(n + 1)) : null;
    // Asked for early; what becomes of it is heard in the next turn.
    coming?.catch(() => {});
    if (leaves === null) {
      say("bad", "entries_missing", { first: n * TILE, last: n * TILE + width(n) - 1 });
      return;
    }
    const digests = await Promise.all(leaves.map(leafHash));
    hashes.push(digests);
    const within = before && before.size > tree.size && before.size <= tree.size + digests.length ? before.size - tree.size : 0;
    if (within) rootBefore = await rootAfter(tree, digests.slice(0, within));
    if (digests.length === TILE) await tree.push(await perfectRoot(digests), TILE_LEVEL);
    else for (const digest of digests) await tree.push(digest);
    progress(tree.size, checkpoint.size);
  }
  const fitting = equal(await tree.root(), checkpoint.root);
  if (fitting) say("good", "root", { size: checkpoint.size });
  else await locate({ read, hashes, checkpoint, say });
  if (rootBefore && !equal(rootBefore, before.root)) say("bad", "rewritten", { before: before.size });
  else if (rootBefore && fitting) say("good", "grew", { before: before.size });
}

async function rootAfter(tree, digests) {
  const draft = tree.copy();
  for (const digest of digests) await draft.push(digest);
  return draft.root();
}

/** Name the first record that is not what the log's own hashes say, if that is where it fails. */
async function locate({ read, hashes, checkpoint, say }) {
  for (const [n, digests] of hashes.entries()) {
    const tile = await whole(read, 0, n, digests.length);
    if (tile === null || tile.length < digests.length * HASH_BYTES) break;
    const at = digests.findIndex((digest, i) => !equal(digest, tile.slice(i * HASH_BYTES, (i + 1) * HASH_BYTES)));
    if (at >= 0) {
      say("bad", "changed", { index: n * TILE + at });
      return;
    }
  }
  say("bad", "root_differs", { size: checkpoint.size });
}

/** Return a tile, of which a log that has grown meanwhile may only have the full one. */
async function whole(read, level, n, width) {
  const tile = await read(tilePath(level, n, width));
  return tile === null && width < TILE ? read(tilePath(level, n)) : tile;
}

/** Return the leaves of a bundle, each after its length in two bytes; null where it is not there, or not that. */
async function entries(read, n, width) {
  const raw = await whole(read, "entries", n, width);
  if (raw === null) return null;
  const leaves = [];
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  for (let at = 0; at < raw.length && leaves.length < width; ) {
    if (at + LENGTH_BYTES > raw.length) return null;
    const start = at + LENGTH_BYTES;
    at = start + view.getUint16(at);
    if (at > raw.length) return null;
    leaves.push(raw.subarray(start, at));
  }
  return leaves.length === width ? leaves : null;
}
