from recipes.contrastive.instance_discrimination import InstanceDiscrimination
from recipes.contrastive.moco import MoCo
from recipes.contrastive.simclr import SimCLR

__all__ = ["InstanceDiscrimination", "MoCo", "SimCLR"]
