"""What each page of the clinician's report says of one result, in one language.

The one idea: every sentence is chosen by what the result holds (a status, a flag, a number that is there or not) and comes from the language's file;
texts of the model's maker, which are in one language only, are shown as such and cut to what a page holds.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

from clinical_ser.audio import QualityCheck
from clinical_ser.evaluation.card import SIMULATED_STATEMENT
from clinical_ser.explain.explanation import Explanation, Reference, Words
from clinical_ser.explain.timeline import Timeline
from clinical_ser.monitoring.comparison import Comparison
from clinical_ser.screening.result import AnswerRates, Performance, ScreeningResult, Share, Status
from clinical_ser.screening.screener import UNTRUSTED_NOTICE
from reports import clinician_figures as figures
from reports.clinician_figures import of_hundred, percents, with_unit
from reports.document import Beside, Block, Column, Headline, Notice, Paragraph, Section, Table, Terms
from reports.locale import Locale
from reports.numbers import brief, percent
from reports.qr import code
from reports.sheet import Page
from reports.site import Site
from reports.visit_figures import visits
from reports.wording import count, plain

RECORD = "clinical-ser:result:"
"""Before the digits of `ScreeningResult.digest` in the string by which the record of a result is found."""
SCORED = frozenset({Status.FLAGGED, Status.NOT_FLAGGED, Status.CLASSIFIED})
"""Answers that come with a number."""
_SENTENCES = 3
_NOTES = 2
_LONG = 260
"""Characters of a text of the maker's or the cohort's that a page has room for."""
_NAME = 40
_SENTENCE = 180
_SAME_SHARE = 1e-6
_SOFTWARE = ("clinical-ser", "opensmile", "praat-parselmouth")
_LOWER_BOUND = frozenset({"speech", "voicing", "snr", "bandwidth", "level"})
"""Checks whose value has to reach its limit; the others must not exceed theirs."""


class Pages:
    """The pages of one result.

    Parameters
    ----------
    result
        Of one screening.
    site
        Its contacts, its prevalence, its texts.
    locale
        The language.
    """

    def __init__(self, result: ScreeningResult, site: Site, locale: Locale):
        self._result, self._site, self._say = result, site, locale
        self._label = self._class(result.probability.label) if result.probability else ""
        self._shown = result.explanation if result.status in SCORED else None
        """The explanation, of an answer that comes with a number."""

    @property
    def status(self) -> str:
        """The answer in words."""
        return self._say(f"status.{self._result.status}", label=self._label)

    def facts(self) -> Iterable[str]:
        """Yield what is known of the recording and the person, in short."""
        say, context = self._say, self._result.context
        if context.recorded_on is not None:
            yield say("person.recorded", day=context.recorded_on.isoformat())
        yield say("person.duration", seconds=f"{self._result.recording.duration_s:.0f}")
        age = None if context.age is None else say("person.age", years=f"{context.age:.0f}")
        known = [say.term("said_sex", context.sex) if context.sex else None, age, context.task, context.device, context.language]
        told = [_cut(word, _NAME) for word in known if word]
        yield say("person.said", what=self._listed(told)) if told else say("person.nothing_said")

    # --- Pages ----------------------------------------------------------------------------------------------------------------------------

    def first(self) -> Page:
        """Say what was answered, how sure that is, and what to do; all there is to say of a recording that is not usable."""
        say, refused = self._say, self._result.status is Status.NOT_USABLE
        sections = [
            Section(say("about.title"), tuple(self._about())),
            Section(say("answer.title"), tuple(self._answer())),
            Section(say("quality.title"), tuple(self._quality())),
            *([Section(say("families.title", label=self._label), tuple(self._families(self._shown)))] if self._shown else []),
            Section(say("next.title"), (Paragraph(say(f"next.{self._result.status}")),)),
            Section(say("safety.title"), (self._safety(),)),
            *([self._record()] if refused else []),
        ]
        return Page(tuple(sections))

    def second(self) -> Page:
        """Say what was measured and compared, how good the model is, and how to find the record."""
        say, result = self._say, self._result
        if result.status is Status.NOT_USABLE:
            return Page(())
        sections = [
            Section(say("measures.title"), tuple(self._measures())),
            *([Section(say("moments.title", label=self._label), tuple(self._moments(result.timeline)))] if self._shown else []),
            Section(say("performance.title"), tuple(self._performance())),
            Section(say("caution.title"), tuple(map(Paragraph, self._cautions()))),
            self._record(),
        ]
        return Page(tuple(section for section in sections if section.blocks))

    def over_time(self, comparison: Comparison) -> Page:
        """Say how the measures, and the score, stand against the person's own earlier recordings."""
        say = self._say
        flags = tuple(self._flags(comparison))
        known = sum(change.index is not None for change in comparison.measures)
        setting = _cut(comparison.retest_setting, _LONG) if comparison.retest_setting else say("unknown")
        notes = [
            say("visits.note", setting=setting) if known else say("visits.no_index"),
            say("visits.chance", n=brief(comparison.expected_by_chance), of=known) if known else "",
            say("visits.one_person"),
            "" if self._shown else say("visits.no_score"),
        ]
        blocks: list[Block] = [Notice("warn", say("flags.title"), flags)] if flags else []
        blocks += [visits(comparison, self._label if self._shown else "", say), Paragraph(self._joined(notes), quiet=True)]
        return Page((Section(say("visits.title", n=len(comparison.visits)), tuple(blocks)),))

    # --- Page 1 ---------------------------------------------------------------------------------------------------------------------------

    def _about(self) -> Iterable[Block]:
        say, defined = self._say, self._result.defined_by
        if self._result.model.simulated:
            yield Notice("fail", say("simulated.title"), (say("simulated.text"),))
        means = "" if defined is None else say("about.defined", label=self._positive, cutoff=f"{defined.cutoff:g}", score=_cut(defined.score, _NAME))
        yield Paragraph(self._joined([say("about.text"), means]))

    @property
    def _positive(self) -> str:
        """Return what the class is called whose probability a binary task states; known without an answer too where the card counted answers."""
        return self._label or (self._class(self._result.answers[-1].label) if self._result.answers else self._class("depressed"))

    def _answer(self) -> Iterable[Block]:
        say, result = self._say, self._result
        if result.status is Status.NOT_USABLE:
            yield Headline(self.status, (say("answer.not_usable"),))
            return
        if result.status is Status.INDETERMINATE:
            yield Headline(self.status, tuple(filter(None, (self._doubt(), self._how_often("answer.how_often")))))
            return
        one = result.probability
        assert one is not None
        interval = percents(one.interval.low, one.interval.high, say)
        lines = (
            say(f"answer.{result.status}", label=self._label),
            say("answer.probability", label=self._label, value=percent(one.value), interval=interval),
            *self._stated(one.prevalence),
            say("answer.interval_means"),
        )
        picture = figures.classes(result, say) if result.classes else figures.people(one, self._label, say)
        yield Beside((Headline(self.status, lines),), (picture,))

    def _stated(self, prevalence: float) -> Iterable[str]:
        say = self._say
        if self._result.classes:
            yield say("answer.equal")
            return
        yield say("answer.stated", share=of_hundred(prevalence, say), label=self._label)
        if self._site.prevalence is not None and abs(self._site.prevalence - prevalence) > _SAME_SHARE:
            yield say("answer.site_differs", share=of_hundred(self._site.prevalence, say))

    def _doubt(self) -> str:
        say, members = self._say, self._result.prediction_set
        if not self._result.classes:
            return say("answer.indeterminate", label=self._label)
        if not members:
            return say("answer.indeterminate_none")
        return say("answer.indeterminate_of_several", labels=self._listed(list(map(self._class, members))))

    def _quality(self) -> Iterable[Block]:
        say, quality = self._say, self._result.quality
        faults = [check for check in quality.checks if check.verdict != "pass"]
        if quality.verdict == "pass" or not faults:
            yield Paragraph(say(f"quality.{quality.verdict}"))
            return
        worst = [check for check in faults if check.verdict == quality.verdict]
        lesser = [check for check in faults if check.verdict != quality.verdict]
        advice = list(dict.fromkeys(filter(None, map(say.advice, [*worst, *lesser]))))
        found = self._joined([say(f"quality.{quality.verdict}"), "; ".join(map(self._check, [*worst, *lesser]))])
        if quality.verdict == "warn":
            yield Paragraph(self._joined([f"{found}.", *advice]))
        else:
            yield Paragraph(f"{found}.")
            yield Notice("warn", say("quality.again"), (*advice, say("quality.general")))

    def _check(self, check: QualityCheck) -> str:
        """Return what a check found, in numbers where it has some."""
        say, what = self._say, _cut(self._say.term("checks", check.name), _NAME)
        # What a good recording reaches, which is also what the advice asks for; the gate's own limit is lower.
        limit = check.fail_limit if check.warn_limit is None else check.warn_limit
        if check.value is None or limit is None or check.name == "complete":
            return what
        needed = say("quality.at_least" if check.name in _LOWER_BOUND else "quality.at_most", limit=with_unit(limit, check.unit, say))
        return say("quality.check", what=what, value=with_unit(check.value, check.unit, say), limit=needed)

    def _families(self, explanation: Explanation) -> Iterable[Block]:
        say, driver = self._say, explanation.main_driver
        yield figures.families(explanation, self._label, say)
        first = (
            say("families.driver", label=_cut(say.label(driver), _NAME), share=percent(driver.rank_agreement))
            if driver
            else say("families.no_driver")
        )
        start = say("families.start", base=percent(explanation.base_probability), value=percent(explanation.probability))
        yield Paragraph(self._joined([first, self._learned(explanation)]))
        told = [(_cut(say.label(family), _NAME), _cut(_in(say, family.sentence), _SENTENCE)) for family in explanation.families[:_SENTENCES]]
        if all(sentence for _, sentence in told):  # a result has sentences in some languages only
            yield Terms(tuple(told))
        yield Paragraph(self._joined([start, say("families.no_cause")]), quiet=True)

    def _learned(self, explanation: Explanation) -> str:
        without = explanation.without_embedding
        if without is None:
            return ""
        status = self._say(f"status.{without.status}", label=self._label)
        interval = percents(max(without.probability.low, 0.0), min(without.probability.high, 1.0), self._say)
        return self._say("families.learned", status=status, value=percent(without.probability.value), interval=interval)

    def _safety(self) -> Notice:
        say = self._say
        contacts = [
            " · ".join(filter(None, (say("safety.contact", name=one.name, phone=one.phone), one.hours, one.note))) for one in self._site.contacts
        ]
        return Notice("fail", say("safety.contacts"), (say("safety.text"), *(contacts or [say("safety.none")])))

    # --- Page 2 ---------------------------------------------------------------------------------------------------------------------------

    def _measures(self) -> Iterable[Block]:
        say, result = self._say, self._result
        group = self._group(result.explanation.reference) if result.explanation else ""
        site_text = self._site.reference_text.get(say.code, "")
        if not result.measures:
            yield Paragraph(self._joined([say("measures.none"), group, site_text]))
            return
        yield figures.measures(result.measures, say)
        relative = say("measures.relative") if result.model.uses_baseline else ""
        yield Paragraph(self._joined([relative, say("measures.note")]), quiet=True)
        yield Paragraph(self._joined([group, site_text]))

    def _group(self, reference: Reference) -> str:
        say = self._say
        if reference.subjects is None:
            who = say("reference.average")
        else:
            age = reference.age_years and say("person.age", years=f"{reference.age_years[0]}–{reference.age_years[1]}")
            parts = [
                self._class(reference.people.replace(" ", "_")) if reference.people else None,
                say.term("sex", reference.sex) if reference.sex else None,
                age,
                reference.task,
                reference.device,
            ]
            named = self._listed([_cut(part, _NAME) for part in parts if part]) or _cut(reference.group, _LONG)
            people = say.several("reference.people", reference.subjects)
            who = say("colon", term=say("reference.title"), value=say("reference.group", who=named, people=people))
        unmatched = [say.term("terms", what) for what in reference.unmatched]
        return self._joined([who, say("reference.unmatched", what=self._listed(unmatched)) if unmatched else "", say("reference.never")])

    def _moments(self, timeline: Timeline | None) -> Iterable[Block]:
        if timeline is None:
            yield Paragraph(self._say("moments.absent"))
            return
        yield figures.moments(timeline, self._label, self._say)
        yield Paragraph(figures.outstanding(timeline, self._say))

    def _performance(self) -> Iterable[Block]:
        say, told = self._say, self._result.performance
        if not told:
            yield Paragraph(say("performance.none"))
            return
        names = [name for name in ("sensitivity", "specificity", "uar", "auroc") if any(name in one.figures for one in told)]
        columns = [Column(say("performance.column"), wide=True), Column(say("performance.subjects"), "count")]
        columns += [Column(say(f"performance.{name}")) for name in names]
        rows = [[self._people(one), count(one.subjects), *self._figures(one, names)] for one in told]
        yield Table.of(say("performance.caption"), columns, rows)
        missing = self._untested()
        yield Paragraph(self._joined([say("performance.note"), say("performance.not_in", what=self._listed(missing)) if missing else ""]), quiet=True)

    def _people(self, one: Performance) -> str:
        say = self._say
        if one.column is None:
            who = say("performance.everyone")
        else:
            value = _cut(say.term("sex", one.value or "") if one.column == "sex" else one.value or "", _NAME)
            who = say(f"groups.{one.column}", value=value.replace("-", "–") if one.column == "age_band" else value)
        return say("performance.external", who=who) if one.origin == "external" else who

    def _figures(self, one: Performance, names: Sequence[str]) -> list[str]:
        if not one.enough:
            return [self._say("performance.too_few"), *([""] * (len(names) - 1))]
        return [self._bracketed(one.figures.get(name), as_share=name != "auroc") for name in names]

    def _bracketed(self, share: Share | None, *, as_share: bool) -> str:
        if share is None or share.value is None:
            return self._say("unknown")
        write = percent if as_share else _two_places
        if share.low is None or share.high is None:
            return write(share.value)
        low, high = write(share.low), write(share.high)
        return f"{write(share.value)} [{self._say('range', low=low.removesuffix(' %'), high=high)}]"

    def _untested(self) -> list[str]:
        """Name what is known of the person and has no row: nobody like that was tested."""
        context, columns = self._result.context, {one.column for one in self._result.performance}
        known = {"sex": context.sex, "age_band": context.age, "language": context.language, "device": context.device, "task": context.task}
        return [
            self._say.term("terms", column.removesuffix("_band")) for column, value in known.items() if value is not None and column not in columns
        ]

    def _cautions(self) -> Iterable[str]:
        say, result = self._say, self._result
        yield from filter(None, [self._how_often("caution.abstains") if self._shown else ""])
        if result.quality.switched_off:
            yield say("caution.switched_off", what=say("caution.noise"))
        if result.missing:
            yield say("caution.missing", n=len(result.missing))
        if result.model.uses_baseline and result.context.baseline_recordings:
            yield say.several("caution.baseline", result.context.baseline_recordings)
        if result.explanation and result.explanation.without_embedding and result.explanation.without_embedding.disagrees:
            yield say("caution.embedding_disagrees")
        if result.model.signature != "trusted":
            yield say("caution.untrusted")
        yield from (say("caution.maker", text=_cut(note, _LONG)) for note in self._of_the_maker()[:_NOTES])

    def _of_the_maker(self) -> list[str]:
        """Return notices that no text of the language stands for."""
        point = self._result.operating_point
        notices = [*self._result.notices, *([point.note] if point and point.note else [])]
        known = (SIMULATED_STATEMENT, UNTRUSTED_NOTICE)
        return [left for notice in notices if (left := _without(notice, known))]

    def _how_often(self, key: str) -> str:
        """Say how often the model cannot tell, of people of each class; empty where nobody counted."""
        if len(self._result.answers) != 2:
            return ""
        others, people = self._result.answers
        value, interval = self._rate(people)
        other, other_interval = self._rate(others)
        label = self._class(people.label)
        return self._say(key, label=label, value=value, interval=interval, other=other, other_interval=other_interval) if value and other else ""

    def _rate(self, rates: AnswerRates) -> tuple[str, str]:
        share = rates.indeterminate
        if share.value is None or share.low is None or share.high is None:
            return "", ""
        return percent(share.value), percents(share.low, share.high, self._say)

    def _record(self) -> Section:
        say, result = self._say, self._result
        model = result.model
        found = f"{RECORD}{result.digest}"
        name, version = _cut(model.name, _NAME), _cut(model.version, _NAME)
        rows = [
            (say("record.record"), found),
            (say("record.recording"), result.recording.sha256),
            (say("record.model"), say("record.model_is", name=name, version=version, signature=say(f"signature.{model.signature}"))),
            (say("record.digest"), plain(model.digest)),
            (say("record.software"), self._listed([f"{name} {_cut(result.software[name], _NAME)}" for name in _SOFTWARE if name in result.software])),
        ]
        site = self._site
        reviewed = bool(site.wording.get(say.code)) and site.reviewed_by and site.reviewed_on
        notes = [say("record.find"), say("record.wording", who=site.reviewed_by, day=site.reviewed_on) if reviewed else ""]
        # Capitals and digits alone make a coarser, better readable code.
        blocks = Beside((Terms(tuple(rows)), Paragraph(self._joined(notes), quiet=True)), (code(found.upper(), say("record.record")),), narrow=True)
        return Section(say("record.title"), (blocks,))

    # --- Visits ---------------------------------------------------------------------------------------------------------------------------

    def _flags(self, comparison: Comparison) -> Iterable[str]:
        say, visits = self._say, len(comparison.visits)
        for flag in comparison.flags:
            if flag.kind == "differs":
                yield say(f"flags.{flag.aspect}", n=flag.visits, of=visits - 1)
            else:
                yield say("flags.not_stated", what=say(f"terms.{flag.aspect}"), n=flag.visits, of=visits)
        unusable = sum(not visit.usable for visit in comparison.visits[:-1])
        if unusable:
            yield say("flags.unusable", n=unusable, of=visits - 1)

    # --- Words ----------------------------------------------------------------------------------------------------------------------------

    def _class(self, label: str) -> str:
        return _cut(self._say.term("classes", label), _NAME)

    def _listed(self, words: Sequence[str]) -> str:
        return reduce(lambda first, second: self._say("listed", first=first, second=second), words) if words else ""

    def _joined(self, sentences: Iterable[str]) -> str:
        return reduce(lambda first, second: self._say("sentences", first=first, second=second), filter(None, sentences), "").strip()


def _in(locale: Locale, words: Words) -> str:
    """Return a sentence of the result in the language, or nothing."""
    return str(getattr(words, locale.language, ""))


def _cut(text: str, most: int) -> str:
    shown = plain(text)
    return shown if len(shown) <= most else f"{shown[: most - 1].rstrip()}…"


def _without(notice: str, known: Iterable[str]) -> str:
    for text in known:
        notice = notice.replace(text, "")
    return notice.strip()


def _two_places(value: float) -> str:
    return f"{value:.2f}"
