import math
from itertools import combinations

import pytest
import torch

from recipes.augment import Key
from recipes.continual import FineTuning
from recipes.continual.rehearsal import Rehearsal
from recipes.nn import ReplayBuffer
from recipes.nn.replay_buffer import herd
from tests.continual.sequences import BATCH, STEPS, distance, end, fitted, handwriting, made, sequence
from tests.helpers.processes import run


class Watched(Rehearsal):
    """Notes what the network is given in each step, and what it is to say."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps = []

    def training_logits(self, image):
        self.given = image
        return super().training_logits(image)

    def training_step(self, batch, batch_idx):
        task, rows = self.task, self.draw(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        past = {name: getattr(self.buffer, name)[rows] for name in ("image", "label", "task", "index")}
        self.steps.append((task, self.current_epoch, batch_idx, batch, past, self.given, loss.item()))
        if task == 2 and batch_idx == 0:
            self.expected = mean_by_hand(self, batch, past)
        return loss


def mean_by_hand(recipe, batch, past):
    """Image by image: the cross-entropy of the softmax over the classes that are allowed."""
    total = 0.0
    for image, label, task in zip(
        torch.cat([batch.image, past["image"]]),
        torch.cat([batch.label, past["label"]]).tolist(),
        torch.cat([batch.task, past["task"]]).tolist(),
        strict=True,
    ):
        logits = recipe.head(recipe.encoder(recipe.normalize(image[None])))[0].tolist()
        classes = range(2 * task, 2 * task + 2) if recipe.tasks.scenario == "task" else range(6)
        total -= logits[label] - math.log(sum(math.exp(logits[c]) for c in classes))
    return total / (len(batch.image) + len(past["image"]))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_loss_is_the_mean_over_the_batch_and_the_images_of_past_tasks(scenario):
    recipe = fitted(Watched, scenario, buffer_size=40)
    third = [step for step in recipe.steps if step[0] == 2]
    assert third[0][-1] == pytest.approx(recipe.expected, rel=1e-10)


@pytest.mark.slow
def test_a_batch_gets_as_many_past_images_as_it_has_or_as_there_are():
    for buffer_size, replayed in ((100, BATCH), (30, 30)):
        recipe = fitted(Watched, buffer_size=buffer_size)
        assert {len(step[5]) for step in recipe.steps if step[0] == 0} == {BATCH}
        assert {len(step[5]) for step in recipe.steps if step[0] > 0} == {BATCH + replayed}
    recipe = fitted(Watched, buffer_size=100, replay_batch_size=7)
    assert {len(step[5]) for step in recipe.steps if step[0] > 0} == {BATCH + 7}


def test_past_images_are_of_past_tasks_and_other_ones_in_every_step():
    recipe = fitted(Watched, epochs=2, buffer_size=100, replay_batch_size=10)
    drawn = [step for step in recipe.steps if step[0] == 2]
    assert all((step[4]["task"] < 2).all() for step in drawn)
    assert len({tuple(step[4]["index"].tolist()) for step in drawn}) == len(drawn)


def test_past_images_get_a_new_view_in_every_step():
    views = []

    class Viewing(Watched):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            past = self.steps[-1][4]
            if self.task == 2:
                key = Key(0, self.current_epoch, past["index"], 2).fold_in(batch_idx)
                assert torch.equal(self.given[BATCH:], self.views(past["image"], key))
                views.append(self.given[BATCH:][past["index"].argsort()])
            return loss

    fitted(Viewing, epochs=2, views=handwriting(), buffer_size=20)
    assert len(views) == 2 * STEPS
    assert all((one != other).any((1, 2, 3)).all() for one, other in combinations(views, 2))


@pytest.mark.parametrize("policy", ["reservoir", "class-balanced"])
def test_the_buffer_holds_images_of_the_whole_stream_as_they_are_in_the_data(policy):
    data = sequence()
    data.setup()
    train, expected = data.splits.train, ReplayBuffer(60, policy)
    for task in range(3):
        index = (train.task == task).nonzero().flatten()
        expected.add(train.images, index, train.label[index], task, seed=0)
    buffer = fitted(Rehearsal, policy=policy, buffer_size=60).buffer
    assert len(buffer) == 60
    for name, value in expected.get_extra_state().items():
        assert torch.equal(getattr(buffer, name), value.to(getattr(buffer, name)))
    assert torch.equal(buffer.image, train.images(buffer.index))
    assert buffer.task.unique().tolist() == [0, 1, 2]


def test_herding_takes_the_features_that_the_network_has_at_the_end_of_a_task():
    features = {}

    class Noting(Rehearsal):
        def end_task(self):
            train, index = self.data.splits.train, self.data.positions(self.data.splits.train, self.task)
            assert not self.training
            features[self.task] = self(train.images(index)), train.label[index], index
            super().end_task()

    buffer = fitted(Noting, policy="herding", buffer_size=60).buffer
    feature, label, index = features[2]
    for c in (4, 5):
        chosen = index[label == c][herd(feature[label == c], 10)]
        assert chosen.sort().values.tolist() == buffer.index[buffer.label == c].tolist()


@pytest.mark.slow
def test_rehearsal_forgets_less_than_fine_tuning():
    replaying = fitted(Rehearsal, epochs=3, buffer_size=60).accuracy_matrix.compute()["agnostic"][-1]
    forgetting = fitted(FineTuning, epochs=3).accuracy_matrix.compute()["agnostic"][-1]
    assert replaying[:2].mean() > forgetting[:2].mean() + 0.3


@pytest.mark.parametrize("policy", ["reservoir", "herding"])
def test_two_processes_end_where_one_does(policy):
    options = {"policy": policy, "buffer_size": 41, "replay_batch_size": 23}  # both are odd: devices get unlike shares
    one, other = run(end, Rehearsal, 2, options, processes=2)
    (alone,) = run(end, Rehearsal, 1, options)
    assert distance(one, other) == 0
    assert distance(one, alone) < 1e-10


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="replay_batch_size is 0: it must be at least 1"):
        made(Rehearsal, sequence(), replay_batch_size=0)
    with pytest.raises(ValueError, match="buffer_size is -3: it must be at least 1"):
        made(Rehearsal, sequence(), buffer_size=-3)
