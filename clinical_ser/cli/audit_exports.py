"""`clinical-ser audit export`: which options a form takes, and the call that makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast, get_args

from clinical_ser.audit.events import PAYLOADS
from clinical_ser.audit.exports.period import PeriodForm, export_period
from clinical_ser.audit.notes import NoteSigner
from clinical_ser.audit.reading import DatabaseReader
from clinical_ser.errors import InvalidValueError
from clinical_ser.models.bundle import read_bundle
from clinical_ser.registry.names import find_model

_TAKES = {
    "jsonl": {"subject", "since", "until", "kinds", "payloads"},
    "csv": {"subject", "since", "until", "kinds", "payloads"},
    "fhir": {"subject", "since", "until", "kinds", "payloads"},
    "accounting": {"subject", "since", "until", "staff", "summarise"},
    "access": {"subject", "results", "models", "site", "staff"},
    "processing": {"since", "until", "site"},
    "ai-act": {"since", "until", "payloads"},
    "evidence-pack": {"models", "evidence"},
}
_NEEDS = {"accounting": "subject", "access": "subject", "processing": "site", "evidence-pack": "models"}
_OPTIONS = {"kinds": "--kind", "results": "--result", "models": "--model"}


@dataclass(frozen=True)
class Wanted:
    """The options of one export."""

    form: str
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    kinds: frozenset[str] | None = None
    payloads: bool = False
    results: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    evidence: Path | None = None
    site: Path | None = None
    staff: bool = False
    summarise: bool = False

    def check(self) -> None:
        """Raise InvalidValueError for an option that this form does not take, or one that it needs and was not given."""
        given = {name for name in self.__dataclass_fields__ if name != "form" and getattr(self, name)}
        if wrong := sorted(given - _TAKES[self.form]):
            forms = ", ".join(form for form, takes in _TAKES.items() if wrong[0] in takes)
            raise InvalidValueError(_option(wrong[0]), f"given with the format {self.form}", f"one of the formats that take it: {forms}")
        needed = _NEEDS.get(self.form)
        if needed and needed not in given:
            raise InvalidValueError(_option(needed), "not given", f"it, with the format {self.form}")


def _option(name: str) -> str:
    return _OPTIONS.get(name, f"--{name}")


def export_from(log: DatabaseReader, signers: Sequence[NoteSigner], wanted: Wanted, out: Path) -> str:
    """Make an export, and return the digest of its manifest."""
    wanted.check()
    if wanted.form in get_args(PeriodForm):
        return _of_period(log, signers, wanted, out)
    if wanted.form == "accounting":
        from clinical_ser.audit.exports.accounting import export_accounting

        requested = wanted.until or datetime.now(UTC)
        about: dict[str, Any] = {"subject": wanted.subject or "", "requested": requested, "since": wanted.since}
        return export_accounting(log, out, signers=signers, **about, summarise=wanted.summarise, staff=wanted.staff)
    if wanted.form == "access":
        return _access(log, signers, wanted, out)
    if wanted.form == "processing":
        from clinical_ser.audit.exports.processing import export_processing

        return export_processing(log, out, signers=signers, site=_site(wanted.site), since=wanted.since, until=wanted.until)
    return _evidence_pack(log, signers, wanted, out)


def _of_period(log: DatabaseReader, signers: Sequence[NoteSigner], wanted: Wanted, out: Path) -> str:
    if unknown := sorted((wanted.kinds or frozenset()) - PAYLOADS.keys()):
        raise InvalidValueError("--kind", unknown[0], f"one of {', '.join(sorted(PAYLOADS))}")
    return export_period(
        log,
        signers,
        out,
        cast(PeriodForm, wanted.form),
        since=wanted.since,
        until=wanted.until,
        kinds=wanted.kinds,
        about=wanted.subject,
        payloads=wanted.payloads,
    )


def _access(log: DatabaseReader, signers: Sequence[NoteSigner], wanted: Wanted, out: Path) -> str:
    from clinical_ser.audit.exports.access import export_access
    from clinical_ser.audit.exports.processing import read_site_record

    return export_access(
        log,
        out,
        signers=signers,
        subject=wanted.subject or "",
        requested=datetime.now(UTC),
        results=[_read(path, "--result") for path in wanted.results],
        models=[read_bundle(find_model(model)) for model in wanted.models],
        site=read_site_record(_site(wanted.site)) if wanted.site else None,
        staff=wanted.staff,
    )


def _evidence_pack(log: DatabaseReader, signers: Sequence[NoteSigner], wanted: Wanted, out: Path) -> str:
    from clinical_ser.audit.exports.evidence_pack import export_evidence_pack

    if len(wanted.models) != 1:
        raise InvalidValueError("--model", f"{len(wanted.models)} models", "one: a pack is of one release")
    folder = find_model(wanted.models[0])
    signature = folder / "signature"
    return export_evidence_pack(
        log,
        out,
        signers=signers,
        bundle=read_bundle(folder),
        signature=signature.read_bytes() if signature.exists() else None,
        evidence=_read(wanted.evidence, "--evidence") if wanted.evidence else None,
    )


def _site(path: Path | None) -> bytes:
    if path is None:
        raise InvalidValueError("--site", "not given", "what the site says of itself (.toml)")
    return _read(path, "--site")


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidValueError(option, f"a file that cannot be read ({error.strerror})", "one that can") from None
