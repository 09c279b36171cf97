"""Recipes give back what they were lent; tests/system/test_python.py tries all of them."""

import copy
import io

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn

from datamodules import Digits
from recipes import InstanceDiscrimination, LinearProbe, MoCo, Supervised
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*(random weights|sanity|bf16-true|queue_size)")


def supervised():
    torch.manual_seed(0)
    return Supervised(ConvNet((4, 6)), 10, scheduler=None)


def fit(recipe, **options):
    seed_everything(0, verbose=False)
    quiet_trainer(**{"max_steps": 2, "limit_val_batches": 0, **options}).fit(recipe, Digits(size=8, batch_size=32))
    return recipe


class Failure(Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("out of luck")


def test_an_encoder_learns_again_after_a_probe_on_it():
    recipe = supervised()
    probe = LinearProbe(recipe.encoder, 10)
    assert all(parameter.requires_grad for parameter in recipe.encoder.parameters())
    before = copy.deepcopy(recipe.encoder.state_dict())
    fit(probe)
    assert all(torch.equal(value, before[name]) for name, value in recipe.encoder.state_dict().items())
    fit(recipe)
    assert not [name for name, value in recipe.encoder.named_parameters() if torch.equal(value, before[name])]


def test_batch_norm_in_parts_ends_with_a_run_that_fails():
    recipe = MoCo(ConvNet((4, 6)), queue_size=64, batch_norm_splits=4)
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(recipe, callbacks=[Failure()])
    assert {type(part) for part in recipe.modules() if isinstance(part, nn.BatchNorm2d)} == {nn.BatchNorm2d}


def test_parameters_that_the_recipe_did_not_freeze_are_named(recwarn):
    recipe = supervised()
    recipe.encoder.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"6 parameters of the encoder .* not trained: network.0.weight, .* and 3 more"
    ):
        fit(recipe)
    recwarn.clear()
    fit(LinearProbe(recipe.encoder, 10))
    assert not [each for each in recwarn if "requires_grad" in str(each.message)]


def test_layers_that_alone_were_in_eval_mode_are_named():
    recipe = supervised()
    recipe.encoder.network[1].eval()
    with pytest.warns(UserWarning, match=r"layers of the encoder were in eval mode and train now: network.1"):
        fit(recipe)
    assert not recipe.encoder.network[1].training


def test_a_recipe_in_eval_mode_trains_in_train_mode():
    recipe = fit(supervised().eval())
    torch.testing.assert_close(recipe.state_dict(), fit(supervised()).state_dict(), rtol=0, atol=0)
    assert not any(part.training for part in recipe.modules())


def test_prediction_in_half_precision_does_not_round_the_weights():
    recipe = fit(supervised())
    before = copy.deepcopy(recipe.state_dict())
    quiet_trainer(precision="bf16-true").predict(recipe, Digits(size=8))
    torch.testing.assert_close(recipe.state_dict(), before, rtol=0, atol=0)
    assert recipe.dtype == torch.float32


def test_a_state_dict_carries_the_names_of_the_classes():
    recipe, file, new = fit(supervised()), io.BytesIO(), supervised()
    torch.save(recipe.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))
    assert new.trained
    assert new.encoder.pretrained
    assert new.class_names == recipe.class_names != ()


@pytest.mark.slow
def test_a_spawned_process_gives_what_this_one_gives():
    def trained(**options):
        torch.manual_seed(0)
        recipe = InstanceDiscrimination(ConvNet((4, 6)), negatives=8, projection_dim=4)
        return fit(recipe, **options)

    expected, spawned = trained(), trained(strategy="ddp_spawn")
    torch.testing.assert_close(spawned.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert spawned.trained
