"""A name on the command line gives the encoder it means, or an error that says what to write."""

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from datamodules.reading import Reading
from recipes.cli import main
from recipes.cli.commands.encoders import named_encoder, reading_of_runs, taken_of_runs
from recipes.nn import ConvNet, Encoder, ResNet, TimmEncoder, TorchvisionEncoder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def made(config):
    """The encoder that a configuration makes, written to YAML and read again."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Encoder, "encoder")
    return parser.instantiate(parser.parse_object({"encoder": yaml.safe_load(yaml.safe_dump(config))})).encoder


def same(a, b):
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(x, theirs[n]) for n, x in a.state_dict().items())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run of a recipe with a classifier."""
    runs = tmp_path_factory.mktemp("runs")
    options = {
        "runs": runs,
        "model.encoder.widths": "[4,6]",
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.limit_test_batches": 0,
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": "false",
        "model.scheduler": "null",
        "trainer.callbacks": "tests.system.exactness.Interference",
    }
    main(["fit", "--config", "supervised-digits", *(f"--{name}={value}" for name, value in options.items())])
    (checkpoint,) = runs.glob("*/*/checkpoints/last.ckpt")
    return checkpoint.parent.parent


@pytest.mark.parametrize(
    ("name", "kind"),
    [("resnet18", TorchvisionEncoder), ("timm:resnet10t", TimmEncoder), ("ConvNet", ConvNet), ("ResNet", ResNet)],
)
def test_a_name_gives_an_encoder_and_the_config_that_makes_it(name, kind):
    if kind is TimmEncoder:
        pytest.importorskip("timm")
    found = named_encoder(name, None, in_channels=1)
    assert type(found.encoder) is kind
    assert found.encoder.in_channels == 1
    assert not found.encoder.pretrained
    assert found.recipe is None
    again = made(found.config)
    assert type(again) is kind
    assert [p.shape for p in again.parameters()] == [p.shape for p in found.encoder.parameters()]


def test_a_file_of_weights_is_loaded_and_named_in_the_config(tmp_path):
    weights = str(tmp_path / "weights.pt")
    source = ConvNet(in_channels=3)
    torch.save(source.state_dict(), weights)
    found = named_encoder("ConvNet", weights, 3)
    assert same(found.encoder, source)
    assert found.encoder.pretrained
    assert same(made(found.config), source)


def test_a_run_gives_its_encoder_its_recipe_and_what_its_images_were_normalised_by(run):
    for path in (run, run / "checkpoints" / "last.ckpt"):
        found = named_encoder(str(path), None, 1)
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert torch.equal(found.encoder.network[0].weight, state["encoder.network.0.weight"])
        assert torch.equal(found.recipe.head.weight, state["head.weight"])
        assert found.encoder.normalization[0] == pytest.approx(state["normalize.mean"].flatten().tolist())
        again = made(found.config)
        assert same(again, found.encoder)
        assert again.normalization == found.encoder.normalization
        assert again.pretrained
        assert found.encoder.pretrained


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnt18", None, ["'resnt18'", "did you mean 'resnet18'?", "timm:<name>"]),
        ("Convnet", None, ["did you mean 'ConvNet'?"]),
        ("resnet18", "IMAGENET1K_V9", ["'IMAGENET1K_V9'", "DEFAULT", "IMAGENET1K_V1"]),
        ("resnet18", "nowhere/weights.pt", ["no file nowhere/weights.pt"]),
        ("ConvNet", "nowhere", ["no file nowhere"]),
        ("runs/nowhere", None, ["no checkpoint at runs/nowhere"]),
        ("nowhere.ckpt", None, ["no checkpoint at nowhere.ckpt"]),
    ],
)
def test_what_is_not_there_is_named_with_what_there_is(name, weights, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        named_encoder(name, weights, 3)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_network_of_timm_is_named_with_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"no model 'resnet18x' \(did you mean 'resnet18'"):
        named_encoder("timm:resnet18x")


def test_weights_that_do_not_fit_say_which_layers(tmp_path):
    torch.save({"state_dict": ConvNet((8, 6)).state_dict()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"does not fit this ConvNet: .*network\.8\.weight.*network\.0\.weight \[8, 1"):
        named_encoder("ConvNet", str(tmp_path / "w.pt"), 1)


def test_a_run_takes_no_other_weights_and_no_other_images(run):
    with pytest.raises(ValueError, match="leave out the weights DEFAULT"):
        named_encoder(str(run), "DEFAULT", 1)
    with pytest.raises(ValueError, match="the images have 3 channels, the encoder of .* takes 1"):
        named_encoder(str(run), None, 3)


def test_a_file_of_weights_alone_is_no_encoder(tmp_path):
    torch.save(ConvNet().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="name their network"):
        named_encoder(str(tmp_path / "weights.pt"), None, 1)


def test_the_first_run_among_encoders_and_weights_says_how_images_are_read(run):
    assert reading_of_runs(["resnet18", None]) == Reading()
    assert reading_of_runs(["ConvNet", None, str(run)]) == Reading(16, 1)
    assert taken_of_runs([str(run), "ConvNet"]) == [
        f"{run}/checkpoints/last.ckpt is taken: it is the last state of the run"
    ]
