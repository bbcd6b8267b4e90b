"""Champion and challenger at every site's own holdout: each site fills in its own place, and the total holds what each of them found.

The one idea: of a gate the total over sites is not enough, since the worst site counts. So these figures are told apart on purpose, where a site
has written down that they may be; they are what `clinical_ser.control` publishes of a holdout, made by the node's own code, and no row is among them.
"""

import json
import zlib
from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from clinical_ser.control.site_figures import SiteFigures, site_figures
from clinical_ser.errors import FederationError, InvalidValueError
from clinical_ser.models.strict_json import canonical_json
from federated.at_site import Array
from federated.protocols.cohort import names_of
from federated.statistics import Arrays, Ask, SiteRows, Statistic, register

BYTES_A_WORD = 3
"""As many as a number of this statistic's range holds."""
MOST_WORDS = 1 << 15
"""Of one site's figures, compressed: 96 KiB."""
MOST_BYTES = 8 << 20
"""Of the same when they are unpacked."""


@register
class Comparison(Statistic):
    """Each site's figures of two models, side by side.

    Options: `model` and `challenger`, digests of bundles that the site has; `sites` (JSON, names of all sites in the plan's order).
    """

    name = "comparison"
    bound = float(1 << 8 * BYTES_A_WORD)
    counts = frozenset({"figures", "bytes"})

    def at_site(self, rows: SiteRows, ask: Ask) -> Arrays:
        """Return `figures` (sites, MOST_WORDS) and `bytes` (sites,), 0 in all places but this site's own."""
        sites = names_of(ask, "sites")
        champion, challenger = (rows.bundles.get(str(ask.options[name])) for name in ("model", "challenger"))
        if rows.table is None or rows.change_plan is None or champion is None or challenger is None or rows.site not in sites:
            raise InvalidValueError("comparison", "other models or sites", "two models that the site has, and sites with this one among them")
        found = site_figures(rows.change_plan, rows.site, champion, challenger, rows.table)
        # A group of a few people is not told of at all: that it is here, and what it is called, would be about them.
        told = found.model_copy(update={"groups": tuple(group for group in found.groups if group.subjects >= rows.least)})
        packed = pack(canonical_json(told.model_dump(mode="json")))
        figures, lengths = np.zeros((len(sites), MOST_WORDS)), np.zeros(len(sites))
        own = sites.index(rows.site)
        words, lengths[own] = packed
        figures[own, : len(words)] = words
        return {"figures": figures, "bytes": lengths}


def ask_about(champion: str, challenger: str, sites: Sequence[str]) -> Ask:
    """Return the question of a gate."""
    return Ask(Comparison.name, {}, {"model": champion, "challenger": challenger, "sites": json.dumps(list(sites))})


def pack(raw: bytes) -> tuple[Array, int]:
    """Return bytes, compressed, as whole numbers that a sum carries, and how many bytes they are; FederationError where they are too many."""
    packed = zlib.compress(raw, 9)
    if len(packed) > MOST_WORDS * BYTES_A_WORD:
        raise FederationError("A site's figures are too long to be told: ask for fewer groups.")
    padded = packed + bytes(-len(packed) % BYTES_A_WORD)
    words = np.frombuffer(padded, np.uint8).reshape(-1, BYTES_A_WORD).astype(np.float64) @ (256.0 ** np.arange(BYTES_A_WORD)[::-1])
    return np.asarray(words), len(packed)


def unpack(words: Array, length: int) -> bytes:
    """Inverse of `pack`; FederationError for anything that it does not make."""
    whole = np.rint(words)
    fits = 0 < length <= len(words) * BYTES_A_WORD and (np.abs(words - whole) < 0.1).all() and ((whole >= 0) & (whole < 1 << 8 * BYTES_A_WORD)).all()
    if not fits:
        raise FederationError("A site's figures are damaged.")
    raw = (whole.astype(np.int64)[:, None] >> (8 * np.arange(BYTES_A_WORD)[::-1]) & 0xFF).astype(np.uint8).tobytes()[:length]
    opened = zlib.decompressobj()
    try:
        found = opened.decompress(raw, MOST_BYTES)
    except zlib.error:
        raise FederationError("A site's figures are damaged.") from None
    if not opened.eof or opened.unused_data:
        raise FederationError("A site's figures are damaged, or longer than any are.")
    return found


def figures_from(totals: Arrays, sites: Sequence[str]) -> tuple[SiteFigures, ...]:
    """Return what each site found, in the plan's order; FederationError names a site whose figures are none, or are another's."""
    found = []
    for name, words, length in zip(sites, totals["figures"], totals["bytes"], strict=True):
        try:
            one = SiteFigures.model_validate_json(unpack(words, round(float(length))))
        except (FederationError, ValidationError):
            raise FederationError(f"What came from site {name!r} are no figures of this version; nothing is compared.") from None
        if one.site != name:
            raise FederationError(f"Site {name!r} sent the figures of another; nothing is compared.")
        found.append(one)
    return tuple(found)
