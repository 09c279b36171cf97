from dataclasses import replace

import torch
from torch import nn

from recipes.evaluation.budget import (
    FREE,
    Plan,
    Task,
    affordable,
    cost,
    forward_operations,
    points_of_map,
    training_operations,
)

SMALL = Task(bank=1257, test=360, classes=10, forward=5e6, widths=(128, 128, 256), passes=2)
MANY = Task(bank=4800, test=600, classes=200, forward=2e7, widths=(128, 128, 3072), passes=2)
HUGE = Task(bank=1_200_000, test=50_000, classes=10_000, forward=4e9, widths=(2048, 2048, 3072), passes=2)


def test_operations_of_a_forward_pass_are_those_of_its_matrices() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 5, bias=False))
    assert forward_operations(network, (3, 4, 4)) == 2 * 16 * 8 * 3 * 9 + 2 * 8 * 16 * 5
    assert network.training


def test_a_small_data_set_is_measured_in_full() -> None:
    plan = affordable(SMALL, FREE * 0.4, 20, (1, 5))
    assert (plan.every, plan.draws, plan.rows, plan.few_labels) == (1, 20, 3, (1, 5))


def test_without_a_limit_everything_is_measured() -> None:
    assert affordable(HUGE, float("inf"), 20, (1, 5)).cost == cost(HUGE, Plan(1, 20, 3, (1, 5)))


def test_a_plan_costs_no_more_than_its_budget_where_a_smaller_one_exists() -> None:
    for task in (SMALL, MANY, HUGE):
        full = cost(task, Plan(1, 20, 3, (1, 5)))
        smallest = affordable(task, 0, 20, (1, 5))
        for budget in torch.logspace(-3, 0.1, 30).tolist():
            plan = affordable(task, budget * full, 20, (1, 5))
            assert plan.cost <= max(budget * full, smallest.cost)


def test_a_larger_budget_measures_no_less() -> None:
    costs = [affordable(MANY, budget, 20, (1, 5)).cost for budget in (1e9, 1e10, 1e11, 1e12, 1e13)]
    assert costs == sorted(costs)


def test_the_bank_keeps_two_images_of_each_class_and_500() -> None:
    assert MANY.bank / affordable(MANY, 0, 20, ()).every >= 500
    assert HUGE.bank / affordable(HUGE, 0, 20, ()).every >= 20_000


def test_one_epoch_of_200_classes_is_measured_within_a_quarter_of_its_training() -> None:
    training = training_operations(images=4800, forward=MANY.forward)
    at_the_end = affordable(MANY, 0.25 * 0.4 * training, 20, (1, 5))
    while_training = affordable(replace(MANY, widths=(128,), passes=1), 0.25 * 0.4 * training, 20, ())
    assert at_the_end.cost + while_training.cost <= 0.25 * training
    assert at_the_end.every > 1


def test_a_map_has_as_many_points_as_can_be_paid_for() -> None:
    assert points_of_map(float("inf"), 1000) == 1000
    assert points_of_map(3e10, 1000) == 300
    assert points_of_map(0, 1000) == 100
    assert points_of_map(0, 60) == 60
