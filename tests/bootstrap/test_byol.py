import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

from datamodules import Digits
from recipes import BYOL
from recipes.nn import ConvNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def byol(**arguments):
    seed_everything(0, verbose=False)
    arguments = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        "scheduler": None,
        "lr_batch_size": None,
    } | arguments
    return BYOL(ConvNet((4, 8)), projection_dim=5, projection_hidden_dim=7, **arguments)


def trainer(tmp_path, *callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks)}
    quiet |= {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    options = {"precision": "64-true", "accelerator": "cpu", "devices": 1} | options
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), **quiet, **options)


class Weights(Callback):
    """The online and the target network's parameters at the start and after each step of the optimiser."""

    def __init__(self):
        self.online, self.target, self.steps = [], [], []

    def on_train_start(self, trainer, recipe):
        self.keep(trainer, recipe)

    def on_train_batch_end(self, trainer, recipe, outputs, batch, batch_idx):
        if trainer.global_step != self.steps[-1]:
            self.keep(trainer, recipe)

    def keep(self, trainer, recipe):
        followed = [*recipe.encoder.parameters(), *recipe.projector.parameters()]
        self.online.append(torch.cat([p.detach().flatten() for p in followed]))
        self.target.append(torch.cat([p.flatten() for p in recipe.target.parameters()]))
        self.steps.append(trainer.global_step)


def followed(weights, total, initial=0.9):
    """The target that Equation 1 and Section 3.3 give for the online networks seen."""
    target = [weights.target[0]]
    for step, online in zip(weights.steps, weights.online[1:]):
        tau = 1 - (1 - initial) * (math.cos(math.pi * step / total) + 1) / 2
        target.append(tau * target[-1] + (1 - tau) * online)
    return target


LENGTHS = {
    "max_steps alone": ({"max_steps": 11}, 11),
    "max_epochs alone": ({"max_epochs": 2}, 18),
    "accumulation": ({"max_epochs": 2, "accumulate_grad_batches": 4}, 6),
    "accumulation and max_steps": ({"max_steps": 5, "accumulate_grad_batches": 2}, 5),
}


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
def test_target_follows_once_per_step_with_tau_over_the_whole_run(length, tmp_path):
    options, total = LENGTHS[length]
    weights = Weights()
    trainer(tmp_path, weights, **options).fit(byol(momentum=0.9), Digits(batch_size=128))
    assert weights.steps == list(range(total + 1))
    assert torch.equal(weights.target[0], weights.online[0])
    torch.testing.assert_close(weights.target, followed(weights, total), rtol=1e-12, atol=1e-14)
    assert not torch.equal(weights.target[-1], weights.target[-2])


@pytest.mark.slow
def test_tau_goes_on_after_a_resume(tmp_path):
    weights, resumed = Weights(), Weights()
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer(tmp_path, weights, saving, max_steps=11).fit(byol(momentum=0.9), Digits(batch_size=128))
    path = tmp_path / "step=4.ckpt"
    trainer(tmp_path, resumed, max_steps=11).fit(byol(momentum=0.9), Digits(batch_size=128), ckpt_path=path)
    assert resumed.steps == list(range(4, 12))
    assert torch.equal(torch.stack(resumed.target), torch.stack(weights.target[4:]))
    torch.testing.assert_close(resumed.target, followed(resumed, 11), rtol=1e-12, atol=1e-14)


def test_a_constant_tau_of_0_makes_the_target_the_online_network_and_of_1_leaves_it(tmp_path):
    for momentum in (0, 1):
        weights = Weights()
        recipe = byol(momentum=momentum, constant_momentum=True)
        trainer(tmp_path, weights, max_steps=3).fit(recipe, Digits(batch_size=128))
        expected = weights.online[1:] if momentum == 0 else [weights.online[0]] * 3
        assert all(torch.equal(a, b) for a, b in zip(weights.target[1:], expected, strict=True))


def test_a_rising_tau_needs_a_run_with_an_end_and_a_constant_one_does_not(tmp_path):
    options = {"max_epochs": -1, "max_time": {"seconds": 1}}
    trainer(tmp_path, **options).fit(byol(constant_momentum=True), Digits(batch_size=128))
    with pytest.raises(ValueError, match="the schedule needs the length of the run"):
        trainer(tmp_path, **options).fit(byol(), Digits(batch_size=128))


def a_step(recipe, tmp_path, logged=None):
    """The loss of one batch of 32, and its two views."""
    data = Digits(batch_size=32)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    recipe.trainer = trainer(tmp_path)
    recipe.log = lambda name, value, **_: {} if logged is None else logged.update({name: value})
    views = [recipe.normalize(recipe.views(batch.image, recipe.key(batch, view))) for view in (0, 1)]
    return recipe.training_step(batch, 0), views


def test_the_loss_is_the_distance_of_predictions_to_targets_of_the_other_view(tmp_path):
    recipe = byol()
    for p in recipe.target.parameters():  # a target that has gone its own way
        p.data += 0.1 * torch.randn_like(p)
    loss, (one, two) = a_step(recipe, tmp_path)

    def predicted(view):
        return F.normalize(recipe.predictor(recipe.projector(recipe.encoder(view))))

    def target(view):
        return F.normalize(recipe.target.copies[1](recipe.target.copies[0](view)))

    expected = sum(((predicted(a) - target(b)) ** 2).sum(1).mean() for a, b in ((one, two), (two, one)))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in recipe.target.parameters())
    assert all(p.grad is not None for p in recipe.parameters() if p.requires_grad)


def test_spread_of_projections_is_that_of_the_first_views(tmp_path):
    recipe = byol()
    logged = {}
    _, (one, _) = a_step(recipe, tmp_path, logged)
    z = F.normalize(recipe.projector(recipe.encoder(one)))
    expected = sum(column.var(correction=0).sqrt() for column in z.T) / 5 * 5**0.5
    torch.testing.assert_close(logged["train/projection_std"](), expected.detach())


def test_without_a_target_the_gradient_flows_through_both_sides(tmp_path):
    recipe = byol(target=False)
    loss, (one, two) = a_step(recipe, tmp_path)
    z1, z2 = (recipe.projector(recipe.encoder(view)) for view in (one, two))
    p1, p2 = recipe.predictor(z1), recipe.predictor(z2)
    expected = 4 - 2 * F.cosine_similarity(p1, z2).mean() - 2 * F.cosine_similarity(p2, z1).mean()
    torch.testing.assert_close(loss, expected)
    weight = recipe.projector[0].weight
    (given,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (stopped,) = torch.autograd.grad(
        4 - 2 * F.cosine_similarity(p1, z2.detach()).mean() - 2 * F.cosine_similarity(p2, z1.detach()).mean(),
        weight,
        retain_graph=True,
    )
    (whole,) = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(given, whole)
    assert (given - stopped).abs().max() > 1e-3 * stopped.abs().max()


def test_without_a_predictor_projections_are_the_predictions(tmp_path):
    recipe = byol(predictor=False)
    loss, (one, two) = a_step(recipe, tmp_path)
    z1, z2 = (recipe.projector(recipe.encoder(view)) for view in (one, two))
    t1, t2 = recipe.target(one), recipe.target(two)
    expected = 4 - 2 * F.cosine_similarity(z1, t2).mean() - 2 * F.cosine_similarity(z2, t1).mean()
    torch.testing.assert_close(loss, expected)


def test_negatives_are_the_targets_of_both_views_of_the_other_images(tmp_path):
    recipe = byol(negatives_weight=0.5, temperature=0.2)
    loss, views = a_step(recipe, tmp_path)
    p = [F.normalize(recipe.predictor(recipe.projector(recipe.encoder(view)))) for view in views]
    t = [F.normalize(recipe.target(view)) for view in views]
    expected = 0.0
    for v in (0, 1):
        for i in range(32):
            keys = [t[1 - v][j] for j in range(32)] + [t[v][j] for j in range(32) if j != i]
            away = torch.stack([torch.exp(p[v][i] @ key / 0.2) for key in keys]).sum().log()
            expected = expected + (2 - 2 * p[v][i] @ t[1 - v][i] + 2 * 0.2 * 0.5 * away) / 32
    torch.testing.assert_close(loss, expected)


def test_a_momentum_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match=r"momentum is 1\.5"):
        byol(momentum=1.5)
