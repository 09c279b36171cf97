import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules import Digits
from recipes import MoCo
from recipes.augment import Key, uniform
from recipes.nn import ConvNet, CrossDeviceBatchNorm, split_batch_norm
from tests.helpers.processes import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def moco(**arguments):
    seed_everything(0, verbose=False)
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "scheduler": None, "lr_batch_size": None}
    small = {"projection_dim": 5, "projection_hidden_dim": 7, "queue_size": 50, "batch_norm_splits": 4}
    return MoCo(ConvNet((4, 8)), **{**sgd, **small, **arguments})


def fit(recipe, tmp_path, batch_size=32, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_steps": 3, "precision": "64-true", "devices": 1, "limit_val_batches": 0} | quiet | options
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(recipe, Digits(batch_size=batch_size))
    return recipe


class Watched(MoCo):
    """Notes what goes into each step, and the loss that comes out."""

    def training_step(self, batch, batch_idx):
        before = self.queue.features.clone(), self.queue.position.item()
        networks = [[p.clone() for p in each.parameters()] for each in (self.encoder, self.projector)]
        loss = super().training_step(batch, batch_idx)
        self.steps.append((batch, before, networks, self.new_keys.clone(), loss.detach()))
        return loss


def watched(**arguments):
    recipe = moco(**arguments)
    recipe.__class__ = Watched
    recipe.steps = []
    return recipe


def view_of(recipe, batch, view):
    return recipe.normalize(recipe.views(batch.image, Key(0, 0, batch.index, view))).double()


def test_a_key_is_compared_with_the_queue_before_the_step_and_enters_it_afterwards(tmp_path):
    recipe = fit(watched(temperature=0.3), tmp_path)
    split_batch_norm(recipe, 4)  # as in training
    rows, position = torch.empty(0), 0
    for batch, (queue, position), networks, keys, loss in recipe.steps:
        if len(rows):
            assert torch.equal(queue, rows)
        for network, weights in zip((recipe.encoder, recipe.projector), networks):
            for p, weight in zip(network.parameters(), weights):
                p.data = weight
        recipe.train()
        query = recipe.projector(recipe.encoder(view_of(recipe, batch, 0)))
        query, keys = F.normalize(query), F.normalize(keys)
        logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ queue.T], 1) / 0.3
        torch.testing.assert_close(loss, F.cross_entropy(logits, torch.zeros(32, dtype=torch.long)), rtol=1e-5, atol=0)
        rows = queue.clone()
        for i, key in enumerate(keys):
            rows[(position + i) % 50] = key
    torch.testing.assert_close(recipe.queue.features, rows)
    assert recipe.queue.position == 3 * 32 % 50


def test_keys_are_made_in_shuffled_parts_each_with_a_batch_norm_of_its_own(tmp_path):
    ((batch, _, _, keys, _),) = fit(watched(), tmp_path, max_steps=1).steps
    recipe = moco().double()  # as it was made, with the usual batch norm
    data = Digits(batch_size=32)
    data.setup()
    recipe.normalize.set(data.mean, data.std)
    view = view_of(recipe, batch, 1)
    order = uniform(Key(0, 0, batch.index, 2), 1).flatten().argsort()

    def keys_of(order):
        parts = [recipe.projector(recipe.encoder(view[part])) for part in order.chunk(4)]
        return torch.cat(parts)[order.argsort()]

    torch.testing.assert_close(keys, keys_of(order), rtol=1e-5, atol=1e-6)
    assert (keys - keys_of(torch.arange(32))).abs().max() > 1e-2


def test_version_1_has_one_linear_layer_for_a_head():
    assert [type(layer) for layer in moco(projection_layers=1).projector] == [nn.Linear]
    assert [type(layer) for layer in moco().projector] == [nn.Linear, nn.ReLU, nn.Linear]


@pytest.mark.parametrize(
    ("batch_size", "arguments", "message"),
    [
        (32, {"batch_norm_splits": 5}, "32 images do not divide"),
        (32, {"batch_norm_splits": 32}, "at least 2 images"),
    ],
)
def test_parts_that_do_not_fit_the_batch_are_refused(batch_size, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(moco(**arguments), tmp_path, batch_size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_norm_splits": 0}, "batch_norm_splits is 0"),
        ({"momentum": -0.1}, r"momentum is -0\.1"),
        ({"queue_size": 0}, "queue_size is 0"),
        ({"temperature": 0}, "temperature is 0"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        moco(**arguments)


def state(tmp_path, devices, splits=4):
    across = {"strategy": "ddp", "plugins": CrossDeviceBatchNorm()} if devices > 1 else {}
    recipe = fit(moco(batch_norm_splits=splits), tmp_path, devices=devices, **across)
    return {name: value.numpy() for name, value in recipe.state_dict().items()}


def test_every_device_ends_with_the_queue_statistics_and_weights_of_one_device(tmp_path):
    expected = state(tmp_path, 1)
    for found in run(state, tmp_path, 2, processes=2):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


class Images(TorchDispatchMode):
    """Notes how many images a device gets in each exchange."""

    def __init__(self):
        super().__init__()
        self.received = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.received += [len(x) for x in tree_leaves(args[0]) if isinstance(x, torch.Tensor) and x.ndim >= 4]
        return func(*args, **(kwargs or {}))


def images_received(tmp_path):
    with Images() as images:
        fit(moco(projection_layers=1), tmp_path, devices=2, strategy="ddp", plugins=CrossDeviceBatchNorm())
    return images.received


def test_a_device_gets_the_images_of_its_own_share_alone(tmp_path):
    for received in run(images_received, tmp_path, processes=2):
        assert [count for count in received if count > 8] == [16] * 3  # of 32 in a step; others are convolutions


def test_another_number_of_parts_gives_another_result(tmp_path):
    expected = state(tmp_path, 1)
    assert np.abs(state(tmp_path, 1, splits=2)["queue.features"] - expected["queue.features"]).max() > 1e-3


def test_parts_that_do_not_divide_over_the_devices_are_refused(tmp_path):
    with pytest.raises(AssertionError, match="batch_norm_splits is 1 and does not divide over 2 devices"):
        run(state, tmp_path, 2, 1, processes=2)


@pytest.mark.parametrize(("queue_size", "said"), [(1257, True), (1256, False)])
def test_a_queue_as_long_as_the_data_is_warned_of(queue_size, said, tmp_path):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fit(moco(queue_size=queue_size), tmp_path, max_steps=1)
    assert (
        any("queue_size is 1,257, and there are 1,257 training images" in str(each.message) for each in found) == said
    )
