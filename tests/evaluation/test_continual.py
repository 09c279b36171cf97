"""The accuracy matrix counts what it should, and what follows from it is what the papers define."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.evaluation.continual import (
    MEASURES,
    AccuracyMatrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_by_task,
    forward_transfer,
    learning_accuracy,
    measures,
    summary,
    tasks_learned,
)
from tests.helpers.processes import run

# Rows: before training, after tasks 1, 2, 3, 4. Task 2 is at its best after task 3, and task 3 after task 4.
R = torch.tensor(
    [
        [0.10, 0.20, 0.30, 0.40],
        [0.90, 0.25, 0.35, 0.30],
        [0.60, 0.80, 0.10, 0.45],
        [0.70, 0.85, 0.75, 0.55],
        [0.50, 0.65, 0.80, 0.95],
    ],
    dtype=torch.float64,
)


def unfinished(learned: int) -> Tensor:
    matrix = R.clone()
    matrix[learned + 1 :] = math.nan
    return matrix


def test_measures_of_a_hand_made_matrix_are_those_worked_out_by_hand() -> None:
    assert average_accuracy(R) == pytest.approx((0.50 + 0.65 + 0.80 + 0.95) / 4)
    after = [0.90, (0.60 + 0.80) / 2, (0.70 + 0.85 + 0.75) / 3, (0.50 + 0.65 + 0.80 + 0.95) / 4]
    assert average_incremental_accuracy(R) == pytest.approx(sum(after) / 4)
    assert learning_accuracy(R) == pytest.approx((0.90 + 0.80 + 0.75 + 0.95) / 4)
    assert backward_transfer(R) == pytest.approx(((0.50 - 0.90) + (0.65 - 0.80) + (0.80 - 0.75)) / 3)
    assert forward_transfer(R) == pytest.approx(((0.25 - 0.20) + (0.10 - 0.30) + (0.55 - 0.40)) / 3)
    assert forgetting(R) == pytest.approx(((0.90 - 0.50) + (0.85 - 0.65) + (0.75 - 0.80)) / 3)
    assert set(MEASURES) == {
        "average_accuracy", "average_incremental_accuracy", "learning_accuracy",
        "backward_transfer", "forward_transfer", "forgetting",
    }  # fmt: skip


def test_forgetting_is_from_the_best_accuracy_and_not_from_that_right_after_learning() -> None:
    assert forgetting_by_task(R).tolist() == pytest.approx([0.40, 0.20, -0.05])
    after_learning = [R[j + 1, j] - R[4, j] for j in range(3)]  # another definition: less backward transfer
    assert forgetting_by_task(R)[1] > after_learning[1]
    assert forgetting(R) != pytest.approx(-backward_transfer(R))


def test_forgetting_counts_accuracy_before_the_task_but_not_before_training() -> None:
    before_its_task = R.clone()
    before_its_task[1, 1] = 0.99
    assert forgetting_by_task(before_its_task)[1] == pytest.approx(0.99 - 0.65)
    before_training = R.clone()
    before_training[0, 1] = 0.99
    assert forgetting_by_task(before_training)[1] == pytest.approx(0.20)


def test_forgetting_is_negative_where_the_last_task_helps_the_others() -> None:
    helped = R.clone()
    helped[4, :3] = 1
    assert forgetting(helped) == pytest.approx(-(0.10 + 0.15 + 0.25) / 3)


def test_of_an_unfinished_sequence_the_tasks_learned_are_measured() -> None:
    two = unfinished(2)
    assert tasks_learned(two) == 2
    assert average_accuracy(two) == pytest.approx(0.70)
    assert average_incremental_accuracy(two) == pytest.approx((0.90 + 0.70) / 2)
    assert learning_accuracy(two) == pytest.approx(0.85)
    assert backward_transfer(two) == pytest.approx(0.60 - 0.90)
    assert forward_transfer(two) == pytest.approx(0.25 - 0.20)
    assert forgetting(two) == pytest.approx(0.90 - 0.60)


@pytest.mark.parametrize("learned", [0, 1])
def test_what_there_is_nothing_to_take_the_mean_of_is_no_number(learned: int) -> None:
    matrix = unfinished(learned)
    transfers = backward_transfer(matrix), forward_transfer(matrix), forgetting(matrix)
    assert all(map(math.isnan, transfers))
    accuracies = average_accuracy(matrix), average_incremental_accuracy(matrix), learning_accuracy(matrix)
    assert accuracies == pytest.approx((0.9,) * 3) if learned else all(map(math.isnan, accuracies))
    assert tasks_learned(torch.full_like(R, math.nan)) == 0


@pytest.mark.parametrize("name", MEASURES)
def test_measures_leave_the_matrix_as_it_is(name: str) -> None:
    matrix = unfinished(3)
    MEASURES[name](matrix)
    assert matrix[:4].equal(R[:4])
    assert matrix[4].isnan().all()


def test_a_summary_has_the_measures_that_are_defined() -> None:
    assert set(summary(R, "aware", "task")) == set(MEASURES)
    after_one = summary(unfinished(1), "aware", "task")
    assert after_one == {  # forgetting and both transfers need a second task
        "average_accuracy": pytest.approx(0.90),
        "average_incremental_accuracy": pytest.approx(0.90),
        "learning_accuracy": pytest.approx(0.90),
    }


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, whether predictions are right, and tasks of 300 images, none of which is of task 1."""
    generator = torch.Generator().manual_seed(0)
    row, task = torch.randint(0, 4, (300,), generator=generator), torch.randint(0, 2, (300,), generator=generator) * 2
    aware = torch.rand(300, generator=generator) < 0.7
    return row, aware, aware & (torch.rand(300, generator=generator) < 0.5), task


def filled(metric: AccuracyMatrix, part: slice = slice(None)) -> AccuracyMatrix:
    row, aware, agnostic, task = images()
    for start in range(0, 300, 7):  # batches of all rows
        for number in range(4):
            chosen = torch.arange(300)[part]
            chosen = chosen[(chosen >= start) & (chosen < start + 7) & (row[chosen] == number)]
            metric.update(number, aware[chosen], agnostic[chosen], task[chosen])
    return metric


def expected() -> dict[str, list[list[float]]]:
    """Image by image."""
    row, aware, agnostic, task = (x.tolist() for x in images())
    result = {}
    for view, right in {"aware": aware, "agnostic": agnostic}.items():
        result[view] = [[math.nan] * 3 for _ in range(4)]
        for i in range(4):
            for j in range(3):
                of = [right[n] for n in range(300) if (row[n], task[n]) == (i, j)]
                if of:
                    result[view][i][j] = sum(of) / len(of)
    return result


def same(found: dict[str, Any]) -> bool:
    return all(
        [*map(list, found[view])] == [pytest.approx(row, abs=1e-15, nan_ok=True) for row in rows]
        for view, rows in expected().items()
    )


def test_the_matrix_is_the_share_of_right_images_of_each_row_and_task() -> None:
    found = filled(AccuracyMatrix(3)).compute()
    assert same(found)
    assert {matrix.dtype for matrix in found.values()} == {torch.float64}
    assert found["aware"][:, 1].isnan().all()  # no images
    assert bool((found["aware"] >= found["agnostic"])[:, [0, 2]].all())


def test_a_scenario_is_about_one_of_the_views() -> None:
    metric = filled(AccuracyMatrix(3))
    for scenario, view in {"task": "aware", "class": "agnostic", "domain": "agnostic"}.items():
        assert metric.of_scenario(scenario)[:, [0, 2]].tolist() == metric.compute()[view][:, [0, 2]].tolist()


@pytest.mark.filterwarnings("error")
def test_a_checkpoint_keeps_the_counts() -> None:
    state = filled(AccuracyMatrix(3)).state_dict()
    assert {(name, value.dtype) for name, value in state.items()} == {
        (name, torch.int64) for name in ("images", "aware", "agnostic")
    }
    restored = AccuracyMatrix(3, sync_on_compute=False)
    restored.update(0, torch.tensor([True]), torch.tensor([True]), torch.tensor([0]))
    restored.compute()
    restored.load_state_dict(state)
    assert same(restored.compute())  # not what it had before
    new = AccuracyMatrix(3)
    new.load_state_dict(state)
    assert same(new.compute())  # without a warning that nothing was counted


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_there_is_not_is_refused(row: int) -> None:
    right = torch.tensor([True])
    with pytest.raises(ValueError, match=f"row is {row}: of 3 tasks there are rows 0 to 3"):
        AccuracyMatrix(3).update(row, right, right, torch.tensor([0]))


def test_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="num_tasks is 0"):
        AccuracyMatrix(0)


def of_this_process() -> Any:
    half = slice(torch.distributed.get_rank(), None, 2)
    found = filled(AccuracyMatrix(3), half).compute(), filled(AccuracyMatrix(3, sync_on_compute=False)).compute()
    return [{view: matrix.tolist() for view, matrix in each.items()} for each in found]


def test_counts_of_two_processes_are_added_unless_each_has_seen_all() -> None:
    for shared, whole in run(of_this_process, processes=2):
        assert same(shared)
        assert same(whole)


def test_what_was_computed_is_not_rounded_with_the_module_that_it_is_a_part_of():
    matrix = AccuracyMatrix(1)
    matrix.update(1, torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.bool), torch.zeros(3).long())
    before = matrix.compute()["aware"]
    assert torch.equal(matrix.to(torch.bfloat16).compute()["aware"].nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    ("view", "scenario", "says"),
    [
        ("aware", "task", True),
        ("aware", "class", True),
        ("aware", "domain", True),
        ("agnostic", "domain", True),
        ("agnostic", "class", False),
        ("agnostic", "task", False),
    ],
)
def test_forward_transfer_is_no_number_where_no_class_of_a_later_task_is_predicted(
    view: str, scenario: str, says: bool
) -> None:
    found = measures(R, view, scenario)
    assert math.isnan(found["forward_transfer"]) != says
    assert ("forward_transfer" in summary(R, view, scenario)) == says
    assert {name for name, value in found.items() if math.isnan(value)} <= {"forward_transfer"}
