"""What the metrics are made of: neighbours, logistic regression, k-means, silhouette, AUC.

Plain torch in double precision, on the device of the embedding: the same code on a CPU, where it is about as fast as
scikit-learn, and on a GPU, where scikit-learn on one core would take longer than the training. scikit-learn is the
reference: the tests compare every function here with it on embeddings of real jets.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from sklearn.cluster import kmeans_plusplus
from sklearn.utils import check_random_state
from torch import Tensor

DISTANCES = {"cpu": 2**20, "cuda": 2**27}
"""Distances held at once: 8 MB stay near a CPU's cache, 1 GB keeps a GPU busy (assumed)."""

RIDGE = 1.0
"""1 / C of scikit-learn's LogisticRegression, at its default."""
GRADIENT = 1e-11
"""Largest component left of the gradient of the loss, a jet: Newton's steps square the error, so it costs one more."""
NEWTON_STEPS = 100

KMEANS_STEPS = 300
KMEANS_TOLERANCE = 1e-4
"""Squared shift of the centres, as a share of the variance: both as scikit-learn's KMeans has them."""

Points = Float[Tensor, "jet dim"]
Classes = Int64[Tensor, "jet"]


def nearest(bank: Float[Tensor, "bank dim"], jets: Points, k: int) -> Int64[Tensor, "jet k"]:
    """Rows of the k nearest bank points of each jet (k at most all of them), nearest first; of equally far ones any.

    The k nearest are among the k groups of bank points that come nearest, so only these are sorted, not the bank.
    """
    # Near sqrt(bank / k), where bank / size groups and k * size members are fewest.
    size = 2 ** round(math.log2(len(bank) / k) / 2)
    bank, missing = bank.double(), -len(bank) % size
    points = F.pad(bank, (0, 0, 0, missing)).T.contiguous()
    squares = F.pad(bank.square().sum(1), (0, missing), value=torch.inf)
    groups = min(k, len(squares) // size)
    found = []
    for part in jets.split(max(1, DISTANCES[jets.device.type] // len(squares))):
        # (jet, group, member), less the square of the jet, which orders nothing
        distances = torch.addmm(squares, part.double(), points, alpha=-2).unflatten(1, (-1, size))
        group = distances.amin(2).topk(groups, dim=1, largest=False, sorted=False).indices
        some = distances.gather(1, group[..., None].expand(-1, -1, size)).flatten(1)
        member = some.topk(k, dim=1, largest=False).indices
        found.append(group.gather(1, member // size) * size + member % size)
    return torch.cat(found)


def logistic_regression(points: Points, classes: Classes) -> Float[Tensor, "weight logit"]:
    """Weights of the classifier, the intercepts in the last row: one logit a class, a single one for two classes.

    Minimises sum_i -log p(class_i) + RIDGE / 2 |weights without intercepts|^2 by Newton's method, until no component
    of the gradient exceeds GRADIENT a jet. Use :func:`class_probabilities` on the result.
    """
    inputs = _with_ones(points)
    target = F.one_hot(classes).double()
    if target.shape[1] == 2:  # one logit, as in scikit-learn: with two, the ridge would be half as strong
        target = target[:, 1:]
    weights = inputs.new_zeros(inputs.shape[1], target.shape[1])
    ridge = torch.full_like(weights, RIDGE)
    ridge[-1] = 0
    loss = _penalised_loss(weights, inputs, classes, ridge)
    for _ in range(NEWTON_STEPS):
        chance = class_probabilities(weights, points)[:, -target.shape[1] :]
        gradient = inputs.T @ (chance - target) + ridge * weights
        if float(gradient.abs().max()) < GRADIENT * len(points):
            break
        direction = _newton_direction(gradient, inputs, chance, ridge)
        tried = weights - direction
        # A full step may go up far from the minimum; close to it, up or down is rounding.
        while (tried_loss := _penalised_loss(tried, inputs, classes, ridge)) > loss * (1 + 1e-12):
            direction = direction / 2
            tried = weights - direction
        weights, loss = tried, tried_loss
    return weights


def class_probabilities(weights: Float[Tensor, "weight logit"], points: Points) -> Float[Tensor, "jet class"]:
    """Probability of each class."""
    return torch.softmax(_all_logits(_with_ones(points) @ weights), dim=1)


def _newton_direction(gradient: Tensor, inputs: Tensor, chance: Tensor, ridge: Tensor) -> Tensor:
    """Hessian^-1 gradient; the Hessian is sum_i x_i x_i^T (diag(p_i) - p_i p_i^T), class by class."""
    size, logits = gradient.shape
    mixed = (chance[:, :, None] * inputs[:, None, :]).flatten(1)  # (jet, logit * input)
    hessian = -(mixed.T @ mixed)
    for logit in range(logits):
        own = slice(logit * size, (logit + 1) * size)
        hessian[own, own] += mixed[:, own].T @ inputs
    # The little more keeps it positive where every jet is certain of its class; the minimum stays where it is.
    hessian.diagonal().add_(ridge.T.flatten() + 1e-8)
    if logits > 1:  # the same constant added to all intercepts changes nothing: keep the step out of that direction
        hessian[size - 1 :: size, size - 1 :: size] += 1.0
    factor = torch.linalg.cholesky(hessian)
    return torch.cholesky_solve(gradient.T.reshape(-1, 1), factor).view(logits, size).T


def _penalised_loss(weights: Tensor, inputs: Tensor, classes: Tensor, ridge: Tensor) -> float:
    loss = F.cross_entropy(_all_logits(inputs @ weights), classes, reduction="sum")
    return float(loss + (ridge * weights.square()).sum() / 2)


def _with_ones(points: Tensor) -> Tensor:
    return F.pad(points.double(), (0, 1), value=1.0)


def _all_logits(logits: Tensor) -> Tensor:
    return F.pad(logits, (1, 0)) if logits.shape[1] == 1 else logits


def area_under_curve(scores: Float[Tensor, "jet"], positive: Bool[Tensor, "jet"]) -> float:
    """Chance that a positive scores above a negative, ties counted half: the area under the ROC curve.

    NaN without a positive or without a negative.
    """
    negatives, positives = scores[~positive].sort().values, scores[positive]
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return float(below.double().mean() / (2 * len(negatives))) if len(negatives) else float("nan")


def kmeans(points: Points, clusters: int, starts: int, seed: int) -> Classes:
    """Cluster of each point in the best of several Lloyd runs, each from k-means++ centres.

    Starts, tolerance and stopping are those of ``sklearn.cluster.KMeans(clusters, n_init=starts, random_state=seed)``;
    but a cluster that loses its last point keeps its centre.
    """
    points = points.double()
    points = points - points.mean(0)
    host, random = points.cpu().numpy(), check_random_state(seed)
    begins = [torch.from_numpy(kmeans_plusplus(host, clusters, random_state=random)[0]) for _ in range(starts)]
    runs = [_lloyd(points, centers.to(points)) for centers in begins]
    return min(runs, key=lambda run: run[1])[0]


def _lloyd(points: Tensor, centers: Tensor) -> tuple[Tensor, float]:
    """Labels, and the sum of squared distances to the centres."""
    limit = KMEANS_TOLERANCE * float(points.var(0, correction=0).mean())
    columns = points.T.contiguous()
    labels = _closest(columns, centers)
    for _ in range(KMEANS_STEPS):
        member = (labels == torch.arange(len(centers), device=points.device)[:, None]).double()  # (cluster, jet)
        count = member.sum(1, keepdim=True)
        moved = torch.where(count > 0, member @ points / count.clamp(min=1), centers)
        shift, centers = float((moved - centers).square().sum()), moved
        before, labels = labels, _closest(columns, centers)
        if shift <= limit or torch.equal(labels, before):
            break
    return labels, float((points - centers[labels]).square().sum())


def _closest(columns: Tensor, centers: Tensor) -> Tensor:
    distances = torch.addmm(centers.square().sum(1, keepdim=True), centers, columns, alpha=-2)
    return distances.min(0).indices  # argmin takes seven times as long on a CPU


def silhouette(points: Points, classes: Classes) -> float:
    """Mean of (b - a) / max(a, b): a the mean distance to the own class, b to the nearest other; 0 for a lone jet."""
    points = points.double()
    member = F.one_hot(classes.unique(return_inverse=True)[1]).double()
    own, count = member.bool(), member.sum(0)
    total = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") @ member  # (jet, class)
    inside = total[own] / (count[member.argmax(1)] - 1).clamp(min=1)
    outside = (total / count).masked_fill(own, torch.inf).amin(1)
    score = (outside - inside) / torch.maximum(inside, outside)
    lone = count[member.argmax(1)] == 1
    return float(score.nan_to_num(0.0).masked_fill(lone, 0.0).mean())
