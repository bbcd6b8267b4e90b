"""The smallest content of a sound bundle, for the tests of bundles and of what finds them."""

import json
from pathlib import Path

from clinical_ser.cohorts.tasks import DEPRESSION
from clinical_ser.models.bundle import MANIFEST, ManifestFields
from clinical_ser.models.operating_point import OperatingPoint, Rate
from clinical_ser.models.signing import SigningKey

POINT = OperatingPoint(
    threshold=-0.25,
    target_sensitivity=0.85,
    confidence=0.95,
    sensitivity=Rate(value=0.95, lower=0.875, upper=0.99, subjects=60, effective=60.0),
    specificity=Rate(value=0.5, lower=0.25, upper=0.75, subjects=60, effective=72.5),
    attained=True,
    method="made up",
)

FIELDS = ManifestFields(
    name="depression-test",
    version="1.2.0",
    task=DEPRESSION,
    head="linear",
    features=("praat.hnr_mean_db", "egemaps.loudness_mean", "timing.pause_share"),
    extractors={"praat": "praat-6.4.40/1", "egemaps": "opensmile-3.0.2/1", "timing": "timing/1"},
    operating_point=POINT,
    cohort_digest="0f" * 32,
    simulated=True,
    statement="Trained on simulated speech; not for use on people.",
    uses_baseline=False,
    software={"clinical-ser": "0.1.0", "numpy": "2.4.0"},
)

PAYLOAD = {
    "preprocessing.json": b'{"median":[1.5,-2.0,0.25]}\n',
    "head.json": b'{"coefficients":[0.1,0.2,-0.3],"intercept":-1.0}\n',
    "calibrator.json": b'{"intercept":0.0,"slope":1.0}\n',
    "conformal.json": b"{}\n",
    "refits.ubj": bytes(range(256)) * 8,
    "background.json": b'{"groups":[]}\n',
    "reference.json": b'{"mean":[1.0,2.0,3.0]}\n',
    "card.json": '{"use":"Forschung, 研究"}\n'.encode(),
}

KEY = SigningKey.generate()


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Lay files down as they are, sound or not."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_manifest(folder: Path, key: SigningKey | None = None, **changes: object) -> None:
    """Change top-level fields of a manifest as its maker could have, keeping its spelling; sign it again with a key."""
    manifest = {**json.loads((folder / MANIFEST).read_bytes()), **changes}
    raw = (json.dumps(manifest, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
    (folder / MANIFEST).write_bytes(raw)
    if key is not None:
        (folder / "signature").write_bytes(key.sign(raw))
