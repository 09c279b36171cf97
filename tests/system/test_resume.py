"""A run that is killed within an epoch and resumed ends as if nothing had happened: every recipe, in float64."""

import math

import pytest
import yaml

from tests.system.exactness import (
    ACCUMULATED,
    BATCHES,
    CASES,
    IN_TASKS,
    KILLED,
    SAVE_EVERY,
    STEPS,
    STEPS_OF_EPOCH,
    difference,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

DONE = KILLED["epoch"] * STEPS_OF_EPOCH + KILLED["batch"] // ACCUMULATED  # whole steps when a run is killed
SAVED = DONE // SAVE_EVERY * SAVE_EVERY


@pytest.fixture
def killed(case, runs):
    """A run that loads its images in workers, which are ahead of it, and is killed within a step."""
    return runs(case, killed=KILLED, data__num_workers=2)


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_workers_that_is_killed_and_resumed_without_ends_with_the_same_bits(case, killed, runs, measured):
    resumed = runs(case, after=killed.path)
    measured[case]["kill_and_resume"] = difference(resumed, runs(case))
    assert measured[case]["kill_and_resume"] == 0
    assert KILLED["batch"] % ACCUMULATED
    assert killed.checkpoint["global_step"] == SAVED < DONE
    assert int(resumed.rows[0]["step"]) == SAVED
    assert resumed.checkpoint["global_step"] == STEPS


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_on_one_device_and_resumed_on_two_ends_as_on_one(case, runs, measured):
    resumed = runs(case, processes=2, after=runs(case).middle)
    assert int(resumed.rows[0]["step"]) == SAVED
    measured[case]["resume_on_two"] = difference(resumed, runs(case))
    assert measured[case]["resume_on_two"] < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_stopped_on_two_devices_and_resumed_on_one_ends_as_on_one(case, runs, measured):
    resumed = runs(case, after=runs(case, processes=2).middle)
    assert int(resumed.rows[0]["step"]) == SAVED
    measured[case]["resume_on_one"] = difference(resumed, runs(case))
    assert measured[case]["resume_on_one"] < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_options_of_a_resumed_run_act_and_all_else_continues(case, killed, runs):
    whole = runs(case)
    optimizer = yaml.safe_load(killed.checkpoint["config"])["model"]["init_args"]["optimizer"]["init_args"]
    resumed = runs(
        case,
        after=killed.path,
        model__optimizer__lr=optimizer["lr"] / 8,
        model__optimizer__weight_decay=0.125,
        trainer__callbacks__patience=50,
    )
    rates = [rate / 8 for rate in whole.column("lr")[SAVED:]]
    assert resumed.column("lr") == pytest.approx(rates, rel=1e-12)
    groups = resumed.checkpoint["optimizer_states"][0]["param_groups"]
    decays = {group["weight_decay"] for group in groups if not group.get("lars_exclude")}
    assert decays == {0.125}
    assert _interference(resumed) == {"patience": 50, "batches": _interference(whole)["batches"]}
    assert _steps(resumed) == _steps(whole)


def _interference(run):
    (state,) = (state for name, state in run.checkpoint["callbacks"].items() if "Interference" in name)
    return state


def _steps(run):
    """How many steps each parameter has taken, where the optimiser counts them."""
    return [state.get("step") for state in run.checkpoint["optimizer_states"][0]["state"].values()]


@pytest.mark.parametrize("case", [case for case in CASES if case not in IN_TASKS])  # whose schedules end with a task
def test_the_last_batch_of_an_epoch_is_a_step_and_the_schedule_knows_it(case, runs):
    run = runs(case)
    rates = run.column("lr")
    assert run.checkpoint["global_step"] == len(rates) == STEPS
    decay = STEPS - STEPS_OF_EPOCH
    after_warmup = [max(rates) * (1 + math.cos(math.pi * t / decay)) / 2 for t in range(decay)]
    assert rates[STEPS_OF_EPOCH:] == pytest.approx(after_warmup, rel=1e-12)


def test_a_run_of_whole_epochs_is_resumed_where_it_was(runs):
    whole = {"trainer__limit_train_batches": "null", "data__batch_size": 1257 // BATCHES}
    killed = runs(CASES[0], killed=KILLED, **whole)
    assert killed.checkpoint["global_step"] == SAVED
    assert difference(runs(CASES[0], after=killed.path, **whole), runs(CASES[0], **whole)) == 0


@pytest.mark.parametrize("case", CASES[:1])
def test_a_run_whose_steps_have_one_batch_ends_with_the_same_bits(case, runs):
    plain = {"trainer__accumulate_grad_batches": 1, "trainer__max_steps": 2 * STEPS}
    killed = runs(case, killed=KILLED, **plain)
    assert killed.checkpoint["global_step"] == (BATCHES + KILLED["batch"]) // SAVE_EVERY * SAVE_EVERY
    assert difference(runs(case, after=killed.path, **plain), runs(case, **plain)) == 0


def test_metrics_of_the_killed_run_and_of_the_resumed_one_make_up_those_of_the_whole(runs):
    killed, whole = runs(CASES[0], killed=KILLED, data__num_workers=2), runs(CASES[0])
    resumed = runs(CASES[0], after=killed.path)
    for name in ("train/loss", "lr", "val/knn", "val/effective_rank"):
        before = [float(row[name]) for row in killed.rows if int(row["step"]) < SAVED and row[name]]
        assert [*before, *resumed.column(name)] == whole.column(name)
        assert whole.column(name)
