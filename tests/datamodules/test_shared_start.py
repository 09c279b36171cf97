"""Processes of a machine share the work before the first step, and the memory of the images."""

import numpy as np
import pytest
from PIL import Image

from datamodules.sources.shared import SharedImages
from tests.datamodules.shared_run import start
from tests.helpers.processes import run

NAMES = sorted(f"{number}.png" for number in range(24))


def pictures(root, broken=False):
    rng = np.random.default_rng(0)
    for number in range(24):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    if broken:
        (root / "a" / "0.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    (folder / "shared").mkdir()
    roots = pictures(folder / "whole"), folder / "shared", pictures(folder / "broken", broken=True)
    return run(start, *roots, 1), run(start, *roots, 2, processes=2)


@pytest.mark.parametrize("data", ["plain", "wrapped"])
def test_the_first_process_decodes_the_images_and_the_others_map_them(starts, data):
    ((one,), (first, second)) = starts
    assert [found[data]["decoded"] for found in (one, first, second)] == [NAMES, NAMES, []]
    assert [found[data]["mapped"] for found in (one, first, second)] == [False, True, True]
    for found in (first, second):
        assert found[data]["digest"] == one[data]["digest"]
        assert found[data]["statistics"] == one[data]["statistics"]


def test_the_name_of_the_shared_file_is_gone_when_training_begins(starts):
    assert [found[data]["files"] for found in starts[1] for data in ("plain", "wrapped")] == [[]] * 4
    assert [found["left"] for found in starts[1]] == [[], []]


def test_each_process_computes_mean_and_std_of_its_share_and_both_are_those_of_all_images(starts):
    ((one,), both) = starts
    asked = [sorted(found["slow"]["asked"]) for found in both]
    assert asked == [[0, *range(0, 41, 2)], [0, *range(1, 41, 2)]]  # the first image for its shape, too
    assert [found["slow"]["statistics"] for found in both] == [one["slow"]["statistics"]] * 2
    np.testing.assert_allclose(one["slow"]["statistics"], np.array([[20], [np.arange(41).std()]]) / 255, rtol=1e-6)


def test_a_broken_file_is_refused_on_every_process_and_skipped_by_all_after_one_has_read_it(starts):
    ((one,), (first, second)) = starts
    assert [found.get("error", "refused") for found in (one, first, second)] == ["refused"] * 3
    assert [found["skipped"]["train"] for found in (first, second)] == [one["skipped"]["train"]] * 2
    assert second["skipped"]["decoded"] < first["skipped"]["decoded"]


def test_without_room_nothing_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources.shared._FOLDERS", (tmp_path / "missing", tmp_path))
    shared = SharedImages((), [])
    assert not shared.decode((1 << 40, 1, 1, 1), lambda into: [])
    assert shared.read() is None
    assert list(tmp_path.iterdir()) == []


def test_a_shared_file_is_removed_with_its_owner(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources.shared._FOLDERS", (tmp_path,))
    shared = SharedImages((), [])
    assert shared.decode((2, 1, 3, 3), lambda into: into.fill(7) or [1])
    image, bad = SharedImages((), []).read()
    assert (image.unique().tolist(), list(image.shape), bad) == ([7], [2, 1, 3, 3], [1])
    del shared
    assert list(tmp_path.iterdir()) == []
    assert image.unique().tolist() == [7]  # as long as it is used
