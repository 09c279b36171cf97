import math

import pytest
import torch

from recipes.continual.icarl import ICaRL, NearestMean
from tests.continual.sequences import BATCH, Save, distance, end, fitted, handwriting, made, numbers, sequence, trainer
from tests.helpers.processes import run


class Watched(ICaRL):
    """Computes the loss of a step of each task image by image, and notes what is kept when a task ends."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.losses, self.given, self.exemplars, self.snapshots, self.weights = {}, [], [], [], []

    def training_logits(self, image):
        self.image = image
        return super().training_logits(image)

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.snapshots.append([p.clone() for p in self.old_network.parameters()])
        rows = self.draw(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        self.given.append((self.task, len(self.image), len(batch.index)))
        if batch_idx == 2:
            label = torch.cat([batch.label, self.buffer.label[rows]]).tolist()
            self.losses[self.task] = loss.item(), self.compute_by_hand(label)
        return loss

    def compute_by_hand(self, labels):
        """Algorithm 3: an image and a class at a time."""
        total, begun = 0.0, 2 * self.task  # the classes s, ..., t of this task are begun and begun + 1
        for image, label in zip(self.image, labels, strict=True):
            x = self.normalize(image[None])
            g = self.head(self.encoder(x)).sigmoid()[0].tolist()
            q = self.old_network.copies(x).sigmoid()[0].tolist()
            for y in range(begun, begun + 2):
                total -= math.log(g[y]) if y == label else math.log(1 - g[y])
            for y in range(begun):
                total -= q[y] * math.log(g[y]) + (1 - q[y]) * math.log(1 - g[y])
        return total / len(labels)

    def end_task(self):
        self.weights.append([p.detach().clone() for p in (*self.encoder.parameters(), *self.head.parameters())])
        super().end_task()
        self.exemplars.append({c: set(self.buffer.index[self.buffer.label == c].tolist()) for c in range(6)})


def test_the_loss_is_that_of_algorithm_3_in_every_task():
    recipe = fitted(Watched, views=handwriting(), buffer_size=60)
    assert sorted(recipe.losses) == [0, 1, 2]
    for loss, by_hand in recipe.losses.values():
        assert loss == pytest.approx(by_hand, rel=1e-10)


def test_what_is_distilled_is_the_network_as_it_was_when_the_task_before_ended():
    recipe = fitted(Watched, buffer_size=60)
    for old, before in zip(recipe.snapshots[1:], recipe.weights, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(old, before, strict=True))
    last = recipe.old_network.copies.parameters()
    assert all(torch.equal(a, b) for a, b in zip(last, recipe.weights[1], strict=True))  # not moved in task 2
    assert not any(p.requires_grad for p in recipe.old_network.parameters())


def test_all_classes_so_far_share_the_room_and_old_ones_give_up_exemplars():
    recipe = fitted(Watched, buffer_size=62)
    assert [[len(kept[c]) for c in range(6)] for kept in recipe.exemplars] == [
        [31, 31, 0, 0, 0, 0],
        [16, 16, 15, 15, 0, 0],
        [11, 11, 10, 10, 10, 10],
    ]
    for before, after in zip(recipe.exemplars, recipe.exemplars[1:], strict=False):
        assert all(after[c] <= before[c] for c in range(6) if before[c])


@pytest.mark.slow
def test_each_exemplar_comes_about_once_in_an_epoch():
    recipe = fitted(Watched, buffer_size=62)
    images = sequence()
    images.setup()
    for task, given, batch in recipe.given:
        expected = math.ceil(BATCH * 62 / int((images.splits.train.task == task).sum())) if task else 0
        assert (given - batch, batch) == (expected, BATCH)
    recipe = fitted(Watched, buffer_size=62, replay_batch_size=9)
    assert {given - batch for task, given, batch in recipe.given if task} == {9}


def test_the_nearest_mean_is_what_it_is_by_hand():
    nearest = NearestMean(2, 4)
    nearest.set(torch.tensor([[3.0, 0.0], [0.0, 7.0], [0.0, 5.0], [0.0, -2.0]]), torch.tensor([0, 0, 1, 3]))
    half = math.sqrt(0.5)
    assert torch.allclose(nearest.mean, torch.tensor([[half, half], [0.0, 1.0], [0.0, 0.0], [0.0, -1.0]]))
    distances = -nearest(torch.tensor([[0.0, 4.0], [9.0, 0.0]]))
    assert torch.allclose(distances, torch.tensor([[2 - 2 * half, 0.0, 5.0, 4.0], [2 - 2 * half, 2.0, 5.0, 2.0]]))


def test_an_image_is_of_the_class_whose_exemplars_have_the_nearest_mean():
    recipe = fitted(Watched, buffer_size=60).eval().float()
    data = sequence()
    data.setup()
    test = data.splits.test
    with torch.no_grad():
        exemplars = [recipe(recipe.buffer.image[recipe.buffer.label == c]) for c in range(6)]
        features = recipe(test.images(torch.arange(len(test))))
        said = recipe.logits(features).argmax(1)
    means = [torch.stack([x / x.norm() for x in of_class]).mean(0) for of_class in exemplars]
    means = torch.stack([mean / mean.norm() for mean in means])
    by_hand = torch.stack([((x / x.norm() - means) ** 2).sum(1).argmin() for x in features])
    assert torch.equal(said, by_hand)
    by_task = [(said == test.label)[test.task == task].double().mean().item() for task in range(3)]
    assert recipe.accuracy_matrix.compute()["agnostic"][-1].tolist() == pytest.approx(by_task, abs=1e-6)
    assert (said == test.label).double().mean() > 0.5


def test_while_a_task_is_learned_the_networks_own_outputs_classify():
    recipe = fitted(ICaRL, buffer_size=60)
    feature = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(recipe.unmasked_logits(feature), recipe.nearest_mean(feature))
    for begun, ended in ((3, 2), (0, 0)):
        recipe.begun, recipe.ended = begun, ended
        assert torch.equal(recipe.unmasked_logits(feature), recipe.head(feature))
    assert not recipe.has_probabilities


def test_means_are_taken_of_images_as_they_are_in_eval_mode():
    seen = []

    class Taking(ICaRL):
        def end_task(self):
            super().end_task()
            assert not self.training
            of_class = self(self.buffer.image[self.buffer.label == 1])
            seen.append((of_class / of_class.norm(dim=1, keepdim=True)).mean(0))

    recipe = fitted(Taking, views=handwriting(), buffer_size=60)
    assert torch.allclose(recipe.nearest_mean.mean[1], seen[-1] / seen[-1].norm(), rtol=1e-10)


def test_two_processes_end_where_one_does():
    options = {"buffer_size": 41, "replay_batch_size": 23}  # both are odd: devices get unlike shares
    one, other = run(end, ICaRL, 2, options, processes=2)
    (alone,) = run(end, ICaRL, 1, options)
    assert distance(one, other) == 0
    assert distance(one, alone) < 1e-10


def test_a_run_that_goes_on_from_the_middle_of_a_task_ends_where_the_whole_one_does(tmp_path):
    options = {"views": handwriting(), "buffer_size": 40}
    whole = fitted(ICaRL, callbacks=[Save(7, tmp_path / "saved.ckpt")], **options)
    data = sequence()
    resumed = made(ICaRL, data, **options)
    trainer().fit(resumed, data, ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert distance(dict(numbers(resumed.state_dict())), dict(numbers(whole.state_dict()))) == 0


def test_it_refuses_the_scenario_domain():
    with pytest.raises(ValueError, match="ICaRL is for the scenarios task and class"):
        made(ICaRL, sequence("domain"))
