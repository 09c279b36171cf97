import os


def usable_cpus() -> int:
    """How many CPUs this process may use; a cluster's job often has fewer than the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
