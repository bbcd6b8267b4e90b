"""The page for whoever watches the server names what there is, and nothing that is not."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import clinical_ser.api
from clinical_ser.api.logs import Logs
from clinical_ser.api.metrics import Denial, Limit, Outcome, Restart, ServerMetrics, Stage

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
OF_HISTOGRAMS = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def exposed() -> set[str]:
    metrics = ServerMetrics("0")
    metrics.model_loaded("a", "1", "x")
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_every_metric_is_on_the_page(page: str) -> None:
    assert {name for name in exposed() if f"`{name}`" not in page} == set()


def test_every_metric_on_the_page_is_there(page: str) -> None:
    named = set(re.findall(r"\b(?:clinical_ser|process)_[a-z_]+[a-z]", page))
    known = exposed() | {name + suffix for name in exposed() for suffix in OF_HISTOGRAMS}
    assert named - known == set()


@pytest.mark.parametrize("values", [Denial, Limit, Outcome, Restart, Stage])
def test_every_value_of_a_label_is_explained(page: str, values: type) -> None:
    assert [value for value in values if f"`{value}`" not in page] == []


def test_every_field_of_the_log_is_explained(page: str) -> None:
    fields = set(inspect.signature(Logs.write).parameters) - {"self", "error"} | {"time", "errors"}
    assert {field for field in fields if f"`{field}`" not in page} == set()


def test_every_event_that_the_server_writes_is_explained(page: str) -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(clinical_ser.api.__file__).parent.glob("*.py")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    writes = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "write" and "logs" in ast.unparse(call.func)]
    events = {call.args[0].value for call in writes if isinstance(call.args[0], ast.Constant)}
    assert events >= {"request", "library", "listening"}
    assert {event for event in events if f"| `{event}` |" not in page} == set()


def test_the_alerts_are_yaml_with_an_expression_each(page: str) -> None:
    (rules,) = re.findall(r"```yaml\n(groups:.*?)```", page, re.DOTALL)
    names = re.findall(r"- alert: (\w+)", rules)
    assert len(names) == len(set(names)) == rules.count("expr: ")
