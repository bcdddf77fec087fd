"""The shape of a frozen embedding: its dimension, how evenly it is filled, and whether classes collapse in it.

Plain torch in double precision on the device of the embedding, as in jbot.evaluation.probes; the tests compare every
function with formulas written out in numpy, scipy and scikit-learn. Few metrics here have a good direction, and all of
them depend on the width of the embedding: compare arms of equal width only, and alignment only between arms of equal
augmentation. KoLeo optimises uniformity: it is no evidence for KoLeo.

First stand the monitors of failed training: attention that looks at nothing, an embedding that collapses. A trial fails
at the limits of jbot.trainer.loop; analysis.verdicts.diagnostics names trials that come near.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from jbot.config import Config
from jbot.evaluation.metrics import MetricError
from jbot.evaluation.probes import nearest
from jbot.trainer.augment import augment
from jbot.trainer.embed import CHUNK, Embedding
from jbot.trainer.model import Flat, cls_rows, encode, hidden_keys, relative_entropy, unpack
from jbot.trainer.rng import Draws

GEOMETRY_JETS = 2_000
"""Jets looked at, the first ones: 0.2 s on one thread, and TwoNN errs by 1 / sqrt(jets), 2%."""

DISCARDED = 0.1
"""Share of the largest distance ratios that TwoNN leaves out (Facco et al. 2017)."""
OCCURRENCES_K = 10
"""Neighbours a jet has in :func:`hubness` (Radovanovic et al. 2010)."""
ALIGNMENT_POWER, UNIFORMITY_SCALE = 2, 2
"""alpha and t of Wang & Isola 2020."""
COMPARED = 256
"""Jets compared with all at once: 4 MB of 2,000 jets, near a CPU's cache (assumed)."""

Views = Float[Tensor, "2 pair dim"]


def attention_entropy(student: Flat, jets: Float[Tensor, "jet particle 4"], config: Config) -> float:
    """Entropy of the sharpest head's [CLS] attention, relative to uniform attention (1), averaged over jets."""
    weights, slots, reference = unpack(student[:1], config.model), jets.shape[1], config.model.padding == "reference"
    total = torch.zeros(config.model.layers, config.model.heads, device=jets.device)
    for part in jets.split(CHUNK[jets.device.type]):
        attentions: list[Tensor] = []
        with torch.no_grad():
            rows = cls_rows(1, len(part), slots, part.device)
            encode(weights, part[None], config.model, rows=rows, attentions=attentions)
        hidden = None if reference else hidden_keys(part[None, ..., 3] < 0.5)
        total += len(part) * torch.cat([relative_entropy(attention, hidden) for attention in attentions])
    return float(total.min()) / len(jets)


def effective_rank(embedding: Embedding) -> float:
    """RankMe: exp of the entropy of the normalised singular values; 1 to dim (Garrido et al., arXiv:2210.02885).

    Singular values come from the eigenvalues of the dim x dim Gram matrix in double precision: exact to 1e-8 of the
    largest, less than the rounding of the embedding itself.
    """
    embedding = embedding.double()
    eigenvalues = torch.linalg.eigvalsh(embedding.T @ embedding)[-len(embedding) :]
    singular = eigenvalues.clamp(min=0).sqrt()
    share = singular / singular.sum() + 1e-7
    return float(torch.special.entr(share).sum().exp())


def spread(embedding: Embedding) -> float:
    """Root mean square distance of the normalised embeddings to their mean: 0 when all jets look alike, at most 1."""
    unit = F.normalize(embedding.double(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())


def geometry(embedding: Embedding, labels: Int64[Tensor, "jet"], views: Views) -> dict[str, float]:
    """The metrics of the shape, of at most the first GEOMETRY_JETS jets.

    `embedding` is the raw [CLS] embedding; `views` are the embeddings of two augmented views of some jets, these or
    others (:func:`views_for_alignment`). NaN where a metric does not exist for these jets, as each function says;
    hubness also when there are no more than OCCURRENCES_K jets. Raises MetricError for values that are not finite, and
    for fewer than two jets.
    """
    embedding, labels, views = embedding[:GEOMETRY_JETS], labels[:GEOMETRY_JETS], views[:, :GEOMETRY_JETS]
    return {
        "intrinsic_dimension": intrinsic_dimension(embedding),
        "anisotropy": anisotropy(embedding),
        "hubness": hubness(embedding) if len(embedding) > OCCURRENCES_K else float("nan"),
        "condition_number": condition_number(embedding),
        "nc1": nc1(embedding, labels),
        "alignment": alignment(views[0], views[1]),
        "uniformity": uniformity(embedding),
    }


def views_for_alignment(
    jets: Float[Tensor, "jet particle 4"], config: Config, seed: int
) -> Float[Tensor, "2 jet particle 4"]:
    """Two augmented views of each jet as training makes them, with nothing masked; the same ones for a seed."""
    draws = Draws(torch.tensor([seed], device=jets.device), 0)
    return augment(jets[None], draws, config.augment)[0]


def intrinsic_dimension(embedding: Embedding) -> float:
    """TwoNN: how many coordinates the embedding locally has, from ratios mu of the second to the first distance (Facco,
    d'Errico, Rodriguez & Laio, Sci. Rep. 7 (2017) 12140, arXiv:1803.06992).

    In a locally uniform density of dimension d, P(mu > m) = m^-d. So the slope of -log(1 - i / n) against the log of
    the i-th smallest mu, through the origin, is d; the DISCARDED largest ratios are left out. Equal embeddings count
    as one jet: their distance of zero is that of rounding or of equal jets, not of a density.

    NaN with fewer than three different embeddings, or when every jet is equally far from its first two neighbours.
    """
    points = _checked(embedding, "intrinsic_dimension").unique(dim=0)
    n = len(points)
    if n < 3:
        return float("nan")
    # From differences: 0 for equal points only.
    distances = (points[_others(_centred(points), 2)] - points[:, None]).square().sum(2).sqrt().sort(dim=1).values
    ratios = (distances[:, 1] / distances[:, 0]).log().sort().values[: int(n * (1 - DISCARDED))]
    rank = torch.arange(1, len(ratios) + 1, device=points.device, dtype=torch.float64)
    slope = (ratios @ -torch.log1p(-rank / n)) / (ratios @ ratios)
    return float(slope) if float(ratios[-1]) > 0 else float("nan")


def anisotropy(embedding: Embedding) -> float:
    """Mean cosine between different jets: near 0 when directions are spread evenly, 1 when all are the same.

    Exact over all pairs in O(n d): |sum of unit vectors|^2 holds every pair twice and each jet once. An embedding of
    zero length has cosine 0 with all. Ethayarajh, EMNLP 2019, arXiv:1909.00512, definition 3, estimates it on sampled
    pairs.
    """
    unit = F.normalize(_checked(embedding, "anisotropy"), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def hubness(embedding: Embedding, k: int = OCCURRENCES_K) -> float:
    """Skewness of how often a jet is among the k nearest (Euclidean) of others: large when few jets are near to all.

    Skewness is the third central moment over the cube of the standard deviation, both of the n jets; 0 when every jet
    occurs equally often (Radovanovic, Nanopoulos & Ivanovic, JMLR 11 (2010) 2487). Raises MetricError with no more than
    k jets.
    """
    points = _centred(_checked(embedding, "hubness"))
    if len(points) <= k:
        raise MetricError(f"hubness needs more than k = {k} jets, got {len(points)}")
    occurrences = torch.bincount(_others(points, k).flatten(), minlength=len(points)).double()
    deviation = occurrences - k  # each jet has k neighbours, so k is the mean
    variance = float(deviation.square().mean())
    return float(deviation.pow(3).mean()) / variance**1.5 if variance > 0 else 0.0


def condition_number(embedding: Embedding) -> float:
    """Largest over smallest eigenvalue of the covariance, on the directions that the embedding uses.

    A covariance of a [CLS] embedding is singular: LayerNorm makes the outputs of a jet, its scale undone, sum to zero,
    so one eigenvalue is nothing but rounding (1e-15 of the largest). Directions whose standard deviation is below
    dim times the rounding of float32, relative to the largest, are therefore not counted: the number is finite, that
    of the pseudo-inverse, and at most (dim * 1.2e-7)^-2; NaN when all embeddings are equal but for rounding. How many
    directions are used is what the effective rank says.
    """
    points = _checked(embedding, "condition_number")
    centred = _centred(points)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred / (len(points) - 1))
    smallest = _rounding(points.shape[1]) ** 2 * float(eigenvalues[-1])
    if not _varies(points, centred):
        return float("nan")
    return float(eigenvalues[-1] / eigenvalues[eigenvalues > smallest][0])


def nc1(embedding: Embedding, labels: Int64[Tensor, "label"]) -> float:
    """Variability inside classes against that between them, tr(Sigma_W pinv(Sigma_B)) / C: 0 at neural collapse.

    Sigma_W is the covariance inside a class, averaged over the C classes; Sigma_B that of the C class means about
    their own mean. Classes weigh alike, so it does not feel how many jets of each there are; with balanced classes
    these are the published definitions (Papyan, Han & Donoho, PNAS 117 (2020) 24652, arXiv:2008.08186, section 2). NaN
    with a single class, or when the means of all classes are equal.
    """
    points = _checked(embedding, "nc1")
    if len(labels) != len(points):
        raise MetricError(f"nc1 needs a label for each jet, got {len(labels)} labels of {len(points)} jets")
    member = F.one_hot(labels.unique(return_inverse=True)[1]).double()
    classes = member.shape[1]
    centred = _centred(points)
    means = (member.T @ centred) / member.sum(0)[:, None]  # (class, dim)
    between = (means - means.mean(0)).T  # Sigma_B = between between^T / C
    if classes < 2 or not _varies(points, between.T):
        return float("nan")
    # pinv(Sigma_B) = C pinv(between)^T pinv(between): the trace is a mean of squares, of C numbers a jet.
    inverse = torch.linalg.pinv(between, rtol=_rounding(points.shape[1]))
    within = ((centred - member @ means) @ inverse.T).square().sum(1)
    return float(((member.T @ within) / member.sum(0)).mean())


def alignment(first: Embedding, second: Float[Tensor, "other dim"]) -> float:
    """Mean squared distance between the unit embeddings of two views of a jet: 0 when augmentation changes nothing
    (Wang & Isola, ICML 2020, arXiv:2005.10242, with alpha = 2)."""
    if first.shape != second.shape:
        raise MetricError(f"alignment needs two views of the same jets, got {[*first.shape]} and {[*second.shape]}")
    first, second = (F.normalize(_checked(view, "alignment", least=1), dim=1) for view in (first, second))
    return float((first - second).norm(dim=1).pow(ALIGNMENT_POWER).mean())


def uniformity(embedding: Embedding) -> float:
    """Log of the mean of exp(-2 d^2) over all pairs of different jets, d between unit embeddings: 0 at one point.

    The lower, the more evenly jets cover the sphere; -4 in the limit of many dimensions (Wang & Isola, with t = 2).
    """
    unit = F.normalize(_checked(embedding, "uniformity"), dim=1)
    n, squares = len(unit), unit.square().sum(1)
    total = unit.new_zeros(())
    for part, square in zip(unit.split(COMPARED), squares.split(COMPARED), strict=True):
        distances = torch.addmm(squares[None] + square[:, None], part, unit.T, alpha=-2)
        total += distances.mul_(-UNIFORMITY_SCALE).exp_().sum()
    return float(((total - n) / (n * (n - 1))).log())


def _checked(embedding: Tensor, metric: str, least: int = 2) -> Tensor:
    """In double precision; a MetricError that names the metric when there is nothing to measure."""
    if len(embedding) < least:
        raise MetricError(f"{metric} needs at least {least} jets, got {len(embedding)}")
    broken = int((~torch.isfinite(embedding)).any(1).sum())
    if broken:
        raise MetricError(f"{metric} needs finite embeddings, got {broken} of {len(embedding)} with NaN or infinity")
    return embedding.double()


def _centred(points: Tensor) -> Tensor:
    """About the mean: distances from squares and products lose no digits to an offset."""
    return points - points.mean(0)


def _rounding(dim: int) -> float:
    """Singular values below this share of the largest are rounding of a float32 embedding."""
    return dim * float(torch.finfo(torch.float32).eps)


def _varies(points: Tensor, deviations: Tensor) -> bool:
    """Whether deviations are more than what float32 makes of the values themselves."""
    return float(deviations.abs().max()) > torch.finfo(torch.float32).eps * float(points.abs().max())


def _others(points: Tensor, k: int) -> Int64[Tensor, "jet k"]:
    """Rows of the k nearest other points, nearest first."""
    rows = nearest(points, points, k + 1)
    own = torch.arange(len(points), device=points.device)[:, None]
    # The point itself to the front, where it is dropped; with more than k equal ones it may be missing: drop one.
    order = (rows != own).byte().sort(dim=1, stable=True).indices
    return rows.gather(1, order)[:, 1:]
