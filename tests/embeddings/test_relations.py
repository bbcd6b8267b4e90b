"""Neighbours, clusters and projections of made clouds, whose answer is known."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clinical_ser.embeddings import relations
from clinical_ser.embeddings.relations import Method, agreement, cluster, directions, follows_speakers, neighbours, project
from clinical_ser.errors import InvalidValueError


def cloud(groups=3, each=20, dim=8, apart=10.0, seed=0):
    """Groups of points, and the group of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, dim)) * apart
    of = np.repeat(np.arange(groups), each)
    return centres[of] + rng.normal(size=(len(of), dim)), of


# --- The common space ---------------------------------------------------------------------------------------------------------------------


def test_directions_have_length_one_and_do_not_know_what_all_vectors_share():
    vectors, _ = cloud()
    found = directions(vectors)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_allclose(directions(vectors + 1000.0), found, atol=1e-9)
    np.testing.assert_allclose(directions(vectors * 7.0), found, atol=1e-12)


def test_the_mean_itself_and_vectors_that_are_all_the_same_have_no_direction():
    assert directions(np.array([[0.0, 0], [2, 2], [1, 1]]))[2].tolist() == [0, 0]
    assert not directions(np.full((5, 3), 0.1)).any()
    assert not directions(np.zeros((2, 3))).any()


def test_two_vectors_are_not_centred_because_they_would_be_opposite():
    assert directions(np.array([[3.0, 4.0], [6.0, 8.0]])).tolist() == [[0.6, 0.8], [0.6, 0.8]]


# --- Neighbours ---------------------------------------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_all_cosines_nearest_first_and_never_the_row_itself():
    vectors = np.random.default_rng(1).normal(size=(1100, 5))  # more than two blocks
    space = directions(vectors)
    cosines = space @ space.T
    np.fill_diagonal(cosines, -np.inf)
    for place, found in enumerate(neighbours(vectors, 4)):
        assert [one.place for one in found] == np.argsort(-cosines[place])[:4].tolist()
        assert [one.cosine for one in found] == pytest.approx(np.sort(cosines[place])[::-1][:4].tolist())
    raw = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    (found,) = neighbours(vectors, 1, of=[7])
    assert found[0].uncentred == pytest.approx(float(raw[7] @ raw[found[0].place]))


def test_neighbours_of_a_group_are_of_the_group():
    vectors, of = cloud()
    assert all(of[one.place] == of[place] for place, found in enumerate(neighbours(vectors, 5)) for one in found)


def test_repeated_vectors_are_each_others_nearest_with_a_cosine_of_one_and_the_first_wins():
    vectors = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [-3, 2]])
    found = neighbours(vectors, 2)
    assert [one.place for one in found[0]] == [2, 3]
    assert [one.place for one in found[2]] == [0, 3]
    assert max(one.cosine for one in found[0]) <= 1.0
    assert found[0][0].cosine == pytest.approx(1)


def test_fewer_neighbours_are_given_where_there_are_fewer_and_none_of_one_row():
    assert [len(found) for found in neighbours(np.eye(3), 10)] == [2, 2, 2]
    assert neighbours(np.array([[3.0, 4.0], [6.0, 8.0]]), 1)[0][0].cosine == pytest.approx(1)
    for vectors, top in ((np.zeros((0, 3)), 1), (np.ones((1, 3)), 1), (np.eye(3), 0), (np.eye(3), -1), (np.ones(3), 1)):
        with pytest.raises(InvalidValueError):
            neighbours(vectors, top)


# --- Clusters -----------------------------------------------------------------------------------------------------------------------------


def test_clusters_that_are_there_are_found_with_their_number():
    vectors, of = cloud(groups=4)
    found = cluster(vectors)
    assert found.k == 4
    assert agreement(found.clusters, "made", of.tolist()).ari == pytest.approx(1)
    assert max(found.tried, key=found.tried.get) == 4
    assert sorted(found.tried) == list(range(2, 11))
    assert found.silhouette > 0.7
    space = directions(vectors)
    inertia = sum(((space[found.clusters == i] - space[found.clusters == i].mean(axis=0)) ** 2).sum() for i in range(4))
    assert found.inertia == pytest.approx(inertia)


def test_a_cloud_without_clusters_has_a_low_silhouette():
    assert cluster(np.random.default_rng(0).normal(size=(200, 30))).silhouette < 0.1


def test_the_seed_decides_and_clusters_are_numbered_by_size():
    vectors = np.concatenate([cloud(groups=2, each=30)[0], cloud(groups=1, each=5, seed=9)[0]])
    first, again = (cluster(vectors, 3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.clusters, again.clusters)
    assert (first.inertia, first.silhouette) == (again.inertia, again.silhouette)
    sizes = np.bincount(first.clusters)
    assert sizes.tolist() == sorted(sizes, reverse=True)


def test_many_rows_are_judged_by_a_sample(monkeypatch):
    vectors, _ = cloud(each=200)
    whole = cluster(vectors, 3).silhouette
    monkeypatch.setattr(relations, "SILHOUETTE_ROWS", 100)
    assert cluster(vectors, 3).silhouette == pytest.approx(whole, abs=0.1)


def test_more_clusters_than_different_vectors_and_too_few_vectors_are_refused():
    repeated = np.array([[1.0, 0], [0, 1], [-1, 0]] * 4)
    assert sorted(cluster(repeated).tried) == [2, 3]
    for vectors, k in (
        (repeated, 4),
        (repeated, 1),
        (repeated, 0),
        (repeated, 10**9),
        (np.eye(3), 3),
        (np.ones((9, 2)), None),
        (np.eye(2), None),
        (np.zeros((0, 2)), None),
    ):
        with pytest.raises(InvalidValueError, match="expected"):
            cluster(vectors, k)


# --- What clusters follow -----------------------------------------------------------------------------------------------------------------

few = st.lists(st.tuples(*(st.integers(0, 3),) * 3), min_size=2, max_size=25)


@given(few)
def test_pairs_are_those_that_counting_them_one_by_one_gives(rows):
    clusters, label, speaker = (np.array(column) for column in zip(*rows, strict=True))
    found = agreement(clusters, "label", label.tolist(), apart_from=speaker.tolist())
    pairs = [(i, j) for i, j in combinations(range(len(rows)), 2) if label[i] == label[j] and speaker[i] != speaker[j]]
    expected = np.mean([clusters[i] == clusters[j] for i, j in pairs]) if pairs else None
    assert found.together == (None if expected is None else pytest.approx(expected))
    everyone = list(combinations(range(len(rows)), 2))
    assert found.chance == pytest.approx(np.mean([clusters[i] == clusters[j] for i, j in everyone]))
    assert found.groups == len(set(label.tolist()))


def test_rows_without_a_value_are_left_out_and_two_are_needed():
    found = agreement(np.array([0, 0, 1, 1]), "label", ["a", None, "b", "b"])
    assert (found.rows, found.groups, found.ari) == (3, 2, 1.0)
    for values in ([None] * 4, ["a", None, None, None]):
        with pytest.raises(InvalidValueError, match="rows with a value"):
            agreement(np.array([0, 0, 1, 1]), "label", values)


def told(clusters, label, speaker):
    clusters = np.asarray(clusters)
    by_label = agreement(clusters, "label", list(label), apart_from=list(speaker))
    return follows_speakers(agreement(clusters, "subject", list(speaker)), by_label)


def test_clusters_of_speakers_are_told_from_clusters_of_the_label():
    speaker, label = np.repeat(np.arange(12), 8), np.tile(np.repeat([0, 1], 4), 12)
    assert told(speaker, label, speaker)
    assert not told(label, label, speaker)
    assert not told(np.random.default_rng(0).integers(0, 2, 96), label, speaker), "chance follows nothing"


def test_two_clusters_of_very_many_whole_speakers_are_told_although_their_rand_index_is_near_zero():
    speaker, label = np.repeat(np.arange(60), 4), np.tile([0, 0, 1, 1], 60)
    assert agreement(speaker % 2, "subject", speaker.tolist()).ari < 0.04
    assert told(speaker % 2, label, speaker)


def test_a_label_that_clings_to_its_speakers_gains_nothing_by_it():
    speaker = np.repeat(np.arange(12), 8)
    label = speaker % 2
    assert not told(label, label, speaker)
    assert told(speaker // 3, label, speaker)
    alone = agreement(speaker // 3, "subject", speaker.tolist())
    assert follows_speakers(alone, None)
    assert agreement(np.arange(3), "label", ["a", "b", "c"]).together is None


# --- Two dimensions -----------------------------------------------------------------------------------------------------------------------


def test_pca_places_points_as_their_two_largest_axes_and_says_what_they_hold():
    vectors, _ = cloud()
    found = project(vectors, Method.PCA)
    space = directions(vectors)
    values = np.linalg.svd(space - space.mean(axis=0))[1] ** 2
    assert found.explained == pytest.approx((values[:2] / values.sum()).tolist())
    assert found.perplexity is None
    np.testing.assert_allclose(found.points.var(axis=0), values[:2] / len(space))


def test_tsne_keeps_groups_together_and_the_seed_decides():
    vectors, of = cloud(each=15)
    found, again = (project(vectors, Method.TSNE, seed=3) for _ in range(2))
    np.testing.assert_array_equal(found.points, again.points)
    assert (found.seed, found.perplexity) == (3, pytest.approx(44 / 3))
    apart = np.linalg.norm(found.points[:, None] - found.points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (of[apart.argmin(axis=1)] == of).all()
    assert project(vectors, Method.TSNE, perplexity=5.0).perplexity == 5.0


def test_a_picture_takes_a_sample_of_very_many(monkeypatch):
    monkeypatch.setattr(relations, "MOST_PLACED", 20)
    found = project(cloud()[0], Method.PCA, seed=1)
    assert len(found.points) == len(found.places) == 20
    assert (np.diff(found.places) > 0).all()
    assert found.places.tolist() != project(cloud()[0], Method.PCA, seed=2).places.tolist()


@pytest.mark.parametrize("method", list(Method))
def test_too_few_points_and_points_that_are_all_the_same_are_refused(method):
    for vectors in (np.zeros((0, 2)), np.eye(2), np.ones((9, 3))):
        with pytest.raises(InvalidValueError):
            project(vectors, method)


@pytest.mark.parametrize("perplexity", [0.0, 0.5, 60.0, 1e12, float("nan"), -1.0])
def test_a_perplexity_that_cannot_be_is_refused(perplexity):
    with pytest.raises(InvalidValueError, match="perplexity"):
        project(cloud()[0], Method.TSNE, perplexity=perplexity)
    with pytest.raises(InvalidValueError, match="PCA has none"):
        project(cloud()[0], Method.PCA, perplexity=perplexity)


def test_repeated_points_are_no_trouble():
    vectors = np.repeat(np.eye(3), 4, axis=0)
    assert np.isfinite(project(vectors, Method.TSNE).points).all()
    assert np.isfinite(project(vectors, Method.PCA).points).all()
