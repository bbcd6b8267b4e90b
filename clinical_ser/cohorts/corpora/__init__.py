"""Corpora by name: the built-in adapters, and those that installed packages offer under the entry point `clinical_ser.corpora`."""

from importlib.metadata import EntryPoint, entry_points

from clinical_ser.cohorts.corpora.androids import Androids
from clinical_ser.cohorts.corpora.base import Clip, Corpus
from clinical_ser.cohorts.corpora.casia import Casia
from clinical_ser.cohorts.corpora.ch_sims import ChSims
from clinical_ser.cohorts.corpora.crema_d import CremaD
from clinical_ser.cohorts.corpora.daic_woz import DaicWoz
from clinical_ser.cohorts.corpora.e_daic import EDaic
from clinical_ser.cohorts.corpora.eatd import Eatd
from clinical_ser.cohorts.corpora.emodb import EmoDB
from clinical_ser.cohorts.corpora.iemocap import Iemocap
from clinical_ser.cohorts.corpora.meld import Meld
from clinical_ser.cohorts.corpora.modma import Modma
from clinical_ser.cohorts.corpora.ravdess import Ravdess
from clinical_ser.cohorts.corpora.tess import Tess
from clinical_ser.errors import InvalidValueError

__all__ = ["BUILT_IN", "Clip", "Corpus", "get_corpus", "list_corpora"]

BUILT_IN: dict[str, type[Corpus]] = {
    corpus.name: corpus for corpus in (Ravdess, EmoDB, CremaD, Tess, Iemocap, Meld, Casia, ChSims, DaicWoz, EDaic, Androids, Modma, Eatd)
}
ENTRY_POINT_GROUP = "clinical_ser.corpora"


def list_corpora() -> tuple[str, ...]:
    """Return the names of all adapters, sorted; none is loaded for it."""
    return tuple(sorted({*BUILT_IN, *_offered()}))


def get_corpus(name: str) -> Corpus:
    """Return the adapter of that name; a built-in one goes before an installed one.

    Raises
    ------
    InvalidValueError
        No adapter has the name, or the installed one is no `Corpus`.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    offered = _offered()
    if name not in offered:
        raise InvalidValueError("corpus", name, list_corpora())
    loaded = offered[name].load()
    corpus = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(corpus, Corpus):
        raise InvalidValueError(f"the installed corpus {name!r}", type(corpus).__name__, "a subclass of clinical_ser.cohorts.corpora.Corpus")
    return corpus


def _offered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
