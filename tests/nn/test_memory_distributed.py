"""Memories in runs of one and of two processes."""

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import distributed

from datamodules import Digits
from recipes.base.recipe import Recipe
from recipes.nn import ConvNet, FeatureQueue, MemoryBank
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

BATCH = 20
MEMORIES = ["queue.features", "queue.position", "bank.features"]
BUFFERS = [*MEMORIES, "other"]


class Remembering(Recipe):
    """Puts the features of all devices into a queue and a bank."""

    def __init__(self, size=2 * BATCH):
        super().__init__(ConvNet((4, 6), norm="group"), lambda p: torch.optim.SGD(p, lr=0.1))
        self.queue = FeatureQueue(size, 6)
        self.bank = MemoryBank(1257, 6)
        self.register_buffer("other", torch.tensor(0.0))  # that of the first device on all

    def training_step(self, batch, batch_idx):
        features = self(batch.image)
        everyones = self.gather(features.detach())
        self.queue.push(everyones)
        self.bank.update(self.gather(batch.index), everyones)
        return (features @ self.queue.features.T.clone()).square().mean()


class Apart(Remembering):
    """Begins with something else on every device, and puts nothing in."""

    def on_train_start(self):
        for memory in (self.queue, self.bank):
            memory.features.fill_(self.global_rank)
        self.queue.position.fill_(self.global_rank)
        self.other.fill_(self.global_rank)

    def training_step(self, batch, batch_idx):
        return self(batch.image).square().mean()


class Sent(Apart):
    """Has DDP send everything."""

    _ddp_params_and_buffers_to_ignore = ()


def fit(recipe, devices):
    seed_everything(0, verbose=False)
    recipe = recipe()
    trainer = quiet_trainer(devices=devices, precision="64-true", max_steps=5)
    trainer.fit(recipe, Digits(batch_size=BATCH, size=8, num_workers=0))
    return {name: recipe.state_dict()[name].numpy() for name in BUFFERS}  # tensors would share their memory


def fit_apart():
    return [fit(kind, 2) for kind in (Apart, Sent)]


def test_what_all_devices_gather_makes_the_same_memories_on_each_as_on_one():
    (one,) = run(fit, Remembering, 1)
    two = run(fit, Remembering, 2, processes=2)
    begun = Remembering().double()
    for name in MEMORIES:
        assert (two[0][name] == two[1][name]).all()
        assert two[0][name] == pytest.approx(one[name], rel=1e-10, abs=1e-12)
    moved = (torch.from_numpy(one["bank.features"]) - begun.bank.features).norm(dim=1) > 1e-6
    assert moved.sum() == 5 * BATCH
    assert one["queue.position"] == 5 * BATCH % (2 * BATCH)
    assert ((torch.from_numpy(one["queue.features"]) - begun.queue.features).norm(dim=1) > 1e-6).all()


def test_ddp_leaves_memories_alone_and_sends_all_else():
    assert set(Remembering()._ddp_params_and_buffers_to_ignore) == set(MEMORIES)
    for rank, (apart, sent) in enumerate(run(fit_apart, processes=2)):
        for name in MEMORIES:
            assert (apart[name] == rank).all()  # as it was left on each device
            assert (sent[name] == 0).all()  # what the first device has
        assert apart["other"] == sent["other"] == 0


def gather_in_parts():
    """Without a Trainer: into one queue goes what is gathered in rank order, into the other the whole batch."""
    rank, queues = distributed.get_rank(), [FeatureQueue(7, 3).double() for _ in range(2)]
    for seed in range(4):
        whole = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        parts = [torch.empty(3, 3, dtype=torch.float64) for _ in range(2)]
        distributed.all_gather(parts, whole.chunk(2)[rank].contiguous())
        queues[0].push(torch.cat(parts))
        queues[1].push(whole)
    assert torch.equal(queues[0].features, queues[1].features)
    return queues[0].features.tolist()


def test_a_queue_that_no_batch_divides_is_the_same_on_all_devices():
    one, two = run(gather_in_parts, processes=2)
    assert one == two
