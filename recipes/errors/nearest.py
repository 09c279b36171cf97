import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str], alike: float = 0.5) -> str:
    """A question that names the word most like this one, or nothing: " (did you mean 'fit'?)".

    Args:
        word: what was given.
        words: what is known.
        alike: how much of two words has to be equal, from 0 to 1.
    """
    by_lower = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=alike)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
