"""Tries to break a server of its own: damaged recordings for minutes, and kill -9 under load.

    python -m tools.attack_server --minutes 10 --kills 10

It ends with 1 when the server itself failed: an answer that is none, an acknowledged screening that is lost, one that was recorded twice. What
becomes of workers is counted, since they are there to die. docs/security.md has what came of it.
"""

import argparse
import io
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import soundfile

from clinical_ser.audit.configuration import LogConfiguration
from clinical_ser.audit.events import Inference, QualityRejection
from tests.api.servers import Client, serving
from tests.api.test_surviving import started

MODEL = "emotion-emodb"
EXPECTED = {201, 202, 400, 413, 422}
"""400: nothing was left of the file."""


def speech(seconds: float = 3.0, rate: int = 16_000) -> np.ndarray:
    time_s = np.arange(int(seconds * rate)) / rate
    pulses = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 20))
    return (0.1 * pulses * (np.sin(2 * np.pi * 2 * time_s) > -0.3)).astype("float32")


def seeds() -> dict[str, bytes]:
    """One small recording in each container that decoders here take."""
    samples, found = speech(), {}
    for container, subtype in (
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("MP3", None),
        ("AIFF", None),
        ("CAF", None),
        ("AU", None),
    ):
        out = io.BytesIO()
        soundfile.write(out, samples, 16_000, format=container, subtype=subtype)
        found[f"{container} {subtype or ''}".strip()] = out.getvalue()
    for container, codec in (("mp4", "aac"), ("matroska", "libopus"), ("webm", "libopus"), ("mpegts", "aac"), ("avi", "pcm_s16le")):
        out = io.BytesIO()
        with av.open(out, "w", format=container) as file:
            stream = file.add_stream(codec, rate=48_000 if codec == "libopus" else 16_000)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray((samples * 32_767).astype("int16")[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            resampler = av.AudioResampler(stream.format, "mono", stream.rate, frame_size=stream.codec_context.frame_size or 0)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        found[f"{container} {codec}"] = out.getvalue()
    return found


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change, cut, double, move or swell parts of a file, its headers above all."""
    raw = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16, 64))):
        at = int(len(raw) * chance.random() ** chance.choice((1, 3, 8)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            raw[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
        elif kind == 2:
            del raw[at : at + chance.randrange(1, 200)]
        elif kind == 3:
            raw[at:at] = raw[at : at + chance.randrange(1, 2000)]
        elif kind == 4:
            raw = raw[: max(1, at)]
        else:
            raw[at : at + 16] = chance.randbytes(16)
    return bytes(raw[:1_000_000])


def fuzz(minutes: float, seed: int) -> int:
    """Send damaged recordings, and return how often the server itself failed."""
    chance, files = random.Random(seed), list(seeds().values())  # noqa: S311
    statuses: Counter[str] = Counter()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), (MODEL,), work={"workers": 2}) as server:
        end = time.monotonic() + minutes * 60
        number = 0
        while time.monotonic() < end:
            answer = server.client().screen(damaged(chance.choice(files), chance), subject=f"fuzz {number}")
            number += 1
            kind = answer.json.get("type", "").rpartition(":")[2] if answer.status >= 400 else "answered"
            statuses[f"{answer.status} {kind}"] += 1
            failures += answer.status not in EXPECTED
        lost = dict(server.service.workers.counts.lost)
        good = server.client().screen(files[0], subject="after")
        failures += good.status != 201
        failures += server.client().get("/readyz").status != 200
    print(
        json.dumps(
            {"damaged recordings": number, "answers": dict(statuses.most_common()), "workers lost": lost, "failures of the server": failures},
            indent=2,
        )
    )
    return failures


def kill(times: int) -> int:
    """Kill the server under load again and again; return how many acknowledged screenings are lost, or were recorded twice."""
    out = io.BytesIO()
    soundfile.write(out, speech(), 16_000, format="WAV")
    clip = out.getvalue()
    acknowledged: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for round_number in range(times):
            with started(folder, Path(MODEL), workers=2) as server:
                stop = threading.Event()

                def ask(worker: int, client: Client = server.client, stop: threading.Event = stop, turn: int = round_number) -> None:
                    number = 0
                    while not stop.is_set():
                        key = f"{turn}-{worker}-{number}"
                        told = {"Idempotency-Key": key} | ({"Prefer": "respond-async"} if number % 3 == 0 else {})
                        try:
                            answer = client.screen(clip, told, subject=key)
                        except OSError:
                            return
                        if answer.status in {200, 201, 202}:
                            acknowledged[key] = answer.json["id"]
                        number += 1

                threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
                for thread in threads:
                    thread.start()
                time.sleep(2 + random.random())  # noqa: S311
                server.kill()
                stop.set()
                for thread in threads:
                    thread.join()
        with started(folder, Path(MODEL), workers=2) as server:
            lost = 0
            for screening in acknowledged.values():
                deadline = time.monotonic() + 60
                while (found := server.client.get(f"/v1/screenings/{screening}")).status == 200 and found.json["state"] in {"accepted", "running"}:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.05)
                lost += found.status != 200 or found.json["state"] != "done"
        audit = LogConfiguration.load(folder / "audit.toml")
        audit.verify()
        with audit.read() as reader:
            each = [len([i for i in reader.named(key) if isinstance(reader.record(i).payload, Inference | QualityRejection)]) for key in acknowledged]
    twice = sum(count != 1 for count in each)
    print(json.dumps({"kills": times, "acknowledged": len(acknowledged), "lost": lost, "not recorded exactly once": twice}, indent=2))
    return lost + twice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    failed = fuzz(given.minutes, given.seed) if given.minutes else 0
    failed += kill(given.kills) if given.kills else 0
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
