"""The probes, on points whose classes are known."""

import numpy as np
import pytest

from scaleaudio.evaluate.probe import (
    FIXED_C,
    GRID_OF_C,
    Labels,
    Matrix,
    bootstrap_interval,
    choose_c,
    linear_probes,
    nearest_neighbours,
    standardise,
)


def clouds(num_per_class: int, *, spread: float, seed: int) -> tuple[Matrix, Labels]:
    """Three classes around the corners of a triangle in 6 dimensions."""
    rng = np.random.default_rng(seed)
    label_N = np.repeat(["a", "b", "c"], num_per_class)
    corner_ND = np.eye(6)[np.repeat([0, 1, 2], num_per_class)]
    return corner_ND + spread * rng.standard_normal((len(label_N), 6)), label_N


def test_standardised_training_clips_have_mean_0_and_variance_1_and_test_clips_the_same_scale() -> None:
    train_ND, _ = clouds(50, spread=0.2, seed=0)
    train_ND[:, 5] = 7.0  # a dead dimension stays finite
    scaled_ND, again_ND = standardise(train_ND, train_ND + 1)
    assert np.allclose(scaled_ND[:, :5].mean(0), 0) and np.allclose(scaled_ND[:, :5].std(0), 1)
    assert np.allclose(again_ND[:, :5] - scaled_ND[:, :5], 1 / train_ND[:, :5].std(0))
    assert np.isfinite(again_ND).all()


def test_both_probes_read_classes_that_lie_apart() -> None:
    train_ND, label_N = clouds(30, spread=0.1, seed=0)
    test_ND, true_N = clouds(30, spread=0.1, seed=1)
    near = nearest_neighbours(train_ND, label_N, test_ND)
    linear = linear_probes(train_ND, label_N, np.full(90, ""), test_ND, seed=0)
    assert near.setting == "k=20" and np.mean(near.label == true_N) > 0.98
    assert all(np.mean(guess.label == true_N) > 0.98 for guess in linear.values())


def test_shuffled_labels_score_like_chance() -> None:
    train_ND, label_N = clouds(100, spread=0.1, seed=0)
    test_ND, true_N = clouds(100, spread=0.1, seed=1)
    shuffled_N = np.random.default_rng(2).permutation(label_N)
    guess = linear_probes(train_ND, shuffled_N, np.full(300, ""), test_ND, seed=0)["linear_c0.05"]
    assert 0.1 < np.mean(guess.label == true_N) < 0.6


def test_one_clip_a_class_is_enough_for_the_nearest_neighbour_and_the_fixed_probe() -> None:
    train_ND, label_N = clouds(1, spread=0.0, seed=0)
    test_ND, true_N = clouds(10, spread=0.05, seed=1)
    near = nearest_neighbours(train_ND, label_N, test_ND)
    linear = linear_probes(train_ND, label_N, label_N, test_ND, seed=0)
    assert near.setting == "k=1" and (near.label == true_N).all()
    assert list(linear) == ["linear_c0.05"] and (linear["linear_c0.05"].label == true_N).all()


def test_c_is_chosen_across_groups_not_within_them() -> None:
    # Dimension 1 names the class, but otherwise in each group: only folds that part groups see through it.
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 20)
    label = np.tile([0, 1], 60)
    shortcut = 3.0 * (group * 2 + label == np.arange(12)[:, None]).T
    z_ND = np.column_stack([label + rng.standard_normal(120), shortcut])
    names = np.array(["a", "b"])[label]
    across = choose_c(z_ND, names, group.astype(str), seed=0)
    within = choose_c(z_ND, names, np.full(120, ""), seed=0)
    assert across < within


def test_groups_of_one_class_each_do_not_leave_it_out_of_the_inner_training_part() -> None:
    train_ND, label_N = clouds(30, spread=0.6, seed=0)
    without = choose_c(train_ND, label_N, np.full(90, ""), seed=0)
    assert choose_c(train_ND, label_N, label_N, seed=0) == without > min(GRID_OF_C)


def test_the_chosen_c_is_one_of_the_grid_and_the_fixed_one_is_in_it() -> None:
    train_ND, label_N = clouds(30, spread=1.0, seed=0)
    assert choose_c(train_ND, label_N, np.full(90, ""), seed=0) in GRID_OF_C
    assert FIXED_C in GRID_OF_C


@pytest.mark.parametrize("num_right", [100, 400, 800])
def test_the_interval_is_that_of_resampled_clips(num_right: int) -> None:
    right_N = np.arange(1000) < num_right
    low, high = bootstrap_interval(right_N, seed=1)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(right_N, 1000).mean() for _ in range(1000)]
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, (2.5, 97.5))), abs=0.006)
    assert bootstrap_interval(right_N, seed=1) == (low, high) != bootstrap_interval(right_N, seed=2)
