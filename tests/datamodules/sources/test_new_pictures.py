"""Pictures to predict may be a file, a pattern, or folders that are no classes; every run says what it found."""

import pytest
import torch
from PIL import Image

from datamodules import Digits, ImageFolder, SemiSupervised, Subset
from tests.helpers.pictures import write_pictures


def read(root, stage="predict", **options):
    data = ImageFolder(root, 8, 1, batch_size=2, **options)
    data.setup(stage)
    return data


def predicted(data, split="train"):
    return {str(path.relative_to(data.folder)) for path in data.paths[split]}


@pytest.fixture
def photos(tmp_path):
    write_pictures(tmp_path / "photos", ["monday", "tuesday"], 6)
    return tmp_path / "photos"


def test_folders_that_are_no_classes_are_predicted_whole(photos):
    data = read(photos)
    data.match_classes(["cat", "dog"], strict=False)
    assert data.splits.test is data.splits.val is None
    assert predicted(data) == {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
    assert (data.splits.train.label == -1).all()
    assert len(torch.cat([batch.index for batch in data.predict_dataloader()])) == 12


def test_folders_of_which_one_is_a_class_keep_their_split_and_are_no_error_of_predictions(photos):
    data = read(photos, test_fraction=0.5)
    before = data.paths
    data.match_classes(["cat", "monday"], strict=False)
    assert data.paths == before
    with pytest.raises(ValueError, match="the data has the class 'tuesday'"):
        read(photos).match_classes(["cat", "monday"])


def test_images_beside_folders_are_predicted_and_refused_for_training(photos):
    Image.new("L", (9, 9)).save(photos / "single.png")
    assert predicted(read(photos)) == {str(path.relative_to(photos)) for path in photos.rglob("*.png")}
    for stage in (None, "fit", "test"):
        with pytest.raises(ValueError, match=r"holds folders \(monday\) and images \(single.png\) side by side"):
            read(photos, stage)


@pytest.mark.parametrize(
    ("root", "folder", "expected"),
    [
        ("monday/3.png", "monday", {"3.png"}),
        ("monday/[0-2].png", "monday", {"0.png", "1.png", "2.png"}),
        ("*/1.png", ".", {"monday/1.png", "tuesday/1.png"}),
        ("**/*.png", ".", {f"{day}/{number}.png" for day in ("monday", "tuesday") for number in range(6)}),
        ("tues*", ".", {f"tuesday/{number}.png" for number in range(6)}),
    ],
)
def test_a_file_and_a_pattern_are_images_without_labels(root, folder, expected, photos):
    for stage in ("predict", "fit"):
        data = read(photos / root, stage)
        assert data.folder == photos / folder
        assert predicted(data) == expected
        assert data.num_classes == 0


def test_a_relative_pattern_is_relative_to_the_working_directory(photos, monkeypatch):
    monkeypatch.chdir(photos)
    assert predicted(read("*/1.png")) == {"monday/1.png", "tuesday/1.png"}


def test_a_folder_whose_name_looks_like_a_pattern_is_a_folder(photos):
    photos.rename(photos.with_name("photos [1]"))
    assert len(read(photos.with_name("photos [1]")).paths["train"]) > 0


@pytest.mark.parametrize(("root", "words"), [("*.gif", "no file matches"), ("monday/9.png", "is not there")])
def test_a_pattern_without_a_match_and_a_missing_file_are_refused(root, words, photos):
    with pytest.raises(FileNotFoundError, match=words):
        read(photos / root)


def test_a_file_that_is_no_image_is_refused_with_what_it_is(photos):
    (photos / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match="notes.txt holds no images; 1 file is left out .*1 .txt"):
        read(photos / "notes.txt")


# What is said


def lines(data, caplog):
    caplog.clear()
    with caplog.at_level("INFO", "lightning.pytorch"):
        data.setup()
    return [record.getMessage() for record in caplog.records]


def test_every_datamodule_says_its_classes_and_the_images_of_each_split(caplog, photos):
    assert lines(Digits(), caplog) == ["Digits: 10 classes; images: 1,257 train, 180 val, 360 test"]
    assert lines(SemiSupervised(Digits(), 2, labels_per_class=3), caplog)[-1] == (
        "SemiSupervised: 10 classes; images: 1,257 train, 180 val, 360 test; without a label: 1,227 train"
    )
    *_, last = lines(Subset(Digits(), classes=["3"]), caplog)
    own = Subset(Digits(), classes=["3"])
    own.setup()
    counts = [len(part) for part in (own.splits.train, own.splits.val, own.splits.test)]
    assert last == (
        "Subset: 1 class; images: {} train, {} val, {} test; left out: {:,}".format(*counts, 1797 - sum(counts))
    )


def test_test_images_without_labels_are_counted(caplog, tmp_path):
    write_pictures(tmp_path / "train", ["a", "b"], 4)
    write_pictures(tmp_path / "test", ["."], 3)
    found, *_ = lines(ImageFolder(tmp_path, 8, val_fraction=0), caplog)
    assert found == f"{tmp_path}: 2 classes; images: 8 train, 0 val, 3 test; without a label: 3 test"


def test_predictions_of_the_test_images_alone_are_said(caplog, photos):
    data = read(photos, test_fraction=0.5)
    with caplog.at_level("INFO", "lightning.pytorch"):
        data.predict_dataloader()
    count = len(data.splits.test)
    line = (
        f"the {count} test images are predicted, and not the {12 - count} others: set val_fraction and test_fraction to"
    )
    assert line in caplog.text
