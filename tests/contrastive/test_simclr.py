import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from datamodules import Digits
from losses import NTXent
from recipes import SimCLR
from recipes.nn import ConvNet


def test_training_step_is_the_loss_of_two_views_of_every_image_encoded_in_one_pass(tmp_path):
    seed_everything(0, verbose=False)
    recipe = SimCLR(ConvNet((4, 8)), temperature=0.3)
    data = Digits(batch_size=32)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    recipe.trainer = Trainer(default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu")
    recipe.log = lambda *_, **__: None
    loss = recipe.training_step(batch, 0)
    one, two = (recipe.views(batch.image, recipe.key(batch, view)) for view in (0, 1))
    z = recipe.projector(recipe.encoder(recipe.normalize(torch.cat([one, two]))))
    torch.testing.assert_close(loss, NTXent(0.3)(z[:32], z[32:]))
    assert not torch.equal(one, two)


def test_features_are_taken_before_the_projection_head():
    recipe = SimCLR(ConvNet((4, 8)), projection_dim=3)
    assert recipe(torch.zeros(2, 1, 16, 16, dtype=torch.uint8)).shape == (2, 8)


@pytest.mark.parametrize("width", [{"projection_dim": 0}, {"projection_hidden_dim": 0}])
def test_a_projection_without_width_is_refused(width):
    with pytest.raises(ValueError, match=f"{next(iter(width))} is 0: it must be at least 1"):
        SimCLR(ConvNet((4, 8)), **width)


def test_projection_has_the_width_that_is_asked_for():
    recipe = SimCLR(ConvNet((4, 8)), projection_dim=3)
    assert recipe.projector(torch.zeros(2, 8)).shape == (2, 3)
