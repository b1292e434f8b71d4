"""By whose statistics BatchNorm normalises: modes come back as they were, and what was noted is what was used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scaleaudio.batch_norms import ViewsStatistics, evaluating, norms_of, own_statistics


def batches(num: int) -> list[Tensor]:
    return [k + (k + 1) * torch.randn(40, 3, generator=torch.Generator().manual_seed(k)) for k in range(num)]


def frozen_second() -> nn.Sequential:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    net[1].eval()
    return net


def test_every_part_is_in_its_own_mode_again_also_after_an_error() -> None:
    net = frozen_second()
    for treatment in (evaluating(net), own_statistics(*norms_of(net)), ViewsStatistics(norms_of(net)).normalising()):
        with pytest.raises(KeyError), treatment:
            raise KeyError
        assert [m.training for m in net.modules()] == [True, True, False]
        assert all(norm.track_running_stats for norm in norms_of(net))


def test_another_batch_is_normalised_by_what_the_first_was_and_leaves_no_trace() -> None:
    norm, (first, other) = nn.BatchNorm1d(3), batches(2)
    views = ViewsStatistics([norm])
    with views.noting(first.shape):
        normalised = norm(first)
    running = norm.running_mean, norm.running_var
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with views.normalising():
        torch.testing.assert_close(norm(first), normalised)
        expected = (other - first.mean(0)) / (first.var(0, correction=0) + norm.eps).sqrt()
        torch.testing.assert_close(norm(other), expected)
    assert norm.running_mean is running[0] and norm.running_var is running[1]
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_the_statistics_of_chunks_are_averaged_and_the_last_weighs_most() -> None:
    norm, (one, two) = nn.BatchNorm1d(3), batches(2)
    views = ViewsStatistics([norm])
    with views.noting(torch.Size([80, 3])):
        norm(one)
        norm(two)
    with views.normalising():
        assert norm.running_mean is not None and norm.running_var is not None
        torch.testing.assert_close(norm.running_mean, (0.9 * one.mean(0) + two.mean(0)) / 1.9)
        variances = [chunk.var(0, correction=0) for chunk in (one, two)]
        torch.testing.assert_close(norm.running_var, (0.9 * variances[0] + variances[1]) / 1.9)


def test_however_small_a_batch_is_beside_the_running_statistics_it_is_noted() -> None:
    norm, quiet = nn.BatchNorm1d(3, momentum=0.01), 1e-2 * batches(1)[0]
    nn.init.constant_(norm.running_var, 100.0)  # type: ignore[arg-type]
    views = ViewsStatistics([norm])
    with views.noting(quiet.shape):
        normalised = norm(quiet)
    with views.normalising():
        torch.testing.assert_close(norm(quiet), normalised)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_running_statistics_move_as_ever(in_place: bool) -> None:
    plain, noted = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    views = ViewsStatistics([noted], in_place=in_place)
    for batch in batches(3):
        plain(batch)
        with views.noting(batch.shape):
            noted(batch)
        with views.normalising():
            noted(batch + 1)
    torch.testing.assert_close(noted.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-7)


def test_a_second_batch_before_the_backward_pass_changes_no_gradient() -> None:
    grads = []
    for twice in (False, True):
        net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
        nn.init.ones_(net[1].weight)  # type: ignore[arg-type]
        views, (first, other) = ViewsStatistics(norms_of(net)), batches(2)
        with views.noting(first.shape):
            net(first)
        with views.normalising():
            loss = net(other).square().sum()
        if twice:
            with views.noting(other.shape):
                net(other)
        loss.backward()
        grads.append(net[1].weight.grad)
    assert grads[0] is not None and torch.equal(grads[0], grads[1])


def test_a_compiled_network_notes_too_whatever_ran_before() -> None:
    net, batch = nn.Sequential(nn.BatchNorm1d(3)), batches(1)[0]
    net.compile(backend="eager")
    net(batch)
    views = ViewsStatistics(norms_of(net))
    with views.noting(batch.shape):
        normalised = net(batch)
    with views.normalising():
        torch.testing.assert_close(net(batch), normalised)


def test_a_frozen_norm_and_one_that_is_not_used_keep_their_running_statistics() -> None:
    net, (first, other) = frozen_second(), batches(2)
    views = ViewsStatistics([*norms_of(net), nn.BatchNorm1d(5)])
    with views.noting(first.shape):
        net(first)
    with views.normalising():
        found = net(other)
    expected = (other - first.mean(0)) / (first.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(found, expected / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=0.0), nn.BatchNorm1d(3, track_running_stats=False)],
)
def test_a_norm_that_keeps_no_moving_statistics_is_refused(norm: nn.BatchNorm1d) -> None:
    with pytest.raises(ValueError, match=r"negatives\.batch_norm views: .* set negatives\.batch_norm to shared"):
        ViewsStatistics([norm])
