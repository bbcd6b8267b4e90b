"""`clinical-ser doctor`: is everything here that a screening needs, which versions, under which licences."""

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, ConfigDict
from rich.table import Table

from clinical_ser.audit.checkpoint import Checkpoint
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.pin import Pin
from clinical_ser.cli.console import FAILED, literal, output, print_json
from clinical_ser.embeddings import find_encoder, list_encoders
from clinical_ser.embeddings.registry import EncoderEntry, list_backends
from clinical_ser.errors import ClinicalSerError, EncoderError
from clinical_ser.folders import user_folder
from clinical_ser.models.signing import SigningKey, default_key_path
from clinical_ser.registry.names import list_models

if TYPE_CHECKING:
    from reports.site import Site

LICENCES = {
    "clinical-ser": "Apache-2.0",
    "opensmile": "audEERING research licence: no commercial use",
    "praat-parselmouth": "GPL-3.0-or-later",
    "soundfile": "BSD-3-Clause (libsndfile LGPL-2.1)",
    "av": "BSD-3-Clause (FFmpeg LGPL-3)",
    "soxr": "LGPL-2.1-or-later",
    "numpy": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "pandas": "BSD-3-Clause",
    "pyarrow": "Apache-2.0",
    "scikit-learn": "BSD-3-Clause",
    "xgboost-cpu": "Apache-2.0",
    "pydantic": "MIT",
    "cryptography": "Apache-2.0 or BSD-3-Clause",
    "typer": "MIT",
    "rich": "MIT",
    "jinja2": "BSD-3-Clause",
    "typst": "Apache-2.0 (fonts OFL-1.1, GUST, Bitstream Vera)",
    "onnxruntime": "MIT",
}
OPTIONAL = {
    "ray": "Apache-2.0 (extra 'cluster')",
    "onnx": "Apache-2.0 (extra 'encoders': to install an encoder)",
    "torch": "BSD-3-Clause (extra 'neural': to export or train an encoder)",
    "transformers": "Apache-2.0 (extra 'neural')",
    "funasr": "MIT (emotion2vec)",
    "psycopg": "LGPL-3.0 (extra 'postgres': the audit log in PostgreSQL)",
    "starlette": "BSD-3-Clause (extra 'serve': a witness over HTTP)",
    "uvicorn": "BSD-3-Clause (extra 'serve')",
    "rfc3161-client": "Apache-2.0 (extra 'anchor': time stamps)",
}


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    ok: bool
    finding: str


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON lines.")] = False) -> None:
    """Check versions, licences, codecs, models, writable folders and what reports need; exits 1 if something needed is missing."""
    checks = [*_packages(), *_codecs(), *_models(), *_encoders(), *_folders(), _check("audit log", _audit), *_reports()]
    if as_json:
        for check in checks:
            print_json(check)
    else:
        _show(checks)
    if not all(check.ok for check in checks):
        raise typer.Exit(FAILED)


def _show(checks: list[Check]) -> None:
    table = Table(
        "", "", "finding", box=None, title=f"Python {platform.python_version()} on {platform.system()} {platform.machine()}", title_justify="left"
    )
    for check in checks:
        table.add_row("[green]ok[/green]" if check.ok else "[bold red]missing[/bold red]", literal(check.what), literal(check.finding))
    output.print(table)


def _packages() -> list[Check]:
    needed = [
        Check(what=name, ok=_installed(name) is not None, finding=f"{_installed(name) or 'not installed'}; {licence}")
        for name, licence in LICENCES.items()
    ]
    extras = [Check(what=name, ok=True, finding=f"{_installed(name) or 'not installed'}; {licence}") for name, licence in OPTIONAL.items()]
    return needed + extras


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        # Outside Linux on x86-64 the same library has its usual name.
        return _installed("xgboost") if name == "xgboost-cpu" else None


def _codecs() -> list[Check]:
    import av
    import soundfile

    by_libsndfile = soundfile.available_formats()
    checks = [Check(what=f"read {name}", ok=name in by_libsndfile, finding="libsndfile") for name in ("WAV", "FLAC", "OGG", "MP3")]
    for name, codec in (("M4A/AAC", "aac"), ("WebM/Opus", "opus")):
        checks.append(_check(f"read {name}", lambda codec=codec: f"FFmpeg, {av.codec.Codec(codec, 'r').name}"))  # type: ignore[misc]
    return checks


def _models() -> list[Check]:
    try:
        entries = list_models()
    except ClinicalSerError as error:  # a broken key, a folder that cannot be listed
        return [Check(what="models", ok=False, finding=str(error))]
    checks = [Check(what=f"model {e.name}", ok=e.problem is None, finding=e.problem or f"version {e.version}, {e.signature}") for e in entries]
    return checks or [Check(what="models", ok=False, finding="none found")]


def _encoders() -> list[Check]:
    """List the installed encoders; a model without embeddings needs none, so only a broken one is at fault."""
    try:
        entries = list_encoders()
    except ClinicalSerError as error:
        return [Check(what="encoders", ok=False, finding=str(error))]
    checks = [_check(f"encoder {entry.name}", lambda entry=entry: _encoder(entry)) for entry in entries]  # type: ignore[misc]
    none = [Check(what="encoders", ok=True, finding="none installed; only models with an embedding need one (docs/encoders.md)")]
    return [*(checks or none), Check(what="encoder back ends", ok=True, finding=", ".join(list_backends()))]


def _encoder(entry: EncoderEntry) -> str:
    """Read an encoder with its weights, which finds what is damaged."""
    if entry.problem:
        raise EncoderError(entry.problem)
    spec = find_encoder(entry.name).spec
    return f"{spec.dim} dimensions; {spec.licence}{'; its vectors identify speakers' if spec.identifies_speakers else ''}"


def _folders() -> list[Check]:
    folders = [("configuration folder", user_folder("config")), ("model folder", user_folder("data"))]
    checks = [Check(what=what, ok=folder is not None and _writable(folder), finding=str(folder)) for what, folder in folders]
    return [*checks, _check("signing key", _signing_key)]


def _signing_key() -> str:
    path = default_key_path()
    if not os.path.exists(path):
        return "none yet; training makes one"
    return f"{SigningKey.load(path).public.key_id}, {path}"


def _audit() -> str:
    """Open the site's log and its vault; whether all of it fits together, `audit verify` says."""
    site = LogConfiguration.find()
    if site is None:
        return "none set up: answers are not recorded (`audit init`, docs/compliance.md)"
    with site.read() as log:
        Pin(site.pin, site.load_keys().verifiers).check(Checkpoint(log.origin, log.size, log.root), log.root_at)
        alone = "no witness's cosignature: only a checkpoint kept elsewhere shows a rewritten log"
        kept = f"{log.witnesses} cosignatures of witnesses" if log.witnesses else alone
        return f"{site.origin}, {log.size} records; {kept}"


def _reports() -> list[Check]:
    """Look at what the site set for its reports, and at the font that reports in Chinese need."""
    from reports.site import find_site

    try:
        site = find_site()
    except ClinicalSerError as error:
        return [Check(what="site", ok=False, finding=str(error)), _chinese_font(needed=False)]
    return [_check("site", lambda: _configured(site)), _chinese_font(needed=(site.language or "").startswith("zh"))]


def _configured(site: "Site") -> str:
    from reports.locale import REFERENCE, available
    from reports.site import check_filled_in, site_path

    path = site_path()
    if path is None:
        return "none configured: reports name no hospital and no contacts (docs/site.md)"
    check_filled_in(site)
    for language in available(site.languages_folder):
        site.locale(language)
    contacts = f"{len(site.contacts) or 'no'} contact{'' if len(site.contacts) == 1 else 's'}"
    return f"{site.name or 'no name'}; {contacts}; language {site.language or REFERENCE}; {path}"


def _chinese_font(*, needed: bool) -> Check:
    """Look for a font without which no PDF in Chinese is made; only a site that reports in Chinese misses it."""
    import typst

    from reports.rendering import CJK_FONTS

    installed = set(typst.Fonts().families())
    found = next((font for font in CJK_FONTS if font in installed), None)
    return Check(
        what="Chinese font",
        ok=found is not None or not needed,
        finding=found or "none; for PDF reports in Chinese install the Debian package fonts-noto-cjk or fonts-wqy-microhei",
    )


def _writable(folder: Path) -> bool:
    there = next(parent for parent in (folder, *folder.absolute().parents) if os.path.exists(parent))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _check(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what=what, ok=True, finding=look())
    except (ClinicalSerError, ValueError) as error:
        return Check(what=what, ok=False, finding=str(error))
