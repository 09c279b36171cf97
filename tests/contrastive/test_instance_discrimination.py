import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn import functional as F

import recipes
from datamodules import Batch, Digits
from recipes import InstanceDiscrimination
from recipes.cli import main
from recipes.nn import ConvNet, CrossDeviceBatchNorm
from tests.helpers.processes import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def recipe_of(**arguments):
    seed_everything(0, verbose=False)
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "scheduler": None, "lr_batch_size": None}
    small = {"projection_dim": 5, "negatives": 40, "temperature": 0.3, "proximal_weight": 2.0}
    return InstanceDiscrimination(ConvNet((4, 8)), **{**sgd, **small, **arguments})


def fit(recipe, tmp_path, **options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"max_steps": 3, "precision": "64-true", "devices": 1, "limit_val_batches": 0} | quiet | options
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(recipe, Digits(batch_size=32))
    return recipe


class Watched(InstanceDiscrimination):
    """Notes what goes into each step, and what comes out."""

    def training_step(self, batch, batch_idx):
        bank = self.bank.features.clone()
        with torch.no_grad():
            z = self.projector(self(self.views(batch.image, self.key(batch))))  # in train mode: as the step sees it
        drawn = None if self.negatives is None else self.draw(batch, self.negatives)
        loss = super().training_step(batch, batch_idx)
        self.steps.append((batch, bank, F.normalize(z), drawn, self.log_z.item(), loss.item()))
        return loss


def watched(tmp_path, **arguments):
    recipe = recipe_of(**arguments)
    recipe.__class__ = Watched
    recipe.steps = []
    return fit(recipe, tmp_path)


def test_noise_contrastive_loss_is_that_of_a_loop_over_the_images_drawn(tmp_path):
    n, m = 1257, 40
    steps = watched(tmp_path).steps
    _, bank, z, drawn, log_z, _ = steps[0]
    first = np.mean([[math.exp(bank[j] @ z[i] / 0.3) for j in drawn] for i in range(32)])
    assert math.exp(log_z) == pytest.approx(n * first)
    for batch, bank, z, drawn, log_z_now, loss in steps:
        assert log_z_now == log_z  # constant from the first batch on
        expected = 0.0
        for i, index in enumerate(batch.index):
            p = {j: math.exp(bank[j] @ z[i] / 0.3) / math.exp(log_z) for j in [index.item(), *drawn.tolist()]}
            posterior = {j: p[j] / (p[j] + m / n) for j in p}
            expected -= math.log(posterior[index.item()]) + sum(math.log(1 - posterior[j]) for j in drawn.tolist())
            expected += 2.0 * ((z[i] - bank[index]) ** 2).sum().item()
        assert loss == pytest.approx(expected / 32)


def test_without_noise_the_loss_is_the_cross_entropy_over_all_images(tmp_path):
    for batch, bank, z, _, _, loss in watched(tmp_path, negatives=None).steps:
        assert loss == pytest.approx(F.cross_entropy(z @ bank.T / 0.3, batch.index).item())


def test_a_run_without_noise_goes_on_with_noise(tmp_path):
    recipe = fit(recipe_of(negatives=None), tmp_path)
    assert recipe.log_z.isneginf()
    state = {"state_dict": {**recipe.state_dict(), "log_z": torch.tensor(math.nan)}}  # an earlier version's
    again = recipe_of()
    again.on_load_checkpoint(state)
    again.load_state_dict(state["state_dict"])
    assert fit(again, tmp_path).log_z.isfinite()
    known = again.log_z.clone()
    assert torch.equal(fit(again, tmp_path).log_z, known)


def test_bank_moves_the_rows_of_the_images_seen_and_no_other(tmp_path):
    recipe = watched(tmp_path, bank_momentum=0.25)
    (batch, before, z, *_), (_, after, *_) = recipe.steps[:2]
    expected = before.clone()
    for i, index in enumerate(batch.index):
        row = 0.25 * before[index] + 0.75 * z[i]
        expected[index] = row / row.norm()
    torch.testing.assert_close(after, expected)


def test_images_are_drawn_evenly_and_anew_for_every_batch():
    recipe = recipe_of(num_images=7)
    recipe.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    batches = [Batch(torch.empty(0), torch.empty(0), torch.arange(start, start + 32)) for start in (0, 32)]
    one, two = (recipe.draw(batch, 70_000) for batch in batches)
    assert one.shape == two.shape == (70_000,)
    assert not torch.equal(one, two)
    counts = one.bincount(minlength=7)
    assert len(counts) == 7
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(10_000)
    assert torch.equal(one[:5], recipe.draw(batches[0], 70_000)[:5])


def state(tmp_path, devices, negatives):
    across = {"strategy": "ddp", "plugins": CrossDeviceBatchNorm()} if devices > 1 else {}
    recipe = fit(recipe_of(negatives=negatives), tmp_path, devices=devices, **across)
    return {name: value.numpy() for name, value in recipe.state_dict().items()}


@pytest.mark.parametrize("negatives", [40, None])
def test_every_device_ends_with_the_bank_and_weights_of_one_device(negatives, tmp_path):
    expected = state(tmp_path, 1, negatives)
    for found in run(state, tmp_path, 2, negatives, processes=2):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_a_run_is_loaded_with_its_bank_and_goes_on_only_with_its_own_images(tmp_path, capsys):
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "0"]
    short += ["--model.scheduler", "null"]
    main(["fit", "--config", "instance-discrimination-digits", "--runs", str(tmp_path), *short])
    (directory,) = tmp_path.glob("*/*")
    recipe = recipes.load(directory)
    assert len(recipe.bank) == 1257
    assert recipe.bank.features.norm(dim=1).allclose(torch.ones(1257))
    assert not recipe.log_z.isnan()
    checkpoint = directory / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", str(checkpoint), "--runs", str(tmp_path), "--model.num_images", "9", *short])
    assert "the memory bank is of 9 images, but there are 1257 to train on" in capsys.readouterr().err


def test_without_a_datamodule_the_number_of_images_is_asked_for(tmp_path):
    data = Digits(batch_size=32)
    data.setup()
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="num_images is required"):
        trainer.fit(recipe_of(), data.train_dataloader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "negatives is 0"),
        ({"proximal_weight": -1}, "proximal_weight is -1"),
        ({"bank_momentum": 2}, "bank_momentum is 2"),
        ({"temperature": 0}, "temperature is 0"),
        ({"num_images": -1}, "num_images is -1"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(**arguments)
