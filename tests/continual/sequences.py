"""What the tests of continual recipes run: three tasks of two digits each, in a second."""

import torch
from lightning.pytorch import Callback, seed_everything

from datamodules import Digits, ImageDataModule, ImagesInMemory, Splits, TaskSequence
from recipes.augment import Compose, HandwritingViews
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

GROUPS = [["0", "1"], ["2", "3"], ["4", "5"]]
BATCH, STEPS = 50, 5  # of a task, which has about 250 images


class Stripes(ImageDataModule):
    """Noisy images of four classes, 4 × 4 pixels: each class has another bright row.

    Args:
        label: the class of each image.
    """

    num_classes = 4

    def __init__(self, label):
        super().__init__()
        self.label = label

    def load(self):
        image = torch.randint(0, 120, (len(self.label), 1, 4, 4), generator=torch.Generator().manual_seed(0))
        image[torch.arange(len(self.label)), 0, self.label] += 60
        train = ImagesInMemory(image.to(torch.uint8), self.label)
        return Splits(("a", "b", "c", "d"), train, None, train)


def sequence(scenario="class", epochs=1):
    return TaskSequence(
        Digits(size=8), class_groups=GROUPS, scenario=scenario, epochs_per_task=epochs, batch_size=BATCH
    )


def made(recipe, data, lr=0.01, views=None, optimizer=torch.optim.Adam, **options):
    """A recipe with random weights, the same each time, without batch norm."""
    seed_everything(0, verbose=False)
    encoder = ConvNet((4, 6), norm="group")
    return recipe(encoder, data.tasks, optimizer=lambda p: optimizer(p, lr=lr), views=views, **options)


def handwriting():
    return Compose([HandwritingViews()])


def trainer(devices=1, callbacks=(), **options):
    options = {"max_epochs": -1, "precision": "64-true", "limit_val_batches": 0, **options}
    return quiet_trainer(devices, callbacks=list(callbacks), **options)


def fitted(recipe, scenario="class", epochs=1, callbacks=(), lr=0.01, views=None, **options):
    """A recipe after the three tasks."""
    data = sequence(scenario, epochs)
    learner = made(recipe, data, lr, views, **options)
    trainer(callbacks=callbacks).fit(learner, data)
    return learner


def numbers(state, prefix=""):
    """The tensors of a state_dict as arrays, with those of what is kept beside it."""
    for name, value in state.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value.detach().numpy()


def end(recipe, devices, options):
    """Where a run over so many devices ends: weights, buffers and accuracies, as arrays."""
    data = sequence()
    # Adam would make large steps of gradients that are 0 but for rounding, as those of distillation are at first
    learner = made(recipe, data, 0.1, handwriting(), torch.optim.SGD, **options)
    trainer(devices).fit(learner, data)
    matrix = learner.accuracy_matrix.compute()
    return dict(numbers(learner.state_dict())) | {name: value.numpy() for name, value in matrix.items()}


def distance(one, other):
    """How far apart two runs ended: the largest difference of all numbers, relative to the largest of its tensor."""
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in other.items()}
    return max(abs(x - other[name]).max() / max(abs(other[name]).max(), 1e-30) for name, x in one.items() if x.size)


class Save(Callback):
    """Saves a checkpoint before a step."""

    def __init__(self, step, path):
        self.step = step
        self.path = path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
