"""Validation: figures by hand, verdicts, exit codes, and FPND's parts against known answers."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers import SAMPLE

from jbot.data import DataError, load, validate
from jbot.data.fpnd import (
    EdgeConvolution,
    activations,
    fpnd,
    frechet_distance,
    nearest,
    normalised,
    real_statistics,
    statistics,
)


def test_moments_by_hand() -> None:
    (mean, mean_error), (sd, sd_error) = validate.moments(np.array([1.0, 1.0, 3.0, 3.0]))
    assert (mean, sd, mean_error) == (2.0, 1.0, 0.5)
    assert sd_error == 0.0  # m4 = s^4 for two equal peaks
    normal = np.random.default_rng(0).normal(size=20_000)
    assert validate.moments(normal)[1][1] == pytest.approx(1 / np.sqrt(2 * 20_000), rel=0.05)


def test_spread_counts_jets_not_particles() -> None:
    rng = np.random.default_rng(0)
    independent, valid = rng.normal(size=(2000, 30)), np.ones((2000, 30))
    copied = np.repeat(independent[:, :1], 30, axis=1)  # 30 copies of one particle know no more than one
    assert validate.spread(independent, valid)[1] == pytest.approx(1 / np.sqrt(2 * 60_000), rel=0.1)
    assert validate.spread(copied, valid)[1] == pytest.approx(1 / np.sqrt(2 * 2000), rel=0.1)
    valid[:, 1:] = 0
    assert validate.spread(independent, valid)[0] == pytest.approx(independent[:, 0].std())


def test_verdicts() -> None:
    def check(ours: float, one_sided: bool = False) -> bool:
        return validate.Check(name="q", figure="x", ours=ours, expected=1.0, tolerance=0.5, one_sided=one_sided).passes

    assert [check(ours) for ours in (0.4, 0.6, 1.4, 1.6, float("nan"))] == [False, True, True, False, False]
    assert [check(ours, one_sided=True) for ours in (-9.0, 1.4, 1.6)] == [True, True, False]


def test_the_sample_passes_and_a_distorted_one_departs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert validate.main([str(SAMPLE), "--fpnd-jets", "0"]) == 0
    assert "passes: all 50 figures lie within their tolerance" in capsys.readouterr().out
    distorted = tmp_path / "distorted.h5"
    distorted.write_bytes(SAMPLE.read_bytes())
    with h5py.File(distorted, "r+") as file:
        file["w/jet_features"][:, 2] *= 1.1  # a W of 88 GeV
    assert validate.main([str(distorted), "--fpnd-jets", "0"]) == 1
    assert "departs in 1 of 50 figures: w mass mean [GeV]" in " ".join(capsys.readouterr().out.split())


def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert validate.main([str(tmp_path / "none.h5")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.h5'}: no such file or folder\n"
    other_energy = tmp_path / "500.h5"
    other_energy.write_bytes(SAMPLE.read_bytes())
    with h5py.File(other_energy, "r+") as file:
        file.attrs["jet_pt_gev"] = "500"
    assert validate.main([str(other_energy)]) == 2
    assert "published for jets of 1000 GeV, these are of 500 GeV" in capsys.readouterr().err


def test_w1_finds_a_wider_jet_and_not_a_second_half() -> None:
    pytest.importorskip("jetnet", reason="needs the extra [jetnet]")
    particles = load(str(SAMPLE), jets_per_class={"t": 300}).particles
    wider = particles[150:].copy()
    wider[..., :2] *= 1.3
    assert all(check.passes for check in validate.check_w1("t", particles[:150], particles[150:]))
    departs = [check.figure for check in validate.check_w1("t", particles[:150], wider) if not check.passes]
    assert any(figure.startswith("W1 mass") for figure in departs)


# --- FPND ---------------------------------------------------------------------------------------------------------


def test_frechet_distance_of_gaussians_by_hand() -> None:
    a, b = np.diag([1.0, 4.0]), np.diag([9.0, 4.0])
    # |(3, 4)|^2 + (1 - 3)^2 + (2 - 2)^2
    assert frechet_distance(np.zeros(2), a, np.array([3.0, 4.0]), b) == pytest.approx(29.0)
    assert frechet_distance(np.zeros(2), a, np.zeros(2), a) == pytest.approx(0.0, abs=1e-12)


def test_nearest_leaves_out_the_particle_itself() -> None:
    x = torch.tensor([[[0.0], [1.0], [3.0], [10.0]]])
    assert nearest(x, 2).sort().values.tolist() == [[[1, 2], [0, 2], [0, 1], [1, 2]]]


def test_edge_convolution_is_the_mean_over_edges() -> None:
    torch.manual_seed(0)
    net = EdgeConvolution(3, 8).eval()
    x = torch.randn(2, 5, 3)
    neighbours = nearest(x, 2)
    found = net(x, neighbours)
    edges = [torch.cat([x[1, 4], x[1, j] - x[1, 4]]) for j in neighbours[1, 4]]
    torch.testing.assert_close(found[1, 4], net.model(torch.stack(edges)).mean(dim=0))


def test_normalisation_is_jetnets() -> None:
    normalisations = pytest.importorskip("jetnet.datasets", reason="needs the extra [jetnet]").JetNet.fpnd_norm
    particles = load(str(SAMPLE), jets_per_class={"q": 5}).particles
    np.testing.assert_allclose(normalised(particles), normalisations(particles[..., :3]), rtol=1e-5, atol=1e-7)


def test_fpnd_knows_its_class() -> None:
    """150 jets have a large excess, but classes lie much farther apart, and extrapolation takes most of it away."""
    pytest.importorskip("jetnet", reason="needs the extra [jetnet]")
    tops = load(str(SAMPLE), jets_per_class={"t": 150}).particles
    own = fpnd(tops, "t")
    assert own.n_jets == 150
    assert own.extrapolated < own.value < 5
    assert frechet_distance(*statistics(activations(tops)), *real_statistics("q")) > 4 * own.value


def test_fpnd_refuses_other_classes_and_no_jets() -> None:
    with pytest.raises(DataError, match="FPND knows the classes g, q, t, got 'w'"):
        fpnd(np.zeros((10, 30, 4), np.float32), "w")
    with pytest.raises(DataError, match="FPND needs at least 4 jets, got 1"):
        fpnd(np.zeros((1, 30, 4), np.float32), "q")
