"""Masks cancel in the sum over all sites and in no other; one alone is noise."""

import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy.stats import chisquare

from clinical_ser.errors import FederationError
from federated.masking import context_of, mask

NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def keys():
    return {name: X25519PrivateKey.from_private_bytes(bytes([number + 1]) * 32) for number, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def public(keys):
    return {name: key.public_key().public_bytes_raw() for name, key in keys.items()}


def masks(keys, public, context=b"c" * 32, words=500):
    return {name: mask(name, keys[name], public, context, words) for name in public}


def test_the_masks_of_all_sites_add_up_to_zero(keys, public):
    for number in (2, 3, 4):
        some = {name: public[name] for name in NAMES[:number]}
        assert not np.sum(list(masks(keys, some).values()), axis=0, dtype=np.uint64).any()


def test_no_smaller_set_of_answers_adds_up_to_anything(keys, public):
    found = masks(keys, public, words=4096)
    for number in (1, 2, 3):
        for some in itertools.combinations(NAMES, number):
            rest = np.sum([found[name] for name in some], axis=0, dtype=np.uint64)
            assert chisquare(np.bincount(rest.view(np.uint8), minlength=256)).pvalue > 1e-6
            assert np.unique(rest).size == rest.size


def test_an_answer_of_zeros_and_one_of_numbers_look_alike(keys, public):
    noise = mask("alpha", keys["alpha"], public, b"c" * 32, 20_000)
    for values in (np.zeros(20_000, np.uint64), np.full(20_000, 123_456_789, np.uint64), np.arange(20_000, dtype=np.uint64)):
        assert chisquare(np.bincount((values + noise).view(np.uint8), minlength=256)).pvalue > 1e-6


def test_masks_of_two_contexts_have_nothing_in_common(keys, public):
    request, layout = b"r" * 32, b"[]"
    changed = [
        context_of(b"run", 1, request, layout, public),
        context_of(b"nur", 1, request, layout, public),
        context_of(b"run", 2, request, layout, public),
        context_of(b"run", 1, b"s" * 32, layout, public),
        context_of(b"run", 1, request, b"[[]]", public),
        context_of(b"run", 1, request, layout, {name: public[name] for name in NAMES[:3]}),
        context_of(b"run", 1, request, layout, public | {"delta": bytes(31) + b"\x09"}),
    ]
    assert len(set(changed)) == len(changed)
    found = [mask("alpha", keys["alpha"], public, context, 200) for context in changed]
    for one, other in itertools.combinations(found, 2):
        assert not np.intersect1d(one, other).size


def test_parts_of_a_context_cannot_be_pushed_into_each_other():
    assert context_of(b"ab", 1, b"c", b"", {}) != context_of(b"a", 1, b"bc", b"", {})
    assert context_of(b"a", 1, b"b", b"c", {}) != context_of(b"a", 1, b"bc", b"", {})


def test_a_longer_answer_starts_with_the_same_stream_only_in_the_same_context(keys, public):
    short, long = (mask("alpha", keys["alpha"], public, b"c" * 32, words) for words in (10, 3_000_000))
    assert (long[:10] == short).all()
    assert np.unique(long[-1000:]).size == 1000


def test_the_order_in_which_sites_are_named_does_not_matter(keys, public):
    turned = dict(reversed(public.items()))
    assert (mask("beta", keys["beta"], turned, b"c" * 32, 50) == mask("beta", keys["beta"], public, b"c" * 32, 50)).all()


def test_a_site_alone_gets_no_mask_and_so_gives_no_answer(keys, public):
    with pytest.raises(FederationError):
        mask("alpha", keys["alpha"], {"alpha": public["alpha"]}, b"c" * 32, 5)
    with pytest.raises(FederationError):
        mask("alpha", keys["alpha"], {name: public[name] for name in NAMES[1:]}, b"c" * 32, 5)


def test_a_public_key_that_gives_a_known_secret_is_refused(keys, public):
    for weak in (bytes(32), b"\x01" + bytes(31), bytes(31), b""):
        with pytest.raises(FederationError):
            mask("alpha", keys["alpha"], public | {"beta": weak}, b"c" * 32, 5)


def test_another_site_without_a_pair_s_secret_cannot_make_its_stream(keys, public):
    ours = mask("alpha", keys["alpha"], {name: public[name] for name in ("alpha", "beta")}, b"c" * 32, 50)
    theirs = mask("beta", keys["gamma"], {name: public[name] for name in ("alpha", "beta")}, b"c" * 32, 50)
    assert (ours + theirs).any()
