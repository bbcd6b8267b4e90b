"""All benchmarks, one after the other: `python -m benchmarks DATA`, with DATA/ravdess and DATA/emodb-2s as docs/benchmarks.md says.

Encoders are measured where they are installed (`clinical-ser encoder install ge2e`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as work:
        for name, words in (
            ("runtime", ["--data", data / "emodb-2s"]),
            ("praat_parity", ["--data", data / "ravdess"]),
            ("extraction_scaling", ["--data", data / "ravdess"]),
            ("emotion", ["--corpus", "ravdess", "--data", data / "ravdess", "--cache", Path(work) / "cache"]),
            ("emotion", ["--corpus", "emodb", "--data", data / "emodb-2s", "--cache", Path(work) / "cache"]),
            ("speaker_leak", ["--corpus", "ravdess", "--data", data / "ravdess", "--cache", Path(work) / "cache"]),
            ("speaker_leak", ["--corpus", "emodb", "--data", data / "emodb-2s", "--cache", Path(work) / "cache"]),
            ("cross_corpus", ["--ravdess", data / "ravdess", "--emodb", data / "emodb-2s", "--cache", Path(work) / "cache"]),
            ("near_duplicates", ["--data", data / "ravdess"]),
            ("evaluation_speed", []),
            ("interval_coverage", []),
            ("simulated_truth", ["--data", Path(work)]),
            ("explanation", ["--data", Path(work), "--emodb", data / "emodb-2s"]),
            ("timeline", ["--data", data / "emodb-2s"]),
            ("report", []),
            ("neural_folds", [data / "ravdess", "--epochs", 45, "--precision", "bfloat16", "--out", Path(work) / "cnn.npz"]),
            ("embeddings", ["--corpus", "ravdess", "--data", data / "ravdess", "--neural", f"cnn={Path(work) / 'cnn.npz'}"]),
            ("embeddings", ["--corpus", "emodb", "--data", data / "emodb-2s"]),
            ("ge2e_layers", ["--data", data / "ravdess"]),
            ("student_encoder", ["--emodb", data / "emodb-2s", "--ravdess", data / "ravdess"]),
            ("long_recordings", []),
            ("audit", ["--folder", work]),
            ("continual", []),
            ("forgetting", ["--data", data, "--tables", Path(work) / "forgetting"]),
            ("drift", ["--data", Path(work) / "drift"]),
            ("federated", ["equality"]),
            ("federated", ["cost", "--sites", "3,10"]),
        ):
            print(f"\n## {name}\n", flush=True)
            subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
