"""What happens to the training rows between the data loader and the loss: columns, draws, mixtures, counts."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ..functional import REGRESSION
from ..inputs import (
    LABEL_KEYS,
    LABEL_WEIGHT,
    LABEL_WEIGHT_MIX,
    LABELS_MIX,
    MIX_KEYS,
    MIX_LAMBDA,
    ROW_WEIGHT,
    TEACHER_LOGITS,
    dataset_columns,
    student_inputs,
)
from ..mixing import Mixing, check_mixable, mixing_from
from ..sanity import ROWS
from ..teacher import teacher_logits
from ..teacher_cache import KeyedRows
from .cached import KeyedCollator, ViewedRows
from .caching import CachingTrainer
from .checks import num_labels
from .draws import Epoch, EpochDraws, SeededCollator, SeededRows, is_stream, kept_on_device
from .problem_types import check_label_presence, check_label_values, check_labels
from .sampling import BALANCED, balanced_sampler
from .scaling import count_rows, note_rows_everywhere, with_repeats_marked


class DataTrainer(CachingTrainer):
    """The part of `DistillationTrainer` that deals with its training rows.

    Batches are mixed here, after the data loader, and not by the collator: evaluation shares the collator. Each draw
    depends on the seed, the optimizer step, the micro-batch and the process alone, so it is the same for any number of
    workers and after a resume, and changes no other draw. Nor do those of augmentations and collators: see `draws`.
    """

    mixing: Mixing | None = None
    _epoch: Epoch = Epoch()
    _epoch_draws: EpochDraws | None = None
    _wrapped: SeededRows | None = None
    _is_keyed: bool = False

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As in `Trainer`, but only what the student reads is cast where the Trainer casts every float (DeepSpeed).

        In half precision labels and weights would be rounded, and stored logits could overflow.
        """
        prepared = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled:
            own = student_inputs(inputs, self._student_columns)
            for key, value in inputs.items():
                if key not in own and isinstance(value, Tensor):
                    prepared[key] = value.to(self.args.device)
        return prepared

    def _check_data(self, mixing: Any, collator: Any) -> None:
        """Refuse rows that do not go with the student, the objective, or what is to be done to them."""
        self._set_mixing(mixing, collator)
        check_label_presence(self.objective, self.train_dataset, self.label_name)
        for owner in ("train_dataset", "eval_dataset"):
            check_labels(getattr(self, owner), self.label_name, self.problem_type, num_labels(self.model), owner)
        if self.args.train_sampling_strategy == BALANCED and self.train_dataset is not None:
            self._get_train_sampler()

    def _set_mixing(self, given: Any, collator: Any) -> None:
        """What was given, else what the collator of a `Task` says; refused where two labels per row mean nothing."""
        self.mixing = mixing_from(given if given is not None else getattr(collator, "mixing", None))
        if self.mixing is None:
            return
        needing = [loss.name for loss in self.objective.active_losses if loss.needs_labels]
        if needing:
            raise ValueError(
                f"`DistillationTrainer(mixing={self.mixing!r})`: {', '.join(f'`{name}`' for name in needing)} treats "
                "the one labelled class of a row apart, of which a mixture has two. Leave mixing out, or use a loss "
                "that works without labels, such as `kd`."
            )
        if self.problem_type == REGRESSION:
            raise ValueError(
                f"`DistillationTrainer(mixing={self.mixing!r})`: the head of `model` is for {REGRESSION}, whose "
                "squared error is not linear in the labels, so two of them make no loss of a mixture. Leave it out."
            )
        if self.teacher_cache is not None and self.teacher_cache.views is None:
            raise ValueError(
                f"`DistillationTrainer(mixing={self.mixing!r}, teacher_cache=...)`: each batch is mixed anew, and the "
                "cache stores answers to mixtures that come again. Say how many of each row, e.g. "
                "`TeacherCache(folder, views=8)`, leave mixing out, or let the teacher run during training."
            )
        columns = getattr(self.train_dataset, "column_names", None) or ()
        present = [name for name in (TEACHER_LOGITS, LABELS_MIX) if name in columns]
        if present:
            what = (
                "was stored for unmixed rows" if present[0] == TEACHER_LOGITS else "says that they are mixed already"
            )
            raise ValueError(
                f"`DistillationTrainer(mixing={self.mixing!r})`: the column `{present[0]}` of `train_dataset` {what}. "
                "Remove the column, or leave mixing out."
            )

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns of both models: the Trainer would drop what the student does not name."""
        self._keep_columns(self._teacher_columns())

    def _keep_columns(self, teacher: list[str] | None) -> None:
        """Of the teacher these."""
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            datasets = (self.train_dataset, self.eval_dataset)
            wanted = dataset_columns(self._student_columns or [], teacher, datasets)
            own = [*LABEL_KEYS, LABEL_WEIGHT, *MIX_KEYS]
            self._signature_columns = list(dict.fromkeys([*wanted, *self._signature_columns, *own]))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_dataloader(
        self, dataset: Any, description: str, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> DataLoader:
        """As in `Trainer`; random changes of training rows are the same after a resume, stored answers come along."""
        if is_training:
            self._epoch_draws = EpochDraws() if is_stream(dataset) or self._loader_draws() else None
            self._epoch = Epoch(is_shared=self.args.dataloader_persistent_workers)
        self._is_keyed = is_stream(dataset) and self._stream_answers(dataset, is_training)
        if not is_stream(dataset):
            dataset = self._wrapped_rows(dataset, description, is_training)
        self._wrapped = dataset if isinstance(dataset, SeededRows) else None
        with kept_on_device(dataset, self.args):
            return super()._get_dataloader(dataset, description, *args, is_training=is_training, **kwargs)

    def _wrapped_rows(self, dataset: Any, description: str, is_training: bool) -> Any:
        """Rows whose draws are repeatable, and that bring their answers."""
        views = self._views if is_training else None
        answers = self._answers_to(dataset, is_training, f"{description.lower()} rows")
        if not is_training and answers is None:
            return dataset
        keyed = answers.rows if answers is not None else None if views is None else self._keyed(dataset, views)
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
        if keyed is None:
            return SeededRows(dataset, self._data_seed, self._epoch)
        rows = KeyedRows(dataset, keyed.keys, views, keyed.mixing, self.label_name)
        return ViewedRows(rows, self._data_seed, self._epoch, answers)

    def _loader_draws(self) -> bool:
        """Whether what starts an epoch draws otherwise in a resumed one.

        So does a sampler without a generator of its own, which draws the order, and so do workers that outlive epochs,
        which draw a seed in the first one only.
        """
        args = self.args
        has_generator = args.train_sampling_strategy in ("random", "sequential", BALANCED)
        has_generator = has_generator and args.accelerator_config.use_seedable_sampler
        return args.dataloader_persistent_workers or not has_generator

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """As in `Trainer`; the columns of a `datasets.Dataset` are removed already."""
        if self._wrapped is None or not isinstance(self._wrapped.rows, datasets.Dataset):
            data_collator = super()._get_collator_with_removed_columns(data_collator, description)
        if self._is_keyed:
            return KeyedCollator(data_collator, self.teacher_cache)
        return data_collator if self._wrapped is None else SeededCollator(data_collator)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """As in `Trainer`; with `train_sampling_strategy="balanced"` every class comes equally often."""
        train_dataset = train_dataset.rows if isinstance(train_dataset, SeededRows) else train_dataset
        if self.args.train_sampling_strategy != BALANCED:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return balanced_sampler(
            dataset, self.label_name, self.problem_type, seed=self._data_seed, epoch=self._current_epoch
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, mixed, with repeated rows marked, and their counts."""
        epoch_iterator = with_repeats_marked(epoch_iterator, self.accelerator)
        epoch, draws = self._current_epoch(), nullcontext()
        self._epoch.set(epoch)
        if self._epoch_draws is not None:
            process = self.accelerator.process_index if self._wrapped is None else 0  # one order for all of them
            draws = self._epoch_draws((self._data_seed, epoch, process))
        with draws:  # the loader starts, and draws, inside
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self._whole_steps(batches, num_batches)
        if not batches:
            return batches, None  # the Trainer goes on asking a stream that is over
        batches = [self._mixed(batch, index) for index, batch in enumerate(batches)]
        if self.objective.has_relations:
            note_rows_everywhere(batches, self.accelerator)
        return batches, count_rows(batches, self.label_name, self.objective, self.accelerator)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        """Nothing: rows are counted in `get_batch_samples`, once and in one collective."""
        return None

    def _mixed(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """A micro-batch, mixed if that is wanted; one that came mixed is checked."""
        mixed = batch
        if self.mixing is not None and self._views is None:  # else the rows of each view come mixed
            teacher = self._teacher_columns() or []
            check_mixable(batch, {*(self._student_columns or []), *teacher})
            place = self.args.seed, self.state.global_step, index, self.accelerator.process_index
            mixed = self.mixing(batch, np.random.default_rng(place), self.label_name)
            if LABELS_MIX in mixed:
                self._observe_unmixed(batch)
        if not any(name in mixed for name in MIX_KEYS):
            return mixed
        mixed = completed(mixed, self.label_name)
        if "mixed labels" not in self._warned:
            self._warned.add("mixed labels")
            check_mixed_values(mixed, self.problem_type, num_labels(self.model))
        return mixed

    def _observe_unmixed(self, batch: dict[str, Any]) -> None:
        """Show the teacher the first rows as they are: on a mixture nobody can tell whether it is right."""
        check, is_wanted = self._teacher_check, self.objective.needs_teacher and self.label_name in batch
        if not is_wanted or check is None or check.is_done or check.num_kept >= ROWS:
            return
        batch = self._prepare_inputs(batch)
        answer = teacher_logits(self.teacher, batch, self.accelerator, self.objective.kd_weight)
        check.observe(answer, *self.objective.distilled_rows(batch.get(self.label_name), batch.get(ROW_WEIGHT)))


def completed(batch: dict[str, Any], label_name: str) -> dict[str, Any]:
    """A mixed batch with one share per row.

    Raises:
        ValueError: A column that belongs to it is missing or of another shape.
    """
    needed = [label_name, LABELS_MIX, MIX_LAMBDA]
    needed += [LABEL_WEIGHT_MIX] if LABEL_WEIGHT in batch else []
    missing = [name for name in needed if name not in batch]
    if missing:
        raise ValueError(
            f"`DistillationTrainer` got mixed rows with {', '.join(n for n in MIX_KEYS if n in batch)} and without "
            f"{', '.join(missing)}: the loss of a mixture takes `{LABELS_MIX}`, the second labels, `{MIX_LAMBDA}`, "
            f"the share of the first, and beside a `{LABEL_WEIGHT}` the `{LABEL_WEIGHT_MIX}` of the second. Add them "
            "in the collator."
        )
    labels = batch[label_name]
    batch = {**batch, LABELS_MIX: torch.as_tensor(batch[LABELS_MIX], device=labels.device)}
    shares = torch.as_tensor(batch[MIX_LAMBDA], device=labels.device)
    shares = shares if shares.is_floating_point() else shares.float()
    shares = shares.expand(len(labels)) if shares.numel() == 1 and shares.dim() < 2 else shares
    if shares.shape != labels.shape[:1] or batch[LABELS_MIX].shape != labels.shape:
        raise ValueError(
            f"`DistillationTrainer` got `{MIX_LAMBDA}` of shape {tuple(shares.shape)} and `{LABELS_MIX}` of shape "
            f"{tuple(batch[LABELS_MIX].shape)} for labels of shape {tuple(labels.shape)}: each row has one share and "
            "a second label like the first. Give one number for all rows, or one per row."
        )
    return {**batch, MIX_LAMBDA: shares}


def check_mixed_values(batch: dict[str, Any], problem_type: str, classes: int | None) -> None:
    """Refuse shares and second labels that cannot be; waits for the device, so it is for the first batch.

    Raises:
        ValueError: A share is outside [0, 1], or a label none of the classes.
    """
    shares: Tensor = batch[MIX_LAMBDA]
    if not bool(((shares >= 0) & (shares <= 1)).all()):
        raise ValueError(
            f"`DistillationTrainer` got `{MIX_LAMBDA}` from {shares.min().item():.4g} to {shares.max().item():.4g}: "
            "it is the share of a row's first image and label. Give numbers in [0, 1]."
        )
    if classes is not None:
        owner = f"`{LABELS_MIX}` of the first batch"
        check_label_values(batch[LABELS_MIX].unique().tolist(), problem_type, classes, owner)
