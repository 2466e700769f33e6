"""Makes the Auto classes of transformers know the package's own networks, without importing transformers itself."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# A module of transformers -> the module here that registers something with what it defines.
AFTER = {
    "transformers.models.auto.configuration_auto": "hf_kd.models",
    "transformers.models.auto.modeling_auto": "hf_kd.models.networks",
}


class _AfterImport(MetaPathFinder):
    """Imports one module right after the first import of another; finds nothing else."""

    def __init__(self, awaited: str, then: str):
        self.awaited = awaited
        self.then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find for `awaited`, its execution followed by the import of `then`."""
        if name != self.awaited:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            import_module(self.then)

        spec.loader.exec_module = execute_both
        return spec


def register_with_transformers() -> None:
    """Register configurations and networks now where the Auto classes are loaded, else as soon as they are.

    Importing transformers takes seconds and the losses do without it, so it is left to whoever needs it.
    """
    for awaited, then in AFTER.items():
        if awaited in sys.modules:
            import_module(then)
        else:
            sys.meta_path.insert(0, _AfterImport(awaited, then))
