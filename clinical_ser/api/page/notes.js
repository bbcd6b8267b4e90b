// Signed notes, verifier keys and checkpoints (C2SP signed-note, tlog-checkpoint), as clinical_ser.audit.notes and .checkpoint read them.
// The one idea: everything has one spelling; a note that is spelled otherwise is none.

import { equal, sha256 } from "./merkle.js";

const PREFIX = "\u2014 ";
const KEY_ID_BYTES = 4;
const MAX_SIGNATURES = 64;
const MAX_NOTE = 256 * 1024;
export const ED25519 = 1;
const KEY_BYTES = { 1: 32, 4: 32, 6: 1312 };
const PRIME = 2n ** 255n - 19n;
const ORDER_8 = 0x5fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;
/** The y coordinates of the points of order 1, 2, 4 and 8 of edwards25519 (RFC 8032 section 5.1): under such a key anyone can sign. */
const WEAK = new Set([0n, 1n, PRIME - 1n, ORDER_8, PRIME - ORDER_8]);

/** A note, key or checkpoint that is not spelled as one is. */
export class FormatError extends Error {}

/** Return the bytes of base64 in its one spelling, never none. */
export function fromBase64(text) {
  let raw;
  try {
    raw = atob(text);
  } catch {
    throw new FormatError("base64");
  }
  if (!raw || btoa(raw) !== text) throw new FormatError("base64");
  return Uint8Array.from(raw, letter => letter.charCodeAt(0));
}

const bytes = text => new TextEncoder().encode(text);
const number = four => new DataView(four.buffer, four.byteOffset, KEY_ID_BYTES).getUint32(0);
const isName = name => name.length > 0 && !/[\s+\u0000-\u001f\u007f-\u009f]/u.test(name);

/** Take a note apart, without checking a signature: {text, signatures: [{name, keyId, signature}]}. */
export function parseNote(note) {
  if (bytes(note).length > MAX_NOTE || /[\u0000-\u0009\u000b-\u001f]/.test(note)) throw new FormatError("note");
  const split = note.lastIndexOf("\n\n");
  if (split < 0 || !note.endsWith("\n") || note.length < split + 3) throw new FormatError("note");
  const lines = note.slice(split + 2, -1).split("\n");
  if (lines.length > MAX_SIGNATURES) throw new FormatError("note");
  return { text: note.slice(0, split + 1), signatures: lines.map(signatureIn) };
}

function signatureIn(line) {
  const [name, encoded, ...rest] = line.slice(PREFIX.length).split(" ");
  if (!line.startsWith(PREFIX) || !isName(name) || encoded === undefined || rest.length) throw new FormatError("signature");
  const raw = fromBase64(encoded);
  if (raw.length <= KEY_ID_BYTES) throw new FormatError("signature");
  return { name, keyId: number(raw), signature: raw.slice(KEY_ID_BYTES) };
}

/** Read a checkpoint's text: {origin, size, root, extensions}. */
export function parseCheckpoint(text) {
  const lines = text.endsWith("\n") ? text.slice(0, -1).split("\n") : [];
  const [origin, size, root, ...extensions] = lines;
  if (lines.length < 3 || !origin || extensions.includes("") || !/^(0|[1-9]\d{0,15})$/.test(size)) throw new FormatError("checkpoint");
  const hash = fromBase64(root);
  if (hash.length !== 32 || !Number.isSafeInteger(Number(size))) throw new FormatError("checkpoint");
  return { origin, size: Number(size), root: hash, extensions };
}

/** Read a verifier key, `name+8 hex digits+base64`: {name, keyId, algorithm, publicKey, line}. */
export async function parseKey(line) {
  const [, name, id, encoded] = /^([^+]*)\+([0-9a-f]{8})\+(.*)$/s.exec(line) ?? [];
  if (name === undefined || !isName(name)) throw new FormatError("key");
  const typed = fromBase64(encoded);
  const [algorithm] = typed;
  if (KEY_BYTES[algorithm] !== typed.length - 1) throw new FormatError("key");
  const keyId = number((await sha256(bytes(`${name}\n`), typed)).slice(0, KEY_ID_BYTES));
  if (keyId !== parseInt(id, 16)) throw new FormatError("key");
  const publicKey = typed.slice(1);
  if (KEY_BYTES[algorithm] === 32 && isWeak(publicKey)) throw new FormatError("key");
  return { name, keyId, algorithm, publicKey, line };
}

function isWeak(publicKey) {
  let y = 0n;
  for (let i = 31; i >= 0; i -= 1) y = (y << 8n) | BigInt(publicKey[i]);
  return WEAK.has((y & ((1n << 255n) - 1n)) % PRIME);
}

/** Whether two keys are one. */
export const sameKey = (one, other) => one.name === other.name && one.algorithm === other.algorithm && equal(one.publicKey, other.publicKey);

/** Check an Ed25519 signature over a note's text: true or false, or null where this browser cannot. */
export async function fits(key, text, signature) {
  let imported;
  try {
    imported = await crypto.subtle.importKey("raw", key.publicKey, "Ed25519", false, ["verify"]);
  } catch (error) {
    if (error.name === "NotSupportedError") return null;
    return false;
  }
  return crypto.subtle.verify("Ed25519", imported, signature, bytes(text));
}
