from recipes.distillation.crd import ContrastiveDistillation
from recipes.distillation.deit import DeiT
from recipes.distillation.layer_losses import LayerLoss
from recipes.distillation.student import Student
from recipes.distillation.teacher import Teacher, teacher_from
from recipes.distillation.teacher_student import TeacherStudent

__all__ = ["ContrastiveDistillation", "DeiT", "LayerLoss", "Student", "Teacher", "TeacherStudent", "teacher_from"]
