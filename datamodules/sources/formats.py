"""The image formats that are read: those that Pillow decodes by itself, and those of its plugins that are installed."""

from contextlib import suppress
from functools import cache

from PIL import Image

# EPS and WMF run other programs or need another system; Pillow names the others without decoding them.
NEVER = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
ALIASES = {".jpg2": "JPEG2000", ".jpm": "JPEG2000", ".jif": "JPEG", ".jfi": "JPEG"}  # not among Pillow's extensions
HEIF = ("heic", "heics", "heif", "heifs", "hif")


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats, as ``Image.open`` takes them."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in Image.ID if name not in NEVER)


@cache
def extensions() -> frozenset[str]:
    """The extensions of files in these formats, in lower case with their dot."""
    known = {"MPO", *formats()}  # Pillow reads MPO through JPEG
    return frozenset(ext for ext, name in (Image.registered_extensions() | ALIASES).items() if name in known)


def install_hint(extension: str) -> str:
    """What to install to read files of an extension, in brackets; empty if nothing is known."""
    return " (pip install pillow-heif)" if extension.removeprefix(".") in HEIF else ""
