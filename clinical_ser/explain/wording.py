"""What stands out, in plain words: features against the reference group, in English and Chinese.

The one idea: a sentence says where a value stands among people, never why, and never more exactly than the kept quantiles allow.
"""

from collections.abc import Sequence

from clinical_ser.explain.explanation import FeatureContribution, Words
from clinical_ser.features import catalogue

TAIL_PERCENT = 10.0
USUAL = (25.0, 75.0)
"""Within the middle half of the group nothing is remarkable."""
_STEPS = (95, 90, 75)
_MOST_SAID = 2
_MOST_ADJECTIVES = 2
_LINKS = {"of", "in", "the", "to", "and", "or", "from"}
"""A phrase that holds one is more than adjectives and a noun."""
NO_GROUP = Words(en="No reference group to compare with.", zh="没有可比较的参考组。")
USUAL_WORDS = Words(en="As usual in the reference group.", zh="与参考组相当。")
PATTERN = Words(en="A learned pattern, which has no name.", zh="学习所得的模式，无法命名。")
OWN_BASELINE = Words(en="Compared with the person's own earlier recordings.", zh="与本人先前的录音相比。")


def feature_sentence(spec: catalogue.FeatureSpec, percentile: float | None, *, relative: bool = False) -> Words:
    """Return what one value is like in the group, such as "Longer pauses than in at least 90 % of the reference group".

    Parameters
    ----------
    spec, percentile
        The feature, and where the value stands; None without a group.
    relative
        The value is a difference from the person's own earlier recordings, and so is what it is compared with.
    """
    if percentile is None:
        return OWN_BASELINE if relative else NO_GROUP
    if USUAL[0] <= percentile <= USUAL[1]:
        return USUAL_WORDS
    return _compared([_direction(spec, percentile)], _reach(percentile), relative=relative)


def family_sentence(family: str, features: Sequence[FeatureContribution], *, raises: bool, relative: bool) -> Words:
    """Return what stands out in a family: at most two of its shown features beyond the middle half of the group.

    Those whose own effect is sure and goes the family's way come first, since a reader will take them for what the family's effect is made of.
    """
    if family == "embedding":
        return PATTERN
    known = [feature for feature in features if feature.percentile is not None]
    if not known:
        return OWN_BASELINE if relative else NO_GROUP
    unusual = [feature for feature in known if feature.percentile is not None and not USUAL[0] <= feature.percentile <= USUAL[1]]
    if not unusual:
        return USUAL_WORDS
    sure = [feature for feature in unusual if feature.stable and (feature.log_odds.value > 0) == raises]
    said = sorted(sure or unusual, key=lambda feature: not feature.stands_out)[:_MOST_SAID]
    directions, reach = _without_contradiction([(catalogue.get(feature.name), feature.percentile or 0.0) for feature in said])
    return _compared(directions, reach, relative=relative)


def _without_contradiction(said: Sequence[tuple[catalogue.FeatureSpec, float]]) -> tuple[list[tuple[str, str]], int]:
    """Return each direction once, and what all of them reach, without what says the opposite of one before it (two measures of pitch)."""
    directions: list[tuple[str, str]] = []
    opposites: set[str] = set()
    reach = _STEPS[0]
    for spec, percentile in said:
        direction = _direction(spec, percentile)
        if direction[0] in opposites or any(_content(direction[0]) == _content(other) for other, _ in directions):
            continue
        opposites |= {spec.higher_en, spec.lower_en} - {direction[0]}
        reach = min(reach, _reach(percentile))
        directions.append(direction)
    return directions, reach


def _content(phrase: str) -> set[str]:
    """Return the words that carry meaning: `narrower pitch range` says what `narrower range of pitch` says."""
    return set(phrase.split()) - _LINKS


def _direction(spec: catalogue.FeatureSpec, percentile: float) -> tuple[str, str]:
    return (spec.higher_en, spec.higher_zh) if percentile > 50 else (spec.lower_en, spec.lower_zh)


def _reach(percentile: float) -> int:
    """Return the share of the group that is surpassed, in round steps."""
    beyond = max(percentile, 100 - percentile)
    return next((step for step in _STEPS if beyond >= step - 1e-9), round(beyond))


def _compared(directions: Sequence[tuple[str, str]], percent: int, *, relative: bool) -> Words:
    english = _joined([en for en, _ in directions])
    chinese = "、".join(zh for _, zh in directions)
    if relative:
        return Words(
            en=f"Against the person's own earlier recordings: {english}, a larger change than in at least {percent} % of the reference group.",
            zh=f"与本人先前的录音相比：{chinese}；变化大于参考组中至少 {percent} % 的人。",
        )
    return Words(
        en=f"{english[:1].upper()}{english[1:]} than in at least {percent} % of the reference group.",
        zh=f"与参考组中至少 {percent} % 的人相比：{chinese}。",
    )


def _joined(phrases: Sequence[str]) -> str:
    """Join phrases, naming a noun that they share once: `longer pauses`, `more irregular pauses` to `longer and more irregular pauses`."""
    parts = [phrase.rpartition(" ") for phrase in phrases]
    short = all(before and len(before.split()) <= _MOST_ADJECTIVES and not _LINKS & set(before.split()) for before, _, _ in parts)
    if len(phrases) > 1 and short and len({noun for _, _, noun in parts}) == 1:
        return f"{_listed([before for before, _, _ in parts])} {parts[0][2]}"
    return _listed(phrases)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
