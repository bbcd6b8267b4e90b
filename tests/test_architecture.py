"""The shape of the house: imports go one way, models hold no code, serving needs no training library, and names of machines stay out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"except Exception": ["clinical_ser/embeddings/foreign.py"]}
"""Which files may, all the same."""
SOURCES = sorted((ROOT / "clinical_ser").rglob("*.py"))


def test_rooms_import_from_their_left_only():
    done = subprocess.run([Path(sys.executable).parent / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "forbidden", [r"\bpickle\b\.|import pickle", r"\bjoblib\b", r"torch\.load", r"logging\.basicConfig", r"except Exception", r"(?<!\.)\beval\("]
)
def test_no_source_does_what_the_style_forbids(forbidden):
    found = [path.relative_to(ROOT).as_posix() for path in SOURCES if re.search(forbidden, _code(path))]
    assert found == ALLOWED.get(forbidden, [])


def test_screening_loads_neither_torch_nor_ray_nor_the_trainers_of_anything_else():
    code = "import sys, clinical_ser.screening; print([m for m in ('torch', 'ray', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_quick_because_it_imports_nothing():
    code = "import sys, clinical_ser; print([m for m in ('numpy', 'parselmouth', 'opensmile') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _code(path: Path) -> str:
    """The source without docstrings and comments, which may name what they advise against."""
    text = re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8"))
    return re.sub(r"#.*", "", text)
