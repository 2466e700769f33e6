"""The command line, `hf-kd`: one file per command.

Only this room prints. Everything heavy is imported inside the commands, so that `--help` answers at once.
"""

from . import runs, compare, report, tune, bench, cache, add_logits, evaluate, push, demo, methods  # noqa: F401, I001 - each adds its commands, in the order of `--help`
from .common import app

__all__ = ["app", "main"]


def main() -> None:
    """The console script."""
    app()
