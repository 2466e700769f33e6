"""The results as Markdown tables, for a README."""

import re

from .results import BEST_TEST, FAILED, Pair, Results
from .tables import PROTOCOLS, Difference, Standing, hardware_facts, leaderboard, teacher_cells, warnings_of
from .text import NOTHING, listed, plural, section, shortened

LONGEST_CELL = 80
_MEANS_SOMETHING = re.compile(r"([\\`*_{}\[\]<>|~#&])")


def results_table(results: Results) -> str:
    """A table for each pair, each with a caption that says of what, how often and how it was made."""
    parts = []
    for pair in results.pairs:
        heading = [f"**{said(pair.name)}**"] if len(results.pairs) > 1 else []
        parts += [*heading, _table(pair)]
    return "\n\n".join([*parts, _caption(results)])


def said(text: str, length: int = LONGEST_CELL) -> str:
    """Text in which nothing is read as Markdown, HTML or the end of a cell."""
    text = _MEANS_SOMETHING.sub(r"\\\1", shortened(text, length)).replace("\\<", "&lt;").replace("\\>", "&gt;")
    return text.replace("://", ":&#47;&#47;")  # which would become a link by itself


def _table(pair: Pair) -> str:
    scale = pair.results.scale
    unit = f", {scale.unit}" if scale.unit else ""
    others = [(key, label) for key, label in (("to_baseline", pair.baseline), ("to_kd", pair.reference)) if label]
    is_best_test = pair.results.protocol == BEST_TEST
    heads = ["method", "seeds", f"{scale.word}{unit}"]
    heads += [f"against {said(label)}" for _, label in others]
    heads += ["agreement, %", "ECE, %"]
    heads += ["best epoch on test (!)"] * is_best_test
    standings = leaderboard(pair)
    rows = [_row(standing, [key for key, _ in others], is_best_test) for standing in standings]
    if teacher := teacher_cells(pair):
        named = "" if teacher["name"] == "teacher" else f" ({said(teacher['name'])})"
        rows.insert(0, [f"teacher{named}", "", teacher["score"]] + [""] * (len(heads) - 3))
    is_empty = [all(row[i] in ("", NOTHING) for row in rows) for i in range(len(heads))]
    kept = [i for i in range(len(heads)) if i < 3 or not is_empty[i]]
    lines = [[heads[i] for i in kept], ["---" if heads[i] == "method" else "---:" for i in kept]]
    lines += [[row[i] for i in kept] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(standing: Standing, keys: list[str], is_best_test: bool) -> list[str]:
    seeds = str(standing.n) if standing.n == standing.asked else f"{standing.n} of {standing.asked}"
    found: list[Difference | None] = [getattr(standing, key) for key in keys]
    cells = [said(standing.label), seeds, standing.score]
    cells += ["" if d is None else _difference(d) for d in found]
    return cells + [standing.agreement, standing.ece] + [standing.best_test] * is_best_test


def _difference(found: Difference) -> str:
    verdict = "no verdict" if found.kind == "unknown" else found.verdict
    return " ".join(filter(None, [found.value, found.interval, f"*{verdict}*"]))


def _caption(results: Results) -> str:
    scale = results.scale
    rows = f" on {results.test_rows:,} rows" if results.test_rows else ""
    data = results.data
    mark = f" (fingerprint `{said(str(data['fingerprint']))}`)" if data.get("fingerprint") else ""
    of = f" of {said(str(data['name']))}{mark}" if data.get("name") else ""
    seeds = [str(seed) for seed in results.header.get("seeds") or ()]
    words = [
        f"Test {results.metric.replace('_', ' ')}{rows}{of}, {PROTOCOLS.get(results.protocol, results.protocol)}; "
        f"mean ± sample standard deviation over the seeds {listed(seeds) or 'that ran'}."
    ]
    if any(pair.baseline or pair.reference for pair in results.pairs):
        points = " in points" if scale.is_share else ""
        words.append(
            f"Differences{points} with 95 % intervals of a paired t over seeds. *Helps* and *hurts*: p < .05 after "
            "Holm's correction, and a 95 % bootstrap interval over test rows on the same side of zero; *no evidence* "
            "is everything else."
        )
    unfinished = results.unfinished
    if unfinished:
        failed = sum(run.state == FAILED for run in unfinished)
        how = f", {failed} of them because they failed" if failed else ""
        words.append(f"Incomplete: {plural(len(unfinished), 'run')} of {len(results.runs)} not counted{how}.")
    words += [f"**Mind:** {warning}" for warning in warnings_of(results)]
    where = _where(results)
    if where:
        words.append(f"Run on {where}.")
    command = results.header.get("command")
    if command:
        words.append(f"Command: {_code(str(command))}")
    return " ".join(words)


def _where(results: Results) -> str:
    versions = section(results.header, "versions")
    facts = hardware_facts(section(results.header, "hardware"))
    parts = [
        f"{value} {key.removesuffix('s') if value == '1' else key}" if value.isdigit() else value
        for key, value in facts
        if key != "platform"
    ]
    parts += [f"{name} {versions[name]}" for name in ("torch", "transformers", "hf_kd") if versions.get(name)]
    return ", ".join(said(part) for part in parts)


def _code(text: str) -> str:
    """In backticks, as many as it takes."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{pad}{text}{pad}{marks}"
