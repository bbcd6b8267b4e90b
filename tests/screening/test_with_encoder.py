"""A model with an embedding, from extraction to an answer: it names its encoder, refuses another, and can be asked without it."""

import numpy as np
import pytest

from clinical_ser.audio import analyse, load
from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.embeddings import find_encoder
from clinical_ser.embeddings.registry import encoder_folder
from clinical_ser.errors import BundleFeatureMismatchError, InvalidValueError
from clinical_ser.evaluation.evaluating import EvaluationOptions
from clinical_ser.evaluation.release import card_of
from clinical_ser.explain.timeline import LEAST_WINDOWS
from clinical_ser.features.contours import extract_with_contours
from clinical_ser.features.extraction import extract, feature_names, fingerprints
from clinical_ser.models.saving import save
from clinical_ser.models.training import TrainingOptions, train
from clinical_ser.screening import Screener
from tests.embeddings.made import tiny_onnx
from tests.tables import table_of

SETS = ("praat", "timing", "encoder:tiny")


@pytest.fixture
def model(tmp_path):
    """A bundle learned from numbers alone, with the embedding of an encoder that is installed."""
    tiny_onnx(encoder_folder("tiny"))
    training = train(table_of(80, sets=SETS), DEPRESSION, TrainingOptions(refits=3))
    card, _ = card_of(training, None, name="with", version="1", statement="For tests.", options=EvaluationOptions(replicates=20))
    save(training, tmp_path / "with", name="with", version="1", statement="For tests.", card=card.to_json(), software={"numpy": "0"}, key=None)
    return tmp_path / "with"


def test_the_embedding_is_one_more_set_of_a_recordings_features(speech_wav):
    tiny_onnx(encoder_folder("tiny"))
    recording = load(speech_wav)
    vector = extract(recording, sets=SETS)
    assert vector.names == feature_names(SETS)
    assert list(fingerprints(SETS)) == ["praat", "timing", "embedding.tiny"]
    found = find_encoder("tiny").encode([recording])[0].utterance
    np.testing.assert_array_equal([vector[f"embedding.tiny.{i}"] for i in range(6)], found)
    assert vector.names[-1] == "embedding.tiny.5"


def test_a_recording_that_is_too_short_to_embed_has_no_value_and_says_why(speech_wav):
    tiny_onnx(encoder_folder("tiny"))
    vector = extract(load(speech_wav, end=0.9), sets=("timing", "encoder:tiny"))
    assert vector.missing["embedding.tiny.0"] == "The recording is 0.90 s long; encoder 'tiny' needs 1 s."


def test_an_encoder_is_named_once(speech_wav):
    tiny_onnx(encoder_folder("tiny"))
    with pytest.raises(InvalidValueError, match="once"):
        extract(load(speech_wav), sets=("encoder:tiny", f"encoder:{encoder_folder('tiny')}"))


def test_a_model_with_an_embedding_answers_and_shows_it_as_one_family(model, speech_wav):
    result = Screener.load(model).screen(speech_wav, timeline=True)
    families = {family.family: family for family in result.explanation.families}
    assert families["embedding"].features == ()
    assert result.explanation.without_embedding is not None
    assert len(result.timeline.windows) >= LEAST_WINDOWS
    assert result.model.encoders == {"tiny": find_encoder("tiny").fingerprint}
    assert "onnxruntime" in result.software


def test_without_the_embedding_it_is_the_interpretable_part_of_the_same_model(model, speech_wav):
    whole, plain = Screener.load(model), Screener.load(model, interpretable=True)
    np.testing.assert_array_equal(whole.model.head.parts[0].coef_, plain.model.head.coef_)
    result = plain.screen(speech_wav)
    assert result.explanation.without_embedding is None
    assert not result.model.encoders


def test_another_encoder_of_the_same_name_is_refused(model, speech_wav, tmp_path):
    tiny_onnx(encoder_folder("tiny"), seed=1)
    with pytest.raises(BundleFeatureMismatchError, match="installed as 'tiny' is not the one"):
        Screener.load(model)
    tiny_onnx(tmp_path / "right")
    found = Screener.load(model, encoders=[str(tmp_path / "right")]).screen(speech_wav)
    assert found.probability is not None


def test_without_its_encoder_a_model_says_how_to_get_it_and_still_answers_without(model, speech_wav):
    for path in encoder_folder("tiny").iterdir():
        path.unlink()
    encoder_folder("tiny").rmdir()
    with pytest.raises(BundleFeatureMismatchError, match="clinical-ser encoder install tiny"):
        Screener.load(model)
    assert Screener.load(model, interpretable=True).screen(speech_wav).status is not None


def test_an_encoder_that_the_model_has_no_use_for_is_refused(model, bundle, tmp_path):
    tiny_onnx(tmp_path / "other", name="other")
    with pytest.raises(InvalidValueError, match=r"one of the model's: \['tiny'\]"):
        Screener.load(model, encoders=[str(tmp_path / "other")])
    with pytest.raises(InvalidValueError, match="uses no embedding"):
        Screener.load(bundle, encoders=[str(tmp_path / "other")])


def test_a_stretch_left_out_of_the_embedding_is_really_left_out(speech_wav):
    tiny_onnx(encoder_folder("tiny"))
    recording = load(speech_wav)
    analysis = analyse(recording)
    vector, contours = extract_with_contours(recording, analysis, sets=("timing", "encoder:tiny"))
    names = [f"embedding.tiny.{i}" for i in range(6)]
    place = [contours.names.index(name) for name in names]
    np.testing.assert_allclose(contours.leaving_out(None)[place], [vector[name] for name in names], rtol=1e-4, atol=1e-6)
    keep = np.ones(len(analysis.level_dbfs), bool)
    keep[500:1500] = False
    assert not np.allclose(contours.leaving_out(keep)[place], contours.leaving_out(None)[place], rtol=1e-4)
    assert np.isnan(contours.leaving_out(~analysis.speech)[place]).all()


def test_an_encoder_that_is_replaced_while_a_screener_waits_is_noticed_at_the_next_recording(model, speech_wav):
    screener = Screener.load(model)
    screener.screen(speech_wav)
    tiny_onnx(encoder_folder("tiny"), seed=1)
    with pytest.raises(BundleFeatureMismatchError, match="not the one that the model learned with"):
        screener.screen(speech_wav)
