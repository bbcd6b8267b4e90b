"""What a client would rather have: Accept and Accept-Language (RFC 9110, 12.5).

The one idea: a header that cannot be read asks for nothing in particular.
"""

from collections.abc import Iterator, Sequence

_MOST = 50
"""Alternatives that are looked at."""


def best_media(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return which of the offered media types a client would rather have; None where it takes none of them.

    Examples
    --------
    >>> best_media("text/*;q=0.5, application/pdf", ("text/html", "application/pdf"))
    'application/pdf'
    """
    if not accept or not accept.strip():
        return offered[0]
    ranges = dict(_weighted(accept))
    if not ranges:
        return offered[0]

    def weight(media: str) -> float:
        general = f"{media.partition('/')[0]}/*"
        return next((ranges[each] for each in (media, general, "*/*") if each in ranges), 0.0)

    best = max(offered, key=weight)
    return best if weight(best) > 0 else None


def best_language(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return which of the offered languages a client would rather have; None leaves it to the site.

    Examples
    --------
    >>> best_language("zh-CN, en;q=0.5", ("en", "zh"))
    'zh'
    """
    wanted = sorted(_weighted(accept or ""), key=lambda each: -each[1])
    for tag, weight in wanted:
        for language in offered:
            # RFC 4647's lookup: a range that is longer than what there is finds its beginning.
            if weight > 0 and (tag == language.lower() or tag.startswith(f"{language.lower()}-")):
                return language
    return None


def _weighted(header: str) -> Iterator[tuple[str, float]]:
    for part in header.split(",")[:_MOST]:
        value, *parameters = (each.strip() for each in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, told = parameter.partition("=")
            if name.strip().lower() == "q":
                try:
                    weight = float(told)
                except ValueError:
                    weight = 0.0
        if value and 0 <= weight <= 1:
            yield value.lower(), weight
