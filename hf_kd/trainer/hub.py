"""The Trainer's dealings with the Hub: a card of our own, everything that belongs to it, and failures in words."""

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .. import __version__
from ..adapters import OwnBase, plain_parameters
from ..model_card import CARD, PROVENANCE, SETTINGS, read_record, write_card
from ..publish import (
    PushError,
    bundle,
    check_visibility,
    describe_code,
    failure,
    hidden,
    license_of_teacher,
    make_branch,
    reason,
    refuse_unshippable,
    remove_stale,
    write_plots,
)
from ..quantization import is_quantized, number_of_parameters, quantization_name
from ..registry import ConfigError
from .adapter_pushes import is_mergeable, push_checkpoint, push_final, refuse_older_adapter, save_plain
from .objective_state import describe

logger = logging.get_logger(__name__)


class HubTrainer(Trainer):
    """The part of `DistillationTrainer` that publishes; it holds nothing of its own.

    Every saved student has a `distillation.json` beside it, which says what it was distilled from and how. The card is
    made from that and from what else the output folder holds, so it is the same whoever pushes: the trainer, one of
    its checkpoints, or `hf-kd push`.
    """

    revisions: Mapping[str, str | None] = MappingProxyType({})
    """Which revision of "teacher" and "student" was loaded, for whoever knows; models do not remember it."""

    stored_teacher: Mapping[str, Any] | None = None
    """Of a run without a teacher, the one that the data's `teacher_logits` came from, as `describe_model` says it."""

    pulled: Mapping[str, Any] = MappingProxyType({})
    """What else was loaded, for `distillation.json`: `processor`, `teacher_processor` and `data`, each a mapping of
    `name`, `revision` and `commit` on the Hub."""

    is_pushing = False
    """Whether `push_to_hub` is going on."""

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As in `Trainer`; notes which commits the models came from, before the cache moves on."""
        self._sources = sources(self)
        return super().train(*args, **kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in `Trainer`, with the branch `hub_revision`.

        Wrong tokens and names end the run before it begins, and so does a student that nobody else could load.
        """
        args = self.args
        if self.model is not None:  # else it is made later, by `model_init`
            student = self.accelerator.unwrap_model(self.model)
            refuse_unshippable(getattr(student, "get_base_model", lambda: student)())
            refuse_older_adapter(student, Path(args.output_dir))
        try:
            super().init_hf_repo(token=token, private=private)
            if self.is_world_process_zero():
                private = private if private is not None else args.hub_private_repo
                api = HfApi(token=token or args.hub_token)
                check_visibility(api, self.hub_model_id, private)
                make_branch(api, self.hub_model_id, args.hub_revision)
        except Exception as error:
            repo = args.hub_model_id or Path(args.output_dir).absolute().name
            why = str(error) if isinstance(error, ValueError) else reason(error)
            raise ConfigError(
                [f"training.hub_model_id: cannot push to {repo}: {hidden(why, token, args.hub_token)}"]
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As in `Trainer`, with what the student was distilled from; what will be pushed of an adapter, too."""
        folder = Path(output_dir or self.args.output_dir)
        card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else None
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        self._write_provenance(folder)
        if hasattr(self.accelerator.unwrap_model(self.model), "peft_config"):
            if card is not None:  # PEFT writes its own draft over it
                (folder / CARD).write_text(card, encoding="utf-8")
            else:
                (folder / CARD).unlink(missing_ok=True)
        if is_mergeable(self.accelerator.unwrap_model(self.model)):
            save_plain(self, folder)

    def _write_provenance(self, folder: Path) -> None:
        text = json.dumps(provenance(self), indent=2, ensure_ascii=False)
        (folder / PROVENANCE).write_text(f"{text}\n", encoding="utf-8")

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the distillation card to `README.md` in the output folder, with the plots and the log it is made of.

        Metadata given once stay for later calls, and so does text that a person wrote around our part.

        Args:
            language: As in `Trainer`.
            license: Of the student; it is never taken from the teacher.
            tags: Added to ours.
            model_name: The title.
            finetuned_from: The Hub id of the checkpoint the student started from; by default as loaded.
            tasks: The Hub's name of the task; by default the architecture's.
            dataset_tags: Ids of data sets on the Hub.
            dataset: The same, where `dataset_tags` is not given.
            dataset_args: Not used: the resolved configuration says it better.
        """
        if not self.is_world_process_zero():
            return
        args = self.args
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._write_provenance(folder)
        self.state.save_to_json(str(folder / "trainer_state.json"))
        write_plots(folder)
        revision = getattr(self, "_push_revision", None) or args.hub_revision
        write_card(
            folder,
            repo_id=self.hub_model_id,
            revision=None if revision == "main" else revision,
            model_name=model_name,
            language=language,
            license=license,
            tags=tags,
            base_model=finetuned_from,
            pipeline_tag=tasks[0] if isinstance(tasks, list) and tasks else tasks or None,
            datasets=dataset_tags or dataset,
            teacher_license=license_of_teacher(read_record(folder), args.hub_token),
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """As in `Trainer`, with our card and everything it is made of.

        Args:
            commit_message: As in `Trainer`.
            blocking: As in `Trainer`.
            token: By default `args.hub_token` or the one you are logged in with. It is written nowhere.
            revision: A branch, made if it does not exist.
            private: As in `Trainer`; refused if the repository exists and is public.
            **kwargs: As in `create_model_card`. Pull requests are opened by `hf-kd push --create-pr`.

        Raises:
            PushError: The Hub refused or could not be reached. The student is on disk, and how to push it again is
                said.
        """
        args = self.args
        self._push_revision, self.is_pushing = revision, True
        student = self.accelerator.unwrap_model(self.model)
        try:
            refuse_unshippable(getattr(student, "get_base_model", lambda: student)())
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, private=private)
            if self.is_world_process_zero():
                make_branch(HfApi(token=token or args.hub_token), self.hub_model_id, revision)
            if is_mergeable(student):
                return push_final(self, commit_message, blocking, token, revision, **kwargs)
            commit = super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
            if blocking and self.is_world_process_zero():  # the Trainer's own pushes only add
                api, files = HfApi(token=token or args.hub_token), bundle(Path(args.output_dir))
                remove_stale(api, self.hub_model_id, files, revision or args.hub_revision)
            return commit
        except ConfigError:
            raise
        except Exception as error:
            where = self.hub_model_id or args.hub_model_id or Path(args.output_dir).absolute().name
            private = args.hub_private_repo if private is None else private
            text = failure(error, args.output_dir, where, private, revision or args.hub_revision)
            raise PushError(hidden(text, token, args.hub_token)) from error
        finally:
            self._push_revision, self.is_pushing = None, False

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in `Trainer`, with the card as of now; the other files lie in the output folder, which is what it sends.

        A push that fails does not end the training.
        """
        self._report_failed_pushes()
        try:
            if self.args.hub_strategy == "end":
                return
            if is_mergeable(self.accelerator.unwrap_model(self.model)):
                push_checkpoint(self, Path(checkpoint_folder))
                return
            self.create_model_card()
            super()._push_from_checkpoint(checkpoint_folder)
        except (OSError, ValueError) as error:
            logger.warning(self._checkpoint_failure(error))

    def _finish_current_push(self) -> None:
        """As in `Trainer`, and says which pushes failed: they run in the background, where nobody looks."""
        super()._finish_current_push()
        self._report_failed_pushes()

    def _report_failed_pushes(self) -> None:
        push = getattr(self, "push_in_progress", None)
        for job in [] if push is None else [job for job in push.jobs if job.done()]:
            push.jobs.remove(job)
            if not job.cancelled() and job.exception() is not None:
                logger.warning(self._checkpoint_failure(job.exception()))

    def _checkpoint_failure(self, error: BaseException) -> str:
        why = hidden(reason(error), self.args.hub_token)
        return (
            f"A checkpoint could not be pushed to {self.hub_model_id}: {why} It is in {self.args.output_dir}, and "
            "training goes on."
        )


def provenance(trainer: Any) -> dict[str, Any]:
    """What `distillation.json` says: both models, the objective, the settings and versions that a card needs."""
    args, objective = trainer.args, trainer.objective
    found = getattr(trainer, "_sources", None) or sources(trainer)
    from_table = trainer._given_objective is None
    teacher = trainer.teacher
    label_map = getattr(teacher, "label_map", None)
    has_map = label_map is not None and not label_map.is_identity
    settings = {name: _plain(getattr(args, name)) for name in SETTINGS}
    if args.auto_find_batch_size:
        settings["per_device_train_batch_size"] = trainer._train_batch_size  # what was found
    return {
        "format": 1,
        "hf_kd": __version__,
        "teacher": found["teacher"] if objective.needs_teacher else None,
        "from_logits": teacher is None and objective.needs_teacher,
        "student": found["student"],
        **trainer.pulled,
        "method": args.method if from_table else None,
        "method_kwargs": args.method_kwargs if from_table else None,
        "ce_weight": objective.ce_weight,
        "kd_weight": objective.kd_weight,
        "objective": describe(objective),
        "label_map": label_map.to_dict() if has_map else None,
        "problem_type": trainer.problem_type,
        "seed": args.seed,
        "training": settings,
        "environment": environment(args),
    }


def environment(args: Any) -> dict[str, Any]:
    """Versions, device and number of processes: what settings do not say and numbers may depend on."""
    return {
        "hf_kd": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "datasets", "accelerate")},
        "device": str(args.device),
        "processes": args.world_size,
    }


def _plain(value: Any) -> Any:
    """An enum by its value."""
    return getattr(value, "value", value)


def sources(trainer: Any) -> dict[str, dict[str, Any] | None]:
    """Where "teacher" and "student" came from; None for a teacher that there is none of."""
    teacher, told = trainer.teacher, trainer.revisions
    student = trainer.accelerator.unwrap_model(trainer.model)
    ours = describe_model(student, told.get("student"))
    ours["code"] = describe_code(getattr(student, "get_base_model", lambda: student)())
    if hasattr(student, "peft_config"):  # the base's own configuration may have other classes
        settings = json.loads(student.get_base_model().config.to_json_string())
        unsaid = ("_name_or_path", "transformers_version")
        ours["config"] = {key: value for key, value in settings.items() if key not in unsaid}
    if teacher is None or getattr(teacher.model, "is_stored", False):
        return {"teacher": trainer.stored_teacher, "student": ours}
    if isinstance(teacher.model, OwnBase):
        theirs = {**describe_model(student, told.get("student")), "itself": True}
        return {"teacher": {**theirs, "parameters": plain_parameters(student)}, "student": ours}
    return {"teacher": describe_model(teacher.model, told.get("teacher")), "student": ours}


def describe_model(model: Any, revision: str | None = None) -> dict[str, Any]:
    """A model by name, commit (if it came from the Hub), class and size."""
    base = getattr(model, "get_base_model", None)  # an adapter: its base is what was loaded
    named = model if base is None else base()
    config = getattr(named, "config", None)
    values = {
        **describe_source(getattr(config, "_name_or_path", None) or None, revision),
        "class": type(named).__name__ if isinstance(named, nn.Module) else getattr(named, "__name__", "callable"),
        "num_labels": getattr(config, "num_labels", None),
    }
    if isinstance(model, nn.Module):
        values["parameters"] = number_of_parameters(model)
        if is_quantized(model):
            values["quantization"] = quantization_name(model)
    return values


def describe_source(name: str | None, revision: str | None = None) -> dict[str, Any]:
    """A model's or processor's name, the revision asked for, and the commit that was; both None of a local one."""
    is_local = name is not None and Path(name).exists()
    on_hub = name is not None and not is_local
    return {
        "name": name,
        "revision": revision if on_hub else None,
        "commit": commit_of(name, revision) if on_hub else None,
        "local": is_local,
    }


def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit that `revision` of a model on the Hub was when it was loaded, as the cache noted it.

    Where the revision is not known, the only one that the cache has; None where it has several, or none.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    refs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "refs"
    if revision is not None:
        noted = [refs / revision]
    else:
        noted = [path for path in refs.rglob("*") if path.is_file()] if refs.is_dir() else []
    return noted[0].read_text(encoding="utf-8").strip() if len(noted) == 1 and noted[0].is_file() else None
