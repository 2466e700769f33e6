"""The section `compare`: which methods, seeds and pairs, and by which protocol; checked with the run it belongs to."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..experiment.config import Name, Section, Seed, load_mapping, structure_problems
from ..registry import ConfigError

COMPARE = "compare"
ALONE = "alone"
ALONE_OBJECTIVE = {"ce_weight": 1.0, "kd_weight": 0.0}
DEFAULT_PAIR = "default"

LAST, BEST_VALIDATION, BEST_TEST = "last", "best_validation", "best_test"


class PairSection(Section):
    """What one teacher and student have of their own; the rest is the run's.

    `teacher`, `student`, `training` and `teacher_cache` replace the run's key by key (null removes one).

    Args:
        teacher: The teacher.
        student: The student.
        training: Training arguments, e.g. the learning rate that suits this student.
        teacher_cache: Where the teacher's answers are kept: a folder, or `dir` and settings.
        methods: By label, what these methods have otherwise for this pair: `{wttm: {gamma: 0.1}}`.
    """

    teacher: dict[str, Any] | None = None
    student: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    teacher_cache: str | dict[str, Any] | None = None
    methods: dict[str, dict[str, Any]] | None = None


class CompareSection(Section):
    """What `hf-kd compare` compares; a section beside those of the run.

    Args:
        methods: Each a method's name; or a mapping as `method` takes it, with a `label` if its name is not enough to
            tell it apart; or a `label` and an `objective`. The student alone is always among them.
        seeds: So many, from 0, or which.
        baseline: Always "alone": the student trained by the labels, by the same trainer and with the same budget.
        pairs: By name, teachers and students to do all this with; None for those of the run.
        protocol: Which student is scored on the test split: "last", as training left it; "best_validation", of the
            evaluation that was best on the validation split. "best_test" scores the last one too, and reports the best
            test score over all epochs beside it, as some papers do: chosen by the test split, it flatters.
        jobs: Runs at a time, each in a process of its own if more than one; "auto" is one per CUDA device.
        keep_models: Keep the trained students; else their weights are removed once they are scored.
        latency: Measure how long a student takes for one example, once per pair.
        name: Of the comparison, for whoever reads it; by default its folder's.
    """

    methods: list[Name | dict[str, Any]]
    seeds: int | list[Seed] = 3
    baseline: Literal["alone"] = ALONE
    pairs: dict[str, PairSection] | None = None
    protocol: Literal["last", "best_validation", "best_test"] = LAST
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    keep_models: bool = False
    latency: bool = True
    name: Name | None = None

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


def load_comparison(path: str | Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], Any]:
    """Read a configuration and the comparison in it.

    Args:
        path: The YAML file of a run, with a section `compare`.
        overrides: As for a run; `compare.seeds=5` is one too.

    Returns:
        The run and the comparison, both unchecked, for `compare`.

    Raises:
        ConfigError: The file cannot be read, an override is malformed, or there is nothing to compare.
    """
    mapping, problems = load_mapping(path, overrides)
    section = mapping.pop(COMPARE, None)
    if section is None:
        problems.append(
            f"{COMPARE}: is required: what is to be compared? Add {COMPARE}: {{methods: [kd, ctkd, wttm], seeds: 3}}."
        )
    if problems:
        raise ConfigError(problems)
    return mapping, section


def checked_section(given: Any) -> CompareSection:
    """The section alone.

    Raises:
        ConfigError: Every problem found, each with its path.
    """
    if isinstance(given, CompareSection):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError([f"{COMPARE}: expected a mapping with `methods`, got {given!r}."])
    given = {key: value for key, value in given.items() if value is not None}
    if isinstance(given.get("pairs"), Mapping):
        given["pairs"] = {str(name): {} if pair is None else pair for name, pair in given["pairs"].items()}
    problems = _structure_problems(given)
    if not problems:
        section = CompareSection.model_validate(given)
        problems = _seed_problems(section) + _name_problems(section)
    if problems:
        raise ConfigError(problems)
    return section


def _structure_problems(given: Mapping[str, Any]) -> list[str]:
    pairs, rest = given.get("pairs"), dict(given)
    problems = []
    if isinstance(pairs, Mapping):
        rest["pairs"] = {name: {} if isinstance(pair, Mapping) else pair for name, pair in pairs.items()}
        for name, pair in pairs.items():
            lines = structure_problems(PairSection, pair) if isinstance(pair, Mapping) else ()
            problems += [f"pairs.{name}.{line}" for line in lines]
    problems = [f"{COMPARE}.{line}" for line in [*structure_problems(CompareSection, rest), *problems]]
    if not problems and not given["methods"]:
        problems.append(f"{COMPARE}.methods: is empty. Name what is to be compared, e.g. [kd, ctkd].")
    if not problems and given.get("pairs") == {}:
        problems.append(f"{COMPARE}.pairs: is empty. Name pairs, or leave it out for the teacher and student above.")
    return problems


def _seed_problems(section: CompareSection) -> list[str]:
    seeds = section.seed_list
    if not seeds:
        return [f"{COMPARE}.seeds: expected a number of at least 1, or seeds, got {section.seeds!r}. Give e.g. 3."]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    return [f"{COMPARE}.seeds: {seed} stands there more than once. Give each seed once." for seed in twice]


def _name_problems(section: CompareSection) -> list[str]:
    """Names that would share a folder."""
    problems, seen = [], {}
    for name in section.pairs or ():
        if not name.strip():
            problems.append(f"{COMPARE}.pairs: a name is blank. Name each pair.")
        elif slug(name) in seen:
            problems.append(
                f"{COMPARE}.pairs.{name}: would share the folder {slug(name)!r} with {seen[slug(name)]!r}. Rename one."
            )
        seen[slug(name)] = name
    return problems


def slug(name: str) -> str:
    """A name as a folder: lower case, `[a-z0-9_.-]`."""
    made = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-.")
    return made or "unnamed"
