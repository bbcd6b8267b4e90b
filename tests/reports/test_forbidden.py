"""What a report must never say is found in both languages, and the sentences that say the opposite are left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.audio.advice import ADVICE
from clinical_ser.errors import ReportError
from clinical_ser.features import catalogue
from clinical_ser.screening.result import INTENDED_USE
from reports.forbidden import check, findings

DIAGNOSES = (
    "The speaker was diagnosed with depression.",
    "This person has depression.",
    "She has a major depressive disorder.",
    "You have depression.",
    "The patient may have depression.",
    "You probably have a mental illness.",
    "The speaker is depressed.",
    "The person is most likely depressed.",
    "The speaker is a depressed person.",
    "It is likely depression.",
    "He suffers from anxiety.",
    "The diagnosis is depression.",
    "The result confirms the diagnosis.",
    "The recording suggests depression.",
    "The voice is consistent with depression.",
    "The patient tests positive for depression.",
    "The person meets the criteria for depression.",
    "此人已确诊。",
    "诊断为抑郁症。",
    "该患者患有抑郁症。",
    "说话人患抑郁症。",
    "说话人有抑郁症。",
    "很可能患抑郁。",
    "这是抑郁症。",
    "此人抑郁。",
    "存在抑郁症状。",
    "结果提示抑郁状态。",
)
CLEARANCES = (
    "The speaker is not depressed.",
    "The person does not have depression.",
    "The result rules out depression.",
    "Depression has been excluded.",
    "Depression is unlikely.",
    "There is no sign of depression.",
    "The person is healthy.",
    "No further assessment is needed.",
    "There is no need to ask about suicide.",
    "The patient is safe to go home.",
    "说话人没有抑郁症。",
    "说话人无抑郁。",
    "已排除抑郁症。",
    "无需进一步评估。",
    "可以出院。",
)
SUICIDE = (
    "There is no risk of suicide.",
    "There is no immediate risk of suicide.",
    "The person is at low suicide risk.",
    "The patient is not at risk of suicide.",
    "The patient is at risk of suicide.",
    "A high risk of self-harm.",
    "Suicide risk can be ruled out.",
    "Suicide risk is low.",
    "Suicide risk: high",
    "The risk of suicide is high.",
    "The person is not suicidal.",
    "She is suicidal.",
    "没有自杀风险。",
    "不存在自杀倾向。",
    "自杀风险较低。",
    "自杀风险：低",
    "自杀的可能性很小。",
    "有较高的自杀风险",
    "该患者存在自杀风险。",
    "可排除自杀风险。",
)
TREATMENTS = (
    "Prescribe an SSRI.",
    "Start medication.",
    "Start her medication today.",
    "The patient should be treated with sertraline.",
    "People who are flagged should be treated with sertraline.",
    "When flagged, prescribe an SSRI.",
    "The person should be admitted.",
    "The person needs treatment.",
    "Treatment is recommended.",
    "Consider antidepressants.",
    "Take 50 mg daily.",
    "建议服用抗抑郁药。",
    "建议用药。",
    "如被标记，建议服用药物。",
    "筛查者中被标记的应服药。",
    "应立即住院。",
    "需要治疗。",
    "请停药。",
    "开始药物治疗。",
    "每日服用舍曲林 50 毫克。",
)
DISGUISED = (
    "No doubt the person has depression.",
    "Not only is this a screen, it confirms depression.",
    "This is not a joke, the person is depressed.",
    "The recording isn’t noisy, and the person has depression.",
    "The person doesn’t have depression.",
    "THE PERSON\nIS\tDEPRESSED",
    "The person ｈａｓ depres\u00adsion.",
    "The person\u00a0has\u200b depression.",
    "Not flagged\nThis person has depression.",
    "Indeterminate, not flagged. This person has depression.",
    "毫无疑问，患者患有抑郁症。",
    "未标记\n说话人患有抑郁症。",
    "不确定\n说话人患有抑郁症。",
    "说话人患有抑\n郁症。",
)
ALLOWED = (
    "It is not a diagnosis.",
    "This is never a diagnosis.",
    "It does not rule out depression or suicide risk.",
    "Not flagged does not rule out depression or suicide risk.",
    "It is not\na diagnosis.",
    "labelled depressed",
    "not depressed",
    "People who are labelled depressed.",
    "It does not say that the person is depressed.",
    "This report does not, on its own, mean that the person is depressed.",
    "The result does not mean that the person has depression.",
    "A low score does not mean that there is no risk of suicide.",
    "Depression cannot be ruled out.",
    "It cannot tell whether the person is depressed.",
    "It doesn’t mean that the person is depressed.",
    "It says nothing about suicide risk.",
    "It never states a suicide risk.",
    "It does not diagnose, prescribe or treat.",
    "Do not start, stop or change treatment because of this report.",
    "About 10 of 100 people who are screened have depression.",
    "People diagnosed with depression by a structured interview.",
    "Reference: 212 outpatients who were diagnosed with major depression.",
    "31 % of inpatients at suicide risk screened negative for depression.",
    "Ask about suicide directly, whatever the score.",
    "Assess suicide risk in everyone.",
    "If someone is at high risk of suicide, call the emergency number.",
    "Screened positive for depression on the PHQ-8.",
    "The probability of depression is 34 % (29 to 41 %).",
    "This recording is more similar to recordings from people scoring PHQ-8 of 10 or more than 78 % of the reference group.",
    "The result is indeterminate: the model cannot tell.",
    "There is too much background noise: record in a quiet room.",
    "Take the recording again.",
    "本结果不是诊断。",
    "不能作为诊断依据。",
    "不能据此确诊。",
    "未标记并不排除抑郁或自杀风险。",
    "不代表没有抑郁。",
    "请勿据此开始或停止治疗。",
    "不提供治疗建议。",
    "是否需要治疗由医生决定。",
    "请直接询问有无自杀风险。",
    "如有自杀风险，请立即拨打急救电话。",
    "无论结果如何，都应直接询问自杀想法。",
    "100 名受筛查者中约有 10 人患有抑郁症。",
    "患有抑郁症的人的录音",
    "有自杀风险的住院患者里 31 % 的问卷结果为阴性。",
    "标签为抑郁",
    "抑郁的概率为 34%。",
    "心理健康热线",
)


@pytest.mark.parametrize("text", [*DIAGNOSES, *CLEARANCES, *SUICIDE, *TREATMENTS, *DISGUISED])
def test_what_a_report_may_never_say_is_found(text):
    assert findings(text)
    assert findings(f"The recording has 28 s of speech. {text} 录音质量良好。")


@pytest.mark.parametrize("text", ALLOWED)
def test_disclaimers_groups_and_questions_pass(text):
    assert findings(text) == ()


def test_what_this_package_says_elsewhere_passes():
    features = [catalogue.get(name) for name in catalogue.names("egemaps", "praat", "timing")]
    described = [
        getattr(spec, f"{part}_{language}") for spec in features for part in ("label", "meaning", "higher", "lower") for language in ("en", "zh")
    ]
    said = [INTENDED_USE, *described, *(sentence for pair in ADVICE.values() for sentence in pair)]
    assert [(text, findings(text)) for text in said if findings(text)] == []


def test_findings_are_the_words_that_were_found():
    assert findings("This person is depressed. Start medication. She is depressed.") == ("is depressed", "start medication")


def test_a_check_names_keys_and_words_and_passes_what_is_sound():
    check({"a": "It is not a diagnosis.", "b": "labelled depressed"})
    with pytest.raises(ReportError, match=r"^next\.flagged says “start medication”; status says “确诊”: a report states no diagnosis"):
        check({"next.flagged": "Start medication.", "sound": "It is not a diagnosis.", "status": "已确诊"})


def test_a_check_of_many_faults_stays_readable():
    with pytest.raises(ReportError, match=r"\(and 95 more\)") as caught:
        check({f"key{i}": "Start medication." for i in range(100)})
    assert len(str(caught.value)) < 400


@given(st.text(alphabet="不没有无自杀风险抑郁症的,。 \nnotdepressed'", max_size=200))
def test_any_text_is_searched_without_fail(text):
    assert all(said and said == said.strip() for said in findings(text))


@given(
    st.sampled_from([*DIAGNOSES, *CLEARANCES, *SUICIDE, *TREATMENTS]), st.sampled_from(["\u200b", "\u00ad", "\u2060", "\ufeff"]), st.integers(0, 40)
)
def test_characters_that_nobody_sees_hide_nothing(text, invisible, at):
    assert findings(text[:at] + invisible + text[at:]) == findings(text)
