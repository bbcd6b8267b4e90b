"""The command line, run in the test's own process."""

import sys

import pytest

from clinical_ser.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["clinical-ser", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return typed
