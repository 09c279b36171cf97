import os
import random
from pathlib import Path

from datamodules.sources import duplicates
from datamodules.sources.duplicates import copies
from datamodules.sources.listing import ImageFile


def write(folder, **contents):
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, content in contents.items():
        path = folder / name
        path.write_bytes(content)
        files.append(ImageFile(str(path), "", len(content), str(path)))
    return files


def content_of(path):
    return Path(path).read_bytes()


def names(pairs):
    return [(os.path.basename(one), os.path.basename(other)) for one, other in pairs]


def test_copies_are_those_of_the_slow_comparison(tmp_path):
    draw = random.Random(0)
    contents = [draw.randbytes(draw.choice((0, 1, 3, 3, 4096, 9000, 20000))) for _ in range(60)]
    train = write(tmp_path / "train", **{f"train{i}": content for i, content in enumerate(contents)})
    changed = [content[:-1] + b"?" for content in contents[:10]] + [b"?" + content[1:] for content in contents[10:20]]
    test = write(tmp_path / "test", **{f"test{i}": content for i, content in enumerate(contents[15:40] + changed)})
    slow = {one.path for one in test for other in train if content_of(one.path) == content_of(other.path)}
    found = copies(test, train)
    assert {one for one, _ in found} == slow
    assert all(content_of(one) == content_of(other) for one, other in found)


def test_equal_sizes_and_middles_are_no_copies_if_an_end_differs(tmp_path):
    train = write(tmp_path / "train", a=b"x" * 20000, b=b"y" * 20000)
    test = write(tmp_path / "test", c=b"x" * 19999 + b"?", d=b"y" * 20000)
    assert names(copies(test, train)) == [("d", "b")]


def test_above_the_bound_no_file_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_WHOLE", 39_999)
    monkeypatch.setattr(duplicates, "_whole", None)
    train = write(tmp_path / "train", a=b"x" * 200_000)
    test = write(tmp_path / "test", b=b"x" * 200_000, c=b"?" * 8_000 + b"x" * 192_000)
    assert names(copies(test, train)) == [("b", "a")]


def test_files_of_other_sizes_are_not_opened(tmp_path):
    missing = ImageFile(str(tmp_path / "gone"), "", 5, "gone")
    assert copies([missing], write(tmp_path, a=b"1234")) == []
    assert copies([missing], write(tmp_path, a=b"12345")) == []
