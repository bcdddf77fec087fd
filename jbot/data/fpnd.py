"""Frechet ParticleNet distance (FPND): how far generated jets lie from the real ones in a classifier's eyes.

A ParticleNet trained on the real JetNet jets turns each jet into 256 numbers; FPND is the Frechet distance between
their Gaussian approximations for two sets of jets. The jetnet package carries the network's weights and the mean and
covariance for real g, q and t jets of 30 particles, but its own network needs torch_geometric and torch_cluster; this
one is dense torch with the same weights, layer and normalisation (jetnet.evaluation.fpnd, arXiv:2106.11535).
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jbot.data.jets import N_PARTICLES, DataError

FPND_CLASSES = ("g", "q", "t")
"""Classes whose real statistics the jetnet package carries."""
MAX_JETS = 50_000
"""Jets that jetnet uses at most, for the real statistics too."""
NEIGHBOURS = 16
FEATURE_MAXES = (1.6211985349655151, 0.520724892616272, 0.8934717178344727)
"""Largest |eta_rel|, |phi_rel| and pt_rel of the real jets, by which features are divided (JetNet.fpnd_norm)."""
FEATURE_SHIFTS = (0.0, 0.0, -0.5)
"""Added after the division."""
EDGE_WIDTHS = (64, 128, 256)
BATCH = 32  # jets per forward pass; its edges stay in a core's cache


class ParticleNet(nn.Module):
    """The ParticleNet of arXiv:2106.11535 up to its 256 activations, for jets of 30 slots, padded ones included."""

    def __init__(self) -> None:
        super().__init__()
        widths = np.cumsum([3, *EDGE_WIDTHS])  # every block's output is joined to its input
        self.edge_nets = nn.ModuleList(
            EdgeConvolution(int(width), out) for width, out in zip(widths[:-1], EDGE_WIDTHS, strict=True)
        )
        self.fc1 = nn.Sequential(nn.Linear(int(widths[-1]), 256))

    def forward(self, features: Tensor) -> Tensor:
        """(jet, 30, 3) normalised eta_rel, phi_rel, pt_rel -> (jet, 256) activations, before the ReLU."""
        x = features
        for block, net in enumerate(self.edge_nets):
            neighbours = nearest(x[..., :2] if block == 0 else x, NEIGHBOURS)
            x = torch.cat([net(x, neighbours), x], dim=-1)
        return self.fc1(x.mean(dim=1))


class EdgeConvolution(nn.Module):
    """Mean over neighbours j of model([x_i, x_j - x_i]), three layers; the name `model` is the weights'."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in in (2 * width, out, out):
            layers += [nn.Linear(width_in, out), nn.BatchNorm1d(out), nn.ReLU()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """(jet, particle, feature), (jet, particle, neighbour) int -> (jet, particle, out).

        The first layer is linear, W [x_i, x_j - x_i] = (A - B) x_i + B x_j, so it acts on particles, not edges.
        """
        first, *rest = self.model.children()
        assert isinstance(first, nn.Linear)
        a, b = first.weight.split(x.shape[-1], dim=1)
        own, theirs = nn.functional.linear(x, a - b, first.bias), nn.functional.linear(x, b)
        jet = torch.arange(len(x), device=x.device)[:, None, None]
        edges = own[:, :, None] + theirs[jet, neighbours]  # (jet, particle, neighbour, out)
        shape = edges.shape
        edges = edges.reshape(-1, shape[-1])
        for layer in rest:
            edges = layer(edges)
        return edges.view(shape).mean(dim=2)


def nearest(x: Tensor, count: int) -> Tensor:
    """(jet, particle, feature) -> (jet, particle, count) indices of the nearest other slots, by Euclidean distance."""
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # the quick way rounds close pairs
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return distance.masked_fill(itself, torch.inf).topk(count, largest=False).indices


@dataclass(frozen=True, kw_only=True)
class Fpnd:
    """FPND of one class's jets."""

    value: float
    """As jetnet computes it from these jets."""
    extrapolated: float
    """Without the excess of a finite sample, see `fpnd`."""
    n_jets: int


def fpnd(particles: np.ndarray, name: str) -> Fpnd:
    """FPND of jets against the real ones of a class.

    A finite sample's covariance makes the distance too large by about c / n (Chong and Forsyth, arXiv:1911.07023): at
    50,000 jets that is small, at 3,000 it is most of a good sample's value. From the value F(n) and the mean F(n/2) of
    the two halves, 2 F(n) - F(n/2) has no such term.

    The first 50,000 of `particles`, (jet, 30, 4) float, are used; `name` is g, q or t.

    Raises
    ------
    DataError
        For a class without stored statistics, too few jets, or without the jetnet package.
    """
    if name not in FPND_CLASSES:
        raise DataError(f"FPND knows the classes {', '.join(FPND_CLASSES)}, got {name!r}")
    if len(particles) < 4:
        raise DataError(f"FPND needs at least 4 jets, got {len(particles)}")
    real = real_statistics(name)
    all_activations = activations(particles[:MAX_JETS])
    value = frechet_distance(*statistics(all_activations), *real)
    halves = [frechet_distance(*statistics(half), *real) for half in (all_activations[::2], all_activations[1::2])]
    return Fpnd(value=value, extrapolated=2 * value - sum(halves) / 2, n_jets=len(all_activations))


def activations(particles: np.ndarray) -> np.ndarray:
    """(jet, 30, 4) particles -> (jet, 256) float64 activations of the ParticleNet that the jetnet package carries."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = torch.load(_resources() / "pnet_state_dict.pt", map_location="cpu", weights_only=True)
    network = ParticleNet()
    network.load_state_dict({key: stored[key] for key in network.state_dict()})
    network.eval().to(device)
    batches = []
    with torch.inference_mode():
        for batch in torch.from_numpy(normalised(particles)).split(BATCH if device == "cpu" else 16 * BATCH):
            batches.append(network(batch.to(device)).cpu().numpy())
    return np.concatenate(batches).astype(np.float64)


def normalised(particles: np.ndarray) -> np.ndarray:
    """(jet, 30, 4) particles -> (jet, 30, 3) float32 features as the network was trained on, padding included."""
    return (particles[..., :3] / np.array(FEATURE_MAXES) + np.array(FEATURE_SHIFTS)).astype(np.float32)


def statistics(activations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (256,) and covariance (256, 256) of activations (jet, 256)."""
    return activations.mean(axis=0), np.cov(activations, rowvar=False)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)).

    The trace of the root is the sum of the roots of the product's eigenvalues, which are real and >= 0 up to rounding.
    """
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real
    root = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


def real_statistics(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean (256,) and covariance (256, 256) of the real jets' activations, as the jetnet package carries them."""
    return np.loadtxt(_resources() / f"{name}_mu.txt"), np.loadtxt(_resources() / f"{name}_sigma.txt")


def _resources() -> Path:
    # Found, not imported: only its files are needed.
    package = importlib.util.find_spec("jetnet")
    if package is None or package.origin is None:
        raise DataError("FPND needs the jetnet package: pip install 'jbot-studies[jetnet]'")
    return Path(package.origin).parent / "evaluation" / "fpnd_resources" / "jetnet" / f"{N_PARTICLES}_particles"
