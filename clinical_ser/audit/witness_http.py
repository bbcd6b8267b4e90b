"""A witness on the network, and the client that asks one for cosignatures (c2sp.org/tlog-witness).

The one idea: neither side believes the other. The server reads no more than a request can need and echoes nothing; the client follows nothing,
waits no longer than told, and takes from an answer only signatures that fit the checkpoint it sent.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from clinical_ser.audit.checkpoint import Checkpoint, parse_decimal
from clinical_ser.audit.notes import NoteSignature, VerifierKey, open_note, parse_note
from clinical_ser.audit.witness import COSIGNATURE_TYPES, MAX_REQUEST_BYTES, Witness, WitnessRefusalError, WitnessRequest
from clinical_ser.errors import AuditFormatError, AuditKeyError, AuditSetupError, AuditTamperedError, AuditUnavailableError, WitnessError

if TYPE_CHECKING:  # installed with the servers' extra; asking a witness needs neither
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

ADD_CHECKPOINT = "/add-checkpoint"
SIZE_TYPE = "text/x.tlog.size"
MAX_ANSWER_BYTES = 64 * 1024
"""An answer holds one signature line a key; ten of ML-DSA-44 take 33 kB."""
READ_TIMEOUT_S = 10.0
"""A whole request is one packet or a few; whoever needs longer holds a place that others wait for."""
MAX_CONNECTIONS = 64

# One answer tells the size to start from. Another client may have been faster meanwhile, so a few more; a witness that moves on and on is not used.
_MAX_TRIES = 4
_MAX_PORT = 65535
_URL = re.compile(r"[\x21-\x7e]{1,2048}")
_REFUSALS = {
    HTTPStatus.BAD_REQUEST: "The witness could not read the request, or found the old size above the checkpoint's.",
    HTTPStatus.FORBIDDEN: "The witness found no signature on the checkpoint by a key that it has for this log; give it the log's verifier key.",
    HTTPStatus.NOT_FOUND: "The witness does not know this log, or the address is not a witness; ask its operator to add the log's origin and key.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "The witness found that the consistency proof does not lead from the checkpoint it cosigned last to this one.",
}


def witness_app(witness: Witness) -> "Starlette":
    """Return the ASGI application of a witness: POST /add-checkpoint and nothing else."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    async def add_checkpoint(request: "Request") -> "Response":
        return await answer_add_checkpoint(witness, request)

    def on_http_error(_: "Request", error: Exception) -> "Response":
        status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (500, None)
        return _response(HTTPStatus(status), headers=dict(headers or {}))

    app = Starlette(
        routes=[Route(ADD_CHECKPOINT, add_checkpoint, methods=["POST"])],
        exception_handlers={HTTPException: on_http_error, Exception: on_http_error},
    )
    # Starlette otherwise answers "/add-checkpoint/" with a redirect that repeats the client's Host header.
    app.router.redirect_slashes = False
    return app


async def answer_add_checkpoint(witness: Witness, request: "Request") -> "Response":
    """Answer an add-checkpoint request, whichever application it came to.

    The witness' own work (signatures, a write to disk) runs in a worker thread, so that a slow disk does not stop the others from being read.
    """
    from anyio import to_thread

    try:
        body = await _body_within_limits(request)
        return _response(HTTPStatus.OK, await to_thread.run_sync(witness.add_checkpoint, body))
    except _UnreadRequestError as error:
        # What was not read still lies in the connection, so it cannot carry another request.
        return _response(error.status, headers={"Connection": "close"})
    except WitnessRefusalError as refusal:
        if refusal.size is not None:
            return _response(refusal.status, f"{refusal.size}\n", media_type=SIZE_TYPE)
        return _response(refusal.status, f"{refusal}\n")
    except (AuditUnavailableError, AuditKeyError):
        return _response(HTTPStatus.SERVICE_UNAVAILABLE)


class _UnreadRequestError(Exception):
    """A request that is not read to its end."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


async def _body_within_limits(request: "Request") -> bytes:
    from anyio import fail_after
    from starlette.requests import ClientDisconnect

    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or len(announced) > 18 or int(announced) > MAX_REQUEST_BYTES:
        raise _UnreadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    body = bytearray()
    try:
        with fail_after(READ_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_REQUEST_BYTES:
                    raise _UnreadRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    except TimeoutError:
        raise _UnreadRequestError(HTTPStatus.REQUEST_TIMEOUT) from None
    except ClientDisconnect:  # nobody is left to read the answer
        raise _UnreadRequestError(HTTPStatus.BAD_REQUEST) from None
    return bytes(body)


def _response(
    status: HTTPStatus, content: str | None = None, *, media_type: str = "text/plain; charset=utf-8", headers: dict[str, str] | None = None
) -> "Response":
    from starlette.responses import Response

    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Type": media_type}
    return Response(f"{status.phrase}\n" if content is None else content, status, headers={**(headers or {}), **fixed})


def serve(app: "Starlette", host: str, port: int, *, certificate: Path | None = None, key: Path | None = None) -> None:
    """Serve until the process is told to stop.

    Parameters
    ----------
    app
        The witness (`witness_app`).
    host, port
        Where to listen. Only a loopback address goes without TLS: behind it stands a proxy that has it.
    certificate, key
        PEM files of the server's certificate with its chain, and of its private key.

    Raises
    ------
    AuditSetupError
        Another host without TLS; a certificate or key that cannot be used; an address that cannot be listened on.
    """
    server = witness_server(app, host, certificate=certificate, key=key)
    with listener(host, port) as listening:
        server.run(sockets=[listening])


def witness_server(app: "Starlette", host: str, *, certificate: Path | None = None, key: Path | None = None) -> "uvicorn.Server":
    """Return a server that is set up and does not listen yet; AuditSetupError as for `serve`."""
    import uvicorn

    if (certificate is None) != (key is None):
        raise AuditSetupError("TLS needs both files, the certificate and its private key.")
    if certificate is None and not _is_loopback(host):
        raise AuditSetupError("Without TLS a witness listens on a loopback address only; give a certificate and key, or listen on 127.0.0.1.")
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=int(READ_TIMEOUT_S),
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise AuditSetupError(f"The TLS certificate and key cannot be used: {reason}.") from None
    return uvicorn.Server(config)


def listener(host: str, port: int) -> socket.socket:
    """Return a listening socket; AuditSetupError where there can be none. Port 0 lets the system choose."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= _MAX_PORT:
        raise AuditSetupError(f"A port is a number from 0 to {_MAX_PORT}.")
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise AuditSetupError(f"The witness cannot listen there: {error.strerror}.") from None


def request_cosignatures(
    url: str,
    note: str,
    keys: Sequence[VerifierKey],
    *,
    consistency: Callable[[int], Sequence[bytes]],
    old_size: int = 0,
    timeout_s: float = 10.0,
    tls: ssl.SSLContext | None = None,
) -> tuple[NoteSignature, ...]:
    """Ask a witness to cosign a checkpoint.

    Parameters
    ----------
    url
        The witness' submission prefix: https, or http on a loopback address.
    note
        The signed checkpoint.
    keys
        The witness' verifier keys; signatures by others are ignored.
    consistency
        Makes the proof that the checkpoint's tree grew from one of the given size (`Prover.consistency`). Called anew when the witness says that
        the checkpoint it cosigned last has another size.
    old_size
        Size of the tree that this witness cosigned last, as far as known; 0 lets it say.
    timeout_s
        How long one request may take from the connection to the last byte of its answer.
    tls
        For a witness whose certificate is not by an authority that the system trusts.

    Returns
    -------
    tuple of NoteSignature
        At least one; each fits the checkpoint and one of the keys.

    Raises
    ------
    WitnessRefusalError
        The witness does not cosign; `size` tells when it knows a larger tree of this log.
    WitnessError
        It cannot be reached, or answers what cannot be used.
    AuditFormatError
        The note is no checkpoint.
    AuditKeyError
        A key is not for cosignatures, is there twice, or of an algorithm that the installed cryptography library does not have.
    """
    if any(key.algorithm not in COSIGNATURE_TYPES for key in keys):
        raise AuditKeyError("A witness' keys are for cosignatures (type 4 or 6); another key's signature says nothing about the log's history.")
    text, _ = parse_note(note)
    checkpoint = Checkpoint.parse(text)
    address = url.rstrip("/") + ADD_CHECKPOINT
    for _ in range(_MAX_TRIES):
        body = WitnessRequest(old_size, tuple(consistency(old_size)) if old_size else (), note).encode()
        answer = post(address, body, content_type="text/plain; charset=utf-8", timeout_s=timeout_s, max_answer_bytes=MAX_ANSWER_BYTES, tls=tls)
        if answer.status == HTTPStatus.OK:
            return _fitting_signatures(text, answer.body, keys)
        old_size = _size_to_start_from(answer, old_size, checkpoint.size)
    raise WitnessError("The witness named another size each time it was asked; ask again when no one else submits checkpoints of this log.")


def _fitting_signatures(text: str, lines: bytes, keys: Sequence[VerifierKey]) -> tuple[NoteSignature, ...]:
    try:
        # An empty line in the answer would make what is before it part of the text, which then is no checkpoint, and no cosignature fits.
        answered = open_note(f"{text}\n{lines.decode('utf-8')}", keys)
    except (UnicodeDecodeError, AuditFormatError):
        raise WitnessError("The witness' answer is not made of signature lines.") from None
    except AuditTamperedError:
        raise WitnessError("The witness' answer holds no cosignature that fits this checkpoint and the witness' keys.") from None
    return tuple(signature for _, signature in answered.verified)


def _size_to_start_from(answer: "Answer", asked: int, own: int) -> int:
    """Return the size that a 409 names, where a proof can start from it; raise for whatever else is not a cosignature."""
    if answer.status in _REFUSALS:
        status = HTTPStatus(answer.status)
        raise WitnessRefusalError(status, _REFUSALS[status])
    if answer.status != HTTPStatus.CONFLICT:
        raise WitnessError(f"The witness answers with HTTP status {answer.status}, which is neither a cosignature nor a refusal it may give.")
    size = _named_size(answer)
    if size is None or size == asked:
        raise WitnessRefusalError(
            HTTPStatus.CONFLICT,
            "The witness cosigned another tree of the same size under this log's name: one of two histories is not the log's. Compare its "
            "checkpoint with this one before anything else is signed.",
        )
    if size > own:
        raise WitnessRefusalError(
            HTTPStatus.CONFLICT,
            f"The witness already cosigned a tree of {size} records under this log's name, and this checkpoint has {own}: send the newest "
            "checkpoint, and if this is the newest, the log lost records or its key signs elsewhere.",
            size=size,
        )
    return size


def _named_size(answer: "Answer") -> int | None:
    """Return the size that a 409 names, None where it is one without (tlog-witness: the roots differ)."""
    if answer.content_type != SIZE_TYPE:
        return None
    try:
        return parse_decimal(answer.body.decode("ascii").removesuffix("\n"), "The witness' size")
    except (UnicodeDecodeError, AuditFormatError):
        raise WitnessError("The witness answers with a conflict and what is no tree size.") from None


@dataclass(frozen=True)
class Answer:
    """What came back: status, media type in lower case and without parameters, and the whole body."""

    status: int
    content_type: str
    body: bytes


def post(url: str, body: bytes, *, content_type: str, timeout_s: float, max_answer_bytes: int, tls: ssl.SSLContext | None = None) -> Answer:
    """Send one POST request and read its answer, with bounds on time and size and without following it anywhere.

    Parameters
    ----------
    url
        https, or http on a loopback address.
    body, content_type
        What to send.
    timeout_s
        For the connection, and again for the rest together, however slowly the bytes drip.
    max_answer_bytes
        A longer body is an error.
    tls
        None for the system's trusted authorities.

    Raises
    ------
    WitnessError
        The address is not of that kind; no answer, a redirect, or one cut short or too long.
    """
    headers = {"Content-Type": content_type}
    return _exchange("POST", url, body, headers, timeout_s=timeout_s, max_answer_bytes=max_answer_bytes, tls=tls)


def get(url: str, *, accept: str, timeout_s: float, max_answer_bytes: int, tls: ssl.SSLContext | None = None) -> Answer:
    """Send one GET request for what has one of the media types `accept`; otherwise as `post`."""
    return _exchange("GET", url, None, {"Accept": accept}, timeout_s=timeout_s, max_answer_bytes=max_answer_bytes, tls=tls)


def check_address(url: str) -> None:
    """Raise WitnessError for what is no address that `post` and `get` take."""
    _target(url)


def _exchange(
    method: str, url: str, body: bytes | None, headers: dict[str, str], *, timeout_s: float, max_answer_bytes: int, tls: ssl.SSLContext | None
) -> Answer:
    target = _target(url)
    path = target.path + (f"?{target.query}" if target.query else "")
    expired = threading.Event()
    try:
        with contextlib.closing(_connection(target, timeout_s, tls)) as connection, _deadline(connection.sock, timeout_s, expired):
            if isinstance(connection.sock, ssl.SSLSocket):
                connection.sock.do_handshake()
            connection.request(method, path or "/", body, {**headers, "User-Agent": "clinical-ser", "Connection": "close"})
            with connection.getresponse() as response:
                content = response.read(max_answer_bytes + 1)
                cut_short = bool(response.length) and len(content) <= max_answer_bytes
    except (OSError, http.client.HTTPException) as error:
        reason = "it took too long" if expired.is_set() or isinstance(error, TimeoutError) else _why(error)
        raise WitnessError(f"There was no answer that could be used: {reason}. Check the address and the network, and try again.") from None
    if expired.is_set() or cut_short:
        raise WitnessError("The answer did not arrive whole in time; try again.")
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        raise WitnessError("The answer is a redirect, which is not followed; give the address that it leads to, if that is the right one.")
    if len(content) > max_answer_bytes:
        raise WitnessError(f"The answer is longer than {max_answer_bytes} bytes, so it is not from such a service.")
    media_type = response.getheader("Content-Type", "").partition(";")[0].strip().lower()
    return Answer(response.status, media_type, content)


def _target(url: str) -> SplitResult:
    target = _split(url)
    if target is None or target.username is not None or target.password is not None or target.fragment:
        raise WitnessError("The address is not a URL with a host, and without user name, password or fragment.")
    if target.scheme != "https" and not (target.scheme == "http" and _is_loopback(target.hostname or "")):
        raise WitnessError("The address has to begin with https://; only a loopback address such as http://127.0.0.1 goes without.")
    return target


def _split(url: str) -> SplitResult | None:
    """Return the URL's parts when it is one to a host; None otherwise."""
    # Looked at before: urlsplit takes out newlines and tabs, and then reads what was not written.
    if not _URL.fullmatch(url):
        return None
    try:
        target = urlsplit(url)
        (target.hostname or "").encode("idna")  # what the socket does with it, and fails where a label is empty or too long
        usable = bool(target.hostname) and target.port != 0
    except ValueError:
        return None
    return target if usable else None


def _connection(target: SplitResult, timeout_s: float, tls: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """Connect without TLS' handshake, which the deadline shall cover too."""
    host, secure = target.hostname or "", target.scheme == "https"
    port = target.port or (443 if secure else 80)
    sock = socket.create_connection((host, port), timeout=timeout_s)
    if not secure:
        connection = http.client.HTTPConnection(host, port)
    else:
        context = tls or ssl.create_default_context()
        sock = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        connection = http.client.HTTPSConnection(host, port, context=context)
    connection.sock = sock
    return connection


@contextlib.contextmanager
def _deadline(sock: socket.socket, timeout_s: float, expired: threading.Event) -> Iterator[None]:
    """Cut the connection after that time; a socket's own timeout starts anew with each byte."""

    def cut() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            # Not sock.shutdown(): an SSLSocket then forgets its TLS state, and what is still in the pipe would be read as plain text.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _why(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "the server does not speak TLS as it should"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "the server does not speak HTTP as it should"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
