"""Scores against formulas of a few lines and scikit-learn, settings chosen blind to signal, what bad jets are told."""

import dataclasses
import inspect
import math

import numpy as np
import pytest
from helpers import make_jets
from scipy.spatial.distance import cdist, mahalanobis
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.neural_network import MLPRegressor

from jbot.evaluation.anomaly.autoencoder import BATCH, HIDDEN, LEARNING_RATE
from jbot.evaluation.anomaly.detect import detect
from jbot.evaluation.anomaly.scores import MIN_BANK, SCORES, STANDARD, AnomalyError, Bank, Embedded, draw_bank
from jbot.evaluation.anomaly.synthetic_signal import (
    RADIUS,
    SelectionSignal,
    choose,
    choose_all,
    overlay,
    overlay_signal,
)
from jbot.evaluation.metrics import auc_difference, share_below
from jbot.evaluation.metrics_registry import ANOMALY_SCORES, SIGNALS, anomaly_names

DIM = 6
QUICK = ("knn", "mahalanobis_labels", "gmm")
"""Scores whose whole grid takes no time."""
Q, G, W, Z, T = range(5)
DRAWN = ("gmm", "isolation_forest", "autoencoder")
"""Scores whose start is drawn for the rows of the bank, so that their order matters."""


def unit(points):
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def make_embedded(counts, seed=0):
    """Jets of classes q, g, w, z, t: Gaussian clouds around a mean of each class; and particles, wider by class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), counts)
    means = 2.5 + np.array([[0, 0, 0], [0.5, 0, 0], [0, 2, 0], [0, 1.5, 1], [0, 0, 2.5]])
    embedding = rng.normal(size=(len(labels), DIM))
    embedding[:, :3] += means[labels]
    particles = make_jets(len(labels), seed)
    particles[..., :2] *= (1 + labels // 2)[:, None, None]
    order = rng.permutation(len(labels))
    return Embedded(embedding=embedding[order].astype(np.float32), labels=labels[order], particles=particles[order])


TRAIN = make_embedded([100, 80, 0, 0, 0], seed=1)
VAL = make_embedded([60, 60, 0, 0, 0], seed=2)
TEST = make_embedded([50, 40, 30, 25, 35], seed=3)


def encoder(particles):
    """Some function of the particles, to stand where the encoder does."""
    pt = particles[..., 2]
    moments = [(pt * np.abs(particles[..., i]) ** n).sum(1) for i in (0, 1) for n in (1, 2)]
    return np.stack([*moments, pt.max(1), (pt > 0).mean(1)], axis=1) * 5 + 2


SELECTION = overlay_signal(VAL, encoder, seed=0)


@pytest.fixture(scope="module")
def bank():
    return Bank(TRAIN.embedding, TRAIN.labels, TRAIN.particles, seed=7)


@pytest.fixture(scope="module")
def jets(bank):
    return bank.jets(TEST.embedding, TEST.particles)


@pytest.fixture(scope="module")
def scanned():
    return detect(TRAIN, TEST, seed=0, selection=SELECTION)


# Scores, by hand and against formulas of few lines


def test_knn_by_hand_with_ties():
    line = Bank(np.array([[0.0], [1.0], [1.0], [3.0], [-5.0]]), normalise=False)
    ask = line.jets(np.array([[0.0], [1.0], [10.0]]))
    nearest3 = [[0, 1, 1], [0, 0, 1], [7, 9, 9]]
    for aggregate, function in {"mean": np.mean, "median": np.median, "kth": np.max, "max": np.max}.items():
        expected = [function(row) for row in nearest3]
        assert line.fit("knn", k=3, aggregate=aggregate)(ask) == pytest.approx(expected)


def test_cosine_by_hand():
    axes = Bank(np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [-1.0, 0.0]]))
    ask = axes.jets(np.array([[5.0, 0.0], [0.0, -1.0]]))
    similar = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the three most
    t = 0.5
    weight = np.exp(similar / t)
    lse = -t * np.log(weight.mean(1) + 1e-12)
    softmax_mean = 1 - (weight * similar).sum(1) / weight.sum(1)
    for aggregate, expected in {"logsumexp": lse, "softmax_mean": softmax_mean, "max": [0.0, 1.0]}.items():
        found = axes.fit("cosine", k=3, aggregate=aggregate, temperature=t)(ask)
        assert found == pytest.approx(expected, abs=1e-12)


def test_cosine_survives_temperatures_whose_exponential_overflows(bank, jets):
    found = bank.fit("cosine", temperature=1e-4)(jets)
    closest = (unit(TEST.embedding.astype(float)) @ unit(TRAIN.embedding.astype(float)).T).max(1)
    assert found == pytest.approx(-closest, abs=1e-4 * math.log(100) + 1e-9)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("k", [1, 15, 100])
def test_neighbours_against_all_distances(normalise, k):
    bank = Bank(TRAIN.embedding, normalise=normalise)
    jets = bank.jets(TEST.embedding)
    a, b = TEST.embedding.astype(float), TRAIN.embedding.astype(float)
    distance = cdist(unit(a), unit(b)) if normalise else cdist(a, b)
    assert bank.fit("knn", k=k)(jets) == pytest.approx(np.sort(distance, axis=1)[:, :k].mean(1), rel=1e-12)
    similar = -np.sort(-unit(a) @ unit(b).T, axis=1)[:, :k]  # also of embeddings that are not normalised
    assert jets.similarities(k) == pytest.approx(similar, abs=1e-12)


def test_distances_of_close_jets_keep_their_digits():
    points = np.ones((120, 8)) + 1e-9 * np.random.default_rng(0).normal(size=(120, 8))
    points[60:] += np.eye(8)[0]
    found = Bank(points, normalise=False).jets(points[:5] + 1e-9).distances(1)
    assert found == pytest.approx(cdist(points[:5] + 1e-9, points).min(1)[:, None], rel=1e-6)
    assert (found < 1e-8).all()


def test_more_neighbours_than_at_first_searched_for(bank):
    jets = bank.jets(TEST.embedding)
    few = jets.distances(5)
    assert jets.distances(150).shape == (len(TEST.labels), 150)
    assert np.array_equal(jets.distances(5), few)


@pytest.mark.parametrize("reg", [1e-8, 1e-2])
def test_mahalanobis_against_scipy(bank, jets, reg):
    b, a = unit(TRAIN.embedding.astype(float)), unit(TEST.embedding.astype(float))
    inverse = np.linalg.inv(np.cov(b.T) + reg * np.eye(DIM))

    def distances(mean):
        return np.array([mahalanobis(x, mean, inverse) ** 2 for x in a])

    whole = distances(b.mean(0))
    nearer = np.minimum(*(distances(b[TRAIN.labels == c].mean(0)) for c in (Q, G)))
    assert bank.fit("mahalanobis", reg=reg)(jets) == pytest.approx(whole, rel=1e-9)
    assert bank.fit("mahalanobis_labels", reg=reg)(jets) == pytest.approx(nearer, rel=1e-9)
    relative = {"sub": nearer - whole, "ratio": nearer / whole, "logratio": np.log(nearer) - np.log(whole)}
    for variant, expected in relative.items():
        found = bank.fit("relative_mahalanobis_labels", reg=reg, variant=variant)(jets)
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_mahalanobis_by_hand():
    bank = Bank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]]), normalise=False)  # variances 2/3, 8/3
    assert bank.fit("mahalanobis", reg=0.0)(bank.jets(np.array([[1.0, 0.0], [2.0, 4.0]]))) == pytest.approx([1.5, 12.0])


@pytest.mark.parametrize("settings", SCORES["gmm"].grid, ids=str)
def test_mixture_is_that_of_scikit_learn(bank, jets, settings):
    theirs = GaussianMixture(
        settings["components"],
        covariance_type=settings["covariance"],
        reg_covar=settings["reg"],
        max_iter=300,
        random_state=7,
    ).fit(unit(TRAIN.embedding.astype(float)))
    expected = -theirs.score_samples(unit(TEST.embedding.astype(float)))
    assert bank.fit("gmm", **settings)(jets) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_one_gaussian_orders_as_mahalanobis_does(bank, jets):
    one = bank.fit("gmm", components=1, covariance="full", reg=1e-8)(jets)
    assert np.array_equal(np.argsort(one), np.argsort(bank.fit("mahalanobis")(jets)))


def test_references_are_those_of_scikit_learn(bank, jets):
    b, a = unit(TRAIN.embedding.astype(float)), unit(TEST.embedding.astype(float))
    lof = LocalOutlierFactor(20, novelty=True).fit(b)
    assert bank.fit("lof")(jets) == pytest.approx(-lof.score_samples(a), rel=1e-9)
    forest = IsolationForest(n_estimators=100, max_samples=len(b), random_state=7).fit(b)
    assert np.array_equal(bank.fit("isolation_forest", samples=1024)(jets), -forest.score_samples(a))


def test_autoencoder_by_its_parts(bank, jets):
    rows, asked = (s.particles[..., :3].reshape(len(s.labels), -1) for s in (TRAIN, TEST))
    mean, sd = rows.mean(0, dtype=float), rows.std(0, dtype=float)
    rows, asked = (((x - mean) / sd).astype(np.float32) for x in (rows, asked))
    network = MLPRegressor(
        hidden_layer_sizes=(HIDDEN, 8, HIDDEN),
        batch_size=min(BATCH, len(rows)),
        learning_rate_init=LEARNING_RATE,
        max_iter=2,
        random_state=7,
    )
    with pytest.warns(match="Maximum iterations"):
        network.fit(rows, rows)
    expected = ((network.predict(asked) - asked) ** 2).mean(1)
    assert bank.fit("autoencoder", bottleneck=8, epochs=2)(jets) == pytest.approx(expected, rel=1e-3)


def test_whitened_distances_do_not_feel_a_linear_map(bank, jets):
    """So no direction of the embedding can swallow the distance, as it can the plain one."""
    turned = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0] * np.geomspace(1e-2, 1e2, DIM)

    def score(name, by=None):
        points = [x.embedding.astype(float) if by is None else x.embedding @ by for x in (TRAIN, TEST)]
        plain = Bank(points[0], normalise=False)
        settings = {"reg": 1e-12} if name == "knn_whitened" else {}
        return plain.fit(name, **settings)(plain.jets(points[1]))

    assert score("knn_whitened", turned) == pytest.approx(score("knn_whitened"), rel=1e-4)
    assert np.corrcoef(score("knn", turned), score("knn"))[0, 1] < 0.99


# Contracts of every score


@pytest.mark.parametrize("name", SCORES)
def test_an_obvious_outlier_comes_first(name):
    rng = np.random.default_rng(5)
    cloud = np.concatenate((np.full((201, 1), 5.0), rng.normal(0, 0.2, (201, DIM - 1))), axis=1)
    cloud[200] = -cloud[200]
    # The class means of both halves are the same but for chance: what is relative to them needs a wider gap.
    cloud[:100, 1] += 1.0
    particles = make_jets(201, 5)
    particles[200, :, :2] *= 30
    bank = Bank(cloud[:150], np.repeat([Q, G], [100, 50]), particles[:150])
    found = bank.fit(name)(bank.jets(cloud[150:], particles[150:]))
    assert found.shape == (51,)
    if name == "relative_mahalanobis_labels":
        # With a shared covariance it is linear in the embedding, and says nothing of jets far from both classes alike.
        found = found * np.sign(found[-1])
    assert np.argmax(found) == 50


@pytest.mark.parametrize("name", [name for name in SCORES if name not in DRAWN])
def test_the_order_of_the_bank_does_not_matter(name, bank, jets):
    order = np.random.default_rng(0).permutation(len(TRAIN.labels))
    other = Bank(TRAIN.embedding[order], TRAIN.labels[order])
    found = other.fit(name)(other.jets(TEST.embedding))
    assert found == pytest.approx(bank.fit(name)(jets), rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("name", SCORES)
def test_the_grid_is_valid_and_begins_with_the_defaults(name, bank, jets):
    score = SCORES[name]
    assert score.grid[0] == score.defaults
    assert all(settings.keys() == score.defaults.keys() for settings in score.grid)
    assert len({tuple(settings.items()) for settings in score.grid}) == len(score.grid) > 1
    for settings in score.grid:
        assert np.isfinite(bank.fit(name, **settings)(jets)).all()


@pytest.mark.parametrize("name", SCORES)
def test_every_setting_matters(name, bank, jets):
    other = {"k": 3, "aggregate": "max", "temperature": 0.3, "reg": 1e-2, "variant": "ratio", "components": 2}
    other |= {"covariance": "diag", "trees": 3, "samples": 8, "bottleneck": 2, "epochs": 1}
    base = bank.fit(name)(jets)
    for setting in SCORES[name].defaults:
        assert not np.array_equal(bank.fit(name, **{setting: other[setting]})(jets), base), setting


def test_scores_name_what_they_look_at(jets):
    assert [name for name in SCORES if SCORES[name].uses_particles] == ["autoencoder"]
    assert tuple(ANOMALY_SCORES) == tuple(SCORES)
    bare = Bank(TRAIN.embedding, seed=7)
    asked = bare.jets(TEST.embedding)
    for name, score in SCORES.items():
        if "labels" in name or score.uses_particles:
            with pytest.raises(AnomalyError, match=r"needs? (the labels|particles)"):
                bare.fit(name)(asked)
        else:
            bare.fit(name)(asked)


def test_published_settings():
    assert SCORES["knn"].defaults == {"k": 30, "aggregate": "mean"}
    assert SCORES["cosine"].defaults == {"k": 100, "aggregate": "logsumexp", "temperature": 0.02}
    assert SCORES["mahalanobis_labels"].defaults == {"reg": 1e-8}
    assert SCORES["gmm"].defaults == {"components": 4, "covariance": "full", "reg": 1e-5}
    assert inspect.signature(detect).parameters["bank_jets"].default == 20_000


def test_inputs_are_left_alone():
    kept = TRAIN.embedding.copy(), TRAIN.particles.copy(), TEST.embedding.copy()
    bank = Bank(TRAIN.embedding, TRAIN.labels, TRAIN.particles)
    for name in SCORES:
        bank.fit(name)(bank.jets(TEST.embedding, TEST.particles))
    overlay(TRAIN.particles, np.random.default_rng(0))
    for before, after in zip(kept, (TRAIN.embedding, TRAIN.particles, TEST.embedding), strict=True):
        assert np.array_equal(before, after)


# The synthetic signal


def test_overlay_by_hand():
    jets = np.zeros((2, 3, 4), np.float32)
    jets[:, 0] = [0.0, 0.0, 0.75, 1]
    jets[:, 1] = [0.05, 0.0, 0.25, 1]
    found = overlay(jets, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    rng.permutation(2)
    z, apart, angle = rng.uniform(0.1, 0.5, 2), rng.uniform(0.1, 0.4, 2), rng.uniform(-math.pi, math.pi, 2)
    # Both jets are alike, so their order does not matter. Momenta: 3/4 and 1/4 of each share; the three hardest stay.
    assert found.shape == (2, 3, 4)
    for jet, share in zip(found, z, strict=True):
        pt = np.sort([0.75 * share, 0.25 * share, 0.75 * (1 - share), 0.25 * (1 - share)])[::-1]
        assert jet[:, 2] == pytest.approx(pt[:3], rel=1e-5)
    hard, soft = (
        found[:, 0, :2],
        np.array([jet[np.argmin(np.abs(jet[:, 2] - 0.75 * s)), :2] for jet, s in zip(found, z, strict=True)]),
    )
    assert np.hypot(*(hard - soft).T) == pytest.approx(apart, rel=1e-4)
    # The centre of momentum of all four is on the axis: each prong has its second particle 0.05 further in eta.
    axis = np.array([0.0125, 0.0])
    away = -(z * apart)[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    assert hard == pytest.approx(away - axis, abs=1e-6)


def test_overlays_are_jets():
    jets = make_jets(300, 1)
    jets[..., :2] *= 0.5
    found = overlay(jets, np.random.default_rng(0))
    valid = found[..., 3] == 1
    assert found.shape == jets.shape
    assert found.dtype == np.float32
    assert valid.any(1).all()
    assert (found[~valid] == 0).all()
    assert (found[valid][:, 2] > 0).all()
    assert (np.diff(found[..., 2], axis=1) <= 0).all()
    assert (found[..., 2].sum(1) <= 1 + 1e-5).all()
    whole = valid.sum(1) < 30  # nothing was cut off: momentum and centre are all there
    assert whole.any()
    assert found[whole][..., 2].sum(1) == pytest.approx(1, abs=1e-5)
    centre = (found[whole][..., :2] * found[whole][..., 2:3]).sum(1)
    assert np.abs(centre).max() < 1e-5
    assert np.hypot(*found[valid][:, :2].T).max() < 2 * RADIUS
    # Two prongs make it wider than what it is made of: mass of about pT Delta R sqrt(z (1 - z)).
    assert (found[..., 2] * np.hypot(found[..., 0], found[..., 1])).sum(1).mean() > 0.05


def test_prongs_keep_what_lies_within_their_separation():
    jets = np.zeros((2, 3, 4), np.float32)
    jets[:, 0] = [0.0, 0.0, 0.75, 1]
    jets[:, 1] = [0.2, 0.0, 0.25, 1]
    rng = np.random.default_rng(5)
    rng.permutation(2)
    z, apart = rng.uniform(0.1, 0.5, 2), rng.uniform(0.1, 0.4, 2)
    assert apart.max() < 0.2  # so the second particle lies inside the new jet, but too far from its prong
    found = overlay(jets, np.random.default_rng(5))
    assert found[:, :2, 2] == pytest.approx(np.stack((1 - z, z), axis=1), rel=1e-5)
    assert np.hypot(*(found[:, 0, :2] - found[:, 1, :2]).T) == pytest.approx(apart, rel=1e-4)
    assert (found[:, 2] == 0).all()


def test_no_overlay_is_empty():
    jets = np.zeros((4, 3, 4), np.float32)
    jets[:, 0] = [0.9, 0.0, 1.0, 1]  # outside every jet
    found = overlay(jets, np.random.default_rng(0))
    assert found[:, 0] == pytest.approx(np.tile([0, 0, 1, 1], (4, 1)), abs=1e-6)


def test_overlays_repeat_and_follow_the_seed():
    jets = make_jets(20, 1)
    one, same, other = (overlay(jets, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="at least 2 background jets, got 1"):
        overlay(jets[:1], np.random.default_rng(0))


def test_prongs_scale_with_the_radius():
    jets = make_jets(200, 1)
    jets[..., :2] *= 0.02
    narrow, wide = (overlay(jets, np.random.default_rng(0), radius) for radius in (0.4, 0.8))

    def width(found):
        return np.hypot(found[..., 0], found[..., 1]).max(1).mean()

    assert width(wide) == pytest.approx(2 * width(narrow), rel=0.1)


# Detection, blind to the signal it reports


def test_detection_has_the_names_and_numbers_of_the_contract():
    found = detect(TRAIN, TEST, seed=0)
    assert found.values.keys() == set(anomaly_names())
    assert found.chosen == found.oracle == {}
    assert "anomaly_knn_auc_w" in found.values
    assert "anomaly_mahalanobis_labels_eps_s_0.01" in found.values
    assert found.scores.keys() == set(STANDARD)
    bank = draw_bank(TRAIN, 20_000, seed=0)
    scores = bank.fit("knn")(bank.jets(TEST.embedding))
    assert np.array_equal(found.scores["knn"], scores.astype(np.float32))
    for signal, suffix in ((W, "_w"), (Z, "_z"), (T, "_t"), (None, "")):
        rows = (TEST.labels <= G) | ((TEST.labels > G) if signal is None else (TEST.labels == signal))
        area = roc_auc_score(TEST.labels[rows] > G, scores[rows])
        assert found.values[f"anomaly_knn_auc{suffix}"].value == pytest.approx(area, abs=1e-12)
        assert found.values[f"anomaly_knn_auc{suffix}"].error > 0


def test_the_bank_is_drawn_from_the_training_jets_by_the_seed():
    one, same, other = (draw_bank(TRAIN, 120, seed).points for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    rows = {row.tobytes() for row in unit(TRAIN.embedding.astype(float))}
    assert len(rows & {row.tobytes() for row in one}) == 120
    assert len(draw_bank(TRAIN, 20_000, 0)) == len(TRAIN.labels)


def test_detection_repeats_whatever_else_is_scored(scanned):
    again = detect(TRAIN, TEST, seed=0, selection=SELECTION, scores=QUICK)
    for name, value in again.values.items():
        assert dataclasses.astuple(value) == pytest.approx(
            dataclasses.astuple(scanned.values[name]), nan_ok=True, abs=0
        )
    for name in QUICK:
        assert (again.chosen[name], again.oracle[name]) == (scanned.chosen[name], scanned.oracle[name])
        assert np.array_equal(again.scores[name], scanned.scores[name])


def test_settings_are_chosen_blind_to_the_signal(scanned):
    """Whatever the reported signals look like, the chosen settings are the same."""
    is_signal = TEST.labels > G
    rng = np.random.default_rng(9)
    embedding, particles = TEST.embedding.copy(), TEST.particles.copy()
    embedding[is_signal] = rng.normal(size=(is_signal.sum(), DIM))
    particles[is_signal] = make_jets(int(is_signal.sum()), 9)
    replaced = Embedded(embedding=embedding, labels=TEST.labels, particles=particles)
    labels = TEST.labels.copy()
    labels[is_signal] = rng.permutation(labels[is_signal])
    permuted = Embedded(embedding=TEST.embedding, labels=labels, particles=TEST.particles)
    for other, names in ((replaced, None), (permuted, QUICK)):
        found = detect(TRAIN, other, seed=0, selection=SELECTION, scores=names)
        assert found.chosen == {name: scanned.chosen[name] for name in names or SCORES}
        assert found.oracle != {name: scanned.oracle[name] for name in names or SCORES}  # which does look


def test_what_chooses_is_handed_no_test_jet():
    assert list(inspect.signature(choose).parameters) == ["score", "bank", "background", "selection"]
    assert list(inspect.signature(choose_all).parameters) == ["bank", "selection", "names"]
    assert not {"test", "truth"} & set(SelectionSignal.__dataclass_fields__)


@pytest.mark.parametrize("name", SCORES)
def test_the_best_settings_on_the_synthetic_signal_are_chosen(name, bank):
    background, selection = bank.jets(VAL.embedding, VAL.particles), bank.jets(SELECTION.embedding, SELECTION.particles)
    is_signal = np.repeat([0, 1], [len(background), len(selection)])
    areas = []
    for settings in SCORES[name].grid:
        fitted = bank.fit(name, **settings)
        areas.append(roc_auc_score(is_signal, np.concatenate((fitted(background), fitted(selection)))))
    chosen = choose(SCORES[name], bank, background, selection)
    assert areas[SCORES[name].grid.index(chosen)] == pytest.approx(max(areas), abs=1e-12)


def test_the_first_of_equal_settings_is_chosen(bank):
    """No selection jet beats a background jet, or all do: whatever the settings, so the published ones stay."""
    far = bank.jets(-np.abs(TEST.embedding) - 5)
    assert choose(SCORES["knn"], bank, bank.jets(TRAIN.embedding[:20]), far) == SCORES["knn"].defaults


def test_the_oracle_stands_beside_what_was_chosen(scanned):
    values = scanned.values
    assert values.keys() == set(anomaly_names(scan=True))
    assert scanned.scores.keys() == scanned.chosen.keys() == SCORES.keys()
    bank = draw_bank(TRAIN, 20_000, seed=0)
    jets = bank.jets(TEST.embedding, TEST.particles)
    for name, score in SCORES.items():
        assert scanned.chosen[name] in score.grid
        for suffix in ("_w", "_z", "_t", ""):
            signal = suffix[1:] or "combined"
            chosen, oracle, gap = (
                values[f"anomaly_{name}_{metric}{suffix}"] for metric in ("chosen_auc", "oracle_auc", "optimism")
            )
            assert gap.value == pytest.approx(oracle.value - chosen.value, abs=1e-12)
            assert gap.value >= -1e-12
            rows = (TEST.labels <= G) | ((TEST.labels > G) if not suffix else (TEST.labels == "qgwzt".index(signal)))
            of_grid = [
                roc_auc_score(TEST.labels[rows] > G, bank.fit(name, **settings)(jets)[rows]) for settings in score.grid
            ]
            assert oracle.value == pytest.approx(max(of_grid), abs=1e-12)
            assert of_grid[score.grid.index(scanned.oracle[name][signal])] == pytest.approx(max(of_grid), abs=1e-12)
            assert chosen.value == pytest.approx(of_grid[score.grid.index(scanned.chosen[name])], abs=1e-12)


def test_share_below_counts_ties_half():
    found = share_below(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0, 3.0]))
    assert found == pytest.approx([0, 0.25, 0.625])


def test_error_of_a_difference_of_areas_knows_that_jets_are_the_same():
    rng = np.random.default_rng(0)
    signal = np.arange(600) < 300
    differences, errors = [], []
    for _ in range(100):
        scores = rng.normal(size=600) + signal
        found = auc_difference(scores + 0.3 * rng.normal(size=600), scores, signal)
        differences.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(differences), rel=0.25)
    same = auc_difference(scores, scores, signal)
    assert (same.value, same.error) == (0, 0)


# A real signal to choose on


def real_signal(name):
    rows = TEST.labels == "qgwzt".index(name)
    return SelectionSignal(background=VAL, embedding=TEST.embedding[rows], particles=TEST.particles[rows], signal=name)


def test_settings_chosen_on_a_signal_are_not_reported_for_it():
    for signals in (SIGNALS, ("w", "t"), ("combined",)):
        with pytest.raises(AnomalyError, match=r"chosen on t cannot be reported for .*: report w, z"):
            detect(TRAIN, TEST, seed=0, selection=real_signal("t"), signals=signals)
    found = detect(TRAIN, TEST, seed=0, selection=real_signal("t"), signals=("w", "z"), scores=QUICK)
    assert "anomaly_knn_chosen_auc_w" in found.values
    assert not [name for name in found.values if name.endswith("_t") or name.endswith("_auc")]
    with pytest.raises(AnomalyError, match="selection signal must be one of w, z, t or None, got 'q'"):
        detect(TRAIN, TEST, seed=0, selection=SelectionSignal(background=VAL, embedding=TEST.embedding, signal="q"))


def test_settings_are_not_chosen_on_jets_that_are_reported():
    w = TEST.labels == W
    unnamed = SelectionSignal(background=VAL, embedding=TEST.embedding[w], particles=TEST.particles[w])
    with pytest.raises(AnomalyError, match=rf"on reported jets, got {w.sum()} of them as selection signal"):
        detect(TRAIN, TEST, seed=0, selection=unnamed)
    background = SelectionSignal(
        background=only(TEST, Q, G), embedding=SELECTION.embedding, particles=SELECTION.particles
    )
    with pytest.raises(AnomalyError, match=r"on reported jets, got \d+ of them as selection background"):
        detect(TRAIN, TEST, seed=0, selection=background)


def test_distances_are_to_the_jets_of_ones_own_bank():
    one, other = (Bank(unit(np.random.default_rng(seed).normal(size=(150, 4)))) for seed in (0, 1))
    with pytest.raises(AnomalyError, match="prepared by the bank that scores them"):
        one.fit("knn", k=5)(other.jets(unit(np.ones((3, 4)))))


# Bad input, one line each


def embedded(like, **changes):
    return Embedded(**{"embedding": like.embedding, "labels": like.labels, "particles": like.particles} | changes)


def with_row(array, row, value):
    array = array.copy()
    array[row] = value
    return array


def only(like, *classes):
    rows = np.isin(like.labels, classes)
    return Embedded(embedding=like.embedding[rows], labels=like.labels[rows], particles=like.particles[rows])


BAD = {
    "no q in the bank": (embedded(TRAIN, labels=np.full(180, G)), TEST, "need q and g jets in the bank, got no q"),
    "signal in the bank": (embedded(TRAIN, labels=with_row(TRAIN.labels, 3, W)), TEST, r"background \(q, g\), got w"),
    "no background": (TRAIN, only(TEST, W, Z, T), "got no background among 90"),
    "no z": (TRAIN, only(TEST, Q, G, W, T), "got no z among 155"),
    "too few for k": (only(TRAIN, G, W), TEST, "at least 100 jets for k = 100, got 80"),
    "NaN in the bank": (
        embedded(TRAIN, embedding=np.where(np.arange(180)[:, None] == 17, np.nan, TRAIN.embedding)),
        TEST,
        r"bank: the embedding must be finite, got NaN or infinity at jet \d+, one of 1",
    ),
    "infinite test jet": (
        TRAIN,
        embedded(TEST, embedding=with_row(TEST.embedding, [5, 9], np.inf)),
        "jets: the embedding must be finite, got NaN or infinity at jet 5, one of 2",
    ),
    "constant": (embedded(TRAIN, embedding=np.ones_like(TRAIN.embedding)), TEST, "embedding must vary, but 180 jets"),
    "widths": (TRAIN, embedded(TEST, embedding=TEST.embedding[:, :4]), "one width, got 4 and 6"),
    "no dimension": (TRAIN, embedded(TEST, embedding=TEST.embedding[:, :0]), r"shape \(jet, dim\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_jets_are_told_in_one_line(case):
    train, test, message = BAD[case]
    with pytest.raises(AnomalyError, match=message) as raised:
        detect(train, test, seed=0)
    assert "\n" not in str(raised.value)


def test_arrays_of_other_jets_are_told():
    with pytest.raises(AnomalyError, match="particles must be of the same 180 jets, got 7"):
        embedded(TEST, particles=TEST.particles[:7])
    with pytest.raises(AnomalyError, match="labels must be of the same 180 jets, got 3"):
        embedded(TEST, labels=TEST.labels[:3])
    with pytest.raises(AnomalyError, match=r"labels must be positions in q, g, w, z, t, got \[5\]"):
        embedded(TEST, labels=np.full(180, 5))
    with pytest.raises(AnomalyError, match="bank: labels must be of the same 180 jets, got 3"):
        Bank(TRAIN.embedding, TRAIN.labels[:3])
    with pytest.raises(AnomalyError, match="jets: particles must be of the same 180 jets, got 7"):
        Bank(TRAIN.embedding).jets(TEST.embedding, TEST.particles[:7])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("knn", {"k": 0}, "k must be an integer >= 1, got 0"),
        ("knn", {"k": 181}, "at least 181 jets for k = 181, got 180"),
        ("knn", {"k": 2.5}, "k must be an integer"),
        ("knn", {"aggregate": "sum"}, "aggregate must be one of mean, median, kth, max, got 'sum'"),
        ("knn", {"kk": 3}, "knn has no setting 'kk', it has k, aggregate"),
        ("cosine", {"temperature": 0.0}, "temperature must be > 0"),
        ("cosine", {"aggregate": "mean"}, "aggregate must be one of logsumexp"),
        ("mahalanobis", {"reg": -1.0}, "reg must be finite and >= 0"),
        ("relative_mahalanobis_labels", {"variant": "quotient"}, "variant must be one of sub, ratio, logratio"),
        ("gmm", {"components": 181}, "a mixture of 181 needs as many jets in the bank, got 180"),
        ("gmm", {"covariance": "round"}, "covariance must be one of full, tied, diag"),
        ("lof", {"k": 180}, "at least 181 jets for k = 180"),
        ("autoencoder", {"bottleneck": 0}, "bottleneck must be an integer >= 1"),
        ("k-nn", {}, "score must be one of knn, cosine"),
    ],
)
def test_bad_settings_are_told(bank, name, settings, message):
    with pytest.raises(AnomalyError, match=message):
        bank.fit(name, **settings)


def test_a_singular_covariance_is_told_with_a_regulariser_that_helps():
    flat = TRAIN.embedding.astype(float)
    flat[:, 5] = flat[:, 4]
    bank = Bank(flat, TRAIN.labels, normalise=False)
    for name in ("mahalanobis", "mahalanobis_labels", "relative_mahalanobis_labels"):
        with pytest.raises(
            AnomalyError, match=r"positive definite, its smallest .* a reg of \S+ or more helps"
        ) as raised:
            bank.fit(name, reg=0.0)
        bank.fit(name, reg=float(str(raised.value).split("a reg of ")[1].split()[0]))
    twice = np.repeat(np.eye(3)[:2], 60, axis=0)
    with pytest.raises(AnomalyError, match="positive definite covariances"):
        Bank(twice, normalise=False).fit("gmm", components=2, reg=0.0)


def test_a_synthetic_signal_needs_background():
    with pytest.raises(AnomalyError, match=r"background of the selection: .* got w"):
        overlay_signal(TEST, encoder, seed=0)
    with pytest.raises(AnomalyError, match="particles of at least 2"):
        overlay_signal(embedded(VAL, particles=None), encoder, seed=0)
    with pytest.raises(AnomalyError, match=r"background of the selection: .* got w"):
        detect(TRAIN, TEST, seed=0, selection=SelectionSignal(background=TEST, embedding=VAL.embedding))


def test_without_particles_there_is_no_autoencoder():
    bare = [embedded(jets, particles=None) for jets in (TRAIN, TEST, VAL)]
    selection = SelectionSignal(background=bare[2], embedding=SELECTION.embedding)
    found = detect(bare[0], bare[1], seed=0, selection=selection)
    assert found.scores.keys() == SCORES.keys() - {"autoencoder"}


def test_the_smallest_bank_carries_every_setting():
    bank = Bank(TRAIN.embedding[:MIN_BANK], TRAIN.labels[:MIN_BANK], TRAIN.particles[:MIN_BANK])
    for name, score in SCORES.items():
        for settings in score.grid:
            bank.fit(name, **settings)
    assert MIN_BANK == 100
