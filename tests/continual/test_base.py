"""What every recipe that learns a sequence of tasks does: when tasks begin and end, and what learns."""

import copy
import logging
import math

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from datamodules import Digits, Splits, Tasks, TaskSequence
from recipes import ICaRL, LwF
from recipes.continual import FeatureExtraction, FineTuning, Joint
from recipes.errors import CheckpointMismatch
from recipes.nn import ConvNet, MultiHead, Snapshot, detached
from recipes.optim import WarmupCosine
from tests.continual.sequences import BATCH, STEPS, distance, end, fitted, made, numbers, sequence, trainer
from tests.helpers.processes import run

SCENARIOS = ("task", "class", "domain")


class Watched(FineTuning):
    """Notes, at every step, which task it is of, the learning rate, and what the optimiser knows of a weight."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps, self.begins, self.ends = [], [], []

    def begin_task(self):
        self.begins.append((self.task, self.global_step))

    def end_task(self):
        self.ends.append((self.task, self.global_step, self.training, torch.is_grad_enabled()))

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers().optimizer
        self.steps.append((self.task, batch.task.unique().tolist(), optimizer.param_groups[0]["lr"], optimizer))
        return super().training_step(batch, batch_idx)


def test_all_tasks_are_learned_one_after_the_other_within_one_fit():
    recipe = fitted(Watched)
    assert [(task, *of_batch) for task, of_batch, _, _ in recipe.steps] == [(t, t) for t in range(3) for _ in range(5)]
    assert recipe.begins == [(task, task * STEPS) for task in range(3)]
    assert recipe.ends == [(task, (task + 1) * STEPS, False, False) for task in range(3)]
    matrix = fitted(FineTuning, "task", epochs=4).accuracy_matrix.compute()["aware"]
    assert (matrix[1:].diagonal() > 0.9).all()  # the second and the third task are learned too


def test_optimiser_and_schedule_begin_anew_with_every_task():
    recipe = fitted(Watched, epochs=2, scheduler=lambda o: WarmupCosine(o, warmup_epochs=0))
    assert len({id(optimizer) for *_, optimizer in recipe.steps}) == 3
    steps = 2 * STEPS
    rates = [0.01 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]
    assert [rate for *_, rate, _ in recipe.steps] == pytest.approx(3 * rates)


def test_later_tasks_learn_at_the_factor_that_is_asked_for():
    recipe = fitted(Watched, later_lr_factor=0.1)
    assert [rate for *_, rate, _ in recipe.steps] == pytest.approx(STEPS * [0.01] + 2 * STEPS * [0.001])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_classes_that_have_not_come_have_no_part_in_loss_and_prediction(scenario):
    recipe = made(FineTuning, sequence(scenario))
    recipe.begun = 2
    task = torch.tensor([0, 1])
    allowed = {
        "task": [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]],
        "class": [[1, 1, 1, 1, 0, 0]] * 2,
        "domain": [[1, 1]] * 2,
    }
    assert recipe.allowed(task).int().tolist() == allowed[scenario]
    logits = recipe.logits(torch.randn(2, recipe.feature_dim))
    assert logits.isinf().sum(1).tolist() == [0 if scenario == "domain" else 2] * 2


def test_the_loss_is_the_cross_entropy_over_the_allowed_classes():
    data = sequence("task")
    recipe = made(FineTuning, data)
    recipe.gather = lambda x: x
    recipe.begun = 3
    logits, label, task = torch.randn(4, 6), torch.tensor([0, 3, 2, 5]), torch.tensor([0, 1, 1, 2])
    by_hand = sum(
        torch.logsumexp(logits[i, 2 * t : 2 * t + 2], 0) - logits[i, label[i]] for i, t in enumerate(task.tolist())
    )
    assert recipe.cross_entropy(logits, label, task).item() == pytest.approx(by_hand.item() / 4, rel=1e-6)


class Step(Callback):
    """Keeps the weights before the first step of the third task, and in how far they differ after it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.task == 2 and batch_idx == 0:
            self.before = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.task == 2 and batch_idx == 0:
            after = pl_module.state_dict()
            own = {name for name in after if name.startswith(("encoder.", "head."))}
            self.changed = {name for name in own if not torch.equal(after[name], self.before[name])}


def decayed(p, lr):
    """Weight decay and momentum would move what is frozen but still known to the optimiser."""
    return torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1)


def changed(recipe, scenario, **options):
    """Which parts a step of the third task changes, running statistics included."""
    data, step = sequence(scenario), Step()
    torch.manual_seed(0)
    learner = recipe(ConvNet((4, 6)), data.tasks, optimizer=lambda p: decayed(p, 0.01), **options)
    trainer(callbacks=[step]).fit(learner, data)
    stages = {f"stage {name.split('.')[2]}" for name in step.changed if name.startswith("encoder.")}
    return stages | {f"head {name.split('.')[2]}" for name in step.changed if name.startswith("head.")}


ENCODER = {"stage 0", "stage 1", "stage 4", "stage 5"}  # convolutions and batch norm


@pytest.mark.parametrize(
    ("recipe", "scenario", "options", "parts"),
    [
        (FineTuning, "task", {}, ENCODER | {"head 2"}),
        (FineTuning, "class", {}, ENCODER | {"head 0", "head 1", "head 2"}),
        (FineTuning, "domain", {}, ENCODER | {"head 0"}),
        (FineTuning, "task", {"from_stage": 1}, {"stage 4", "stage 5", "head 2"}),
        (FineTuning, "task", {"from_stage": "head"}, {"head 2"}),
        (FeatureExtraction, "task", {}, {"head 2"}),
        (FeatureExtraction, "class", {}, {"head 2"}),
        (FeatureExtraction, "domain", {}, {"head 0"}),
        (Joint, "task", {}, ENCODER | {"head 0", "head 1", "head 2"}),
        (LwF, "task", {"warmup_epochs": 0}, ENCODER | {"head 0", "head 1", "head 2"}),
    ],
)
def test_a_step_changes_what_is_to_learn_and_nothing_else(recipe, scenario, options, parts):
    assert changed(recipe, scenario, **options) == parts


def test_fine_tuning_from_the_head_on_is_feature_extraction():
    for scenario in SCENARIOS:
        one, other = fitted(FineTuning, scenario, from_stage="head"), fitted(FeatureExtraction, scenario)
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_knowing_the_task_is_never_worse_than_not_knowing_it(scenario):
    for recipe in (FineTuning, LwF, Joint):
        options = {"warmup_epochs": 0} if recipe is LwF else {}
        matrix = fitted(recipe, scenario, **options).accuracy_matrix.compute()
        assert (matrix["aware"] >= matrix["agnostic"]).all()
        assert torch.equal(matrix["aware"], matrix["agnostic"]) == (scenario == "domain")


def test_the_matrix_is_what_the_images_of_each_task_say():
    recipe = fitted(FineTuning, "class").float().eval()
    data = sequence("class")
    data.setup()
    test = data.splits.test
    logits = recipe.head(recipe(test.images(torch.arange(len(test)))))
    matrix = recipe.accuracy_matrix.compute()
    for task in range(3):
        of_task = test.task == task
        aware = logits[of_task][:, 2 * task : 2 * task + 2].argmax(1) + 2 * task == test.label[of_task]
        agnostic = logits[of_task].argmax(1) == test.label[of_task]
        assert matrix["aware"][3, task].item() == pytest.approx(aware.double().mean().item())
        assert matrix["agnostic"][3, task].item() == pytest.approx(agnostic.double().mean().item())


def test_measuring_changes_no_weight_and_no_statistic():
    class Unmeasured(FineTuning):
        def _measure(self, row):
            pass

    one, other = fitted(FineTuning).state_dict(), fitted(Unmeasured).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one if not name.startswith("accuracy_matrix"))


def test_data_without_images_to_measure_on_is_learned_without_a_warning(recwarn):
    class Unmeasured(Digits):
        def load(self):
            splits = super().load()
            return Splits(splits.class_names, splits.train)

    data = TaskSequence(Unmeasured(size=8), num_tasks=5, batch_size=BATCH)
    trainer().fit(made(FineTuning, data), data)
    assert not [warning for warning in recwarn if "AccuracyMatrix" in str(warning.message)]


def test_joint_training_gives_all_tasks_so_far_and_fresh_weights_where_asked():
    class Noted(Joint):
        tasks_of_step = ()
        first = ()

        def training_step(self, batch, batch_idx):
            self.tasks_of_step += (tuple(batch.task.unique().tolist()),)
            if batch_idx == 0:
                self.first += (self.encoder.network[0].weight.detach().clone(),)
            return super().training_step(batch, batch_idx)

    warm, fresh = fitted(Noted), fitted(Noted, fresh=True)
    seen = [len(tasks) for tasks in warm.tasks_of_step]
    assert seen == sorted(seen)
    assert [seen.count(tasks) for tasks in (1, 2, 3)] == [STEPS, 2 * STEPS, 3 * STEPS]
    drawn = [weight.std().item() for weight in fresh.first]
    assert torch.equal(warm.first[0], fresh.first[0])
    assert len(set(drawn)) == 3  # other weights for each task
    again = fitted(Noted, fresh=True)
    assert all(torch.equal(one, other) for one, other in zip(fresh.first, again.first, strict=True))


@pytest.mark.parametrize("recipe", [FineTuning, FeatureExtraction, Joint, LwF])
def test_two_devices_end_as_one(recipe):
    options = {"warmup_epochs": 0} if recipe is LwF else {}
    one = end(recipe, 1, options)
    for other in run(end, recipe, 2, options, processes=2):
        assert distance(other, one) < 1e-10


def test_a_run_saved_after_the_last_step_of_a_task_ends_the_task_when_resumed(tmp_path):
    class SaveLast(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2 * STEPS:
                trainer.save_checkpoint(tmp_path / "end.ckpt")

    whole = fitted(Watched, callbacks=[SaveLast()])
    data = sequence()
    recipe = made(Watched, data)
    trainer().fit(recipe, data, ckpt_path=tmp_path / "end.ckpt")
    assert [task for task, *_ in recipe.ends] == [1, 2]
    assert [task for task, *_ in recipe.steps] == [2] * STEPS
    for name, value in whole.state_dict().items():
        assert torch.equal(value, recipe.state_dict()[name]), name


@pytest.mark.parametrize(
    ("epochs", "theirs", "ours", "message"),
    [
        (3, [4, 1, 1], [2, 2, 2], "resumes at its epoch 4, in task 1, .* or give task 1 at least 4 epochs"),
        (3, [4, 1, 1], [3, 1, 1], "give task 1 at least 4 epochs"),  # the task would be over, and never end
        (3, [1, 4, 1], [1, 2, 9], "in task 2, .* or give task 2 at least 3 epochs"),
        (3, [1, 2, 1], [2, 1, 1], r"the tasks that are over had \[1, 2\] epochs"),
        (3, [4, 1, 1], [5, 2, 3], None),
        (3, [1, 4, 1], [1, 3, 3], None),
        (3, [1, 2, 2], [1, 2, 1], None),
    ],
)
def test_a_resumed_run_learns_every_task_for_its_epochs_or_is_refused(tmp_path, epochs, theirs, ours, message):
    data = sequence(epochs=theirs)
    first = trainer(max_epochs=epochs)
    first.fit(made(Watched, data), data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    data = sequence(epochs=ours)
    recipe, second = made(Watched, data), trainer()
    if message is not None:
        with pytest.raises(CheckpointMismatch, match=message):
            second.fit(recipe, data, ckpt_path=tmp_path / "last.ckpt")
        return
    second.fit(recipe, data, ckpt_path=tmp_path / "last.ckpt")
    tasks = [task for task, number in enumerate(ours) for _ in range(number)]
    assert [task for task, *_ in recipe.steps] == [task for task in tasks[epochs:] for _ in range(STEPS)]
    assert recipe.ended == 3


def test_a_run_saved_within_the_last_epoch_of_a_task_cannot_resume_with_fewer(tmp_path):
    class SaveWithin(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == STEPS + 2:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    fitted(FineTuning, epochs=2, callbacks=[SaveWithin()])
    data = sequence(epochs=1)
    with pytest.raises(CheckpointMismatch, match="at its epoch 2, in task 1, .* at least 2 epochs"):
        trainer().fit(made(FineTuning, data), data, ckpt_path=tmp_path / "within.ckpt")


def test_a_checkpoint_is_tested_whatever_the_epochs_of_the_data(tmp_path):
    data = sequence(epochs=2)
    first = trainer(max_epochs=3)
    first.fit(made(FineTuning, data), data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    data = sequence()
    trainer().test(made(FineTuning, data), data, ckpt_path=tmp_path / "last.ckpt", verbose=False)


def by_task(recipe, data):
    """The accuracy of the present network on each task, by hand."""
    test = data.splits.test
    recipe.eval()
    with torch.no_grad():
        logits = recipe.float().unmasked_logits(recipe(test.images(torch.arange(len(test)))))
    right = logits.masked_fill(~recipe.allowed(test.task), -math.inf).argmax(1) == test.label
    return [right[test.task == task].double().mean().item() for task in range(3)]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 6])
def test_a_test_measures_the_network_that_there_is(scenario, epochs):
    data = sequence(scenario, epochs=2)
    recipe, ours = made(FineTuning, data), trainer(max_epochs=epochs)
    ours.fit(recipe, data)
    (logged,) = ours.test(recipe, data, verbose=False)
    assert [logged[f"test/task_{task}"] for task in (1, 2, 3)] == pytest.approx(by_task(recipe, data), abs=1e-6)
    assert ("test/average_accuracy" in logged) == (epochs % 2 == 0)  # between two tasks it is not measured
    if epochs == 6:
        whole = recipe.accuracy_matrix.of_scenario(scenario)[3].tolist()
        assert [logged[f"test/task_{task}"] for task in (1, 2, 3)] == pytest.approx(whole, abs=1e-6)


def test_the_run_ends_with_its_last_task_whatever_max_steps():
    data = sequence()
    recipe, ours = made(Watched, data), trainer(max_steps=4 * STEPS)
    ours.fit(recipe, data)
    assert len(recipe.steps) == 3 * STEPS
    assert recipe.ends[-1][:2] == (2, 3 * STEPS)


def test_a_snapshot_is_frozen_in_eval_mode_and_takes_buffers_too():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    snapshot = Snapshot(network)
    x = torch.randn(8, 3)
    network(x)
    assert not torch.equal(snapshot(x), network.eval()(x))
    snapshot.take()
    snapshot.train()
    assert torch.equal(snapshot(x), network(x))
    assert not any(module.training for module in snapshot.modules())
    assert not snapshot(x).requires_grad


def test_a_detached_layer_gives_no_gradient_to_what_is_before_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.randn(1, 2)
    with detached(network, ["1"]):
        network(x).sum().backward()
    assert [layer.weight.grad is None for layer in network] == [True, True, False]
    network(x).sum().backward()
    assert network[0].weight.grad is not None


def test_the_heads_stand_side_by_side():
    head = MultiHead(3, (2, 4))
    feature = torch.randn(5, 3)
    assert head.out_features == 6
    apart = torch.cat([head.heads[0](feature), head.heads[1](feature)], 1)
    assert torch.allclose(head(feature), apart, atol=1e-6)
    joined = head.joined()
    assert torch.allclose(joined(feature), apart, atol=1e-6)
    for one, other in zip(head.apart(joined.weight, joined.bias), head.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_is_refused_in_one_line():
    encoder = ConvNet((4,))
    with pytest.raises(ValueError, match="ICaRL is for the scenarios task and class, and .* domain: choose another"):
        ICaRL(encoder, Tasks((2, 2), "domain"))
    with pytest.raises(ValueError, match="FineTuning learns a sequence of tasks: give --data TaskSequence"):
        FineTuning(encoder, None)
    with pytest.raises(ValueError, match="from_stage is 3, and the encoder has 1 stages"):
        FineTuning(encoder, Tasks((2, 2)), from_stage=3)
    with pytest.raises(ValueError, match="warmup_epochs is -1"):
        LwF(encoder, Tasks((2, 2)), warmup_epochs=-1)
    with pytest.raises(ValueError, match="later_lr_factor is 0"):
        LwF(encoder, Tasks((2, 2)), later_lr_factor=0)
    with pytest.raises(ValueError, match="a fresh encoder has nothing to keep"):
        Joint(encoder, Tasks((2, 2)), fresh=True, warmup_epochs=1)
    recipe = made(FineTuning, sequence())
    with pytest.raises(ValueError, match="the data is Digits: FineTuning requires a sequence"):
        trainer().fit(recipe, Digits(size=8, batch_size=BATCH))
    with pytest.raises(ValueError, match="the data has .*task.*, but the recipe was created for .*class"):
        trainer().fit(recipe, sequence("task"))


def test_a_warmup_as_long_as_a_task_is_cut_to_a_tenth_of_it(caplog):
    with caplog.at_level(logging.INFO):
        cut = fitted(LwF, "task", warmup_epochs=3)
    assert "warmup_epochs is 3, and a task has 1 epochs in all: its warm-up is cut to 0 epochs" in caplog.text
    assert (
        distance(dict(numbers(cut.state_dict())), dict(numbers(fitted(LwF, "task", warmup_epochs=0).state_dict()))) == 0
    )
    assert [cut.task_start.warmup_of(epochs) for epochs in (2, 4, 10, 40)] == [0, 3, 3, 3]
