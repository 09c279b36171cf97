import os


def usable_cpus() -> int:
    """The number of CPUs that this process may use; a cluster job often has fewer than the machine."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
