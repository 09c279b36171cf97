from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_local_batch_norm(module: nn.Module) -> bool:
    """Whether a module has batch norm that sees the images of its own device alone."""
    return any(isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm) for part in module.modules())
