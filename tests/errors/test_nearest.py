from pathlib import Path

import pytest

import recipes
from recipes.errors import nearest


@pytest.mark.parametrize(
    ("word", "question"),
    [
        ("simclr-digit", " (did you mean 'simclr-digits'?)"),
        ("ConVnet", " (did you mean 'ConvNet'?)"),
        ("fit", " (did you mean 'fit'?)"),
        ("zzz", ""),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest_of_those_alike(word, question):
    assert nearest(word, ["simclr-digits", "ConvNet", "fit"]) == question


def test_nothing_is_suggested_where_there_are_no_names():
    assert nearest("fit", []) == ""


def test_all_rooms_ask_in_these_words():
    folder = Path(recipes.__file__).parent
    asking = [path for path in folder.rglob("*.py") if "difflib" in path.read_text()]
    assert asking == [folder / "errors" / "nearest.py"]
