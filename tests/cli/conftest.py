"""The command line, run in the test's own process."""

import sys
from typing import NamedTuple

import pytest

from clinical_ser.cli import main


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; returns a Done."""

    def typed(*words):
        monkeypatch.setattr(sys, "argv", ["clinical-ser", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return Done(stopped.value.code or 0, out, err)

    return typed
