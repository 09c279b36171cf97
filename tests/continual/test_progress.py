"""A run that is shorter than its sequence names the tasks that it does not train."""

import logging

import pytest
from lightning.pytorch import Callback

from recipes.continual import FineTuning, Joint
from recipes.continual.progress import untrained
from tests.continual.sequences import STEPS, made, sequence, trainer


def lines(caplog, recipe=FineTuning, **options):
    """What a run of three tasks of two epochs tells of its length, before and after; and how many tasks are over."""
    data = sequence(epochs=2)
    learner = made(recipe, data)
    with caplog.at_level(logging.INFO):
        trainer(**options).fit(learner, data)
    told = [record.getMessage() for record in caplog.records]
    before = [line for line in told if "the run stops before" in line]
    after = [line for line in told if "tasks trained: " in line]
    return before, after, learner.ended


@pytest.mark.parametrize(
    ("options", "limit", "planned", "ended", "after"),
    [
        ({"max_epochs": 1}, "max_epochs is 1", "tasks 1 to 3 are", 0, "task 1 not to the end, tasks 2 to 3 not at all"),
        ({"max_epochs": 4}, "max_epochs is 4", "task 3 is", 2, "task 3 not at all"),
        ({"max_epochs": 5}, "max_epochs is 5", "task 3 is", 2, "task 3 not to the end"),
        ({"max_steps": 10}, "max_steps is 10", "tasks 2 to 3 are", 1, "tasks 2 to 3 not at all"),
        ({"max_steps": 15}, "max_steps is 15", "tasks 2 to 3 are", 1, "task 2 not to the end, task 3 not at all"),
        ({"max_steps": 9, "limit_train_batches": 2}, "max_steps is 9", "task 3 is", 2, "task 3 not to the end"),
        ({"max_steps": 9, "accumulate_grad_batches": 3}, "max_steps is 9", "task 3 is", 2, "task 3 not to the end"),
        (
            {"max_epochs": 2, "max_steps": 12},
            "max_epochs is 2 and max_steps is 12",
            "tasks 2 to 3 are",
            1,
            "tasks 2 to 3 not at all",
        ),
    ],
)
def test_a_shorter_run_names_what_it_does_not_train_before_and_after(caplog, options, limit, planned, ended, after):
    told = f"{limit}, and the 3 tasks take 6 epochs: the run stops before {planned} trained to the end"
    assert lines(caplog, **options) == ([told], [f"{ended} of 3 tasks trained: {after}"], ended)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_epochs": 6}, {"max_steps": 6 * STEPS}, {"max_steps": 100}])
def test_a_run_of_all_tasks_tells_nothing(caplog, options):
    assert lines(caplog, **options) == ([], [], 3)


@pytest.mark.slow
def test_steps_are_those_of_the_images_that_a_recipe_asks_for(caplog):
    steps = 2 * (1 + 2 + 3) * STEPS
    assert lines(caplog, Joint, max_steps=steps) == ([], [], 3)
    before, *_ = lines(caplog, Joint, max_steps=steps - 1)
    assert "task 3 is" in before[0]


@pytest.mark.slow
def test_a_resumed_run_tells_what_is_left(caplog, tmp_path):
    class SaveThird(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "third.ckpt")

    data = sequence(epochs=2)
    trainer(max_epochs=3, callbacks=[SaveThird()]).fit(made(FineTuning, data), data)
    caplog.clear()
    learner, data = made(FineTuning, data), sequence(epochs=2)
    with caplog.at_level(logging.INFO):
        trainer(max_steps=5 * STEPS).fit(learner, data, ckpt_path=tmp_path / "third.ckpt")
    assert "max_steps is 25, and the 3 tasks take 6 epochs: the run stops before task 3 is trained" in caplog.text
    assert "2 of 3 tasks trained: task 3 not to the end" in caplog.text


def test_a_test_of_an_unfinished_network_names_it_too(caplog, tmp_path):
    data = sequence()
    first = trainer(max_epochs=1)
    first.fit(made(FineTuning, data), data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    learner, data = made(FineTuning, data), sequence()
    with caplog.at_level(logging.INFO):
        (logged,) = trainer().test(learner, data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert "test/average_accuracy" in logged
    assert "1 of 3 tasks trained: tasks 2 to 3 not at all" in caplog.text


def test_all_tasks_trained_is_no_line():
    assert untrained(3, 3, 3) is None
    assert untrained(0, 0, 1) == "0 of 1 tasks trained: task 1 not at all"
