"""What losses compare beyond logits, taken from the two models while they run."""

from torch import Tensor, nn

from ..heads import FeatureTap, classification_layer
from ..objective import DistillationObjective
from ..teacher import FrozenTeacher
from .cached import CachedTeacher, refuse_features


class ExtraTensors:
    """Listens to both models for the tensors in `objective.needs`, for the length of one training.

    Args:
        objective: Whose losses need them.
        student: The bare student.
        teacher: The teacher.

    Raises:
        ValueError: A model has no linear last layer, or there is no teacher model.
    """

    def __init__(self, objective: DistillationObjective, student: nn.Module, teacher: FrozenTeacher | None):
        self.needs = objective.needs
        self.teacher = teacher
        self.taps = {}
        if "student_features" in self.needs:
            self.taps["student_features"] = FeatureTap(_layer(objective, student, "model"), "model")
        is_stored = isinstance(teacher, CachedTeacher)
        if "teacher_features" in self.needs and not is_stored:
            layer = _teacher_layer(objective, teacher)
            self.taps["teacher_features"] = FeatureTap(layer, "teacher_model")
        if "teacher_classifier_weight" in self.needs:
            is_there = not is_stored or teacher.is_there
            live = _teacher_layer(objective, teacher).weight if is_there else None
            self.weight = live if is_there else teacher.cache.classifier_weight()

    def take(self, student_logits: Tensor) -> dict[str, Tensor]:
        """The tensors behind the logits of the latest forward of both models."""
        taken = {}
        if "student_features" in self.needs:
            taken["student_features"] = self.taps["student_features"].take(student_logits)
        if "teacher_features" in self.needs:
            tap = self.taps.get("teacher_features")
            features = self.teacher.features if tap is None else tap.take(self.teacher.answer)
            taken["teacher_features"] = features.detach().to(student_logits.device)
        if "teacher_classifier_weight" in self.needs:
            weight, label_map = self.weight.detach(), self.teacher.label_map
            weight = weight if label_map is None else label_map.rows(weight)
            taken["teacher_classifier_weight"] = weight.to(student_logits.device)
        return taken

    def close(self) -> None:
        """Stop listening."""
        for tap in self.taps.values():
            tap.close()


def sizes(objective: DistillationObjective, student: nn.Module, teacher: FrozenTeacher | None) -> dict[str, int]:
    """The widths that the objective binds to: `num_labels`, and of the features that its losses need.

    Raises:
        ValueError: As `ExtraTensors`.
    """
    widths = {}
    num_labels = getattr(getattr(student, "config", None), "num_labels", None)
    if num_labels is None and teacher is not None and teacher.label_map is not None:
        num_labels = len(teacher.label_map.student_labels)
    if num_labels is not None:
        widths["num_labels"] = num_labels
    if "student_features" in objective.needs:
        widths["student_features"] = _layer(objective, student, "model").in_features
    if {"teacher_features", "teacher_classifier_weight"} & set(objective.needs):
        widths["teacher_features"] = _teacher_width(objective, teacher)
    return widths


def _teacher_width(objective: DistillationObjective, teacher: FrozenTeacher | None) -> int:
    if isinstance(teacher, CachedTeacher) and not teacher.is_there:
        refuse_features(objective, teacher.cache)
        return teacher.cache.num_features
    return _teacher_layer(objective, teacher).in_features


def distilled_classes(student: nn.Module, teacher: FrozenTeacher | None) -> int | None:
    """Over how many classes the models are compared: the student's, or those that the teacher knows of them."""
    if teacher is not None and teacher.shared is not None:
        return len(teacher.shared)
    return getattr(getattr(student, "config", None), "num_labels", None)


def serialized_layer(objective: DistillationObjective, student: nn.Module) -> nn.Linear | None:
    """The student's layer that the layer of `task_serialization` is folded into; None without that option.

    Raises:
        ValueError: The student's last layer is not linear.
    """
    if not objective.task_serialization:
        return None
    return classification_layer(student, "model", "`task_serialization` (its layer is folded into it)")


def _layer(objective: DistillationObjective, model: nn.Module, owner: str) -> nn.Linear:
    return classification_layer(model, owner, f"loss {_needing(objective)}")


def _teacher_layer(objective: DistillationObjective, teacher: FrozenTeacher | None) -> nn.Linear:
    return _layer(objective, _teacher_model(objective, teacher), "teacher_model")


def _needing(objective: DistillationObjective) -> str:
    return " and ".join(f"`{loss.name}`" for loss in objective.active_losses if loss.needs)


def _teacher_model(objective: DistillationObjective, teacher: FrozenTeacher | None) -> nn.Module:
    if teacher is None or not isinstance(teacher.model, nn.Module):
        got = "None" if teacher is None else type(teacher.model).__name__
        raise ValueError(
            f"`DistillationTrainer(teacher_model={got})`: loss {_needing(objective)} looks into the teacher, so it "
            f"needs the model itself, not only its logits. Pass a classifier, or use losses on logits."
        )
    return teacher.model
