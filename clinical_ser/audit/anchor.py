"""A checkpoint time-stamped by an authority (RFC 3161), which the log's operator cannot reach.

The one idea: from then on the log cannot have been otherwise at that time, whoever owns its keys and its disk. The stamp is checked offline, years
later, with nothing but the checkpoint and a root certificate.
"""

import contextlib
import hashlib
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    PKIStatus,
    TimeStampRequest,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from clinical_ser.atomic_folder import sync_folder
from clinical_ser.audit.witness_http import post
from clinical_ser.errors import AuditConflictError, AuditFormatError, AuditKeyError, AuditTamperedError, AuditUnavailableError, WitnessError

MAX_RESPONSE_BYTES = 64 * 1024
"""A response with a chain of four RSA certificates takes 6 kB."""
TIMESTAMP_SUFFIX = ".tsr"

_MAX_CERTIFICATES_BYTES = 1024 * 1024
_SHA256_OID = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")
_CERTIFICATE_ERROR = re.compile(r"Verify error: ([\w ,-]+)")


@dataclass(frozen=True)
class TimeStamp:
    """What a time stamping authority attests: these bytes existed at this time.

    Parameters
    ----------
    time
        When, in UTC, by the authority's clock.
    serial
        The authority's number for it.
    policy
        Under which of its policies, as a dotted object identifier.
    """

    time: datetime
    serial: int
    policy: str


def timestamp_request(note: bytes) -> TimeStampRequest:
    """Return a request for a time stamp over SHA-256 of a signed checkpoint, with a fresh nonce, that asks for the authority's certificate.

    Parameters
    ----------
    note
        The signed checkpoint as its file holds it. Collect the witnesses' cosignatures before: one more line, and it is another file.
    """
    return TimestampRequestBuilder().data(note).hash_algorithm(HashAlgorithm.SHA256).nonce(nonce=True).cert_request(cert_request=True).build()


def request_timestamp(
    url: str, note: bytes, roots: Sequence[x509.Certificate], *, timeout_s: float = 30.0, tls: ssl.SSLContext | None = None
) -> bytes:
    """Have a checkpoint time stamped (RFC 3161 section 3.4), and check the stamp before it is kept.

    Parameters
    ----------
    url
        The authority: https, or http on a loopback address.
    note
        The signed checkpoint as its file holds it. Only its hash is sent.
    roots
        Root certificates that the authority's may lead to.
    timeout_s
        How long the request may take.
    tls
        For an authority whose web certificate is not one that the system trusts.

    Returns
    -------
    bytes
        The response, a TimeStampResp in DER: what `verify_timestamp` reads.

    Raises
    ------
    WitnessError
        The authority cannot be reached, refuses, or answers something else, a stamp for another request included.
    AuditTamperedError
        The stamp does not fit, or its certificate does not lead to the roots.
    """
    request = timestamp_request(note)
    answer = post(
        url, request.as_bytes(), content_type="application/timestamp-query", timeout_s=timeout_s, max_answer_bytes=MAX_RESPONSE_BYTES, tls=tls
    )
    if answer.status != 200 or answer.content_type != "application/timestamp-reply":
        raise WitnessError(f"The time stamping authority answers with HTTP status {answer.status} and not with a time stamp.")
    try:
        response = _granted(answer.body)
    except AuditFormatError as error:
        raise WitnessError(f"The time stamping authority gives no time stamp: {error}") from None
    verify_timestamp(note, answer.body, roots)
    if response.tst_info.nonce != request.nonce:
        raise WitnessError("The time stamp is the answer to another request, so it may be an old one; ask again.")
    return answer.body


def verify_timestamp(note: bytes, response: bytes, roots: Sequence[x509.Certificate]) -> TimeStamp:
    """Check offline that a checkpoint existed when a time stamp says.

    Parameters
    ----------
    note
        The signed checkpoint as its file holds it.
    response
        The content of the `.tsr` file.
    roots
        Root certificates that the authority's has to lead to. It had to be valid when it stamped, and may have expired since.

    Raises
    ------
    AuditFormatError
        The response is not one that grants a time stamp.
    AuditTamperedError
        The stamp is of other bytes, was altered, or not made by an authority under these roots.
    AuditKeyError
        There is no root certificate.
    """
    if not roots:
        raise AuditKeyError("A time stamp needs at least one root certificate to be checked against.")
    stamped = _granted(response)
    verifier = VerifierBuilder(roots=list(roots)).build()
    try:
        verifier.verify(stamped, hashlib.sha256(note).digest())
        info = stamped.tst_info
        # SHA-256 is what was asked for: under another algorithm the same 32 bytes would be the hash of something else.
        fits = info.message_imprint.hash_algorithm == _SHA256_OID
        timestamp = TimeStamp(info.gen_time, info.serial_number, info.policy.dotted_string)
    except (VerificationError, ValueError, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise AuditTamperedError(f"The time stamp does not fit: {_reason(error)}.") from None
    if not fits:
        raise AuditTamperedError("The time stamp is over another hash than SHA-256.")
    return timestamp


def timestamp_path(checkpoint: Path) -> Path:
    """Return where a checkpoint's time stamp lies: beside it, under its name and `.tsr`."""
    return checkpoint.with_name(checkpoint.name + TIMESTAMP_SUFFIX)


def save_timestamp(response: bytes, checkpoint: Path) -> Path:
    """Keep a time stamp beside its checkpoint, durably, and never over another.

    Raises
    ------
    AuditConflictError
        There is one already: the older stamp is worth more.
    AuditUnavailableError
        The file cannot be written.
    """
    path = timestamp_path(checkpoint)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with draft.open("xb") as file:
            file.write(response)
            file.flush()
            os.fsync(file.fileno())
        # A link, because a rename would replace a stamp that another process put there meanwhile.
        os.link(draft, path)
        sync_folder(path.parent)
    except FileExistsError:
        raise AuditConflictError("This checkpoint has a time stamp already, which is older and therefore worth more; it stays.") from None
    except OSError as error:
        raise AuditUnavailableError(f"The time stamp cannot be written: {error.strerror}.") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return path


def load_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Read root certificates from a PEM file; AuditKeyError when it cannot be read or holds none."""
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_CERTIFICATES_BYTES + 1)
        roots = x509.load_pem_x509_certificates(pem) if len(pem) <= _MAX_CERTIFICATES_BYTES else []
    except OSError as error:
        raise AuditKeyError(f"The file of root certificates cannot be read: {error.strerror}.") from None
    except ValueError:
        roots = []
    if not roots:
        raise AuditKeyError("The file of root certificates holds no certificate in PEM form.")
    return tuple(roots)


def _granted(response: bytes) -> TimeStampResponse:
    """Return a response that holds a stamp, not checked yet."""
    try:
        decoded = decode_timestamp_response(response)
        status = PKIStatus(decoded.status)
    except ValueError:
        raise AuditFormatError("A time stamp is a TimeStampResp of RFC 3161 in DER, and this is none.") from None
    if status is not PKIStatus.GRANTED or not decoded.time_stamp_token():
        raise AuditFormatError(f"The time stamp was not granted as asked for (status {status.name.lower().replace('_', ' ')}).")
    return decoded


def _reason(error: Exception) -> str:
    """Say in words what the library reports as a stack of OpenSSL's errors."""
    if "Mismatch between messages" in str(error):
        return "it is of another checkpoint, or the checkpoint's file was changed in any byte"
    if match := _CERTIFICATE_ERROR.search(str(error)):
        return f"its certificate does not lead to a root certificate that was given ({match[1]})"
    return "it was altered, or is not signed as RFC 3161 says"
