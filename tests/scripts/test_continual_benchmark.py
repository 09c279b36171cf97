import argparse
import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from datamodules.base import Splits
from datamodules.loading.dataset import ImagesInMemory
from recipes.nn import MLP

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # where scripts/benchmark finds them

benchmark = importlib.import_module("benchmarks.continual")

OPTIONS = argparse.Namespace(
    batch=8, epochs=2, ewc_weight=1.0, fisher_images=10, avalanche_ewc_lambda=1.0, threads=1, rounds=1
)


def images(each):
    """Ten classes with so many images each, that differ in which rows of the picture are bright."""
    label = torch.arange(10).repeat(each)
    image = torch.randint(0, 60, (len(label), 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for c in range(10):
        image[label == c, :, 2 * c : 2 * c + 4] += 180
    return ImagesInMemory(image.to(torch.uint8), label)


@pytest.fixture(scope="module")
def whole():
    return Splits(tuple("0123456789"), images(13), None, images(5))


@pytest.fixture
def taken(monkeypatch):
    """The images that each forward pass in training was given."""
    batches = []
    forward = MLP.forward

    def noted(self, image):
        if self.training:
            batches.append(image.detach().clone())
        return forward(self, image)

    monkeypatch.setattr(MLP, "forward", noted)
    return batches


def test_a_task_has_two_classes_and_is_normalised_by_the_first_task(whole):
    tasks = benchmark.apart(whole)
    assert [task.label.unique().tolist() for task in tasks] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert [len(task.label) for task in tasks] == [26] * 5
    assert [task.test_label.unique().tolist() for task in tasks] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    first = whole.train.image[whole.train.label < 2].double() / 255
    for task, each in enumerate(tasks):
        raw = whole.train.image[whole.train.label // 2 == task].double() / 255
        expected = (raw - first.mean()) / first.std(correction=0)
        torch.testing.assert_close(each.image.double(), expected, rtol=0, atol=1e-5)


def test_accuracy_is_the_mean_over_tasks_and_the_task_is_told(whole):
    tasks = benchmark.apart(whole)
    told = []

    def predict(image, task):
        told.append(task)
        return torch.full((len(image),), 2 * task if task < 3 else 0)  # half of tasks 0, 1 and 2 and none of the rest

    assert benchmark.accuracy_on(tasks, predict) == pytest.approx(3 * 0.5 / 5)
    assert told == [0, 1, 2, 3, 4]


def test_one_linear_layer_says_what_the_heads_say():
    encoder, heads = benchmark.network(3)
    image = torch.randn(4, 1, 28, 28)
    apart = torch.cat([head(encoder(image)) for head in heads], 1)
    torch.testing.assert_close(benchmark.one_head(3)(image), apart)
    assert not torch.equal(benchmark.one_head(4)(image), apart)


@pytest.mark.parametrize("name", list(benchmark.SCENARIOS))
def test_ours_learns_all_tasks_in_one_fit_with_the_images_that_the_others_are_given(name, whole, taken):
    tasks = benchmark.apart(whole)
    learn = benchmark.ours(OPTIONS, name, whole, seed=0)
    taken.clear()  # what setup looked at
    predict = learn()
    assert len(taken) == 5 * OPTIONS.epochs * (26 // OPTIONS.batch)
    new = torch.cat([image[: OPTIONS.batch] for image in taken[: len(taken) // 5]])
    far = torch.cdist(new.flatten(1).double(), tasks[0].image.flatten(1).double()).min(1).values
    assert far.max() < 1e-3  # each is an image of the first task, normalised alike; two images are 7 apart or more
    assert benchmark.accuracy_on(tasks, predict) > 0.5


@pytest.mark.parametrize("name", list(benchmark.SCENARIOS))
def test_ours_begins_with_the_same_weights(name, whole, monkeypatch):
    begun = []

    class Trainer:
        def fit(self, recipe, data):
            begun.append(recipe)

    monkeypatch.setattr(benchmark, "trainer", lambda **arguments: Trainer())
    benchmark.ours(OPTIONS, name, whole, seed=5)()
    image = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(begun[0].head(begun[0].encoder(image)), benchmark.one_head(5)(image))


def test_ours_replays_as_many_images_as_are_new_from_the_second_task_on(whole, taken):
    learn = benchmark.ours(OPTIONS, "rehearsal", whole, seed=0)
    taken.clear()
    learn()
    assert [len(image) for image in taken] == [8] * 6 + [16] * 24


@pytest.mark.parametrize("buffer", [0, 20])
def test_the_bare_loop_makes_as_many_steps_and_replays_images_of_tasks_before(buffer, whole, monkeypatch):
    tasks = benchmark.apart(whole)
    steps = []
    model_of = benchmark.one_head

    def noted(seed):
        model = model_of(seed)
        model.register_forward_hook(lambda module, image, output: steps.append(image[0]))
        return model

    monkeypatch.setattr(benchmark, "one_head", noted)
    benchmark.bare(OPTIONS, tasks, 0, buffer)()
    assert [len(image) for image in steps] == [8] * 6 + [16 if buffer else 8] * 24
    every = {image.numpy().tobytes(): task for task, each in enumerate(tasks) for image in each.image}
    replayed = [set() for _ in tasks]
    for number, images in enumerate(steps):
        task = number // 6
        of = [every[image.numpy().tobytes()] for image in images]
        assert set(of[:8]) == {task}
        replayed[task].update(of[8:])
    assert replayed == [set(range(task)) if buffer else set() for task in range(5)]


@pytest.mark.parametrize("name", list(benchmark.SCENARIOS))
def test_avalanche_makes_as_many_steps_and_its_optimiser_is_made_anew_for_each_task(name, whole):
    pytest.importorskip("avalanche")
    tasks = benchmark.apart(whole)
    steps = []
    note = register_optimizer_step_post_hook(lambda optimizer, *_: steps.append(_steps_of(optimizer)))
    try:
        predict = benchmark.avalanche(OPTIONS, name, tasks, seed=0)()
    finally:
        note.remove()
    each = OPTIONS.epochs * (26 // OPTIONS.batch)
    assert steps == [*range(1, each + 1)] * 5
    assert benchmark.accuracy_on(tasks, predict) > 0.5


def _steps_of(adam):
    """How many steps an Adam has made on the first parameter."""
    return int(adam.state[adam.param_groups[0]["params"][0]]["step"])


def test_avalanche_begins_with_the_same_weights_and_a_head_comes_with_its_task(whole):
    pytest.importorskip("avalanche")
    encoder, heads = benchmark.network(5)
    model = benchmark._multi_head(5)
    image = torch.randn(4, 1, 28, 28)
    for number, experience in enumerate(benchmark._stream(benchmark.apart(whole), knows_task=True)):
        model.classifier.adaptation(experience)
        assert len(model.classifier.classifiers) == number + 1
        torch.testing.assert_close(model(image, number), heads[number](encoder(image)))


def test_every_round_has_a_seed_and_the_first_is_to_warm_up(monkeypatch, whole):
    made = []

    def learners(options, whole, tasks, seed):
        made.append((seed, options.epochs))
        names = [*benchmark.AVALANCHE, *benchmark.AVALANCHE.values(), benchmark.IN_BF16, *benchmark.BARE]
        return {name: lambda: lambda image, task: torch.full((len(image),), 2 * task) for name in names}

    monkeypatch.setattr(benchmark, "learners", learners)
    monkeypatch.setattr(benchmark, "read", lambda root: whole)
    monkeypatch.setattr(benchmark, "versions", lambda *names: {})
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    ticks = itertools.count()
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks) ** 2)
    options = argparse.Namespace(**{**vars(OPTIONS), "rounds": 3, "root": Path()})
    result = benchmark.run(options)
    assert made == [(0, 1), (0, 2), (1, 2), (2, 2)]
    assert {len(values) for values in result["seconds"].values()} == {3}
    assert result["seconds"]["rehearsal"] == [37, 73, 109]  # (n + 1)² - n² at the calls 18, 36 and 54
    assert set(result["mean_accuracy"].values()) == {0.5}
    assert {(one["what"], one["with"]) for one in result["compared"]} == set(benchmark.COMPARED)


def test_a_row_names_both_sides_and_their_accuracies():
    names = {name for pair in benchmark.COMPARED for name in pair}
    result = {
        "task": "Split-Fashion-MNIST",
        "mean_accuracy": {name: 0.5 + number / 1000 for number, name in enumerate(sorted(names))},
        "compared": [{"what": what, "with": other, "median_ratio": 0.5} for what, other in benchmark.COMPARED],
    }
    rows = benchmark.rows(result)
    assert [row[0].split(",")[0] for row in rows] == ["rehearsal", "LwF", "EWC", "rehearsal in bf16-mixed", "rehearsal"]
    for what, other, value in rows:
        assert value == "0.50 times its time"
        for text, name in ((what, what.split(",")[0]), (other, other.rsplit(" (", 1)[0])):
            assert f"{result['mean_accuracy'][name]:.1%}" in text
