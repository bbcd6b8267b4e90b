import copy
import json
import re
from dataclasses import replace

import pytest
from fhir.resources.R4B import auditevent, device
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clinical_ser.audit import events
from clinical_ser.audit.events import Outcome, canonical
from clinical_ser.audit.exports import fhir
from clinical_ser.audit.exports.fhir import DEVICES, EVENTS
from clinical_ser.audit.exports.fhir_resources import _ACTS, Maker
from clinical_ser.audit.exports.fhir_rules import BALP, PROFILES, check_resource
from clinical_ser.audit.exports.packet import verify_export
from clinical_ser.audit.exports.selection import Selection
from clinical_ser.audit.merkle import leaf_hash
from clinical_ser.errors import AuditError, AuditFormatError, AuditTamperedError
from tests.audit.exports.example import (
    CANARY,
    CLINICIAN,
    FIRST_SUBJECT,
    KEYS,
    KINDS,
    MODEL,
    ORIGIN,
    SECOND_SUBJECT,
    SIGNER,
    START,
    ExampleLog,
    entries,
    inference,
    record_of,
)
from tests.audit.exports.forging import change_json, change_lines, reseal

LOG = ExampleLog()
WHOLE = Selection(payloads=True)
PART = Selection(first=2, last=12, payloads=True)
OWN = Selection(about=FIRST_SUBJECT, payloads=True)


def export(folder, chosen=None, log=LOG, **options):
    fhir.export(log, folder / "export", [SIGNER], chosen, created=START, **options)
    return folder / "export"


def resources_of(folder, name=EVENTS):
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def resource_of(entry, index=0):
    return Maker(ORIGIN, None).event(record_of(index, entry), None)


def profile_of(resource):
    return next(iter(resource.get("meta", {}).get("profile", [])), "").removeprefix(BALP)


def entry_of(kind, number=0):
    return [entry for entry in entries() if entry.payload.kind == kind][number]


def entities_of(resource, code):
    return [entity for entity in resource["entity"] if entity["type"]["code"] == code]


@pytest.mark.parametrize("chosen", [None, WHOLE, PART, OWN, Selection(about=FIRST_SUBJECT), Selection(kinds=frozenset({"review", "model"}))])
@pytest.mark.parametrize("log", [LOG, ExampleLog(sealed=True)], ids=["open", "sealed"])
def test_what_is_exported_verifies_with_the_log_and_without(tmp_path, chosen, log):
    folder = export(tmp_path, chosen, log)
    assert verify_export(folder, KEYS).findings.records == len(resources_of(folder))
    assert verify_export(folder, KEYS, reader=log).findings.records == len(resources_of(folder))


@pytest.mark.parametrize("size", [0, 1])
def test_small_logs(tmp_path, size):
    folder = export(tmp_path, None, ExampleLog(entries()[:size]))
    assert verify_export(folder, KEYS).findings.records == len(resources_of(folder)) == len(resources_of(folder, DEVICES)) == size


def test_a_log_of_one_record_of_which_a_part_is_asked_for_has_an_empty_proof(tmp_path):
    folder = export(tmp_path, Selection(kinds=frozenset({"service"})), ExampleLog(entries()[:1]))
    assert verify_export(folder, KEYS).findings.records == 1


@pytest.mark.parametrize("chosen", [None, WHOLE])
def test_an_independent_reader_takes_every_resource(tmp_path, chosen):
    folder = export(tmp_path, chosen)
    for name, model in ((EVENTS, auditevent.AuditEvent), (DEVICES, device.Device)):
        for line in (folder / name).read_bytes().splitlines():
            model.model_validate_json(line)


def test_the_elements_and_cardinalities_of_the_rules_are_those_of_r4():
    from clinical_ser.audit.exports import fhir_rules

    models = {
        "AuditEvent": auditevent.AuditEvent,
        "Agent": auditevent.AuditEventAgent,
        "Network": auditevent.AuditEventAgentNetwork,
        "Source": auditevent.AuditEventSource,
        "Entity": auditevent.AuditEventEntity,
        "Detail": auditevent.AuditEventEntityDetail,
        "Device": device.Device,
        "DeviceName": device.DeviceDeviceName,
        "DeviceVersion": device.DeviceVersion,
    }
    for name, model in models.items():
        for element, rule in fhir_rules._TYPES[name].items():
            if element == "resourceType":
                continue
            field = model.model_fields[element]
            extra = field.json_schema_extra or {}
            assert ("List" in str(field.annotation)) is rule.split(" ")[0].endswith("*"), (name, element)
            is_required = field.is_required() or bool(extra.get("element_required"))
            assert is_required is rule.startswith("1"), (name, element)
        required = {n for n, f in model.model_fields.items() if f.is_required() or bool((f.json_schema_extra or {}).get("element_required"))}
        assert required <= set(fhir_rules._TYPES[name])


def test_the_time_is_the_logs_own_text(tmp_path):
    for resource, record in zip(resources_of(export(tmp_path)), LOG.records(), strict=True):
        assert resource["recorded"] == record.event.time
        assert resource["recorded"].endswith("123456Z")


def test_ids_are_fhir_ids_and_of_one_resource_each(tmp_path):
    folder = export(tmp_path, WHOLE)
    ids = [resource["id"] for name in (EVENTS, DEVICES) for resource in resources_of(folder, name)]
    assert all(re.fullmatch(r"[A-Za-z0-9\-.]{1,64}", one) for one in ids)
    assert len(set(ids)) == len(ids)


def test_every_device_that_is_named_is_there(tmp_path):
    for number, chosen in enumerate((None, WHOLE, OWN)):
        folder = export(tmp_path / str(number), chosen)
        named = set(re.findall(r'"reference":"Device/([^"]+)"', (folder / EVENTS).read_text()))
        assert named == {device["id"] for device in resources_of(folder, DEVICES)}
    assert MODEL in named


def test_a_model_is_called_by_its_name_where_that_is_known(tmp_path):
    (model,) = [device for device in resources_of(export(tmp_path / "1", OWN), DEVICES) if device["id"] == MODEL]
    assert model["deviceName"] == [{"name": "depression-simulated", "type": "model-name"}]
    (model,) = [device for device in resources_of(export(tmp_path / "2"), DEVICES) if device["id"] == MODEL]
    assert "deviceName" not in model


@pytest.mark.parametrize(
    ("kind", "number", "profile", "kind_of"),
    [
        ("inference", 0, "IHE.BasicAudit.PatientCreate", ("rest", "create", "C")),
        ("quality_rejection", 0, "IHE.BasicAudit.PatientCreate", ("rest", "create", "C")),
        ("report", 0, "IHE.BasicAudit.PatientRead", ("rest", "read", "R")),
        ("report", 1, "", ("110106", "report", "R")),
        ("report", 2, "IHE.BasicAudit.PatientUpdate", ("rest", "update", "U")),
        ("disclosure", 0, "IHE.BasicAudit.PrivacyDisclosure.Source", ("110106", "disclose", "R")),
        ("disclosure", 1, "IHE.BasicAudit.PrivacyDisclosure.Source", ("110106", "disclose", "R")),
        ("review", 0, "", ("attest", "review", "C")),
        ("notice", 0, "", ("notice", "notice", "E")),
        ("model", 0, "", ("110113", "110131", "U")),
        ("configuration", 0, "", ("110113", "110129", "U")),
        ("access_denied", 0, "", ("110113", "110132", "E")),
        ("federated_round", 0, "", ("federated_round", "federated_round", "E")),
        ("drift_alarm", 0, "", ("drift_alarm", "drift_alarm", "E")),
        ("erasure", 1, "", ("destroy", "erasure", "D")),
        ("legal_hold", 0, "", ("hold", "legal_hold", "U")),
        ("audit_export", 0, "", ("110101", "audit_export", "R")),
        ("service", 0, "", ("110100", "110120", "E")),
        ("service", 1, "", ("110100", "110121", "E")),
        ("submission", 0, "", ("receive", "submission", "C")),
        ("submission", 1, "", ("submission", "submission", "E")),
    ],
)
def test_what_becomes_of_each_kind(kind, number, profile, kind_of):
    resource = resource_of(entry_of(kind, number))
    assert profile_of(resource) == profile
    assert (resource["type"]["code"], resource["subtype"][0]["code"], resource["action"]) == kind_of
    assert {"system": "clinical-ser:audit-event-kind", "code": kind} in resource["subtype"]
    assert check_resource(resource) == []


def test_every_kind_and_action_is_mapped():
    assert {name.split(" ")[0] for name in _ACTS} == set(KINDS)
    for kind in ("report", "service", "legal_hold", "submission"):
        actions = events.PAYLOADS[kind].model_fields["action"].annotation.__args__
        assert {f"{kind} {action}" for action in actions} <= set(_ACTS)


@pytest.mark.parametrize("actor", [CLINICIAN, CLINICIAN.model_copy(update={"role": events.Role.SERVICE})], ids=["a person", "a program"])
@pytest.mark.parametrize("subject", [None, FIRST_SUBJECT])
@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize(
    "client", [None, "10.0.0.7", "2001:db8::7", "ehr", "ehr.example", "https://ehr.example/fhir", " ", "clinical-ser 0.1.0", "a@b.example"]
)
def test_a_profile_is_claimed_where_all_it_asks_for_is_known(actor, subject, outcome, client):
    actor = actor.model_copy(update={"client": client})
    for kind, number, rest in (("inference", 0, "Create"), ("report", 0, "Read"), ("report", 2, "Update")):
        entry = entry_of(kind, number)
        changed = replace(entry, subject=subject, outcome=outcome, payload=entry.payload.model_copy(update={"actor": actor}))
        resource = resource_of(changed)
        assert check_resource(resource) == []
        known = client in {"10.0.0.7", "2001:db8::7", "ehr.example", "https://ehr.example/fhir"} and outcome is Outcome.SUCCESS
        assert profile_of(resource) == (f"IHE.BasicAudit.{'Patient' if subject else ''}{rest}" if known else "")
        assert sum(agent["requestor"] for agent in resource["agent"]) == 1
        assert resource["outcome"] == {"success": "0", "refused": "4", "failed": "8"}[outcome]
        assert resource.get("outcomeDesc") == (None if outcome is Outcome.SUCCESS else outcome.value)


@pytest.mark.parametrize("client", ["clinical-ser screen", "clinical-ser", "a@b.example", "fe80::1%eth0", "x://\x01", "1.2.3", "-a.example"])
def test_what_is_no_network_address_is_given_out_as_none(client):
    """Found in review: profiles of RESTful operations were claimed for commands, with the program's name as a network address."""
    for entry in (entry_of("inference"), entry_of("review")):
        actor = CLINICIAN.model_copy(update={"client": client})
        resource = resource_of(replace(entry, payload=entry.payload.model_copy(update={"actor": actor})))
        assert profile_of(resource) == ""
        assert [agent.get("network") for agent in resource["agent"]] == [None, {"address": "hospital.example", "type": "1"}]


def test_an_origin_that_names_no_host_gives_no_address():
    resource = Maker("audit log", None).event(record_of(0, entry_of("inference")), None)
    absent = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "unknown"}]}
    assert resource["agent"][1]["network"] == absent
    assert profile_of(resource) == "IHE.BasicAudit.PatientCreate"
    assert check_resource(resource) == []


def test_without_its_payload_a_record_claims_no_profile_and_names_nobody(tmp_path):
    for resource in resources_of(export(tmp_path)):
        assert profile_of(resource) == ""
        assert [agent for agent in resource["agent"] if agent["requestor"]] == [
            {"requestor": True, "role": [{"coding": [{"system": "clinical-ser:role", "code": resource["agent"][0]["role"][0]["coding"][0]["code"]}]}]}
        ]


def test_an_erased_record_is_an_event_without_contents(tmp_path):
    erased = resources_of(export(tmp_path, WHOLE))[9]
    assert profile_of(erased) == ""
    assert {"type": "state", "valueString": "erased"} in erased["entity"][-1]["detail"]
    assert not {"payload", "salt"} & {detail["type"] for detail in erased["entity"][-1]["detail"]}


@pytest.mark.parametrize(
    ("address", "network", "location"),
    [
        ("1 High Street", None, "1 High Street"),
        (None, None, None),
        ("records@payer.example", {"address": "records@payer.example", "type": "4"}, None),
        ("https://payer.example/in", {"address": "https://payer.example/in", "type": "5"}, None),
        ("192.0.2.9", {"address": "192.0.2.9", "type": "2"}, None),
    ],
)
def test_a_disclosure_says_to_whom_and_that_a_letter_has_no_network_address(address, network, location):
    entry = entry_of("disclosure")
    resource = resource_of(replace(entry, payload=entry.payload.model_copy(update={"recipient_address": address})))
    (recipient,) = [agent for agent in resource["agent"] if agent.get("type", {}).get("coding", [{}])[0].get("code") == "110152"]
    absent = {"extension": [{"url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason", "valueCode": "not-applicable"}]}
    assert recipient["who"] == {"display": "CANARY Insurance"}
    assert recipient["network"] == (network or absent)
    assert recipient.get("location") == ({"display": location} if location else None)
    assert check_resource(resource) == []


def test_what_a_model_said_is_labelled_and_what_it_refused_is_not():
    def labels(entry):
        return [label["code"] for entity in entities_of(resource_of(entry), "2") for label in entity.get("securityLabel", [])]

    assert labels(entry_of("inference")) == labels(entry_of("report")) == labels(entry_of("review")) == ["AIAST"]
    assert labels(entry_of("quality_rejection")) == labels(entry_of("disclosure", 1)) == []


def test_a_record_can_be_found_and_proved(tmp_path):
    for resource, record in zip(resources_of(export(tmp_path)), LOG.records(), strict=True):
        last = resource["entity"][-1]
        assert last["what"]["identifier"] == {"system": "clinical-ser:log", "value": f"{ORIGIN}/{record.index}"}
        details = {detail["type"]: detail.get("valueString") for detail in last["detail"]}
        assert details["index"] == str(record.index)
        assert details["leaf-hash"] == leaf_hash(record.leaf).hex()


def test_the_subject_is_a_tag_or_in_their_own_export_a_pseudonym(tmp_path):
    tags = [entities_of(resource, "1")[0]["what"] for resource in resources_of(export(tmp_path / "1", OWN))]
    assert {what["identifier"]["system"] for what in tags} == {"clinical-ser:subject-tag"}
    assert len({what["identifier"]["value"] for what in tags}) == len(tags)
    folder = export(tmp_path / "2", OWN, pseudonym="psn-7f3a")
    names = [entities_of(resource, "1")[0]["what"] for resource in resources_of(folder)]
    assert all(what == {"type": "Patient", "identifier": {"system": "clinical-ser:pseudonym", "value": "psn-7f3a"}} for what in names)
    assert verify_export(folder, KEYS).findings.records == len(names)


@pytest.mark.parametrize(("chosen", "pseudonym"), [(None, "psn"), (PART, "psn"), (OWN, ""), (OWN, " ")])
def test_a_pseudonym_is_for_one_subject(tmp_path, chosen, pseudonym):
    with pytest.raises(ValueError, match="one subject"):
        export(tmp_path, chosen, pseudonym=pseudonym)


def test_a_pseudonym_in_an_export_about_several_is_noticed(tmp_path):
    folder = export(tmp_path)

    def named(resource):
        entities_of(resource, "1")[0]["what"]["identifier"] = {"system": "clinical-ser:pseudonym", "value": "jane"}

    change_json(folder, EVENTS, 4, named)
    with pytest.raises(AuditTamperedError, match="Record 4 does not make"):
        verify_export(folder, KEYS)


def test_without_payloads_there_is_nothing_of_anybody(tmp_path):
    for number, chosen in enumerate((None, Selection(about=FIRST_SUBJECT))):
        folder = export(tmp_path / str(number), chosen)
        content = b"".join(path.read_bytes() for path in folder.iterdir())
        assert CANARY.encode() not in content
        # Nor in base64, in any of its three alignments.
        carried = [entity["detail"] for resource in resources_of(folder) for entity in resource["entity"] if "detail" in entity]
        assert not {"payload", "salt"} & {detail["type"] for details in carried for detail in details}


def test_nobody_is_a_patient_and_no_name_of_the_sites_is_in_it(tmp_path):
    folder = export(tmp_path, WHOLE)
    content = (folder / EVENTS).read_text() + (folder / DEVICES).read_text()
    assert FIRST_SUBJECT not in content
    assert SECOND_SUBJECT not in content
    assert '"reference":"Patient/' not in content
    assert '"resourceType":"Patient"' not in content


def test_text_that_fhir_does_not_allow_is_shown_otherwise_and_carried_as_it_is(tmp_path):
    actor = events.Actor(id="\x00\x0b\x1f", role=events.Role.CLINICIAN, name="\u00a0", client="a\u2028b\tc")
    log = ExampleLog([replace(entry_of("inference"), payload=inference(actor=actor))])
    folder = export(tmp_path, WHOLE, log)
    (resource,) = resources_of(folder)
    user = next(agent for agent in resource["agent"] if agent["requestor"])
    assert user["who"]["identifier"]["value"] == "\ufffd" * 3
    assert user["name"] == "\ufffd"
    assert verify_export(folder, KEYS).findings.records == 1


@settings(max_examples=80, deadline=None)
@given(
    st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.none() | st.text(min_size=1, max_size=20), st.none() | st.text(max_size=9)
)
def test_any_names_make_resources_that_follow_the_rules(account, name, client, address):
    actor = events.Actor(id=account, role=events.Role.CLINICIAN, name=name, client=client)
    disclosed = entry_of("disclosure").payload.model_copy(
        update={"actor": actor, "recipient": name, "recipient_address": address, "description": account}
    )
    for payload in (inference(actor=actor, model_name=name, model_version=account), disclosed):
        maker = Maker(ORIGIN, None)
        made = maker.event(record_of(0, replace(entry_of("inference"), payload=payload)), None)
        assert check_resource(made) == []
        assert [check_resource(device) for device in maker.devices()] == [[], []]
        assert check_resource(json.loads(canonical(made))) == []


def a_bad_code(resource):
    resource["type"] = {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "resting"}


def a_bad_display(resource):
    resource["type"]["display"] = "RESTful"


def no_agent(resource):
    del resource["agent"]


def an_empty_list_of_agents(resource):
    resource["agent"] = []


def no_client(resource):
    del resource["agent"][0]


def two_clients(resource):
    resource["agent"].append(copy.deepcopy(resource["agent"][0]))


def no_network(resource):
    del resource["agent"][0]["network"]


def a_bad_network_type(resource):
    resource["agent"][0]["network"]["type"] = "9"


def no_requestor(resource):
    del resource["agent"][2]["requestor"]


def requestor_as_text(resource):
    resource["agent"][2]["requestor"] = "true"


def a_network_type_of_another_address(resource):
    resource["agent"][0]["network"]["type"] = "1"


def no_network_address(resource):
    resource["agent"][0]["network"] = {"address": "clinical-ser screen"}


def a_user_with_a_network(resource):
    resource["agent"][2]["network"] = {"address": "10.0.0.1"}


def a_bad_outcome(resource):
    resource["outcome"] = "success"


def a_failure(resource):
    resource["outcome"] = "8"


def no_outcome(resource):
    del resource["outcome"]


def no_patient(resource):
    del resource["entity"][0]


def a_patient_without_a_role(resource):
    del resource["entity"][0]["role"]


def a_patient_that_is_a_group(resource):
    resource["entity"][0]["what"]["type"] = "Group"


def no_data(resource):
    del resource["entity"][1]


def two_data(resource):
    resource["entity"].append(copy.deepcopy(resource["entity"][1]))


def data_in_the_role_of_a_patient(resource):
    resource["entity"][1]["role"] = resource["entity"][0]["role"]


def no_recorded(resource):
    del resource["recorded"]


def a_local_time(resource):
    resource["recorded"] = "2026-09-01T08:30:00"


def no_source(resource):
    del resource["source"]


def no_observer(resource):
    del resource["source"]["observer"]


def a_bad_action(resource):
    resource["action"] = "X"


def another_action(resource):
    resource["action"] = "R"


def no_subtype(resource):
    del resource["subtype"]


def a_bad_id(resource):
    resource["id"] = "under_score"


def a_long_id(resource):
    resource["id"] = "a" * 65


def r5(resource):
    resource["code"] = resource.pop("type")


def a_detail_without_a_value(resource):
    del resource["entity"][-1]["detail"][0]["valueString"]


def a_detail_with_two_values(resource):
    resource["entity"][-1]["detail"][0]["valueBase64Binary"] = "AAAA"


def no_base64(resource):
    resource["entity"][-1]["detail"][3]["valueBase64Binary"] = "no base64!"


def a_profile_that_is_none(resource):
    resource["meta"]["profile"] = [BALP + "IHE.BasicAudit.PatientCrate"]


def another_profile(resource):
    resource["meta"]["profile"] = [BALP + "IHE.BasicAudit.PatientRead"]


def name_and_query(resource):
    resource["entity"][0] |= {"name": "x", "query": "AAAA"}


def a_relative_system(resource):
    resource["subtype"][1]["system"] = "kinds"


def an_empty_object(resource):
    resource["agent"][0]["who"] = {}


def a_blank_string(resource):
    resource["source"]["site"] = " \n"


SEEDED = {
    name: change
    for name, change in globals().items()
    if callable(change) and getattr(change, "__code__", None) and change.__code__.co_varnames[:1] == ("resource",)
}
SEEDED = [
    a_bad_code,
    a_bad_display,
    no_agent,
    an_empty_list_of_agents,
    no_client,
    two_clients,
    no_network,
    a_bad_network_type,
    a_network_type_of_another_address,
    no_network_address,
    no_requestor,
    requestor_as_text,
    a_user_with_a_network,
    a_bad_outcome,
    a_failure,
    no_outcome,
    no_patient,
    a_patient_without_a_role,
    a_patient_that_is_a_group,
    no_data,
    two_data,
    data_in_the_role_of_a_patient,
    no_recorded,
    a_local_time,
    no_source,
    no_observer,
    a_bad_action,
    another_action,
    no_subtype,
    a_bad_id,
    a_long_id,
    r5,
    a_detail_without_a_value,
    a_detail_with_two_values,
    no_base64,
    a_profile_that_is_none,
    another_profile,
    name_and_query,
    a_relative_system,
    an_empty_object,
    a_blank_string,
]


@pytest.mark.parametrize("change", SEEDED)
def test_a_seeded_mistake_is_caught(change):
    resource = resource_of(entry_of("inference"))
    assert check_resource(resource) == []
    change(resource)
    assert check_resource(resource) != []


def places_in(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(item, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_value_in_any_place_makes_the_rules_stumble(data):
    resource = resource_of(entry_of("inference"))
    path = data.draw(st.sampled_from([path for path in places_in(resource) if path]))
    parent = resource
    for step in path[:-1]:
        parent = parent[step]
    value = data.draw(JSON)
    is_other_type = type(value) is not type(parent[path[-1]])
    parent[path[-1]] = value
    problems = check_resource(resource)
    assert all(isinstance(problem, str) for problem in problems)
    assert problems or not is_other_type


@pytest.mark.parametrize("part", ["source", "recipient", "patient"])
def test_a_disclosure_that_lacks_a_part_is_caught(part):
    resource = resource_of(entry_of("disclosure"))
    assert check_resource(resource) == []
    del (resource["entity"] if part == "patient" else resource["agent"])[{"source": 0, "recipient": 1, "patient": 0}[part]]
    assert any(f"[{part}]" in problem for problem in check_resource(resource))


def test_a_disclosure_of_nothing_is_caught():
    resource = resource_of(entry_of("disclosure"))
    assert check_resource(resource | {"entity": resource["entity"][:1]}) == ["AuditEvent.entity: the profile asks for 2 at least"]


def test_a_disclosure_is_observed_at_its_source():
    resource = resource_of(entry_of("disclosure"))
    resource["source"]["observer"] = {"display": "somebody else"}
    assert check_resource(resource) == ["AuditEvent.agent[source].who: is not the observer (val-audit-source)"]


@pytest.mark.parametrize(
    "change",
    [{"status": "broken"}, {"deviceName": [{"name": "x"}]}, {"deviceName": [{"name": "x", "type": "pet-name"}]}, {"version": []}, {"udi": "x"}],
)
def test_a_device_that_is_none_is_caught(change):
    maker = Maker(ORIGIN, None)
    maker.event(record_of(0, entries()[0]), None)
    (device,) = maker.devices()
    assert check_resource(device) == []
    assert check_resource(device | change) != []


@pytest.mark.parametrize("value", [None, [], "", {}, {"resourceType": "Patient"}, {"resourceType": ["AuditEvent"]}])
def test_what_is_no_resource_of_ours_is_caught(value):
    assert check_resource(value) != []


def test_every_profile_of_the_rules_is_one_that_is_claimed_somewhere():
    made = {profile_of(resource_of(replace(entry, subject=subject))) for entry in entries() for subject in (None, FIRST_SUBJECT)}
    assert made - {""} == set(PROFILES)


def forged_outcome(resource):
    resource["outcome"] = "4"


def forged_time(resource):
    resource["recorded"] = "2026-09-01T08:30:00.123457Z"


def forged_purpose(resource):
    resource["purposeOfEvent"] = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HRESCH"}]}]


def forged_actor(resource):
    next(agent for agent in resource["agent"] if agent["requestor"])["who"]["identifier"]["value"] = "somebody-else"


def forged_index(resource):
    resource["entity"][-1]["detail"][0]["valueString"] = "7"


def forged_leaf(resource):
    resource["entity"][-1]["detail"][3]["valueBase64Binary"] = "e30="


def forged_salt(resource):
    detail = next(detail for detail in resource["entity"][-1]["detail"] if detail["type"] == "salt")
    detail["valueBase64Binary"] = "AAAA" * 10 + "AAA="


def no_record(resource):
    del resource["entity"][-1]["detail"]


def no_payload(resource):
    resource["entity"][-1]["detail"] = [d for d in resource["entity"][-1]["detail"] if d["type"] not in {"payload", "salt"}]


def no_entity(resource):
    del resource["entity"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (forged_outcome, "Record 6 does not make the AuditEvent"),
        (forged_time, "Record 6 does not make the AuditEvent"),
        (forged_purpose, "Record 6 does not make the AuditEvent"),
        (forged_actor, "Record 6 does not make the AuditEvent"),
        (forged_index, "Record 6 is missing"),
        (forged_leaf, "Record 6: A leaf is no event"),
        (forged_salt, "Record 6 does not commit"),
        (no_record, "line 5 carries no record"),
        (no_payload, "Record 6 has a payload"),
        (no_entity, "line 5 carries no record"),
        (a_bad_id, r"Record 6 is not as FHIR R4.*AuditEvent\.id"),
    ],
)
def test_a_resource_that_was_changed_is_named_even_when_the_envelope_fits(tmp_path, change, match):
    folder = export(tmp_path, PART)
    change_json(folder, EVENTS, 4, change)
    with pytest.raises(AuditError, match=match):
        verify_export(folder, KEYS)


def test_a_proof_that_was_changed_is_named(tmp_path):
    folder = export(tmp_path, PART)
    other = next(d for d in resources_of(folder)[5]["entity"][-1]["detail"] if d["type"] == "inclusion-proof")

    def change(resource):
        next(d for d in resource["entity"][-1]["detail"] if d["type"] == "inclusion-proof").update(other)

    change_json(folder, EVENTS, 4, change)
    with pytest.raises(AuditTamperedError, match="Record 6 is not in the tree"):
        verify_export(folder, KEYS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [*lines[:4], *lines[5:]], "Record 4 is missing"),
        (lambda lines: lines[:-1], "Record 24 is missing"),
        (lambda lines: [*lines[:4], lines[5], lines[4], *lines[6:]], "Record 4 is missing"),
        (lambda lines: [*lines, lines[-1]], "Record 24 comes after record 24"),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], "a line without an end"),
        (lambda lines: [*lines[:4], b"[]\n", *lines[4:]], "line 5 is not a JSON object"),
        (lambda lines: [*lines[:4], b"{\n", *lines[4:]], "line 5 is not JSON"),
        (lambda lines: [*lines[:4], lines[4].replace(b":", b": ", 1), *lines[5:]], "Record 4 does not make"),
    ],
)
def test_lines_that_were_dropped_moved_or_broken_are_named(tmp_path, change, match):
    folder = export(tmp_path)
    change_lines(folder, EVENTS, change)
    with pytest.raises(AuditError, match=match):
        verify_export(folder, KEYS)


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, lines[0]], lambda lines: lines[::-1]])
def test_devices_are_those_that_the_records_name(tmp_path, change):
    folder = export(tmp_path)
    change_lines(folder, DEVICES, change)
    with pytest.raises(AuditTamperedError, match=r"Device\.ndjson line \d"):
        verify_export(folder, KEYS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_goes_unnoticed_even_when_the_envelope_fits(tmp_path, data):
    folder = tmp_path / "export"
    if not folder.exists():
        export(tmp_path, PART)
    content = (folder / EVENTS).read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    (folder / EVENTS).write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    try:
        reseal(folder)
        with pytest.raises(AuditError):
            verify_export(folder, KEYS)
    finally:
        (folder / EVENTS).write_bytes(content)


def test_the_verifier_does_not_trust_the_rules_that_made_the_resource(tmp_path, monkeypatch):
    """A mistake in what makes resources is made anew just so; the rules, read off the specifications, still catch it."""
    original = Maker.event

    def without_client(self, record, path):
        made = original(self, record, path)
        return made | {"agent": made["agent"][1:]} if profile_of(made) else made

    monkeypatch.setattr(Maker, "event", without_client)
    folder = export(tmp_path, WHOLE)
    with pytest.raises(AuditFormatError, match=r"Record 4 is not as FHIR R4 .*AuditEvent\.agent\[client\]"):
        verify_export(folder, KEYS)
