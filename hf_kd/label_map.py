"""Which of the teacher's classes is which of the student's: matched by name, never by luck."""

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from .functional import MULTI_LABEL, SINGLE_LABEL
from .registry import nearest

BY_NAME, BY_MAP, BY_POSITION = "name", "map", "position"
"""How classes were matched."""

SHOWN = 8
"""Names that an error lists of each side."""


@dataclass(frozen=True)
class LabelMap:
    r"""Says of each of the student's classes which of the teacher's it is; turns teacher logits into the student's.

    `LabelMap.match` makes one. Called with teacher logits `(batch, teacher classes)`, it answers `(batch, shared)`:
    the student's classes that the teacher knows, in the student's order.

    * Another order: the columns are exchanged.
    * Classes that only the teacher has: their columns are left out. A softmax over the rest is the teacher's
      distribution given that it is one of them, so nothing else has to be renormalised.
    * Several teacher classes for one of the student's: \(\ln \sum_j e^{v_j}\), the logit of their summed probability.
      Where a row has several labels, the logit of "at least one of them", as if they were independent.
    * Classes that only the student has: they have no column. Distillation then looks at the shared classes alone, and
      rows labelled with one of the others are left to the cross-entropy; see `DistillationObjective`.

    Immutable and picklable; `to_dict` gives plain values for JSON.

    Args:
        teacher_labels: The teacher's class names in id order.
        student_labels: The student's.
        groups: For each of the student's classes the ids of the teacher's; none where the teacher does not know it.
        by: "name", "map" (a user's was read) or "position" (a side has no real names).

    Raises:
        ValueError: The groups do not fit the names.

    Example:
        >>> label_map = LabelMap.match(["cat", "dog", "emu"], ["Dog", "Cat"])
        >>> label_map(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[2., 1.]])
    """

    teacher_labels: tuple[str, ...]
    student_labels: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    by: str = BY_NAME

    def __post_init__(self) -> None:
        used = [index for group in self.groups for index in group]
        inside = all(0 <= index < len(self.teacher_labels) for index in used)
        if len(self.groups) != len(self.student_labels) or len(set(used)) != len(used) or not inside:
            raise ValueError(
                f"`LabelMap(groups={self.groups!r})` needs one group of teacher class ids for each of the "
                f"{len(self.student_labels)} student classes, each id below {len(self.teacher_labels)} and in one "
                "group at most. Use `LabelMap.match`."
            )

    @classmethod
    def match(
        cls,
        teacher_labels: Sequence[str],
        student_labels: Sequence[str],
        mapping: Mapping[Any, Any] | str | os.PathLike | None = None,
    ) -> "LabelMap":
        """Match classes by name, regardless of case and of the separators between words.

        Where one side has no real names (`LABEL_0`, …) and both have equally many classes, by position. What is left
        over must be left over on one side only: a name without a partner on both sides is taken for a misspelling.

        Args:
            teacher_labels: The teacher's class names in id order.
            student_labels: The student's.
            mapping: `{teacher name: student name}`, or a JSON or YAML file of one, for classes whose names differ.
                Several teacher classes may go to one of the student's. None as student name leaves a teacher class
                out. A number that is no class's name is an id: `{517: "crane2"}` where two classes are called crane.

        Raises:
            ValueError: Names without a partner on both sides, ambiguous names, or no class in common.
        """
        teacher, student = tuple(map(str, teacher_labels)), tuple(map(str, student_labels))
        given = read_mapping(mapping)
        by_position = tuple((index,) for index in range(len(student)))
        if not given and list(map(normalized, teacher)) == list(map(normalized, student)):
            return cls(teacher, student, by_position, BY_POSITION if is_generic(teacher) else BY_NAME)
        if not given and len(teacher) == len(student) and (is_generic(teacher) or is_generic(student)):
            return cls(teacher, student, by_position, BY_POSITION)
        partners = _partners(teacher, student, given)
        groups = tuple(tuple(t for t, s in partners.items() if s == index) for index in range(len(student)))
        lost = [name for index, name in enumerate(teacher) if index not in partners]
        unknown = [name for name, group in zip(student, groups, strict=True) if not group]
        if (lost and unknown) or len(unknown) == len(student):
            raise ValueError(_without_partner(teacher, student, lost, unknown))
        return cls(teacher, student, groups, BY_MAP if given else BY_NAME)

    @property
    def shared(self) -> tuple[int, ...]:
        """The ids of the student's classes that the teacher knows."""
        return tuple(index for index, group in enumerate(self.groups) if group)

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of the student's classes that the teacher does not know."""
        return tuple(name for name, group in zip(self.student_labels, self.groups, strict=True) if not group)

    @property
    def is_identity(self) -> bool:
        """Whether logits stay as they are."""
        return self.groups == tuple((index,) for index in range(len(self.teacher_labels)))

    @property
    def is_one_to_one(self) -> bool:
        """Whether no two of the teacher's classes are one of the student's."""
        return all(len(group) <= 1 for group in self.groups)

    @property
    def is_complete(self) -> bool:
        """Whether the teacher knows all of the student's classes."""
        return all(self.groups)

    @property
    def must_be_checked(self) -> bool:
        """Whether only the teacher's answers can tell if the classes correspond: one side alone has real names."""
        return self.by == BY_POSITION and is_generic(self.teacher_labels) != is_generic(self.student_labels)

    def __call__(self, teacher_logits: Tensor, problem_type: str = SINGLE_LABEL) -> Tensor:
        """The teacher's logits of the shared classes.

        Args:
            teacher_logits: As the teacher gives them.
            problem_type: Of the heads: how several classes become one.

        Shape:
            `(batch, teacher classes)` -> `(batch, shared)`.

        Raises:
            ValueError: Another number of columns than the teacher has classes.
        """
        if teacher_logits.dim() != 2 or teacher_logits.shape[-1] != len(self.teacher_labels):
            raise ValueError(
                f"`LabelMap` is for a teacher with {len(self.teacher_labels)} classes and got logits of shape "
                f"{tuple(teacher_logits.shape)}: without a column for each class it cannot tell which is which. "
                "Hand in the teacher's logits as it gives them (a `teacher_logits` column too)."
            )
        if self.is_identity:
            return teacher_logits
        index, filled = _places(self.groups, teacher_logits.device)
        columns = teacher_logits[:, index]
        if self.is_one_to_one:
            return columns.squeeze(-1)
        if problem_type != MULTI_LABEL:
            return columns.masked_fill(~filled, -torch.inf).logsumexp(-1)
        survival = softplus(columns).masked_fill(~filled, 0.0).sum(-1)  # -ln of the probability of none
        strongest = columns.masked_fill(~filled, -torch.inf).amax(-1)
        several = torch.maximum(survival + (-torch.expm1(-survival)).log(), strongest)  # never below one alone
        return torch.where(filled.sum(-1) > 1, several, strongest)

    def rows(self, weight: Tensor) -> Tensor:
        """The rows, of a tensor with one for each of the teacher's classes, of the shared classes.

        Raises:
            ValueError: Several of the teacher's classes are one of the student's.
        """
        if not self.is_one_to_one:
            raise ValueError(
                "`LabelMap` makes one class of several of the teacher's, and a loss compares the classes by the rows "
                "of the teacher's last layer, of which there is none for their union. Use a loss on logits."
            )
        return weight if self.is_identity else weight[_places(self.groups, weight.device)[0].squeeze(-1)]

    def report(self, limit: int = 20) -> str:
        """A table of which class is which, and what is left over on either side.

        Args:
            limit: Show so many classes at most.
        """
        used = {index for group in self.groups for index in group}
        left = [f"{i} {name}" for i, name in enumerate(self.teacher_labels) if i not in used]
        pairs = [
            (" + ".join(f"{i} {self.teacher_labels[i]}" for i in group) or "-", f"{s} {self.student_labels[s]}")
            for s, group in enumerate(self.groups)
        ] + [(name, "-") for name in left]
        width = max(len("teacher"), *(len(teacher) for teacher, _ in pairs[:limit]))
        rows = [f"  {teacher:<{width}}  {student}" for teacher, student in [("teacher", "student"), *pairs[:limit]]]
        more = [f"  … and {len(pairs) - limit} more"] if len(pairs) > limit else []
        known = f"{len(used)} of {len(self.teacher_labels)} teacher classes"
        return "\n".join(
            [f"{known} teach {len(self.shared)} of {len(self.groups)} student classes (by {self.by}):", *rows, *more]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` of them is the same map."""
        return {
            "teacher_labels": list(self.teacher_labels),
            "student_labels": list(self.student_labels),
            "groups": [list(group) for group in self.groups],
            "by": self.by,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LabelMap":
        """The map that `to_dict` described."""
        names = tuple(values["teacher_labels"]), tuple(values["student_labels"])
        return cls(*names, tuple(map(tuple, values["groups"])), values.get("by", BY_NAME))


def label_names(model: Any) -> tuple[str, ...] | None:
    """A model's class names in id order; None where its config does not say."""
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if not id2label:
        return None
    return tuple(str(name) for _, name in sorted(id2label.items(), key=lambda item: int(item[0])))


def normalized(name: str) -> str:
    """A class name in lower case with one separator: `Guinea-Pig` and `guinea  pig` are the same."""
    return "_".join(re.sub(r"[-_]", " ", str(name).lower()).split())


def is_generic(names: Sequence[str]) -> bool:
    """Whether the names are those that `transformers` makes up, `LABEL_0` and so on."""
    return [normalized(name) for name in names] == [f"label_{index}" for index in range(len(names))]


def read_mapping(mapping: Mapping[Any, Any] | str | os.PathLike | None) -> dict[str, str | None]:
    """A user's `{teacher name: student name}` from a mapping, or from a JSON or YAML file of one.

    Raises:
        ValueError: The file cannot be read, or holds something else.
    """
    where = "`label_map`"
    if isinstance(mapping, (str, os.PathLike)):
        path, where = Path(mapping).expanduser(), f"`label_map={str(mapping)!r}`"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{where} cannot be read: {error}. Give a JSON or YAML file of {{teacher name: student name}}."
            ) from error
        mapping = _parsed(text, where)
    if mapping is None:
        return {}
    plain = isinstance(mapping, Mapping) and all(
        value is None or isinstance(value, (str, int)) for value in mapping.values()
    )
    if not plain:
        raise ValueError(
            f"{where} is {mapping!r:.200}: it must map names of the teacher's classes to names of the student's (or "
            "to null, to leave a class out), e.g. {'tabby': 'cat', 'siamese': 'cat'}."
        )
    return {str(key): None if value is None else str(value) for key, value in mapping.items()}


def _parsed(text: str, where: str) -> Any:
    import yaml  # JSON is YAML too

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{where} is neither JSON nor YAML: {said}. Write e.g. 'tabby: cat'.") from error


def _partners(
    teacher: Sequence[str], student: Sequence[str], given: Mapping[str, str | None]
) -> dict[int, int | None]:
    """Of each teacher class the student class, None for one that is left out; not those without a partner."""
    partners: dict[int, int | None] = {}
    for theirs, ours in given.items():
        index = _find(theirs, teacher, "teacher_model")
        partners[index] = None if ours is None else _find(ours, student, "model")
    if is_generic(teacher) or is_generic(student):
        return partners  # names that say nothing match nothing
    ids = _ids(student)
    left = [name for index, name in enumerate(teacher) if index not in partners]
    repeated = [name for name, found in _ids(left).items() if len(found) > 1 and name in ids]
    repeated += [name for name, found in ids.items() if len(found) > 1]
    for index, name in enumerate(teacher):
        if index in partners or normalized(name) not in ids:
            continue
        if normalized(name) in repeated:
            raise ValueError(
                f"`teacher_model` and `model` name their classes differently, and {name!r} is the name of several "
                "classes of one model: which is which cannot be told. Load them with unique names in `id2label`, or "
                f"say it by id: `label_map={{{index}: ...}}`."
            )
        partners[index] = ids[normalized(name)][0]
    return partners


def _ids(names: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(normalized(name), []).append(index)
    return found


def _find(name: str, names: Sequence[str], owner: str) -> int:
    exact = [index for index, other in enumerate(names) if other == name]
    found = exact or [index for index, other in enumerate(names) if normalized(other) == normalized(name)]
    if len(found) == 1:
        return found[0]
    if not found and name.isdecimal() and int(name) < len(names):
        return int(name)
    problem = f"names several classes of `{owner}`" if found else f"is no class of `{owner}`"
    near = nearest(name, names)
    hint = f" Did you mean {near!r}?" if near and not found else ""
    raise ValueError(f"`label_map`: {name!r} {problem}.{hint} Its classes: {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


def _without_partner(
    teacher: Sequence[str], student: Sequence[str], lost: Sequence[str], unknown: Sequence[str]
) -> str:
    if len(teacher) != len(student) and (is_generic(teacher) or is_generic(student)):
        return (
            f"`teacher_model` predicts {len(teacher)} labels but `model` predicts {len(student)}, and the names "
            f"({_listed(teacher)} / {_listed(student)}) do not say which is which. Give both real names in "
            "`id2label`, or pass `label_map={teacher name: student name}`."
        )
    near = {name: nearest(name, unknown) for name in lost[:SHOWN]}
    hints = [f"{name!r} may be {other!r}" for name, other in near.items() if other]
    example = next((f"{{{name!r}: {other!r}}}" for name, other in near.items() if other), None)
    example = example or f"{{{(lost or teacher)[0]!r}: {unknown[0]!r}}}"
    hint = f" ({'; '.join(hints[:3])})" if hints else ""
    return (
        f"`teacher_model` and `model` name their classes differently: the teacher's {_listed(lost or teacher)} and "
        f"the student's {_listed(unknown)} have no partner{hint}. Teacher: {_listed(teacher)}. Student: "
        f"{_listed(student)}. Load both with the same `label2id`, or say which is which with `label_map={example}` "
        "(None leaves a teacher's class out)."
    )


@functools.lru_cache(maxsize=16)
def _places(groups: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The teacher's columns of each shared class, `(shared, most)`, and which entries count; made once per device."""
    known = [group for group in groups if group]
    most = max(map(len, known))
    index = [[*group, *[group[0]] * (most - len(group))] for group in known]
    filled = [[place < len(group) for place in range(most)] for group in known]
    return torch.tensor(index, device=device), torch.tensor(filled, device=device)


def match_models(
    teacher: Any,
    student: nn.Module,
    label_map: LabelMap | Mapping[Any, Any] | str | os.PathLike | None,
    problem_type: str,
) -> LabelMap | None:
    """The map from a teacher to a student, by their configs and what the user says.

    Args:
        teacher: A model, or anything that answers; only a config with names says what its classes are.
        student: The student.
        label_map: A `LabelMap`, a user's `{teacher name: student name}`, a file of one, or None.
        problem_type: Of the student. The outputs of a regression are not matched.

    Returns:
        None where nothing is known, or nothing is to be matched.

    Raises:
        ValueError: As `LabelMap.match`; or a map without names to read it with, of other models, or that leaves fewer
            than two classes to tell apart.
    """
    theirs, ours = label_names(teacher), label_names(student)
    if problem_type not in (SINGLE_LABEL, MULTI_LABEL):
        _check_outputs(theirs, ours, label_map)
        return None
    if isinstance(label_map, LabelMap):
        for names, own, owner in (
            (theirs, label_map.teacher_labels, "teacher_model"),
            (ours, label_map.student_labels, "model"),
        ):
            if names is not None and len(names) != len(own):
                raise ValueError(
                    f"`DistillationTrainer(label_map=...)` was made for {len(own)} classes of `{owner}`, which has "
                    f"{len(names)}. Make it anew with `LabelMap.match`."
                )
        matched = label_map
    elif theirs is None or ours is None:
        if label_map is not None:
            owner = "teacher_model" if theirs is None else "model"
            raise ValueError(
                f"`DistillationTrainer(label_map=...)` names classes, and `{owner}` has no config that does. Pass "
                "`label_map=LabelMap.match(teacher_labels, student_labels, {...})`."
            )
        return None
    else:
        matched = LabelMap.match(theirs, ours, label_map)
    if problem_type == SINGLE_LABEL and len(matched.shared) < 2:
        raise ValueError(
            f"`teacher_model` and `model` share the class {matched.student_labels[matched.shared[0]]!r} alone, and "
            "with a single class there is nothing to tell apart. Choose a teacher that knows more of the student's "
            "classes, or say which is which with `label_map={teacher name: student name}`."
        )
    return matched


def _check_outputs(theirs: Sequence[str] | None, ours: Sequence[str] | None, label_map: Any) -> None:
    """Of a regression: outputs correspond in their order."""
    if label_map is not None:
        raise ValueError(
            "`DistillationTrainer(label_map=...)`: the head of `model` is for regression, whose outputs are numbers "
            "and not classes. Leave it out; the outputs of both models must come in the same order."
        )
    if theirs is None or ours is None:
        return
    if len(theirs) != len(ours):
        raise ValueError(
            f"`teacher_model` predicts {len(theirs)} labels but `model` predicts {len(ours)}: a regression compares "
            "output by output. Load both with the same `num_labels`."
        )
    differing = [
        f"{i}: {t!r} / {s!r}"
        for i, (t, s) in enumerate(zip(theirs, ours, strict=True))
        if normalized(t) != normalized(s)
    ]
    if differing and not (is_generic(theirs) or is_generic(ours)):
        raise ValueError(
            f"`teacher_model` and `model` name their outputs differently at {len(differing)} of {len(ours)} indices "
            f"(teacher / student: {'; '.join(differing[:3])}). Load both with the same `label2id`."
        )
