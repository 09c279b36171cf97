"""The processes of a run."""

import torch


def are_several() -> bool:
    """Whether this process is one of several that are joined."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
