"""What a comparison runs: every method with every pair under every seed, each a configuration of its own, checked."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters import SELF
from ..experiment.checks import run_objective
from ..experiment.config import ExperimentConfig, ObjectiveSection, parse_config
from ..experiment.run import resolved_method
from ..objective import DistillationObjective
from ..registry import ConfigError
from ..teacher_cache import TeacherCache
from .section import (
    ALONE,
    ALONE_OBJECTIVE,
    BEST_VALIDATION,
    COMPARE,
    DEFAULT_PAIR,
    CompareSection,
    PairSection,
    checked_section,
    slug,
)

RUNS, OWN_CACHE = "runs", "teacher_cache"

_PER_PAIR = ("teacher", "student", "training", "teacher_cache")
_REFUSED_TRAINING = {
    "resume_from_checkpoint": "the same command goes on with what is unfinished",
    "push_to_hub": "it is for one student. Push the one you choose with `hf-kd push`",
    "load_best_model_at_end": f"the student that is scored is {COMPARE}.protocol's choice: best_validation does this",
    "early_stopping_patience": "all methods are to have the same budget",
}
_NEEDS = ("teacher_features", "teacher_classifier_weight")


@dataclass(frozen=True)
class Method:
    """One method of the comparison.

    Args:
        label: Its name there.
        given: `{"method": {...}}` or `{"objective": {...}}`.
        path: Where it stands in the configuration.
    """

    label: str
    given: dict[str, Any]
    path: str

    @property
    def is_baseline(self) -> bool:
        """Whether it is the student alone."""
        return self.label == ALONE


@dataclass(frozen=True)
class Pair:
    """One teacher and student.

    Args:
        name: Of the pair.
        run: What all its runs share: sections of a configuration, without method, seed and folder.
        given: By label, its `method` or `objective`.
        configs: By label, a whole and checked configuration, of the first seed.
        filler: The label whose run asks most of the teacher; None where no answers are kept.
        teacher_words: How the teacher takes part, in a sentence.
    """

    name: str
    run: dict[str, Any]
    given: dict[str, dict[str, Any]]
    configs: dict[str, ExperimentConfig]
    filler: str | None
    teacher_words: str


@dataclass(frozen=True)
class Run:
    """One student to train.

    Args:
        pair: Its pair.
        method: Its method's label.
        seed: Its seed.
        folder: Where it goes, below the comparison's folder.
        mapping: Its configuration, but for `output_dir`.
    """

    pair: str
    method: str
    seed: int
    folder: str
    mapping: dict[str, Any] = field(repr=False)

    @property
    def key(self) -> tuple[str, str, int]:
        """By which its line is known."""
        return self.pair, self.method, self.seed


@dataclass(frozen=True)
class Plan:
    """A checked comparison.

    Args:
        section: The section `compare`.
        folder: Of everything.
        config: The run's sections, as given.
        methods: The baseline and the others, in order.
        pairs: In order.
        notes: What the user should know before it starts.
    """

    section: CompareSection
    folder: Path
    config: dict[str, Any]
    methods: list[Method]
    pairs: list[Pair]
    notes: list[str]

    def runs(self) -> Iterator[Run]:
        """All of them, pair by pair, and within a pair seed by seed."""
        for pair in self.pairs:
            for seed in self.section.seed_list:
                for method in self.methods:
                    folder = f"{RUNS}/{slug(pair.name)}/{slug(method.label)}/seed{seed}"
                    mapping = {**run_mapping(pair, method.label), "seed": seed}
                    yield Run(pair.name, method.label, seed, folder, mapping)


def make_plan(config: Mapping[str, Any], given: Any) -> Plan:
    """Check a comparison, every method with every pair, before anything is loaded.

    Args:
        config: The run's sections; its own `method`, `objective` and `seed` are not used.
        given: What stands in `compare`.

    Raises:
        ConfigError: Every problem found, each with its path.
    """
    section = checked_section(given)
    config = {key: value for key, value in config.items() if value is not None}
    notes = [
        f"`{key}` of the configuration is not used: {COMPARE}.{where} says which."
        for key, where in (("method", "methods"), ("objective", "methods"), ("seed", "seeds"))
        if key in config
    ]
    base = {key: value for key, value in config.items() if key not in ("method", "objective", "seed", "output_dir")}
    methods, problems = _methods(section.methods)
    problems += _training_problems(base.get("training"), "training")
    named = section.pairs or {DEFAULT_PAIR: PairSection()}
    for name, pair in named.items():
        problems += _training_problems(pair.training, f"{COMPARE}.pairs.{name}.training")
        problems += _label_problems(name, pair, methods)
    folder = config.get("output_dir")
    if not isinstance(folder, str) or not folder.strip():
        problems.append(f"output_dir: is required: a folder for the comparison, got {folder!r}.")
        folder = "."
    folder = Path(folder)
    shares = _has_other_teachers(named)
    pairs = []
    for name, pair in named.items():
        made, more = _pair(name, pair, base, methods, section, folder, shares)
        pairs.append(made)
        problems += more
    problems = _once(problems)
    if problems:
        raise ConfigError(problems)
    return Plan(section, folder, config, methods, pairs, notes)


# ---------------------------------------------------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------------------------------------------------


def _methods(entries: list[Any]) -> tuple[list[Method], list[str]]:
    """The baseline and what is listed, and the problems with the list itself."""
    methods = [Method(ALONE, {"objective": dict(ALONE_OBJECTIVE)}, f"{COMPARE}.baseline")]
    problems, seen = [], {slug(ALONE): f"{COMPARE}.baseline"}
    for index, entry in enumerate(entries):
        path = f"{COMPARE}.methods.{index}"
        method, problem = _method(entry, path)
        if problem is None and method.label == ALONE:
            problem = f"{path}: the student alone is always compared. Leave it out, or give this another label."
        elif problem is None and slug(method.label) in seen:
            problem = (
                f"{path}: is called {method.label!r}, as {seen[slug(method.label)]} is (case and signs do not count: "
                f"labels name folders). Tell them apart: {{label: ..., name: {method.label}, ...}}."
            )
        if problem is not None:
            problems.append(problem)
            continue
        seen[slug(method.label)] = path
        methods.append(method)
    return methods, problems


def _method(entry: Any, path: str) -> tuple[Method | None, str | None]:
    if isinstance(entry, str):
        return Method(entry, {"method": {"name": entry}}, path), None
    given = {str(key): value for key, value in entry.items()}
    label, objective = given.pop("label", None), given.get("objective")
    if label is not None and (not isinstance(label, str) or not label.strip()):
        return None, f"{path}.label: expected a name, got {label!r}."
    if objective is None:
        given.pop("objective", None)
        label = label if label is not None else given.get("name")
        if not isinstance(label, str) or "name" not in given:
            return None, f"{path}: needs the `name` of a method, or a `label` and an `objective`."
        return Method(label, {"method": given}, path), None
    if label is None:
        return None, f"{path}.label: is required: an objective has no name of its own."
    if set(given) != {"objective"}:
        others = ", ".join(sorted(set(given) - {"objective"}))
        return None, f"{path}: `objective` is the whole objective, and {others} stands beside it. Remove one of them."
    return Method(label, {"objective": objective}, path), None


def _label_problems(name: str, pair: PairSection, methods: list[Method]) -> list[str]:
    labels = [method.label for method in methods]
    problems = []
    for label in pair.methods or ():
        at = f"{COMPARE}.pairs.{name}.methods.{label}"
        if label == ALONE:
            problems.append(f"{at}: the baseline is the same for all pairs. Remove it.")
        elif label not in labels:
            problems.append(f"{at}: no method of {COMPARE}.methods is so called. There are: {', '.join(labels)}.")
    return problems


def resolved_section(config: ExperimentConfig) -> dict[str, Any]:
    """What a run minimises, every default spelled out."""
    if config.method is not None:
        return resolved_method(config.method)
    return ObjectiveSection.model_validate(config.objective).model_dump(exclude_none=True)


# ---------------------------------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------------------------------


def _pair(
    name: str,
    pair: PairSection,
    base: Mapping[str, Any],
    methods: list[Method],
    section: CompareSection,
    folder: Path,
    shares_cache: bool,
) -> tuple[Pair | None, list[str]]:
    run = {**base, **{key: _merged(base.get(key), getattr(pair, key)) for key in _PER_PAIR}}
    run = {key: value for key, value in run.items() if value is not None}
    run["training"] = _training(run, section)
    words = _settle_cache(run, name, pair, folder, shares_cache)
    given = {method.label: _given(method, (pair.methods or {}).get(method.label)) for method in methods}
    made = Pair(name, run, given, {}, None, words)
    problems, needing = [], {}
    for method in methods:
        where = folder / RUNS / slug(name) / slug(method.label)
        mapping = {**run_mapping(made, method.label), "seed": section.seed_list[0], "output_dir": str(where)}
        try:
            made.configs[method.label] = config = parse_config(mapping)
        except ConfigError as error:
            problems += [_placed(line, method, name, pair) for line in error.problems]
            continue
        objective = run_objective(config, _ANY_CLASSES)
        needing[method.label] = _asks(objective) if config.teacher_cache is not None else -1
        problems += _stored_problems(config, objective, method)
    filler = max(needing, key=needing.get, default=None)
    filler = None if filler is None or needing[filler] < 0 else filler
    return Pair(name, run, given, made.configs, filler, words), problems


_ANY_CLASSES = 10


def _asks(objective: DistillationObjective) -> int:
    """How much a run wants stored of the teacher."""
    return 2 * any(name in objective.needs for name in _NEEDS) + objective.needs_teacher


def _given(method: Method, override: Mapping[str, Any] | None) -> dict[str, Any]:
    if not override:
        return method.given
    ((kind, section),) = method.given.items()
    merged = _merged(section, override) if isinstance(section, Mapping) else section
    return {kind: merged}


def _merged(base: Any, own: Any) -> Any:
    """A section with keys replaced; null removes one."""
    base, own = ({"dir": value} if isinstance(value, str) else value for value in (base, own))
    if own is None or not isinstance(base, Mapping | None):
        return base
    return {key: value for key, value in {**(base or {}), **own}.items() if value is not None}


def _training(run: Mapping[str, Any], section: CompareSection) -> Any:
    """The training arguments of all runs of a pair, with what a comparison settles."""
    given = run.get("training") or {}
    if not isinstance(given, Mapping):
        return given
    teacher = run.get("teacher")
    answers = isinstance(teacher, Mapping) and teacher.get("model") is not None
    given = {key: value for key, value in given.items() if key not in _REFUSED_TRAINING}
    training = {"disable_tqdm": True, "save_total_limit": 1, "evaluate_with_teacher": answers, **given}
    if section.protocol == BEST_VALIDATION:
        if training.get("eval_strategy", "no") in ("no", False):
            training["eval_strategy"] = "epoch"
        training["load_best_model_at_end"] = True
        training["save_strategy"] = training["eval_strategy"]
        if "eval_steps" in training:
            training["save_steps"] = training["eval_steps"]
    return training


def _training_problems(training: Any, path: str) -> list[str]:
    if not isinstance(training, Mapping):
        return []
    return [f"{path}.{key}: {why}. Leave it out." for key, why in _REFUSED_TRAINING.items() if training.get(key)]


def _has_other_teachers(pairs: Mapping[str, PairSection]) -> bool:
    """Whether one cache would be asked for answers of several teachers."""
    return len({json.dumps(pair.teacher, sort_keys=True, default=str) for pair in pairs.values()}) > 1


def _settle_cache(run: dict[str, Any], name: str, pair: PairSection, folder: Path, shares: bool) -> str:
    """Where the teacher's answers are kept, in place, and how the teacher takes part, in a sentence."""
    teacher, data, cache = run.get("teacher"), run.get("data") or {}, run.get("teacher_cache")
    if isinstance(cache, Mapping) and isinstance(cache.get("dir"), str):
        if shares and pair.teacher_cache is None:
            run["teacher_cache"] = cache = {**cache, "dir": str(Path(cache["dir"]) / slug(name))}
        return f"The teacher's answers are kept in {cache['dir']}; what is missing is asked once."
    if not isinstance(teacher, Mapping) or not isinstance(data, Mapping) or cache is not None:
        return "There is no teacher."
    if teacher.get("model") is None:
        return "The teacher answered earlier; its logits are a column of the data."
    if teacher["model"] == SELF:
        return "The teacher is the student without its adapter and runs in every run."
    if data.get("streaming"):
        return "The teacher runs in every run, because rows are streamed."
    if data.get("augmentation"):
        return (
            "The teacher runs in every run, because training images are augmented. Faster: teacher_cache={dir: ..., "
            "views: 8} asks it once about so many views of each image, which all runs then see in turn."
        )
    asked = {key: run.get(key) for key in ("teacher", "data")}
    asked["student"] = {key: (run.get("student") or {}).get(key) for key in ("model", "processor")}
    asked["precision"] = {key: (run["training"] or {}).get(key) for key in ("bf16", "fp16")}
    number = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]
    run["teacher_cache"] = {"dir": str(folder / OWN_CACHE / number)}
    return "The teacher is asked once about every row; all runs reuse its answers."


def _stored_problems(config: ExperimentConfig, objective: DistillationObjective, method: Method) -> list[str]:
    """A cache that is there already, and lacks what the method looks at."""
    if config.teacher_cache is None or not any(name in objective.needs for name in _NEEDS):
        return []
    try:
        cache = TeacherCache(config.teacher_cache.dir)
    except (ValueError, OSError):
        return []  # said when it is opened for use
    if cache.manifest is None or cache.num_features is not None:
        return []
    return [
        f"{method.path}: looks at the teacher's pooled features, and {config.teacher_cache.dir} was filled without. "
        "Name another folder in teacher_cache, which the teacher then fills with them, or leave the method out."
    ]


def run_mapping(pair: Pair, label: str) -> dict[str, Any]:
    """The sections of a run, but for its seed and folder.

    Where nobody asks the teacher, it is left out; of student layers that it gives it is only asked for these.
    """
    run, given = dict(pair.run), pair.given[label]
    training, teacher = run.get("training"), run.get("teacher")
    is_compared = isinstance(training, Mapping) and training.get("evaluate_with_teacher")
    if is_compared or teacher is None or _needs_teacher(given):
        return {**run, **given}
    student = run.get("student")
    if isinstance(student, Mapping) and student.get("init_layers") is not None:
        return {**run, **given, "training": {**training, "evaluate_with_teacher": True}}
    run.pop("teacher"), run.pop("teacher_cache", None)
    if isinstance(student, Mapping) and isinstance(teacher, Mapping):
        is_embedded = str((run.get("data") or {}).get("name") or "").startswith("embedded/")
        if not is_embedded and student.get("model") is None and student.get("processor") is None:
            run["student"] = {**student, "processor": teacher.get("model")}
    return {**run, **given}


def _needs_teacher(given: Mapping[str, Any]) -> bool:
    """What is no objective needs one: it is refused where that is said better."""
    try:
        config = ExperimentConfig.model_construct(**{"method": None, "objective": None, **_as_sections(given)})
        return run_objective(config, _ANY_CLASSES).needs_teacher
    except (ValueError, TypeError, KeyError, AttributeError):
        return True


def _as_sections(given: Mapping[str, Any]) -> dict[str, Any]:
    if "objective" in given:
        return {"objective": ObjectiveSection.model_validate(given["objective"])}
    return {"method": dict(given["method"])}


# ---------------------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------------------


def _placed(line: str, method: Method, name: str, pair: PairSection) -> str:
    """A problem of a run at the place where the comparison's configuration says it."""
    path, colon, text = line.partition(": ")
    head, _, rest = path.partition(".")
    if head in ("method", "objective"):
        where = method.path
        if head == "objective":
            where += ".objective"
        if (pair.methods or {}).get(method.label):
            where = f"{COMPARE}.pairs.{name}.methods.{method.label}"
        return f"{where}{'.' + rest if rest and rest != 'name' else ''}{colon}{text}"
    if head in _PER_PAIR and getattr(pair, head) is not None:
        return f"{COMPARE}.pairs.{name}.{line}"
    return line


def _once(problems: list[str]) -> list[str]:
    """What several methods have in common is said once."""
    seen: dict[str, str] = {}
    for line in problems:
        path = line.partition(": ")[0]
        seen.setdefault(line if path.startswith(f"{COMPARE}.methods") else path, line)
    return list(dict.fromkeys(seen.values()))
