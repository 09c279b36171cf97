import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """A question that names the word most like this one, or nothing: " (did you mean 'fit'?)"."""
    by_lower = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
