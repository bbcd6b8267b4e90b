"""A manifest gives every row back: usable, or with its number and a reason that quotes nobody."""

import csv
import io
import math
import os
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinical_ser.cohorts.manifest import Manifest, labels_for, read_manifest, write_manifest
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION, Task, TaskKind
from clinical_ser.errors import InvalidValueError, ManifestError


def manifest(folder: Path, content: str | bytes, name: str = "manifest.csv") -> Manifest:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(path)


def problems(result: Manifest) -> dict[int, str]:
    return {problem.row: problem.reason for problem in result.problems}


def cells(frame: pd.DataFrame, name: str) -> list[object]:
    return [None if pd.isna(value) else value for value in frame[name]]


def test_reads_every_column_with_its_type(tmp_path: Path) -> None:
    result = manifest(
        tmp_path,
        "path,subject,label,score,site,sex,age,language,device,task,recorded_at,start,end,ward\n"
        "a.wav,007,sad,12.5,north,w,54,de_de,phone,read speech,2024-05-31T09:30:00Z,0.5,30,B2\n"
        "b.wav,008,,,,,,,,,,,,\n",
    )
    assert result.problems == ()
    assert len(result) == 2
    full, bare = result.frame.to_dict("records")
    assert full == {
        "row": 1,
        "path": str(tmp_path / "a.wav"),
        "subject": "007",
        "label": "sad",
        "score": 12.5,
        "site": "north",
        "sex": "female",
        "age": 54.0,
        "language": "de-DE",
        "device": "phone",
        "task": "read speech",
        "recorded_at": "2024-05-31T09:30:00+00:00",
        "start": 0.5,
        "end": 30.0,
        "ward": "B2",
    }
    assert [name for name, value in bare.items() if not pd.isna(value)] == ["row", "path", "subject"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_any_spreadsheet_export_reads_alike(tmp_path: Path, encoding: str, separator: str, newline: str) -> None:
    table = [["Path", " SUBJECT ", "score", "note"], ["ä/a.wav", "Größe 1", "3.5", 'said "hi"'], ["b.wav", "2", "7", "x,y;z"]]
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=newline).writerows(table)
    result = manifest(tmp_path, text.getvalue().encode(encoding))
    assert result.problems == ()
    assert result.frame["path"].tolist() == [str(tmp_path / "ä/a.wav"), str(tmp_path / "b.wav")]
    assert result.frame["subject"].tolist() == ["Größe 1", "2"]
    assert result.frame["score"].tolist() == [3.5, 7.0]
    assert result.frame["note"].tolist() == ['said "hi"', "x,y;z"]


def test_a_decimal_comma_is_read_where_semicolons_separate(tmp_path: Path) -> None:
    assert manifest(tmp_path, "path;subject;start;end\na.wav;1;0,5;2,25\n").frame[["start", "end"]].to_numpy().tolist() == [[0.5, 2.25]]
    assert problems(manifest(tmp_path, 'path,subject,start\na.wav,1,"0,5"\nb.wav,1,1\n')) == {1: "start is not a number"}


def test_excels_separator_line_and_empty_columns_are_no_data(tmp_path: Path) -> None:
    result = manifest(tmp_path, "sep=;\r\npath;subject;;\r\na.wav;1;;\r\n;;;\r\nb.wav;2;;\r\n")
    assert result.frame[["row", "subject"]].to_numpy().tolist() == [[1, "1"], [3, "2"]]
    assert result.problems == ()


def test_windows_paths_are_mapped_and_absolute_ones_reported(tmp_path: Path) -> None:
    result = manifest(tmp_path, "path,subject\naudio\\s1\\a.wav,1\n..\\b.wav,2\nC:\\data\\c.wav,3\n\\\\server\\share\\d.wav,4\n")
    assert result.frame["path"].tolist() == [str(tmp_path / "audio/s1/a.wav"), str(tmp_path.parent / "b.wav")]
    if os.name != "nt":
        assert set(problems(result)) == {3, 4}
        assert "absolute Windows path" in problems(result)[3]


def test_relative_paths_are_taken_from_the_manifests_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/m.csv").write_text("path,subject\na.wav,1\n/data/b.wav,2\n")
    monkeypatch.chdir(tmp_path)
    assert read_manifest(Path("study/m.csv")).frame["path"].tolist() == [str(tmp_path / "study/a.wav"), "/data/b.wav"]


@pytest.mark.parametrize(
    ("columns", "row", "reason"),
    [
        ("path,subject", ",1", "no path"),
        ("path,subject", "a.wav,", "no subject"),
        ("path,subject", "a.wav,NA", "no subject"),
        ("path,subject", "  ,  1", "no path"),
        ("path,subject", "a\x01.wav,1", "the path holds a control character"),
        ("path,subject", "https://host/a.wav,1", "the path is an address; give the path of a local file"),
        ("path,subject,start,end", "a.wav,1,5,5", "start is not before end"),
        ("path,subject,start,end", "a.wav,1,-1,5", "start is below 0"),
        ("path,subject,start,end", "a.wav,1,x,5", "start is not a number"),
        ("path,subject,start,end", "a.wav,1,0,inf", "end is not a number"),
        ("path,subject,age", "a.wav,1,old", "age is not a number"),
        ("path,subject,age", "a.wav,1,140", "age is not between 0 and 120"),
        ("path,subject,age", "a.wav,1,-3", "age is not between 0 and 120"),
        ("path,subject,age", "a.wav,1,1_0", "age is not a number"),
        ("path,subject,score", "a.wav,1,1e999", "score is not a number"),
        ("path,subject,sex", "a.wav,1,1", "sex is none of female, male, other (or f, m, w)"),
        ("path,subject,language", "a.wav,1,Deutsch", "language is not a tag such as en, de or zh-CN"),
        ("path,subject,recorded_at", "a.wav,1,31.05.2024", "recorded_at is not an ISO 8601 date such as 2024-05-31 or 2024-05-31T09:30:00+02:00"),
        ("path,subject,recorded_at", "a.wav,1,2024-02-30", "recorded_at is not an ISO 8601 date such as 2024-05-31 or 2024-05-31T09:30:00+02:00"),
        ("path,subject", "a.wav,1,2", "3 cells where 2 columns are named (a separator inside a value needs quotes)"),
        ("path,subject,age", "a.wav,1", "2 cells where 3 columns are named (a separator inside a value needs quotes)"),
    ],
)
def test_a_bad_row_is_reported_by_number_and_reason(tmp_path: Path, columns: str, row: str, reason: str) -> None:
    padding = "," * (columns.count(",") - 1)
    result = manifest(tmp_path, f"{columns}\ngood.wav,G{padding}\n{row}\nbetter.wav,G{padding}\n")
    assert problems(result) == {2: reason}
    assert result.frame["row"].tolist() == [1, 3]


def test_all_that_is_wrong_with_a_row_is_said_at_once(tmp_path: Path) -> None:
    result = manifest(tmp_path, "path,subject,age,sex\n,,200,?\na.wav,1,,\n")
    assert problems(result) == {1: "no path; no subject; sex is none of female, male, other (or f, m, w); age is not between 0 and 120"}


@pytest.mark.parametrize(("word", "sex"), [("F", "female"), ("w", "female"), ("Male", "male"), ("M", "male"), ("d", "other"), ("女", "female")])
def test_sex_is_normalised(tmp_path: Path, word: str, sex: str) -> None:
    assert manifest(tmp_path, f"path,subject,sex\na.wav,1,{word}\n").frame["sex"].tolist() == [sex]


@pytest.mark.parametrize(("given_date", "iso"), [("2024-05-31", "2024-05-31T00:00:00"), ("2024-05-31 09:30", "2024-05-31T09:30:00")])
def test_dates_become_iso_8601(tmp_path: Path, given_date: str, iso: str) -> None:
    assert manifest(tmp_path, f"path,subject,recorded_at\na.wav,1,{given_date}\n").frame["recorded_at"].tolist() == [iso]


class TestRowsThatClash:
    def test_a_repeated_recording_counts_once(self, tmp_path: Path) -> None:
        result = manifest(tmp_path, "path,subject,label\na.wav,1,x\nb.wav,1,x\n./a.wav,1,x\n")
        assert problems(result) == {3: "the same recording and segment as row 1"}
        assert result.frame["row"].tolist() == [1, 2]

    def test_segments_of_one_recording_are_no_repetition(self, tmp_path: Path) -> None:
        result = manifest(tmp_path, "path,subject,start,end\na.wav,1,0,5\na.wav,1,5,9\na.wav,1,,\na.wav,1,0,5\na.wav,1,,\n")
        assert problems(result) == {4: "the same recording and segment as row 1", 5: "the same recording and segment as row 3"}

    def test_copies_with_different_labels_count_not_at_all(self, tmp_path: Path) -> None:
        result = manifest(tmp_path, "path,subject,label\na.wav,1,sad\na.wav,1,happy\nb.wav,1,sad\n")
        assert set(problems(result)) == {1, 2}
        assert "different labels" in problems(result)[1]

    def test_a_recording_of_two_subjects_is_nobodys(self, tmp_path: Path) -> None:
        result = manifest(tmp_path, "path,subject,start,end\na.wav,1,0,1\na.wav,2,1,2\nb.wav,2,0,1\n")
        assert problems(result) == dict.fromkeys((1, 2), "the same recording is given to more than one subject")

    def test_a_bad_row_does_not_drag_its_copy_along(self, tmp_path: Path) -> None:
        result = manifest(tmp_path, "path,subject,age\na.wav,1,abc\na.wav,1,40\n")
        assert problems(result) == {1: "age is not a number"}
        assert result.frame["row"].tolist() == [2]


class TestFilesThatAreNoManifest:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"\xef\xbb\xbf\n\n", "lacks"),
            (b"sep=;", "lacks"),
            (b"path,subject\n", "no row below"),
            (b"path,subject\n,\n\n", "no usable row"),
            (b"path,subject\n,1\n", "no usable row .rows with a problem: 1.; the first problem, in row 1: no path"),
            (b"path,label\na.wav,x\n", r"lacks \['subject'\]; found \['path', 'label'\] and 0 other"),
            (
                b"file,speaker_id,mood\na.wav,1,x\n",
                r"lacks \['path', 'subject'\].*1 other columns. Rename 'file' to 'path'. Rename 'speaker_id' to 'subject'",
            ),
            (b"path,subject,label,Label\na,b,c,d\n", r"names \['label'\] more than once"),
            (b"path,subject,x,x\na,b,c,d\n", "two columns the same name"),
            (b"path,subject,,x\na,b,c,d\n", "Column 3 .* no name"),
            (b"PK\x03\x04\x14\x00", "workbook.*CSV UTF-8"),
            (b"PAR1 cut short", "Parquet file but is cut short"),
            (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "not UTF-8 text"),
            (bytes(range(8)) * 20, "binary"),
            ("path,subject\nmüller.wav,1\n".encode("latin-1"), "first wrong byte in line 2.*CSV UTF-8"),
            ("path,subject\n录音.wav,1\n".encode("gbk"), "first wrong byte in line 2"),
            (b'path,subject\n"a.wav,1\nb.wav,2\n', "quotation mark is not closed"),
            (b'path,subject\na.wav,"' + b"x" * 200_000 + b'"\n', "near line"),
        ],
    )
    def test_the_error_says_what_to_do(self, tmp_path: Path, content: bytes, message: str) -> None:
        with pytest.raises(ManifestError, match=message) as caught:
            manifest(tmp_path, content)
        assert str(tmp_path) not in str(caught.value)

    def test_a_first_line_of_data_is_not_quoted(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="first line has to hold the column names") as caught:
            manifest(tmp_path, "/home/anna/a.wav,Anna Schmidt\n/home/anna/b.wav,Bob\n")
        assert "nna" not in str(caught.value)

    def test_missing_and_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no manifest at"):
            read_manifest(tmp_path / "none.csv")
        with pytest.raises(ManifestError, match="cannot be read"):
            read_manifest(tmp_path)

    @given(content=st.binary(max_size=300))
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_garbage_never_raises_anything_else(self, tmp_path: Path, content: bytes) -> None:
        for prefix in (b"", b"path,subject,age\n"):
            try:
                result = manifest(tmp_path, prefix + content)
            except ManifestError:
                continue
            assert len(result) + len(result.problems) >= 1


def test_parquet_reads_like_csv_whatever_its_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": ["a.wav", "b.wav", "c.wav"],
            "subject": [7.0, math.nan, 8.0],
            "age": [30, 31, 32],
            "recorded_at": pd.to_datetime(["2024-05-31", "2024-06-01", None]),
            "dose": [0.5, 0.25, 0.125],
        }
    )
    frame.to_parquet(tmp_path / "m.dat")
    result = read_manifest(tmp_path / "m.dat")
    assert problems(result) == {2: "no subject"}
    assert result.frame["subject"].tolist() == ["7", "8"]
    assert cells(result.frame, "recorded_at") == ["2024-05-31T00:00:00", None]
    assert result.frame["dose"].tolist() == [0.5, 0.125]


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    """Also where every one clashes with another: nothing is quadratic. 1 s of CPU each here; the limit is for slow machines."""
    rows = [
        f"audio\\s{index // 10}\\r{index}.wav,S{index // 10},x,{20 + index % 60},F,2024-01-{1 + index % 28:02d},0,{1 + index % 9}"
        for index in range(50_000)
    ]
    started = time.process_time()
    result = manifest(tmp_path, "\n".join(["path,subject,label,age,sex,recorded_at,start,end", *rows, *rows]))
    assert time.process_time() - started < 8
    assert (len(result), len(result.problems)) == (50_000, 50_000)


class TestWriting:
    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_what_is_written_reads_back(self, tmp_path: Path, suffix: str) -> None:
        first = manifest(tmp_path, 'path,subject,score,sex,start,end,note\nin/a.wav,1,3.5,f,0.1,2,"a, ""b"""\n/else/b.wav,2,,,,,=1+1\n')
        write_manifest(first.frame, tmp_path / f"out{suffix}")
        second = read_manifest(tmp_path / f"out{suffix}")
        pd.testing.assert_frame_equal(first.frame, second.frame)
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []

    def test_paths_below_the_folder_are_written_relative(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"row": [1, 2], "subject": ["1", "2"], "path": [str(tmp_path / "in/a.wav"), "/else/b.wav"]})
        write_manifest(frame, tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_bytes() == b"path,subject\nin/a.wav,1\n/else/b.wav,2\n"

    def test_bad_calls_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="subject"):
            write_manifest(pd.DataFrame({"path": ["a"]}), tmp_path / "m.csv")
        with pytest.raises(InvalidValueError, match="parquet"):
            write_manifest(pd.DataFrame({"path": ["a"], "subject": ["1"]}), tmp_path / "m.xlsx")

    # A cell of blanks, or a word that stands for "missing", is no value; control characters are refused in paths alone.
    @given(
        names=st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12), min_size=1, max_size=6, unique=True),
        suffix=st.sampled_from([".csv", ".parquet"]),
    )
    @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_subject_and_note_survive(self, tmp_path: Path, names: list[str], suffix: str) -> None:
        names = [name for name in {name.strip() for name in names} if name not in {"", "NA", "N/A", "#N/A", "NaN", "NULL"}]
        frame = pd.DataFrame({"path": [f"/x/{index}.wav" for index in range(len(names))], "subject": names, "note": names})
        if frame.empty:
            return
        write_manifest(frame, tmp_path / f"m{suffix}")
        result = read_manifest(tmp_path / f"m{suffix}")
        assert result.frame["subject"].tolist() == names
        assert result.frame["note"].tolist() == names


class TestLabels:
    def frame(self, **columns: list[object]) -> pd.DataFrame:
        size = len(next(iter(columns.values())))
        return pd.DataFrame({"row": range(11, 11 + size), "subject": [str(index) for index in range(size)], **columns})

    def test_score_at_the_cut_off_is_positive(self) -> None:
        labels = labels_for(DEPRESSION, self.frame(score=[9.0, 9.99, 10.0, 24.0, math.nan]))
        assert labels.values.tolist() == ["not_depressed", "not_depressed", "depressed", "depressed", None]
        assert [(problem.row, problem.reason) for problem in labels.problems] == [(15, "no label")]

    def test_label_words_match_whatever_their_case_and_binary_ones_as_digits(self) -> None:
        labels = labels_for(DEPRESSION, self.frame(label=["Depressed", "not_depressed ", "1", "0"]))
        assert labels.values.tolist() == ["depressed", "not_depressed", "depressed", "not_depressed"]
        assert labels.problems == ()

    def test_unknown_labels_are_reported_with_the_known_ones_and_not_quoted(self) -> None:
        labels = labels_for(DEPRESSION, self.frame(label=["depressed", "Anna Schmidt"]))
        assert labels.values.tolist() == ["depressed", None]
        assert [(problem.row, problem.reason) for problem in labels.problems] == [
            (12, "unknown label, expected one of ['not_depressed', 'depressed']")
        ]

    def test_a_label_against_its_score_is_withheld(self) -> None:
        labels = labels_for(DEPRESSION, self.frame(label=["depressed", "depressed", None], score=[3.0, 12.0, 12.0]))
        assert labels.values.tolist() == [None, "depressed", "depressed"]
        assert [problem.row for problem in labels.problems] == [11]
        assert "disagree" in labels.problems[0].reason

    def test_a_score_of_another_questionnaire_does_not_decide(self) -> None:
        frame = self.frame(label=["depressed", None], score=[3.0, 60.0], score_name=["SDS", "SDS"])
        labels = labels_for(DEPRESSION, frame)
        assert labels.values.tolist() == ["depressed", None]
        assert [problem.row for problem in labels.problems] == [12]

    def test_classes_come_from_the_labels_where_the_task_names_none(self) -> None:
        labels = labels_for(EMOTION, self.frame(label=["sad", "happy", "sad", None]))
        assert labels.classes == ("happy", "sad")
        assert labels.values.tolist() == ["sad", "happy", "sad", None]

    def test_a_class_named_like_a_digit_keeps_its_name(self) -> None:
        task = Task(name="t", kind=TaskKind.BINARY, classes=("1", "0"))
        assert labels_for(task, self.frame(label=["1", "0"])).values.tolist() == ["1", "0"]

    @pytest.mark.parametrize("task", [DEPRESSION, EMOTION])
    def test_nothing_to_learn_from_is_an_error(self, task: Task) -> None:
        with pytest.raises(ManifestError, match="no label column"):
            labels_for(task, self.frame(age=[30.0]))

    def test_rows_are_counted_where_the_frame_does_not_number_them(self) -> None:
        labels = labels_for(EMOTION, pd.DataFrame({"label": ["a", None]}, index=[40, 50]))
        assert labels.problems[0].row == 2
        assert labels.values.index.tolist() == [40, 50]
