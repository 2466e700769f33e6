"""The trainer's side of a `TeacherCache`: which rows bring answers, and when the teacher is asked for more."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..adapters import SELF
from ..teacher import loaded, resolve_teacher
from ..teacher_cache import KEY_MEMORY, Asking, KeyedRows, TeacherCache, check_stream, fill_stream, row_keys
from .cached import (
    Answers,
    CachedTeacher,
    StoredClassifier,
    answers_to,
    asking_of,
    refuse_both,
    refuse_features,
    resolve_cache,
)
from .passes import PassTrainer


class CachingTrainer(PassTrainer):
    """The part of `DistillationTrainer` that pairs rows with stored answers."""

    teacher_cache: TeacherCache | None = None
    teacher_facts: Mapping[str, Any] = MappingProxyType({})
    """What else a cache is to say of the teacher that fills it: its revision, its files."""

    def _set_cache(self, given: Any, teacher: Any, label_map: Any) -> None:
        """Resolve teacher and cache; with the latter the former may be missing."""
        self.teacher_cache = resolve_cache(given)
        self._answers: list[tuple[Any, str | None, int | None, Answers | None]] = []
        if self.teacher_cache is None:
            self.teacher = resolve_teacher(teacher, self.model, label_map)
            return
        if teacher == SELF:
            raise ValueError(
                "`DistillationTrainer(teacher_model='self', teacher_cache=...)`: the student's base is always there, "
                "and as fast as the student. Leave the cache out."
            )
        self.teacher = CachedTeacher(loaded(teacher), self.model, label_map, self.teacher_cache)
        if not self.teacher.is_there and self.stored_teacher is None:
            self.stored_teacher = self.teacher.model.facts

    def _teacher_columns(self) -> list[str] | None:
        """What the teacher reads of the rows during training: nothing where its answers are stored."""
        return [] if self.teacher is None or self.teacher_cache is not None else self.teacher.columns

    @property
    def _views(self) -> int | None:
        """How many repeatable views of each training row there are."""
        views = self.args.augmentation_views
        if self.teacher_cache is None:
            return views
        if views is not None and views != self.teacher_cache.views:
            raise ValueError(
                f"`DistillationTrainingArguments(augmentation_views={views})` and "
                f"`TeacherCache(views={self.teacher_cache.views})` contradict each other. Leave the first out."
            )
        return self.teacher_cache.views

    def _answers_to(self, dataset: Any, is_training: bool, name: str) -> Answers | None:
        """The stored answers to a data set that the teacher would be asked about; None without a cache."""
        is_wanted = self.objective.needs_teacher if is_training else self.args.evaluate_with_teacher
        return self.stored_answers(dataset, is_training=is_training, name=name) if is_wanted else None

    def stored_answers(
        self,
        dataset: Any,
        *,
        is_training: bool,
        name: str = "rows",
        shown: Any = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> Answers | None:
        """What the cache holds for a data set, after the teacher was asked about rows that are missing.

        Args:
            dataset: The rows.
            is_training: With them come the views of the cache.
            name: What they are called.
            shown: The same rows as the teacher reads them; by default these.
            on_progress: As in `Asking`.

        Returns:
            None without a cache.

        Raises:
            ValueError: Answers are missing and there is nobody to ask, or they are to other rows or another teacher.
        """
        cache = self.teacher_cache
        if cache is None:
            return None
        views = self._views if is_training else None
        mark = getattr(dataset, "_fingerprint", None)  # of a data set that is changed in place, another one
        asking = self._asking(on_progress) if is_training else None  # refuses a teacher that has changed since
        for known, their_mark, their_views, answers in self._answers:
            if known is dataset and their_mark == mark and their_views == views:
                return answers
        refuse_both(dataset, cache)
        asking = self._asking(on_progress) if asking is None else asking
        rows = self._keyed(dataset, views)
        answers = answers_to(
            rows, self._as_shown(dataset if shown is None else shown), cache, self.teacher, asking, name
        )
        self.teacher.put_away()
        self._answers.append((dataset, mark, views, answers))
        return answers

    def _keyed(self, dataset: Any, views: int | None) -> KeyedRows:
        """The rows by what they hold, in their views."""
        memory = None if self.teacher_cache is None else self.teacher_cache.folder / KEY_MEMORY
        return KeyedRows(dataset, row_keys(dataset, memory), views, self.mixing, self.label_name)

    def forget_teacher(self) -> None:
        """Let the teacher go, once all answers are stored."""
        self.teacher.model = StoredClassifier(self.teacher_cache.manifest)
        if self.stored_teacher is None:
            self.stored_teacher = self.teacher.model.facts

    def _asking(self, on_progress: Callable[[str, int, int], None] | None = None) -> Asking | None:
        """How the teacher is asked; None where it is not there."""
        cache, teacher = self.teacher_cache, self.teacher
        if not teacher.is_there:
            refuse_features(self.objective, cache)
            return None
        student = self.accelerator.unwrap_model(self.model)
        options = {"batch_size": self.args.per_device_eval_batch_size, "num_workers": self.args.dataloader_num_workers}
        return asking_of(
            teacher,
            student,
            self.objective,
            self.data_collator,
            self.accelerator,
            cache,
            self.teacher_facts,
            on_progress=on_progress,
            **options,
        )

    def _as_shown(self, dataset: Any) -> Any:
        """The rows with the columns that the teacher reads."""
        kept, self._signature_columns = self._signature_columns, None
        try:
            self._keep_columns(
                self.teacher.columns if self.teacher.is_there else self.teacher_cache.manifest["columns"]
            )
            return self._remove_unused_columns(dataset, description="training")
        finally:
            self._signature_columns = kept

    def _stream_answers(self, dataset: Any, is_training: bool) -> bool:
        """Ask about the rows of a stream that the cache lacks; whether its rows bring answers at all."""
        is_wanted = self.objective.needs_teacher if is_training else self.args.evaluate_with_teacher
        if self.teacher_cache is None or not is_wanted:
            return False
        self.stored_stream(dataset)
        return True

    def stored_stream(self, dataset: Any, shown: Any = None, on_progress: Any = None) -> None:
        """As `stored_answers`, for rows that come one by one: the stream is read once for it, to its end.

        Raises:
            ValueError: The teacher's answers are unusable, or the cache has views.
        """
        if any(known is dataset for known, *_ in self._answers):
            return
        asking, cache = self._asking(on_progress), self.teacher_cache
        if asking is not None:
            fill_stream(cache, dataset if shown is None else shown, asking)
            self.teacher.put_away()
        elif cache.check_inputs:
            check_stream(cache, dataset, cache.manifest.get("columns"), "rows")
        self._answers.append((dataset, None, None, None))
