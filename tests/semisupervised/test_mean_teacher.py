import copy
import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from datamodules import Batch, Digits, SemiSupervised
from recipes import MeanTeacher
from recipes.callbacks import ClassReport
from recipes.cli.commands import export
from recipes.distillation import Teacher
from recipes.distillation.layers import outputs
from recipes.nn import MLP, ConvNet, CrossDeviceBatchNorm
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def build(convolutional=False, **arguments):
    """A recipe that learns with SGD, which leaves no doubt about the size of a step."""
    seed_everything(0, verbose=False)
    encoder = ConvNet((4, 8)) if convolutional else MLP(8, hidden=(8,), batch_norm=False)
    return MeanTeacher(
        encoder, 10, **{"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "scheduler": None, **arguments}
    )


def few_labels(**options):
    """88 unlabelled and 8 labelled images in a batch, 13 batches in an epoch."""
    return SemiSupervised(
        Digits(size=8), **{"labelled_per_batch": 8, "labels_per_class": 10, "batch_size": 96, **options}
    )


def recipe_and_batch(step=30, total=100, **arguments):
    """A recipe as it is after some steps, when its teacher is no longer equal to it, and a batch."""
    recipe = build(**arguments).double()
    run = {"global_step": step, "current_epoch": 0, "estimated_stepping_batches": total, "limit_train_batches": 1.0}
    recipe.trainer = SimpleNamespace(world_size=1, **run)
    recipe.log = lambda *_, **__: None
    with torch.no_grad():
        for parameter in recipe.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    data = few_labels(batch_size=24)
    data.setup()
    return recipe, next(iter(data.train_dataloader()))


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def softmax(logits):
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def terms(recipe, batch, batch_idx, consistency):
    """The cross-entropy and the consistency, image after image."""
    views = [recipe.views(batch.image, recipe.key(batch, v).fold_in(batch_idx)) for v in (0, 1)]
    ours = recipe.head(recipe.encoder(recipe.normalize(views[0]))).tolist()
    encoder, head = recipe.teacher.copies
    theirs = head(encoder(recipe.normalize(views[1]))).tolist()
    cross_entropies, distances = [], []
    for student, teacher, label in zip(map(softmax, ours), map(softmax, theirs), batch.label.tolist(), strict=True):
        if label >= 0:
            cross_entropies.append(-math.log(student[label]))
        if consistency == "mse":
            distances.append(sum((p - q) ** 2 for p, q in zip(student, teacher)) / 10)
        else:
            distances.append(sum(q * (math.log(q) - math.log(p)) for p, q in zip(student, teacher)))
    return sum(cross_entropies) / len(cross_entropies), sum(distances) / len(distances)


@pytest.mark.parametrize("consistency", ["mse", "kl"])
@pytest.mark.usefixtures("float64")
def test_the_loss_is_that_of_a_slow_loop_over_the_images(consistency):
    recipe, batch = recipe_and_batch(consistency=consistency, consistency_weight=7.0, rampup=0.4)
    cross_entropy, distance = terms(recipe, batch, 3, consistency)
    weight = 7.0 * math.exp(-5 * (1 - 30 / 40) ** 2)
    assert distance > 1e-3
    assert recipe.training_step(batch, 3).item() == pytest.approx(cross_entropy + weight * distance, rel=1e-10)


@pytest.mark.usefixtures("float64")
def test_labels_that_are_hidden_have_no_influence_on_the_loss():
    recipe, batch = recipe_and_batch()
    data = few_labels(batch_size=24)
    data.setup()
    loss = recipe.training_step(batch, 0)
    data.base.splits.train.label.add_(1).remainder_(10)  # what the labels were is forgotten
    again = next(iter(data.train_dataloader()))
    assert again.index.equal(batch.index)
    assert recipe.training_step(again, 0) == loss
    shown = batch._replace(label=data.base.splits.train.label[batch.index])
    assert recipe.training_step(shown, 0) != loss


@pytest.mark.usefixtures("float64")
def test_no_gradient_goes_into_the_teacher():
    recipe, batch = recipe_and_batch()
    recipe.training_step(batch, 0).backward()
    assert all(parameter.grad is None for parameter in recipe.teacher.parameters())
    assert all(parameter.grad is not None for parameter in [*recipe.encoder.parameters(), *recipe.head.parameters()])


@pytest.mark.usefixtures("float64")
def test_the_consistency_alone_moves_the_student():
    recipe, batch = recipe_and_batch()
    recipe.training_step(batch._replace(label=torch.full_like(batch.label, -1)), 0).backward()
    assert recipe.head.weight.grad.abs().max() > 0


@pytest.mark.usefixtures("float64")
def test_without_a_label_in_the_batch_the_loss_is_the_consistency():
    recipe, batch = recipe_and_batch(consistency_weight=3.0, rampup=0)
    unlabelled = batch._replace(label=torch.full_like(batch.label, -1))
    _, distance = terms(recipe, batch, 0, "mse")
    assert recipe.training_step(unlabelled, 0).item() == pytest.approx(3 * distance, rel=1e-10)


@pytest.mark.usefixtures("float64")
def test_an_image_that_comes_again_in_an_epoch_is_seen_in_other_views():
    recipe, batch = recipe_and_batch()
    assert recipe.training_step(batch, 0) == recipe.training_step(batch, 0)
    assert recipe.training_step(batch, 0) != recipe.training_step(batch, 1)


@pytest.mark.usefixtures("float64")
def test_student_and_teacher_see_two_views():
    seen = []
    recipe, batch = recipe_and_batch(views=lambda image, key: seen.append(key) or image.double() / 255)
    recipe.training_step(batch, 5)
    assert [key.view for key in seen] == [0, 1]
    assert seen[0].seed == seen[1].seed != recipe.key(batch).seed


def test_the_weight_rises_as_a_gaussian_of_the_step_and_stays():
    recipe, _ = recipe_and_batch(rampup=0.4)
    for step in range(100):
        recipe.trainer.global_step = step
        assert recipe.risen() == pytest.approx(math.exp(-5 * max(0, 1 - step / 40) ** 2), rel=1e-12)


def test_without_a_ramp_up_the_weight_is_there_from_the_first_step():
    recipe, _ = recipe_and_batch(step=0, rampup=0)
    assert recipe.risen() == 1


def test_the_teacher_begins_equal_to_the_student_with_its_head():
    recipe = build(convolutional=True)
    encoder, head = recipe.teacher.copies
    for copied, original in ((encoder, recipe.encoder), (head, recipe.head)):
        theirs = original.state_dict()
        assert theirs
        assert all(value.equal(theirs[name]) for name, value in copied.state_dict().items())
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in original.parameters()}


class Steps(Callback):
    """What every step did: τ as the teacher was told, the weight of the consistency, and the student after it."""

    def setup(self, trainer, pl_module, stage):
        self.momenta, self.weights, self.students = [], [], [copy.deepcopy(pl_module.head.weight.detach())]
        update = pl_module.teacher.update
        pl_module.teacher.update = lambda τ: self.momenta.append(τ) or update(τ)

    def on_train_batch_end(self, trainer, pl_module, *_):
        if len(self.students) < trainer.global_step + 1:
            self.students.append(copy.deepcopy(pl_module.head.weight.detach()))
        self.weights.append(trainer.callback_metrics["train/consistency_weight"].item())


def fit(tmp_path, recipe=None, data=None, checkpoint=None, **options):
    recipe, steps = recipe or build(), Steps()
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[steps], **{"limit_val_batches": 0, **options})
    trainer.fit(recipe, data or few_labels(), ckpt_path=checkpoint)
    return recipe, steps, trainer


def expected_momenta(total, rampup, during, after):
    return [min(1 - 1 / (n + 1), during if n - 1 < rampup * total else after) for n in range(1, total + 1)]


LENGTHS = {
    "steps": ({"max_steps": 20}, 20),
    "epochs": ({"max_epochs": 2}, 26),
    "accumulating": ({"max_epochs": 3, "accumulate_grad_batches": 4}, 12),
}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_teacher_moves_once_per_step_by_the_momentum_of_the_step(length, tmp_path):
    options, total = LENGTHS[length]
    recipe = build(rampup=0.5, rampup_momentum=0.8, momentum=0.9)
    _, steps, trainer = fit(tmp_path, recipe, **options)
    assert trainer.global_step == total
    assert steps.momenta == pytest.approx(expected_momenta(total, 0.5, 0.8, 0.9), rel=1e-12)
    assert {0.5, 0.8}.issubset(steps.momenta)


def test_micro_batches_of_a_step_have_one_weight(tmp_path):
    _, steps, _ = fit(tmp_path, build(rampup=1.0), max_epochs=3, accumulate_grad_batches=4)
    of_steps = [100 * math.exp(-5 * (1 - t / 12) ** 2) for t in range(12)]
    an_epoch = [0] * 4 + [1] * 4 + [2] * 4 + [3]
    assert steps.weights == pytest.approx([of_steps[4 * e + i] for e in range(3) for i in an_epoch], rel=1e-5)


def test_a_young_teacher_is_the_mean_of_all_students(tmp_path):
    recipe, steps, _ = fit(tmp_path, build(momentum=0.999, rampup_momentum=0.99), max_steps=15, precision="64-true")
    students = torch.stack(steps.students).double()
    assert len(students) == 16
    torch.testing.assert_close(recipe.teacher.copies[1].weight, students.mean(0), rtol=0, atol=1e-7)


def test_a_run_that_is_resumed_has_the_momenta_and_the_weights_of_the_whole(tmp_path):
    build_it = {"rampup": 0.5, "rampup_momentum": 0.8, "momentum": 0.9}
    _, whole, _ = fit(tmp_path, build(**build_it), max_steps=20)
    _, _, first = fit(tmp_path, build(**build_it), max_steps=9)
    first.save_checkpoint(tmp_path / "nine.ckpt")
    _, rest, _ = fit(tmp_path, build(**build_it), max_steps=20, checkpoint=tmp_path / "nine.ckpt")
    assert rest.momenta == whole.momenta[9:]
    assert rest.weights == whole.weights[9:]


def test_the_teacher_is_in_no_parameter_group_and_in_the_checkpoint(tmp_path):
    recipe, _, trainer = fit(tmp_path, max_steps=1)
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in [*recipe.encoder.parameters(), *recipe.head.parameters()]}
    assert {f"teacher.{name}" for name in recipe.teacher.state_dict()} <= set(recipe.state_dict())


def test_the_teacher_trains_its_own_batch_norm(tmp_path):
    class Modes(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            assert all(module.training for module in pl_module.teacher.modules())

    recipe = build(convolutional=True)
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[Modes()], max_steps=3, limit_val_batches=0)
    trainer.fit(recipe, few_labels())
    theirs = recipe.teacher.copies[0].network[1]
    ours = recipe.encoder.network[1]
    assert theirs.num_batches_tracked == ours.num_batches_tracked == 3
    assert not theirs.running_mean.equal(ours.running_mean)


def fit_on(tmp_path, devices):
    plugins = [CrossDeviceBatchNorm()] if devices > 1 else []
    recipe = build(convolutional=True, momentum=0.9, rampup=0.5)
    data = few_labels(labelled_per_batch=3)  # of two devices, one has more
    options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "plugins": plugins}
    recipe, _, trainer = fit(tmp_path, recipe, data, max_steps=6, precision="64-true", **options)
    state = {name: value.numpy() for name, value in recipe.state_dict().items()}
    return state, {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_two_devices_end_with_student_and_teacher_of_one(tmp_path):
    state, metrics = fit_on(tmp_path, 1)
    for theirs, their_metrics in run(fit_on, tmp_path, 2, processes=2):
        assert theirs.keys() == state.keys()
        for name, value in state.items():
            assert theirs[name] == pytest.approx(value, rel=1e-10, abs=1e-13), name
        assert their_metrics == pytest.approx(metrics, rel=1e-10)
        assert set(metrics) == {"train/loss", "train/supervised_loss", "train/consistency", "train/consistency_weight"}


def test_accuracies_are_those_of_teacher_and_student_and_probabilities_the_teachers(tmp_path):
    recipe, data = build(), few_labels()
    trainer = quiet_trainer(default_root_dir=tmp_path, limit_val_batches=None)
    with torch.no_grad():
        recipe.teacher.copies[1].bias[1] += 100
        recipe.head.bias[8] += 100
    data.setup()
    for split, measure in (("test", trainer.test), ("val", trainer.validate)):
        label = getattr(data.splits, split).label
        measured = measure(recipe, data, verbose=False)[0]
        if split == "val":
            assert measured.pop("val/loss") > 50  # the teacher's: nine of ten images are not of its class
        assert measured == {
            f"{split}/accuracy": pytest.approx((label == 1).double().mean().item()),
            f"{split}/student_accuracy": pytest.approx((label == 8).double().mean().item()),
        }
    (first, *_) = trainer.predict(recipe, data)
    assert (first["probability"].argmax(1) == 1).all()
    torch.testing.assert_close(first["probability"].sum(1), torch.ones(96))
    recipe.eval()
    image = next(iter(data.test_dataloader())).image
    torch.testing.assert_close(first["feature"], recipe.encoder(recipe.normalize(image)))


def test_data_without_labels_is_refused_when_training_starts(tmp_path):
    class Unlabelled(Digits):
        def load(self):
            splits = super().load()
            splits.train.label.fill_(-1)
            return splits

    with pytest.raises(ValueError, match="Unlabelled has 0 labelled training images for 10 classes"):
        fit(tmp_path, data=Unlabelled(size=8), max_steps=1)


class Renamed(Digits):
    def load(self):
        splits = super().load()
        return dataclasses.replace(splits, class_names=("a", *splits.class_names[1:]))


def test_its_checkpoint_knows_the_classes_and_refuses_others(tmp_path):
    _, _, trainer = fit(tmp_path, data=Digits(size=8, batch_size=64), max_steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    names = torch.load(tmp_path / "two.ckpt", weights_only=True)["class_names"]
    assert names == list(Digits(size=8).load().class_names)
    with pytest.raises(ValueError, match=r"the checkpoint knows 10 classes .* and the data has 10 classes \(a, "):
        fit(tmp_path, data=Renamed(size=8, batch_size=64), max_steps=3, checkpoint=tmp_path / "two.ckpt")


def apart():
    """A recipe whose student and teacher classify an image differently."""
    recipe = build(convolutional=True).eval()
    with torch.no_grad():
        recipe.teacher.copies[1].weight.neg_()
    return recipe


def test_the_class_report_is_of_the_teacher(tmp_path):
    recipe, data = apart(), Digits(size=8, batch_size=64)
    trainer = quiet_trainer(default_root_dir=tmp_path, callbacks=[ClassReport(mistakes=0)])
    measured = trainer.test(recipe, data, verbose=False)[0]
    test = data.splits.test
    image = torch.cat([batch.image for batch in data.in_order(test)])
    with torch.no_grad():
        predicted = recipe.classify(image).argmax(1)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for true, found in zip(test.label.tolist(), predicted.tolist()):
        expected[true, found] += 1
    report = json.loads((tmp_path / "classes.json").read_text())
    assert report["confusion"] == expected.tolist()
    assert report["accuracy"] == pytest.approx(measured["test/accuracy"])
    assert measured["test/accuracy"] != measured["test/student_accuracy"]


def test_its_export_gives_the_logits_of_the_teacher(tmp_path, monkeypatch):
    recipe = apart()
    recipe.image_shape = (1, 8, 8)
    monkeypatch.setattr(export, "load", lambda path: recipe)
    (tmp_path / "some.ckpt").touch()
    export.export(tmp_path / "some.ckpt", tmp_path, ["torch"])
    image = torch.rand(3, 1, 8, 8)
    given = torch.export.load(tmp_path / "model.pt2").module()(image)
    encoder, head = recipe.teacher.copies
    torch.testing.assert_close(given, head(encoder(recipe.normalize(image))))
    assert not torch.allclose(given, recipe.logits(recipe(image)))
    assert json.loads((tmp_path / "export.json").read_text())["output"] == "logits [B, classes]"


def test_as_a_teacher_it_gives_its_teachers_logits_also_where_layers_are_read():
    recipe = apart()
    batch = Batch(torch.rand(3, 1, 8, 8), torch.arange(3), torch.arange(3))
    given = outputs(Teacher([recipe], ["mean teacher"]).member, batch, ["feature"])
    torch.testing.assert_close(given["logits"], recipe.classify(batch.image))
    torch.testing.assert_close(given["feature"], recipe(batch.image))


def test_data_whose_labels_are_all_shown_will_do(tmp_path):
    _, steps, _ = fit(tmp_path, data=Digits(size=8, batch_size=64), max_steps=2)
    assert len(steps.momenta) == 2


def test_a_run_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the schedule needs the length of the run"):
        fit(tmp_path, max_epochs=-1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"consistency": "l1"}, "consistency is 'l1': it must be 'mse' or 'kl'"),
        ({"consistency_weight": -1.0}, "consistency_weight is -1.0"),
        ({"consistency_weight": math.inf}, "consistency_weight is inf"),
        ({"rampup": 1.5}, "rampup is 1.5"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"rampup_momentum": -0.5}, "rampup_momentum is -0.5"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        MeanTeacher(**{"encoder": ConvNet((4,)), "num_classes": 10, **arguments})
