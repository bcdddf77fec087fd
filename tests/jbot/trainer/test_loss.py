import math

import pytest
import torch

from jbot.trainer.loss import (
    cls_loss,
    cross_entropy,
    entropy,
    koleo_loss,
    log_predictions,
    particle_loss,
    teacher_targets,
)


def test_teacher_targets_are_centered_and_sharpened():
    projected, center = torch.tensor([0.5, 0.1]), torch.tensor([0.2, 0.1])
    low = 1 / (1 + math.exp(0.3 / 0.04))
    torch.testing.assert_close(teacher_targets(projected, center, 0.04), torch.tensor([1 - low, low]))


def test_cross_entropy_by_hand():
    student = log_predictions(torch.tensor([[0.0, math.log(3) * 0.1]]), 0.1)
    rows = cross_entropy(torch.tensor([[0.25, 0.75]]), student)
    torch.testing.assert_close(rows, torch.tensor([-0.25 * math.log(0.25) - 0.75 * math.log(0.75)]))


def test_cls_loss_crosses_the_views():
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    targets = torch.stack((u, v))[None, :, None]  # (1, 2, 1, 2)
    student_u, student_v = torch.tensor([0.0, 5.0]), torch.tensor([5.0, 0.0])
    student = log_predictions(torch.stack((student_u, student_v))[None, :, None], 0.1)
    crossed = cls_loss(targets, student)
    assert crossed.item() < 1e-6  # the student's u predicts the teacher's v
    straight = cls_loss(targets, student.flip(1))
    assert straight.item() == pytest.approx(50, rel=1e-3)


def test_particle_loss_weighs_rows():
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    student = log_predictions(torch.zeros(1, 3, 2), 0.1)
    weight = torch.tensor([[0.25, 0.25, 0.0]])
    torch.testing.assert_close(particle_loss(targets, student, weight), torch.tensor([0.5 * math.log(2)]))


def test_koleo_by_hand():
    # Unit vectors at 0, 90 and 180 degrees: each is sqrt(2) from its nearest.
    cls = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]])
    torch.testing.assert_close(koleo_loss(cls), torch.tensor([-0.5 * math.log(2)]))


def test_koleo_is_per_trial_and_needs_two_jets():
    cls = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(koleo_loss(cls), torch.cat([koleo_loss(cls[:1]), koleo_loss(cls[1:])]))
    with pytest.raises(ValueError, match="at least two jets in a batch, got 1"):
        koleo_loss(cls[:, :1])


def test_koleo_of_equal_jets_is_finite():
    cls = torch.ones(1, 3, 4, requires_grad=True)
    loss = koleo_loss(cls)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(cls.grad).all()


def test_entropy_limits():
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([1.0, 0.0])).item() == 0
