import pytest
import torch
from lightning.pytorch import seed_everything

from datamodules import Digits
from recipes import Supervised
from recipes.callbacks import MaxNorm
from recipes.nn import MLP, ConvNet
from tests.helpers.training import quiet_trainer


@pytest.mark.parametrize("encoder", [MLP, ConvNet])
def test_incoming_weights_are_shortened_to_the_bound_and_shorter_ones_are_left_alone(encoder):
    seed_everything(0, verbose=False)
    recipe = Supervised(MLP(8, hidden=(8, 8)) if encoder is MLP else ConvNet((4, 8)), 10)
    before = {name: value.clone() for name, value in recipe.state_dict().items()}
    weights = [value for name, value in before.items() if name.startswith("encoder") and value.ndim > 1]
    largest = torch.cat([weight.flatten(1).norm(dim=1) for weight in weights]).median().item()
    MaxNorm(largest).on_train_batch_end(None, recipe)
    shortened = kept = 0
    for name, value in recipe.state_dict().items():
        old = before[name]
        if name.startswith("encoder") and name.endswith("weight") and value.ndim > 1:
            for unit, was in zip(value.flatten(1), old.flatten(1), strict=True):
                if was.square().sum().sqrt() > largest:
                    torch.testing.assert_close(unit, was * (largest / was.square().sum().sqrt()))
                    shortened += 1
                else:
                    assert torch.equal(unit, was)
                    kept += 1
        else:
            assert torch.equal(value, old)
    assert shortened
    assert kept


def test_weights_stay_within_the_bound_all_through_the_training(tmp_path):
    seed_everything(0, verbose=False)
    recipe = Supervised(MLP(8, hidden=(8,), batch_norm=False), 10, lr_batch_size=None, scheduler=None)
    trainer = quiet_trainer(max_epochs=2, callbacks=[MaxNorm(0.5)], limit_val_batches=0)
    trainer.fit(recipe, Digits(size=8, batch_size=64))
    norms = recipe.encoder.network[1].weight.norm(dim=1)
    assert norms.max() <= 0.5 + 1e-6
    assert recipe.head.weight.norm(dim=1).max() > 0.5


def test_a_norm_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="largest is 0"):
        MaxNorm(0)
