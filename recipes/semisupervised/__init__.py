from recipes.semisupervised.mean_teacher import MeanTeacher

__all__ = ["MeanTeacher"]
