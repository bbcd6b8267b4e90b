"""Same fingerprint, same values: a change that moves a feature has to move its fingerprint, or old bundles would go on answering with it.

After a change that is meant to move values: count up the fingerprint, then `python -m tests.features.test_golden` writes the new file.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from clinical_ser import audio
from clinical_ser.audio.recording import SAMPLE_RATE_HZ
from clinical_ser.features.extraction import DEFAULT_SETS, extract, fingerprints
from tests import signals

GOLDEN = Path(__file__).parent / "golden.json"


def measured() -> dict[str, float | None]:
    made = signals.sentence(phrases=7, syllables=5, pauses_s=(0.35, 0.9, 0.5))
    noisy = signals.add_noise(made.samples, 35.0, speech_s=made.speech_s)
    vector = extract(audio.from_samples(noisy.astype(np.float32), SAMPLE_RATE_HZ))
    return {name: float(value) if np.isfinite(value) else None for name, value in zip(vector.names, vector.values, strict=True)}


def test_values_move_only_with_their_fingerprint():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if golden["fingerprints"] != fingerprints(DEFAULT_SETS):
        pytest.fail("A fingerprint moved: write the golden values again (see this file's docstring) and train the shipped models again.")
    values = measured()
    assert values.keys() == golden["values"].keys()
    # Vector instructions differ between processors in the last digits; a change worth a fingerprint is larger.
    moved = [name for name, value in values.items() if not _same(value, golden["values"][name])]
    assert not moved


def _same(value: float | None, golden: float | None) -> bool:
    if value is None or golden is None:
        return value is golden
    return bool(np.isclose(value, golden, rtol=1e-3, atol=1e-6))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({"fingerprints": fingerprints(DEFAULT_SETS), "values": measured()}, indent=1) + "\n", encoding="utf-8")
