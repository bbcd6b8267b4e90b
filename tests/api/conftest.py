"""One server for all tests of a process that leave it as it was."""

from pathlib import Path

import pytest

from tests.api.servers import Server, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path):
    """A server with one model that answers any usable recording; what it answers means nothing."""
    with serving(tmp_path_factory.mktemp("server"), (str(bundle),)) as running:
        yield running


@pytest.fixture
def client(server: Server):
    """A client that may do everything."""
    return server.client()


@pytest.fixture(scope="session")
def recording(speech_wav: Path) -> bytes:
    """A recording that the gate lets pass."""
    return speech_wav.read_bytes()
