import pytest
import torch
from torch.nn import functional as F

from recipes.augment import Key
from recipes.continual.derpp import DERpp
from tests.continual.sequences import (
    BATCH,
    STEPS,
    Save,
    distance,
    end,
    fitted,
    handwriting,
    made,
    numbers,
    sequence,
    trainer,
)
from tests.helpers.processes import run


class Watched(DERpp):
    """Notes what the network says of each new image when its task ends, image by image, and what is compared later."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.said = {}
        self.logged = {}

    def log(self, name, value, **options):
        self.logged.setdefault(name, []).append(float(torch.as_tensor(value).detach()))
        super().log(name, value, **options)

    def recorded(self, image, index):
        """The view, made here, that the logits of an image are of."""
        return image if self.views is None else self.views(image, Key(0, 0, index, 4))

    def end_task(self):
        super().end_task()
        for row in (self.buffer.task == self.task).nonzero().flatten():
            view = self.recorded(self.buffer.image[row, None], self.buffer.index[row, None])
            self.said[int(self.buffer.index[row])] = self.head(self.encoder(self.normalize(view)))[0].clone()

    def training_logits(self, image):
        self.given = image
        return super().training_logits(image)

    def training_step(self, batch, batch_idx):
        rows, others = self.draw(batch, batch_idx, 3), self.draw(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        if self.task == 2 and batch_idx == 1:
            self.total, self.by_hand = loss.item(), self.compute_by_hand(batch, rows, others)
        if len(rows):
            view = self.recorded(self.buffer.image[rows], self.buffer.index[rows])
            assert torch.equal(self.given[BATCH : BATCH + len(rows)], view)
        return loss

    def compute_by_hand(self, batch, rows, others):
        logits = [self.head(self.encoder(self.normalize(image[None])))[0] for image in self.given]
        old = batch.label.new_tensor([0, 1, 2, 3, 4, 5])  # all have begun
        new_loss = [F.cross_entropy(logits[n][old], label) for n, label in enumerate(batch.label)]
        squares = []
        for n, row in enumerate(rows):
            task, place = int(self.buffer.task[row]), int(self.buffer.index[row])
            squares += [(logits[BATCH + n][c] - self.said[place][c]) ** 2 for c in range(2 * task + 2)]
        labels = self.buffer.label[others]
        replay_loss = [F.cross_entropy(logits[BATCH + len(rows) + n], label) for n, label in enumerate(labels)]
        terms = [sum(each).item() / len(each) for each in (new_loss, squares, replay_loss)]
        return terms[0] + self.logit_weight * terms[1] + self.replay_weight * terms[2]


@pytest.mark.slow
@pytest.mark.parametrize("views", [None, handwriting()])
def test_the_logits_that_are_kept_are_what_the_network_said_of_that_very_view(views):
    recipe = fitted(Watched, views=views, buffer_size=40)
    kept = {int(index): logits for index, logits in zip(recipe.buffer.index, recipe.buffer.logits, strict=True)}
    assert recipe.buffer.task.unique().tolist() == [0, 1, 2]
    for index, logits in kept.items():
        assert torch.allclose(logits, recipe.said[index], rtol=1e-10, atol=1e-12)  # of old tasks: as they were then


@pytest.mark.slow
def test_a_network_that_does_not_learn_differs_from_no_logits_that_were_kept():
    recipe = fitted(Watched, views=handwriting(), lr=0.0, buffer_size=40)
    assert len(recipe.logged["train/logit_loss"]) == 2 * STEPS
    assert max(recipe.logged["train/logit_loss"]) < 1e-20
    assert max(fitted(Watched, views=handwriting(), buffer_size=40).logged["train/logit_loss"]) > 1e-4


@pytest.mark.parametrize("weights", [(0.2, 0.5), (1.0, 0.0)])
def test_the_loss_is_the_sum_of_its_three_terms(weights):
    options = {"logit_weight": weights[0], "replay_weight": weights[1]}
    recipe = fitted(Watched, views=handwriting(), buffer_size=40, replay_batch_size=17, **options)
    assert recipe.total == pytest.approx(recipe.by_hand, rel=1e-10)


def test_logits_of_classes_that_had_not_begun_take_no_part():
    recipe = made(DERpp, sequence(), buffer_size=4)
    recipe.trainer = trainer()
    recipe.begun = 3
    index = torch.arange(4)
    recipe.buffer.add(lambda i: torch.zeros(len(i), 1, 8, 8, dtype=torch.uint8), index, index, 0, 0)
    recipe.buffer.task = torch.tensor([0, 0, 1, 2])
    rows = torch.arange(4)
    logits = torch.ones(4, 6, requires_grad=True)
    recipe.logit_loss(logits, rows, rows).backward()
    assert ((logits.grad != 0).sum(1) == torch.tensor([2, 2, 4, 6])).all()
    assert logits.grad.unique().tolist() == pytest.approx([0, 2 / 14])


def test_in_the_first_task_there_is_nothing_to_replay():
    recipe = fitted(Watched, buffer_size=40)
    assert len(recipe.logged["train/loss"]) == 3 * STEPS
    assert len(recipe.logged["train/logit_loss"]) == len(recipe.logged["train/replay_loss"]) == 2 * STEPS


def test_two_processes_end_where_one_does():
    options = {"buffer_size": 41, "replay_batch_size": 23}  # both are odd: devices get unlike shares
    one, other = run(end, DERpp, 2, options, processes=2)
    (alone,) = run(end, DERpp, 1, options)
    assert distance(one, other) == 0
    assert distance(one, alone) < 1e-10


def test_a_run_that_goes_on_from_the_middle_of_a_task_ends_where_the_whole_one_does(tmp_path):
    options = {"views": handwriting(), "buffer_size": 40}
    whole = fitted(DERpp, callbacks=[Save(7, tmp_path / "saved.ckpt")], **options)
    data = sequence()
    resumed = made(DERpp, data, **options)
    trainer().fit(resumed, data, ckpt_path=tmp_path / "saved.ckpt", weights_only=True)
    assert distance(dict(numbers(resumed.state_dict())), dict(numbers(whole.state_dict()))) == 0


@pytest.mark.parametrize("name", ["logit_weight", "replay_weight"])
def test_mistakes_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is -1: it must be at least 0"):
        made(DERpp, sequence(), **{name: -1})
