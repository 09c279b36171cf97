import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules import Digits
from recipes.augment import HandwritingViews, Views
from recipes.nn import MLP, ConvNet, CrossDeviceBatchNorm, Encoder, ViT, stage_features
from recipes.transfer.linear_probe import LinearProbe
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class NoViews(Views):
    """Images as they are, at every step anew."""

    def view(self, image, key):
        return image


class Watch(Callback):
    """Notes what the optimiser has, which gradients there are, and how many images the encoder sees in training."""

    def __init__(self):
        self.optimised = self.with_gradient = None
        self.images = 0

    def setup(self, trainer, pl_module, stage):
        self.handle = pl_module.encoder.register_forward_pre_hook(self.count)

    def count(self, module, args):
        assert not any(part.training for part in module.modules())
        self.images += len(args[0])

    def on_train_start(self, trainer, pl_module):
        (optimizer,) = trainer.optimizers
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self.optimised = {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}

    def on_after_backward(self, trainer, pl_module):
        self.with_gradient = {name for name, p in pl_module.named_parameters() if p.grad is not None}

    def teardown(self, trainer, pl_module, stage):
        self.handle.remove()


def trained_encoder():
    """Batch norm with statistics of its own and dropout: what may move although it is frozen."""
    torch.manual_seed(1)
    convolutional = ConvNet((4, 8))
    for module in convolutional.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    encoder = Encoder(nn.Sequential(convolutional, nn.Dropout(0.5)), feature_dim=8, in_channels=1)
    encoder.pretrained = True
    return encoder


def fit(folder, epochs=2, ckpt_path=None, devices=1, **arguments):
    seed_everything(0, verbose=False)
    arguments = {"encoder": trained_encoder(), "num_classes": 10, "scheduler": None, **arguments}
    recipe, watch = LinearProbe(**arguments), Watch()
    trainer = quiet_trainer(
        devices=devices,
        precision="64-true",
        max_epochs=epochs,
        limit_val_batches=1,
        callbacks=[watch],
        plugins=[CrossDeviceBatchNorm()],
        default_root_dir=folder,
    )
    trainer.fit(recipe, Digits(size=8, batch_size=250), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{devices}-{epochs}.ckpt")
    return recipe, watch


def state(folder, devices, epochs):
    return torch.load(folder / f"{devices}-{epochs}.ckpt", weights_only=True)["state_dict"]


def assert_frozen(recipe, watch):
    for name, value in recipe.encoder.state_dict().items():
        before = trained_encoder().state_dict()[name]
        assert torch.equal(value, before.to(value)), name
    assert watch.optimised == watch.with_gradient == {"head.weight", "head.bias"}


def two_processes(folder):
    recipe, watch = fit(folder, devices=2, batch_norm=True)
    assert_frozen(recipe, watch)
    assert_frozen(*fit(folder, epochs=3, ckpt_path=folder / "2-2.ckpt", devices=2, batch_norm=True))
    torch.save(recipe.state_dict(), folder / f"rank{torch.distributed.get_rank()}.pt")


def test_the_encoder_is_bit_identical_after_training_and_only_the_head_is_trained(tmp_path):
    for views in (None, HandwritingViews()):
        recipe, watch = fit(tmp_path, views=views)
        assert_frozen(recipe, watch)
        assert recipe.head.bias.all()  # it starts at zero


def test_two_processes_and_a_resumed_run_keep_the_encoder_and_end_as_one_process(tmp_path):
    run(two_processes, tmp_path, processes=2)
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    fit(tmp_path, batch_norm=True)
    recipe, watch = fit(tmp_path, epochs=3, ckpt_path=tmp_path / "1-2.ckpt", batch_norm=True)
    assert_frozen(recipe, watch)
    whole, _ = fit(tmp_path / "whole", epochs=3, batch_norm=True)
    assert torch.equal(recipe.head.weight, whole.head.weight)
    for name, value in state(tmp_path, 1, 2).items():
        for other in ranks:
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-10)
    torch.testing.assert_close(state(tmp_path, 2, 3), state(tmp_path, 1, 3), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_training_on_features_computed_once_is_training_through_the_encoder(batch_norm, tmp_path):
    cached, _ = fit(tmp_path, batch_norm=batch_norm)
    through, _ = fit(tmp_path, batch_norm=batch_norm, views=NoViews())
    for name, value in cached.state_dict().items():
        torch.testing.assert_close(value, through.state_dict()[name], rtol=0, atol=1e-10)


def test_every_image_passes_the_encoder_once_however_long_the_training(tmp_path):
    images = 1257 + 180 + 1  # of training and of validation, and the one that setup tries
    assert fit(tmp_path, epochs=1)[1].images == fit(tmp_path, epochs=3)[1].images == images
    assert fit(tmp_path, epochs=1, views=NoViews())[1].images > 3 * 250


def test_the_head_is_that_of_gradient_descent_by_hand(tmp_path):
    encoder = trained_encoder()
    recipe, _ = fit(tmp_path, epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.3), lr_batch_size=500)
    seed_everything(0, verbose=False)
    start = LinearProbe(trained_encoder(), 10).head.double()
    data = Digits(size=8, batch_size=250)
    data.setup()
    weight, bias = start.weight.detach().clone(), start.bias.detach().clone()
    assert weight.std().item() == pytest.approx(0.01, rel=0.3)
    assert not bias.any()
    mean, std = (torch.tensor(x, dtype=torch.float64).view(1, 1, 1, 1) for x in (data.mean, data.std))
    for batch in data.train_dataloader():
        with torch.no_grad():
            x = encoder.double().eval()((batch.image.double() / 255 - mean) / std)
        error = ((x @ weight.T + bias).softmax(1) - F.one_hot(batch.label, 10)) / len(x)
        weight -= 0.15 * error.T @ x  # the lr of 0.3 is that of 500 images
        bias -= 0.15 * error.sum(0)
    torch.testing.assert_close(recipe.head.weight.detach(), weight, rtol=0, atol=1e-6)  # mean and std are in float32
    torch.testing.assert_close(recipe.head.bias.detach(), bias, rtol=0, atol=1e-6)


def test_batch_norm_has_no_scale_and_uses_running_statistics_in_eval_mode():
    torch.manual_seed(0)
    recipe = LinearProbe(ConvNet((4, 8)), 3, batch_norm=True)
    assert [*recipe.batch_norm.parameters()] == []
    feature = torch.randn(16, 8) * 5 + 3
    standard = (feature - feature.mean(0)) / (feature.var(0, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(recipe.logits(feature), recipe.head(standard))
    expected = feature / (0.9 + 0.1 * feature.var(0) + 1e-6).sqrt()
    expected = expected - 0.1 * feature.mean(0) / (0.9 + 0.1 * feature.var(0) + 1e-6).sqrt()
    torch.testing.assert_close(recipe.eval().logits(feature), recipe.head(expected))


def test_the_head_reads_the_features_of_a_stage():
    torch.manual_seed(0)
    encoder = ConvNet((4, 6, 8))
    image = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    for stage, width in ((0, 4), (1, 6), (2, 8), (None, 8)):
        recipe = LinearProbe(encoder, 3, stage=stage)
        feature = recipe(image)
        assert feature.shape == (5, width)
        assert recipe.logits(feature).shape == (5, 3)
        expected = stage_features(encoder, recipe.normalize(image))[-1 if stage is None else stage]
        assert torch.equal(feature, expected)


@pytest.mark.parametrize(("encoder", "width"), [(ViT(8, 4, 12, 2, 2, in_channels=1), 12), (MLP(8, hidden=(5, 7)), 5)])
def test_the_width_of_a_stage_is_known_of_encoders_for_one_image_size_too(encoder, width):
    image = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    assert LinearProbe(encoder, 3, stage=0)(image).shape == (5, width)


def test_a_stage_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"stage is 3: the stages of this ConvNet are 0 \(.*\), 1 \(.*\), 2 \("):
        LinearProbe(ConvNet((4, 6, 8)), 3, stage=3)
    with pytest.raises(ValueError, match="stage is -1"):
        LinearProbe(ConvNet((4, 6, 8)), 3, stage=-1)


def test_the_encoder_stays_in_eval_mode():
    recipe = LinearProbe(ConvNet((4, 8)), 3, batch_norm=True)
    for probe in (recipe, recipe.eval().train()):
        assert probe.training
        assert probe.batch_norm.training
        assert not any(module.training for module in probe.encoder.modules())


def test_random_weights_are_warned_of_once_and_others_not(tmp_path):
    data = Digits(size=8)
    data.setup()
    own = Encoder(ConvNet((4, 8)), feature_dim=8, in_channels=1)
    for encoder, count in ((ConvNet((4, 8)), 1), (trained_encoder(), 0), (own, 0)):
        recipe = LinearProbe(encoder, 10)
        recipe.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path)
        for stage, expected in ((TrainerFn.FITTING, count), (TrainerFn.TESTING, 0)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                recipe.setup(stage.value)
            assert len([w for w in caught if "random weights" in str(w.message)]) == expected


@pytest.mark.parametrize("fast", [True, False])
def test_without_a_datamodule_or_in_a_fast_run_images_pass_the_encoder_at_every_step(fast, tmp_path):
    data = Digits(size=8, batch_size=50)
    data.setup()
    recipe, watch = LinearProbe(trained_encoder(), 10, lr_batch_size=None), Watch()
    trainer = quiet_trainer(
        fast_dev_run=fast,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        callbacks=[watch],
        default_root_dir=tmp_path,
    )
    loader = DataLoader(data.splits.train, batch_size=50, collate_fn=lambda batch: batch)
    trainer.fit(recipe, **({"datamodule": data} if fast else {"train_dataloaders": loader}))
    assert watch.images == 50 + fast * (1 + 50)  # the one that setup tries, and a batch of validation
