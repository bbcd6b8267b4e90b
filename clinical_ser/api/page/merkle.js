// The Merkle tree of RFC 6962, grown leaf by leaf, with the browser's own SHA-256.
// The one idea: a tree of any size is a row of perfect subtrees, each larger than the next; their roots are all that is kept.

export const HASH_BYTES = 32;

/** SHA-256 over these bytes, one after the other. */
export async function sha256(...parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest("SHA-256", all));
}

const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);
export const leafHash = leaf => sha256(LEAF, leaf);
const nodeHash = (left, right) => sha256(NODE, left, right);

/** Whether two byte strings are one. */
export const equal = (one, other) => one.length === other.length && one.every((byte, i) => byte === other[i]);

/** The root over 2**k hashes of equally large perfect subtrees. */
export async function perfectRoot(hashes) {
  let row = hashes;
  while (row.length > 1) {
    const pairs = Array.from({ length: row.length / 2 }, (_, i) => nodeHash(row[2 * i], row[2 * i + 1]));
    row = await Promise.all(pairs);
  }
  return row[0];
}

/** The right edge of a growing tree. */
export class Frontier {
  constructor(size = 0, roots = []) {
    this.size = size;
    this.roots = roots;
  }

  copy() {
    return new Frontier(this.size, [...this.roots]);
  }

  /** Add the root of 2**level leaves; the size has to be a multiple of so many. */
  async push(hash, level = 0) {
    for (let position = this.size / 2 ** level; position % 2 === 1; position = (position - 1) / 2) hash = await nodeHash(this.roots.pop(), hash);
    this.roots.push(hash);
    this.size += 2 ** level;
  }

  /** The root of the tree so far. */
  async root() {
    if (!this.roots.length) return sha256();
    let hash = this.roots.at(-1);
    for (const left of this.roots.slice(0, -1).reverse()) hash = await nodeHash(left, hash);
    return hash;
  }
}
