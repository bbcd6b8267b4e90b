"""The files that a hospital copies."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clinical_ser.api.configuration import Limits, ServerConfiguration
from clinical_ser.api.security import issuer_of

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCS = Path(__file__).parents[2] / "docs" / "hospital-it.md"


def test_the_example_configuration_fits_with_its_comments_and_without():
    text = (DEPLOY / "server.toml").read_text()
    ServerConfiguration.checked(tomllib.loads(text))
    uncommented = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    found = ServerConfiguration.checked(tomllib.loads(uncommented))
    assert [issuer_of(entry, found.tenants).role_claim for entry in found.issuers] == ["realm_access.roles", None]
    assert len(found.sign_in) == 1
    [smart] = found.smart
    # Whoever opens the report from the record system is believed by its tokens, and only by those of our page.
    [record_system] = [entry for entry in found.issuers if entry.issuer == smart.iss]
    assert issuer_of(record_system, found.tenants).client_ids == {smart.client_id}


def test_the_proxy_takes_bodies_as_long_as_the_server_does():
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx.conf").read_text())
    assert int(megabytes) << 20 == Limits().body_bytes


def test_the_unit_and_the_container_name_commands_and_extras_that_there_are():
    unit, container = (DEPLOY / "clinical-ser.service").read_text(), (DEPLOY / "Containerfile").read_text()
    assert "ExecStart=/opt/clinical-ser/bin/clinical-ser serve\n" in unit
    extras = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"clinical-ser\[([a-z,]+)\]", container)
    assert set(asked.split(",")) <= extras.keys()


@pytest.mark.parametrize("section", [None, "listen", "limits", "work", "keep", "cds", "fhir", "monitoring"])
def test_every_setting_is_described(section):
    text = DOCS.read_text()
    model = ServerConfiguration if section is None else ServerConfiguration.model_fields[section].annotation
    for name in model.model_fields:
        if section is None and name in {"listen", "limits", "work", "keep", "cds", "fhir", "monitoring"}:
            continue
        assert f"`{name}`" in text or f".{name}`" in text, (section, name)


def test_the_program_and_the_server_start_without_the_extras_that_serving_does_without():
    missing = "('onnx', 'transformers', 'shap', 'ray', 'opentelemetry.sdk')"
    code = f"import sys; sys.modules.update(dict.fromkeys({missing})); import clinical_ser.cli, clinical_ser.api.serving, clinical_ser.api.worker"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_the_unit_refuses_no_call_that_libraries_make():
    text = (DEPLOY / "clinical-ser.service").read_text()
    denied = re.findall(r"^SystemCallFilter=~(.*)$", text, flags=re.MULTILINE)
    assert "SystemCallErrorNumber=EPERM" in text
    # numpy's OpenBLAS calls mbind, which is one of @resources.
    assert all("@resources" not in line for line in denied)
