from recipes.supervised.supervised import Supervised

__all__ = ["Supervised"]
