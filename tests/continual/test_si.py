import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.plugins import MixedPrecision
from torch.nn import functional as F

from datamodules import TaskSequence
from recipes.continual import FineTuning
from recipes.continual.si import SI
from recipes.nn import MLP
from tests.continual.sequences import Stripes
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

IMAGES = 16  # of each class
LABEL = torch.arange(4).repeat_interleave(IMAGES)
TASK = 2 * IMAGES
EPOCHS = 12


class Recorded(SI):
    """Notes ω at the end of each task."""

    def end_task(self):
        self.recorded = [*getattr(self, "recorded", []), [ω.clone() for ω in self.path]]
        super().end_task()


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9)


def fit(make, devices=1, batch_size=TASK, **options):
    """Learns two tasks of two classes, from all images of a task at a time."""
    seed_everything(0, verbose=False)
    data = TaskSequence(Stripes(LABEL), num_tasks=2, scenario="task", epochs_per_task=EPOCHS, batch_size=batch_size)
    recipe = make(MLP(4, hidden=(8,), batch_norm=False), data.tasks)
    defaults = {"max_epochs": -1} if "plugins" in options else {"max_epochs": -1, "precision": "64-true"}
    trainer = quiet_trainer(devices=devices, **{**defaults, **options})
    trainer.fit(recipe, data)
    return recipe


def by_hand(si_weight, damping, lr, clip=None):
    """The same, written out: Ω, θ and ω of each task, and how much the cross-entropy of each task fell."""
    seed_everything(0, verbose=False)
    data = TaskSequence(Stripes(LABEL), num_tasks=2, scenario="task", epochs_per_task=EPOCHS, batch_size=TASK)
    recipe = SI(MLP(4, hidden=(8,), batch_norm=False), data.tasks)
    data.setup()
    recipe.double()
    mean, std = (torch.tensor(of[0]) for of in (data.mean, data.std))  # they are float32 in the recipe
    image = (data.splits.train.images(torch.arange(2 * TASK)).double() / 255 - mean.double()) / std.double()
    θ = [*recipe.encoder.parameters(), *recipe.head.parameters()]

    def cross_entropy(task):
        rows = slice(task * TASK, (task + 1) * TASK)
        logits = recipe.head(recipe.encoder(image[rows]))[:, 2 * task : 2 * task + 2]
        return F.cross_entropy(logits, data.splits.train.label[rows] - 2 * task)

    strength, path, fallen = [torch.zeros_like(p) for p in θ], [], []
    for task in (0, 1):
        anchor = [p.detach().clone() for p in θ]
        momentum = [torch.zeros_like(p) for p in θ]
        ω = [torch.zeros_like(p) for p in θ]
        before = cross_entropy(task).item()
        for _ in range(EPOCHS):
            gradients = torch.autograd.grad(cross_entropy(task), θ, materialize_grads=True)
            with torch.no_grad():
                full = [g + 2 * si_weight * s * (p - a) for g, s, p, a in zip(gradients, strength, θ, anchor)]
                norm = sum(g.square().sum() for g in full).sqrt()
                scale = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
                for p, g, f, m, o in zip(θ, gradients, full, momentum, ω):
                    m.mul_(0.9).add_(f * scale)
                    p.sub_(lr * m)
                    o.add_(lr * m * g)
        fallen.append(before - cross_entropy(task).item())
        path.append(ω)
        with torch.no_grad():
            strength = [(s + o / ((p - a) ** 2 + damping)).clamp(min=0) for s, o, p, a in zip(strength, ω, θ, anchor)]
    return strength, θ, path, fallen


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({}, None),
        ({"batch_size": TASK // 2, "accumulate_grad_batches": 2}, None),
        ({"gradient_clip_val": 0.3}, 0.3),
    ],
)
def test_two_tasks_are_those_of_the_method_written_out(options, clip):
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, 2.0, 0.01, optimizer=sgd(0.1)), **options)
    strength, θ, path, _ = by_hand(2.0, 0.01, 0.1, clip)
    assert_equal(recipe.held, [p.detach() for p in θ])
    assert_equal(recipe.penalty.weight, strength)
    assert_equal(recipe.penalty.anchor, [p.detach() for p in θ])
    for recorded, expected in zip(recipe.recorded, path, strict=True):
        assert_equal(recorded, expected)
    assert sum(s.sum() for s in strength) > 0.1
    assert not any(ω.any() for ω in recipe.path)


class Watched(SI):
    """Notes the gradients in ω of each step, and those of the cross-entropy of its batches."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches, self.noted = [], []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        ours = self._gradients
        with self.trainer.precision_plugin.forward_context():
            images = [self.training_logits(batch.image) for batch in self.batches]
        losses = [self.cross_entropy(x, batch.label, batch.task) for x, batch in zip(images, self.batches, strict=True)]
        expected = torch.autograd.grad(sum(losses) / 3, self.held, materialize_grads=True)
        self.noted.append((len(self.batches), ours, expected))
        self.batches = []


def test_no_share_of_the_penalty_is_in_the_path_where_accumulation_does_not_divide_an_epoch():
    recipe = fit(
        lambda encoder, tasks: Watched(encoder, tasks, 100.0, 0.01, optimizer=sgd(0.01)),
        batch_size=TASK // 4,
        accumulate_grad_batches=3,
    )
    assert [count for count, *_ in recipe.noted] == [3, 1] * 2 * EPOCHS
    for _, ours, expected in recipe.noted:
        assert_equal(ours, expected)


@pytest.mark.parametrize("si_weight", [0.0, 100.0])
def test_the_path_integral_is_how_much_the_cross_entropy_of_a_task_fell(si_weight):
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, si_weight, 1e-3, optimizer=sgd(1e-3)))
    *_, fallen = by_hand(si_weight, 1e-3, 1e-3)
    assert min(fallen) > 0.01
    for ω, expected in zip(recipe.recorded, fallen, strict=True):
        assert sum(each.sum() for each in ω).item() == pytest.approx(expected, rel=0.01)


def test_the_path_of_the_first_task_starts_where_training_does():
    class Loaded(Recorded):
        def setup(self, stage):
            super().setup(stage)
            with torch.no_grad():
                for parameter in self.held:  # such as by load_state_dict
                    parameter.fill_(0.125)

        def end_task(self):
            self.starts = [*getattr(self, "starts", []), [start.clone() for start in self.penalty.anchor]]
            super().end_task()

    recipe = fit(lambda encoder, tasks: Loaded(encoder, tasks, optimizer=sgd(0.1)))
    assert all((start == 0.125).all() for start in recipe.starts[0])
    assert all((start != 0.125).any() for start in recipe.starts[1][:2])


@pytest.mark.slow
def test_importance_is_never_negative():
    recipe = fit(lambda encoder, tasks: SI(encoder, tasks, 1.0, 0.5, optimizer=sgd(0.1)))
    before = [Ω.clone() for Ω in recipe.penalty.weight]
    for number, ω in enumerate(recipe.path):
        ω.fill_(-0.05 if number % 2 else 0.05)
    with torch.no_grad():
        recipe.end_task()
    for number, (Ω, old) in enumerate(zip(recipe.penalty.weight, before)):
        assert (Ω >= 0).all()
        torch.testing.assert_close(Ω, (old + (-0.1 if number % 2 else 0.1)).clamp(min=0))  # it has not moved: Δ is 0


def test_the_loss_is_cross_entropy_plus_c_times_the_penalty():
    recipe = fit(lambda encoder, tasks: SI(encoder, tasks, 3.0, 0.01, optimizer=sgd(0.1)))
    batch = recipe.data.splits.train.__getitems__(list(range(TASK, TASK + 10)))
    with torch.no_grad():
        for parameter in recipe.held:
            parameter += 0.1
    logged = {}
    recipe.log = lambda name, value, **_: logged.update({name: (value() if callable(value) else value).item()})
    with recipe.trainer.precision_plugin.forward_context():
        total = recipe.training_step(batch, 0).item()
        logits = recipe.head(recipe(batch.image))[:, 2:]
    cross_entropy = F.cross_entropy(logits, batch.label - 2).item()
    expected = 3 * 0.01 * sum(Ω.sum() for Ω in recipe.penalty.weight).item()
    assert expected > 1e-3
    assert total == pytest.approx(cross_entropy + expected, rel=1e-10)
    assert logged["train/penalty_ratio"] == pytest.approx(expected / cross_entropy, rel=1e-10)


def test_without_a_weight_it_is_fine_tuning():
    si = fit(lambda encoder, tasks: SI(encoder, tasks, 0.0, optimizer=sgd(0.1)))
    plain = fit(lambda encoder, tasks: FineTuning(encoder, tasks, optimizer=sgd(0.1)))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(si.state_dict()[name], tensor), name


def test_steps_that_the_scaler_leaves_out_add_nothing():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)  # float16 overflows, until it has been halved often enough
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, optimizer=sgd(0.1)), plugins=[precision])
    assert scaler.get_scale() < 2.0**20
    for recorded in recipe.recorded:
        assert all(ω.isfinite().all() for ω in recorded)
        assert sum(ω.sum() for ω in recorded) > 0


def state_of(devices):
    recipe = fit(
        lambda encoder, tasks: SI(encoder, tasks, 1.0, 0.01, optimizer=sgd(0.1)), devices, batch_size=TASK // 4
    )
    return {name: tensor.numpy() for name, tensor in recipe.state_dict().items()}


def test_two_devices_learn_what_one_does():
    (one,) = run(state_of, 1)
    two = run(state_of, 2, processes=2)
    assert one["penalty.weight.0"].sum() > 0
    for name, expected in one.items():
        assert two[0][name] == pytest.approx(expected, rel=1e-10, abs=1e-12), name
        assert (two[0][name] == two[1][name]).all(), name


def test_a_checkpoint_within_a_task_has_the_path_so_far():
    recipe = fit(lambda encoder, tasks: SI(encoder, tasks, optimizer=sgd(0.1)), max_epochs=EPOCHS + 3)
    saved = recipe.state_dict()
    assert recipe.begun == 2
    assert recipe.ended == 1
    assert sum(saved[f"path.{number}"].abs().sum() for number in range(2)) > 0
    assert all((saved[f"penalty.anchor.{number}"] != p).any() for number, p in enumerate(recipe.held[:2]))


def test_it_says_what_to_expect_of_the_scenario_class():
    for scenario in ("task", "class", "domain"):
        recipe = SI(MLP(4, hidden=(8,)), TaskSequence(Stripes(LABEL), num_tasks=2, scenario=scenario).tasks)
        assert (recipe.expectation is not None) == (scenario == "class")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"si_weight": -1.0}, r"si_weight is -1.0: it must be at least 0 \(fine-tuning\)"),
        ({"damping": 0.0}, "damping is 0.0: it must be positive"),
    ],
)
def test_numbers_out_of_range_are_errors(options, message):
    tasks = TaskSequence(Stripes(LABEL), num_tasks=2).tasks
    with pytest.raises(ValueError, match=message):
        SI(MLP(4, hidden=(8,)), tasks, **options)
