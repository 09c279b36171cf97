import os
import shutil

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
    assert data.splits.val.label.bincount().tolist() == [2, 2]
    assert data.splits.train.label.bincount().tolist() == [8, 8]
    assert data.splits.test is None


def test_class_folders_alone_are_split_with_the_classes_in_proportion(two_classes):
    data = ready(two_classes, val_fraction=0.1, test_fraction=0.2)
    counts = [part.label.bincount().tolist() for part in (data.splits.train, data.splits.val, data.splits.test)]
    assert counts == [[14, 7], [2, 1], [4, 2]]
    assert sorted(which(data, "train") + which(data, "val") + which(data, "test")) == list(range(30))
    for name in ("train", "val", "test"):
        assert [int(path.stem) for path in data.paths[name]] == which(data, name)


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


def test_class_folders_and_pictures_side_by_side_are_an_error(tmp_path):
    write(tmp_path, "cat/a.png")
    write(tmp_path, "b.png")
    with pytest.raises(ValueError, match=r"\(cat\) and images \(b.png\) side by side"):
        ready(tmp_path)


def test_a_misspelt_split_is_an_error(tmp_path):
    write(tmp_path, "train/cat/a.png")
    write(tmp_path, "valid/cat/a.png")
    with pytest.raises(ValueError, match="holds train and valid: the splits are called train, val and test"):
        ready(tmp_path)


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
        with pytest.warns(UserWarning, match="1 of 32 files .* left out: .*dog/link.png"):
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
