"""What is done with each stage of an encoder."""

import re
from typing import Literal, get_args

from recipes.nn import Encoder, stages

Mode = Literal["frozen", "finetune", "retrain"]
MODES: tuple[Mode, ...] = get_args(Mode)

PRESETS = {
    "feature-extraction": "frozen...",
    "fine-tune-last": "frozen... finetune",
    "fine-tune-all": "finetune...",
    "from-scratch": "retrain...",
    "gradual-unfreezing": "finetune...",  # one stage more at a time
    "layer-decay": "finetune...",  # each stage slower than the one after it
}


def modes(text: str, encoder: Encoder) -> list[Mode]:
    """Reads what is to be done with each stage of an encoder.

    Args:
        text: one of ``PRESETS``; or a word of ``MODES`` for each stage, from the first to the last, with blanks between
            them. ``word*3`` stands for three stages, and one ``word...`` for as many as are left.
        encoder: whose stages.

    Returns:
        One mode for each stage.

    Raises:
        ValueError: if a word is unknown, or there are more or fewer words than stages.
    """
    count = len(stages(encoder))
    found: list[Mode] = []
    rest: tuple[int, Mode] | None = None  # where a word stands for as many stages as are left
    words = PRESETS.get(text, text).split()
    for word in words:
        parsed = re.fullmatch(r"(\w+)(?:\*(\d+)|(\.\.\.))?", word)
        mode = next((mode for mode in MODES if parsed and parsed[1] == mode), None)
        if parsed is None or mode is None or (parsed[3] and rest):
            raise ValueError(
                f"stages is {text!r}: it must be {', '.join(PRESETS)}, or one of {', '.join(MODES)} for each stage, "
                "such as 'frozen*2 finetune' or 'frozen... retrain', with '...' once"
            )
        if parsed[3]:
            rest = len(found), mode
        else:
            found += [mode] * int(parsed[2] or 1)
    if rest:
        found[rest[0] : rest[0]] = [rest[1]] * (count - len(found))
    if len(found) != count:
        names = ", ".join(stage.name for stage in stages(encoder))
        raise ValueError(
            f"stages is {text!r}, which is for {len(found)}, but this {type(encoder).__name__} has {count} ({names}): "
            "give one word for each, or let one word with '...' stand for all that are left"
        )
    return found
