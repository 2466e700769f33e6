"""The first thing to change: one table of rules over measured shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Profile:
    """What the rules read.

    Args:
        shares: Of each part of a step, in [0, 1].
        device: Its type, e.g. `cuda`.
        has_bf16: The device multiplies in bfloat16 faster than in float32.
        precision: Of autocast: `no`, `bf16` or `fp16`.
        teacher_dtype: Of the teacher's weights; None without a live teacher.
        student_dtype: Of the student's weights.
        num_workers: Of the data loader.
        can_cache: The teacher's answers could be stored once.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    device: str = "cpu"
    has_bf16: bool = False
    precision: str = "no"
    teacher_dtype: str | None = None
    student_dtype: str = "float32"
    num_workers: int = 0
    can_cache: bool = False

    def share(self, *parts: str) -> float:
        """Of several parts together; 0 for those that are not there."""
        return sum(self.shares.get(part, 0.0) for part in parts)

    @property
    def could_use_bf16(self) -> bool:
        """Everything runs in float32 on a device that is faster in bfloat16."""
        return self.device == "cuda" and self.has_bf16 and self.precision == "no"


@dataclass(frozen=True)
class Rule:
    """One rule: where `parts` take more than `threshold` of a step and `applies`, `advice` is given.

    Args:
        name: Unique.
        parts: Whose shares are added.
        threshold: In [0, 1].
        advice: The sentence; `{share}` is filled in.
        applies: What must hold beside.
    """

    name: str
    parts: tuple[str, ...]
    threshold: float
    advice: str
    applies: Callable[[Profile], bool] = lambda profile: True


RULES = (
    Rule(
        "data_workers",
        ("data",),
        0.15,
        "Training waits for data {share} of the time: set training.dataloader_num_workers=4 (or as many as there are "
        "idle cores).",
        lambda p: p.num_workers == 0,
    ),
    Rule(
        "data_inputs",
        ("data",),
        0.15,
        "Training waits for data {share} of the time in spite of its workers: give it more of them, or rows that are "
        "decoded, resized and tokenized beforehand.",
        lambda p: p.num_workers > 0,
    ),
    Rule(
        "teacher_dtype",
        ("teacher_forward",),
        0.15,
        "The teacher takes {share} of a step in float32 on a device that is faster in bfloat16: set "
        "teacher.dtype=bfloat16.",
        lambda p: p.could_use_bf16 and p.teacher_dtype == "float32",
    ),
    Rule(
        "teacher_cache",
        ("teacher_forward",),
        0.25,
        "The teacher takes {share} of a step and says the same of a row each time: ask it once, with "
        "teacher_cache=FOLDER (and teacher_cache.views=8, where rows are augmented).",
        lambda p: p.can_cache,
    ),
    Rule(
        "student_precision",
        ("student_forward", "backward"),
        0.5,
        "The student takes {share} of a step in float32 on a device that is faster in bfloat16: set "
        "training.bf16=true.",
        lambda p: p.could_use_bf16 and p.student_dtype == "float32",
    ),
    Rule(
        "objective",
        ("objective",),
        0.15,
        "Losses, temperatures and their records take {share} of a step: raise training.per_device_train_batch_size, "
        "or try method=kd, the cheapest, to see what the losses cost.",
    ),
    Rule(
        "overhead",
        ("other", "optimizer"),
        0.35,
        "The optimizer and the Python around the models take {share} of a step, because the step is short: raise "
        "training.per_device_train_batch_size.",
    ),
)
"""In the order in which they are asked; the first one that holds speaks."""

NOTHING = "Nothing stands out: most of a step is the two models' own work."


def first_thing(profile: Profile) -> str:
    """The advice of the first rule that holds; `NOTHING` where none does."""
    for rule in RULES:
        share = profile.share(*rule.parts)
        if share > rule.threshold and rule.applies(profile):
            return rule.advice.replace("{share}", f"{share:.0%}")
    return NOTHING
