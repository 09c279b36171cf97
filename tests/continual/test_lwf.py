import copy
import math

import pytest
import torch
from lightning.pytorch import Callback

from recipes import FineTuning, LwF
from recipes.augment import Compose, HandwritingViews
from recipes.evaluation.continual import average_accuracy
from recipes.nn import ConvNet
from tests.continual.sequences import STEPS, fitted, sequence, trainer


class Watched(LwF):
    """Notes what both networks are given, and what they say."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.steps = []

    def training_logits(self, image):
        self.given, self.said, self.seen = image, super().training_logits(image), self.normalize(image)
        return self.said

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.steps.append((self.task, batch, self.seen, loss.item()))
        return loss


class Checked(Watched):
    """Takes the loss of one step by hand too."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.task == 2 and batch_idx == 3:
            self.expected = by_hand(self, batch, self.given, self.said.detach())
        return loss


def softened(logits, classes):
    return [math.exp(logits[c] / 2) / sum(math.exp(logits[k] / 2) for k in classes) for c in classes]


def by_hand(recipe, batch, image, logits):
    """Image by image, at T = 2: -Σ p' log p̂' for each old softmax, and the cross-entropy of the new task."""
    old = recipe.old_network(recipe.normalize(image))
    heads = {"task": [range(2), range(2, 4)], "class": [range(4)], "domain": [range(2)]}[recipe.tasks.scenario]
    new = {"task": range(4, 6), "class": range(6), "domain": range(2)}[recipe.tasks.scenario]
    total = 0.0
    for ours, theirs, label in zip(logits.tolist(), old.tolist(), batch.label.tolist(), strict=True):
        total += math.log(sum(math.exp(ours[c]) for c in new)) - ours[label]
        for classes in heads:
            pairs = zip(softened(theirs, classes), softened(ours, classes), strict=True)
            total -= sum(target * math.log(p) for target, p in pairs)
    return total / len(logits)


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_the_loss_has_a_term_for_each_old_softmax_and_no_factor_of_the_temperature(scenario):
    recipe = fitted(Checked, scenario, warmup_epochs=0)
    of_third = [loss for task, *_, loss in recipe.steps if task == 2]
    assert of_third[3] == pytest.approx(recipe.expected, rel=1e-10)


def test_the_old_network_answers_on_the_very_view_that_the_new_one_sees():
    given = []

    class Recorded(Watched):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.old_network.register_forward_pre_hook(lambda _, args: given.append(args[0]))

    recipe = fitted(Recorded, views=Compose([HandwritingViews()]), warmup_epochs=0)
    seen = [image for task, _, image, _ in recipe.steps if task > 0]
    assert len(given) == len(seen) == 2 * STEPS
    assert all(torch.equal(one, other) for one, other in zip(given, seen, strict=True))
    assert not torch.equal(seen[0], seen[STEPS - 1])


def test_the_gradient_of_distillation_reaches_every_old_head():
    gradients = []

    class Distilling(LwF):
        def cross_entropy(self, logits, label, task):
            return super().cross_entropy(logits, label, task) * 0

        def on_after_backward(self):
            super().on_after_backward()
            gradients.append([None if h.weight.grad is None else h.weight.grad.norm().item() for h in self.head.heads])

    fitted(Distilling, "task", warmup_epochs=0, optimizer=lambda p, lr: torch.optim.SGD(p, 0.1, weight_decay=0.1))
    last = gradients[-1]
    assert last[0] > 1e-8
    assert last[1] > 1e-8
    assert last[2] == 0
    assert gradients[0][1:] == [None, None]


class Notes(Callback):
    """The state at the start of the last task, after its warm-up, and at the end."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (20, 25):
            setattr(self, f"at_{trainer.global_step}", copy.deepcopy(pl_module.state_dict()))

    def on_train_end(self, trainer, pl_module):
        self.at_30 = copy.deepcopy(pl_module.state_dict())


def test_the_warm_up_changes_no_shared_weights_old_heads_or_running_statistics():
    data, notes = sequence("task", epochs=2), Notes()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD
    recipe = LwF(ConvNet((4, 6)), data.tasks, optimizer=lambda p: optimizer(p, 0.1, momentum=0.9, weight_decay=0.1))
    trainer(callbacks=[notes]).fit(recipe, data)

    own = {name for name in notes.at_20 if name.startswith(("encoder.", "head."))}

    def moved(before, after):
        return {name for name in own if not torch.equal(before[name], after[name])}

    assert moved(notes.at_20, notes.at_25) == {"head.heads.2.weight", "head.heads.2.bias"}
    assert moved(notes.at_25, notes.at_30) == own  # all of it, in the joint step: old heads and statistics too
    old = {name for name in notes.at_20 if name.startswith("old_network.")}
    assert all(torch.equal(notes.at_20[name], notes.at_30[name]) for name in old)
    encoder = {
        name.removeprefix("encoder."): value for name, value in notes.at_20.items() if name.startswith("encoder.")
    }
    kept = {name.removeprefix("old_network.copies.0."): notes.at_30[name] for name in old if ".copies.0." in name}
    assert encoder.keys() == kept.keys()
    assert all(torch.equal(encoder[name], kept[name]) for name in encoder)


def test_without_a_weight_it_is_fine_tuning():
    one, other = fitted(LwF, "task", old_weight=0, warmup_epochs=0), fitted(FineTuning, "task")
    theirs = other.state_dict()
    named = {name: value for name, value in one.state_dict().items() if name.startswith("encoder.")}
    assert all(torch.equal(value, theirs[name]) for name, value in named.items())


@pytest.mark.slow
def test_it_forgets_less_than_fine_tuning():
    ours = fitted(LwF, "task", epochs=4, warmup_epochs=1).accuracy_matrix.compute()["aware"]
    theirs = fitted(FineTuning, "task", epochs=4).accuracy_matrix.compute()["aware"]
    assert average_accuracy(ours) > average_accuracy(theirs)


def test_it_says_that_it_stays_near_the_floor_where_it_does():
    data = sequence("class")
    assert "near the floor" in LwF(ConvNet((4,)), data.tasks).expectation
    assert LwF(ConvNet((4,)), sequence("task").tasks).expectation is None
