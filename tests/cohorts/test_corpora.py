"""Each adapter reads a small tree built in its publisher's layout, and refuses another one with counts and no names."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from clinical_ser.cohorts import corpora
from clinical_ser.cohorts.corpora import BUILT_IN, Clip, Corpus, get_corpus, list_corpora
from clinical_ser.cohorts.corpora.base import DEPRESSED, NOT_DEPRESSED
from clinical_ser.cohorts.corpora.turns import Span, participant_turns
from clinical_ser.cohorts.manifest import labels_for, read_manifest, write_manifest
from clinical_ser.cohorts.splits import official
from clinical_ser.cohorts.tasks import DEPRESSION, EMOTION
from clinical_ser.errors import CorpusLayoutError, InvalidValueError, SubjectLeakError


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def text(root: Path, name: str, *lines: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def build_ravdess(root: Path) -> None:
    files(root, "Actor_01/03-01-05-02-01-01-01.wav", "Actor_02/03-01-01-01-02-02-02.wav", "Actor_02/03-02-01-01-02-02-02.wav")
    text(root, "emobox_folds.csv", "fold,test_actors", "1,1 11", "2,2 12")


def build_emodb(root: Path) -> None:
    files(root, "wav/03a01Wa.wav", "wav/08b02Tc.wav", "wav/16a07Nb.wav")


def build_crema_d(root: Path) -> None:
    files(root, "AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1002_IEO_SAD_HI.wav")
    text(root, "VideoDemographics.csv", "ActorID,Age,Sex,Race,Ethnicity", "1001,51,Male,Caucasian,Not Hispanic", "1002,21,Female,Asian,Not Hispanic")


def build_tess(root: Path) -> None:
    files(root, "OAF_angry/OAF_back_angry.wav", "YAF_pleasant_surprised/YAF_bar_ps.wav", "OAF_neutral/OA_bite_neutral.wav")


def build_iemocap(root: Path) -> None:
    turns = ("Ses01F_impro01_F000", "Ses01F_impro01_M003", "Ses01M_script01_1_F002")
    files(root, *(f"Session1/sentences/wav/{turn.rsplit('_', 1)[0]}/{turn}.wav" for turn in turns))
    header = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
    text(
        root,
        "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt",
        header,
        "",
        "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]",
        "C-E2:\tNeutral;\t()",
        "[10.0100 - 11.3925]\tSes01F_impro01_M003\texc\t[4.0000, 3.5000, 3.0000]",
    )
    text(root, "Session1/dialog/EmoEvaluation/Ses01M_script01_1.txt", header, "[1.0 - 2.5]\tSes01M_script01_1_F002\txxx\t[2.5000, 3.0000, 2.0000]")


MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def build_meld(root: Path) -> None:
    text(root, "train/train_sent_emo.csv", MELD_HEADER, '1,"Hi, there",Chandler,joy,positive,0,0,8,21,"00:16:16,059","00:16:21,731"')
    text(root, "dev_sent_emo.csv", MELD_HEADER, "1,No,The Waiter,neutral,neutral,0,0,1,1,0,0", "2,Oh,Monica,surprise,negative,110,7,1,1,0,0")
    text(root, "test_sent_emo.csv", MELD_HEADER, "1,Why?,Chandler,anger,negative,5,2,1,1,0,0")
    files(root, "train/train_splits/dia0_utt0.mp4", "dev_splits_complete/dia0_utt0.mp4", "output_repeated_splits_test/dia5_utt2.mp4")
    files(root, "output_repeated_splits_test/._dia5_utt2.mp4")


def build_casia(root: Path) -> None:
    files(root, "相同文本300/liuchanhg/angry/201.wav", "不同文本100/Chang.Liu/normal/401.wav", "相同文本300/wangzhe/surprise/202.wav")


def build_ch_sims(root: Path) -> None:
    header = "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode"
    text(root, "label.csv", header, "video_0001,1,你好,-0.8,0.2,-1.0,0.0,Negative,train", "video_0002,0003,好,0.4,0.4,0.6,0.4,Positive,test")
    files(root, "Raw/video_0001/0001.mp4", "Raw/video_0002/0003.mp4")


def build_daic_woz(root: Path) -> None:
    items = "PHQ8_NoInterest,PHQ8_Depressed,PHQ8_Sleep,PHQ8_Tired,PHQ8_Appetite,PHQ8_Failure,PHQ8_Concentrating,PHQ8_Moving"
    header = f"Participant_ID,PHQ8_Binary,PHQ8_Score,Gender,{items}"
    text(root, "train_split_Depression_AVEC2017.csv", header, "303,0,0,0,0,0,0,0,0,0,0,0", "409,0,10,1,1,1,1,1,1,1,2,2")
    text(root, "dev_split_Depression_AVEC2017.csv", header, "318,1,15,1,2,2,2,2,2,2,2,1")
    text(root, "full_test_split.csv", "Participant_ID,PHQ_Binary,PHQ_Score,Gender", "451,1,20,0")
    head = "start_time\tstop_time\tspeaker\tvalue"
    text(
        root,
        "303_P/303_TRANSCRIPT.csv",
        head,
        "1.0\t4.0\tParticipant\ttalking to the experimenter",
        "36.5\t39.6\tEllie\thi_i'm_ellie",
        "40.0\t42.0\tParticipant\tgood",
        "43.5\t47.0\tParticipant\tfrom the coast",
        "45.0\t45.5\tEllie\tmhm",
        "48.0\t50.0\tEllie\thow are you",
        "50.5\t50.9\tParticipant\tyes",
        "",
        "60.0\t62.0\tParticipant\tscrubbed_entry",
        "62.5\t66.0\tParticipant\tand so on",
    )
    text(root, "409_P/409_TRANSCRIPT.csv", head, "0.0\t1.0\tEllie\thi", "2.0\t5.0\tParticipant\twell")
    text(root, "318_P/318_TRANSCRIPT.csv", head, "0.0\t1.0\tEllie\thi", "2.0\t5.0\tParticipant\twell")
    text(root, "451_P/451_TRANSCRIPT.csv", head, "2.0\t5.0\tParticipant\twell", "5.3\t7.0\tParticipant\tyes", "12.0\t15.0\tParticipant\tthen")
    files(root, *(f"{code}_P/{code}_AUDIO.wav" for code in (303, 409, 318, 451)))


def build_e_daic(root: Path) -> None:
    header = "Participant_ID,Gender,PHQ_Binary,PHQ_Score,PCL-C (PTSD),PTSD Severity"
    text(root, "labels/train_split.csv", header, "303,female,0,0,0,17.0")
    text(root, "labels/dev_split.csv", header, "600,male,1,12,0,28.0")
    text(root, "labels/test_split.csv", header, "718,male,0,3,0,20.0")
    for code in (303, 600, 718):
        text(
            root,
            f"data/{code}_P/{code}_Transcript.csv",
            "Start_Time,End_Time,Text,Confidence",
            "14.3,15.1,so I'm going to,0.93",
            '15.3,17.0,"well, yes",0.9',
            "19.0,19.5,no,0.8",
        )
        files(root, f"data/{code}_P/{code}_AUDIO.wav")


def build_androids(root: Path) -> None:
    files(root, "Reading-Task/audio/HC/01_CF56_1.wav", "Reading-Task/audio/PT/01_PM65_X.wav")
    files(root, "Interview-Task/audio_clip/01_CF56_1/01_CF56_1_1.wav", "Interview-Task/audio_clip/01_CF56_1/01_CF56_1_2.wav")
    text(
        root,
        "fold-lists.csv",
        "Read,,,,,,,Interview,,,,",
        "fold1,fold2,fold3,fold4,fold5,,,fold1,fold2,fold3,fold4,fold5",
        "'01_CF56_1','01_PM65_X',,,,,,,,'01_CF56_1',,",
    )


MODMA_TABLE = "subjects_information_audio_lanzhou_2015"
MODMA_HEADER = ["subject id", "type", "age", "gender", "education（years）", "PHQ-9", "CTQ-SF", "LES", "SSRS", "GAD-7", "PSQI"]
MODMA_ROWS = [[2010002, "MDD", 18, "F", 12, 23, 63, 10, 30, 18, 12], [2020008, "HC", 42, "M", 16, 4, 40, 2, 45, 1, 5]]


def build_modma(root: Path) -> None:
    text(root, f"{MODMA_TABLE}.csv", ",".join(MODMA_HEADER), *(",".join(map(str, row)) for row in MODMA_ROWS))
    files(root, "02010002/01.wav", "02010002/19.wav", "02010002/20.wav", "02010002/29.wav", "02020008/18.wav", "02990000/01.wav")


def build_eatd(root: Path) -> None:
    for folder, score in (("t_1", "52.5"), ("v_1", "53.75")):
        files(root, *(f"{folder}/{question}{suffix}.wav" for question in ("positive", "neutral", "negative") for suffix in ("", "_out")))
        text(root, f"{folder}/new_label.txt", score)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "ravdess": build_ravdess,
    "emodb": build_emodb,
    "crema-d": build_crema_d,
    "tess": build_tess,
    "iemocap": build_iemocap,
    "meld": build_meld,
    "casia": build_casia,
    "ch-sims": build_ch_sims,
    "daic-woz": build_daic_woz,
    "e-daic": build_e_daic,
    "androids": build_androids,
    "modma": build_modma,
    "eatd": build_eatd,
}


def read(name: str, root: Path) -> pd.DataFrame:
    BUILDERS[name](root)
    return get_corpus(name).read(root)


def column(frame: pd.DataFrame, name: str) -> list[object]:
    return [None if pd.isna(value) else value for value in frame[name]]


def by_name(frame: pd.DataFrame, name: str) -> dict[str, object]:
    return {Path(path).name: value for path, value in zip(frame["path"], column(frame, name), strict=True)}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
class TestEveryAdapter:
    def test_says_what_the_corpus_is(self, name: str) -> None:
        corpus = get_corpus(name)
        facts = (corpus.title, corpus.citation, corpus.licence, corpus.official_split, corpus.layout)
        assert corpus.name == name
        assert all(fact.strip() for fact in facts)
        assert corpus.url.startswith("http")
        assert corpus.task in {"emotion", "depression"}
        assert len(set(corpus.classes)) >= 2

    def test_rows_are_a_manifest_of_the_task(self, name: str, tmp_path: Path) -> None:
        """What an adapter writes is read back without a problem, and its labels are classes of the task."""
        frame = read(name, tmp_path / "corpus")
        write_manifest(frame, tmp_path / "manifest.csv")
        manifest = read_manifest(tmp_path / "manifest.csv")
        corpus = get_corpus(name)
        assert manifest.problems == ()
        assert manifest.frame["path"].tolist() == frame["path"].tolist()
        assert set(manifest.frame["label"].dropna()) <= set(corpus.classes)
        labels = labels_for(DEPRESSION if corpus.task == "depression" else EMOTION, manifest.frame)
        assert {problem.reason for problem in labels.problems} <= {"no label"}

    def test_every_path_exists_and_no_row_repeats(self, name: str, tmp_path: Path) -> None:
        frame = read(name, tmp_path)
        assert all(Path(path).is_file() for path in frame["path"])
        assert not frame.duplicated([key for key in ("path", "start") if key in frame]).any()
        assert set(frame["language"]) == {get_corpus(name).languages[0]}

    @pytest.mark.parametrize("suffix", [".flac"])
    def test_flac_copies_read_alike(self, name: str, suffix: str, tmp_path: Path) -> None:
        BUILDERS[name](tmp_path)
        before = get_corpus(name).read(tmp_path)
        for path in [*tmp_path.rglob("*.wav"), *tmp_path.rglob("*.mp4")]:
            path.rename(path.with_suffix(suffix))
        after = get_corpus(name).read(tmp_path)
        pd.testing.assert_frame_equal(before.drop(columns="path"), after.drop(columns="path"))
        assert set(after["path"].map(lambda path: Path(path).suffix)) == {suffix}

    def test_another_layout_is_refused_without_names(self, name: str, tmp_path: Path) -> None:
        files(tmp_path, "Jane Doe/interview 1.wav", "Jane Doe/interview 2.wav", "notes.txt")
        with pytest.raises(CorpusLayoutError, match=r"Expected .* Found 1 folders in it, 2 audio, 0 video and 1 table") as caught:
            get_corpus(name).read(tmp_path)
        assert "Jane" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    def test_a_root_that_is_no_folder_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(CorpusLayoutError, match="not a folder"):
            get_corpus(name).read(tmp_path / "nowhere")

    def test_a_clip_in_two_formats_is_refused(self, name: str, tmp_path: Path) -> None:
        BUILDERS[name](tmp_path)
        if name in {"daic-woz", "e-daic", "eatd"}:
            pytest.skip("one file is looked up by name")
        for path in [*tmp_path.rglob("*.wav"), *tmp_path.rglob("*.mp4")]:
            path.with_suffix(".flac").touch()
        with pytest.raises(CorpusLayoutError, match="two formats"):
            get_corpus(name).read(tmp_path)


def test_depression_classes_are_those_of_the_task() -> None:
    assert DEPRESSION.classes == (NOT_DEPRESSED, DEPRESSED)


def test_ravdess_reads_the_name_code_and_leaves_songs_out(tmp_path: Path) -> None:
    frame = read("ravdess", tmp_path)
    first, second = frame.to_dict("records")
    assert (first["label"], first["sex"], first["subject"], first["fold"]) == ("angry", "male", "ravdess-01", "1")
    assert (first["emotion_intensity"], first["repetition"]) == ("strong", 1)
    assert (second["label"], second["sex"], second["fold"]) == ("neutral", "female", "2")
    assert second["statement"].startswith("dogs")
    assert frame.attrs["left_out"] == {"song clips": 1}


def test_ravdess_without_fold_list_has_no_fold_column(tmp_path: Path) -> None:
    files(tmp_path, "Actor_24/03-01-08-01-01-01-24.wav")
    assert "fold" not in get_corpus("ravdess").read(tmp_path)


def test_emodb_reads_speaker_text_emotion_version(tmp_path: Path) -> None:
    frame = read("emodb", tmp_path)
    assert by_name(frame, "label") == {"03a01Wa.wav": "anger", "08b02Tc.wav": "sadness", "16a07Nb.wav": "neutral"}
    assert by_name(frame, "sex") == {"03a01Wa.wav": "male", "08b02Tc.wav": "female", "16a07Nb.wav": "female"}
    assert column(frame, "text") == ["a01", "b02", "a07"]
    assert column(frame, "version") == ["a", "c", "b"]


def test_crema_d_takes_age_and_sex_from_the_table(tmp_path: Path) -> None:
    frame = read("crema-d", tmp_path)
    assert frame[["label", "age", "sex", "sentence"]].to_numpy().tolist() == [["anger", 51, "male", "DFA"], ["sad", 21, "female", "IEO"]]


def test_tess_reads_the_misnamed_file_and_pleasant_surprise(tmp_path: Path) -> None:
    frame = read("tess", tmp_path)
    assert by_name(frame, "label") == {"OAF_back_angry.wav": "angry", "OA_bite_neutral.wav": "neutral", "YAF_bar_ps.wav": "pleasant_surprise"}
    assert set(frame["subject"]) == {"tess-oaf", "tess-yaf"}
    assert by_name(frame, "age")["YAF_bar_ps.wav"] == 26


def test_iemocap_takes_the_speaker_from_the_end_of_the_turn(tmp_path: Path) -> None:
    frame = read("iemocap", tmp_path)
    assert by_name(frame, "subject") == {
        "Ses01F_impro01_F000.wav": "iemocap-1F",
        "Ses01F_impro01_M003.wav": "iemocap-1M",
        "Ses01M_script01_1_F002.wav": "iemocap-1F",
    }
    assert column(frame, "label") == ["neutral", "excited", None]
    assert column(frame, "fold") == ["1"] * 3
    assert by_name(frame, "valence")["Ses01F_impro01_M003.wav"] == 4.0


def test_meld_joins_table_and_clips_of_each_part(tmp_path: Path) -> None:
    frame = read("meld", tmp_path)
    assert sorted(zip(frame["split"], frame["subject"], frame["label"], strict=True)) == [
        ("dev", "meld-the-waiter", "neutral"),
        ("test", "meld-chandler", "anger"),
        ("train", "meld-chandler", "joy"),
    ]
    assert "start" not in frame  # the table's times are those of the episode
    assert frame.attrs["left_out"] == {"table lines without a clip": 1}


@pytest.mark.parametrize("name", ["meld"])
def test_an_official_split_that_shares_subjects_is_refused(name: str, tmp_path: Path) -> None:
    frame = read(name, tmp_path)
    with pytest.raises(SubjectLeakError, match="1 of 1 subjects"):
        official(frame["split"], frame["subject"])


def test_casia_joins_both_spellings_of_a_speaker_under_a_number(tmp_path: Path) -> None:
    frame = read("casia", tmp_path)
    assert sorted(zip(frame["subject"], frame["label"], frame["sex"], frame["texts"], strict=True)) == [
        ("casia-1", "angry", "female", "same"),
        ("casia-1", "neutral", "female", "different"),
        ("casia-2", "surprise", "male", "same"),
    ]


def test_ch_sims_compares_clip_ids_as_numbers(tmp_path: Path) -> None:
    frame = read("ch-sims", tmp_path)
    assert frame[["subject", "label", "sentiment_audio", "split"]].to_numpy().tolist() == [
        ["ch-sims-video_0001", "negative", -1.0, "train"],
        ["ch-sims-video_0002", "positive", 0.6, "test"],
    ]


def spans_of(frame: pd.DataFrame, subject: str) -> list[tuple[float, float]]:
    rows = frame[frame["subject"] == subject]
    return list(zip(rows["start"], rows["end"], strict=True))


def test_daic_woz_rows_hold_the_participant_alone(tmp_path: Path) -> None:
    """Before the interview, under the interviewer's "mhm", the scrubbed name and the short yes: all cut."""
    frame = read("daic-woz", tmp_path)
    assert spans_of(frame, "daic-303") == [(40.0, 45.0), (45.5, 47.0), (62.5, 66.0)]
    assert frame.attrs["left_out"] == {"turns under 1 s": 1}


def test_daic_woz_times_are_corrected_where_known_to_be_off(tmp_path: Path) -> None:
    assert spans_of(read("daic-woz", tmp_path), "daic-318") == [(36.320, 39.320)]


def test_daic_woz_joins_only_across_breaths_where_the_interviewer_is_not_transcribed(tmp_path: Path) -> None:
    assert spans_of(read("daic-woz", tmp_path), "daic-451") == [(2.0, 7.0), (12.0, 15.0)]


def test_daic_woz_label_follows_the_score(tmp_path: Path) -> None:
    """Participant 409 has PHQ-8 10 and a published binary of 0."""
    people = read("daic-woz", tmp_path).drop_duplicates("subject").set_index("subject")
    assert people["label"].to_dict() == {"daic-303": NOT_DEPRESSED, "daic-318": DEPRESSED, "daic-409": DEPRESSED, "daic-451": DEPRESSED}
    assert people["split"].to_dict() == {"daic-303": "train", "daic-318": "dev", "daic-409": "train", "daic-451": "test"}
    assert people.loc["daic-303", "sex"] == "female"


def test_daic_woz_without_test_scores_leaves_the_label_open(tmp_path: Path) -> None:
    build_daic_woz(tmp_path)
    (tmp_path / "full_test_split.csv").unlink()
    text(tmp_path, "test_split_Depression_AVEC2017.csv", "participant_ID,Gender", "451,0")
    frame = get_corpus("daic-woz").read(tmp_path)
    assert column(frame[frame["subject"] == "daic-451"], "label") == [None, None]


def test_daic_woz_goes_on_without_a_broken_transcript(tmp_path: Path) -> None:
    build_daic_woz(tmp_path)
    (tmp_path / "409_P/409_TRANSCRIPT.csv").write_bytes(b"\x00\x05\x16\x07\xb0\xff")
    (tmp_path / "318_P/318_AUDIO.wav").unlink()
    frame = get_corpus("daic-woz").read(tmp_path)
    assert set(frame["subject"]) == {"daic-303", "daic-451"}
    assert frame.attrs["left_out"]["participants with an unreadable transcript"] == 1
    assert frame.attrs["left_out"]["participants without audio or transcript"] == 1


def test_e_daic_shares_subjects_with_daic_woz_and_admits_the_interviewer(tmp_path: Path) -> None:
    frame = read("e-daic", tmp_path / "e")
    assert set(frame["subject"]) & set(read("daic-woz", tmp_path / "d")["subject"]) == {"daic-303"}
    assert spans_of(frame, "daic-600") == [(14.3, 17.0)]
    assert not frame["interviewer_excluded"].any()
    assert by_name(frame, "label") == {"303_AUDIO.wav": NOT_DEPRESSED, "600_AUDIO.wav": DEPRESSED, "718_AUDIO.wav": NOT_DEPRESSED}


def test_androids_reads_condition_and_the_folds_of_each_task(tmp_path: Path) -> None:
    frame = read("androids", tmp_path)
    rows = frame[["subject", "label", "sex", "age", "task", "fold"]].to_numpy().tolist()
    assert sorted(rows) == [
        ["androids-01_C", NOT_DEPRESSED, "female", 56.0, "interview", "3"],
        ["androids-01_C", NOT_DEPRESSED, "female", 56.0, "interview", "3"],
        ["androids-01_C", NOT_DEPRESSED, "female", 56.0, "read speech", "1"],
        ["androids-01_P", DEPRESSED, "male", 65.0, "read speech", "2"],
    ]
    assert column(frame, "education").count(None) == 1


def test_modma_joins_folders_and_table_and_names_the_tasks(tmp_path: Path) -> None:
    frame = read("modma", tmp_path)
    assert column(frame, "task") == ["interview", "read speech", "word reading", "picture description", "interview"]
    assert column(frame, "label") == [DEPRESSED] * 4 + [NOT_DEPRESSED]
    assert set(frame["score_name"]) == {"PHQ-9"}
    assert frame.attrs["left_out"] == {"recordings of people who are not in the workbook": 1}


def test_modma_reads_the_published_workbook(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    expected = read("modma", tmp_path)
    (tmp_path / f"{MODMA_TABLE}.csv").unlink()
    remarks = ["", "PHQ-9: Patient Health Questionnaire"]
    table = pd.DataFrame([[*row, *remarks] for row in MODMA_ROWS], columns=[*MODMA_HEADER, "", " "])
    table.to_excel(tmp_path / f"{MODMA_TABLE}.xlsx", index=False)
    pd.testing.assert_frame_equal(get_corpus("modma").read(tmp_path), expected)


def test_modma_scores_do_not_pass_for_phq8(tmp_path: Path) -> None:
    """PHQ-9 23 with a diagnosis of health would be a conflict only if the cut-off were for this questionnaire."""
    frame = read("modma", tmp_path).assign(label=NOT_DEPRESSED)
    assert labels_for(DEPRESSION, frame).problems == ()


def test_eatd_takes_the_raw_answers_and_the_cut_off_of_the_scale(tmp_path: Path) -> None:
    frame = read("eatd", tmp_path)
    assert len(frame) == 6
    assert not frame["path"].str.contains("_out").any()
    assert set(zip(frame["subject"], frame["label"], frame["split"], strict=True)) == {
        ("eatd-t1", NOT_DEPRESSED, "train"),
        ("eatd-v1", DEPRESSED, "validation"),
    }


def test_eatd_reads_the_other_folder_names_alike(tmp_path: Path) -> None:
    before = read("eatd", tmp_path)
    for old, new in (("t_1", "train/1"), ("v_1", "validation/1")):
        (tmp_path / new).parent.mkdir()
        (tmp_path / old).rename(tmp_path / new)
    pd.testing.assert_frame_equal(get_corpus("eatd").read(tmp_path).drop(columns="path"), before.drop(columns="path"))


def test_a_table_without_its_columns_is_refused_by_name(tmp_path: Path) -> None:
    build_crema_d(tmp_path)
    text(tmp_path, "VideoDemographics.csv", "Actor,Age,Sex", "1001,51,Male")
    with pytest.raises(CorpusLayoutError, match=r"VideoDemographics.csv lacks the columns \['ActorID'\]"):
        get_corpus("crema-d").read(tmp_path)


def test_turns_stop_where_somebody_else_speaks() -> None:
    said = [Span(0, 2), Span(3, 5), Span(9, 12), Span(11, 14)]
    assert participant_turns(said, [Span(6, 8), Span(12.5, 13)]) == [Span(0, 5), Span(9, 12.5), Span(13, 14)]
    assert participant_turns(said, [], max_gap_s=0.5) == [Span(0, 2), Span(3, 5), Span(9, 14)]
    assert participant_turns([Span(1, 2)], [Span(0, 3)]) == []


class Own(Corpus):
    """A corpus as a package outside would write it."""

    name: ClassVar[str] = "own"
    title: ClassVar[str] = "Own"
    task: ClassVar[str] = "emotion"
    languages: ClassVar[tuple[str, ...]] = ("en",)
    layout: ClassVar[str] = "files such as anna_sad.wav."

    def clips(self, root: Path, left_out: object) -> list[Clip]:
        return [Clip(path, *path.stem.split("_")) for path in self.media(root, "*")]


def test_an_installed_adapter_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("own", f"{__name__}:Own", "clinical_ser.corpora"), EntryPoint("odd", "builtins:dict", "clinical_ser.corpora")]
    monkeypatch.setattr(EntryPoint, "load", lambda self: {"own": Own, "odd": dict}[self.name])
    monkeypatch.setattr(corpora, "entry_points", lambda group: points if group == "clinical_ser.corpora" else [])
    files(tmp_path, "a_sad.wav")
    assert {"own", "ravdess"} <= set(list_corpora())
    assert get_corpus("own").read(tmp_path)["subject"].tolist() == ["own-a"]
    with pytest.raises(InvalidValueError, match="subclass"):
        get_corpus("odd")


def test_an_unknown_corpus_lists_those_there_are() -> None:
    with pytest.raises(InvalidValueError, match="ravdess"):
        get_corpus("ravdes")
