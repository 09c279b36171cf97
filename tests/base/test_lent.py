"""Recipes give back what they were lent; tests/system/test_python.py tries all of them."""

import copy
import io

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from datamodules import Digits
from recipes import SVM, InstanceDiscrimination, LinearProbe, MoCo, Supervised
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


@pytest.mark.parametrize("kind", [LinearProbe, SVM])
def test_a_probe_keeps_the_normalisation_of_its_data_to_itself(kind):
    dark = DataLoader([(torch.full((1, 8, 8), 0.1 * i / 63), i % 2) for i in range(64)], batch_size=32)
    encoder = supervised().encoder
    probe = kind(encoder, 10)
    probe.normalize.set((0.25,), (0.5,), provisional=True)  # of data that it was only used with
    fit(probe)
    mean = probe.normalize.mean.clone()
    assert encoder.input_normalize.known is None
    quiet_trainer(max_steps=1).fit(Supervised(encoder, 10, scheduler=None), dark)
    assert torch.equal(probe.normalize.mean, mean)
    assert not torch.equal(encoder.input_normalize.mean, mean)


def test_loaders_are_not_taken_for_the_data_of_the_run_before():
    recipe, trainer, data = supervised(), quiet_trainer(max_steps=2), Digits(size=8, batch_size=32)
    trainer.fit(recipe, datamodule=data)
    images = [(torch.rand(1, 8, 8), 0)] * 4
    assert len(trainer.predict(recipe, DataLoader(images, batch_size=2))) == 2
    assert trainer.validate(recipe, DataLoader(images, batch_size=2), verbose=False)


def test_a_trainer_at_its_limit_is_refused_for_a_recipe_without_gradient_steps():
    trainer = quiet_trainer(max_epochs=1, limit_train_batches=1)
    trainer.fit(SVM(ConvNet((4,)), num_classes=10, grid=(1.0,)), datamodule=Digits(size=8))
    second = SVM(ConvNet((4,)), num_classes=10, grid=(1.0,))
    with pytest.raises(ValueError, match="reached its limit in an earlier run, after step 1"):
        trainer.fit(second, datamodule=Digits(size=8))


def test_a_trainer_that_has_nothing_left_to_do_is_refused():
    trainer, data = quiet_trainer(max_steps=2), Digits(size=8, batch_size=32)
    trainer.fit(supervised(), datamodule=data)
    with pytest.raises(ValueError, match="reached its limit in an earlier run, after step 2"):
        trainer.fit(supervised(), datamodule=data)


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


def test_a_recipe_that_was_trained_in_float64_takes_images_of_any_type():
    recipe = fit(supervised(), precision="64-true")
    image = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    logits = [recipe.classify(each) for each in (image, image / 255, image.double() / 255)]
    assert {each.dtype for each in logits} == {torch.float64}
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)


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
