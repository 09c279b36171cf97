"""Every recipe trains and validates on CUDA tensors, and the host does not wait for the GPU in a step.

No GPU is needed: see ``tests.helpers.fake_cuda``.
"""

from collections import Counter
from contextlib import ExitStack
from importlib import import_module

import pytest
import torch
import yaml
from lightning.pytorch import Callback, seed_everything

from recipes import SVM, Supervised
from recipes.augment.base import constants
from recipes.launch.configs import config_file, config_names
from recipes.nn import ConvNet
from tests.helpers.fake_cuda import fake_cuda, strategy
from tests.helpers.training import quiet_trainer
from tests.system.test_python import NAMES, build, data_for

pytestmark = pytest.mark.filterwarnings("ignore")

WAITS = {  # of a training step: the line, and why it may
    "DeiT": {
        "recipes/augment/rand_augment.py: counts = torch.bincount": "each operation works on its own images alone",
        "recipes/augment/erasing.py: chosen = box[:, 2].nonzero": "noise is drawn for the erased images alone",
    }
}


class Steps(Callback):
    """Notes the waits of a training step, from its batch to that of the next one, and of a validation step.

    Args:
        noted: of ``fake_cuda``.
    """

    def __init__(self, noted):
        self.noted = noted
        self.waits = {"training": [], "validation": []}
        self._until = ExitStack()

    def _begin(self, step):
        self._until.close()
        self.waits[step].append(self._until.enter_context(self.noted()))

    def on_train_batch_start(self, trainer, recipe, batch, batch_idx):
        assert batch.image.is_cuda
        self._until.close()
        if batch_idx == 1:  # the first of an epoch may put constants on the device, and the last one waits for its loss
            self._begin("training")

    def on_validation_batch_start(self, trainer, recipe, batch, batch_idx, dataloader_idx=0):
        self._begin("validation")

    def on_validation_batch_end(self, trainer, recipe, outputs, batch, batch_idx, dataloader_idx=0):
        self._until.close()


@pytest.fixture(autouse=True)
def _no_numbers_of_this_gpu_are_kept():
    yield
    constants.cache_clear()


def waits_of(recipe, data):
    """The waits of each kind of step, in a training of all tasks."""
    seed_everything(1, verbose=False)
    with fake_cuda() as noted:
        steps = Steps(noted)
        batches = {"limit_train_batches": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0}
        epochs = -1 if hasattr(data, "tasks") else 1
        trainer = quiet_trainer(
            accelerator="auto", strategy=strategy(), callbacks=[steps], max_epochs=epochs, **batches
        )
        trainer.fit(recipe, data)
    assert steps.waits["validation"]
    assert steps.waits["training"] or isinstance(recipe, SVM)  # which ends with its first step
    return {kind: sum(waits, Counter()) for kind, waits in steps.waits.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_on_a_gpu_and_the_host_does_not_wait_for_it(name):
    data = data_for(name)
    if hasattr(data, "tasks"):
        data.batch_size = 4  # three batches of each task
    waits = waits_of(build(name), data)
    reasons = WAITS.get(name, {})
    assert [wait for wait in waits["training"] if not wait.startswith(tuple(reasons))] == []
    assert [line for line in reasons if not any(wait.startswith(line) for wait in waits["training"])] == []
    assert list(waits["validation"]) == []


def optimizers_of_configs():
    models = (yaml.safe_load(config_file(name).read_text())["model"].get("init_args", {}) for name in config_names())
    return sorted({model["optimizer"]["class_path"] for model in models if "optimizer" in model})


@pytest.mark.parametrize("path", optimizers_of_configs())
def test_every_optimizer_of_the_configs_steps_on_a_gpu_and_the_host_does_not_wait(path):
    module, _, name = path.rpartition(".")
    network, image = ConvNet((4,)), torch.rand(2, 1, 8, 8)
    with fake_cuda() as noted:
        network.to("cuda")
        optimizer = getattr(import_module(module), name)(network.parameters(), lr=0.1)
        before = [parameter.detach().clone() for parameter in network.parameters()]
        with noted() as waits:
            for _ in range(2):
                network(image.to("cuda", non_blocking=True)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert not any(map(torch.equal, before, network.parameters()))
    assert list(waits) == []


# That the tests above can fail


class Faulty(Supervised):
    """Does something with the images of a batch in each training step."""

    def training_step(self, batch, batch_idx):
        self.fault(batch.image.float())
        return super().training_step(batch, batch_idx)


def faulty(fault):
    recipe = build("Supervised")
    recipe.__class__, recipe.fault = Faulty, fault
    return recipe


FAULTS = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.max()),
    "tolist": lambda x: x.flatten()[:3].tolist(),
    "cpu": lambda x: x.cpu(),
    "if": lambda x: 1 if x[0, 0, 0, 0] > 0 else 0,
    "mask": lambda x: x[x > 0],
    "a value for each place of a mask": lambda x: x.index_put_((x == 0,), x.flatten() + 1),
    "nonzero": lambda x: (x > 0).nonzero(),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x + 1),
    "repetitions": lambda x: x.repeat_interleave(torch.ones(len(x), dtype=torch.int64, device=x.device), 0),
    "numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new numbers": lambda x: x.new_tensor([1.0, 2.0]),
    "copy from the host": lambda x: torch.zeros(2).to(x),
    "copy into": lambda x: x.copy_(torch.zeros(x.shape)),
    "index of the host": lambda x: x[torch.tensor([0, 1])],
    "index of a list": lambda x: x[[0, 1]],
    "index by a number of the device": lambda x: x[x.long().flatten()[0] * 0],
}


def number_set(x):
    x[0, 0, 0, 0] = 1
    x[x > 0] = 2


NO_FAULTS = {
    "number": lambda x: x * 2 + torch.zeros(()),
    "number set": number_set,
    "index of the device": lambda x: x[torch.zeros(3, dtype=torch.int64, device=x.device)],
    "choice": lambda x: torch.where(x > 0, x, 0.0),
    "copy to the device while the host goes on": lambda x: torch.zeros(2).to(x.device, non_blocking=True),
    "made on the device": lambda x: torch.full((2,), 0.5, device=x.device),
}


@pytest.mark.parametrize("what", NO_FAULTS)
def test_nothing_else_is_noted(what):
    with fake_cuda() as noted, noted() as waits:
        NO_FAULTS[what](torch.zeros(8, 1, 8, 8, device="cuda"))
    assert list(waits) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wait_is_noted_once(fault):
    with fake_cuda() as noted, noted() as waits:
        FAULTS[fault](torch.zeros(8, 1, 8, 8, device="cuda"))
    assert list(waits.values()) == [1]


def test_a_wait_in_the_step_of_a_recipe_is_found():
    waits = waits_of(faulty(FAULTS["item"]), data_for("Supervised"))
    assert list(waits["training"].values()) == [1]  # a single step
    assert list(waits["validation"]) == []


@pytest.mark.parametrize("fault", [lambda x: x + torch.zeros(8, 8), lambda x: torch.cat([x, torch.zeros(1, 1, 8, 8)])])
def test_a_tensor_of_the_host_in_the_step_of_a_recipe_is_refused(fault):
    with pytest.raises(RuntimeError, match="tensors of two devices: .* is on the CPU"):
        waits_of(faulty(fault), data_for("Supervised"))


def test_what_is_computed_is_what_the_cpu_computes():
    results = []
    for place in ({}, {"accelerator": "auto", "strategy": strategy()}):
        recipe = build("MoCo")
        seed_everything(1, verbose=False)
        with fake_cuda():
            quiet_trainer(max_steps=2, limit_val_batches=0, **place).fit(recipe, data_for("MoCo"))
        results.append(recipe.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)
