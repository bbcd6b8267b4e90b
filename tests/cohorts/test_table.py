"""From a manifest to a table on disk and back, by every executor with the same bytes; and the gate applied to it row by row."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from clinical_ser import audio
from clinical_ser.audio import GateLimits
from clinical_ser.audio.quality import QualityMeasures
from clinical_ser.cohorts.building import build_table
from clinical_ser.cohorts.gating import judge_rows, judge_table, quality_columns, quality_of_rows
from clinical_ser.cohorts.manifest import read_manifest
from clinical_ser.cohorts.table import SCHEMA, FeatureTable, RowProblem, read_table, write_csv, write_table
from clinical_ser.errors import InvalidValueError, ManifestError, TableError
from clinical_ser.features.extraction import apply_gate, extract, feature_names, fingerprints
from tests import signals
from tests.tables import table_of

MANIFEST = """path,subject,label,score,sex,age,start,end,ward
a.wav,S1,happy,4,f,31,,,north
b.wav,S2,sad,,m,,,,south
missing.wav,S3,sad,9,f,50,,,north
a.wav,S1,happy,4,f,31,0.2,1.0,north
,S9,sad,1,f,20,,,north
empty.wav,S4,sad,12,m,44,,,
noisy.wav,S5,happy,7,o,27.5,,,south
"""


def spoken(seed, snr_db=45.0):
    sentence = signals.sentence(phrases=3, syllables=4, lead_s=0.3, f0_hz=115.0 + 13 * seed, seed=seed)
    return signals.add_noise(sentence.samples, snr_db, speech_s=sentence.speech_s, seed=seed)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jane_doe")
    for name, samples in {"a": spoken(0), "b": spoken(1), "noisy": spoken(2, 18.0)}.items():
        soundfile.write(folder / f"{name}.wav", samples, signals.RATE_HZ)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "manifest.csv").write_text(MANIFEST)
    return read_manifest(folder / "manifest.csv")


@pytest.fixture(scope="module")
def table(manifest):
    return build_table(manifest)


def file_bytes(table, folder):
    write_table(table, folder / "table.parquet")
    return (folder / "table.parquet").read_bytes()


# Building


def test_every_row_is_in_the_table_or_among_the_problems(table):
    assert table.frame["row"].tolist() == [1, 2, 4, 7]
    assert [problem.row for problem in table.problems] == [3, 5, 6]
    assert all(problem.reason for problem in table.problems)


def test_columns_stand_in_the_order_of_the_contract(table):
    names = list(table.frame.columns)
    assert names[:11] == ["row", "recording", "subject", "label", "score", "sex", "age", "start", "end", "ward", "duration_s"]
    assert all(name.startswith("quality.") for name in names[11 : -len(table.feature_names)])
    assert names[-len(table.feature_names) :] == list(table.feature_names) == list(feature_names())


def test_what_the_manifest_says_is_carried_along(table):
    assert table.frame["label"].tolist() == ["happy", "sad", "happy", "happy"]
    np.testing.assert_array_equal(table.frame["score"], [4, np.nan, 4, 7])
    assert table.frame["ward"].tolist() == ["north", "south", "north", "south"]


def test_rows_hold_the_features_of_their_own_recording(manifest, table):
    paths = manifest.frame.set_index("row")["path"]
    for row, start, end in [(1, None, None), (2, None, None), (4, 0.2, 1.0)]:
        vector = extract(audio.load(paths[row], start=start, end=end))
        np.testing.assert_array_equal(table.features[table.frame["row"] == row][0], vector.values)


def test_the_table_names_the_code_that_made_it(table):
    assert table.extractors == fingerprints()


def test_reasons_for_missing_values_are_counted(table):
    for name, reasons in table.missing.items():
        assert sum(reasons.values()) == np.isnan(table.frame[name]).sum()
    assert set(table.missing) == {name for name in table.feature_names if table.frame[name].isna().any()}


def test_no_path_gets_into_the_table(table, tmp_path):
    assert "path" not in table.frame
    content = file_bytes(table, tmp_path)
    assert b"doe" not in content
    assert b".wav" not in content


@pytest.mark.parametrize("column", ["recording", "duration_s", "quality.snr_db", "timing.pause_count"])
def test_a_manifest_column_with_a_name_of_ours_is_refused(manifest, column):
    clashing = replace(manifest, frame=manifest.frame.assign(**{column: 1}))
    with pytest.raises(ManifestError, match=column):
        build_table(clashing)


def test_processes_and_cache_give_the_same_bytes(manifest, table, tmp_path):
    expected = file_bytes(table, tmp_path)
    assert file_bytes(build_table(manifest, workers=2, cache=tmp_path / "cache"), tmp_path) == expected
    assert file_bytes(build_table(manifest, cache=tmp_path / "cache"), tmp_path) == expected


def test_a_cohort_without_one_good_recording_is_an_empty_table_with_its_problems(manifest, tmp_path):
    bad = replace(manifest, frame=manifest.frame[manifest.frame["row"].isin([3, 6])].reset_index(drop=True), problems=())
    empty = build_table(bad)
    assert len(empty.frame) == 0
    assert len(empty.problems) == 2
    write_table(empty, tmp_path / "empty.parquet")
    back = read_table(tmp_path / "empty.parquet")
    assert back.features.shape == (0, len(feature_names()))
    assert not len(judge_table(back, GateLimits()).usable)


KILLED_RUN = """
    import sys
    from pathlib import Path
    from clinical_ser.cohorts.building import build_table
    from clinical_ser.cohorts.manifest import read_manifest
    build_table(read_manifest(Path(sys.argv[1])), workers=2, cache=Path(sys.argv[2]), progress=lambda outcome: print(outcome.index, flush=True))
"""


def test_a_run_that_was_killed_ends_in_the_same_bytes(tmp_path):
    lines = ["path,subject"]
    for seed in range(8):
        soundfile.write(tmp_path / f"{seed}.wav", spoken(seed), signals.RATE_HZ)
        lines.append(f"{seed}.wav,S{seed % 3}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    arguments = [sys.executable, "-c", textwrap.dedent(KILLED_RUN), str(tmp_path / "manifest.csv"), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE) as run:
        finished = len([run.stdout.readline() for _ in range(3)])
        os.kill(run.pid, signal.SIGKILL)
    time.sleep(0.5)  # its workers notice
    manifest = read_manifest(tmp_path / "manifest.csv")
    heard = []
    resumed = build_table(manifest, cache=tmp_path / "cache", progress=heard.append)
    assert finished <= sum(outcome.extraction.cached for outcome in heard) < 8
    assert file_bytes(resumed, tmp_path) == file_bytes(build_table(manifest), tmp_path)


# On disk


def test_a_table_comes_back_bit_for_bit_and_gives_the_same_bytes_again(table, tmp_path):
    first = file_bytes(table, tmp_path)
    back = read_table(tmp_path / "table.parquet")
    assert back.features.tobytes() == table.features.tobytes()
    assert (back.feature_names, back.extractors, back.problems, back.missing) == (
        table.feature_names,
        table.extractors,
        table.problems,
        table.missing,
    )
    pd.testing.assert_frame_equal(back.frame, table.frame, check_dtype=False)
    assert file_bytes(back, tmp_path) == first


def test_the_metadata_can_be_read_without_us(table, tmp_path):
    file_bytes(table, tmp_path)
    about = json.loads(pq.read_schema(tmp_path / "table.parquet").metadata[b"clinical-ser"])
    assert about["schema"] == SCHEMA
    assert about["feature_names"] == list(table.feature_names)
    assert about["problems"] == [[problem.row, problem.reason] for problem in table.problems]


def test_a_table_is_its_owners_only_and_leaves_nothing_beside_it(table, tmp_path):
    file_bytes(table, tmp_path)
    assert (tmp_path / "table.parquet").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_a_table_that_cannot_be_written_leaves_the_old_one(table, tmp_path):
    before = file_bytes(table, tmp_path)
    mixed = replace(table, frame=table.frame.assign(ward=[1, "two", b"3", None]))
    with pytest.raises(TableError, match="several types"):
        write_table(mixed, tmp_path / "table.parquet")
    assert (tmp_path / "table.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def damaged(content):
    yield "text", b"row,subject\n1,S1\n"
    yield "empty", b""
    yield "cut short", content[: len(content) // 2]
    yield "start only", content[:4]
    yield "a column's name is not text", content.replace(b"recording", b"record\xff\xfeg")


def test_what_is_no_table_is_refused_without_its_name(table, tmp_path):
    content = file_bytes(table, tmp_path)
    for kind, broken in damaged(content):
        (tmp_path / "jane.parquet").write_bytes(broken)
        with pytest.raises(TableError) as error:
            read_table(tmp_path / "jane.parquet")
        assert "jane" not in str(error.value), kind
    for absent in ("none.parquet", "."):
        with pytest.raises(TableError, match="cannot be read") as error:
            read_table(tmp_path / absent)
        assert str(tmp_path) not in str(error.value)


def test_another_parquet_file_is_not_taken_for_a_feature_table(tmp_path):
    pd.DataFrame({"subject": ["S1"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(TableError, match="not a feature table"):
        read_table(tmp_path / "other.parquet")


def test_another_schema_is_refused_by_name(table, tmp_path):
    file_bytes(table, tmp_path)
    columns = pq.read_table(tmp_path / "table.parquet")
    about = json.loads(columns.schema.metadata[b"clinical-ser"]) | {"schema": "clinical-ser/feature-table/9"}
    pq.write_table(columns.replace_schema_metadata({b"clinical-ser": json.dumps(about)}), tmp_path / "table.parquet")
    with pytest.raises(TableError, match="feature-table/9"):
        read_table(tmp_path / "table.parquet")


def test_a_lost_feature_column_is_noticed(table, tmp_path):
    file_bytes(table, tmp_path)
    columns = pq.read_table(tmp_path / "table.parquet").drop_columns([table.feature_names[3]])
    pq.write_table(columns, tmp_path / "table.parquet")
    with pytest.raises(TableError, match="lost 1 "):
        read_table(tmp_path / "table.parquet")


def rewritten(path, about=None, frame=None):
    """Change what a table file says about itself, or its columns."""
    columns = pq.read_table(path)
    metadata = columns.schema.metadata
    if frame is not None:
        columns = pa.Table.from_pandas(frame(columns.to_pandas()), preserve_index=False)
    if about is not None:
        metadata = {b"clinical-ser": about(json.loads(metadata[b"clinical-ser"]))}
    pq.write_table(columns.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    "about",
    [
        lambda told: b"{",
        lambda told: b"\xff\xfe",
        lambda told: b"[" * 100_000,
        lambda told: b"[]",
        lambda told: b"null",
        lambda told: b"{}",
        lambda told: json.dumps({"schema": SCHEMA}),
        lambda told: json.dumps({key: value for key, value in told.items() if key != "missing"}),
        lambda told: json.dumps(told | {"feature_names": "row"}),
        lambda told: json.dumps(told | {"feature_names": [["row"]]}),
        lambda told: json.dumps(told | {"feature_names": [*told["feature_names"], "subject"]}),
        lambda told: json.dumps(told | {"feature_names": [*told["feature_names"], "row"]}),
        lambda told: json.dumps(told | {"feature_names": told["feature_names"] * 2}),
        lambda told: json.dumps(told | {"problems": [["jane", 1]]}),
        lambda told: json.dumps(told | {"extractors": []}),
        lambda told: json.dumps(told | {"more": "jane"}),
    ],
)
def test_what_a_table_says_about_itself_is_checked(about, tmp_path):
    write_table(table_of(5), tmp_path / "jane.parquet")
    rewritten(tmp_path / "jane.parquet", about)
    with pytest.raises(TableError, match="extract it again") as error:
        read_table(tmp_path / "jane.parquet")
    assert "jane" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize(
    "frame",
    [
        lambda frame: frame.drop(columns="subject"),
        lambda frame: frame.drop(columns="recording"),
        lambda frame: frame.drop(columns="row"),
        lambda frame: frame.assign(row=frame["row"].astype(str)),
        lambda frame: frame.assign(subject=range(len(frame))),
        lambda frame: frame.assign(subject=[None, *frame["subject"][1:]]),
        lambda frame: frame.assign(**{"timing.pause_mean_s": "jane"}),
    ],
)
def test_the_columns_that_all_else_relies_on_are_checked(frame, tmp_path):
    write_table(table_of(5), tmp_path / "t.parquet")
    rewritten(tmp_path / "t.parquet", frame=frame)
    with pytest.raises(TableError, match="extract it again") as error:
        read_table(tmp_path / "t.parquet")
    assert "jane" not in str(error.value)
    assert "s0001" not in str(error.value)


def test_csv_holds_every_digit(table, tmp_path):
    write_csv(table, tmp_path / "table.csv")
    back = pd.read_csv(tmp_path / "table.csv")
    # pandas reads decimal numbers to within one unit in the last place, not exactly.
    np.testing.assert_allclose(back[list(table.feature_names)].to_numpy(np.float64), table.features, rtol=4e-16)


# The gate


def test_a_row_is_judged_as_its_recording_is(manifest, table):
    limits = GateLimits.for_emotion()
    paths = manifest.frame.set_index("row")["path"]
    gated = judge_table(table, limits)
    for position, (row, report) in enumerate(zip(table.frame["row"], judge_rows(table, limits), strict=True)):
        start, end = (0.2, 1.0) if row == 4 else (None, None)
        recording = audio.load(paths[row], start=start, end=end)
        expected = audio.assess(recording, limits)
        assert report == expected
        assert gated.usable[position] == expected.usable
        np.testing.assert_array_equal(gated.features[position], apply_gate(extract(recording), expected).values)


def test_the_gate_survives_the_disk(table, tmp_path):
    write_table(table, tmp_path / "table.parquet")
    back = read_table(tmp_path / "table.parquet")
    assert list(judge_rows(back, GateLimits())) == list(judge_rows(table, GateLimits()))


def test_noise_switches_features_off_in_its_row_alone_and_is_counted(table):
    gated = judge_table(table, GateLimits.for_emotion())
    off = np.isnan(gated.features) & ~np.isnan(table.features)
    assert off.any(axis=1).tolist() == [False, False, False, True]
    assert {name for name, column in zip(table.feature_names, off.T, strict=True) if column.any()} <= set(gated.switched_off)
    assert all(sum(reasons.values()) == 1 for reasons in gated.switched_off.values())
    assert gated.verdicts["snr"]["warn"] == 1


def test_one_table_serves_tasks_with_different_limits(table):
    assert judge_table(table, GateLimits.for_emotion()).usable.any()
    assert not judge_table(table, GateLimits()).usable.any()  # 10 s of speech


def test_the_tables_own_values_stay_as_measured(table):
    before = table.features
    judge_table(table, GateLimits.for_emotion())
    np.testing.assert_array_equal(table.features, before)


MEASURES = [
    QualityMeasures(12.5, 8.1, 0.6, 33.3, False, 0.0, 8000.0, -21.0, "mp3", 48_000, 0.0, 1e-3, 0.2, True),
    QualityMeasures(0.1, 0.0, None, None, True, 0.5, None, -120.0, "pcm_s16", None, 0.1, -0.2, None, False),
]


def test_measurements_come_back_from_their_columns_as_they_were(tmp_path):
    frame = quality_columns(MEASURES)
    assert list(quality_of_rows(frame)) == MEASURES
    frame.to_parquet(tmp_path / "q.parquet")
    assert list(quality_of_rows(pd.read_parquet(tmp_path / "q.parquet"))) == MEASURES


def test_a_table_without_a_measurement_that_the_gate_needs_is_refused(table):
    older = replace(table, frame=table.frame.drop(columns="quality.snr_db"))
    with pytest.raises(TableError, match="snr_db"):
        judge_table(older, GateLimits())


def test_wrong_sets_are_refused_before_anything_is_read(manifest):
    with pytest.raises(InvalidValueError):
        build_table(manifest, sets=("mfcc",))


def test_a_hundred_thousand_rows_are_written_and_read(tmp_path):
    rows = 100_000
    names = tuple(f"timing.feature_{number}" for number in range(40))
    values = np.random.default_rng(0).standard_normal((rows, len(names)))
    frame = pd.concat(
        [
            pd.DataFrame({"row": range(1, rows + 1), "recording": "r", "subject": [f"S{row % 997}" for row in range(rows)]}),
            pd.DataFrame(values, columns=names),
        ],
        axis=1,
    )
    problems = tuple(RowProblem(row, "The file is empty (0 bytes).") for row in range(1, 5_000))
    write_table(FeatureTable(frame, names, {}, problems), tmp_path / "big.parquet")
    back = read_table(tmp_path / "big.parquet")
    assert back.features.tobytes() == values.tobytes()
    assert back.problems == problems
