def check_at_least(least: float, **given: float | None) -> None:
    """Checks numbers that a user gave, each by the name of its argument: ``check_at_least(1, queue_size=queue_size)``.

    Args:
        least: smallest number that is allowed.
        **given: numbers by the names of their arguments; None is allowed.

    Raises:
        ValueError: if a number is smaller or not a number.
    """
    for name, number in given.items():
        if number is not None and not number >= least:
            raise ValueError(f"{name} is {number}: it must be at least {least:g}")
