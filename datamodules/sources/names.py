"""Names of files as text."""

import re
from pathlib import Path


def printable(name: str | Path) -> str:
    r"""Returns a name that can be written anywhere, on one line.

    Each byte that is not UTF-8 becomes ``\xff``, with its own digits: Python reads such bytes of a file name as lone
    surrogates, which no text file, terminal or picture takes. A control character becomes its escape, such as ``\n``.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", _escaped, str(name))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    # PEP 383: byte 0xff is read as U+DCFF
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()
