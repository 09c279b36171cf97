import pytest
import torch

from recipes.evaluation.few_labels import few_label_draws


def test_draws_are_balanced_and_never_take_an_image_twice_or_without_label() -> None:
    labels = torch.tensor([2, -1, 0, 1, 2, 0, -1, 1, 1, 2, 0, 0])
    draws = few_label_draws(labels, 3, 2, 30)
    assert draws.shape == (30, 6)
    for rows in draws:
        assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(rows.unique()) == 6


def test_draws_are_a_function_of_the_seed_alone() -> None:
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    first = few_label_draws(labels, 10, 5, 20, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(few_label_draws(labels, 10, 5, 20, seed=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(few_label_draws(labels, 10, 5, 7, seed=3), first[:7])
    assert not torch.equal(few_label_draws(labels, 10, 5, 20, seed=4), first)
    assert len({tuple(rows.tolist()) for rows in first}) == 20


def test_draws_take_every_image_equally_often() -> None:
    draws = few_label_draws(torch.zeros(20, dtype=torch.int64), 1, 5, 4000)
    count = draws.flatten().bincount(
        minlength=20
    )  # binomial: mean 1000, standard deviation sqrt(4000 · 1/4 · 3/4) = 27
    assert (count - 1000).abs().max() < 5 * 27


def test_draws_name_the_class_that_has_too_few_images() -> None:
    labels = torch.tensor([0, 0, 1, -1])
    with pytest.raises(ValueError, match=r"class 1 \(cat\) has 1 labelled images, a draw needs 2"):
        few_label_draws(labels, 2, 2, 20, names=["dog", "cat"])
    with pytest.raises(ValueError, match="class 2 has 0 labelled images"):
        few_label_draws(labels, 3, 1, 20)
