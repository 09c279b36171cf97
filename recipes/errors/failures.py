class RunFailed(RuntimeError):  # noqa: N818  # a run fails; that is what its name says
    """A run that cannot go on although its arguments are right: the message says what happened and what to try.

    The ``recipes`` command prints the message in one line and ends with code 1.
    """


class Diverged(RunFailed):
    """A loss or a weight is not finite."""
