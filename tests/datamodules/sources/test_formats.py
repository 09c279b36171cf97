import numpy as np
import pytest
from PIL import Image

from datamodules.sources.decode import decode, decode_or_name
from datamodules.sources.formats import extensions, formats, install_hint

PICTURE = Image.fromarray(np.random.RandomState(0).randint(0, 256, (12, 12, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("extension", "name"),
    [("jfif", "JPEG"), ("avif", "AVIF"), ("JPG2", "JPEG2000"), ("jp2", "JPEG2000"), ("tga", "TGA"), ("webp", "WEBP")],
)
def test_files_that_pillow_reads_are_read(extension, name, tmp_path):
    if name not in formats():
        pytest.skip(f"this Pillow has no {name}")
    path = tmp_path / f"a.{extension}"
    PICTURE.save(path, format=name)
    assert path.suffix.lower() in extensions()
    difference = np.abs(decode(path, 12, 3).transpose(1, 2, 0).astype(int) - np.asarray(PICTURE))
    assert difference.mean() < 60


def test_every_extension_is_of_a_format_that_is_opened():
    known = Image.registered_extensions()
    assert {known[extension] for extension in extensions() if extension in known} <= {*formats(), "MPO"}
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"} & extensions()


@pytest.mark.parametrize("extension", ["png", "jpg", "eps"])
def test_postscript_is_never_run(extension, tmp_path):
    path = tmp_path / f"a.{extension}"
    PICTURE.save(path, format="EPS")
    with pytest.raises(ValueError, match="cannot identify image file"):
        decode_or_name(path, 8, 3)


def test_heif_is_read_with_its_plugin(tmp_path):
    plugin = pytest.importorskip("pillow_heif")
    assert "HEIF" in formats()
    assert ".heic" in extensions()
    plugin.from_pillow(PICTURE).save(tmp_path / "a.heic")
    assert decode(tmp_path / "a.heic", 12, 3).shape == (3, 12, 12)


def test_what_to_install_is_said_for_heif_alone():
    assert install_hint(".heic") == install_hint(".heif") == " (pip install pillow-heif)"
    assert install_hint(".cr2") == ""
