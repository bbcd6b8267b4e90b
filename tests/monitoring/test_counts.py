"""What is counted adds up, is of nobody, and comes back from disk as it was."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import numpy as np
import pytest

from clinical_ser.cohorts.table import FeatureTable
from clinical_ser.errors import InvalidValueError, MonitoringError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.models.trained import TrainedModel
from clinical_ser.monitoring.batches import batches_of_table
from clinical_ser.monitoring.cells import MISSING, cell_of, expected_index, stability_index
from clinical_ser.monitoring.counts import OTHER, Counts, Grid, Observation, counts_of, observations_of, observe
from clinical_ser.monitoring.journal import Journal
from tests.tables import GOOD, table_of

DIGEST = "a" * 64
DAY = date(2030, 1, 31)
WHOLE = Counts(model=DIGEST, recordings=1).to_bytes()


@pytest.fixture(scope="module")
def model(bundle):
    return TrainedModel.from_bundle(read_bundle(bundle))


@pytest.fixture(scope="module")
def table():
    quality = [GOOD] * 117 + [dataclasses.replace(GOOD, speech_s=1.0)] * 3
    made = table_of(60, rows_each=2, seed=5, quality=quality)
    return FeatureTable(made.frame.assign(device=["tablet", "phone"] * 60), made.feature_names, made.extractors)


def with_columns(table, **columns):
    return FeatureTable(table.frame.assign(**columns), table.feature_names, table.extractors)


def test_an_edge_belongs_to_the_cell_above_it_and_what_is_missing_has_a_cell_of_its_own():
    assert cell_of(np.array([-9.0, -2.0, 0.0, 1.999, 2.0, np.inf, np.nan])).tolist() == [0, 1, 5, 8, 9, 9, MISSING]


def test_counts_of_parts_add_up_to_the_counts_of_the_whole(model, table):
    seen = [one for _, one in observations_of(Grid(model), table)]
    parts = [Counts.of(DIGEST, seen[:13]), Counts.of(DIGEST, seen[13:40]), Counts.of(DIGEST, seen[40:])]
    whole = counts_of(model, DIGEST, table)
    assert parts[2] + parts[0] + parts[1] == whole
    assert Counts(model=DIGEST) + whole == whole
    assert Counts.from_bytes(whole.to_bytes()) == whole


def test_a_person_counts_once_with_the_first_usable_recording_for_the_score(model, table):
    counts = counts_of(model, DIGEST, table)
    # The last three rows are of two people: of one the second recording fails, of the other both.
    assert (counts.recordings, counts.usable) == (60, 59)
    assert counts.names["status"]["not_usable"] == 1
    assert counts.failed == {"speech": 1}
    assert counts.names["device"] == {"tablet": 60}
    assert sum(counts.names["status"].values()) == 60
    assert all(sum(cells) == 59 for cells in counts.cells.values())


def test_one_recording_is_counted_as_it_is_in_a_table(model, table):
    grid = Grid(model)
    (_, first), *_ = observations_of(grid, table)
    x = table.features[0, [table.feature_names.index(name) for name in model.features]]
    seen = observe(grid, x, status=first.names["status"], names={"device": "tablet", "codec": "pcm_s16", "sex": "female", "site": None})
    assert seen == first
    refused = observe(grid, None, status="not_usable", failed=("snr", "snr"))
    assert Counts.of(DIGEST, [seen, refused]).failed == {"snr": 1}
    with pytest.raises(InvalidValueError):
        observe(grid, None, status="not_usable", names={"subject": "jane"})
    with pytest.raises(InvalidValueError):
        observe(grid, x[:-1], status="flagged")


def test_a_text_in_place_of_a_device_is_counted_without_its_words(model):
    seen = observe(Grid(model), None, status="not_usable", names={"device": "the phone of Jane Doe, " * 9, "codec": "\x1b[31m"})
    assert seen.names["device"] == seen.names["codec"] == OTHER


def test_many_names_are_counted_together_after_the_most_frequent():
    many = [Observation(names={"device": f"d{k}"}) for k in range(500)] + [Observation(names={"device": "d499"})]
    counts = Counts.of(DIGEST, many)
    assert len(counts.names["device"]) == 201
    assert counts.names["device"]["d499"] == 2
    assert sum((counts + counts).names["device"].values()) == 1002


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"model":"jane"}',
        b'{"schema_id":"clinical-ser/counts/2"}',
        b'{"schema_id":"clinical-ser/counts/1","model":"' + b"a" * 64 + b'","recordings":-1}',
        b'{"schema_id":"clinical-ser/counts/1","model":"' + b"a" * 64 + b'","recordings":1,"cells":{"score":[1]}}',
        b'{"schema_id":"clinical-ser/counts/1","model":"' + b"a" * 64 + b'","recordings":1,"failed":{"jane":2}}',
        b'{"schema_id":"clinical-ser/counts/1","model":"' + b"a" * 64 + b'","recordings":1,"jane":1}',
        b'{"schema_id":"clinical-ser/counts/1","model":"' + b"a" * 64 + b'","recordings":1.5}',
    ],
)
def test_what_is_no_counts_is_refused_without_being_quoted(raw):
    with pytest.raises(MonitoringError) as refused:
        Counts.from_bytes(raw)
    assert "jane" not in str(refused.value)


def test_counts_of_two_models_are_not_added():
    with pytest.raises(InvalidValueError):
        Counts(model=DIGEST) + Counts(model="b" * 64)


def test_a_table_of_other_features_is_refused(model, table):
    with pytest.raises(MonitoringError, match="lacks"):
        counts_of(model, DIGEST, FeatureTable(table.frame, table.feature_names[:5], table.extractors))
    with pytest.raises(MonitoringError, match="another version"):
        counts_of(model, DIGEST, FeatureTable(table.frame, table.feature_names, dict.fromkeys(table.extractors, "0")))


def test_a_table_is_cut_into_days_where_it_has_dates_and_into_batches_where_not(model, table):
    days = [(DAY + timedelta(days=int(k) % 3)).isoformat() for k in table.frame["row"]]
    dated = batches_of_table(Grid(model), DIGEST, with_columns(table, recorded_at=days))
    # Nobody's first recording is of the third day.
    assert [batch.day for batch in dated] == [DAY, DAY + timedelta(days=1)]
    assert sum(batch.counts.recordings for batch in dated) == 60
    undated = batches_of_table(Grid(model), DIGEST, table, rows=25)
    assert [batch.counts.recordings for batch in undated] == [25, 25, 10]
    assert undated[0].day is None
    with pytest.raises(MonitoringError, match="119 of 120"):
        batches_of_table(Grid(model), DIGEST, with_columns(table, recorded_at=["2030-01-01", *["soon"] * 119]))


def test_the_index_is_nought_for_equal_shares_and_its_chance_part_is_as_stated():
    rng = np.random.default_rng(0)
    assert stability_index([10, 20], [100, 200]) == 0
    assert np.isnan(stability_index([0, 0], [1, 1]))
    drawn = [stability_index(rng.multinomial(200, [0.1] * 10), rng.multinomial(100, [0.1] * 10)) for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(expected_index(10, 200, 100), rel=0.12)


def add_often(folder, times):
    for _ in range(times):
        Journal(folder).add(DAY, Counts(model=DIGEST, recordings=1, failed={"snr": 1}))


def test_two_writers_lose_nothing_to_each_other(tmp_path):
    with ThreadPoolExecutor(2) as writers:
        list(writers.map(add_often, [tmp_path / "journal"] * 2, [25] * 2))
    [(day, counts)] = Journal(tmp_path / "journal").between(DIGEST)
    assert (day, counts.recordings, counts.failed) == (DAY, 50, {"snr": 50})


def test_what_a_killed_writer_leaves_behind_changes_nothing(tmp_path):
    # Half of a file under a name of its own, and a lock that nobody holds: `cohorts.table.replaced` is killed for real in tests/cohorts.
    add_often(tmp_path, 3)
    (tmp_path / DIGEST / f".{DAY}.json.abcdefgh").write_bytes(Counts(model=DIGEST, recordings=9).to_bytes()[:20])
    assert (tmp_path / "lock").exists()
    add_often(tmp_path, 1)
    [(day, counts)] = Journal(tmp_path).between(DIGEST)
    assert (day, counts.recordings) == (DAY, 4)
    assert (tmp_path / DIGEST / f"{DAY}.json").stat().st_mode & 0o077 == 0


def test_a_journal_returns_the_days_asked_for_in_order_and_only_one_models(tmp_path):
    journal = Journal(tmp_path / "new" / "journal")
    assert journal.between(DIGEST) == ()
    assert journal.models() == ()
    for offset in (3, 1, 2):
        journal.add(DAY + timedelta(days=offset), Counts(model=DIGEST, recordings=offset))
    journal.add(DAY, Counts(model="b" * 64, recordings=7))
    journal.add(DAY, Counts(model=DIGEST))  # nothing to write
    assert [counts.recordings for _, counts in journal.between(DIGEST)] == [1, 2, 3]
    assert [counts.recordings for _, counts in journal.between(DIGEST, DAY + timedelta(days=2), DAY + timedelta(days=2))] == [2]
    assert journal.models() == (DIGEST, "b" * 64)
    with pytest.raises(InvalidValueError):
        journal.between("../..")


@pytest.mark.parametrize(
    "content", [b"", b"{}", WHOLE.replace(b"a" * 64, b"b" * 64), Counts(model=DIGEST, recordings=1).to_bytes()[:-9], b" " * (17 * 2**20)]
)
def test_a_damaged_day_is_named_and_left_as_it_is(tmp_path, content):
    journal = Journal(tmp_path)
    journal.add(DAY, Counts(model=DIGEST, recordings=1))
    file = tmp_path / DIGEST / f"{DAY}.json"
    file.write_bytes(content)
    for act in (lambda: journal.between(DIGEST), lambda: journal.add(DAY, Counts(model=DIGEST, recordings=1))):
        with pytest.raises(MonitoringError, match=str(DAY)) as refused:
            act()
        assert str(tmp_path) not in str(refused.value)
    assert file.read_bytes() == content


def test_a_journal_where_a_file_is_in_the_way_says_so_without_a_path(tmp_path):
    (tmp_path / "jane").write_text("not a folder")
    with pytest.raises(MonitoringError) as refused:
        Journal(tmp_path / "jane").add(DAY, Counts(model=DIGEST, recordings=1))
    assert "jane" not in str(refused.value)
