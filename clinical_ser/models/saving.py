"""A training run becomes a bundle on disk."""

from pathlib import Path

from clinical_ser.models.bundle import ManifestFields, write_bundle
from clinical_ser.models.signing import SigningKey
from clinical_ser.models.training import Training


def save(
    training: Training,
    folder: Path,
    *,
    name: str,
    version: str,
    statement: str,
    card: bytes,
    software: dict[str, str],
    key: SigningKey | None,
    replace: bool = False,
) -> str:
    """Write the bundle of a training run and return its digest.

    Parameters
    ----------
    training
        As `train` returns it.
    folder
        Where the bundle goes; see `write_bundle`.
    name, version, statement
        Of the model; `statement` is repeated in each of its results.
    card
        The bytes of `card.json`.
    software
        Versions that trained it.
    key
        Signs it; None leaves it unsigned.
    replace
        Whether a bundle that is there may be replaced.

    Raises
    ------
    BundleWriteError
        Something is in the way, or the system refuses to write.
    """
    model = training.model
    fields = ManifestFields(
        name=name,
        version=version,
        task=model.task,
        head=model.head.kind,
        features=model.features,
        extractors=model.extractors,
        operating_point=model.operating_point,
        cohort_digest=training.cohort_digest,
        simulated=training.simulated,
        statement=statement,
        uses_baseline=model.uses_baseline,
        software=software,
    )
    return write_bundle(folder, fields, model.to_files() | {"card.json": card}, key, replace=replace)
