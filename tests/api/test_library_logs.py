"""What libraries log, warn of and let fall: a programmer's words stay, everything else does not."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from clinical_ser.api.library_logs import constant_text
from tests.api.observed import Written, logging_to

NAME = "jane-doe-1970"

LIBRARY = """
import logging

logger = logging.getLogger("json.decoder.of.mine")
TEXT = "Kept as a constant."


def all_ways(name):
    logger.info("A constant text, %s and %d.", name, 3)
    logger.warning(TEXT)
    logger.warning("In two "
                   "parts.")
    logger.error(f"With {name} in it.")
    logger.error("Joined: " + name)
    logger.error("Formatted: %s" % name)
    logger.error(name)
    logger.error(ValueError(name))
    logger.error("%s", name)
    logger.info("extra", extra={"name_of_patient": name})
    logger.warning("with stack", stack_info=True)
    try:
        raise ValueError(name)
    except ValueError:
        logger.exception("It failed.\\n")
"""


def library(path: Path, source: str = LIBRARY) -> ModuleType:
    path.write_text(source, encoding="utf-8")
    module = ModuleType("library")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    with logging_to(tmp_path / "log") as (_, found):
        yield found


def test_only_texts_that_stand_in_the_source_are_written(tmp_path: Path, written: Written) -> None:
    library(tmp_path / "library.py").all_ways(NAME)
    lines = written.lines("library")
    assert [(line["level"], line.get("text")) for line in lines] == [
        ("info", "A constant text, %s and %d."),
        ("warning", "Kept as a constant."),
        ("warning", "In two parts."),
        ("error", None),
        ("error", None),
        ("error", None),
        ("error", None),
        ("error", None),
        ("error", "%s"),
        ("info", "extra"),
        ("warning", "with stack"),
        ("error", "It failed."),
    ]
    assert {line["logger"] for line in lines} == {"json.decoder"}
    assert lines[-1]["errors"] == ["ValueError"]
    assert NAME not in written.text


@pytest.mark.parametrize("source", ["not python (", "\0", "(" * 100_000], ids=["not python", "nul", "deep"])
def test_where_the_source_cannot_be_read_texts_are_left_out(tmp_path: Path, written: Written, source: str) -> None:
    module = library(tmp_path / "library.py")
    (tmp_path / "library.py").write_text(source)
    module.all_ways(NAME)
    assert len(written.lines("library")) == 12
    assert {line.get("text") for line in written.lines("library")} == {None}


def test_without_a_source_texts_are_left_out(tmp_path: Path, written: Written) -> None:
    module = library(tmp_path / "library.py")
    (tmp_path / "library.py").unlink()
    module.all_ways(NAME)
    assert {line.get("text") for line in written.lines("library")} == {None}


def test_a_very_large_source_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.py"
    path.write_text('A = "x"\n' + "# " + "x" * 1_000_000)
    assert constant_text(logging.LogRecord("x", 20, str(path), 1, "x", (), None)) is None


def test_hostile_names_and_texts_do_not_break_the_line(tmp_path: Path, written: Written) -> None:
    library(tmp_path / "library.py", 'import logging\nlogging.getLogger("json.a\\nb").error("red \\x1b[31m\\nnext")\n')
    (line,) = written.lines("library")
    assert (line["logger"], line["text"]) == ("json", "red  [31m next")
    assert written.text.count("\n") == 1


def test_our_own_modules_may_log_constants_the_usual_way(written: Written) -> None:
    logging.getLogger("clinical_ser.test").warning("Something of ours, %s.", NAME)
    assert [line["text"] for line in written.lines("library")] == ["Something of ours, %s."]
    assert NAME not in written.text


def test_a_logger_that_is_named_by_what_was_at_hand_is_not_named(written: Written) -> None:
    for name in (NAME, f"json.{NAME}", f"{NAME}.json", f"json.decoder.{NAME}", "root", "", "json..decoder", "."):
        logging.getLogger(name).warning("x")
    assert [line["logger"] for line in written.lines("library")] == ["(none)", "json", "(none)", "json.decoder", "root", "root", "json", "(none)"]
    assert NAME not in written.text


def test_levels_between_and_beyond_are_named_by_the_nearest_below(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "debug") as (_, written):
        for number in (5, 10, 25, 35, 99):
            logging.getLogger("some.other").log(number, "x")
    assert [line["level"] for line in written.lines("library")] == ["debug", "info", "warning", "error"]  # 5 is below the root's level


def test_below_the_level_nothing_of_libraries_is_written(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", "warning") as (_, written):
        logging.getLogger("some.other").info("x")
        logging.getLogger("some.other").warning("y")
    assert [line["text"] for line in written.lines()] == ["y"]


# Nothing else logs


def test_handlers_that_libraries_have_are_off_until_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("some.loud.library")
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    logger.propagate = False
    root, level = logging.getLogger(), logging.getLogger().level
    stray = logging.StreamHandler(sys.stdout)
    root.addHandler(stray)
    before = list(root.handlers)
    try:
        with logging_to(tmp_path / "log") as (_, written):
            logger.warning("Loud, %s.", NAME)
            root.warning("Root, %s.", NAME)
        assert [line["text"] for line in written.lines("library")] == ["Loud, %s.", "Root, %s."]
        assert capsys.readouterr() == ("", "")
        logger.warning("Afterwards.")
        assert capsys.readouterr().out == "Afterwards.\n"
        assert (root.handlers, root.level, logger.handlers, logger.propagate) == (before, level, [handler], False)
    finally:
        root.removeHandler(stray)
        logger.removeHandler(handler)


def test_a_logger_that_passes_nothing_on_does_not_fall_back_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(tmp_path / "log") as (_, written):
        logger = logging.getLogger("some.closed.library")
        logger.propagate = False
        logger.warning("Closed, %s.", NAME)
    assert [line["text"] for line in written.lines("library")] == ["Closed, %s."]
    assert capfd.readouterr() == ("", "")


def test_a_handler_added_later_that_fails_does_not_print_the_record(written: Written, capfd: pytest.CaptureFixture[str]) -> None:
    class Failing(logging.StreamHandler):
        def format(self, record: logging.LogRecord) -> str:
            return record.args["missing"]

    logger = logging.getLogger("some.failing.library")
    handler = Failing()
    logger.addHandler(handler)
    try:
        logger.warning("Failing, %s.", NAME)
    finally:
        logger.removeHandler(handler)
    assert NAME not in "".join(capfd.readouterr())


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose log is standard error, where nothing of pytest's is attached to the loggers."""
    begin = "import logging, sys\nfrom clinical_ser.api.logs import configure_logs\nlogs = configure_logs(sys.stderr)\n"
    return subprocess.run([sys.executable, "-c", begin + program, NAME], capture_output=True, text=True, check=False, timeout=60)


def test_uvicorns_access_log_stays_off_until_the_end() -> None:
    # uvicorn asks `hasHandlers` to know whether to write it.
    access = 'print(logging.getLogger("uvicorn.access").hasHandlers(), logging.getLogger("uvicorn.access").propagate)\n'
    assert run(f"{access}logs.close()\n{access}").stdout == "False False\nFalse True\n"


# Warnings


def test_a_warning_is_its_category_and_a_place_of_ours(written: Written) -> None:
    import clinical_ser.strict

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(NAME, DeprecationWarning, stacklevel=1)
        warnings.warn_explicit(NAME, UserWarning, str(clinical_ser.strict.__file__), 7)
    assert [(line["code"], line.get("places")) for line in written.lines("warning")] == [
        ("DeprecationWarning", None),
        ("UserWarning", ["clinical_ser/strict.py:7"]),
    ]
    assert NAME not in written.text


# What nobody catches


def test_an_exception_that_ends_a_thread_is_its_type(written: Written, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError(NAME)

    def leave() -> None:
        sys.exit(NAME)

    for target in (fail, leave):
        thread = threading.Thread(target=target, name=NAME)
        thread.start()
        thread.join()
    assert [(line["code"], line["errors"]) for line in written.lines("uncaught")] == [("thread", ["ValueError"])]
    assert NAME not in written.text + "".join(capfd.readouterr())


class Failing:
    def __del__(self) -> None:
        raise ValueError(NAME)


def test_an_exception_in_a_finalizer_is_its_type(written: Written, capfd: pytest.CaptureFixture[str]) -> None:
    Failing()
    gc.collect()
    assert [(line["code"], line["errors"]) for line in written.lines("uncaught")] == [("finalizer", ["ValueError"])]
    assert NAME not in written.text + "".join(capfd.readouterr())


def test_an_exception_that_ends_the_process_is_its_type() -> None:
    ended = run("raise ValueError(sys.argv[1])")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert (json.loads(line)["event"], json.loads(line)["code"], json.loads(line)["errors"]) == ("uncaught", "main", ["ValueError"])
    assert NAME not in ended.stdout


def test_hooks_are_given_back(tmp_path: Path) -> None:
    before = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning, logging.lastResort, logging.raiseExceptions
    with logging_to(tmp_path / "log"):
        pass
    assert before == (
        sys.excepthook,
        threading.excepthook,
        sys.unraisablehook,
        warnings.showwarning,
        logging.lastResort,
        logging.raiseExceptions,
    )


# The event loop


def test_a_task_whose_failure_nobody_looked_at_is_told_without_its_words(written: Written) -> None:
    async def fail(name: str) -> None:
        raise ValueError(name)

    async def main() -> None:
        task = asyncio.ensure_future(fail(NAME))
        await asyncio.sleep(0.01)
        del task
        gc.collect()

    asyncio.run(main())
    (line,) = written.lines("library")
    assert (line["logger"], line["text"], line["errors"]) == ("asyncio", "Task exception was never retrieved", ["ValueError"])
    assert NAME not in written.text


def test_a_callback_that_fails_is_told_without_its_arguments(written: Written) -> None:
    def fail(name: str) -> None:
        raise ValueError(name)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(fail, NAME)
        await asyncio.sleep(0.01)

    asyncio.run(main())
    (line,) = written.lines("library")
    assert (line["logger"], line.get("text"), line["errors"]) == ("asyncio", None, ["ValueError"])
    assert NAME not in written.text
