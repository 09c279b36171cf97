"""Names of files as text."""

import os
import re
from pathlib import Path


def printable(name: str | Path) -> str:
    r"""Returns a name that can be written anywhere, on one line.

    Each byte that is not UTF-8 becomes ``\xff``, with its own digits: Python reads such bytes of a file name as lone
    surrogates, which no text file, terminal or picture takes. A control character becomes its escape, such as ``\n``.
    """
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: found[0].encode("unicode_escape").decode(), text)
