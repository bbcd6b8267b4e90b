"""How fast the HTTP API answers, what the audit adds, and where it saturates; beside the bare feature extraction of the same clip in the same run.

    python -m benchmarks.api --data DATA [--folder DIR] [--seconds 20] [--workers 2] [--switches 0] [--only-switches] [--json FILE]

DATA holds recordings (RAVDESS), of which a clip of five seconds is made; DIR has to be on the disk that is meant. The client runs on the same machine
and takes a part of it: figures are what is left. Every answer is durable in the audit log before it is counted.

With --switches, a server of its own is asked at a steady rate while the champion of its model changes in the registry so many times.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import jwt
import numpy as np
import soundfile
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.tables import publish
from clinical_ser import audio
from clinical_ser.api.access import Scope
from clinical_ser.api.api_keys import add_key
from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Role
from clinical_ser.features import extraction
from clinical_ser.models.bundle import MANIFEST, SIGNATURE, read_bundle
from clinical_ser.models.strict_json import canonical_json
from clinical_ser.registry.names import find_model
from clinical_ser.registry.records import Pointers, Record
from clinical_ser.registry.store import Registry
from clinical_ser.screening import load_model

MODEL = "emotion-emodb"
CLIP_S = 5.0
PAIRS = 40
"""Of one request and one bare extraction, in turn, so that what else the machine does meets both."""
LOAD = 0.8
NAME, SWITCH_LOAD, CALM_S, REST_S = "bench", 0.5, 20.0, 5.0
IDLE_S = 10.0
"""The server hangs up on a connection that is idle for 30 s."""
PORT, METRICS_PORT = 18443, 18444
Rows = list[dict[str, object]]


@dataclass
class Answered:
    """One request."""

    status: int
    seconds: float
    body: bytes
    ended: float = 0.0


class Connection:
    """A kept connection that says HTTP/1.1 as plainly as can be: a client library would take more of the machine than the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls) -> "Connection":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", PORT))

    async def ask(self, request: bytes) -> Answered:
        """Send a request, and read the whole answer."""
        began = time.perf_counter()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        body = await self._reader.readexactly(length)
        return Answered(int(head[9:12]), time.perf_counter() - began, body)


def get(path: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode()


def post(path: str, token: str, media: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def screening(clip: bytes, key: str, person: str) -> bytes:
    return post("/v1/screenings", key, "application/vnd.clinical-ser.screening", json.dumps({"subject": person}).encode() + b"\n" + clip)


def clip_of(data: Path) -> bytes:
    """Five seconds of real speech, as WAV."""
    parts, rate = [], 0
    for path in sorted(data.rglob("*.flac"))[:8] or sorted(data.rglob("*.wav"))[:8]:
        samples, rate = soundfile.read(path)
        parts.append(samples if samples.ndim == 1 else samples.mean(axis=1))
    out = io.BytesIO()
    soundfile.write(out, np.concatenate(parts)[: int(CLIP_S * rate)], rate, format="WAV")
    return out.getvalue()


def quantile(seconds: list[float], share: float) -> float:
    return float(np.quantile(seconds, share))


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


async def latency(clip: bytes, key: str) -> Rows:
    """Time requests one at a time, and the bare extraction in between."""
    screener = load_model(MODEL)
    recording = audio.load(clip)
    connection = await Connection.open()
    whole, bare = [], []
    for number in range(PAIRS + 5):
        answer = await connection.ask(screening(clip, key, f"latency {number}"))
        assert answer.status == 201, answer.body[:300]
        began = time.perf_counter()
        extraction.extract(recording, sets=screener._sets)
        took = time.perf_counter() - began
        if number >= 5:
            whole.append(answer.seconds)
            bare.append(took)
    ratio = statistics.median(whole) / statistics.median(bare)
    return [
        {"5 s clip, one at a time": "end to end, p50, ms", "figure": ms(quantile(whole, 0.5)), "goal": ""},
        {"5 s clip, one at a time": "end to end, p99, ms", "figure": ms(quantile(whole, 0.99)), "goal": ""},
        {"5 s clip, one at a time": "bare feature extraction, p50, ms", "figure": ms(quantile(bare, 0.5)), "goal": ""},
        {"5 s clip, one at a time": "ratio of the p50s", "figure": f"{ratio:.2f}", "goal": "at most 1.25"},
    ]


def metrics() -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics").read().decode()


def recorded() -> tuple[float, float]:
    """Return how many commits the server waited for, and for how long, from its metrics."""
    text = metrics()
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("clinical_ser_audit_commit_duration_seconds_"))
    name = "clinical_ser_audit_commit_duration_seconds"
    return float(found[f"{name}_count"]), float(found[f"{name}_sum"])


async def saturated(clip: bytes, key: str, clients: int, seconds: float) -> float:
    """Return how many recordings a second are answered, each client asking again as soon as it is answered."""
    end = time.perf_counter() + seconds

    async def client(number: int) -> int:
        connection, done = await Connection.open(), 0
        while time.perf_counter() < end:
            answer = await connection.ask(screening(clip, key, f"saturated {clients} {number} {done}"))
            assert answer.status == 201, answer.body[:300]
            done += 1
        return done

    began = time.perf_counter()
    done = await asyncio.gather(*(client(number) for number in range(clients)))
    return sum(done) / (time.perf_counter() - began)


async def paced(clip: bytes, key: str, rate: float, seconds: float, gap: Callable[[], float]) -> list[Answered]:
    """Ask at a rate, whatever comes back, and time each from when it was due."""
    found: list[Answered] = []
    free = [await Connection.open() for _ in range(64)]

    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        connection = free.pop() if free else await Connection.open()
        answer = await connection.ask(screening(clip, key, f"paced {began} {number}"))
        found.append(Answered(answer.status, time.perf_counter() - due, b""))
        free.append(connection)

    due, number, tasks = time.perf_counter(), 0, []
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
        number, due = number + 1, due + gap() / rate
    await asyncio.gather(*tasks)
    return found


async def throughput(requests: list[bytes], clients: int, seconds: float) -> tuple[float, float]:
    """Return GETs a second, and their p99."""
    end = time.perf_counter() + seconds
    took: list[float] = []

    async def client(number: int) -> None:
        connection, at = await Connection.open(), number
        while time.perf_counter() < end:
            answer = await connection.ask(requests[at % len(requests)])
            assert answer.status == 200, answer.body[:300]
            took.append(answer.seconds)
            at += clients

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return len(took) / (time.perf_counter() - began), quantile(took, 0.99)


def hook(key: ec.EllipticCurvePrivateKey, person: str) -> bytes:
    address = f"http://127.0.0.1:{PORT}/cds-services/speech-screening"
    now = int(time.time())
    claims = {"iss": "https://ehr.example", "aud": address, "iat": now, "exp": now + 240, "jti": base64.urlsafe_b64encode(os.urandom(12)).decode()}
    token = jwt.encode(claims, key, algorithm="ES384", headers={"kid": "k", "typ": "JWT"})
    call = {
        "hook": "patient-view",
        "hookInstance": "d1577c69-dfbe-44ad-ba6d-3e05e953b2ea",
        "context": {"userId": "Practitioner/7", "patientId": person},
    }
    return post("/cds-services/speech-screening", token, "application/json", json.dumps(call).encode())


async def measured(clip: bytes, key: str, signing: ec.EllipticCurvePrivateKey, seconds: float) -> dict[str, Rows]:
    tables: dict[str, Rows] = {}
    before = recorded()
    tables["Latency"] = await latency(clip, key)
    after = recorded()
    added = (after[1] - before[1]) / (after[0] - before[0])
    tables["Latency"].append({"5 s clip, one at a time": "of which the audit (mean), ms", "figure": ms(added), "goal": "at most 10"})

    rows: Rows = []
    rates = {}
    for clients in (1, 2, 4, 8):
        rates[clients] = await saturated(clip, key, clients, seconds)
        rows.append(
            {
                "5 s clips": f"{clients} clients, each at once again",
                "a second": f"{rates[clients]:.1f}",
                "p50, ms": "",
                "p99, ms": "",
                "p99 / p50": "",
            }
        )
    most = max(rates.values())
    even, random = (lambda: 1.0), np.random.default_rng(1).exponential
    for name, gap in (("evenly spaced", even), ("at random (Poisson)", random)):
        found = [one.seconds for one in await paced(clip, key, LOAD * most, 2 * seconds, gap)]
        half, most_all = quantile(found, 0.5), quantile(found, 0.99)
        row = {"p50, ms": ms(half), "p99, ms": ms(most_all), "p99 / p50": f"{most_all / half:.2f}"}
        rows.append({"5 s clips": f"{LOAD:.0%} of the most, {name}", "a second": f"{LOAD * most:.1f}", **row})
    tables["Saturation (goal: p99 under 3 times p50 at 80 %)"] = rows

    connection = await Connection.open()
    made = [json.loads((await connection.ask(screening(clip, key, f"read {number}"))).body)["id"] for number in range(50)]
    rows = []
    for name, paths in {
        "/v1/screenings/{id} (25 kB, each reading recorded)": [f"/v1/screenings/{one}" for one in made],
        "/v1/models": ["/v1/models"],
        "/v1/audit/checkpoint": ["/v1/audit/checkpoint"],
        "/livez": ["/livez"],
    }.items():
        for clients in (1, 32):
            rate, slow = await throughput([get(path, key) for path in paths], clients, seconds / 2)
            rows.append({"GET": name, "clients": clients, "a second": f"{rate:,.0f}", "p99, ms": ms(slow)})
    tables["Reading (goal: over 1,000 a second)"] = rows

    connection = await Connection.open()  # the last one was idle for longer than the server keeps one
    await connection.ask(screening(clip, key, "chart"))
    took = []
    for number in range(205):
        answer = await connection.ask(hook(signing, "chart"))
        assert answer.status == 200, answer.body[:300]
        assert json.loads(answer.body)["cards"], "no card"
        if number >= 5:
            took.append(answer.seconds)
    tables["CDS Hooks"] = [
        {"patient-view (signed, one card, recorded)": "p50, ms", "figure": ms(quantile(took, 0.5)), "goal": ""},
        {"patient-view (signed, one card, recorded)": "p99, ms", "figure": ms(quantile(took, 0.99)), "goal": "under 100"},
    ]
    return tables


def versions(folder: Path) -> tuple[Registry, list[str]]:
    """Put two versions of the model into a registry, under a name that can be switched, and return their digests."""
    registry, digests = Registry(folder / "registry"), []
    for version in ("1", "2"):
        copy = folder / f"version-{version}"
        shutil.copytree(find_model(MODEL), copy, ignore=shutil.ignore_patterns(SIGNATURE))
        manifest = json.loads((copy / MANIFEST).read_bytes()) | {"name": NAME, "version": version}
        (copy / MANIFEST).write_bytes(canonical_json(manifest))
        digests.append(registry.add(copy, Record.of(read_bundle(copy), change="imported")))
    promote(registry, digests[0])
    return registry, digests


def promote(registry: Registry, digest: str) -> None:
    head = registry.head(NAME)
    registry.switch(
        NAME, expected=head and head.digest, action="promoted", pointers=Pointers(champion=digest), bundle=digest, actor="bench", reason="bench"
    )


async def switching(clip: bytes, key: str, registry: Registry, digests: list[str], switches: int) -> Rows:
    """Ask at a rate, first of one model, then while the champion changes again and again."""
    most = await saturated(clip, key, 4, 8.0)
    rate = SWITCH_LOAD * most
    calm_until = time.perf_counter() + CALM_S
    calm = await named(clip, key, rate, lambda: time.perf_counter() > calm_until, "calm", digests)
    loop = asyncio.get_running_loop()
    moved: list[tuple[float, str]] = []

    async def move() -> None:
        for number in range(1, switches + 1):
            digest = digests[number % 2]
            await loop.run_in_executor(None, promote, registry, digest)
            moved.append((time.perf_counter(), digest))
            while digest not in await loop.run_in_executor(None, metrics):
                await asyncio.sleep(0.2)
            await asyncio.sleep(REST_S)

    moving = loop.create_task(move())
    found = await named(clip, key, rate, moving.done, "moving", digests)
    await moving
    took, busy = [], []
    ends = [at for at, _ in moved[1:]] + [float("inf")]
    for (at, digest), until in zip(moved, ends, strict=True):
        later = [one for one in found if at < one.ended < until]
        first = min(one.ended for one in later if one.body == digest.encode())
        took.append(first - at)
        # From the promotion until the old model has answered its last: the time in which there are two crews, and one of them starts.
        last = max((one.ended for one in later if one.body != digest.encode()), default=first)
        busy += [one.seconds for one in later if one.ended <= max(first, last)]
    lost = sum(one.status != 201 for one in [*calm, *found])
    mixed = sum(one.body not in {digest.encode() for digest in digests} for one in found)
    seconds = {"calm": [one.seconds for one in calm], "switching": busy}
    return [
        {"switching": f"requests, at {rate:.1f} a second ({SWITCH_LOAD:.0%} of the most)", "figure": len(calm) + len(found)},
        {"switching": "of which lost", "figure": lost},
        {"switching": "answers that name no model, or both", "figure": mixed},
        {
            "switching": f"switches; from the promotion to the first answer of the new model, s (of {len(took)})",
            "figure": f"{min(took):.1f} to {max(took):.1f}",
        },
        *(
            {"switching": f"{name}: p50 / p99, ms", "figure": f"{ms(quantile(each, 0.5))} / {ms(quantile(each, 0.99))}"}
            for name, each in seconds.items()
        ),
    ]


async def named(clip: bytes, key: str, rate: float, done: Callable[[], bool], what: str, digests: list[str]) -> list[Answered]:
    """Ask at a rate, each of another person, and keep which models the answers name, in place of their bodies, and when they came."""
    found: list[Answered] = []
    free: list[tuple[Connection, float]] = []
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        connection, used = free.pop() if free else (await Connection.open(), time.perf_counter())
        if time.perf_counter() - used > IDLE_S:
            connection = await Connection.open()
        answer = await connection.ask(screening(clip, key, f"{what} {number}"))
        ended = time.perf_counter()
        models = b" ".join(digest.encode() for digest in digests if digest.encode() in answer.body)
        found.append(Answered(answer.status, ended - due, models, ended))
        free.append((connection, time.perf_counter()))

    tasks = []
    while not done():
        due = began + len(tasks) / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(len(tasks), due)))
    await asyncio.gather(*tasks)
    return found


def memory(process: int) -> Rows:
    """Return the memory of the server and of its workers."""
    rows: Rows = []
    listed = subprocess.run(
        ["ps", "-o", "pid=,rss=,cputime=,args=", "--ppid", str(process), "-p", str(process)], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        _, kib, cpu, words = line.split(None, 3)
        rows.append({"process": "worker" if "worker" in words else "server", "MiB": int(kib) // 1024, "CPU time": cpu})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--switches", type=int, default=0)
    parser.add_argument("--only-switches", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        folder = Path(made)
        audit = LogConfiguration("bench.example/log", f"sqlite:{folder}/audit.sqlite", folder / "keys")
        audit.create(folder / "audit.toml")
        key = add_key(folder / "api_keys.json", client="bench", name=None, tenant="", role=Role.SERVICE, scopes=tuple(Scope)).text
        signing = ec.generate_private_key(ec.SECP384R1())
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(signing.public_key())) | {"kid": "k", "use": "sig", "alg": "ES384"}
        (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
        (folder / "server.toml").write_text(settings(folder, MODEL, given.workers))
        clip, tables = clip_of(given.data), {}
        if not given.only_switches:
            with served(folder) as server:
                tables = asyncio.run(measured(clip, key, signing, given.seconds))
                tables["Memory after it"] = memory(server.pid)
        if given.switches:
            registry, digests = versions(folder / "home")
            (folder / "server.toml").write_text(settings(folder, NAME, given.workers))
            with served(folder) as server:
                name = f"Another champion, {given.switches} times"
                tables[name] = asyncio.run(switching(clip, key, registry, digests, given.switches))
                tables["Memory after that"] = memory(server.pid)
    publish(tables, given.json)


def settings(folder: Path, model: str, workers: int) -> str:
    return (
        f'models = ["{model}"]\napi_keys = "{folder}/api_keys.json"\nspool = "{folder}/spool"\n'
        f"[listen]\nport = {PORT}\nmetrics_port = {METRICS_PORT}\n[work]\nworkers = {workers}\n"
        "[limits]\nscreenings_per_s = 1e6\nrequests_per_s = 1e6\nconcurrent = 512\nwaiting = 512\n"
        f'[[cds.clients]]\niss = "https://ehr.example"\nkeys = "{folder}/jwks.json"\n'
    )


@contextmanager
def served(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a server as it is configured in a folder, and stop it."""
    environment = os.environ | {"CLINICAL_SER_AUDIT": str(folder / "audit.toml"), "CLINICAL_SER_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "clinical_ser", "serve", "--config", str(folder / "server.toml")]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, env=environment, stderr=log)
    try:
        wait_until_ready(server)
        yield server
    finally:
        server.terminate()
        server.wait(60)


def wait_until_ready(server: "subprocess.Popen[bytes]") -> None:
    while True:
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz")
        except OSError:
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    main()
