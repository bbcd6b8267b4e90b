import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audit.log import Entry
from clinical_ser.audit.merkle import TILE_WIDTH
from clinical_ser.audit.tiles import publish_tiles, tile_path, tiles_of, verify_tiles
from clinical_ser.errors import AuditError, AuditFormatError, AuditTamperedError, AuditUnavailableError
from tests.audit.log_maker import database_file, make_log, names_of, payload_of


def grow(site, records, prefix="record"):
    with site.write() as log:
        for name in names_of(records, prefix):
            log.record([Entry(payload_of(name))])


def published(site, folder):
    with site.read(sealed=True) as reader:
        return publish_tiles(reader, folder)


def verified(site, folder):
    return verify_tiles(folder, site.load_keys().verifiers, site.origin)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# c2sp.org/tlog-tiles and Go's sumdb/tlog (heights apart) give these.
@pytest.mark.parametrize(
    ("level", "n", "width", "path"),
    [
        (0, 1, 256, "tile/0/001"),
        (0, 1, 5, "tile/0/001.p/5"),
        (5, 123456078, 256, "tile/5/x123/x456/078"),
        (5, 123456078, 2, "tile/5/x123/x456/078.p/2"),
        ("entries", 3057500, 256, "tile/entries/x003/x057/500"),
        (0, 1234067, 256, "tile/0/x001/x234/067"),
        (63, 0, 255, "tile/63/000.p/255"),
    ],
)
def test_paths_are_those_of_the_specification(level, n, width, path):
    assert tile_path(level, n, width) == path


def test_the_specification_s_example_of_70000_has_its_tiles():
    tiles = list(tiles_of(70_000))
    assert [(level, n, w) for level, n, w in tiles if w < TILE_WIDTH] == [(0, 273, 112), (1, 1, 17), (2, 0, 1)]
    assert sum(level == 0 and w == TILE_WIDTH for level, _, w in tiles) == 273
    assert [(level, n) for level, n, w in tiles if level and w == TILE_WIDTH] == [(1, 0)]
    assert list(tiles_of(256)) == [(0, 0, 256), (1, 0, 1)]
    assert list(tiles_of(0)) == []


@given(st.integers(0, 200_000))
def test_tiles_of_every_size_hold_every_hash_once(size):
    leaves = sum(width for level, _, width in tiles_of(size) if level == 0)
    assert leaves == size
    assert sum(width for level, _, width in tiles_of(size) if level == 1) == size // 256


def test_a_log_is_published_and_grows(tmp_path):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    sizes = []
    for records in (0, 3, 252, 1, 300):
        grow(site, records, f"to {sum(sizes)}")
        sizes.append(records)
        published(site, folder)
        assert verified(site, folder).size == sum(sizes)
    assert names(folder) == {
        "checkpoint",
        "tile/0/000",
        "tile/0/001",
        "tile/0/002.p/44",
        "tile/1/000.p/2",
        "tile/entries/000",
        "tile/entries/001",
        "tile/entries/002.p/44",
    }
    assert published(site, folder) == 1, "what was published is not written again"


def test_published_files_hold_nothing_of_a_person(tmp_path):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    with site.write() as log:
        log.append(payload_of("x"), subject="MRN-CANARY")
    published(site, folder)
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"CANARY" not in content
    assert b"clinician-1" not in content


def test_every_changed_byte_is_noticed(tmp_path):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    grow(site, 5)
    published(site, folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            for place in range(0, len(content), 7):
                path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
                with pytest.raises(AuditError):
                    verified(site, folder)
            path.write_bytes(content)
    assert verified(site, folder).size == 5


@pytest.mark.parametrize("harm", ["missing", "truncated", "longer", "extra", "link", "huge"])
def test_files_that_do_not_belong_are_noticed(tmp_path, harm):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    grow(site, 3)
    published(site, folder)
    entries = folder / "tile/entries/000.p/3"
    content = entries.read_bytes()
    if harm == "missing":
        entries.unlink()
    elif harm == "truncated":
        entries.write_bytes(content[:-1])
    elif harm == "longer":
        entries.write_bytes(content + b"\x00\x01x")
    elif harm == "extra":
        (folder / "tile/0/001.p").mkdir()
        (folder / "tile/0/001.p/1").write_bytes(b"x" * 32)
    elif harm == "link":
        entries.unlink()
        (tmp_path / "kept").write_bytes(content)
        entries.symlink_to(tmp_path / "kept")
    else:
        entries.write_bytes(b"\x00" * (256 * 65_537 + 1))
    with pytest.raises((AuditTamperedError, AuditFormatError)):
        verified(site, folder)


def test_two_entries_that_change_places_are_noticed(tmp_path):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    grow(site, 20)
    published(site, folder)
    one, other = folder / "tile/0/000.p/20", folder / "tile/entries/000.p/20"
    hashes = one.read_bytes()
    one.write_bytes(hashes[32:64] + hashes[:32] + hashes[64:])
    raw = other.read_bytes()
    first = 2 + int.from_bytes(raw[:2], "big")
    second = 2 + int.from_bytes(raw[first : first + 2], "big")
    other.write_bytes(raw[first : first + second] + raw[:first] + raw[first + second :])
    with pytest.raises(AuditTamperedError, match="not those of the checkpoint"):
        verified(site, folder)


def test_another_log_s_folder_is_not_verified_with_these_keys(tmp_path):
    site, other = make_log(tmp_path / "a"), make_log(tmp_path / "b")
    grow(other, 2)
    published(other, tmp_path / "www")
    with pytest.raises(AuditTamperedError):
        verified(site, tmp_path / "www")


def test_another_log_or_an_older_one_is_not_published_over(tmp_path):
    site, other, folder = make_log(tmp_path / "a"), make_log(tmp_path / "b", origin="other.example/log"), tmp_path / "www"
    twin = make_log(tmp_path / "c")
    for each, records in ((site, 3), (other, 3), (twin, 5)):
        grow(each, records)
    published(site, folder)
    for each in (other, twin):
        with pytest.raises(AuditTamperedError):
            published(each, folder)
    older = database_file(site).read_bytes()
    grow(site, 1, "more")
    published(site, folder)
    database_file(site).write_bytes(older)
    with pytest.raises(AuditTamperedError, match="older copy"):
        published(site, folder)
    assert verified(site, folder).size == 4


def test_what_an_interrupted_publication_left_is_cleared(tmp_path):
    site, folder = make_log(tmp_path / "site", records=3), tmp_path / "www"
    published(site, folder)
    (folder / "tile/0/000.p/.3.tmp").write_bytes(b"half")
    with pytest.raises(AuditTamperedError):
        verified(site, folder)
    published(site, folder)
    assert verified(site, folder).size == 3


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    site = make_log(tmp_path / "site", records=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AuditUnavailableError, match="cannot be written") as refused:
        published(site, tmp_path / "file" / "www")
    assert str(tmp_path) not in str(refused.value)


def test_go_reads_our_checkpoints_proofs_and_tiles(tmp_path, go_verifier):
    site, folder = make_log(tmp_path / "site"), tmp_path / "www"
    grow(site, 100, "early")
    with site.read(sealed=True) as reader:
        (tmp_path / "old").write_text(reader.checkpoint)
    with site.write() as log:
        for _ in range(3):
            log.record([Entry(payload_of(name)) for name in names_of(200, "late")])
    published(site, folder)
    [key] = map(str, site.load_keys().verifiers)

    def go(*arguments):
        done = go_verifier(*map(str, arguments))
        assert done.returncode == 0, done.stdout + done.stderr

    from clinical_ser.audit.proof_file import ProofFile

    go("checkpoint", key, folder / "checkpoint")
    go("tiles", key, folder / "checkpoint", folder)
    with site.read(sealed=True) as reader:
        for index in [0, 99, 255, 256, 511, 699, *random.Random(7).sample(range(700), 20)]:
            (tmp_path / "proof").write_text(ProofFile(index, tuple(reader.inclusion(index)), reader.checkpoint).text)
            (tmp_path / "leaf").write_bytes(next(reader.leaves(index, index + 1)))
            go("inclusion", key, tmp_path / "proof", tmp_path / "leaf")
        import base64

        lines = [base64.b64encode(digest).decode() + "\n" for digest in reader.consistency(100)]
        (tmp_path / "consistency").write_text("".join(lines))
    go("consistency", key, tmp_path / "old", folder / "checkpoint", tmp_path / "consistency")
    (folder / "tile/0/000").write_bytes((folder / "tile/0/001").read_bytes())
    assert go_verifier("tiles", key, str(folder / "checkpoint"), str(folder)).returncode == 1
