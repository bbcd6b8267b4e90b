"""Go's own transparency log code, built once, to check what we write with nothing of ours."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "go" / "verify.go"
# Where Debian's golang-golang-x-mod-dev puts Go's own module code.
GOPATH = "/usr/share/gocode"

GoVerifier = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def go_verifier(tmp_path_factory: pytest.TempPathFactory) -> GoVerifier:
    """Return what calls the Go program: `go_verifier(mode, *arguments)`; see verify.go for the modes."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go is not installed (Debian: golang-go)")
    if not (Path(GOPATH) / "src/golang.org/x/mod/sumdb/tlog").is_dir():
        pytest.skip("the source of golang.org/x/mod is not installed (Debian: golang-golang-x-mod-dev)")
    folder = tmp_path_factory.mktemp("go")
    environment = {**os.environ, "GOPATH": GOPATH, "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(folder / "cache"), "GOMAXPROCS": "2"}
    program = folder / "verify"
    built = subprocess.run([go, "build", "-o", program, SOURCE], env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    def verify(mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, mode, *arguments], capture_output=True, text=True, check=False, timeout=120)

    return verify
