// Verify checks what our audit log writes with nothing of ours: Go's own sumdb/note and sumdb/tlog, which run sum.golang.org.
// It prints OK, or says why not and exits with status 1.
//
//	verify checkpoint  VKEY CHECKPOINT
//	verify inclusion   VKEY PROOF LEAF              (a tlog-proof file; the leaf's bytes)
//	verify consistency VKEY OLD NEW PROOF           (two checkpoints; base64 lines)
//	verify tiles       VKEY CHECKPOINT DIRECTORY    (tlog-tiles: tile/<level>/..., tile/entries/...)
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// tileHeight is fixed by tlog-tiles; Go's tile paths name it, those of tlog-tiles do not.
const tileHeight = 8

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("OK")
}

func run(args []string) error {
	modes := map[string]struct {
		count  int
		verify func(args []string) error
	}{
		"checkpoint":  {2, func(a []string) error { _, err := openFile(a[0], a[1]); return err }},
		"inclusion":   {3, func(a []string) error { return inclusion(a[0], a[1], a[2]) }},
		"consistency": {4, func(a []string) error { return consistency(a[0], a[1], a[2], a[3]) }},
		"tiles":       {3, func(a []string) error { return tiles(a[0], a[1], a[2]) }},
	}
	if len(args) == 0 || modes[args[0]].verify == nil || len(args) != 1+modes[args[0]].count {
		return errors.New("usage: verify checkpoint|inclusion|consistency|tiles VKEY FILES")
	}
	return modes[args[0]].verify(args[1:])
}

// openFile reads a checkpoint file that the key signed.
func openFile(vkey, path string) (tlog.Tree, error) {
	message, err := os.ReadFile(path)
	if err != nil {
		return tlog.Tree{}, err
	}
	return open(vkey, message)
}

func open(vkey string, message []byte) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open(message, note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, errors.New("not a checkpoint of the key's log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, errors.New("bad tree size")
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

func inclusion(vkey, proofPath, leafPath string) error {
	proof, err := os.ReadFile(proofPath)
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(leafPath)
	if err != nil {
		return err
	}
	split := bytes.Index(proof, []byte("\n\n"))
	if split < 0 {
		return errors.New("no checkpoint in the proof")
	}
	tree, err := open(vkey, proof[split+2:])
	if err != nil {
		return err
	}
	lines := strings.Split(string(proof[:split]), "\n")
	if lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a tlog-proof file")
	}
	lines = lines[1:]
	if len(lines) > 0 && strings.HasPrefix(lines[0], "extra ") {
		lines = lines[1:]
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "index ") {
		return errors.New("no index in the proof")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "index "), 10, 64)
	if err != nil {
		return err
	}
	path, err := parseHashes(lines[1:])
	if err != nil {
		return err
	}
	return tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}

func consistency(vkey, oldPath, newPath, proofPath string) error {
	older, err := openFile(vkey, oldPath)
	if err != nil {
		return err
	}
	newer, err := openFile(vkey, newPath)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(proofPath)
	if err != nil {
		return err
	}
	proof, err := parseHashes(strings.Fields(string(content)))
	if err != nil {
		return err
	}
	return tlog.CheckTree(proof, newer.N, newer.Hash, older.N, older.Hash)
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, line := range lines {
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != tlog.HashSize {
			return nil, errors.New("a line of the proof is no hash")
		}
		hash := tlog.Hash{}
		copy(hash[:], raw)
		hashes = append(hashes, hash)
	}
	return hashes, nil
}

// tiles computes the tree again from the entries alone, and compares its root and each of its tiles with what lies there.
func tiles(vkey, checkpointPath, directory string) error {
	tree, err := openFile(vkey, checkpointPath)
	if err != nil {
		return err
	}
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			hashes[i] = stored[index]
		}
		return hashes, nil
	})
	for first := int64(0); first < tree.N; first += 1 << tileHeight {
		entries, err := readEntries(directory, first, tree.N)
		if err != nil {
			return err
		}
		for i, entry := range entries {
			hashes, err := tlog.StoredHashes(first+int64(i), entry, reader)
			if err != nil {
				return err
			}
			stored = append(stored, hashes...)
		}
	}
	if root, err := treeHash(tree.N, reader); err != nil || root != tree.Hash {
		return fmt.Errorf("the entries' root hash is %v, the checkpoint's %v (%v)", root, tree.Hash, err)
	}
	for _, tile := range tlog.NewTiles(tileHeight, 0, tree.N) {
		// A log that jumped to this size never wrote the narrower partial tiles, which older versions of x/mod list too.
		if partial := (tree.N >> (tileHeight * uint(tile.L))) % (1 << tileHeight); tile.W < 1<<tileHeight && int64(tile.W) != partial {
			continue
		}
		want, err := tlog.ReadTileData(tile, reader)
		if err != nil {
			return err
		}
		have, err := readTile(directory, tile)
		if err != nil {
			return err
		}
		// A full tile may stand for the partial one.
		if len(have) < len(want) || !bytes.Equal(have[:len(want)], want) || (len(have) > len(want) && len(have) != tlog.HashSize<<tileHeight) {
			return fmt.Errorf("%s does not hold the hashes of its entries", tile.Path())
		}
	}
	return nil
}

// treeHash also knows the root of no entries (RFC 6962 section 2.1), which x/mod learned only after the version that Debian 12 has.
func treeHash(size int64, reader tlog.HashReader) (tlog.Hash, error) {
	if size == 0 {
		return sha256.Sum256(nil), nil
	}
	return tlog.TreeHash(size, reader)
}

// readEntries returns the entries of one bundle: each has two bytes of length before it.
func readEntries(directory string, first, size int64) ([][]byte, error) {
	width := size - first
	if width > 1<<tileHeight {
		width = 1 << tileHeight
	}
	data, err := readTile(directory, tlog.Tile{H: tileHeight, L: -1, N: first >> tileHeight, W: int(width)})
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			return nil, errors.New("an entry is cut off")
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:end])
		data = data[end:]
	}
	if int64(len(entries)) != width && len(entries) != 1<<tileHeight {
		return nil, fmt.Errorf("%d entries from %d on, where %d should be", len(entries), first, width)
	}
	return entries[:width], nil
}

// readTile reads a tile's file, or the full one where the partial one is gone.
func readTile(directory string, tile tlog.Tile) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(directory, tilePath(tile)))
	if os.IsNotExist(err) {
		tile.W = 1 << tileHeight
		return os.ReadFile(filepath.Join(directory, tilePath(tile)))
	}
	return data, err
}

// tilePath turns tile/8/<level>/... into tile/<level>/..., and tile/8/data/... into tile/entries/...
func tilePath(tile tlog.Tile) string {
	path := strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
	if rest := strings.TrimPrefix(path, "data/"); rest != path {
		path = "entries/" + rest
	}
	return filepath.FromSlash("tile/" + path)
}
