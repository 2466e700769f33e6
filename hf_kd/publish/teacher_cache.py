"""A teacher cache to and from the Hub, as a data set: one commit, and nothing but checksummed tensors and JSON."""

import json
import re
import shlex
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, DatasetCard, DatasetCardData, HfApi, snapshot_download

from ..registry import ConfigError
from ..teacher_cache import CLASSIFIER, MANIFEST, TeacherCache, shard_paths
from .words import PushError, hidden, reason

CARD = "README.md"
FILES = re.compile(rf"[0-9a-f]{{32}}\.safetensors|{re.escape(CLASSIFIER)}|{re.escape(MANIFEST)}")


def push_cache(
    cache: TeacherCache, repo_id: str, *, private: bool = False, revision: str = "main", token: str | None = None
) -> str:
    """Push a cache as a data set; files that are there already are not sent again.

    Args:
        cache: The cache.
        repo_id: `organisation/name`; made if it does not exist.
        private: Make it private. Refused if it exists and is public.
        revision: A branch; made if it does not exist.
        token: By default the one you are logged in with.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: Files are damaged, or what is to be private exists and is public. Nothing was sent.
        PushError: The Hub refused or could not be reached.
    """
    _refuse_damaged(cache)
    api = HfApi(token=token)
    kind = {"repo_type": "dataset"}
    try:
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True, **kind).repo_id
        if private and not api.repo_info(repo_id, **kind).private:
            raise ConfigError(
                [
                    f"{repo_id}: was to be private, but exists and is public: everyone could read what is pushed "
                    "there. Make it private in its settings, or choose another name."
                ]
            )
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True, **kind)
        paths = [cache.folder / MANIFEST, *shard_paths(cache.folder)]
        paths += [cache.folder / CLASSIFIER] if cache.num_features is not None else []
        operations = [CommitOperationAdd(path.name, path) for path in paths]
        if not api.file_exists(repo_id, CARD, revision=revision, **kind):
            operations.append(CommitOperationAdd(CARD, str(_card(cache, repo_id)).encode()))
        commit = api.create_commit(
            repo_id, operations, commit_message="Push teacher logits", revision=revision, **kind
        )
        return commit.commit_url
    except ConfigError:
        raise
    except Exception as error:  # the clients raise anything, the errors of their transport among it
        again = f"hf-kd cache push {shlex.quote(str(cache.folder))} {repo_id}"
        raise PushError(
            f"Nothing of {cache.folder} is lost, but pushing it to {repo_id} failed: {hidden(reason(error))} Push it "
            f"again with: {again}"
        ) from error


def pull_cache(repo_id: str, folder: str | Path, *, revision: str = "main", token: str | None = None) -> TeacherCache:
    """Fetch a cache into a folder, check it, and open it.

    Args:
        repo_id: A data set that `push_cache` made.
        folder: A new one, or one that holds a part of this cache.
        revision: Branch, tag or commit.
        token: By default the one you are logged in with.

    Raises:
        ConfigError: The folder holds something else, or the data set is no cache, or what arrived is damaged.
        PushError: The Hub refused or could not be reached.
    """
    folder = Path(folder)
    TeacherCache(folder)  # refuses a folder that holds something else, before anything is fetched
    try:
        wanted = ["*.safetensors", MANIFEST]
        fetched = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=wanted, token=token)
        )
    except Exception as error:
        raise PushError(f"{repo_id} could not be fetched: {hidden(reason(error))}") from error
    if not (fetched / MANIFEST).is_file():
        raise ConfigError([f"{repo_id}: holds no {MANIFEST}, so it is no teacher cache."])
    theirs = json.loads((fetched / MANIFEST).read_text(encoding="utf-8"))
    own = folder / MANIFEST
    if own.is_file() and json.loads(own.read_text(encoding="utf-8")) != theirs:
        raise ConfigError([f"{folder}: holds another cache than {repo_id}. Name another folder."])
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in fetched.iterdir() if FILES.fullmatch(path.name))
    for path in sorted(paths, key=lambda path: path.name == MANIFEST):  # last: then all it speaks of is there
        if not (folder / path.name).is_file():
            partial = folder / f".{path.name}.partial"
            shutil.copyfile(path, partial)
            partial.rename(folder / path.name)
    cache = TeacherCache(folder)
    _refuse_damaged(cache)
    return cache


def _refuse_damaged(cache: TeacherCache) -> None:
    damaged = cache.damaged()
    if damaged:
        raise ConfigError(
            [
                f"{cache.folder / name}: does not hold what was written. Remove it and fill it again."
                for name in damaged
            ]
        )


def _card(cache: TeacherCache, repo_id: str) -> DatasetCard:
    facts = cache.describe()
    teacher = facts["teacher"]
    rows = ", ".join(f"{count:,} ({name})" for name, count in facts["rows"].items())
    text = f"""---
{DatasetCardData(tags=["hf-kd", "knowledge-distillation", "teacher-logits"]).to_yaml()}
---

# Teacher logits

What `{teacher.get("name")}`{f" at `{teacher['commit']}`" if teacher.get("commit") else ""} ({teacher.get("class")}, \
{facts["num_classes"]:,} classes) answered to rows of a data set: {rows}, in {facts["encoding"]["dtype"]}. The rows \
themselves are not in here: each is known by a 128-bit hash of its text or encoded image.

Fetch it with `hf-kd cache pull FOLDER {repo_id}` and train from it with `hf-kd train CONFIG teacher_cache=FOLDER`, \
on the same data with the same teacher.
"""
    return DatasetCard(text)
