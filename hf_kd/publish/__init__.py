"""To the Hub: a finished folder, checked, with its card and plots, as one commit."""

from .adapter import ensure_merged, write_merged
from .code import describe_code, refuse_unshippable
from .folder import bundle
from .push import (
    check_visibility,
    commit_files,
    license_of_teacher,
    make_branch,
    push_folder,
    remove_stale,
    write_plots,
)
from .teacher_cache import pull_cache, push_cache
from .words import PushError, failure, hidden, reason

__all__ = [
    "PushError",
    "bundle",
    "check_visibility",
    "commit_files",
    "describe_code",
    "ensure_merged",
    "failure",
    "hidden",
    "license_of_teacher",
    "make_branch",
    "pull_cache",
    "push_cache",
    "push_folder",
    "reason",
    "refuse_unshippable",
    "remove_stale",
    "write_merged",
    "write_plots",
]
