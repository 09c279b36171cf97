from recipes.contrastive.simclr import SimCLR

__all__ = ["SimCLR"]
