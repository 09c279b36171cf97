import pytest
import torch

from datamodules.loading.split import split_by_name

NAMES = [f"{'cat' if i % 3 else 'dog'}/{i}.png" for i in range(400)]
LABEL = torch.tensor([int(i % 3 == 0) for i in range(400)])


def assigned(names, label, val=0.1, test=0.15):
    """The split of each name."""
    parts = zip(("train", "val", "test"), split_by_name(names, label, val, test), strict=True)
    return {names[row]: part for part, rows in parts for row in rows.tolist()}


def test_each_image_is_in_one_split_and_the_shares_are_about_as_asked():
    parts = list(assigned(NAMES, LABEL).values())
    assert len(parts) == 400
    assert abs(parts.count("val") - 40) < 20
    assert abs(parts.count("test") - 60) < 20


def test_the_split_of_an_image_never_changes():
    expected = {"cat/1.png": "train", "cat/2.png": "val", "dog/3.png": "train", "dog/6.png": "train"}  # by b2sum -l 64
    found = assigned(NAMES, LABEL)
    assert found == assigned(NAMES, LABEL)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("remaining", [1, 3, 7])
def test_no_image_changes_its_split_while_others_come_and_go(remaining):
    whole = assigned(NAMES, LABEL)
    rows = [i for i in range(400) if i % 10 <= remaining]
    part = assigned([NAMES[i] for i in rows], LABEL[rows])
    assert part.items() <= whole.items()


def test_a_larger_share_keeps_the_images_of_a_smaller_one():
    small, large = assigned(NAMES, LABEL, 0.1, 0.1), assigned(NAMES, LABEL, 0.2, 0.3)
    for part in ("val", "test"):
        assert {name for name in small if small[name] == part} < {name for name in large if large[name] == part}
    assert {n for n, p in small.items() if p == "test"} == {
        n for n, p in assigned(NAMES, LABEL, 0.5, 0.1).items() if p == "test"
    }


def test_every_class_keeps_a_training_image():
    names = [f"{i}/only.png" for i in range(200)]
    assert set(assigned(names, torch.arange(200), 0.4, 0.5).values()) == {"train"}


def test_an_accent_in_either_form_gives_the_same_split():
    composed, decomposed = (
        [f"{c}/{i}.png" for c in ("\u00e9",) for i in range(50)],
        [f"e\u0301/{i}.png" for i in range(50)],
    )
    label = torch.zeros(50, dtype=torch.int64)
    assert list(assigned(composed, label).values()) == list(assigned(decomposed, label).values())


def test_the_first_images_of_a_split_stand_for_all_of_them():
    _, _, test = split_by_name(NAMES, LABEL, 0.1, 0.5)
    first = LABEL[test[: len(test) // 2]].double().mean()
    assert abs(first - LABEL[test].double().mean()) < 0.1
