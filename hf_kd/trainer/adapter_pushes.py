"""How an adapter student is pushed: the plain one at the top of the repository, its adapter in `adapter/`.

The Trainer would push the adapter alone, which whoever has no PEFT, no access to the base model, or a base with
another head cannot load as a classifier.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer import PushInProgress
from transformers.trainer_utils import HubStrategy

from ..adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MERGED, is_adapter
from ..publish import bundle, commit_files, ensure_merged, write_merged
from ..registry import ConfigError

if TYPE_CHECKING:
    from .hub import HubTrainer


def is_mergeable(model: Any) -> bool:
    """Whether a student is an adapter that a plain student can be made of."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def refuse_older_adapter(student: Any, folder: Path) -> None:
    """Refuse an output folder that holds an adapter which the student has no part in.

    Raises:
        ConfigError: Which folder.
    """
    if is_adapter(folder) and not hasattr(student, "peft_config"):
        raise ConfigError(
            [
                f"training.push_to_hub: {folder} holds the adapter of an earlier run ({ADAPTER_CONFIG}), which would "
                "be pushed with this student and put on it at every load. Choose another output_dir, or remove it."
            ]
        )


def save_plain(trainer: "HubTrainer", folder: Path) -> None:
    """The plain student beside the adapter that was just saved in `folder`, where it will be pushed from there."""
    args = trainer.args
    is_final = folder.absolute() == Path(args.output_dir).absolute()
    pushes = args.push_to_hub and (is_final or args.hub_strategy != HubStrategy.END)
    if not pushes and not (is_final and trainer.is_pushing):
        return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # no process holds all of it: from what was saved
        ensure_merged(folder, args.hub_token)
    else:
        write_merged(trainer.accelerator.unwrap_model(trainer.model), folder, trainer.processing_class)


def push_final(
    trainer: "HubTrainer", message: str | None, blocking: bool, token: str | None, revision: str | None, **card: Any
) -> CommitInfo | Any:
    """Save, write the card and push, as the Trainer's `push_to_hub` does; None on other processes than the first."""
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(**card)
    trainer._finish_current_push()
    return commit_files(
        HfApi(token=token or args.hub_token),
        trainer.hub_model_id,
        bundle(Path(args.output_dir)),
        message=message or "End of training",
        revision=revision or args.hub_revision,
        in_background=not blocking,
    )


def push_checkpoint(trainer: "HubTrainer", checkpoint: Path) -> None:
    """Push what a checkpoint holds in the background, as the Trainer's `_push_from_checkpoint` does."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    going_on = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if not trainer.is_world_process_zero() or (going_on and not args.hub_always_push):
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    for name in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, folder / name)
    shutil.rmtree(folder / MERGED, ignore_errors=True)
    shutil.copytree(checkpoint / MERGED, folder / MERGED)
    trainer.create_model_card()
    api = HfApi(token=args.hub_token)
    message = f"Training in progress, step {trainer.state.global_step}"
    jobs = [
        commit_files(
            api,
            trainer.hub_model_id,
            bundle(folder),
            message=message,
            revision=args.hub_revision,
            in_background=True,
        )
    ]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        last = args.hub_strategy == HubStrategy.CHECKPOINT
        jobs.append(
            api.upload_folder(
                repo_id=trainer.hub_model_id,
                folder_path=checkpoint,
                path_in_repo="last-checkpoint" if last else checkpoint.name,
                commit_message=f"{message}, checkpoint",
                ignore_patterns=[f"{MERGED}/*"],
                revision=args.hub_revision,
                run_as_future=True,
            )
        )
    if going_on:
        trainer.push_in_progress.jobs.extend(jobs)
    else:
        trainer.push_in_progress = PushInProgress(jobs)
