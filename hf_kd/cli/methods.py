"""`hf-kd methods`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .common import app, console, reported, say

if TYPE_CHECKING:
    from ..methods import Method, Setting


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method with its settings and their sources.")] = None,
) -> None:
    """List the published methods, or show one."""
    with reported(debug=False, what="METHODS"):
        from ..methods import METHODS, get_method

        if name is None:
            console().print(methods_table(METHODS))
            say("*: not, or not wholly, the published method; its status says how far.")
            say("needs: beyond a student, a teacher's logits and rows without labels.")
            say("hf-kd methods NAME shows status, formula, needs, hazards, parameters, settings and their sources.")
        else:
            _show_method(name, get_method(name))


NUM_LABELS = 10
"""Any number of classes: what a method needs does not depend on it."""


def methods_table(table_of_methods: Mapping[str, "Method"]) -> Table:
    """All methods, one row each, in groups."""
    from ..methods import GROUPS, build_objective, requirements

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column, width in (("name", 19), ("title", 41), ("needs", 11), ("paper", 22)):
        table.add_column(column, width=width, overflow="fold")
    for group in GROUPS:
        members = {name: method for name, method in table_of_methods.items() if method.group == group}
        table.add_row()
        table.add_row("", Text(group, style="italic"))
        for name, method in members.items():
            needs = dict.fromkeys(need.short for need in requirements(build_objective(name, num_labels=NUM_LABELS)))
            title = f"{method.title} *" if method.status else method.title
            cells = (title, ", ".join(needs), method.cited.short)
            table.add_row(Text(name, style="bold"), *(Text(cell) for cell in cells))
    return table


def _show_method(name: str, method: "Method") -> None:
    from ..methods import build_objective, problem_types, requirements

    objective = build_objective(name, num_labels=NUM_LABELS)
    paper = f"{method.paper}, {method.url}" if method.url else method.paper
    say(f"{name}: {method.title}")
    if method.status:
        say(f"  Status: {method.status}.")
    say(f"  {method.formula}")
    say(f"  {paper}")
    if method.notes:
        say(f"  {method.notes}")
    say()
    say(f"For heads of problem type {', '.join(problem_types(objective))}.")
    say("Needs, beyond a student, a teacher's logits and rows without labels:")
    for line in [need.text for need in requirements(objective)] or ["nothing"]:
        say(f"  - {line}")
    if method.hazards:
        say("Hazards:")
        for hazard in method.hazards:
            say(f"  - {hazard}")
    say()
    console().print(_parameters_table(name, method))
    console().print(_settings_table(method))
    say(f"Use: method: {{name: {name}}}, with `benchmark`, `pair` or any parameter beside `name`.")


def _settings_table(method: "Method") -> Table:
    table = Table(title="Settings", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("benchmark", "pair", "values", "source"):
        table.add_column(column, overflow="fold", no_wrap=column in ("benchmark", "pair"))
    rows: list[tuple[str, str, Setting]] = [("(default)", "", method.default)]
    for benchmark, setting in method.benchmarks.items():
        pairs = method.pairs.get(benchmark, {})
        rows += [(benchmark, "", setting), *((benchmark, pair, values) for pair, values in pairs.items())]
    for benchmark, pair, setting in rows:
        values = ", ".join(f"{key}={_number(value)}" for key, value in setting.values.items())
        table.add_row(*(Text(cell) for cell in (benchmark, pair, values, setting.source)))
    return table


def _parameters_table(name: str, method: "Method") -> Table:
    from ..losses import LOSSES
    from ..methods import COMMON_PARAMETERS
    from ..registry import accepted_arguments

    own = {"ce_weight": None, "kd_weight": 1.0, "warmup": 0.0, "warmup_epochs": None, "task_serialization": False}
    strategy = {key: parameter.default for key, parameter in method.strategy_arguments.items()}
    names = [key for key in COMMON_PARAMETERS if key != "temperature"]
    rows = [(key, own[key], "objective") for key in names]
    if method.strategy is not None and "temperature" not in strategy:
        rows.append(("temperature", "the strategy's", "strategy, or another one"))
    rows += [(key, default, f"strategy {method.strategy}") for key, default in strategy.items()]
    rows += [(key, None, f"method {name}") for key in method.weights]
    losses = {spec["name"]: accepted_arguments(LOSSES[spec["name"]]) for _, spec in method.losses}
    for key, default in method.loss_arguments.items():
        rows.append((key, default, f"loss {', '.join(loss for loss, accepted in losses.items() if key in accepted)}"))
    table = Table(title="Parameters", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "default", "of"):
        table.add_column(column)
    for key, default, owner in rows:
        table.add_row(key, Text(_number(method.default.values.get(key, default))), owner)
    return table


def _number(value: Any) -> str:
    """Fractions of a paper's run as such: 20/240 says more than 0.0833."""
    if isinstance(value, float):
        for run in (240, 120):
            epochs = value * run
            if 0 < value < 1 and abs(epochs - round(epochs)) < 1e-9 and round(value, 3) != value:
                return f"{round(epochs)}/{run}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:g}" if isinstance(value, float) else ("none" if value is None else str(value))
