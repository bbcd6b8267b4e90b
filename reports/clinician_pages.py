"""What each page of the clinician's report says of one result, in one language.

The one idea: every sentence is chosen by what the result holds (a status, a flag, a number that is there or not) and comes from the language's file;
texts of the model's maker, which are in one language only, are shown as such and cut to what a page holds.
"""

from collections.abc import Iterable, Sequence

from clinical_ser.audio import QualityCheck
from clinical_ser.evaluation.card import SIMULATED_STATEMENT
from clinical_ser.explain.explanation import Explanation, Reference, Words
from clinical_ser.explain.timeline import Timeline
from clinical_ser.monitoring.comparison import Comparison
from clinical_ser.screening.result import AnswerRates, Performance, ScreeningResult, Share, Status
from clinical_ser.screening.screener import NO_TIMELINE, UNTRUSTED_NOTICE
from reports import clinician_figures as figures
from reports.clinician_figures import joined, percents, with_unit
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
_SENTENCES = 3
_NOTES = 2
_LONG = 260
"""Characters of a text of the maker's or the cohort's that a page has room for."""
_STATEMENT = 200
_NAME = 40
_SENTENCE = 180
_SOFTWARE = ("clinical-ser", "opensmile", "praat-parselmouth", "onnxruntime")


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
        self._shown = result.explanation if result.status.has_number else None
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
            *([self._moved(self._shown)] if self._shown and self._shown.families else []),
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
            *([self._moments(result.timeline)] if self._shown else []),
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
        scored = comparison.score if self._shown else None
        if not comparison.measures and scored is None:
            return Page((Section(say("visits.title", n=len(comparison.visits)), (Paragraph(say("visits.no_rows")),)),))
        notes = [
            say("measures.relative") if self._result.model.uses_baseline else "",
            say("visits.note", setting=setting) if known else say("visits.no_index"),
            say("visits.chance", n=brief(comparison.expected_by_chance), of=known) if known else "",
            say("visits.stated", share=percent(comparison.prevalence)) if scored and comparison.prevalence else "",
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
        means = defined and say("about.defined", label=self._class(defined.label), cutoff=f"{defined.cutoff:g}", score=_cut(defined.score, _NAME))
        yield Paragraph(self._joined([say("about.text"), means or ""]))
        # What the model learned from has to be known before its answer.
        yield from (Paragraph(say("caution.maker", text=_cut(note, _STATEMENT))) for note in self._of_the_maker()[:1])

    def _answer(self) -> Iterable[Block]:
        say, result = self._say, self._result
        if result.status is Status.NOT_USABLE:
            yield Headline(self.status, (say("answer.not_usable"),))
            return
        if result.status is Status.INDETERMINATE:
            yield Headline(self.status, tuple(filter(None, (self._doubt(), self._how_often()))))
            return
        one = result.probability
        assert one is not None
        interval = percents(one.interval.low, one.interval.high, say)
        lines = (
            say(f"answer.{result.status}", label=self._label),
            say("answer.probability", label=self._label, value=percent(one.value), level=f"{100 * one.interval.level:g}", interval=interval),
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
        stated, sites = percent(prevalence), None if self._site.prevalence is None else percent(self._site.prevalence)
        yield say("answer.stated", share=stated, label=self._label)
        if sites not in {None, stated}:
            yield say("answer.site_differs", share=sites)

    def _doubt(self) -> str:
        say, members = self._say, self._result.prediction_set
        if not self._result.classes:
            return say("answer.indeterminate", label=self._label)
        if not members:
            return say("answer.indeterminate_none")
        return say("answer.indeterminate_of_several", labels=self._listed(map(self._class, members)))

    def _quality(self) -> Iterable[Block]:
        say, quality = self._say, self._result.quality
        faults = sorted((check for check in quality.checks if check.verdict != "pass"), key=lambda check: check.verdict != quality.verdict)
        advice = list(dict.fromkeys(filter(None, map(say.advice, faults))))
        found = say("full_stop", text=self._clauses(map(self._check, faults))) if faults else ""
        refused = quality.verdict == "fail"
        yield Paragraph(self._joined([say(f"quality.{quality.verdict}"), found, *([] if refused else advice)]))
        if refused:
            yield Notice("warn", say("quality.again"), (*advice, say("quality.general")))

    def _check(self, check: QualityCheck) -> str:
        """Return what a check found, in numbers where they say more than its name."""
        say, what = self._say, _cut(self._say.term("checks", check.name), _NAME)
        # What a good recording reaches, which is also what the advice asks for; the gate's own limit is lower.
        limit = check.fail_limit if check.warn_limit is None else check.warn_limit
        if check.value is None or limit is None or check.name == "complete" or check.topic == "noise_unknown":
            return what
        value, needed = (self._in_unit(number, check.unit) for number in (check.value, limit))
        if value == needed:
            return say("quality.close" if check.bound == "at_least" else "quality.over", what=what, limit=needed)
        return say("quality.check", what=what, value=value, limit=say(f"quality.{check.bound}", limit=needed))

    def _in_unit(self, value: float, unit: str) -> str:
        """Write a value of a check in the unit that is usual for it."""
        factor, shown = {"share": (100.0, "%"), "bit/s": (0.001, "kbit/s")}.get(unit, (1.0, unit))
        return with_unit(factor * value, shown, self._say)

    def _moved(self, explanation: Explanation) -> Section:
        say, driver, label = self._say, explanation.main_driver, self._class(explanation.target)
        first = (
            say("families.driver", label=_cut(say.label(driver), _NAME), share=percent(driver.rank_agreement))
            if driver
            else say("families.no_driver")
        )
        told = [(_cut(say.label(family), _NAME), _cut(_in(say, family.sentence), _SENTENCE)) for family in explanation.families[:_SENTENCES]]
        grouped = explanation.reference.subjects is not None
        ends = {"base": percent(explanation.base_probability), "value": percent(explanation.probability)}
        start = say("families.start" if grouped else "families.start_average", **ends)
        blocks: list[Block] = [
            figures.families(explanation, label, say),
            Paragraph(self._joined([first, self._learned(explanation)])),
            # A result has sentences in some languages only, and without a group they have nothing to say.
            *([Terms(tuple(told))] if grouped and all(sentence for _, sentence in told) else []),
            Paragraph(self._joined([start, say("families.no_cause")]), quiet=True),
        ]
        return Section(say("families.title", label=label), tuple(blocks))

    def _learned(self, explanation: Explanation) -> str:
        without = explanation.without_embedding
        if without is None:
            return ""
        say, status = self._say, self._say(f"status.{without.status}", label=self._class(without.label))
        if not Status(without.status).has_number or without.label != explanation.target:
            return say("families.learned", status=status)
        interval = percents(max(without.probability.low, 0.0), min(without.probability.high, 1.0), say)
        return say("families.learned_at", status=status, value=percent(without.probability.value), interval=interval)

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
        note = say("measures.note") if any(one.band for one in result.measures) else ""
        if relative or note:
            yield Paragraph(self._joined([relative, note]), quiet=True)
        yield Paragraph(self._joined([group, site_text]))

    def _group(self, reference: Reference) -> str:
        say = self._say
        who = say("reference.average")
        if reference.subjects is not None:
            people = say.several("reference.people", reference.subjects)
            who = say("colon", term=say("reference.title"), value=say("reference.group", who=self._who(reference), people=people))
        unmatched = [say.term("terms", what) for what in reference.unmatched]
        return self._joined([who, say("reference.unmatched", what=self._listed(unmatched)) if unmatched else "", say("reference.never")])

    def _who(self, reference: Reference) -> str:
        """Name a group by its parts, so that it can be said in any language; as the model named it where there are none."""
        say, label = self._say, (reference.people or "").replace(" ", "_")
        if not label:
            return _cut(reference.group, _LONG)
        known = {one.label for one in self._result.answers} | {one.label for one in self._result.classes} | set(self._result.prediction_set)
        people = say("reference.labelled", label=self._class(label)) if label in known else say("reference.all")
        sex = say.term("sex", reference.sex) if reference.sex else ""
        age = say("person.age", years=f"{reference.age_years[0]}–{reference.age_years[1] - 1}") if reference.age_years else ""
        return self._listed([_cut(part, _NAME) for part in (people, sex, age, reference.task, reference.device) if part])

    def _moments(self, timeline: Timeline | None) -> Section:
        say = self._say
        label = self._class(timeline.target) if timeline else self._label
        if timeline is None or not timeline.windows:
            blocks: tuple[Block, ...] = (Paragraph(say("moments.absent")),)
        else:
            blocks = (figures.moments(timeline, label, say), Paragraph(figures.outstanding(timeline, say)))
        return Section(say("moments.title", label=label), blocks)

    def _performance(self) -> Iterable[Block]:
        say, told = self._say, self._result.performance
        if not told:
            yield Paragraph(say("performance.without_embedding" if self._result.model.without_embedding else "performance.none"))
            return
        of_several = bool(self._result.classes)
        names = ["uar"] if of_several else ["sensitivity", "specificity", "auroc"]
        columns = [Column(say("performance.column"), wide=True), Column(say("performance.subjects"), "count")]
        columns += [Column(say(f"performance.{name}")) for name in names]
        rows = [[self._people(one), count(one.subjects), *self._figures(one, names)] for one in told]
        yield Table.of(say("performance.caption"), columns, rows)
        missing = self._untested()
        note = say("performance.note_of_several" if of_several else "performance.note") if any(one.figures for one in told) else ""
        yield Paragraph(self._joined([note, say("performance.not_in", what=self._listed(missing)) if missing else ""]), quiet=True)
        if self._result.answers:
            yield self._answered()

    def _answered(self) -> Table:
        """Say what people of each class were answered: an answer asks for more than the threshold does."""
        say, statuses = self._say, (Status.FLAGGED, Status.NOT_FLAGGED, Status.INDETERMINATE)
        columns = [Column(say("answers.column"), wide=True), *(Column(say(f"status.{status}")) for status in statuses)]
        *_, positive = self._result.answers
        rows = [
            [
                say("answers.labelled", label=self._class(one.label)) if one is positive else say("answers.others"),
                *(self._bracketed(share, as_share=True) for share in (one.flagged, one.not_flagged, one.indeterminate)),
            ]
            for one in reversed(self._result.answers)
        ]
        return Table.of(say("answers.title"), columns, rows)

    def _people(self, one: Performance) -> str:
        say = self._say
        if one.column is None:
            who = say("performance.everyone")
        else:
            words = {"sex": say.term("sex", one.value or ""), "age_band": say.term("age_bands", one.value or "").replace("-", "–")}
            who = say(f"groups.{one.column}", value=_cut(words.get(one.column, one.value or ""), _NAME))
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
        if result.quality.switched_off:
            yield say("caution.switched_off", what=say("caution.noise"))
        if result.missing:
            yield say.several("caution.missing", len(result.missing))
        if result.model.uses_baseline and result.context.baseline_recordings:
            yield say.several("caution.baseline", result.context.baseline_recordings)
        if self._shown and self._shown.without_embedding and self._shown.without_embedding.disagrees:
            yield say("caution.embedding_disagrees")
        if result.model.signature != "trusted":
            yield say("caution.untrusted")
        yield from (say("caution.maker", text=_cut(note, _LONG)) for note in self._of_the_maker()[1:_NOTES])

    def _of_the_maker(self) -> list[str]:
        """Return notices that no text of the language stands for."""
        point = self._result.operating_point
        notices = [*self._result.notices, *([point.note] if point and point.note else [])]
        known = (SIMULATED_STATEMENT, UNTRUSTED_NOTICE)
        return [left for notice in notices if not notice.startswith(NO_TIMELINE) and (left := _without(notice, known))]

    def _how_often(self) -> str:
        """Say how often the model cannot tell, of people of each class; empty where nobody counted."""
        if len(self._result.answers) != 2:
            return ""
        others, people = self._result.answers
        value, interval = self._rate(people)
        other, other_interval = self._rate(others)
        label = self._class(people.label)
        rates = {"value": value, "interval": interval, "other": other, "other_interval": other_interval}
        return self._say("answer.how_often", label=label, **rates) if value and other else ""

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
        software = (f"{name} {_cut(result.software[name], _NAME)}" for name in _SOFTWARE if name in result.software)
        # The end of a fingerprint is a digest of 64 digits, of which 12 tell two encoders apart.
        encoders = (f"{name} {fingerprint.rpartition('/')[2][:12]}" for name, fingerprint in model.encoders.items())
        rows = [
            (say("record.record"), found),
            (say("record.recording"), result.recording.sha256),
            (say("record.model"), say("record.model_is", name=name, version=version, signature=say(f"signature.{model.signature}"))),
            (say("record.digest"), plain(model.digest)),
            (say("record.software"), self._listed([*software, *encoders])),
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

    def _listed(self, words: Iterable[str]) -> str:
        return joined(words, "listed", self._say)

    def _clauses(self, clauses: Iterable[str]) -> str:
        return joined(clauses, "clauses", self._say)

    def _joined(self, sentences: Iterable[str]) -> str:
        return joined(sentences, "sentences", self._say)


def _in(locale: Locale, words: Words) -> str:
    """Return a sentence of the result in the language, or nothing."""
    return str(getattr(words, locale.code, ""))


def _cut(text: str, most: int) -> str:
    shown = plain(text)
    return shown if len(shown) <= most else f"{shown[: most - 1].rstrip()}…"


def _without(notice: str, known: Iterable[str]) -> str:
    for text in known:
        notice = notice.replace(text, "")
    return notice.strip()


def _two_places(value: float) -> str:
    return f"{value:.2f}"
