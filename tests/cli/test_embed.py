"""`clinical-ser embed` and `embeddings`: one recording or a manifest into vectors, and what is said of them without naming anyone."""

import json
import stat
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile

from clinical_ser import audio
from clinical_ser.cli import embed as command
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.embeddings import find_encoder, storing, windows
from clinical_ser.embeddings.registry import encoder_folder
from clinical_ser.embeddings.relations import Method, Projection
from clinical_ser.embeddings.storing import Encoded, StoredRow, read_embeddings, side_car_of, write_matrix
from reports.embedding_picture import picture
from tests.embeddings.made import Local, speech, tiny_onnx
from tests.reports.layout import check_colours, check_shapes, check_texts
from tests.reports.test_figures import SVG, drawn

NAMES = ("jane", "doe", "o'neil")


@pytest.fixture
def tiny():
    tiny_onnx(encoder_folder("tiny"))


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Six recordings; the fifth is too short, the sixth silent."""
    folder = tmp_path_factory.mktemp("jane-doe")
    for i, seconds in enumerate((3.0, 4.0, 3.5, 5.0, 0.5, 3.0), start=1):
        samples = speech(seconds, seed=i).samples * (i < 6)
        soundfile.write(folder / f"jane-{i}.wav", samples * (0.4 + 0.1 * i), 16_000)
    return folder


@pytest.fixture
def manifest(tmp_path, voices):
    """Those six, and a seventh row whose file is not there."""
    path = tmp_path / "m.csv"
    rows = [f"{voices / f'jane-{i}.wav'},jane-{i % 2},{'[red]happy' if i % 2 else '<b>sad'},{i}" for i in range(1, 8)]
    path.write_text("\n".join(["path,subject,label,visit", *rows]))
    return path


@pytest.fixture
def wav(voices):
    return voices / "jane-1.wav"


def made(folder, *, table=True, subjects=4, each=6, dim=6, follow="subject"):
    """Stored vectors of subjects (or labels) that lie apart."""
    rng = np.random.default_rng(0)
    subject, label = np.repeat(np.arange(subjects), each), np.tile(np.arange(each) % 2, subjects)
    centres = rng.normal(size=(max(subjects, 2), dim)) * 9
    vectors = centres[subject if follow == "subject" else label] + rng.normal(size=(len(subject), dim))
    encoder = Local(frame_dim=dim)
    encoded = [Encoded(vector, StoredRow(row=i + 2, recording=f"{i:02x}" * 32, duration_s=3.0, speech_s=2.0)) for i, vector in enumerate(vectors)]
    columns = pd.DataFrame({"subject": [f"jane-{one}" for one in subject], "label": [("<b>sad", "[red]happy")[one] for one in label]})
    out = folder / ("e.parquet" if table else "e.npy")
    write_matrix(encoded, encoder, out, side_car_of(out), columns=columns if table else None)
    return out


def nameless(*texts):
    return not any(name in text.lower() for text in texts for name in NAMES)


# --- One recording ------------------------------------------------------------------------------------------------------------------------


def test_a_recording_becomes_a_vector_for_its_owner_only(run, tiny, tmp_path, wav):
    out = tmp_path / "e.npy"
    code, said, err = run("embed", wav, "-o", out, "--encoder", "tiny")
    assert code == 0, err
    np.testing.assert_array_equal(np.load(out, allow_pickle=False), find_encoder("tiny").encode([audio.load(wav)])[0].utterance)
    assert "1 recording, " in said
    assert ": 6 numbers." in said
    assert "identifies a person" in err
    for path in (out, side_car_of(out)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert nameless(said, err, side_car_of(out).read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npy", "e.npy.json", "home"]


def test_frames_of_a_recording_are_written_at_the_rate_of_the_encoder(run, tiny, tmp_path, wav):
    out = tmp_path / "f.npy"
    code, said, err = run("embed", wav, "-o", out, "--encoder", "tiny", "--frames", "--json")
    assert code == 0, err
    answer = json.loads(said)
    assert answer["shape"] == [300, 3]
    assert answer["identifies_speakers"] is True
    found = read_embeddings(out)
    assert found.vectors.shape == (300, 3)
    assert found.about.frame_step_s == 0.01


def test_a_recording_of_several_parts_says_so(run, tiny, tmp_path, wav, monkeypatch):
    for module in (storing, windows):
        monkeypatch.setattr(module, "PART_S", 1.0)
    code, said, err = run("embed", wav, "-o", tmp_path / "e.npy", "--encoder", "tiny")
    assert code == 0, err
    assert "in parts, each with its own mean removed" in said


@pytest.mark.parametrize(
    ("name", "words"), [("jane-5.wav", "needs 1 s"), ("jane-6.wav", "no speech"), ("jane-7.wav", "no such file"), ("", "directory")]
)
@pytest.mark.parametrize("frames", [(), ("--frames",)])
def test_a_recording_that_cannot_be_encoded_leaves_nothing(run, tiny, tmp_path, voices, name, words, frames):
    code, said, err = run("embed", voices / name, "-o", tmp_path / "e.npy", "--encoder", "tiny", *frames)
    assert (code, said) == (1, "")
    assert words in err
    assert nameless(err)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# --- Manifests ----------------------------------------------------------------------------------------------------------------------------


def test_a_manifest_becomes_a_table_with_its_problems_and_another_process_makes_the_same(run, tiny, tmp_path, manifest):
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    code, said, err = run("embed", manifest, "-o", one, "--encoder", "tiny", "--workers", 0)
    assert code == 0, err
    assert run("embed", manifest, "-o", two, "--encoder", "tiny", "--workers", 1)[0] == 0
    assert one.read_bytes() == two.read_bytes()
    assert side_car_of(one).read_bytes() == side_car_of(two).read_bytes()
    found = read_embeddings(one)
    assert [(row, reason.split(";")[-1].strip()) for row, reason in found.about.problems] == [
        (5, "encoder 'tiny' needs 1 s."),
        (6, "Nothing to encode: no speech was found in the recording."),
        (7, "There is no such file."),
    ]
    assert all(f"Row {row}" in err for row in (5, 6, 7))
    assert pq.read_table(one).column_names[:5] == ["row", "recording", "subject", "label", "visit"]
    assert nameless(said, err, side_car_of(one).read_text())
    for path in (one, side_car_of(one)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_table_of_embeddings_holds_the_numbers_of_a_feature_table_bit_for_bit(run, tiny, tmp_path, manifest):
    run("embed", manifest, "-o", tmp_path / "e.parquet", "--encoder", "tiny", "--workers", 0)
    found, table = read_embeddings(tmp_path / "e.parquet"), build_table(read_manifest(manifest), sets=("encoder:tiny",))
    both = table.frame["row"].isin(found.columns["row"]).to_numpy()
    np.testing.assert_array_equal(found.vectors, table.features[both])
    assert found.columns["recording"].tolist() == table.frame["recording"][both].tolist()
    assert found.about.fingerprint == table.extractors["embedding.tiny"]


def test_a_manifest_becomes_a_matrix_and_json_says_what_failed(run, tiny, tmp_path, manifest):
    code, said, _ = run("embed", manifest, "-o", tmp_path / "e.npy", "--encoder", "tiny", "--workers", 0, "--json")
    answer = json.loads(said)
    assert code == 0
    assert (answer["written"], answer["shape"]) == (4, [4, 6])
    assert [one["row"] for one in answer["failed"]] == [5, 6, 7]
    assert np.load(tmp_path / "e.npy", allow_pickle=False).shape == (4, 6)
    assert [row.row for row in read_embeddings(tmp_path / "e.npy").about.rows] == [1, 2, 3, 4]


def test_segments_and_repeated_rows_of_a_manifest(run, tiny, tmp_path, voices):
    path = tmp_path / "m.csv"
    path.write_text(f"path,subject,start,end\n{voices}/jane-4.wav,a,0.5,3\n{voices}/jane-4.wav,a,,\n{voices}/jane-4.wav,a,0.5,3\n")
    assert run("embed", path, "-o", tmp_path / "e.npy", "--encoder", "tiny", "--workers", 0)[0] == 0
    found = read_embeddings(tmp_path / "e.npy")
    assert [(row.start_s, row.duration_s) for row in found.about.rows] == [(0.5, 2.5), (0.0, 5.0)]
    assert found.about.problems == ((3, "the same recording and segment as row 1"),)


def test_a_manifest_without_a_row_that_can_be_encoded_writes_nothing_and_fails(run, tiny, tmp_path, voices):
    path = tmp_path / "m.csv"
    path.write_text(f"path,subject\n{voices}/jane-5.wav,a\n{voices}/jane-7.wav,b\n")
    code, said, err = run("embed", path, "-o", tmp_path / "e.parquet", "--encoder", "tiny", "--workers", 0, "--json")
    assert code == 1
    assert json.loads(said)["written"] == 0
    assert "Row 2" in err
    assert not (tmp_path / "e.parquet").exists()
    assert not side_car_of(tmp_path / "e.parquet").exists()


@pytest.mark.parametrize("content", ["", "path\nx.wav\n", "path,subject\n", "\0\0\0"])
def test_a_manifest_that_is_none_is_refused(run, tiny, tmp_path, content):
    (tmp_path / "m.csv").write_text(content)
    code, _, err = run("embed", tmp_path / "m.csv", "-o", tmp_path / "e.npy", "--encoder", "tiny")
    assert code == 1
    assert "manifest" in err.lower()
    assert not (tmp_path / "e.npy").exists()


def test_a_manifest_with_a_column_of_ours_is_refused_before_the_work(run, tiny, tmp_path, wav, monkeypatch):
    (tmp_path / "m.csv").write_text(f"path,subject,recording\n{wav},a,x\n")
    monkeypatch.setattr(command, "encode_file", lambda *_, **__: pytest.fail("work was done"))
    code, _, err = run("embed", tmp_path / "m.csv", "-o", tmp_path / "e.parquet", "--encoder", "tiny", "--workers", 0)
    assert code == 1
    assert "rename them" in err


# --- What is refused, and Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{wav}", "-o", "e.parquet"), "needs a manifest"),
        (("{wav}", "-o", "e.wav"), "suffix of --output"),
        (("{wav}", "-o", "e"), "suffix of --output"),
        (("m.csv", "-o", "e.csv"), "suffix of --output"),
        (("m.csv", "-o", "e.npy", "--frames"), "one recording"),
        (("{wav}", "-o", "missing/e.npy"), "cannot be written"),
        (("{wav}", "-o", "folder.npy"), "a folder"),
        (("{wav}", "-o", "e.npy", "--encoder", "nobody"), "encoder"),
        (("{wav}", "-o", "e.npy", "--workers", "-1"), "workers"),
        (("m.parquet", "-o", "m.parquet", "--replace"), "the file that is read"),
        (("{wav}", "-o", "mine.npy"), "there already"),
        (("{wav}", "-o", "mine.npy", "--replace"), "holds no embeddings"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_done(run, tiny, tmp_path, wav, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "mine.npy").write_text("mine")
    (tmp_path / "m.parquet").write_text("mine")
    before = sorted(tmp_path.iterdir())
    code, out, err = run("embed", *(word.format(wav=wav) for word in words), *(() if "--encoder" in words else ("--encoder", "tiny")))
    assert (code, out) == (2, "")
    assert said in err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "mine.npy").read_text() == "mine"


def test_embeddings_are_replaced_only_when_that_is_said(run, tiny, tmp_path, wav, voices):
    words = ("embed", wav, "-o", tmp_path / "e.npy", "--encoder", "tiny")
    assert run(*words)[0] == 0
    before = (tmp_path / "e.npy").read_bytes()
    assert run(*words)[0] == 2
    words = ("embed", voices / "jane-2.wav", *words[2:])
    assert run(*words, "--replace")[0] == 0
    assert (tmp_path / "e.npy").read_bytes() != before
    read_embeddings(tmp_path / "e.npy")


@pytest.mark.parametrize("words", [("{wav}",), ("{wav}", "--frames"), ("{manifest}", "--workers", "0")])
@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_leaves_what_was_there_and_no_half_file(run, tiny, tmp_path, wav, manifest, monkeypatch, words, there):
    out = tmp_path / "e.npy"
    if there:
        assert run("embed", wav, "-o", out, "--encoder", "tiny")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    heard = []

    def stop(*given, **options):
        heard.append(1)
        if len(heard) == 2:
            raise KeyboardInterrupt
        return windows.encode_parts(*given, **options)

    # With --frames the second part is under way, and the first is written to the unfinished file.
    for module in (storing, windows):
        monkeypatch.setattr(module, "PART_S", 1.0)
    monkeypatch.setattr(storing, "encode_parts", stop)
    if len(words) == 1:
        heard.append(1)
    code, _, err = run("embed", *(word.format(wav=wav, manifest=manifest) for word in words), "-o", out, "--encoder", "tiny", "--replace")
    assert code == 130
    assert "Nothing was written" in err
    assert len(heard) == 2
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == before


def test_a_full_disk_leaves_no_half_file(run, tiny, tmp_path, wav, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storing, "_write_npy", full)
    code, _, err = run("embed", wav, "-o", tmp_path / "e.npy", "--encoder", "tiny")
    assert code == 1
    assert "No space left" in err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_an_encoder_that_changes_in_the_middle_is_not_mixed_with_itself(run, tiny, tmp_path, manifest, monkeypatch):
    first = iter([find_encoder("tiny")])
    monkeypatch.setattr(command, "find_encoder", lambda _: next(first, Local()))
    code, _, err = run("embed", manifest, "-o", tmp_path / "e.npy", "--encoder", "tiny", "--workers", 0)
    assert code == 1
    assert "encoder changed" in err


# --- Neighbours ---------------------------------------------------------------------------------------------------------------------------


def test_neighbours_are_shown_by_row_and_digest_and_never_by_name(run, tmp_path):
    stored = made(tmp_path)
    code, said, err = run("embeddings", "similar", stored, "--top", 2)
    assert code == 0, err
    assert "and 14 rows more" in said
    assert "0101010101" in said
    assert nameless(said, err)
    code, said, _ = run("embeddings", "similar", stored, "--row", 2, "--row", 25, "--json")
    answer = json.loads(said)
    assert [one["row"] for one in answer["rows"]] == [2, 25]
    assert answer["centred"] is True
    assert all(3 <= near["row"] <= 7 for near in answer["rows"][0]["nearest"]), "the rows of the same subject"
    assert answer["rows"][0]["recording"] == "000000000000"
    assert nameless(said)


def test_two_recordings_are_compared_as_they_come(run, tmp_path):
    stored = made(tmp_path, table=False, subjects=1, each=2)
    assert "as they come" in run("embeddings", "similar", stored)[1]


@pytest.mark.parametrize(
    ("words", "said"), [(("--row", 1), "row that has a vector"), (("--row", 999), "row that has"), (("--top", 0), "top"), (("--top", "x"), "top")]
)
def test_rows_and_numbers_that_cannot_be_are_wrong_usage(run, tmp_path, words, said):
    code, out, err = run("embeddings", "similar", made(tmp_path), *words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("words", [("similar",), ("cluster",), ("picture", "-o", "p.svg")])
def test_one_vector_frames_and_what_is_no_file_of_embeddings_are_refused(run, tiny, tmp_path, wav, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    for name, more in (("one.npy", ()), ("frames.npy", ("--frames",))):
        assert run("embed", wav, "-o", name, "--encoder", "tiny", *more)[0] == 0
    (tmp_path / "jane.npy").write_bytes(b"\x93NUMPY")
    for name, expected, said in (
        ("one.npy", 2, "or more"),
        ("frames.npy", 2, "frames of one"),
        ("jane.npy", 1, "side-car"),
        ("no.npy", 1, "side-car"),
    ):
        code, out, err = run("embeddings", words[0], name, *words[1:])
        assert (code, out) == (expected, ""), err
        assert said in err
        assert nameless(err)
    assert not (tmp_path / "p.svg").exists()


# --- Clusters -----------------------------------------------------------------------------------------------------------------------------


def test_clusters_that_follow_the_speakers_are_called_that(run, tmp_path):
    stored = made(tmp_path)
    code, said, err = run("embeddings", "cluster", stored)
    assert code == 0, err
    assert "4 clusters, the best of 2 to 10" in said
    assert "more than the label: they group voices" in said
    assert nameless(said, err)
    answer = json.loads(run("embeddings", "cluster", stored, "--json")[1])
    assert answer["follows_speakers"] is True
    assert {one["column"]: round(one["ari"]) for one in answer["agreement"]} == {"label": 0, "subject": 1}
    assert sum(answer["sizes"]) == len(answer["rows"]) == 24
    assert {one["cluster"] for one in answer["rows"]} == {1, 2, 3, 4}
    assert run("embeddings", "cluster", stored, "--json")[1] == json.dumps(answer) + "\n"


def test_clusters_that_follow_the_label_are_not_warned_about(run, tmp_path):
    answer = json.loads(run("embeddings", "cluster", made(tmp_path, follow="label"), "-k", 2, "--json")[1])
    assert answer["follows_speakers"] is False
    assert answer["agreement"][0]["ari"] == pytest.approx(1)


def test_clusters_of_a_matrix_have_no_column_to_be_compared_with(run, tmp_path):
    stored = made(tmp_path, table=False)
    assert json.loads(run("embeddings", "cluster", stored, "--json")[1])["follows_speakers"] is None
    code, _, err = run("embeddings", "cluster", stored, "--against", "label")
    assert code == 2
    assert "Parquet has" in err


@pytest.mark.parametrize(
    ("words", "said"), [(("-k", 1), "clusters"), (("-k", 24), "clusters"), (("--seed", -1), "seed"), (("--against", "row"), "column")]
)
def test_clusters_that_cannot_be_are_wrong_usage(run, tmp_path, words, said):
    code, out, err = run("embeddings", "cluster", made(tmp_path), *words)
    assert (code, out) == (2, "")
    assert said in err


# --- Pictures -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "words"), [("pca", "of the variance"), ("tsne", "perplexity 7.67, seed 0")])
def test_a_picture_says_what_it_shows_and_names_no_one(run, tmp_path, method, words):
    stored, out = made(tmp_path), tmp_path / "p.svg"
    code, said, err = run("embeddings", "picture", stored, "-o", out, "--method", method, "--by", "subject")
    assert code == 0, err
    first = out.read_text()
    tree = ET.fromstring(first)
    texts = " ".join(text.text for text in tree.iter(f"{SVG}text"))
    assert "subject 1 (6)" in texts
    assert words in texts
    assert words in tree.find(f"{SVG}desc").text
    assert ("mean nothing" in texts) is (method == "tsne")
    assert nameless(first, said, err)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert run("embeddings", "picture", stored, "-o", out, "--method", method, "--by", "subject")[0] == 0
    assert out.read_text() == first


def test_labels_are_drawn_as_text_whatever_is_in_them(run, tmp_path):
    stored, out = made(tmp_path), tmp_path / "p.svg"
    code, said, _ = run("embeddings", "picture", stored, "-o", out)
    assert code == 0
    texts = [text.text for text in ET.parse(out).iter(f"{SVG}text")]
    assert {"<b>sad (12)", "[red]happy (12)"} <= set(texts)
    assert "by label" in said


def test_a_matrix_is_drawn_without_groups(run, tmp_path):
    out = tmp_path / "p.svg"
    assert run("embeddings", "picture", made(tmp_path, table=False), "-o", out)[0] == 0
    assert len(list(ET.parse(out).iter(f"{SVG}circle"))) == 24


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "p.png"), "suffix"),
        (("-o", "no/p.svg"), "cannot be written"),
        (("-o", "p.svg", "--by", "age"), "column"),
        (("-o", "p.svg", "--method", "umap"), "method"),
        (("-o", "p.svg", "--perplexity", 5), "PCA has none"),
        (("-o", "p.svg", "--method", "tsne", "--perplexity", 24), "perplexity"),
        (("-o", "p.svg", "--method", "tsne", "--perplexity", "nan"), "perplexity"),
    ],
)
def test_pictures_that_cannot_be_are_wrong_usage(run, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("embeddings", "picture", made(tmp_path), *words)
    assert (code, out) == (2, "")
    assert said in err
    assert not list(tmp_path.glob("p.*"))


def drawings():
    rng = np.random.default_rng(0)
    for n, kinds in ((40, 3), (500, 24), (900, 60), (6, 1)):
        points = rng.normal(size=(n, 2)) * [5, 1]
        groups = [None if i % 17 == 3 else f"group number {i % kinds} with a name that is long" for i in range(n)]
        for method in Method:
            explained, perplexity = ((0.312, 0.105), None) if method is Method.PCA else (None, 12.0)
            yield picture(Projection(np.arange(n), points, method, 7, explained, perplexity), groups, by="site", encoder="tiny")


def test_drawings_keep_to_what_every_drawing_keeps_to():
    made = list(drawings())
    check_texts(made)
    check_shapes(made)
    check_colours(made)
    assert all(one.table.rows and one.note for one in made)


def test_groups_differ_in_shape_or_in_fill_and_not_in_colour_alone():
    made = list(drawings())[2]
    signs = set()
    for shape in drawn(made).iter():
        if shape.tag in {f"{SVG}circle", f"{SVG}polygon"} and shape.get("fill"):
            signs.add((shape.tag, len(shape.get("points", "").split()), shape.get("fill"), shape.get("stroke")))
    assert len(signs) >= 18, "24 groups: diamonds and squares have as many corners"
    texts = [text.text for text in drawn(list(drawings())[4]).iter(f"{SVG}text")]
    assert any("others: 37 groups" in text for text in texts)


def test_a_unit_is_as_long_across_as_it_is_up_and_one_point_is_drawn():
    points = np.array([[0.0, 0], [1, 0], [0, 1], [7, 3]])
    made = picture(Projection(np.arange(4), points, Method.PCA, 0, (0.5, 0.2)), [None] * 4, by=None, encoder="tiny")
    spots = [(float(one.get("cx")), float(one.get("cy"))) for one in drawn(made).iter(f"{SVG}circle")]
    assert len(spots) == 4
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[0][1] - spots[2][1], abs=0.02)
    same = picture(Projection(np.arange(2), np.zeros((2, 2)), Method.PCA, 0, (0.5, 0.2)), ["a", "b"], by="label", encoder="tiny")
    check_shapes([same])
