import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.autograd.graph import saved_tensors_hooks

from datamodules import Batch, Digits
from recipes import SimCLR
from recipes.nn import ConvNet, CrossDeviceBatchNorm, in_micro_batches
from tests.helpers.processes import run

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def fit(tmp_path, micro_batch_size, encoder=lambda: ConvNet((4, 8), norm="group"), **options):
    seed_everything(0, verbose=False)
    recipe = SimCLR(
        encoder(),
        micro_batch_size=micro_batch_size,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        scheduler=None,
        lr_batch_size=None,
    )
    gradients = Gradients()
    options = {"precision": "64-true", "devices": 1, **options}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=3, limit_val_batches=0, callbacks=gradients, enable_model_summary=False,
        default_root_dir=tmp_path, **quiet, **options,
    )  # fmt: skip
    trainer.fit(recipe, Digits(batch_size=64))
    return recipe, gradients.seen


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 24, 32])
def test_gradients_are_those_of_the_batch_at_once(size, tmp_path):
    recipe, expected = fit(tmp_path, None)
    micro, seen = fit(tmp_path, size)
    assert len(seen) == 3
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(micro.state_dict(), recipe.state_dict(), rtol=1e-9, atol=1e-12)  # batch norm in the head


def test_gradients_with_frozen_batch_norm_are_those_of_the_batch_at_once(tmp_path):
    class Frozen(ConvNet):
        def train(self, mode=True):
            return super().train(False)

    _, expected = fit(tmp_path, None, lambda: Frozen((4, 8)))
    _, seen = fit(tmp_path, 24, lambda: Frozen((4, 8)))
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_accumulated_batches_are_the_same_too(tmp_path):
    _, expected = fit(tmp_path, None, accumulate_grad_batches=2)
    _, seen = fit(tmp_path, 24, accumulate_grad_batches=2)
    torch.testing.assert_close(seen, expected, rtol=1e-9, atol=1e-12)


def fit_on_two_devices(tmp_path):
    recipe, _ = fit(tmp_path, 12, devices=2, strategy="ddp", plugins=CrossDeviceBatchNorm())
    return {name: value.numpy() for name, value in recipe.state_dict().items()}


def test_on_two_devices_the_weights_are_those_of_the_batch_at_once_on_one(tmp_path):
    expected, _ = fit(tmp_path, None)
    for weights in run(fit_on_two_devices, tmp_path, processes=2):
        weights = {name: torch.from_numpy(value) for name, value in weights.items()}
        torch.testing.assert_close(weights, dict(expected.state_dict()), rtol=1e-9, atol=1e-12)


def test_under_autocast_the_second_pass_has_the_precision_of_the_first(tmp_path):
    _, expected = fit(tmp_path, None, precision="bf16-mixed")
    _, seen = fit(tmp_path, 24, precision="bf16-mixed")
    for name, gradient in expected[0].items():
        assert (seen[0][name] - gradient).norm() < 0.02 * gradient.norm(), name


def test_between_the_passes_nothing_of_an_image_is_held_but_its_features():
    held = []
    layer = torch.nn.Linear(3, 4)
    batch = Batch(torch.rand(64, 3), torch.arange(64), torch.arange(64))

    def features(part):
        assert torch.equal(part.label, part.index)
        return torch.tanh(layer(part.image))

    with saved_tensors_hooks(lambda x: held.append(x.shape) or x, lambda x: x):
        out = in_micro_batches(features, batch, 16)
    assert not [shape for shape in held if len(shape) == 2]  # nothing of an image, before the backward pass
    assert torch.equal(out, features(batch))


def test_an_encoder_with_batch_norm_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="micro_batch_size is 24, but the encoder has batch norm.*norm='group'"):
        fit(tmp_path, 24, lambda: ConvNet((4, 8)))


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_that_is_not_positive_is_refused(size):
    with pytest.raises(ValueError, match=f"micro_batch_size is {size}"):
        SimCLR(ConvNet((4, 8)), micro_batch_size=size)
