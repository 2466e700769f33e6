"""The section `search`: what is searched and how, checked with the configuration it belongs to."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..experiment.config import Section, Seed, load_mapping, parse_config, structure_problems, with_values
from ..registry import ConfigError, suggestion
from ..search_space import SearchSpace

SEARCH = "search"
_PARTS = {
    "training": (),
    "method": (),
    "objective": (),
    "student": ("config", "peft", "init_layers", "from_scratch", "dtype"),
}
"""What may be searched, and of which section only these parts."""

_REFUSED = {
    "seed": "the best of several seeds is luck, not a setting. Leave it out; repeat the best configuration with seeds",
    "training.seed": "the best of several seeds is luck, not a setting. Leave it out",
    "training.data_seed": "the best of several seeds is luck, not a setting. Leave it out",
    "output_dir": "every trial has its own. Leave it out",
    "training.output_dir": "every trial has its own. Leave it out",
    "training.metric_for_best_model": "trials would be compared by different rules. Leave it out",
    "training.greater_is_better": "trials would be compared by different rules. Leave it out",
    "training.evaluate_with_teacher": "it changes no student. Set it in `training`",
    "training.resume_from_checkpoint": "every trial starts anew. Leave it out",
    "training.push_to_hub": "no trial is pushed. Leave it out",
}
_WHY = {
    "data": "trials are compared on the same rows. Search once for each of the data settings",
    "teacher": "the teacher is asked once, for all trials. Search once for each teacher",
    "student": "the rows are made once, for one tokenizer or image processor. Search once for each student",
}


class SearchSection(Section):
    """What `hf-kd tune` searches; a section beside those of the run, or a file of its own.

    Args:
        parameters: `{path: {low, high}}` or `{path: {choices: […]}}`, by the paths of overrides, with `log`, `step`
            and `when` as in `hf_kd.search_space.SearchSpace`.
        trials: How many, those of earlier starts in the same folder included.
        seed: Of the draws. The students' is the configuration's `seed`, the same in all trials.
        sampler: "tpe" goes where good trials were; "random" goes everywhere.
        pruner: "median" stops a trial that is worse than half of the others at the same step, "halving" one that is
            not among the best quarter; both need evaluations during training. "none" lets all run to their end.
        metric: What to improve on the validation split; by default `training.metric_for_best_model`, else the metric
            that results on the data are quoted in.
        greater_is_better: Whether more of it is better; by default known by its name.
    """

    parameters: dict[str, Any]
    trials: Annotated[int, Field(ge=1)] = 20
    seed: Seed = 0
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"
    metric: str | None = None
    greater_is_better: bool | None = None


def load_search(
    path: str | Path, overrides: Iterable[str] = (), search: str | Path | None = None
) -> tuple[dict[str, Any], Any]:
    """Read a configuration and the search over it.

    Args:
        path: The YAML file of a run, with a section `search` or without.
        overrides: As for a run; `search.trials=50` is one too.
        search: A YAML file with what would stand in `search`, or with `search` itself.

    Returns:
        The run and the search, both unchecked, for `tune`.

    Raises:
        ConfigError: A file cannot be read, an override is malformed, or there is no search or two.
    """
    added = None
    if search is not None:
        content, _ = load_mapping(search)
        added = content if set(content) == {SEARCH} else {SEARCH: content}
        if SEARCH in load_mapping(path)[0]:
            raise ConfigError([f"{SEARCH}: stands in {path}, and {search} is another one. Give one of them."])
    mapping, problems = load_mapping(path, overrides, added)
    section = mapping.pop(SEARCH, None)
    if section is None:
        problems.append(
            f"{SEARCH}: is required: what is to be searched? Add {SEARCH}: {{parameters: {{training.learning_rate: "
            "{low: 1e-5, high: 1e-3, log: true}}}, or give it in a file of its own (--search)."
        )
    if problems:
        raise ConfigError(problems)
    return mapping, section


def checked_search(mapping: Mapping[str, Any], given: Any) -> tuple[SearchSection, SearchSpace]:
    """The search, checked alone and with the run, at every combination of its ends.

    Args:
        mapping: The run, a valid configuration as it is.
        given: What stands in `search`.

    Raises:
        ConfigError: Every problem found, each with its path.
    """
    if isinstance(given, SearchSection):
        given = given.model_dump()
    if not isinstance(given, Mapping):
        raise ConfigError([f"{SEARCH}: expected a mapping with `parameters`, got {given!r}."])
    given = {key: value for key, value in given.items() if value is not None}
    config = parse_config(mapping)
    problems = [f"{SEARCH}.{line}" for line in structure_problems(SearchSection, given)]
    space = None
    if isinstance(given.get("parameters"), Mapping):
        problems += [line for path in given["parameters"] for line in _path_problems(str(path))]
        try:
            space = SearchSpace(given["parameters"], f"{SEARCH}.parameters")
        except ConfigError as error:
            problems += error.problems
    if given.get("pruner") not in (None, "none") and config.training.get("eval_strategy", "no") == "no":
        problems.append(
            f"{SEARCH}.pruner: stops trials by their evaluations, and there are none during training. Set "
            "training.eval_strategy=epoch, or leave the pruner out."
        )
    for key in ("resume_from_checkpoint", "push_to_hub"):
        if config.training.get(key):
            problems.append(f"training.{key}: is for one run. Leave it out; train the best configuration with it.")
    problems = problems or _corner_problems(mapping, space)
    if problems:
        raise ConfigError(problems)
    return SearchSection.model_validate(given), space


def _path_problems(path: str) -> list[str]:
    """Paths that no search may change."""
    at, parts = f"{SEARCH}.parameters.{path}", path.replace("[", ".").replace("]", "").split(".")
    if path in _REFUSED:
        return [f"{at}: {_REFUSED[path]}."]
    if not all(part and part == part.strip() for part in parts):
        return [f"{at}: is no path. Write e.g. training.learning_rate."]
    head = parts[0]
    only = _PARTS.get(head)
    if head in _WHY and (only is None or len(parts) < 2 or parts[1] not in only):
        rest = f" Of `{head}` only {', '.join(only)} can be searched." if only else ""
        return [f"{at}: {_WHY[head]}.{rest}"]
    if only is None:
        return [f"{at}: no such section.{suggestion(head, _PARTS)} Paths begin with one of them."]
    if head in ("training", "student") and len(parts) < 2:
        return [f"{at}: name the key too, e.g. training.learning_rate."]
    return []


def _corner_problems(mapping: Mapping[str, Any], space: SearchSpace) -> list[str]:
    """What the configuration's own checks say about the trials to come."""
    problems: dict[str, str] = {}
    for values in space.corners():
        try:
            parse_config(*with_values(mapping, values))
        except ConfigError as error:
            for line in error.problems:
                said = ", ".join(f"{name}={value!r}" for name, value in values.items())
                problems.setdefault(line, f"{SEARCH}.parameters: with {said}: {line}")
    return list(problems.values())
