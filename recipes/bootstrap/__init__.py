from recipes.bootstrap.byol import BYOL

__all__ = ["BYOL"]
