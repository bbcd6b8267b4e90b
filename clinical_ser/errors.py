"""Every error this package raises on purpose.

One small tree. A message says what was wrong and what would have been right, and never carries a path, a name or audio: errors
end up in logs and answers, and those leave the room where the recording was made.
"""

from collections.abc import Iterable
from typing import Literal


class ClinicalSerError(Exception):
    """Base of every error raised on purpose; catch this at an entrance (command line, HTTP), nowhere else."""


class InvalidValueError(ClinicalSerError, ValueError):
    """A value that is not one of those allowed.

    Examples
    --------
    >>> raise InvalidValueError("head", "svm", ["linear", "xgboost"])
    Traceback (most recent call last):
    ...
    clinical_ser.errors.InvalidValueError: Bad value 'svm' for head, expected one of ['linear', 'xgboost'].

    Attributes
    ----------
    rule
        What was expected of what, without what was given: for whoever must not hear that again.
    """

    def __init__(self, what: str, given: object, expected: Iterable[object] | str) -> None:
        allowed = expected if isinstance(expected, str) else f"one of {list(expected)}"
        self.rule = f"{what}: expected {allowed}"
        super().__init__(f"Bad value {given!r} for {what}, expected {allowed}.")


class AudioError(ClinicalSerError):
    """The recording cannot become samples."""


class AudioNotFoundError(AudioError):
    """No readable file is where the caller said (missing, a directory, no permission)."""


class AudioDecodeError(AudioError):
    """The bytes are not audio that any decoder here understands, or end too early to hold any."""


class AudioTooLongError(AudioError):
    """The decoded recording would exceed the cap (a decompression bomb, or the wrong file)."""


class BaselineError(AudioError):
    """One of a person's baseline recordings cannot be decoded, or is not usable."""


class FeatureError(ClinicalSerError):
    """A feature could not be computed for a reason other than the recording's content."""


class EmbeddingError(FeatureError):
    """An encoder cannot make a vector of this recording (too short, no speech)."""


class EncoderError(ClinicalSerError):
    """An encoder that is not there, is not the one asked for, or cannot be trusted byte for byte."""


class ManifestError(ClinicalSerError):
    """The manifest as a whole cannot be used (a missing column, no row at all); single bad rows are reported, not raised."""


class TableError(ClinicalSerError):
    """A file that is no feature table, or one of another schema."""


class CorpusLayoutError(ClinicalSerError):
    """A corpus folder does not look as its publisher lays it out."""


class SplitError(ClinicalSerError):
    """A split that cannot be made (too few subjects, one class only)."""


class SubjectLeakError(SplitError):
    """A split in which a subject, or a recording, stands on both sides."""


class SimulationError(ClinicalSerError):
    """A simulated voice cannot be made on this machine."""


class TrainingError(ClinicalSerError):
    """A model cannot be trained from what was given."""


class BundleError(ClinicalSerError):
    """A bundle that is refused; the subclass says why."""


class BundleNotFoundError(BundleError):
    """No readable bundle folder is where the caller said."""


class BundleWriteError(BundleError):
    """A bundle cannot be written there (something else is in the way, no space, no permission); what was there is as it was."""


class BundleIncompleteError(BundleError):
    """A file that the bundle's manifest lists is missing, cut short, or a file is there that it does not list."""


class BundleTamperedError(BundleError):
    """A file's digest, or the signature, does not fit."""


class BundleUntrustedError(BundleError):
    """A signature by a trusted key was asked for, and the bundle has none, or one by a key that is not trusted here."""


class BundleSchemaError(BundleError):
    """The bundle's schema is unknown to this version, or a file does not follow it."""


class BundleFeatureMismatchError(BundleError):
    """The model was trained on features that this installation computes differently, or not at all."""


class SigningKeyError(ClinicalSerError):
    """A key file that cannot be used (not Ed25519, readable by others, already there); never carries the key."""


class RegistryError(ClinicalSerError):
    """The registry of bundles cannot do what was asked; the subclass says why."""


class RegistryConflictError(RegistryError):
    """Someone else switched, or a switch goes on; nothing was changed."""


class RegistryTamperedError(RegistryError):
    """A history, record or pointer that does not fit what was written; the message says which entry."""


class ChangePlanError(ClinicalSerError):
    """A change-control plan that cannot be used (pccp.toml), or that its signatures do not fit."""


class OutsidePlanError(ChangePlanError):
    """A change that the change-control plan does not cover.

    Attributes
    ----------
    outside
        What is outside, one short sentence each.
    """

    def __init__(self, outside: Iterable[str]) -> None:
        self.outside = tuple(outside)
        super().__init__(f"The change is outside the change-control plan: {' '.join(self.outside)}")


class MonitoringError(ClinicalSerError):
    """What is watched cannot be counted or compared; the message says which part."""


class EvidenceError(ClinicalSerError):
    """An evidence.json or a file of predictions that is damaged, or of another version."""


class LeakError(ClinicalSerError):
    """The evaluation found that the test was not a test; the message names each finding."""


class GateError(ClinicalSerError):
    """A release gate is not met; the message names each."""


class ReportError(ClinicalSerError):
    """A report cannot be made: a font, a glyph or a text alternative is missing; the message says which."""


class SiteError(ReportError):
    """What a site configured for its reports cannot be used (site.toml, a logo, a language); the message names the field."""


class AuditError(ClinicalSerError):
    """The audit trail cannot do what was asked; the subclass says why."""


class AuditUnavailableError(AuditError):
    """A record cannot be committed (no space, an input/output error, a closed log), so what it was for must not go ahead."""


class AuditBusyError(AuditError):
    """Another process writes to this log; there is one writer at a time."""


class AuditSetupError(AuditError):
    """There is no audit log, there is one already, or its configuration cannot be used."""


class AuditFormatError(AuditError):
    """A checkpoint, proof, key or record that is not spelled as its specification says."""


class AuditTamperedError(AuditError):
    """Records, checkpoint and signatures do not fit each other; the message names the first index where they part."""


class AuditKeyError(AuditError):
    """A key of the audit trail that cannot be used, or is not there; never carries the key."""


class AuditConflictError(AuditError):
    """An idempotency key comes again with another content."""


class LegalHoldError(AuditError):
    """An erasure is refused because the subject's records are under a legal hold."""


class WitnessError(AuditError):
    """A witness refuses a checkpoint, or answers what cannot be used."""


class ServerError(ClinicalSerError):
    """The HTTP server cannot do what was asked; the subclass says why."""


class ServerSetupError(ServerError):
    """The server's configuration cannot be used, or what it needs is not there."""


class AuthenticationError(ServerError):
    """Nobody who is known here asked.

    Attributes
    ----------
    reason
        As the audit trail has it.
    """

    def __init__(self, message: str, reason: Literal["unauthenticated", "expired", "replayed"] = "unauthenticated") -> None:
        super().__init__(message)
        self.reason: Literal["unauthenticated", "expired", "replayed"] = reason


class FederationError(ClinicalSerError):
    """Training across sites cannot go on; the message says at which step and why, and no value of a site is in it."""


class SiteRefusalError(FederationError):
    """A site does not answer what it was asked.

    Attributes
    ----------
    site
        Its name in the consortium.
    reason
        What the coordinator may know: one of a few words, such as `statistic_not_allowed`.
    """

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"Site {site!r} refuses: {reason.replace('_', ' ')}.")
        self.site = site
        self.reason = reason
