"""Training arguments: the Trainer's own plus the objective's, scalars, names and plain dicts only."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from .registry import check_number, suggestion

BALANCED = "balanced"
"""The strategy of sampling that ours adds to the Trainer's."""
_SAMPLING = TrainingArguments.__dataclass_fields__["train_sampling_strategy"]
SAMPLING_STRATEGIES = (*_SAMPLING.metadata["choices"], BALANCED)

LOWER_IS_BETTER = ("loss", "ece", "nll", "brier", "mse", "teacher_kl", "teacher_mse")
"""Ends of the names of metrics that are errors or distances; of all others a greater value is better."""


def is_greater_better(metric: str) -> bool:
    """Whether a greater value of a metric is a better one, by its name; `eval_` and a set's name may stand before it.

    `TrainingArguments` takes a greater value for the better one unless the name ends in "loss", and so would keep the
    worst model by calibration error, likelihood or squared error.
    """
    return not any(metric == name or metric.endswith(f"_{name}") for name in LOWER_IS_BETTER)


@dataclass
class DistillationTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the distillation objective by name and number.

    Everything here pickles and goes to JSON: the trainer builds the objects. `HfArgumentParser` parses it.

    Args:
        method: A key of `hf_kd.METHODS`; used when the trainer gets no `objective`.
        method_kwargs: Parameters of the method, as in `hf_kd.build_objective(method, **method_kwargs)`.
        ce_weight: Weight of the cross-entropy; None for the method's own.
        kd_weight: Weight of the distillation term; None for the method's own. At 0 no teacher runs.
        temperature_learning_rate: Learning rate of the SGD that steps learned temperatures. It follows the student's
            schedule, not the student's learning rate.
        temperature_momentum: Momentum of that SGD.
        temperature_weight_decay: Weight decay of that SGD. The authors of CTKD let the student's act on it (5e-4 on
            CIFAR-100), which pulls the temperature towards the middle of its interval.
        evaluate_with_teacher: Add the teacher's accuracy, agreement and KL to each evaluation (agreement and KL by
            label for several labels per row, the mean squared difference for a regression). Costs a teacher pass.
        lr_milestones: Epochs after which the learning rate is multiplied by `lr_gamma`; replaces the scheduler.
        lr_gamma: The factor at each milestone.
        weight_decay_everywhere: Decay biases and the weights of normalisation layers too, as `torch.optim` does and
            with it the recipes for CIFAR. The Trainer spares them.
        train_sampling_strategy: As in `TrainingArguments`; or "balanced": every class equally often, rows of rare ones
            repeatedly, an epoch as long as ever. Unlabelled rows come once per epoch. Follows `data_seed`, or `seed`.
        augmentation_views: Show training rows that change at random in so many repeatable views of each, epoch e in
            view e modulo that, instead of anew in every epoch. A `TeacherCache` with views sets it by itself; here it
            gives the same run with a live teacher. None: anew.
        early_stopping_patience: Stop after so many evaluations in a row without a better `metric_for_best_model` (the
            loss, where none is named). None: never. A resumed run goes on counting.
        early_stopping_threshold: By how much, >= 0, a better value must be better to count.
        resume_with_changes: Go on from a checkpoint of a run with another teacher, label map, objective or data, or
            other mixing, or from one without its optimizer (`save_only_model`), which then starts over. What differs
            is said; by default it is refused.
        logging_nan_inf_filter: Off: the filter syncs on every micro-batch and hides NaN. The trainer stops instead.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "method_kwargs"]

    method: str | None = field(default="kd", metadata={"help": "Distillation method, a name from `hf-kd methods`."})
    method_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of the method, e.g. '{\"temperature\": 2.0}'."}
    )
    ce_weight: float | None = field(default=None, metadata={"help": "Weight of the cross-entropy."})
    kd_weight: float | None = field(default=None, metadata={"help": "Weight of the distillation term; 0: no teacher."})
    temperature_learning_rate: float = field(
        default=0.05, metadata={"help": "Learning rate of the SGD that steps learned temperatures."}
    )
    temperature_momentum: float = field(default=0.9, metadata={"help": "Momentum of the temperatures' SGD."})
    temperature_weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of the temperatures' SGD."})
    evaluate_with_teacher: bool = field(
        default=False, metadata={"help": "Add teacher accuracy, agreement and KL to each evaluation."}
    )
    lr_milestones: list[float] | None = field(
        default=None, metadata={"help": "Epochs after which the learning rate is multiplied by `lr_gamma`."}
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "The factor at each of `lr_milestones`."})
    weight_decay_everywhere: bool = field(
        default=False, metadata={"help": "Decay biases and normalisation too, as the recipes for CIFAR do."}
    )
    train_sampling_strategy: str = field(
        default=_SAMPLING.default,
        metadata={
            "help": f"Sampler for training: {', '.join(map(repr, SAMPLING_STRATEGIES))}.",
            "choices": list(SAMPLING_STRATEGIES),
        },
    )
    augmentation_views: int | None = field(
        default=None, metadata={"help": "Repeatable random views of each training row; by default every one is new."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better `metric_for_best_model`."}
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much a better value must be better to count."}
    )
    resume_with_changes: bool = field(
        default=False, metadata={"help": "Resume although teacher, objective or data are not what they were."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off: a non-finite loss stops the run."})

    __repr__ = TrainingArguments.__repr__  # the one that `dataclass` makes would show the token

    def __getstate__(self) -> dict[str, Any]:
        """Without the token: the Trainer pickles its arguments beside every model it saves and pushes."""
        return {**self.__dict__, "hub_token": None}

    def __post_init__(self):
        """Check what can be checked without a model."""
        is_said = self.greater_is_better is not None
        super().__post_init__()
        owner = type(self).__name__
        self._check_early_stopping(owner)
        if not is_said and self.metric_for_best_model is not None:
            self.greater_is_better = is_greater_better(self.metric_for_best_model)
        why = "it multiplies a loss that is minimised. Pass 0.0 to switch the term off, None for the method's own."
        for name in ("ce_weight", "kd_weight"):
            if getattr(self, name) is not None:
                setattr(self, name, check_number(owner, name, getattr(self, name), why, low=0.0))
        why = "the temperatures' SGD would step against its purpose or diverge. The paper's setting is .05, .9, 0."
        for name in ("temperature_learning_rate", "temperature_momentum", "temperature_weight_decay"):
            high = 1.0 if name == "temperature_momentum" else math.inf
            setattr(self, name, check_number(owner, name, getattr(self, name), why, low=0.0, high=high))
        if self.augmentation_views is not None:
            why = "each row has so many views. Pass e.g. 8, or None to draw anew in every epoch."
            views = check_number(owner, "augmentation_views", self.augmentation_views, why, low=1, whole=True)
            self.augmentation_views = int(views)
        self._check_milestones(owner)
        if self.train_sampling_strategy not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"`{owner}(train_sampling_strategy={self.train_sampling_strategy!r})`: unknown, and the Trainer would "
                f"take it for 'random'.{suggestion(self.train_sampling_strategy, SAMPLING_STRATEGIES)}"
            )
        if self.method_kwargs is not None and not isinstance(self.method_kwargs, dict):
            error = ValueError if isinstance(self.method_kwargs, str) else TypeError
            raise error(
                f"`{owner}(method_kwargs=...)` must be a mapping or its JSON, got {self.method_kwargs!r}. Pass e.g. "
                "'{\"temperature\": 2.0}'."
            )
        try:
            json.dumps(self.method_kwargs)
        except TypeError as error:
            raise TypeError(
                f"`{owner}(method_kwargs={self.method_kwargs!r})` holds an object that does not go to JSON ({error}), "
                "so checkpoints and logs could not carry it. Pass names and numbers here, or hand the objects to "
                "`DistillationTrainer(objective=...)`."
            ) from error
        if self.method is not None:
            from .methods import METHODS

            if self.method not in METHODS:
                raise ValueError(
                    f"`{owner}(method=...)` got the unknown method {self.method!r}.{suggestion(self.method, METHODS)}"
                )

    def _check_early_stopping(self, owner: str) -> None:
        why = "by so much a better value must be better to count. Pass 0.0, or e.g. 0.001."
        threshold = check_number(owner, "early_stopping_threshold", self.early_stopping_threshold, why, low=0.0)
        self.early_stopping_threshold = threshold
        if self.early_stopping_patience is None:
            if threshold:
                raise ValueError(
                    f"`{owner}(early_stopping_threshold={threshold:g})` says what counts as better for early "
                    "stopping, which is off. Pass `early_stopping_patience` too, e.g. 3."
                )
            return
        why = "training stops after so many evaluations without a better value. Pass e.g. 3, or None for never."
        patience = check_number(owner, "early_stopping_patience", self.early_stopping_patience, why, low=1, whole=True)
        self.early_stopping_patience = int(patience)
        if self.eval_strategy == "no":
            raise ValueError(
                f"`{owner}(early_stopping_patience={self.early_stopping_patience}, eval_strategy='no')`: without "
                "evaluations during training there is nothing to stop by. Pass `eval_strategy='epoch'`, or 'steps' "
                "with `eval_steps`."
            )
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"

    def _check_milestones(self, owner: str) -> None:
        if self.lr_milestones is None:
            return
        if self.lr_scheduler_type not in ("linear", "constant"):
            raise ValueError(
                f"`{owner}(lr_milestones={self.lr_milestones!r}, lr_scheduler_type={str(self.lr_scheduler_type)!r})`: "
                "the milestones are the whole schedule, so the other one would be ignored. Pass one of them."
            )
        if not isinstance(self.lr_milestones, (list, tuple)):
            raise TypeError(
                f"`{owner}(lr_milestones={self.lr_milestones!r})` must be a list of epochs. Pass e.g. [150, 180, 210]."
            )
        why = "it is an epoch number. Pass e.g. [150, 180, 210]."
        for milestone in self.lr_milestones:
            check_number(owner, "lr_milestones", milestone, why, low=0.0)
        check_number(owner, "lr_gamma", self.lr_gamma, "it multiplies the learning rate.", low=0.0, low_open=True)
