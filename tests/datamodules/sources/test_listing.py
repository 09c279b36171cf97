import os
import socket

import pytest

from datamodules.sources.listing import class_folders, list_images


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def listed(root, **folders):
    """The images of each split, relative to the root, and the whole listing."""
    found = list_images({name: root / folder for name, folder in folders.items()} or {"all": root})
    prefix = len(f"{root}/")
    return {split: [file.path[prefix:] for file in files] for split, files in found.files.items()}, found


def test_a_link_to_a_parent_adds_no_image(tmp_path):
    make(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    for place, target in (("a/loop", "."), ("a/up", ".."), ("loop", "."), ("a/out", "../.."), ("b/self", "self")):
        (tmp_path / place).symlink_to(target)
    files, found = listed(tmp_path)
    assert files["all"] == ["a/1.png", "a/2.png", "b/1.png"]
    assert found.classes["all"] == ["a", "b"]
    assert found.repeated == 4
    assert found.other_files == {"broken link": 1}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_counts_once_and_where_it_really_is(link, tmp_path):
    make(tmp_path, "a/x.png", "b/1.png", "c/2.png")
    (tmp_path / "a" / "0.png").symlink_to(tmp_path / "b" / "1.png")  # comes first in the order of names
    link(tmp_path / "c" / "2.png", tmp_path / "c" / "3.png")
    files, found = listed(tmp_path)
    assert files["all"] == ["a/x.png", "b/1.png", "c/2.png"]
    assert found.repeated == 2
    assert "2 links lead to images that are read once; 1 of them in two classes, such as" in found.notes()[0]


def test_linked_folders_and_files_elsewhere_are_images_of_the_class_that_links(tmp_path):
    make(tmp_path, "pool/1.png", "pool/deep/2.png", "other/3.png", "data/dog/4.png", "data/dog/6.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "pool")
    (tmp_path / "data" / "dog" / "5.png").symlink_to(tmp_path / "other" / "3.png")
    files, found = listed(tmp_path / "data")
    assert files["all"] == ["cat/1.png", "cat/deep/2.png", "dog/4.png", "dog/5.png", "dog/6.png"]
    assert [file.class_name for file in found.files["all"]] == ["cat", "cat", "dog", "dog", "dog"]
    assert found.repeated == 0


def test_a_class_folder_that_links_to_another_class_is_no_class(tmp_path):
    make(tmp_path, "b/1.png", "c/1.png")
    (tmp_path / "a").symlink_to("b")
    files, found = listed(tmp_path)
    assert files["all"] == ["b/1.png", "c/1.png"]
    assert found.classes["all"] == class_folders(tmp_path) == ["b", "c"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_image_of_train_is_in_no_other_split(link, tmp_path):
    make(tmp_path, "train/a/1.png", "train/a/2.png", "test/a/3.png")
    link(tmp_path / "train/a/1.png", tmp_path / "test/a/0.png")
    files, found = listed(tmp_path, train="train", test="test")
    assert files == {"train": ["train/a/1.png", "train/a/2.png"], "test": ["test/a/3.png"]}
    assert "1 test image is left out, because links make training images of them" in found.notes()[0]


def test_a_link_of_train_does_not_take_the_images_of_test(tmp_path):
    make(tmp_path, "train/a/1.png", "test/a/2.png")
    (tmp_path / "train/a/more").symlink_to(tmp_path / "test/a")
    files, _ = listed(tmp_path, train="train", test="test")
    assert files == {"train": ["train/a/1.png"], "test": ["test/a/2.png"]}


def test_val_and_test_may_be_the_same_folder(tmp_path):
    make(tmp_path, "train/a/1.png", "val/a/2.png")
    (tmp_path / "test").symlink_to("val")
    files, _ = listed(tmp_path, train="train", val="val", test="test")
    assert files == {"train": ["train/a/1.png"], "val": ["val/a/2.png"], "test": ["test/a/2.png"]}


def test_what_is_no_image_is_counted_by_its_extension(tmp_path):
    make(tmp_path, "a/1.PNG", "a/2.HEICX", "a/3.heicx", "a/b/labels.csv", "README", ".hidden.xyz", "__MACOSX/x.xyz")
    files, found = listed(tmp_path)
    assert files["all"] == ["a/1.PNG"]
    assert found.other_files == {".heicx": 2, ".csv": 1, "without extension": 1}
    (line,) = found.notes()
    assert line == "4 files are left out that cannot be read as images here: 2 .heicx, 1 without extension, 1 .csv"


def test_pipes_and_sockets_are_left_out_and_counted(tmp_path):
    make(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a" / "2.png")
    (tmp_path / "a" / "3.png").symlink_to("2.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "a" / "4.png"))
        files, found = listed(tmp_path)
    assert files["all"] == ["a/1.png"]
    assert found.special_files == 3
    assert "3 special (FIFO, socket or device)" in found.notes()[0]


def test_links_that_lead_nowhere_are_told_apart_from_images(tmp_path):
    make(tmp_path, "a/1.png")
    (tmp_path / "a" / "2.png").symlink_to("gone.png")
    files, found = listed(tmp_path)
    assert files["all"] == ["a/1.png"]
    assert found.broken == [tmp_path / "a" / "2.png"]
