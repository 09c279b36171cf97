import pytest

from datamodules.sources.names import printable


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ü 한국 😀.png", "ü 한국 😀.png"),
        (b"a\xff\xe9".decode("utf-8", "surrogateescape"), r"a\xff\xe9"),
        ("a\n\t\x00\x85b", r"a\n\t\x00\x85b"),
        ("\ud800", r"\ud800"),
        ("\u200d\u202e", "\u200d\u202e"),  # joiners and marks of direction belong to names
    ],
)
def test_every_name_becomes_one_line_of_utf_8(name, expected):
    assert printable(name) == expected
    assert printable(name).encode().decode() == expected
