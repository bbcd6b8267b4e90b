"""What no report may say: a diagnosis, a treatment, a suicide risk, or that there is none.

The one idea: a backstop for texts that others write (a site's wording, another language), not a proof. It knows common English and Chinese sentences;
a text that it passes still has to be read by a clinician.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clinical_ser.errors import ReportError
from reports.reading import listed

_EXCUSED_UP_TO = 80
"""Characters between a negation and what it excuses; ours: a line of text."""


@dataclass(frozen=True)
class _Language:
    """How one language says it, and which words around it turn it into something else."""

    states: tuple[str, ...]
    """How someone is said to be: ill, well, at risk, safe."""
    treatments: tuple[str, ...]
    excuse: re.Pattern[str]
    """Earlier in the clause: a negation ("does not mean that"), or a question ("whether", "if")."""
    no_excuse: re.Pattern[str]
    """Looks like one, and is none: "no doubt"."""
    group: re.Pattern[str]
    """Earlier in the clause, for states: it is said of people in general."""
    group_after: re.Pattern[str]
    """The same, right behind it."""
    clause: re.Pattern[str]
    """Where the reach of an excuse ends."""


_ILLNESS = (
    r"(?:an? |the )?(?:(?:mild|moderate|severe|major|clinical|acute|current|untreated|any|form of|signs of|symptoms of|mental|psychiatric) ){0,3}"
    r"(?:depress\w+|anxiety|bipolar|schizophreni\w+|psychosis|ptsd|dementia|mdd|illness|disorder)"
)
_SUICIDE = r"(?:suicid\w+|self-harm(?:ing)?|killing (?:himself|herself|themselves))"
_LEVEL = (
    r"(?:no|not any|zero|without|free of|low(?:er)?|small|little|minimal|negligible|reduced|some|high(?:er)?|great(?:er)?|elevated|increased|raised"
    r"|moderate|severe|serious|acute|imminent|immediate)"
)
_TREATMENT = (
    r"(?:medications?|medicines?|drugs?|anti-?depressants?|anti-?psychotics?|ssris?|lithium|sertraline|fluoxetine|escitalopram|psychotherapy|cbt"
    r"|therapy|treatments?|dos(?:e|es|age))"
)
_ADVERB = r"(?:(?:clearly|probably|likely|certainly|possibly|clinically|mildly|moderately|severely|seriously|currently|very|most) ){0,2}"

_ENGLISH = _Language(
    states=(
        # A diagnosis.
        r"diagnosed (?:with|as)\b",
        rf"diagnosis (?:is|of|:) ?{_ILLNESS}",
        rf"(?:confirm|establish|prove|detect|diagnose)(?:s|d|es|ed)? (?:the diagnosis|{_ILLNESS})",
        r"meets? (?:the )?(?:diagnostic )?criteria for",
        rf"(?<!screened )(?<!screening )\b(?:positive|negative) for {_ILLNESS}",
        rf"\b{_ILLNESS} (?:is |was )?(?:confirmed|detected|found|established)\b",
        r"test(?:s|ed)? positive for",
        rf"\b(?:has|had) {_ILLNESS}",
        rf"\b(?:you|may|might|could|must|likely|probably|certainly) (?:also |probably |likely )?have {_ILLNESS}",
        rf"\b(?:shows?|exhibits?|displays?|indicates?|suggests?|indicative of|suggestive of|consistent with) (?:clear |strong )?{_ILLNESS}",
        rf"\b(?:is|are|be|seems|appears|sounds|looks) (?:not )?(?:a )?{_ADVERB}(?:depressed|mentally ill|psychotic|bipolar)\b",
        rf"\b(?:clearly|probably|likely|certainly|possibly) {_ILLNESS}",
        r"suffer(?:s|ing|ed)? from\b",
        # A clearance.
        rf"\b(?:do|does|did)(?: not|n't) have {_ILLNESS}",
        rf"\b(?:no|without|free (?:of|from)) (?:any )?(?:signs?|evidence|symptoms?|indications?)? ?(?:of )?{_ILLNESS}\b",
        rf"\b(?:rules?|ruled|ruling) out (?:{_ILLNESS}|(?:a |the |any )?(?:risk of )?{_SUICIDE})",
        rf"\b(?:{_ILLNESS}|{_SUICIDE}(?: risk)?) (?:is|was|are|has been|have been|can be|may be) (?:safely )?(?:ruled out|excluded|absent|unlikely)",
        r"\b(?:is|are) (?:mentally )?(?:healthy|well enough)\b",
        r"\bsafe (?:to|for) (?:be )?(?:discharge\w*|go home|leave|sen[dt] home)",
        r"\bcleared (?:to|for)\b",
        r"\bno (?:further |more )?(?:assessment|evaluation|follow-up|help|action|treatment)s? (?:is |are )?(?:needed|required|necessary)",
        r"\bno need (?:to|for) (?:\w+ ){0,2}(?:assess\w*|evaluat\w+|follow|treat\w*|worry|concern|ask)",
        # A risk of suicide, or of none.
        rf"\b{_LEVEL} (?:\w+ ){{0,2}}risk (?:of|for) {_SUICIDE}",
        rf"\b{_LEVEL} {_SUICIDE}(?: risk| intent| thoughts| ideation)?",
        rf"\b(?:is|are|be|seems|appears) (?:not )?at (?:a )?(?:risk (?:of|for) {_SUICIDE}|{_SUICIDE} risk)",
        rf"\b(?:{_SUICIDE} risk|risk (?:of|for) {_SUICIDE})(?::| is| was| seems| appears) (?:not )?(?:very )?\w+",
        r"\b(?:is|are|be|seems|appears|sounds) (?:not )?(?:actively |acutely )?suicidal\b",
        rf"\bno (?:\w+ )?(?:concerns?|worr(?:y|ies)|risk|danger) (?:about|of|for|over|regarding) (?:{_SUICIDE}|self-harm|harm)",
    ),
    treatments=(
        r"\bprescri(?:be|bes|bed|bing|ption (?:of|for))\b",
        r"\b(?:start|begin|initiate|increase|raise|reduce|lower|stop|discontinue|switch|continue|adjust|change|take|try|recommend|advise|suggest|offer"
        rf"|consider|need|require|receive)(?:s|ed|ing)? (?:\w+ ){{0,2}}{_TREATMENT}\b",
        r"\b(?:should|must|needs? to|has to|ought to) (?:be )?(?:treated|medicated|hospitali[sz]ed|admitted|discharged|given)\b",
        rf"\b(?:{_TREATMENT}|admission|hospitali[sz]ation) (?:is|are|should be) (?:\w+ )?(?:recommended|advised|indicated|needed|required|necessary)",
        r"\b\d+(?:\.\d+)? ?mg\b",
    ),
    excuse=re.compile(r"\b(?:not|never|no|nor|cannot|neither|without)\b|n't\b|\b(?:whether|if|when)\b(?=[^,]*$)"),
    no_excuse=re.compile(r"\b(?:no|without(?: a| any)?) (?:doubt|question)\b|\bnot (?:only|just|merely)\b|\bnot flagged\b"),
    group=re.compile(r"\b(?:people|persons|patients|inpatients|outpatients|adults|subjects|participants|speakers|those|anyone|someone)\b(?! like)"),
    group_after=re.compile(r"(?!)"),
    clause=re.compile(
        r"[.!?](?:\s|$)|[;:]|\b(?:but|therefore|so|because|hence)\b"
        r"|(?:,|\band\b)(?: and| then)? (?=(?:the|this|that|these|it|he|she|they|you|we|there|an?|please|start|take|his|her|their|your)\b)"
    ),
)

_ILL_ZH = r"(?:轻度|中度|重度|严重|明显|临床|任何|的)*(?:抑郁|忧郁|焦虑|双相|精神(?:疾病|障碍|分裂)|躁狂|创伤后)"
_RISK_ZH = r"自杀(?:的)?(?:风险|危险|倾向|意念|想法|可能)"
_LEVEL_ZH = r"(?:没有|不存在|并?无|未见|(?:很|较|极|非常)?[低高小大]|中等|轻微|存在|具有|有)(?:明显|任何|显著|一定|的)*"

_CHINESE = _Language(
    states=(
        # A diagnosis.
        r"确诊",
        r"诊断(?:为|是|结果|:)",
        rf"患(?:有|上|了)?{_ILL_ZH}",
        rf"(?:得了|罹患|属于|处于|符合|提示|表明|证实|确认|(?<!不)存在|[这此]是|(?<!没)有){_ILL_ZH}(?:症|障碍|状态|的诊断)",
        rf"(?:是|为){_ILL_ZH}(?:症)?患者",
        rf"(?:此人|患者|说话人|受试者)(?:很|可能|明显)*{_ILL_ZH}(?!程度|评|量|筛|的?概率)",
        # A clearance.
        rf"(?:(?<!有)(?:没有|无)|未患|未见|不存在|并无)患?{_ILL_ZH}(?!评|量|筛)",
        rf"(?:排除|除外)(?:了)?(?:{_ILL_ZH}|自杀|.{{0,4}}自杀)",
        rf"(?:{_ILL_ZH}症?|{_RISK_ZH})(?:可以?|已|已经)(?:被)?(?:排除|除外)",
        r"(?:心理|精神)(?:健康|正常)(?!问题|服务|科|中心|热线|状)",
        r"(?:无需|无须|不需要|不必|不用)(?:进一步|再|做|进行|接受)*(?:评估|检查|治疗|随访|就医|就诊|担心|询问)",
        r"可以?(?:放心|安全)?(?:出院|回家)",
        # A risk of suicide, or of none.
        rf"(?<!有){_LEVEL_ZH}{_RISK_ZH}(?!者)",
        rf"{_RISK_ZH}(?:性)?(?:等级|水平|程度)?(?:为|是|:|很|较|极|非常|偏)*(?:[低高小大无]|中等)",
        r"不会自杀|想自杀|要自杀",
        r"(?:无|没有|并无)(?:任何|明显)?自(?:伤|残)(?:的)?(?:风险|危险|想法)",
        rf"{_ILL_ZH}症?(?:筛查)?(?:阳性|阴性)",
        rf"(?:患者|此人|受检者)(?:是|为){_ILL_ZH}",
    ),
    treatments=(
        r"开具?处方|处方(?:为|是|:|如下)|开药|用药方案",
        r"(?:建议|推荐|应当?|应该|需要?|必须|请|可以?|宜)(?:立即|尽快|考虑|继续|开始|停止|接受|进行|给予|据此)*"
        r"(?:.{0,4}(?:服用|服药|用药|停药|换药|加量|减量|治疗|住院)|.{0,6}药物)",
        r"(?:开始|停止|继续|调整|增加|减少)(?:药物|用药|服药|治疗|剂量)",
        r"服用(?:抗抑郁|药|舍曲林|氟西汀|锂)",
        r"\d+ ?(?:毫克|mg)",
    ),
    excuse=re.compile(r"不|非|勿|无法|未必|未能|从未|切莫|避免|是否|有无|有没有|(?:如|若|一旦|当)(?=[^,]*$)"),
    no_excuse=re.compile(r"不仅|不但|不同|不良|不过|不确定|不可用|无疑|毫无疑问|非常"),
    group=re.compile(r"(?:人群|人们|者)中"),
    group_after=re.compile(r"(?:症|障碍|疾病)?的(?!这|该|此|本)[^,。;]{0,4}?(?:人|患者|成人|说话人|受试者|被试|参与者)"),
    clause=re.compile(r"[。!?;:]|,(?=(?:该|此|本|您|你|他|她|请|建议|患者|说话人|因此|所以|但))|但|因此|所以"),
)
_LANGUAGES = (_ENGLISH, _CHINESE)

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2069\ufeff]")
_BETWEEN_CHINESE = re.compile("(?<=[\u3000-\u9fff]) +(?=[\u3000-\u9fff])")
_PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*[A-Z])")
"""A line that starts with a capital starts anew: in a report, headings and cells have no full stop."""


def findings(text: str) -> tuple[str, ...]:
    """Return what a text says and must not, in its own words (small letters, plain spaces); nothing found is no proof.

    Examples
    --------
    >>> findings("This person is depressed. Start medication.")
    ('is depressed', 'start medication')
    >>> findings("It is not a diagnosis, and does not rule out depression or suicide risk.")
    ()
    """
    found = (said for paragraph in _PARAGRAPH.split(text) for said in _said(_plain(paragraph)))
    return tuple(dict.fromkeys(found))


def check(texts: Mapping[str, str]) -> None:
    """Raise ReportError, naming keys and words, if a text says what no report may say."""
    said = [f"{key} says “{found}”" for key, text in texts.items() for found in findings(text)]
    if said:
        raise ReportError(f"{listed(said, '; ')}: a report states no diagnosis, no treatment, no suicide risk and no absence of it.")


def _plain(text: str) -> str:
    """Return text in one spelling: widths and quotation marks of one kind, nothing invisible, and Chinese without the spaces of a broken line."""
    one_width = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return _BETWEEN_CHINESE.sub("", " ".join(_INVISIBLE.sub("", one_width).split()))


def _said(text: str) -> Iterator[str]:
    for language in _LANGUAGES:
        for claims, of_group in ((language.states, True), (language.treatments, False)):
            matches = (match for claim in claims for match in re.finditer(claim, text))
            yield from (match[0].strip() for match in matches if not _excused(language, text, match, of_group=of_group))


def _excused(language: _Language, text: str, match: re.Match[str], *, of_group: bool) -> bool:
    """Return whether what stands around a match turns it into something else; people in general may be ill, but are not to be treated either."""
    before = text[max(0, match.start() - _EXCUSED_UP_TO) : match.start()]
    clause = language.clause.split(language.no_excuse.sub(" ", before))[-1]
    in_general = of_group and (language.group.search(clause) or language.group_after.match(text, match.end()))
    return bool(language.excuse.search(clause) or in_general)
