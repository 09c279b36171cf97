import functools

import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules import TaskSequence
from recipes.continual import FineTuning, ewc
from recipes.continual.ewc import EWC
from recipes.nn import MLP, diagonal_fisher
from tests.continual.sequences import Stripes
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

IMAGES = 24  # of each class
LABEL = torch.arange(4).repeat(IMAGES)


def fit(make, devices=1, scenario="task", seed=0, precision="64-true", **options):
    """Learns two tasks of two classes."""
    seed_everything(seed, verbose=False)
    data = TaskSequence(
        Stripes(LABEL), num_tasks=2, scenario=scenario, epochs_per_task=3, batch_size=2 * IMAGES // 4, num_workers=0
    )
    recipe = make(MLP(4, hidden=(8,), batch_norm=False), data.tasks)
    trainer = quiet_trainer(devices=devices, precision=precision, **{"max_epochs": -1, **options})
    trainer.fit(recipe, data)
    return recipe


class Recorded(EWC):
    """Notes weights and Fisher information at the end of each task, and what the penalty is then."""

    def __init__(self, encoder, tasks, *args, **options):
        super().__init__(encoder, tasks, *args, **options)
        self.recorded, self.values = [], []

    def end_task(self):
        super().end_task()
        images = self.data.splits.train.images(self._fisher_rows())
        theta = [parameter.detach().clone() for parameter in self.held]
        self.recorded.append((self.loop(images), theta))
        self.values.append(self.penalty(theta).item())

    def loop(self, images):
        """One image and one class at a time, without what EWC uses."""
        fisher = [torch.zeros_like(parameter) for parameter in self.held]
        first, last = (0, 2 * self.begun) if self.tasks.scenario == "class" else (2 * self.task, 2 * self.task + 2)
        with torch.enable_grad():
            for image in images:
                log_p = self.head(self(image[None]))[0, first:last].log_softmax(0)
                for each in log_p:
                    gradients = torch.autograd.grad(each, self.held, retain_graph=True, materialize_grads=True)
                    for total, gradient in zip(fisher, gradients):
                        total += each.exp().detach() * gradient**2 / len(images)
        return fisher


def quadratic(fisher, anchor, theta):
    return sum((f * (p - a) ** 2).sum() for f, a, p in zip(fisher, anchor, theta))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_after_two_tasks_the_penalty_is_the_sum_of_those_of_both(scenario):
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, 10.0, fisher_images=7), scenario=scenario)
    (first, second), held = recipe.recorded, list(recipe.held)
    assert recipe.values[0] == 0  # at θ* of the one task there was
    assert recipe.values[1] == pytest.approx(quadratic(*first, second[1]).item(), rel=1e-10)
    assert recipe.values[1] > 1e-6
    for theta in (held, [p + 0.1 for p in held], [torch.randn_like(p) for p in held]):
        expected = quadratic(*first, theta) + quadratic(*second, theta)
        assert recipe.penalty(theta).item() == pytest.approx(expected.item(), rel=1e-10)


def test_online_the_last_weights_are_the_anchor_and_older_information_decays():
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, 10.0, online=True, gamma=0.6, fisher_images=7))
    (f1, _), (f2, last) = recipe.recorded
    assert recipe.values == [0, 0]
    theta = [p + 0.1 for p in recipe.held]
    fisher = [0.6 * a + b for a, b in zip(f1, f2)]
    assert recipe.penalty(theta).item() == pytest.approx(quadratic(fisher, last, theta).item(), rel=1e-10)


def test_the_loss_is_cross_entropy_plus_half_lambda_times_the_penalty():
    recipe = fit(lambda encoder, tasks: Recorded(encoder, tasks, 10.0, fisher_images=7))
    batch = recipe.data.splits.train.__getitems__(recipe.data.positions(recipe.data.splits.train, 1)[:10].tolist())
    with torch.no_grad():
        for parameter in recipe.held:
            parameter += 0.1
    logged = {}
    recipe.log = lambda name, value, **_: logged.update({name: (value() if callable(value) else value).item()})
    with recipe.trainer.precision_plugin.forward_context():
        total = recipe.training_step(batch, 0).item()
        logits = recipe.head(recipe(batch.image))[:, 2:]
    cross_entropy = -logits.log_softmax(1)[torch.arange(10), batch.label - 2].mean().item()
    expected = 5 * sum(quadratic(f, a, recipe.held) for f, a in recipe.recorded).item()
    assert expected > 0.01
    assert total == pytest.approx(cross_entropy + expected, rel=1e-10)
    assert logged["train/penalty"] == pytest.approx(expected, rel=1e-10)
    assert logged["train/penalty_ratio"] == pytest.approx(expected / cross_entropy, rel=1e-10)


def test_without_a_weight_it_is_fine_tuning():
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    ewc = fit(lambda encoder, tasks: EWC(encoder, tasks, 0.0, **sgd))
    plain = fit(lambda encoder, tasks: FineTuning(encoder, tasks, **sgd))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(ewc.state_dict()[name], tensor), name


def test_a_weight_keeps_what_matters_to_old_tasks_in_place():
    distances = []
    for ewc_weight in (0.0, 1e4):
        recipe = fit(functools.partial(Recorded, ewc_weight=ewc_weight))
        distances.append(recipe.values[1])
    assert distances[1] < 0.01 * distances[0]


def test_the_images_of_the_fisher_information_depend_on_seed_and_task_alone():
    chosen = {}
    for seed in (0, 0, 1):
        recipe = fit(lambda encoder, tasks: EWC(encoder, tasks, fisher_images=20), seed=seed, max_steps=1)
        for task in (0, 1):
            recipe.begun = task + 1
            rows = recipe._fisher_rows()
            assert len(rows.unique()) == 20
            assert (recipe.data.splits.train.task[rows] == task).all()
            assert set(rows.tolist()) == chosen.setdefault((seed, task), set(rows.tolist()))
    assert chosen[0, 0] != chosen[1, 0]
    recipe.fisher_images = 1000
    assert len(recipe._fisher_rows()) == 2 * IMAGES  # all there are


def weights_of(devices, scenario):
    """The weights, and of how many images this process computed the Fisher information at the end of each task."""
    images = []

    def noted(network, image, classes):
        images.append(len(image))
        return diagonal_fisher(network, image, classes)

    ewc.diagonal_fisher = noted
    recipe = fit(lambda encoder, tasks: EWC(encoder, tasks, 10.0, fisher_images=7), devices, scenario)
    return {name: tensor.numpy() for name, tensor in recipe.state_dict().items()}, images


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_two_devices_learn_what_one_does(scenario):
    ((one, images),) = run(weights_of, 1, scenario)
    two, shares = zip(*run(weights_of, 2, scenario, processes=2))
    assert images == [7, 7]
    assert shares == ([4, 4], [3, 3])
    for name, expected in one.items():
        assert two[0][name] == pytest.approx(expected, rel=1e-10, abs=1e-12), name
        assert (two[0][name] == two[1][name]).all(), name
    assert one["penalty.constant"] > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_fisher_information_is_in_float32_in_half_precision_too(precision):
    wide = fit(lambda encoder, tasks: EWC(encoder, tasks, 0.0), precision="32-true", max_epochs=3)
    half = fit(lambda encoder, tasks: EWC(encoder, tasks, 0.0), precision=precision, max_epochs=3)
    for one, other in zip(wide.penalty.weight, half.penalty.weight):
        assert (one - other.float()).norm() < 0.1 * one.norm() or one.norm() == 0


def test_it_says_what_to_expect_of_the_scenario_class():
    for scenario in ("task", "class", "domain"):
        recipe = EWC(MLP(4, hidden=(8,)), TaskSequence(Stripes(LABEL), num_tasks=2, scenario=scenario).tasks)
        assert (recipe.expectation is not None) == (scenario == "class")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ewc_weight": -1.0}, r"ewc_weight is -1.0: it must be at least 0 \(fine-tuning\)"),
        ({"online": True, "gamma": 1.1}, r"gamma is 1.1: it must be in \[0, 1\]"),
        ({"gamma": 0.9}, "gamma is 0.9, and is for online EWC: set online to true, or leave gamma out"),
        ({"fisher_images": 0}, "fisher_images is 0: it must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_errors(options, message):
    tasks = TaskSequence(Stripes(LABEL), num_tasks=2).tasks
    with pytest.raises(ValueError, match=message):
        EWC(MLP(4, hidden=(8,)), tasks, **options)
