"""What travels in the app: three files that name the installed code, whatever lies beside them."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from federated.gate import APP_FOLDER, build_hash, build_of_this_version

# Flower 1.41 asks pathspec for a name that pathspec has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
EXPECTED = {
    "pyproject.toml",
    "clinical_ser_app/__init__.py",
    "clinical_ser_app/site.py",
    "clinical_ser_app/coordinator.py",
    ".info/CONTENT",
}
DATA = ("patients.parquet", "patients.jsonl", "patients.csv", "patients.json", "notes.md", "more.yaml", "export.py")


def names_in(bundle):
    return set(zipfile.ZipFile(io.BytesIO(bundle)).namelist())


@pytest.fixture
def littered(tmp_path):
    """The app's folder with data files lying about at every depth."""
    app = tmp_path / "app"
    shutil.copytree(APP_FOLDER, app, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (app, app / "data", app / "clinical_ser_app", app / "clinical_ser_app" / "data"):
        folder.mkdir(exist_ok=True)
        for name in DATA:
            (folder / name).write_text('{"subject": "MRN-1"}\n')
    return app


def test_no_data_file_rides_along(littered):
    bundle = build_fab_from_disk(littered)
    assert names_in(bundle) == EXPECTED
    assert build_hash(bundle) == build_hash(build_of_this_version())


def test_without_the_list_of_files_data_would_ride_along(littered):
    # What the list is there for: should Flower change its mind, this test says so.
    project = littered / "pyproject.toml"
    project.write_text(re.sub(r"^fab-include.*\n", "", project.read_text(), flags=re.MULTILINE))
    assert {"patients.json", "data/patients.jsonl", "clinical_ser_app/data/export.py"} <= names_in(build_fab_from_disk(littered))


def test_the_build_is_the_same_every_time_and_small():
    bundle = build_of_this_version()
    assert bundle == build_of_this_version()
    assert len(bundle) < 4096


def test_the_bundle_holds_no_code_of_its_own():
    for path in sorted(Path(APP_FOLDER).rglob("*.py")):
        lines = [line for line in re.sub(r'"""[\s\S]*?"""', "", path.read_text()).splitlines() if line.strip()]
        assert all(line.startswith(("from federated.", "__all__")) for line in lines), path.name
