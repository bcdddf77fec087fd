"""Geometry of embeddings: known shapes, hand-computed cases, and formulas written out in numpy, scipy, scikit-learn."""

import math
import time

import numpy as np
import pytest
import torch
from helpers import make_jets
from scipy.spatial.distance import cdist, pdist
from scipy.stats import skew
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from jbot.config import Config, override
from jbot.evaluation.geometry import (
    GEOMETRY_JETS,
    alignment,
    anisotropy,
    condition_number,
    geometry,
    hubness,
    intrinsic_dimension,
    nc1,
    uniformity,
    views_for_alignment,
)
from jbot.evaluation.metrics import MetricError
from jbot.trainer.augment import augment
from jbot.trainer.embed import embed_on_device
from jbot.trainer.rng import Draws
from jbot.trainer.state import init_state

METRICS = (
    "intrinsic_dimension",
    "anisotropy",
    "hubness",
    "condition_number",
    "nc1",
    "alignment",
    "uniformity",
)
"""What :func:`geometry` gives."""

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[
        pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    ]),
]  # fmt: skip
SINGLE = {
    "intrinsic_dimension": intrinsic_dimension,
    "anisotropy": anisotropy,
    "hubness": hubness,
    "condition_number": condition_number,
    "nc1": lambda embedding: nc1(embedding, torch.arange(len(embedding)) % 3),
    "alignment": lambda embedding: alignment(embedding, embedding.roll(1, 0)),
    "uniformity": uniformity,
}


def cloud(jets=300, dim=6, seed=0, offset=1.0):
    """Points of three overlapping classes, wider in some directions than in others, and off the origin."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(jets, dim)) * np.arange(1, dim + 1)
    points[:, 0] += np.arange(jets) % 3
    return torch.from_numpy((points + offset).astype(np.float32))


def rotation(dim, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def cube(dim, jets=2000):
    return np.random.default_rng(dim).random((jets, dim))


def sphere(dim, jets=2000):
    points = np.random.default_rng(dim).normal(size=(jets, dim + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def swiss_roll(jets=2000):
    """A plane rolled up in three dimensions, uniform in its area."""
    rng = np.random.default_rng(0)
    angle = np.sqrt(rng.uniform((1.5 * math.pi) ** 2, (4.5 * math.pi) ** 2, jets))
    return np.stack([angle * np.cos(angle), 20 * rng.random(jets), angle * np.sin(angle)], axis=1)


@pytest.mark.parametrize(
    ("points", "dimension", "tolerance"),
    [
        (cube(1), 1, 0.08),
        (cube(2), 2, 0.15),
        (cube(5), 5, 0.45),  # the boundary pulls it below 5, as in the paper's figure 2
        (sphere(1), 1, 0.08),
        (sphere(2), 2, 0.15),
        (sphere(5), 5, 0.45),
        (swiss_roll(), 2, 0.15),
        (np.pad(cube(2), ((0, 0), (0, 30))) @ rotation(32), 2, 0.15),
        (np.pad(cube(2), ((0, 0), (0, 30))) + 100.0, 2, 0.15),
    ],
)
def test_dimension_of_known_shapes(points, dimension, tolerance):
    assert intrinsic_dimension(torch.from_numpy(points)) == pytest.approx(dimension, abs=tolerance)


def two_nn(points):
    """TwoNN with scikit-learn's neighbours and regression."""
    distances, _ = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(points)
    ratios = np.sort(distances[:, 2] / distances[:, 1])
    kept = int(0.9 * len(points))
    share = np.arange(1, kept + 1) / len(points)
    fit = LinearRegression(fit_intercept=False).fit(np.log(ratios[:kept, None]), -np.log(1 - share))
    return fit.coef_[0]


def test_dimension_against_scikit_learn():
    points = cloud()
    assert intrinsic_dimension(points) == pytest.approx(two_nn(points.double().numpy()), rel=1e-9)


def test_dimension_by_hand():
    # On a line at 0, 1, 3, 7: first and second distances (1, 3), (1, 2), (2, 3), (4, 6); ratios 1.5, 1.5, 2, 3.
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    x, y = np.log([1.5, 1.5, 2.0]), -np.log([0.75, 0.5, 0.25])  # 10% of 4 jets: the largest ratio goes
    assert intrinsic_dimension(line) == pytest.approx((x @ y) / (x @ x), rel=1e-12)


def test_equal_jets_count_once_in_the_dimension():
    points = cloud()
    assert intrinsic_dimension(torch.cat([points, points[:50], points[:50]])) == intrinsic_dimension(points)


@pytest.mark.parametrize(
    "points",
    [torch.ones(40, 3), torch.eye(3).repeat(20, 1)[:, :2], torch.eye(4), torch.tensor([[0.0], [1.0]]).repeat(20, 1)],
    ids=["one point", "right triangle", "equidistant", "two points"],
)
def test_dimension_is_nan_or_finite_but_never_infinite(points):
    assert not math.isinf(intrinsic_dimension(points))


def test_dimension_that_does_not_exist_is_nan():
    assert math.isnan(intrinsic_dimension(torch.ones(40, 3)))
    assert math.isnan(intrinsic_dimension(torch.eye(4)))


def test_anisotropy_by_hand_and_over_all_pairs():
    right_angles = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])  # cosines 0, -1, 0
    assert anisotropy(right_angles) == pytest.approx(-1 / 3, rel=1e-12)
    points = cloud(offset=3.0)
    assert anisotropy(points) == pytest.approx(1 - pdist(points.double().numpy(), "cosine").mean(), rel=1e-10)
    assert anisotropy(torch.ones(40, 3)) == pytest.approx(1.0)
    assert anisotropy(torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("k", [1, 10])
def test_hubness_against_scipy(offset, k):
    points = cloud(offset=offset)
    distances = cdist(points.double().numpy(), points.double().numpy())
    np.fill_diagonal(distances, np.inf)
    counts = np.bincount(np.argsort(distances, axis=1)[:, :k].ravel(), minlength=len(points))
    assert hubness(points, k) == pytest.approx(skew(counts), rel=1e-10)


def test_hubness_by_hand():
    # Everybody's nearest is the centre, whose own nearest is the first: counts 4, 1, 0, 0, 0 about a mean of 1.
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.1, 0.0], [0.0, 1.2], [0.0, -1.3]])
    assert hubness(cross, 1) == pytest.approx(((27 - 3) / 5) / ((9 + 3) / 5) ** 1.5)
    ring = torch.tensor([[math.cos(a), math.sin(a)] for a in torch.arange(12) * math.pi / 6])
    assert hubness(ring, 2) == 0.0


def test_hubness_of_equal_jets_is_finite_and_counts_no_jet_as_its_own_neighbour():
    assert math.isfinite(hubness(torch.ones(40, 3)))
    pairs = torch.arange(6.0).repeat_interleave(2)[:, None] * 10
    assert hubness(pairs, 1) == 0.0  # each is the nearest of its twin


def test_condition_number_against_numpy_and_without_unused_directions():
    points = cloud()
    expected = np.linalg.cond(np.cov(points.double().numpy().T))
    assert condition_number(points) == pytest.approx(expected, rel=1e-9)
    flat = torch.nn.functional.pad(points, (0, 5), value=7.0) @ torch.from_numpy(rotation(11).astype(np.float32))
    assert condition_number(flat) == pytest.approx(expected, rel=1e-3)
    assert math.isnan(condition_number(torch.full((40, 3), 0.1)))
    assert condition_number(torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])) == pytest.approx(4.0)


def test_layer_norm_makes_a_direction_that_the_condition_number_must_not_count():
    points = torch.nn.functional.layer_norm(cloud(), (6,))
    eigenvalues = np.linalg.eigvalsh(np.cov(points.double().numpy().T))
    assert eigenvalues[0] < 1e-13 * eigenvalues[-1]
    assert condition_number(points) == pytest.approx(eigenvalues[-1] / eigenvalues[1], rel=1e-9)


def test_condition_number_with_fewer_jets_than_directions():
    points = cloud(jets=4)
    eigenvalues = np.linalg.eigvalsh(np.cov(points.double().numpy().T))[-3:]
    assert condition_number(points) == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-9)


def test_nc1_against_numpy_and_by_hand():
    points, labels = cloud(), torch.arange(300) % 3
    x, y = points.double().numpy(), labels.numpy()
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    within = np.mean([(x[i] - means[y[i]])[:, None] * (x[i] - means[y[i]]) for i in range(300)], axis=0)
    between = np.mean([np.outer(m - x.mean(0), m - x.mean(0)) for m in means], axis=0)
    # balanced classes: the mean of class means is the mean of all jets
    assert nc1(points, labels) == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3, rel=1e-8)
    # Two classes at -2 and 2 with jets 1 to each side: Sigma_W = 1, Sigma_B = 4, C = 2.
    line = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]])
    assert nc1(line, torch.tensor([4, 4, 1, 1])) == pytest.approx(1 / 8)
    assert nc1(line.repeat(3, 1), torch.tensor([4, 4, 1, 1] * 3)) == pytest.approx(1 / 8)


def test_nc1_does_not_feel_the_composition_and_is_zero_at_collapse():
    line, labels = torch.tensor([[-3.0], [-1.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
    rows = torch.tensor([0, 1, 0, 1, 0, 1, 2, 3])
    assert nc1(line[rows], labels[rows]) == pytest.approx(1 / 8)
    assert nc1(torch.eye(3)[torch.arange(30) % 3], torch.arange(30) % 3) == pytest.approx(0.0, abs=1e-12)


def test_nc1_that_does_not_exist_is_nan():
    assert math.isnan(nc1(cloud(), torch.zeros(300, dtype=torch.int64)))
    assert math.isnan(nc1(torch.full((40, 3), 0.1), torch.arange(40) % 2))
    assert math.isnan(nc1(torch.tensor([[1.0], [-1.0], [-1.0], [1.0]]), torch.tensor([0, 0, 1, 1])))


def test_alignment_and_uniformity_by_hand():
    first = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert alignment(first, 5 * first) == 0.0
    assert alignment(first, torch.tensor([[-1.0, 0.0], [3.0, 0.0]])) == pytest.approx((4 + 2) / 2)
    opposite = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8.0)
    assert uniformity(torch.ones(40, 3)) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(-2.0)  # no direction: at the origin


def test_uniformity_as_published():
    points = cloud(jets=600)
    unit = points.double().numpy() / np.linalg.norm(points.double().numpy(), axis=1, keepdims=True)
    assert uniformity(points) == pytest.approx(math.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()), rel=1e-10)


@pytest.mark.parametrize("metric", METRICS)
def test_rotation_and_order_change_nothing(metric):
    points = cloud().double()
    turned = points @ torch.from_numpy(rotation(6))
    assert SINGLE[metric](turned) == pytest.approx(SINGLE[metric](points), rel=1e-6)
    if metric not in ("nc1", "alignment"):
        assert SINGLE[metric](points.flip(0)) == pytest.approx(SINGLE[metric](points), rel=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_scale_changes_nothing(metric, factor):
    points = cloud()
    assert SINGLE[metric](factor * points) == pytest.approx(SINGLE[metric](points), rel=1e-9)


@pytest.mark.parametrize("metric", ["intrinsic_dimension", "hubness", "condition_number", "nc1"])
def test_offset_changes_nothing_where_only_differences_count(metric):
    points = cloud().double()
    assert SINGLE[metric](points + 100.0) == pytest.approx(SINGLE[metric](points), rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_named(metric, value):
    points = cloud()
    points[7, 2] = points[7, 3] = points[200, 0] = value
    with pytest.raises(MetricError, match=f"^{metric} needs finite embeddings, got 2 of 300 with NaN or infinity$"):
        SINGLE[metric](points)


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "alignment"])
def test_a_single_jet_is_too_few(metric):
    with pytest.raises(MetricError, match=f"^{metric} needs at least 2 jets, got 1$"):
        SINGLE[metric](torch.ones(1, 3))


def test_hubness_needs_more_jets_than_neighbours():
    with pytest.raises(MetricError, match=r"^hubness needs more than k = 10 jets, got 10$"):
        hubness(cloud(jets=10))


def test_each_jet_needs_a_label():
    with pytest.raises(MetricError, match=r"^nc1 needs a label for each jet, got 2 labels of 3 jets$"):
        nc1(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64))


def test_views_of_other_jets_are_no_views():
    with pytest.raises(MetricError, match=r"two views of the same jets, got \[3, 2\] and \[4, 2\]"):
        alignment(torch.ones(3, 2), torch.ones(4, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_geometry_has_every_metric_of_the_first_jets(device):
    points = cloud(jets=GEOMETRY_JETS + 500).to(device)
    labels = torch.arange(len(points), device=device) % 3
    views = torch.stack([points, points.roll(1, 0)])
    found = geometry(points, labels, views)
    assert tuple(found) == METRICS
    assert all(math.isfinite(value) for value in found.values())
    assert found == pytest.approx(
        geometry(points[:GEOMETRY_JETS].cpu(), labels[:GEOMETRY_JETS].cpu(), views[:, :GEOMETRY_JETS].cpu()), rel=1e-9
    )


def test_ten_jets_of_one_class_leave_what_exists():
    found = geometry(cloud(jets=10), torch.zeros(10, dtype=torch.int64), torch.ones(2, 10, 6))
    assert {name for name, value in found.items() if math.isnan(value)} == {"hubness", "nc1"}


def test_inputs_are_not_changed():
    points = cloud()
    before = points.clone()
    geometry(points, torch.arange(300) % 3, torch.stack([points, points]))
    assert torch.equal(points, before)


def test_geometry_is_fast_beside_a_probe():
    """0.2 s are claimed for jBOT-B on a free core; a busy machine is given ten times that."""
    points = cloud(jets=GEOMETRY_JETS, dim=64)
    started = time.process_time()
    geometry(points, torch.arange(len(points)) % 5, torch.stack([points, points]))
    assert time.process_time() - started < 3.0


def test_views_are_those_of_training():
    jets, config = torch.from_numpy(make_jets(20)), Config()
    views = views_for_alignment(jets, config, seed=3)
    expected = augment(jets[None], Draws(torch.tensor([3]), 0), config.augment)[0]
    assert torch.equal(views, expected)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views, views_for_alignment(jets, config, seed=4))
    valid = jets[..., 3].sum(1)
    assert torch.equal(views[..., 3].sum(2), torch.minimum(2 * valid, torch.tensor(30.0)).expand(2, -1))
    torch.testing.assert_close(views[..., 2].sum(2), jets[..., 2].sum(1).expand(2, -1))


def test_without_augmentation_views_of_an_encoder_align(tiny):
    off = {"augment.rotation": 0, "augment.smear_sigma": 0, "augment.split_fraction": 0}
    jets, state = torch.from_numpy(make_jets(20)), init_state(tiny, [0], torch.device("cpu"))

    def aligned(config):
        views = views_for_alignment(jets, config, seed=0)
        return alignment(*(embed_on_device(state.student, view, config) for view in views))

    assert aligned(override(tiny, off)) == 0.0
    assert aligned(tiny) > 0.0
