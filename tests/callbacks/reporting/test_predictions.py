import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from PIL import Image

from datamodules import Digits, ImageDataModule, ImageFolder
from recipes import SimCLR, Supervised
from recipes.callbacks import PredictionFile
from recipes.nn import ConvNet
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer


def predict(
    path: Path, recipe: Any, data: ImageDataModule, callback: PredictionFile | None = None, **options: Any
) -> None:
    trainer = quiet_trainer(callbacks=[callback or PredictionFile()], default_root_dir=path, **options)
    trainer.predict(recipe, data, return_predictions=False)


def table(path: Path) -> list[dict[str, str]]:
    with (path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def folder(root: Path, *names: str) -> ImageFolder:
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(root / name)
    return ImageFolder(root, image_size=8, batch_size=2)


def supervised(channels: int, classes: int) -> Supervised:
    seed_everything(0, verbose=False)
    return Supervised(ConvNet((4, 8), in_channels=channels), classes)


class Failure(Callback):
    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        raise RuntimeError("out of luck")


def test_nothing_of_a_prediction_that_failed_is_written(tmp_path: Path) -> None:
    data, written = Digits(size=8, batch_size=100), PredictionFile()
    with pytest.raises(RuntimeError):
        quiet_trainer(callbacks=[written, Failure()]).predict(supervised(1, 10), data)
    recipe = SimCLR(ConvNet((4, 8)))
    predict(tmp_path / "after", recipe, data, written)
    predict(tmp_path / "fresh", recipe, data)
    after, fresh = (np.load(tmp_path / name / "predictions.npz") for name in ("after", "fresh"))
    assert sorted(after) == sorted(fresh)
    assert np.array_equal(after["feature"], fresh["feature"])


def test_the_table_has_the_most_probable_class_of_every_image_and_its_probability(tmp_path: Path) -> None:
    predict(tmp_path, supervised(1, 10), Digits(size=8, batch_size=100))
    rows = table(tmp_path)
    assert list(rows[0]) == ["index", "class", "probability"]
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert [int(row["index"]) for row in rows] == predictions["index"].tolist() == list(range(360))
        for row, probability in zip(rows, predictions["probability"].tolist()):
            assert float(row["probability"]) == pytest.approx(max(probability), abs=1e-6)
            assert int(row["class"]) == probability.index(max(probability))


def test_every_picture_of_a_folder_without_classes_is_in_the_table_by_its_file(tmp_path: Path) -> None:
    names = ['with "quotes", and a comma.png', "ü b.png", "a.png", "z.png", "한국.png"]
    data = folder(tmp_path / "new", *names)
    recipe = supervised(3, 2)
    recipe.class_names = ("cat", "dog, or wolf")
    predict(tmp_path, recipe, data)
    rows = table(tmp_path)
    assert [row["file"] for row in rows] == sorted(names)
    assert {row["class"] for row in rows} <= {"cat", "dog, or wolf"}


ODD = {  # name of a file: what the table has
    "=cmd().png": "'=cmd().png",
    " -1+2.png": "' -1+2.png",
    "'a.png": "''a.png",
    "@a\udcff.png": r"'@a\xff.png",
    "b\n=1.png": r"b\n=1.png",
}


def test_odd_names_are_text_and_no_formulas_in_the_table(tmp_path: Path) -> None:
    recipe = supervised(3, 2)
    recipe.class_names = ("=cmd()", "+cmd()")
    predict(tmp_path, recipe, folder(tmp_path / "new", *ODD))
    rows = table(tmp_path)
    assert [row["file"] for row in rows] == [ODD[name] for name in sorted(ODD)]
    assert {row["class"] for row in rows} <= {"'=cmd()", "'+cmd()"}


def test_of_a_folder_with_classes_the_test_pictures_are_predicted(tmp_path: Path) -> None:
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(2)]
    predict(tmp_path, supervised(3, 2), folder(tmp_path / "new", *names))
    assert [row["file"] for row in table(tmp_path)] == [name for name in names if name.startswith("test")]
    assert {row["class"] for row in table(tmp_path)} <= {"cat", "dog"}


def test_of_a_folder_with_classes_all_are_predicted_where_no_fraction_is_set_apart(tmp_path: Path) -> None:
    names = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)]
    data = folder(tmp_path / "new", *names)
    data.val_fraction = data.test_fraction = 0.0
    predict(tmp_path, supervised(3, 2), data)
    assert [row["file"] for row in table(tmp_path)] == names


class Scores(Supervised):
    """Knows no probabilities."""

    has_probabilities = False


def test_where_there_are_no_probabilities_the_table_has_the_highest_score(tmp_path: Path) -> None:
    predict(tmp_path, Scores(ConvNet((4, 8)), 10), Digits(size=8))
    row = table(tmp_path)[7]
    assert list(row) == ["index", "class", "score"]
    with np.load(tmp_path / "predictions.npz") as predictions:
        assert float(row["score"]) == pytest.approx(predictions["score"][7].max(), abs=1e-6)


def test_a_recipe_without_classes_has_no_table(tmp_path: Path) -> None:
    predict(tmp_path, SimCLR(ConvNet((4, 8)), scheduler=None), Digits(size=8))
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]


@pytest.mark.slow
def test_the_table_has_the_name_of_the_numpy_file(tmp_path: Path) -> None:
    predict(tmp_path, supervised(1, 10), Digits(size=8), PredictionFile("mine.npz"))
    assert {file.name for file in tmp_path.iterdir()} == {"mine.npz", "mine.csv"}


def test_a_file_that_is_no_npz_is_refused() -> None:
    with pytest.raises(ValueError, match="filename is 'a.csv': it must end in .npz"):
        PredictionFile("a.csv")


def predict_on_two(path: Path, root: Path) -> None:
    torch.set_num_threads(1)
    predict(path, supervised(3, 2), ImageFolder(root, image_size=8, batch_size=4), devices=2, strategy="ddp")


@pytest.mark.parametrize("pictures", [7, 1])
def test_two_processes_write_the_table_of_one(pictures: int, tmp_path: Path) -> None:
    """In batches of 4, the last of which does not divide over them."""
    data = folder(tmp_path / "new", *(f"{i}.png" for i in range(pictures)))
    predict(tmp_path / "one", supervised(3, 2), data)
    (tmp_path / "two").mkdir()
    run(predict_on_two, tmp_path / "two", tmp_path / "new", processes=2)
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(one) == pictures
    assert [(row["file"], row["class"]) for row in one] == [(row["file"], row["class"]) for row in two]
    for row, other in zip(one, two):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=2e-6)
