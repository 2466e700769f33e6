"""Students whose class is not one of transformers: does their code go with them, or a package that has it?"""

import ast
import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import transformers
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from ..registry import ConfigError
from .words import one_line

CLASSIFIERS = ("AutoModelForImageClassification", "AutoModelForSequenceClassification")


def describe_code(model: Any) -> dict[str, Any] | None:
    """Where the class of a model comes from; None for one of transformers, which everybody has.

    Returns:
        `class` and `module`; `carried`, whether `save_pretrained` puts the code beside the weights; `package` and
        `version`, the installed distribution that has it, if one does; `problem`, why it is not carried; `imports`,
        the packages it needs besides torch and transformers.
    """
    cls = type(model)
    parts = cls.__module__.split(".")
    if parts[0] == "transformers" or not hasattr(model, "config"):
        return None
    problem = _not_carried(cls, type(model.config))
    names = packages_distributions().get(parts[0]) or [None]
    return {
        "class": cls.__name__,
        "module": cls.__module__,
        "carried": problem is None,
        "package": names[0],
        "version": None if names[0] is None else version(names[0]),
        "problem": problem,
        "imports": _needed(cls) if problem is None else [],
    }


def _needed(cls: type) -> list[str]:
    """What the code of a class imports, besides what every user of it has."""
    path = sys.modules[cls.__module__].__file__
    found = {name for file in (path, *get_relative_import_files(path)) for name in get_imports(file)}
    return sorted(found - {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"})


def _not_carried(model: type, config: type) -> str | None:
    """Why `save_pretrained` does not save the code; None if it does."""
    if getattr(model, "_auto_class", None) is None:
        return f"{model.__name__} is not registered"
    if model._auto_class not in CLASSIFIERS:
        return f"{model.__name__} is registered as {model._auto_class}, which is no classifier"
    own = [cls for cls in (model, config) if not cls.__module__.startswith("transformers.")]
    lacking = [cls.__name__ for cls in own if getattr(cls, "_auto_class", None) is None]
    if lacking:
        return f"{lacking[0]} is not registered"
    scripts = [cls.__name__ for cls in own if cls.__module__ == "__main__"]
    return f"{scripts[0]} is defined in the script itself, of which no code is saved" if scripts else None


def refuse_unshippable(model: Any) -> None:
    """Refuse a student that would be loadable by nobody else.

    Raises:
        ConfigError: Its code does not go with it, and no installed package has it.
    """
    code = describe_code(model)
    if code is None or code["carried"] or code["package"]:
        return
    raise ConfigError(
        [
            f"the student is a {code['class']} of {code['module']}, which is no class of transformers and of no "
            f"installed package, and its code would not be pushed with it ({code['problem']}): nobody could load it. "
            f"Define it in a module of its own, and before training call "
            f"`{code['class']}.register_for_auto_class('AutoModelForImageClassification')` (or "
            f"'AutoModelForSequenceClassification') and `{type(model.config).__name__}.register_for_auto_class()`."
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Of a saved model
# ---------------------------------------------------------------------------------------------------------------------


def is_own_class(config: Mapping[str, Any]) -> bool:
    """Whether a saved `config.json` names a class or type that transformers does not have itself."""
    known = config.get("model_type") in CONFIG_MAPPING_NAMES
    return not known or any(not hasattr(transformers, name) for name in config.get("architectures") or [])


def code_names(config: Mapping[str, Any]) -> str:
    """What a saved `config.json` calls its model."""
    return (config.get("architectures") or [None])[0] or f"model of type {config.get('model_type')!r}"


def carries_code(config: Mapping[str, Any]) -> bool:
    """Whether a saved `config.json` says which code beside it makes a classifier of it."""
    return is_own_class(config) and any(name in (config.get("auto_map") or {}) for name in CLASSIFIERS)


def check_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse code that others could not run, without running it.

    Raises:
        ConfigError: A file, a class or an import is missing.
    """
    auto_map = config["auto_map"]
    if config.get("model_type") not in CONFIG_MAPPING_NAMES and "AutoConfig" not in auto_map:
        raise ConfigError(
            [
                f"{folder / 'config.json'}: no code is named for its configuration, so nobody could load it. Register "
                "its class too (`MyConfig.register_for_auto_class()`) and save the student again."
            ]
        )
    for entry in (auto_map[name] for name in ("AutoConfig", *CLASSIFIERS) if name in auto_map):
        if "--" not in entry:  # else it stays in the repository it came from
            module, name = entry.rsplit(".", 1)
            _check_module(folder, module, name)


def _check_module(folder: Path, module: str, name: str | None = None, seen: frozenset[str] = frozenset()) -> None:
    path = folder / f"{module}.py"
    if not path.is_file():
        raise ConfigError(
            [f"{path}: is missing, and the model cannot be loaded without it. Save the student again, or copy it."]
        )
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        packages = get_imports(path)
    except (SyntaxError, ValueError) as error:
        raise ConfigError([f"{path}: is no Python that could be run: {one_line(error)}. Correct it."]) from error
    if name is not None and name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}:
        raise ConfigError([f"{path}: has no class {name}, which config.json names. Save the student again."])
    known = {*sys.stdlib_module_names, *packages_distributions()}
    for package in packages:
        if package not in known:
            raise ConfigError(
                [
                    f"{path}: imports {package}, which is no installed package, so others would not have it. Import "
                    f"a file of yours relatively (`from .{package} import ...`), so that it is saved too; install "
                    "what is a package."
                ]
            )
    seen = seen | {module}
    for other in set(get_relative_imports(path)) - seen:
        _check_module(folder, other, seen=seen)
