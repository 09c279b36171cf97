import os
import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import datamodules.sources.content
import datamodules.sources.decode
from datamodules import ImageFiles, ImageFolder, ImagesInMemory
from datamodules.sources.decode import decode

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def colour(*rgb, size=(12, 10)):
    return Image.new("RGB", size, rgb)


def noise(width, height, seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))


def write(root, name, picture=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or colour(*RED)).save(path)
    return path


def ready(root, **options):
    options = {"image_size": 8, "batch_size": 2, "val_fraction": 0, "test_fraction": 0} | options
    data = ImageFolder(root, **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def two_classes(tmp_path):
    """Twenty pictures of cats and ten of dogs; the red of each tells which it is."""
    root = tmp_path / "pictures"
    for i in range(30):
        write(root, f"{'cat' if i < 20 else 'dog'}/{i:02}.png", colour(8 * i, 0, 0))
    colour(0, 0, 0).save(root / "cat" / "00.png", format="BMP")  # what counts is what is in the file
    return root


def which(data, split):
    part = getattr(data.splits, split)
    return (part.images(torch.arange(len(part)))[:, 0, 0, 0] // 8).tolist()


# What a file becomes


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (9, 31), (64, 48), (3, 5)])
def test_the_shorter_side_is_scaled_and_the_centre_cropped(size, tmp_path):
    picture = noise(*size)
    path = write(tmp_path, "a.png", picture)
    expected = ImageOps.fit(picture, (8, 8), Image.Resampling.BILINEAR)
    difference = decode(path, 8, 3).transpose(1, 2, 0).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_scaling_down_averages_and_does_not_pick(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    path = write(tmp_path, "a.png", Image.fromarray(board.astype(np.uint8)))
    assert np.abs(decode(path, 8, 1).astype(int) - 127).max() <= 3


def test_a_large_jpeg_is_close_to_what_decoding_it_whole_gives(tmp_path):
    picture = noise(64, 48).resize((640, 480), Image.Resampling.BICUBIC)
    path = write(tmp_path, "a.jpg", picture)
    expected = ImageOps.fit(picture, (32, 32), Image.Resampling.BILINEAR)
    difference = decode(path, 32, 3).transpose(1, 2, 0).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_kind_of_picture_becomes_grey_or_rgb(mode, tmp_path):
    white = Image.new("L", (12, 10), 255)
    if mode == "I;16":
        picture = Image.fromarray(np.full((10, 12), 65535, np.uint16))
    elif mode == "PA":
        picture = white.convert("LA").convert("PA")
    else:
        picture = white.convert(mode)
    path = write(tmp_path, "a.tif" if mode in ("CMYK", "PA", "YCbCr") else "a.png", picture)
    for channels in (1, 3):
        image = decode(path, 8, channels)
        assert image.shape == (channels, 8, 8)
        assert image.dtype == np.uint8
        assert image.min() >= 254


def test_the_channels_are_red_green_blue(tmp_path):
    image = decode(write(tmp_path, "a.png", colour(10, 20, 30)), 8, 3)
    assert image[:, 0, 0].tolist() == [10, 20, 30]


def test_a_palette_gives_its_colours(tmp_path):
    picture = colour(*GREEN).convert("P", palette=Image.Palette.ADAPTIVE)
    assert decode(write(tmp_path, "a.png", picture), 8, 3)[:, 0, 0].tolist() == list(GREEN)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32768, 128), (257, 1), (12850, 50)])
def test_16_bit_grey_is_scaled_to_8_bits(value, expected, tmp_path):
    picture = Image.fromarray(np.full((10, 12), value, np.uint16))
    assert (decode(write(tmp_path, "a.png", picture), 8, 3) == expected).all()


def test_transparent_parts_are_white(tmp_path):
    picture = Image.new("RGBA", (8, 8), (*BLUE, 0))
    picture.paste((*BLUE, 255), (0, 0, 8, 4))
    image = decode(write(tmp_path, "a.png", picture), 8, 3)
    assert image[:, 0, 0].tolist() == list(BLUE)
    assert image[:, 7, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation, tmp_path):
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:] = 200, 100
    stored = {  # EXIF 2.3, tag 0x0112: where row 0 and column 0 of what is stored are in the picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert decode(path, 16, 1)[0].tolist() == upright.tolist()


# Where files are looked for


def test_folders_called_train_val_and_test_are_the_splits(tmp_path):
    for i, name in enumerate(["train/cat/a.png", "train/dog/b.PNG", "train/dog/more/c.png", "val/dog/d.png"]):
        write(tmp_path, name, colour(8 * i, 0, 0))
    write(tmp_path, "test/e.png", colour(32, 0, 0))
    data = ready(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert (which(data, "train"), which(data, "val"), which(data, "test")) == ([0, 1, 2], [3], [4])
    assert data.splits.train.label.tolist() == [0, 1, 1]
    assert data.splits.val.label.tolist() == [1]
    assert data.splits.test.label.tolist() == [-1]  # no class folders
    assert [path.name for path in data.paths["train"]] == ["a.png", "b.PNG", "c.png"]


def test_without_a_val_folder_a_share_of_the_training_pictures_is_for_validation(tmp_path):
    for i in range(20):
        write(tmp_path, f"train/{'cat' if i % 2 else 'dog'}/{i}.png")
    data = ready(tmp_path, val_fraction=0.2, test_fraction=0.2)
    assert sorted(data.paths["val"] + data.paths["train"]) == sorted(tmp_path.rglob("*.png"))
    assert 1 <= len(data.splits.val) <= 9
    assert data.splits.test is None


def test_class_folders_alone_are_split_by_position_with_the_classes_in_proportion(two_classes):
    data = ready(two_classes, val_fraction=0.1, test_fraction=0.2, split_by="position")
    counts = [part.label.bincount().tolist() for part in (data.splits.train, data.splits.val, data.splits.test)]
    assert counts == [[14, 7], [2, 1], [4, 2]]


def test_every_image_of_class_folders_is_in_one_split(two_classes):
    data = ready(two_classes, val_fraction=0.2, test_fraction=0.3)
    assert sorted(which(data, "train") + which(data, "val") + which(data, "test")) == list(range(30))
    for name in ("train", "val", "test"):
        assert [int(path.stem) for path in data.paths[name]] == which(data, name)


def test_no_image_changes_its_split_while_the_folder_grows_and_shrinks(two_classes):
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    known = {path: name for name, paths in ready(two_classes, **options).paths.items() for path in paths}
    assert set(known.values()) == {"train", "val", "test"}
    new = [write(two_classes, f"{'cat' if i % 2 else 'dog'}/new-{i}.png", colour(i, i, i)) for i in range(10)]
    for path in [*reversed(new), *list(known)[::3]]:
        path.unlink()
        for name, paths in ready(two_classes, **options).paths.items():
            for other in paths:
                assert known.setdefault(other, name) == name


def test_a_file_that_became_unreadable_changes_no_other_split(two_classes):
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "on_error": "skip"}
    before = ready(two_classes, **options).paths
    damaged = before["train"][3]
    damaged.write_text("not a picture")
    with pytest.warns(UserWarning, match="1 of 30 files"):
        after = ready(two_classes, **options).paths
    assert after == before | {"train": [path for path in before["train"] if path != damaged]}


def test_a_split_without_an_image_is_told_with_the_remedy(tmp_path, caplog):
    for name in ("cat", "dog"):
        write(tmp_path, f"{name}/only.png")
    caplog.set_level("INFO", "lightning.pytorch")
    ready(tmp_path, test_fraction=0.1)
    assert "no image is in the split test, with a test_fraction of 0.1 of 2 images: raise it" in caplog.text
    assert "split val" not in caplog.text


@pytest.mark.parametrize("written", [{}, {"split_by": "position"}])
def test_a_checkpoint_of_another_split_is_told(written, two_classes):
    data = ready(two_classes, val_fraction=0.2)
    with pytest.warns(UserWarning, match="the run of the checkpoint has split_by='position'"):
        data.load_state_dict(written)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(two_classes, val_fraction=0.2, split_by="position").load_state_dict(written)
        data.load_state_dict(data.state_dict())


def test_a_moved_folder_has_the_same_split(two_classes, tmp_path):
    options = {"val_fraction": 0.2, "test_fraction": 0.2}
    before = ready(two_classes, **options).paths
    moved = two_classes.rename(tmp_path / "elsewhere")
    after = ready(moved, **options).paths
    for name, paths in before.items():
        assert [path.relative_to(two_classes) for path in paths] == [path.relative_to(moved) for path in after[name]]


def test_classes_of_one_image_each_are_all_trained_on(tmp_path):
    for i in range(20):
        write(tmp_path, f"{i:02}/only.png", colour(10 * i, 0, 0))
    data = ready(tmp_path, val_fraction=0.3, test_fraction=0.3)
    assert data.splits.train.label.tolist() == list(range(20))
    assert (data.splits.val, data.splits.test) == (None, None)


def test_the_split_does_not_depend_on_the_seed_of_the_run(two_classes, monkeypatch):
    first = ready(two_classes, val_fraction=0.2).paths
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert ready(two_classes, val_fraction=0.2).paths == first


def test_pictures_without_class_folders_are_unlabelled_and_all_for_training(tmp_path):
    for i in range(4):
        write(tmp_path, f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    write(tmp_path, ".hidden.png")
    data = ready(tmp_path, val_fraction=0.5, test_fraction=0.2)
    assert data.num_classes == 0
    assert data.splits.train.label.tolist() == [-1] * 4
    assert data.val_dataloader() == []
    assert torch.cat([batch.index for batch in data.predict_dataloader()]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("folder", ["images", "train/images"])
def test_one_folder_alone_is_a_folder_without_labels(folder, tmp_path):
    for i in range(4):
        write(tmp_path, f"{folder}/{i}.png", colour(8 * i, 0, 0))
    assert ImageFolder(tmp_path).num_classes == 0
    with pytest.warns(UserWarning, match=f"{folder} is the only folder with images: they have no labels"):
        data = ready(tmp_path, val_fraction=0.5, test_fraction=0.2)
    assert data.class_names == ()
    assert data.splits.train.label.tolist() == [-1] * 4
    assert (data.splits.val, data.splits.test) == (None, None)


def test_the_root_one_folder_too_high_is_named_with_the_remedy(tmp_path):
    write(tmp_path, "pictures/cat/1.png")
    write(tmp_path, "pictures/dog/2.png")
    with pytest.warns(UserWarning, match=f"set root to {tmp_path}/pictures, whose folders are cat, dog"):
        ready(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("Train", "Val", "Test"), ("training", "validation", "testing"), ("TRAIN", "valid", "test")],
)
def test_usual_names_of_splits_are_recognised(names, tmp_path):
    for i, name in enumerate(names):
        write(tmp_path, f"{name}/cat/{i}.png", colour(8 * i, 0, 0))
        write(tmp_path, f"{name}/dog/{i}.png", colour(8 * i, 0, 0))
    assert ImageFolder(tmp_path).num_classes == 2
    data = ready(tmp_path)
    assert [which(data, name) for name in ("train", "val", "test")] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("test", "val"), "holds test and val without train: name the folder with the training images train"),
        (("Test",), "holds Test without train"),
        (("cat", "dog", "test"), r"holds test without train.*if test is one of your classes"),
        (("train", "training"), "holds train and training: keep one of these folders for train"),
    ],
)
def test_folders_of_splits_that_do_not_fit_are_refused_with_the_remedy(names, message, tmp_path):
    for name in names:
        write(tmp_path, f"{name}/cat/a.png")
        write(tmp_path, f"{name}/dog/b.png")
    with pytest.raises(ValueError, match=message):
        ready(tmp_path)


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}])
def test_val_and_test_may_lack_classes_of_train(options, tmp_path):
    for name in ("cat", "cow", "dog"):
        write(tmp_path, f"train/{name}/a.png")
    (tmp_path / "val" / "cow").mkdir(parents=True)
    write(tmp_path, "val/dog/b.png", colour(8, 0, 0))
    write(tmp_path, "test/cow/c.png", colour(16, 0, 0))
    data = ready(tmp_path, num_workers=0, **options)
    assert (data.splits.val.label.tolist(), data.splits.test.label.tolist()) == ([2], [1])


def test_what_is_left_out_and_what_was_found_is_told_in_a_line_each(two_classes, caplog):
    (two_classes / "cat" / "a.cr2").write_bytes(b"?")
    (two_classes / "labels.csv").write_text("?")
    os.symlink("../cat", two_classes / "dog" / "cats")
    caplog.set_level("INFO", "lightning.pytorch")
    ready(two_classes, val_fraction=0.2)
    found, left_out, links = (record.getMessage() for record in caplog.records)
    assert found == f"{two_classes}: 2 classes; images: 21 train, 9 val, 0 test (split by name)"
    assert re.fullmatch(r".*: 2 files are left out that cannot be read as images here: 1 \.cr2, 1 \.csv", left_out)
    assert links.endswith(": 1 link leads to images that are read once")


def test_copies_of_training_images_in_test_are_counted_and_named(tmp_path):
    for i in range(4):
        write(tmp_path, f"train/{'cat' if i % 2 else 'dog'}/{i}.png", noise(9, 9, i))
        write(tmp_path, f"test/{'cat' if i % 2 else 'dog'}/{i + 2}.png", noise(9, 9, i + 2))
    message = "copies of training images: 2 of 4 test images in .*, such as test/cat/3.png of train/cat/3.png"
    with pytest.warns(UserWarning, match=message):
        ready(tmp_path)


# Classes that a trained classifier knows


def test_classes_are_matched_by_name_until_the_next_setup(two_classes):
    data = ready(two_classes)
    data.match_classes(("dog", "cow", "cat"))
    assert data.class_names == ("dog", "cow", "cat")
    assert data.splits.train.label.bincount().tolist() == [10, 0, 20]
    assert which(data, "train") == list(range(30))
    data.setup()
    assert data.class_names == ("cat", "dog")
    assert data.splits.train.label.bincount().tolist() == [20, 10]


def test_an_unknown_class_is_an_error_that_names_it_or_counts_as_unlabelled(two_classes):
    data = ready(two_classes)
    with pytest.raises(ValueError, match="has the class 'cat', but the checkpoint knows 2 classes"):
        data.match_classes(("cow", "dog"))
    assert data.class_names == ("cat", "dog")
    data.match_classes(("cow", "dog"), strict=False)
    assert data.splits.train.label.tolist() == [-1] * 20 + [1] * 10


@pytest.mark.filterwarnings("ignore:.*the only folder with images")
@pytest.mark.parametrize("strict", [False, True])
def test_one_folder_alone_has_the_class_of_its_name_if_a_classifier_knows_it(strict, tmp_path):
    for i in range(30):
        write(tmp_path, f"cow/{i:02}.png", colour(8 * i, 0, 0))
    data = ready(tmp_path, test_fraction=0.3)
    data.match_classes(("cat", "cow"), strict)
    assert set(data.splits.train.label.tolist()) == {1}
    assert (data.splits.test is not None) == strict
    parts = {"train": data.splits.train} | ({"test": data.splits.test} if strict else {})
    assert sum(map(len, parts.values())) == 30
    for name in parts:
        assert [int(path.stem) for path in data.paths[name]] == which(data, name)
    data.setup()
    assert data.splits.train.label.tolist() == [-1] * 30
    assert len(data.paths["train"]) == 30


# Memory, workers and cache


def test_above_the_memory_limit_pictures_are_decoded_when_they_are_needed(two_classes):
    needed = 30 * 3 * 8 * 8
    small = ready(two_classes, memory_limit=needed)
    large = ready(two_classes, memory_limit=needed - 1, num_workers=2)
    assert isinstance(small.splits.train, ImagesInMemory)
    assert isinstance(large.splits.train, ImageFiles)
    for one, other in zip(small.train_dataloader(), large.train_dataloader(), strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    assert large.mean == small.mean


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded from here on."""
    names = []
    original = datamodules.sources.decode.decode

    def noting(path, *options):
        names.append(path.name)
        return original(path, *options)

    monkeypatch.setattr(datamodules.sources.decode, "decode", noting)
    return names


@pytest.mark.parametrize("place", [None, "elsewhere/cache.pt"])
def test_with_a_cache_every_file_is_decoded_once(place, two_classes, tmp_path, decoded):
    cache = tmp_path / place if place else True
    first = ready(two_classes, cache=cache)
    assert len(decoded) == 30
    second = ready(two_classes, cache=cache)
    assert len(decoded) == 30
    assert which(second, "train") == which(first, "train") == list(range(30))
    file = cache if place else two_classes / ".decoded-3x8.pt"
    assert [path for path in file.parent.iterdir() if path.is_file()] == [file]


def change_content(root):
    """Changes no byte but those of the colour; size, inode and time of the last change stay."""
    path = root / "cat" / "00.png"
    stat = path.stat()
    colour(80, 0, 0).save(path, format="BMP")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def replace_by_another(root):
    """By a picture of the same size and time."""
    path, other = root / "cat" / "00.png", root / "cat" / "other"
    stat = path.stat()
    colour(80, 0, 0).save(other, format="BMP")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)


CHANGES = {
    "a picture is new": lambda root: write(root, "dog/new.png"),
    "a picture is gone": lambda root: (root / "dog" / "25.png").unlink(),
    "a picture moved to another class": lambda root: (root / "dog" / "25.png").rename(root / "cat" / "25.png"),
    "a picture changed": change_content,
    "a picture was replaced": replace_by_another,
    "the cache is broken": lambda root: (root / ".decoded-3x8.pt").write_bytes(b"?"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_cache_is_made_anew_when(change, two_classes, decoded):
    ready(two_classes, cache=True)
    decoded.clear()
    CHANGES[change](two_classes)
    data = ready(two_classes, cache=True)
    assert len(decoded) == len(data.paths["train"])
    if change in ("a picture changed", "a picture was replaced"):
        assert which(data, "train")[0] == 10


def test_the_cache_is_used_again_where_files_are_other_files_of_the_same_content(two_classes, tmp_path, decoded):
    ready(two_classes, cache=True)
    moved = tmp_path / "moved"
    shutil.copytree(two_classes, moved)  # other inodes, other times
    decoded.clear()
    assert which(ready(moved, cache=True), "train") == list(range(30))
    assert decoded == []


def test_unchanged_files_are_not_read_again_with_a_cache(two_classes, monkeypatch):
    ready(two_classes, cache=True)
    monkeypatch.setattr(datamodules.sources.content, "_SETTLED", -(10**18))  # they were written just now
    monkeypatch.setattr(datamodules.sources.content, "_content_hash", lambda path: pytest.fail(f"{path} is read"))
    ready(two_classes, cache=True)


@pytest.mark.parametrize("settings", [{"image_size": 9}, {"channels": 1}, {"value_range": (0, 9)}])
def test_a_cache_of_other_settings_is_not_used(settings, two_classes, tmp_path, decoded):
    ready(two_classes, cache=tmp_path / "cache.pt")
    decoded.clear()
    ready(two_classes, cache=tmp_path / "cache.pt", **settings)
    assert len(decoded) == 30


def test_a_cache_that_is_a_program_is_not_run(two_classes, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"key": Harm()}, two_classes / ".decoded-3x8.pt")
    ready(two_classes, cache=True)
    assert not (tmp_path / "harm").exists()


def test_without_a_cache_nothing_is_written(two_classes):
    before = sorted(two_classes.rglob("*"))
    ready(two_classes)
    assert sorted(two_classes.rglob("*")) == before


# Mistakes


def test_a_missing_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not there: root must be a folder with train/<class>/\*"):
        ready(tmp_path / "nowhere")


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_root_one_level_too_high_is_answered_with_the_folder_to_set(split, tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        write(tmp_path, f"{split}pictures/{name}")
    with pytest.raises(ValueError, match=rf"no labels: set root to \S*{split}pictures, whose folders are cat, dog"):
        ImageFolder(tmp_path).check_labelled()
    ImageFolder(tmp_path / split / "pictures").check_labelled()


@pytest.mark.parametrize("folder", ["dog", "train/dog"])
def test_an_empty_class_folder_is_an_error_that_names_it(folder, tmp_path):
    write(tmp_path, f"{folder.replace('dog', 'cat')}/a.png")
    (tmp_path / folder).mkdir()
    with pytest.raises(FileNotFoundError, match=f"{folder} holds no images"):
        ready(tmp_path)


def test_an_empty_root_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no images"):
        ready(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_has_not_is_an_error_that_names_it(split, tmp_path):
    write(tmp_path, "train/cat/a.png")
    write(tmp_path, f"{split}/cow/a.png")
    with pytest.raises(ValueError, match=f"{split}/cow: train has no class of this name"):
        ready(tmp_path)


@pytest.mark.parametrize("split", ["val", "test"])
def test_for_predictions_a_class_that_train_has_not_is_unlabelled(split, tmp_path):
    for i, name in enumerate(("train/cat/a.png", "train/dog/b.png", f"{split}/dog/c.png", f"{split}/zebra/d.png")):
        write(tmp_path, name, noise(9, 9, i))
    data = ImageFolder(tmp_path, image_size=8, val_fraction=0)
    data.setup("predict")
    assert data.class_names == ("cat", "dog")
    assert getattr(data.splits, split).label.tolist() == [1, -1]
    data.match_classes(("cow", "dog"), strict=False)
    assert getattr(data.splits, split).label.tolist() == [1, -1]
    for stage in ("fit", "validate", "test", None):
        with pytest.raises(ValueError, match=f"{split}/zebra: train has no class of this name"):
            data.setup(stage)


def test_class_folders_and_pictures_side_by_side_are_an_error(tmp_path):
    write(tmp_path, "cat/a.png")
    write(tmp_path, "b.png")
    with pytest.raises(ValueError, match=r"\(cat\) and images \(b.png\) side by side") as error:
        ready(tmp_path)
    both, beside = re.findall(r"'([^']*\*[^']*)'", str(error.value))
    assert len(ready(both).splits.train) == 2
    assert len(ready(beside).splits.train) == 1


def test_a_misspelt_split_is_an_error(tmp_path):
    write(tmp_path, "train/cat/a.png")
    write(tmp_path, "vla/cat/a.png")
    with pytest.raises(ValueError, match="holds train and vla: the splits are called train, val and test"):
        ready(tmp_path)


@pytest.mark.parametrize("cache", [False, True])
def test_links_that_lead_nowhere_are_unreadable_files(cache, two_classes):
    (two_classes / "cat" / "99.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"cat/99.png is a link to a file that is not there: .*on_error='skip'"):
        ready(two_classes, cache=cache)
    with pytest.warns(UserWarning, match=r"1 links lead to no file and are left out: .*cat/99.png"):
        data = ready(two_classes, cache=cache, on_error="skip")
    assert which(data, "train") == list(range(30))


def damage(root):
    """One file that is no picture and one that was cut off."""
    (root / "cat" / "03.png").write_text("not a picture")
    path = write(root, "dog/22.png", noise(40, 40))
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize("cache", [False, True])
def test_an_unreadable_file_is_an_error_that_names_it_and_says_how_to_go_on(cache, two_classes):
    damage(two_classes)
    with pytest.raises(ValueError, match=r"cat/03.png cannot be read .*on_error='skip'"):
        ready(two_classes, cache=cache)


def test_an_unreadable_file_is_named_by_the_worker_that_finds_it(two_classes):
    damage(two_classes)
    data = ready(two_classes, memory_limit=0, num_workers=1, batch_size=30)
    with pytest.raises(ValueError, match=r"(cat/03|dog/22).png cannot be read"):
        next(iter(data.train_dataloader()))


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}, {"cache": True}, {"memory_limit": 0, "cache": True}])
def test_unreadable_files_can_be_skipped_with_a_warning_that_counts_and_names_them(options, two_classes, decoded):
    damage(two_classes)
    with pytest.warns(UserWarning, match=r"2 of 30 files .* left out: .*cat/03.png, .*dog/22.png"):
        data = ready(two_classes, on_error="skip", **options)
    assert set(decoded) == {f"{i:02}.png" for i in range(30)}
    assert len(decoded) <= 32  # the first that cannot be read once more, for the reason
    assert which(data, "train") == [i for i in range(30) if i not in (3, 22)]
    assert data.splits.train.label.bincount().tolist() == [19, 9]
    assert [int(path.stem) for path in data.paths["train"]] == which(data, "train")


ODD = "cat/\udcff\n=1+1.png"  # not UTF-8


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}, {"cache": True}, {"memory_limit": 0, "cache": True}])
def test_links_to_nowhere_are_skipped_and_odd_names_are_read(options, two_classes):
    (two_classes / "dog" / "link.png").symlink_to(two_classes / "nowhere.png")
    write(two_classes, ODD)
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"left out.*dog/link\.png"):
            data = ready(two_classes, on_error="skip", **options)
        assert len(data.splits.train) == 31
    assert two_classes / ODD in data.paths["train"]
    data.splits.train.digest()


def test_a_link_that_leads_somewhere_again_is_read_again(two_classes):
    (two_classes / "dog" / "link.png").symlink_to(two_classes / "nowhere.png")
    with pytest.warns(UserWarning, match="left out"):
        ready(two_classes, on_error="skip", cache=True)
    write(two_classes, "nowhere.png").rename(two_classes / ".nowhere.png")
    (two_classes / "dog" / "link.png").unlink()
    (two_classes / "dog" / "link.png").symlink_to(two_classes / ".nowhere.png")
    assert len(ready(two_classes, on_error="skip", cache=True).splits.train) == 31


def test_a_warning_about_a_name_that_is_no_text_is_text(two_classes):
    (two_classes / ODD).write_text("not a picture")
    with pytest.warns(UserWarning, match="left out") as warnings:
        data = ready(two_classes, on_error="skip")
    assert r"cat/\xff\n=1+1.png cannot be read" in str(warnings[0].message).encode().decode()
    (two_classes / "dog").rename(two_classes / "\udcfe")
    assert ready(two_classes, on_error="skip").class_names == ("cat", r"\xfe")
    assert data.class_names == ("cat", "dog")


def test_a_cache_of_a_run_that_skipped_does_not_hide_the_error(two_classes):
    damage(two_classes)
    with pytest.warns(UserWarning, match="left out"):
        ready(two_classes, on_error="skip", cache=True)
    with pytest.raises(ValueError, match="cat/03.png cannot be read"):
        ready(two_classes, on_error="raise", cache=True)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_too_little_memory_is_no_unreadable_picture(on_error, two_classes, monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", exhausted)
    with pytest.raises(MemoryError, match="png: there is too little memory to decode it .* image_size of 8"):
        ready(two_classes, on_error=on_error)


@pytest.mark.filterwarnings("ignore:1 of 2 files")
def test_a_class_of_which_nothing_can_be_read_is_an_error(tmp_path):
    write(tmp_path, "cat/a.png")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "b.png").write_text("not a picture")
    with pytest.raises(ValueError, match="class dog in .* can be read"):
        ready(tmp_path, on_error="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 99999}, "image_size is 99999: it must be at least 1 and at most 16384"),
        ({"channels": 4}, "channels is 4"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"value_range": (0, float("inf"))}, r"value_range is \[0, inf\]"),
        ({"value_range": (255, 0)}, r"value_range is \[255, 0\]: it must be .* in ascending order"),
        ({"val_fraction": -0.1}, "val_fraction is -0.1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
    ],
)
def test_options_out_of_range_are_errors(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ready(tmp_path, **options)
