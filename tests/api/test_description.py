"""The API against its own description: what it promises, it keeps, whatever is asked (schemathesis)."""

import json
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

from clinical_ser.api.app import description
from clinical_ser.api.configuration import ServerConfiguration

EXAMPLES = int(os.environ.get("CLINICAL_SER_SCHEMATHESIS", "12"))
"""Of each operation; docs/security.md tells of longer runs."""
DESCRIPTION = description(ServerConfiguration.checked({}))
schema = schemathesis.openapi.from_dict(DESCRIPTION)


@schemathesis.serializer("audio/wav", "audio/flac", "application/vnd.clinical-ser.screening")
def as_it_is(_context, value) -> bytes:
    """A recording is bytes, whatever they are."""
    return value if isinstance(value, bytes) else getattr(value, "data", None) or str(value).encode()


def excluded(path: str) -> list:
    """Leave out what no schema can say: which bytes are audio, which models there are, which days are in the calendar.

    And `GET …/_search` is a read of an event of that id, which is not there, and not a method that is not there.
    """
    return [positive_data_acceptance, *([unsupported_method] if path.endswith("/_search") else [])]


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_every_operation_keeps_what_the_description_promises(server, case):
    told = {"Authorization": f"Bearer {server.keys['everything']}"}
    case.call_and_validate(base_url=f"http://127.0.0.1:{server.port}", headers=told, excluded_checks=excluded(case.path))


def test_the_server_gives_the_description_that_the_command_line_prints(client):
    served, printed = client.get("/v1/openapi.json").json, dict(DESCRIPTION)
    assert served.pop("servers") != printed.pop("servers")
    assert served == json.loads(json.dumps(printed))


def test_every_operation_is_described_with_its_problems_and_its_scope():
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert "security" in operation, (method, path)
            assert {"429", "503"} <= operation["responses"].keys(), (method, path)


def test_examples_fit_their_schemas():
    found = 0
    for name, part in DESCRIPTION["components"]["schemas"].items():
        resolved = {**part, "components": DESCRIPTION["components"]}
        for example in part.get("examples", []):
            Draft202012Validator(resolved).validate(example)
            found += 1
        assert name
    assert found


@pytest.mark.parametrize("status", ["201", "202"])
def test_a_screening_is_described(status):
    answer = DESCRIPTION["paths"]["/v1/screenings"]["post"]["responses"][status]
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ScreeningView"}
