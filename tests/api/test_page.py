import datetime
import json
import re
from html.parser import HTMLParser

import pytest

from clinical_ser.api.configuration import ServerConfiguration
from clinical_ser.api.page import LANGUAGES, REPORT, Page, page_files, page_of, page_texts, policy
from clinical_ser.api.problems import Problem
from clinical_ser.audio.advice import ADVICE
from clinical_ser.audit.events import PAYLOADS, Flag, Outcome, Purpose, Role
from clinical_ser.errors import ServerSetupError
from clinical_ser.screening.result import Status
from reports.clinician import html_report
from reports.forbidden import findings
from reports.locale import placeholders
from reports.site import Site
from tests.api.servers import Client, Server
from tests.reports import clinician_samples

SIGN_IN = {
    "name": "Example Hospital",
    "authorization_endpoint": "https://id.example/authorize",
    "token_endpoint": "https://id.example:8443/token",
    "client_id": "page",
}
SMART = {key: SIGN_IN[key] for key in ("authorization_endpoint", "client_id")} | {
    "iss": "https://fhir.example/r4",
    "token_endpoint": "https://ehr.example/token",
}
FILES = page_files()
SCRIPTS = {name: file.content.decode() for name, file in FILES.items() if name.endswith(".js")}
ENTRANCES = ("/", "/launch", "/page/main.js", "/page/style.css", "/page/en.json", "/page/zh.json", "/page/configuration.json")
CLASSES_OF_KEYS = {
    "kind": PAYLOADS,
    "outcome": Outcome,
    "role": Role,
    "purpose": Purpose,
    "flag": Flag,
    "state": ("open", "sealed", "erased"),
    "verdict": ("pass", "warn", "fail"),
}


def configured(**settings):
    return ServerConfiguration.checked(settings)


def own_texts(language):
    return {key: text for key, text in page_texts(language).items() if not key.startswith(REPORT)}


@pytest.fixture(scope="module")
def served():
    return Page(configured(sign_in=(SIGN_IN,), smart=(SMART,)))


# --- Serving ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENTRANCES)
def test_the_page_is_public_and_comes_with_its_policy_type_and_validator(server: Server, path):
    answer = Client(server.port).get(path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert re.fullmatch(r'"[0-9a-f]{64}"', answer.headers["etag"])
    ending = path.rpartition(".")[2] if "." in path else "html"
    assert answer.headers["content-type"].partition(";")[0] == {
        "html": "text/html", "js": "text/javascript", "css": "text/css", "json": "application/json",
    }[ending]  # fmt: skip


def test_a_browser_that_has_the_file_is_told_so_and_gets_nothing(server: Server):
    first = Client(server.port).get("/page/main.js")
    again = Client(server.port).get("/page/main.js", If_None_Match=f'"other", W/{first.headers["etag"]}')
    assert (again.status, again.body) == (304, b"")
    assert Client(server.port).get("/page/main.js", If_None_Match='"other"').status == 200


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/page.py", "/page/../page.py", "/page/%2e%2e/page.py", "/page/..%2fpage.py", "/page/main.js/", "/page/.", "/page/MAIN.JS"],
)
def test_nothing_but_the_pages_own_files_is_given_out(server: Server, path):
    answer = Client(server.port).get(path)
    assert answer.status in {401, 404}
    assert b"PageFile" not in answer.body


def test_the_configuration_says_where_to_sign_in_and_what_may_be_sent_and_nothing_else(served):
    told = json.loads(served.response("configuration.json").body)
    assert told == {
        "issuers": [SIGN_IN | {"scope": "openid profile"}],
        "smart": [SMART | {"scope": "launch openid fhirUser"}],
        "languages": ["en", "zh"],
        "api_keys": True,
        "require_notice": False,
        "limits": {"body_bytes": 128 * 1024 * 1024, "at_once_bytes": 8 * 1024 * 1024, "recording_s": 7200.0},
    }


def test_a_file_that_is_not_there_is_a_problem(served):
    with pytest.raises(Problem) as caught:
        served.response("nothing.js")
    assert caught.value.status == 404


# --- The policy -------------------------------------------------------------------------------------------------------------------------


def directives(text):
    return {name: set(values) for name, *values in (part.split() for part in text.split("; "))}


def test_the_policy_lets_the_page_speak_to_this_server_and_the_configured_sign_in_services_alone(served):
    allowed = directives(served.response("index.html").headers["content-security-policy"])
    assert allowed["connect-src"] == {"'self'", "https://id.example:8443", "https://ehr.example"}
    assert allowed["default-src"] == allowed["form-action"] == allowed["frame-ancestors"] == allowed["base-uri"] == {"'none'"}
    assert allowed["script-src"] == {"'self'"}
    assert not any("unsafe" in value or "*" in value for values in allowed.values() for value in values)


def test_the_one_style_that_is_no_file_is_that_of_the_report():
    own = re.search(r"style-src '(sha256-[^']+)'", html_report(clinician_samples.result()))
    assert own is not None
    assert directives(policy([]))["style-src"] == {"'self'", f"'{own[1]}'"}


@pytest.mark.parametrize("host", ["id.example;script-src", "id.example'", "*", "*.example", "id,example", "id%20example"])
def test_a_host_that_would_write_into_the_policy_is_refused(host):
    with pytest.raises(ServerSetupError, match="token_endpoint"):
        policy([f"https://{host}/token"])


@pytest.mark.parametrize("address", ["https://id.example:99999/token", "https://[::1/token"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ServerSetupError, match="token_endpoint"):
        policy([address])


@pytest.mark.parametrize("kind", ["sign_in", "smart"])
def test_a_host_that_no_policy_can_name_is_refused_when_the_page_is_made(kind):
    entry = {"sign_in": SIGN_IN, "smart": SMART}[kind]
    assert page_of(configured(**{kind: (entry,)})).response("index.html").status_code == 200
    with pytest.raises(ServerSetupError, match="token_endpoint"):
        page_of(configured(**{kind: (entry | {"token_endpoint": "https://id_1.example/token"},)}))


def test_a_host_may_be_an_ip_address():
    assert directives(policy(["https://[2001:db8::1]:8443/t", "http://127.0.0.1/t"]))["connect-src"] == {
        "'self'", "https://[2001:db8::1]:8443", "http://127.0.0.1",
    }  # fmt: skip


# --- What the files hold ----------------------------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_html_has_no_inline_script_or_style_and_every_file_that_it_names_is_there():
    tags = _Tags()
    tags.feed(FILES["index.html"].content.decode())
    named = [attributes.get("src") or attributes.get("href") for tag, attributes in tags.found if tag in {"script", "link"}]
    assert sorted(name for name in named if name != "data:,") == ["/page/main.js", "/page/style.css"]
    assert not any(name == "style" or name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert "style" not in {tag for tag, _ in tags.found}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_never_reads_text_as_markup_or_as_a_program(name):
    ways = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\(|new Function|setTimeout\(\s*[\"']"
    )
    assert re.findall(ways, SCRIPTS[name]) == []


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_imports_what_is_there_and_uses_what_it_imports(name):
    for names, source in re.findall(r'^import \{([^}]*)\} from "\./([^"]+)"', SCRIPTS[name], re.MULTILINE):
        for part in names.split(","):
            there, _, called = part.strip().partition(" as ")
            assert re.search(rf"^export (?:async )?(?:function|const|let|class) {there}\b", SCRIPTS[source], re.MULTILINE), (source, there)
            assert len(re.findall(rf"\b{called or there}\b", SCRIPTS[name])) > 1, f"{called or there} is not used"


def test_no_file_names_another_host():
    for name, file in FILES.items():
        content = re.sub(r"^\s*(//|/\*\*|\*).*$", "", file.content.decode(), flags=re.MULTILINE)
        assert re.findall(r"(?:https?:)?//[a-z0-9][a-z0-9-]*\.[a-z]{2,}", content) == [], name


def test_the_log_that_was_seen_is_all_that_is_kept_in_the_browser_for_good():
    kept = {
        name: set(re.findall(r"(localStorage|sessionStorage|indexedDB|document\.cookie|caches)\b\.?(\w*)", text)) for name, text in SCRIPTS.items()
    }
    uses = {name: found for name, found in kept.items() if found}
    assert uses.keys() == {"verify.js", "oidc.js"}
    assert {where for where, _ in uses["verify.js"]} == {"localStorage"}
    assert {where for where, _ in uses["oidc.js"]} == {"sessionStorage"}


# --- Texts ------------------------------------------------------------------------------------------------------------------------------


def test_both_languages_have_the_same_texts_and_placeholders():
    english, chinese = (own_texts(language) for language in LANGUAGES)
    # Chinese has no form for one.
    counted = {key for key in english if key.endswith(".one")}
    assert english.keys() - counted == chinese.keys()
    assert {key: placeholders(text) for key, text in english.items() if key not in counted} == {
        key: placeholders(text) for key, text in chinese.items()
    }
    assert all(text.strip() for texts in (english, chinese) for text in texts.values())


def test_chinese_is_chinese_and_english_is_not():
    han = re.compile(r"[\u4e00-\u9fff]")
    without = {key for key, text in own_texts("zh").items() if not han.search(text) and not re.fullmatch(r"\W*(\{\w+\}\W*)+", text)}
    assert without == {"language.tag", "export.fhir"}
    assert [key for key, text in own_texts("en").items() if han.search(text)] == []


def test_the_page_says_that_a_clinician_has_not_reviewed_its_texts():
    assert "not been reviewed by a clinician" in own_texts("en")["page.texts_review"]
    assert "尚未经中文临床医生审阅" in own_texts("zh")["page.texts_review"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_diagnoses_treats_or_speaks_of_risk(language):
    assert {key: found for key, text in own_texts(language).items() if (found := findings(text))} == {}


@pytest.mark.parametrize("group", sorted(CLASSES_OF_KEYS))
def test_there_is_a_word_for_everything_that_the_server_may_say(group):
    wanted = {f"{group}.{getattr(one, 'value', one)}" for one in CLASSES_OF_KEYS[group]}
    assert {key for key in own_texts("en") if key.startswith(f"{group}.")} == wanted


def test_every_status_and_check_has_its_words_from_the_report():
    texts = page_texts("zh")
    for status in Status:
        assert f"{REPORT}status.{status}" in texts
        assert f"{REPORT}next.{status}" in texts
    assert all(f"{REPORT}checks.{name}" in texts for name in ADVICE if name not in {"no_speech", "noise_unknown"})


def test_every_text_that_a_script_names_is_there_and_every_text_is_used():
    used, beginnings = set(), set()
    sources = "\n".join([*SCRIPTS.values(), FILES["index.html"].content.decode()])
    used |= set(re.findall(r'"((?:[a-z_]+\.)+[A-Za-z_.-]+)"', sources))
    beginnings |= set(re.findall(r"`((?:[a-z_]+\.)+[a-z_]*)\$\{", sources)) | {f"{group}." for group in re.findall(r'known\("(\w+)"', sources)}
    # Findings are named where they are found, and said under one group; sign-ins are refused in one word.
    findings_told = re.findall(r"(?:say\(|readKeys\().*", SCRIPTS["verification.js"])
    used |= {f"verify.{key}" for line in findings_told for key in re.findall(r'"(\w+)"', line)} - {
        f"verify.{state}" for state in ("good", "bad", "open")
    }
    texts = page_texts("en")
    missing = {key for key in used if key not in texts and f"{key}.other" not in texts and key.partition(".")[0] in _groups(texts)}
    assert missing - {"verify.js", "export.js"} == set()
    alone = {key.removesuffix(".one").removesuffix(".other") for key in own_texts("en")}
    assert {key for key in alone if key not in used and not key.startswith(tuple(beginnings))} == set()


def _groups(texts):
    return {key.partition(".")[0] for key in texts}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sites_own_wording_is_spoken_by_its_page_too(language):
    wording = {language: {"next.flagged": "Call the team." if language == "en" else "请联系团队。"}}
    site = Site(wording=wording, reviewed_by="A. Example", reviewed_on=datetime.date(2026, 1, 5))
    changed, usual = page_texts(language, site), page_texts(language)
    assert {key for key in usual if usual[key] != changed[key]} == {f"{REPORT}next.flagged"}
    assert changed[f"{REPORT}next.flagged"].encode() in page_files(site)[f"{language}.json"].content
