"""To the Hub: a finished folder, checked, with its card and plots, as one commit."""

from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from ..adapter_files import is_adapter
from ..model_card import CARD, RunRecord, is_edited, read_record, write_card
from ..registry import ConfigError
from .adapter import ensure_merged
from .folder import bundle, check_folder, check_run, refuse_secrets, stale
from .words import PushError, failure, hidden, one_line

logger = logging.get_logger(__name__)


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    license: str | None = None,
    trust_remote_code: bool = False,
    repeats: Iterable[str | Path] = (),
    baselines: Iterable[str | Path] = (),
    commit_message: str = "Push a distilled student",
) -> CommitInfo:
    """Push the student in `folder` with its processor, configuration, results, plots and card, all in one commit.

    Either all of it is there afterwards or nothing has changed: objects are uploaded first and become visible with the
    commit. Weight files of an older push that the new model does not have are deleted in the same commit, because
    `from_pretrained` would prefer them.

    Of an adapter student, the plain one is pushed, which anyone with `transformers` can load, and its adapter in the
    folder `adapter/` of the repository. Where the plain one is not in `merged` yet, it is made from the base model.

    Args:
        folder: The output folder of a run, or one of its checkpoints.
        repo_id: `organisation/name`, or a name in your own namespace. Made if it does not exist.
        private: Make it private. Refused if it exists and is public.
        revision: A branch; made if it does not exist.
        create_pr: Open a pull request instead of committing.
        token: By default the one you are logged in with.
        license: Of the student, for the card.
        trust_remote_code: Try out a model whose code lies in `folder`, too. Without it, the code is not run, and the
            files are checked.
        repeats: Folders of the same run under other seeds, for the card's table.
        baselines: Folders of the student trained without a teacher, for the card's table.
        commit_message: Of the commit.

    Raises:
        ConfigError: The folder holds no complete model, or the arguments contradict each other. Nothing was sent.
        PushError: The Hub refused or could not be reached.
    """
    folder = Path(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError([f"{repo_id!r} is no repository: {one_line(error)}. Give organisation/name."]) from error
    if create_pr and revision not in (None, "main"):
        raise ConfigError(
            [f"--create-pr and --revision {revision}: the Hub opens pull requests against main alone. Choose one."]
        )
    check_local(folder, token, trust_remote_code)
    api = HfApi(token=token)
    try:
        repo_id = prepare_repo(api, repo_id, private=private, revision=revision)
        write_plots(folder)
        take_over_card(api, repo_id, folder, None if create_pr else revision)
        write_card(
            folder,
            repo_id=repo_id,
            revision=None if revision in (None, "main") else revision,
            license=license,
            teacher_license=license_of_teacher(read_record(folder), token),
            repeats=repeats,
            baselines=baselines,
        )
    except ValueError as error:
        raise ConfigError([one_line(error)]) from error
    except Exception as error:  # the clients raise anything, the errors of their transport among it
        raise PushError(failure(error, folder, repo_id, private, revision, create_pr)) from error
    refuse_secrets(folder, token)
    try:
        return commit_files(
            api, repo_id, bundle(folder), message=commit_message, revision=revision, create_pr=create_pr
        )
    except Exception as error:
        raise PushError(failure(error, folder, repo_id, private, revision, create_pr)) from error


def check_local(folder: Path, token: str | None = None, trust_remote_code: bool = False) -> None:
    """Refuse what is no complete student, before anything is sent; the plain student of an adapter is made.

    Raises:
        ConfigError: What is missing, in words.
    """
    try:
        check_run(folder)
        if is_adapter(folder):
            ensure_merged(folder, token)
        check_folder(folder, trust_remote_code=trust_remote_code)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([one_line(error)]) from error


def commit_files(
    api: HfApi,
    repo_id: str,
    files: dict[str, Path],
    *,
    message: str,
    revision: str | None = None,
    create_pr: bool = False,
    in_background: bool = False,
) -> CommitInfo | Future:
    """Commit files by their place in the repository, and delete there what would be loaded in place of them."""
    gone = stale(api.list_repo_files(repo_id, revision=None if create_pr else revision), files)
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(path_in_repo=place, path_or_fileobj=path) for place, path in files.items()),
            *(CommitOperationDelete(path_in_repo=path) for path in gone),
        ],
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
        run_as_future=in_background,
    )


def remove_stale(api: HfApi, repo_id: str, files: dict[str, Path], revision: str | None) -> None:
    """Delete what would be loaded in place of files that are there already; no commit where nothing would be."""
    gone = stale(api.list_repo_files(repo_id, revision=revision), files)
    if gone:
        deleted = [CommitOperationDelete(path_in_repo=path) for path in gone]
        api.create_commit(repo_id, deleted, commit_message="Remove weights of an earlier student", revision=revision)


# ---------------------------------------------------------------------------------------------------------------------
# The Hub
# ---------------------------------------------------------------------------------------------------------------------


def prepare_repo(api: HfApi, repo_id: str, *, private: bool | None, revision: str | None) -> str:
    """Make the repository and the branch where they do not exist; the repository's full name.

    Raises:
        ValueError: It is to be private, and exists and is public.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    check_visibility(api, repo_id, private)
    make_branch(api, repo_id, revision)
    return repo_id


def check_visibility(api: HfApi, repo_id: str, private: bool | None) -> None:
    """Refuse to push something private to a repository that everyone can read.

    Raises:
        ValueError: The repository is public, and `private` was asked for.
    """
    if private and not api.repo_info(repo_id).private:
        raise ValueError(
            f"{repo_id} was to be private, but exists and is public: everyone could read what is pushed there. Make "
            "it private in its settings, or choose another name."
        )


def make_branch(api: HfApi, repo_id: str, revision: str | None) -> None:
    """Make the branch `revision`, unless it is there already or a ref of another kind."""
    if revision not in (None, "main") and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def take_over_card(api: HfApi, repo_id: str, folder: Path, revision: str | None) -> None:
    """Begin from the card that is on the Hub, which people edit there, unless the one in the folder was edited too."""
    path = folder / CARD
    if is_edited(path) or not api.file_exists(repo_id, CARD, revision=revision):
        return
    remote = hf_hub_download(repo_id, CARD, revision=revision, token=api.token)
    path.write_text(Path(remote).read_text(encoding="utf-8"), encoding="utf-8")


def license_of_teacher(run: RunRecord, token: str | None = None) -> str | None:
    """What the teacher's card says of its licence; None if it has no card, or says nothing, or cannot be asked."""
    teacher = run.teacher or {}
    name = teacher.get("name")
    if not name:
        return None
    path = Path(name) / CARD
    try:
        if not Path(name).is_dir():
            revision = teacher.get("commit") or teacher.get("revision")
            path = Path(hf_hub_download(name, CARD, revision=revision, token=token))
        return ModelCard.load(path, ignore_metadata_errors=True).data.get("license") if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError, HfHubHTTPError) as error:
        logger.info(f"The licence of {name} was not found: {hidden(one_line(error), token)}")
        return None


def write_plots(folder: Path) -> list[Path]:
    """Draw the temperatures and losses of the run in `folder` into it; what was not logged is not drawn."""
    history = read_record(folder).history
    from ..report import loss_series, plot_losses, plot_temperatures, temperature_series  # imports matplotlib

    written = []
    if any(temperature_series(history).values()):
        written.append(plot_temperatures({"": history}, folder / "temperature.png", "Temperatures"))
    if loss_series(history):
        written.append(plot_losses({"": history}, folder / "loss.png", "Losses"))
    return written
