"""What is exported gives, without this project, what the run gives."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

import recipes
from recipes.cli import main as recipes_command
from recipes.cli.catalogue import recipe_names
from recipes.cli.commands import export
from recipes.nn import ConvNet, Encoder, TorchvisionEncoder
from recipes.transfer.linear_probe import LinearProbe
from tests.base.test_recipe import build

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "export.md"
SHORT = [
    *("--trainer.max_steps", "2", "--trainer.limit_test_batches", "0", "--trainer.limit_val_batches", "0"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--model.scheduler", "null"),
]


def fit(folder, recipe, encoder, *options):
    """A run whose encoder has weights, running statistics and images of its own."""
    data = ["--data", "Digits", "--data.batch_size", "64", "--data.size", "32"]
    recipes_command(
        ["fit", "--runs", str(folder), "--model", recipe, "--model.encoder", encoder, *options, *data, *SHORT]
    )
    (run,) = folder.glob("*/*")
    return run


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("convnet"), "Supervised", "ConvNet", "--model.encoder.widths", "[4,8]")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Of coloured noise in three class folders."""
    folder = tmp_path_factory.mktemp("resnet")
    generator = np.random.default_rng(0)

    for name in ("cat", "dog", "owl"):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (48, 48, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{i}.png")
    data = ["--data", "ImageFolder", "--data.root", str(folder / "pictures"), "--data.image_size", "48"]
    encoder = ["--model.encoder", "TorchvisionEncoder", "--model.encoder.name", "resnet18"]
    batch = ["--data.batch_size", "4", "--data.test_fraction", "0", "--data.val_fraction", "0"]
    recipes_command(["fit", "--runs", str(folder / "runs"), "--model", "Supervised", *encoder, *data, *batch, *SHORT])
    (run,) = folder.glob("runs/*/*")
    return run


def pictures(run, count=5):
    """Images that the export did not see, in [0, 1], and the logits of the run's recipe."""
    recipe = recipes.load(run)
    image = torch.rand(count, *recipe.image_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return image, recipe.logits(recipe(image))


def onnx_outputs(file, image):
    return torch.from_numpy(onnxruntime.InferenceSession(str(file)).run(None, {"image": image.numpy()})[0])


def test_every_format_gives_the_logits_of_the_run_for_any_number_of_images(convnet):
    export.main(["--ckpt_path", str(convnet)])
    files = {file.name for file in (convnet / "export").iterdir()}
    assert files == {"model.pt2", "model.onnx", "encoder.safetensors", "export.json"}
    program = torch.export.load(convnet / "export" / "model.pt2").module()
    for count in (1, 2, 7):
        image, expected = pictures(convnet, count)
        torch.testing.assert_close(program(image), expected, rtol=1e-6, atol=1e-6)
        given = onnx_outputs(convnet / "export" / "model.onnx", image)
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_plain_torchvision_takes_the_weights_of_the_encoder_and_of_the_model(resnet):
    export.export(resnet, formats=["safetensors"])
    image, expected = pictures(resnet)
    report = json.loads((resnet / "export" / "export.json").read_text())
    mean, std = (torch.tensor(report[name])[:, None, None] for name in ("mean", "std"))
    whole = models.resnet18(num_classes=3)
    whole.load_state_dict(safetensors.load_file(resnet / "export" / "model.safetensors"))  # strictly
    with torch.no_grad():
        torch.testing.assert_close(whole.eval()((image - mean) / std), expected, rtol=1e-4, atol=1e-4)
    plain = models.resnet18()
    encoder = safetensors.load_file(resnet / "export" / "encoder.safetensors")
    missing, unexpected = plain.load_state_dict(encoder, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    plain.fc = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(
            plain.eval()((image - mean) / std), recipes.load(resnet)(image), rtol=1e-4, atol=1e-4
        )


def test_exported_weights_start_another_encoder_with_the_same_normalisation(resnet, tmp_path):
    export.export(resnet, tmp_path, ["safetensors"])
    image = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    run = recipes.load(resnet)
    for file in ("encoder.safetensors", "model.safetensors"):
        recipe = LinearProbe(TorchvisionEncoder("resnet18", weights=str(tmp_path / file)), 3).eval()
        with torch.no_grad():
            torch.testing.assert_close(recipe(image), run(image))


def test_the_report_says_what_the_files_take_and_give(resnet, tmp_path):
    export.export(resnet, tmp_path / "new" / "folder", ["torch", "safetensors"])
    report = json.loads((tmp_path / "new" / "folder" / "export.json").read_text())
    recipe = recipes.load(resnet)
    assert report["classes"] == ["cat", "dog", "owl"]
    assert report["image_shape"] == [3, 48, 48]
    assert report["output"] == "logits [B, classes]"
    assert report["mean"] == recipe.normalize.mean.tolist() != [0, 0, 0]
    assert report["std"] == recipe.normalize.std.tolist()
    assert set(report["largest_difference"]) == {"model.pt2", "encoder.safetensors", "model.safetensors"}
    assert max(report["largest_difference"].values()) < 1e-6
    assert report["versions"]["torch"] == torch.__version__
    assert "onnx" not in report["versions"]


def test_a_vision_transformer_is_exported_for_any_number_of_images(tmp_path):
    size = ["--model.encoder.image_size", "32", "--model.encoder.in_channels", "1"]
    small = ["--model.encoder.dim", "24", "--model.encoder.depth", "1", "--model.encoder.patch_size", "8"]
    run = fit(tmp_path, "Supervised", "ViT", *size, *small)
    export.export(run, formats=["torch", "onnx"])
    image, expected = pictures(run)
    torch.testing.assert_close(torch.export.load(run / "export" / "model.pt2").module()(image), expected)
    torch.testing.assert_close(onnx_outputs(run / "export" / "model.onnx", image), expected, rtol=1e-4, atol=1e-5)


def test_a_recipe_without_a_head_exports_features(tmp_path):
    run = fit(tmp_path, "SimCLR", "ConvNet", "--model.encoder.widths", "[4,8]")
    export.export(run)
    recipe = recipes.load(run)
    image = torch.rand(3, 1, 32, 32)
    program = torch.export.load(run / "export" / "model.pt2")
    torch.testing.assert_close(program.module()(image), recipe(image))
    torch.testing.assert_close(onnx_outputs(run / "export" / "model.onnx", image), recipe(image).detach())
    assert not [name for name in program.state_dict if "projector" in name]
    report = json.loads((run / "export" / "export.json").read_text())
    assert (report["output"], report["classes"]) == ("features [B, F]", [])
    assert "model.safetensors" not in report["largest_difference"]


@pytest.mark.parametrize("options", [{"stage": 3}, {"batch_norm": True}], ids=str)
def test_a_head_that_is_not_on_top_of_the_whole_network_is_exported_as_it_is(options, resnet, tmp_path, monkeypatch):
    torch.manual_seed(0)
    recipe = LinearProbe(TorchvisionEncoder("resnet18"), 3, **options).eval()
    recipe.image_shape = (3, 32, 32)
    if "batch_norm" in options:
        recipe.batch_norm.running_mean.fill_(0.5)
    monkeypatch.setattr(export, "load", lambda path: recipe)
    export.export(resnet, tmp_path, ["torch", "safetensors"])
    image = torch.rand(2, 3, 32, 32)
    given = torch.export.load(tmp_path / "model.pt2").module()(image)
    torch.testing.assert_close(given, recipe.logits(recipe(image)))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        (
            lambda: TorchvisionEncoder("resnet18", stem="small"),
            "first convolution of this TorchvisionEncoder is not",
        ),
        (lambda: ConvNet((4,), in_channels=3), "Supervised with ConvNet is no network of torchvision"),
    ],
)
def test_an_export_says_why_the_whole_model_is_no_network_of_torchvision(
    encoder, reason, resnet, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    recipe = recipes.Supervised(encoder(), num_classes=3).eval()
    recipe.image_shape = (3, 32, 32)
    monkeypatch.setattr(export, "load", lambda path: recipe)
    export.export(resnet, tmp_path, ["safetensors"])
    assert not (tmp_path / "model.safetensors").exists()
    report = json.loads((tmp_path / "export.json").read_text())
    assert reason in report["left_out"]["model.safetensors"]
    assert any(line.startswith("model.safetensors is not written: ") and reason in line for line in caplog.messages)


def test_classes_that_were_never_seen_are_no_difference(convnet, tmp_path):
    checkpoint = torch.load(convnet / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["head.bias"][3] = -torch.inf  # as a support vector machine has it
    torch.save(checkpoint, tmp_path / "last.ckpt")
    export.export(tmp_path / "last.ckpt", formats=["torch"])
    assert json.loads((tmp_path / "export" / "export.json").read_text())["largest_difference"] == {"model.pt2": 0}


@pytest.mark.parametrize("of", ["torch", "onnx", "safetensors"])
def test_an_export_that_differs_is_an_error_and_leaves_no_file(of, convnet, tmp_path, monkeypatch):
    if of == "torch":
        monkeypatch.setattr(torch.export, "load", lambda path: _Off())
    elif of == "onnx":
        monkeypatch.setattr(export, "onnx_session", lambda path: lambda image: _Off().module()(image))
    else:
        load = safetensors.load_file
        monkeypatch.setattr(
            safetensors, "load_file", lambda path: {name: value + 1 for name, value in load(path).items()}
        )
    with pytest.raises(ValueError, match=r"gives other outputs than the recipe: they differ by .* nothing was written"):
        export.export(convnet, tmp_path / "new", [of])
    assert list(tmp_path.iterdir()) == []


class _Off:
    def module(self):
        return lambda image: torch.zeros(len(image), 10)


def test_the_size_of_the_images_may_be_another(convnet, tmp_path):
    export.export(convnet, tmp_path, ["torch"], image_size=20)
    image = torch.rand(2, 1, 20, 20)
    recipe = recipes.load(convnet)
    given = torch.export.load(tmp_path / "model.pt2").module()(image)
    torch.testing.assert_close(given, recipe.logits(recipe(image)))


def test_a_checkpoint_that_does_not_know_its_images_asks_for_their_size(convnet, tmp_path):
    checkpoint = torch.load(convnet / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["image_shape"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="old.ckpt has no image size: give --image_size"):
        export.export(tmp_path / "old.ckpt", formats=["torch"])
    export.export(tmp_path / "old.ckpt", formats=["torch"], image_size=32)
    assert (tmp_path / "export" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: --ckpt_path"),
        (["--ckpt_path", "nowhere"], "no checkpoint at nowhere"),
        (["--ckpt_path", "RUN", "--formats", "tflite"], "invalid choice: 'tflite'"),
        (["--ckpt_path", "RUN", "--image_size", "0"], "image_size is 0: it must be at least 1"),
        (["--ckpt_path", "RUN", "--image_size", "99999"], "image_size is 99999: it must be at least 1 and at most"),
        (["--ckpt_path", "RUN", "--image_size", "big"], "invalid int value: 'big'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(args, message, convnet):
    args = [str(convnet) if arg == "RUN" else arg for arg in args]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        export.main(args)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_its_extra(convnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript: pip install 'training-recipes\[export\]'"):
        export.export(convnet, tmp_path / "new")
    assert not (tmp_path / "new").exists()


class _OneSize(Encoder):
    """Is made for the number of images that it sees first."""

    def forward(self, image):
        return self.network(image).view(int(image.sum() > -1) * len(image), -1)


def test_an_encoder_that_has_no_program_is_named(convnet, monkeypatch, tmp_path):
    recipe = recipes.load(convnet)
    recipe.encoder = _OneSize(ConvNet((4, 8)), 8, 1)
    monkeypatch.setattr(export, "load", lambda path: recipe)
    with pytest.raises(
        ValueError, match="torch.export has no program for Supervised with _OneSize and any number of images"
    ):
        export.export(convnet, tmp_path / "new", ["torch"])
    assert list(tmp_path.iterdir()) == []


class _NoForm(Encoder):
    """Has an operation that ONNX lacks."""

    def forward(self, image):
        feature = self.network(image)
        return torch.cdist(feature, torch.ones(1, 8), compute_mode="donot_use_mm_for_euclid_dist")


def _overrides(name):
    """Which functions map images to what is exported of a recipe."""
    names = ("forward", "classify", "logits", "unmasked_logits")
    return tuple(getattr(getattr(recipes, name), function, None) for function in names)


UNLIKE = [*{_overrides(name): name for name in recipe_names()}.values()]  # one recipe of each kind


@pytest.mark.parametrize("name", UNLIKE)
def test_every_kind_of_recipe_has_an_onnx_form(name, convnet, monkeypatch, tmp_path):
    recipe = _used(name, monkeypatch)
    export.export(convnet, tmp_path, ["onnx"])
    image = torch.rand(3, 1, 16, 16)
    expected = recipe.classify(image) if hasattr(recipe, "classify") else recipe(image)
    torch.testing.assert_close(onnx_outputs(tmp_path / "model.onnx", image), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["SimCLR", "Supervised", "ICaRL"])
def test_what_has_no_onnx_form_is_said_in_one_line(name, convnet, monkeypatch, tmp_path):
    _used(name, monkeypatch, _NoForm(ConvNet((4, 8)), 1, 1))
    with pytest.raises(ValueError, match=f"ONNX has no form for {name} with _NoForm") as error:
        export.export(convnet, tmp_path / "new", ["onnx"])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def _used(name, monkeypatch, encoder=None):
    """A recipe as if a run had trained it."""
    recipe = build(name, **({} if encoder is None else {"encoder": encoder})).eval().requires_grad_(False)
    recipe.image_shape = (1, 16, 16)
    recipe.normalize.set((0.5,), (0.5,))
    if hasattr(recipe, "tasks"):
        recipe.begun = recipe.ended = len(recipe.tasks)
    if hasattr(recipe, "nearest_mean"):
        recipe.nearest_mean.set(torch.rand(10, recipe.feature_dim), torch.arange(10))
    monkeypatch.setattr(export, "load", lambda path: recipe)
    return recipe


def test_a_task_that_is_given_leaves_its_classes_alone(convnet, monkeypatch, tmp_path):
    recipe = _used("LwF", monkeypatch)
    recipe.tasks = replace(recipe.tasks, scenario="task")
    export.export(convnet, tmp_path, ["torch", "safetensors"], task=2)
    logits = torch.export.load(tmp_path / "model.pt2").module()(torch.rand(3, 1, 16, 16))
    assert logits.isfinite().tolist() == [[label in (2, 3) for label in range(10)]] * 3
    report = json.loads((tmp_path / "export.json").read_text())
    assert (report["scenario"], report["task"], report["tasks"][1]) == ("task", 2, [2, 3])
    with pytest.raises(ValueError, match="task is 6: it must be a whole number between 1 and 5"):
        export.export(convnet, tmp_path, ["torch"], task=6)
    _used("Supervised", monkeypatch)
    with pytest.raises(ValueError, match="task is 1, but Supervised has not learned a sequence of tasks"):
        export.export(convnet, tmp_path, ["torch"], task=1)


def test_a_torchvision_network_that_learned_tasks_is_plain_torchvision(convnet, monkeypatch, tmp_path):
    torch.manual_seed(0)
    recipe = build("FineTuning", encoder=TorchvisionEncoder("resnet18")).eval()
    recipe.begun = recipe.ended = 5
    recipe.image_shape = (3, 32, 32)
    recipe.normalize.set((0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(export, "load", lambda path: recipe)
    export.export(convnet, tmp_path, ["safetensors"])
    network = models.resnet18(num_classes=10).eval()
    network.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network((image - 0.5) / 0.5), recipe.classify(image))


def test_the_command_says_what_it_wrote(convnet, tmp_path, capsys):
    export.main(["--ckpt_path", str(convnet), "--formats", "safetensors", "--output", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'encoder.safetensors'}: same outputs as the run, to 0e+00\n"
    assert {path.name for path in Path(tmp_path).iterdir()} == {"encoder.safetensors", "export.json"}


def test_the_script_of_the_guide_gives_the_probabilities_of_the_run_without_this_project(resnet, tmp_path, monkeypatch):
    new = tmp_path / "new"
    new.mkdir()
    random = np.random.default_rng(1)
    wide = Image.fromarray(random.integers(0, 256, (70, 111, 3), np.uint8)).resize((555, 350))
    wide.save(new / "wide.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(new / "turned.jpg", exif=exif)
    Image.fromarray(random.integers(0, 256, (60, 50, 4), np.uint8)).save(new / "transparent.png")
    Image.fromarray(random.integers(0, 256, (48, 90), np.uint8)).save(new / "grey.png")
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    recipes_command(["predict", "--ckpt_path", str(resnet), "--data.root", "new", "--runs", "runs", *quiet])
    (table,) = tmp_path.glob("runs/*/*/predictions.npz")
    arrays = np.load(table)
    export.export(resnet, tmp_path / "export", ["onnx"])
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert not re.search("recipes|torch", code)
    for place, file in enumerate(sorted(new.iterdir())):
        given = subprocess.run(
            [sys.executable, "-c", code, "export", str(file)], check=True, capture_output=True, text=True
        )
        found = json.loads(given.stdout)
        assert list(found) == ["cat", "dog", "owl"]
        np.testing.assert_allclose(list(found.values()), arrays["probability"][place], atol=1e-4)
