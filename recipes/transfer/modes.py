"""What is done with each stage of an encoder."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

from recipes.nn import Encoder, stage_of_state, stages

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
    named = 0  # stages, of which no more are kept than there are
    rest: tuple[int, Mode] | None = None  # where a word stands for as many stages as are left
    words = PRESETS.get(text, text).split()
    for word in words:
        parsed = re.fullmatch(r"(\w+)(?:\*(\d{1,99})|(\.\.\.))?", word)
        mode = next((mode for mode in MODES if parsed and parsed[1] == mode), None)
        if parsed is None or mode is None or (parsed[3] and rest):
            raise ValueError(
                f"stages is {text!r}: it must be {', '.join(PRESETS)}, or one of {', '.join(MODES)} for each stage, "
                "such as 'frozen*2 finetune' or 'frozen... retrain', with '...' once"
            )
        if parsed[3]:
            rest = len(found), mode
        else:
            named += int(parsed[2] or 1)
            found += [mode] * (min(named, count) - len(found))
    if rest:
        found[rest[0] : rest[0]] = [rest[1]] * (count - len(found))
        named = max(named, count)
    if named != count:
        names = ", ".join(stage.name for stage in stages(encoder))
        raise ValueError(
            f"stages is {text!r}, which is for {named}, but this {type(encoder).__name__} has {count} ({names}): "
            "give one word for each, or let one word with '...' stand for all that are left"
        )
    return found


def with_new_stages(encoder: Encoder, chosen: Sequence[Mode]) -> Encoder:
    """Reinitialises the stages that are retrained; returns a new encoder if these are all stages."""
    if "retrain" not in chosen:
        return encoder
    fresh = encoder.fresh()
    if set(chosen) == {"retrain"}:
        return fresh
    stage, new = stage_of_state(encoder), fresh.state_dict()
    for name, value in encoder.state_dict().items():
        if chosen[stage[name]] == "retrain":
            value.copy_(new[name])
    return encoder


def lr_factors(chosen: Sequence[Mode], finetune_factor: float, layer_decay: float | None) -> list[float]:
    """The learning rate of each stage over that of the head.

    Args:
        chosen: what is done with each stage.
        finetune_factor: factor of the fine-tuned stages.
        layer_decay: factor from each stage to the one before it, in place of ``finetune_factor``; None has none.
    """
    if layer_decay is not None:
        return [layer_decay ** (len(chosen) - number) for number in range(len(chosen))]
    return [finetune_factor if mode == "finetune" else 1.0 for mode in chosen]


def waiting_stages(count: int, epoch: int, every_n_epochs: int | None) -> range:
    """The stages that gradual unfreezing has not reached (Howard & Ruder, 2018, arXiv:1801.06146, Section 3.3).

    Args:
        count: how many stages the encoder has.
        epoch: of the run, from 0.
        every_n_epochs: number of epochs after which one more stage is trained, last first. If None, trains all at once.
    """
    return range(0 if every_n_epochs is None else max(0, count - epoch // every_n_epochs))
