"""From pictures in class folders to a table of what is on other pictures."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recipes
from datamodules import ImageFolder
from datamodules.sources.decode import decode
from recipes.cli import main
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

COLOURS = {"blue": (20, 20, 230), "green": (20, 200, 20), "red, or so": (230, 20, 20)}
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def squares(root: Path, folders: dict[str, str], count: int) -> Path:
    """Pictures of one colour with noise, in the folder that each colour has."""
    generator = np.random.default_rng(len(folders) + count)
    for colour, folder in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = generator.integers(-20, 21, (10, 10, 3))
            pixels = np.clip(noise + COLOURS[colour], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{colour} {i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier of coloured squares."""
    folder = tmp_path_factory.mktemp("run")
    pictures = squares(folder / "pictures", {colour: colour for colour in COLOURS}, 16)
    encoder = ["--model.encoder", "ConvNet", "--model.encoder.in_channels", "3", "--model.encoder.widths", "[8]"]
    data = ["--data", "ImageFolder", "--data.root", str(pictures), "--data.image_size", "8", "--data.batch_size", "8"]
    model = ["--model", "Supervised", *encoder, "--model.lr_batch_size", "null", "--model.scheduler", "null"]
    main(["fit", "--runs", str(folder / "runs"), *model, *data, "--trainer.max_epochs", "12", *QUIET])
    (directory,) = folder.glob("runs/*/*")
    return directory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def predict(run, root, *args):
    main(["predict", "--ckpt_path", str(run), "--data.root", str(root), "--runs", "runs", *QUIET, *args])


def predicted(tmp_path):
    (path,) = tmp_path.glob("runs/*/*/predictions.csv")
    with path.open(newline="") as file:
        return {row["file"]: (row["class"], float(row["probability"])) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_the_class_of_every_unlabelled_picture_is_written_to_a_table(run, tmp_path):
    squares(tmp_path / "new-pictures", dict.fromkeys(COLOURS, "."), 2)
    predict(run, "new-pictures/")
    rows = predicted(tmp_path)
    assert set(rows) == {f"{colour} {i}.png" for colour in COLOURS for i in range(2)}
    for file, (name, probability) in rows.items():
        assert name == file[:-6]
        assert 1 / 3 < probability <= 1


def test_predicts_the_test_images_of_folders_with_the_classes_of_the_checkpoint(run, tmp_path):
    root = squares(tmp_path / "new", {colour: colour for colour in COLOURS}, 10)
    predict(run, "new")
    data = ImageFolder(root, image_size=8)
    data.setup()
    assert set(predicted(tmp_path)) == {str(path.relative_to(root)) for path in data.paths["test"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "folders",
    [
        {"blue": "blue"},
        {"green": "green", "red, or so": "red, or so"},
        {"green": "blue", "blue": "green"},
    ],
)
def test_images_of_some_of_the_classes_are_matched_by_name(folders, run, tmp_path, capsys):
    squares(tmp_path / "new", folders, 20)
    main(["test", "--ckpt_path", str(run), "--data.root", "new", *QUIET])
    accuracy = float(re.search(r"^test/accuracy: ([0-9.]+)$", capsys.readouterr().out, re.MULTILINE)[1])
    assert accuracy == (folders != {"green": "blue", "blue": "green"})


def test_a_class_that_the_checkpoint_does_not_know_is_an_error_of_test_that_names_it(run, tmp_path, capsys):
    squares(tmp_path / "new", {"blue": "blue", "green": "a", "red, or so": "b"}, 10)
    with pytest.raises(SystemExit):
        main(["test", "--ckpt_path", str(run), "--data.root", "new", "--probe.references", "false", *QUIET])
    error = capsys.readouterr().err
    assert error.count("recipes: error") == 1
    assert re.search(r"recipes: error: the data has the class 'a', but the checkpoint knows 3 classes .*a, b", error)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("blue", "b", "c"), ("images",)])
def test_folders_with_other_classes_are_predicted(names, run, tmp_path):
    root = squares(tmp_path / "new", dict(zip(COLOURS, names, strict=False)), 20)
    predict(run, "new", "--data.val_fraction", "0", "--data.test_fraction", "0")
    rows = predicted(tmp_path)
    assert set(rows) == {str(path.relative_to(root)) for path in root.rglob("*.png")}
    assert all(Path(file).name.startswith(name) for file, (name, _) in rows.items())
    (path,) = tmp_path.glob("runs/*/*/predictions.npz")
    known = {"blue": 0}
    assert sorted(set(np.load(path)["label"].tolist())) == sorted({known.get(name, -1) for name in names})


def test_a_loaded_recipe_matches_the_classes_of_other_data_by_name(run, tmp_path):
    squares(tmp_path / "new", {"green": "green", "red, or so": "red, or so"}, 20)
    recipe = recipes.load(run)
    data = ImageFolder(tmp_path / "new", image_size=8, test_fraction=0.5, batch_size=8)
    (metrics,) = quiet_trainer().test(recipe, datamodule=data, verbose=False)
    assert metrics["test/accuracy"] == 1
    assert recipe.class_names == tuple(COLOURS)
    squares(tmp_path / "new", {"blue": "yellow"}, 4)
    with pytest.raises(ValueError, match="the data has the class 'yellow', but the checkpoint knows 3 classes"):
        quiet_trainer().test(recipe, datamodule=ImageFolder(tmp_path / "new", image_size=8, batch_size=8))


def test_an_empty_folder_is_refused_in_one_line(run, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit):
        predict(run, "new")
    assert "recipes: error: new holds no images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_is_read_as_the_images_of_a_run_on_other_data(tmp_path):
    model = ["--model", "Supervised", "--model.encoder", "ConvNet", "--model.encoder.widths", "[4]"]
    digits = ["--data", "Digits", "--data.size", "12", "--data.batch_size", "64", "--model.scheduler", "null"]
    short = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.limit_test_batches", "0"]
    main(["fit", "--runs", "trained", *model, *digits, *short, *QUIET])
    (directory,) = tmp_path.glob("trained/*/*")
    root = squares(tmp_path / "new", dict.fromkeys(COLOURS, "."), 2)
    folder = ["--ckpt_path", str(directory), "--data", "ImageFolder", "--data.root", "new", "--runs", "runs", *QUIET]
    main(["predict", *folder])
    (path,) = tmp_path.glob("runs/*/*/predictions.npz")
    images = np.stack([decode(file, 12, 1) for file in sorted(root.iterdir())])
    with torch.no_grad():
        expected = recipes.load(directory).classify(torch.from_numpy(images)).softmax(1)
    np.testing.assert_allclose(np.load(path)["probability"], expected, atol=1e-6)
    with pytest.warns(
        UserWarning, match="images are read at 20×20 pixels instead of 12×12, with which the network was trained"
    ):
        main(["predict", *folder, "--data.image_size", "20"])


def test_subfolders_and_pictures_beside_them_are_all_predicted(run, tmp_path):
    squares(tmp_path / "new", {"blue": "monday", "green": "tuesday", "red, or so": "."}, 3)
    predict(run, "new")
    rows = predicted(tmp_path)
    folders = {"blue": "monday/", "green": "tuesday/", "red, or so": ""}
    assert set(rows) == {f"{folder}{colour} {i}.png" for colour, folder in folders.items() for i in range(3)}
    assert all(Path(file).name.startswith(name) for file, (name, _) in rows.items())


@pytest.mark.parametrize(
    ("root", "files"), [("new/blue 1.png", {"blue 1.png"}), ("new/*0.png", {"blue 0.png", "green 0.png"})]
)
def test_a_file_and_a_pattern_are_predicted(root, files, run, tmp_path):
    squares(tmp_path / "new", {"blue": ".", "green": "."}, 3)
    predict(run, root)
    assert {file: name for file, (name, _) in predicted(tmp_path).items()} == {file: file[:-6] for file in files}
