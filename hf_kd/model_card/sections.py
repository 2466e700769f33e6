"""The text of the card, section by section, from a `RunRecord`."""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..functional import REGRESSION
from .record import OF_THE_TEACHER, RunRecord
from .usage import usage

HUB = "https://huggingface.co"
FIGURES = {"temperature.png": "Temperatures during training", "loss.png": "Losses during training"}
SHOWN_LABELS = 20
WORST_CLASSES = 5
SETTINGS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "lr_milestones",
    "temperature_learning_rate",
)


def body(
    run: RunRecord,
    *,
    name: str,
    location: str,
    on_hub: bool,
    revision: str | None,
    license: str | None,
    teacher_license: str | None,
    repeats: Sequence[RunRecord],
    baselines: Sequence[RunRecord],
) -> str:
    """All sections in Markdown; see `write_card` for the arguments."""
    sections = [
        f"# {name}\n\n{_summary(run)}",
        f"## How to use\n\n{usage(run, location, revision, on_hub=on_hub)}",
        f"## Results\n\n{_results(run, repeats, baselines)}",
        f"## Training\n\n{_training(run)}",
        f"## Data\n\n{_data(run)}",
        f"## Cost\n\n{_cost(run)}",
        f"## Limits\n\n{_limits(run, repeats)}",
        f"## Licence\n\n{_licence(run, license, teacher_license)}",
        f"## Citation\n\n{_citation(run)}",
    ]
    return "\n\n".join(sections)


def _summary(run: RunRecord) -> str:
    student = run.student
    kind = {"image-classification": "image classifier", "text-classification": "text classifier"}
    what = kind.get(run.pipeline_tag or "", "classifier")
    if run.config.get("problem_type") == REGRESSION:
        what = what.replace("classifier", "regressor")
    parameters = run.results.get("student_parameters") or student.get("parameters")
    size = f" of {parameters:,} parameters" if parameters else ""
    start = f", started from {_model(student)}" if student.get("commit") else ""
    architecture = f"`{run.config['model_type']}`" if run.config.get("model_type") else ""
    line = f"A {architecture} {what}{size}{start}, " if architecture else f"A {what}{size}{start}, "
    if not run.distilled:
        return f"{line}trained without a teacher by hf_kd."
    teacher = "stored teacher logits" if run.teacher is None else _model(run.teacher)
    if (run.teacher or {}).get("itself"):
        teacher = f"itself without its adapter ({teacher})"
    by = f" with *{run.method.title}* (`{run.method_name}`)" if run.method else ""
    size = (run.teacher or {}).get("parameters") or run.results.get("teacher_parameters")
    of = f", which has {size:,} parameters" if size else ""
    return f"{line}distilled from {teacher}{of},{by} by hf_kd."


def _model(model: Mapping[str, Any]) -> str:
    """A link with the commit where the Hub is known to have it, else the folder's own name."""
    name, commit = model.get("name"), model.get("commit")
    if not name:
        return f"a model made in Python ({model['class']})" if model.get("class") else "a model made in Python"
    if commit:
        return f"[{name}]({HUB}/{name}) at commit `{commit}`"
    if model.get("local", name.count("/") != 1):
        return f"the local model `{name.rstrip('/').split('/')[-1]}`"
    revision = f" at `{model['revision']}`" if model.get("revision") else ""
    return f"`{name}`{revision}"


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------


def _results(run: RunRecord, repeats: Sequence[RunRecord], baselines: Sequence[RunRecord]) -> str:
    split, scores = run.scores
    names = [k for k, v in scores.items() if k not in OF_THE_TEACHER and isinstance(v, (int, float))]
    if not names:
        return "No scores were recorded."
    rows = []
    if run.distilled and "teacher_accuracy" in scores:
        size = (run.teacher or {}).get("parameters") or run.results.get("teacher_parameters")
        rows.append(_row("Teacher", size, "", {"accuracy": f"{scores['teacher_accuracy']:.4f}"}, names))
    if baselines:
        rows.append(_runs_row("Student alone", baselines, names))
    rows.append(_runs_row("**This student**" if run.distilled else "**This model**", [run], names))
    if repeats:
        rows.append(_runs_row(f"The same over {len(repeats) + 1} seeds", [run, *repeats], names))
    header = ["", "parameters", "seeds", *(f"{name} ({split})" for name in names)]
    table = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    lines = ["\n".join(f"| {' | '.join(row)} |" for row in table)]
    if repeats or len(baselines) > 1:
        lines.append("± is the standard deviation over seeds.")
    if not repeats:
        lines.append("One run: how much another seed would change is not known from it.")
    phrases = {
        "agreement": "The student agrees with its teacher on {:.1%} of the rows.",
        "teacher_kl": "Mean KL(teacher ‖ student): {:.4f} nats.",
        "teacher_mse": "Mean squared difference from the teacher: {:.4g}.",
    }
    compared = [phrase.format(scores[key]) for key, phrase in phrases.items() if key in scores]
    missing = []
    if run.distilled and "teacher_accuracy" not in scores:
        missing.append("the teacher's own score")
    if run.distilled and not baselines:
        missing.append("the same student trained without a teacher")
    unknown = f"Not given: {' and '.join(missing)}." if missing else ""
    words = " ".join(filter(None, [*compared, "`loss` is the cross-entropy in nats." * _in_nats(run, names), unknown]))
    return "\n\n".join(filter(None, [*lines, words, _lost(run)]))


def _lost(run: RunRecord) -> str:
    """The classes that the student lost most of, against its teacher."""
    classes = [entry for entry in run.per_class.get("classes", ()) if entry.get("difference") is not None]
    worst = [entry for entry in classes if entry["difference"] < 0][:WORST_CLASSES]
    if not worst or not run.distilled:
        return ""
    title = f"Classes on which the student is furthest behind its teacher ({run.per_class['measure']}, "
    title += f"{run.per_class['split']} split; {len(worst)} of {len(classes)}, all in `per_class.json`):"
    rows = [
        f"| {_cell(e['name'])} | {e['rows']:,} | {e['teacher_score']:.3f} | {e['score']:.3f} "
        f"| {e['difference']:+.3f} |"
        for e in worst
    ]
    head = ["| class | rows | teacher | student | difference |", "| --- | ---: | ---: | ---: | ---: |"]
    return f"{title}\n\n" + "\n".join([*head, *rows])


def _in_nats(run: RunRecord, names: Sequence[str]) -> bool:
    return "loss" in names and run.config.get("problem_type") != REGRESSION


def _row(title: str, parameters: int | None, seeds: str, cells: Mapping[str, str], names: Sequence[str]) -> list[str]:
    return [title, f"{parameters:,}" if parameters else "", seeds, *(cells.get(name, "") for name in names)]


def _runs_row(title: str, runs: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    cells = {}
    for name in names:
        values = [run.scores[1][name] for run in runs if name in run.scores[1]]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        cells[name] = f"{statistics.fmean(values):.4f}{spread}" if len(values) == len(runs) else ""
    first = runs[0]
    parameters = first.results.get("student_parameters") or first.student.get("parameters")
    seeds = ", ".join(str(run.seed) for run in runs if run.seed is not None)
    return _row(title, parameters, seeds, cells, names)


# ---------------------------------------------------------------------------------------------------------------------
# How it was made
# ---------------------------------------------------------------------------------------------------------------------


def _training(run: RunRecord) -> str:
    parts = []
    if run.method is not None and run.distilled:
        method = run.method
        paper = f"[{method.cited.title}]({method.url})" if method.url else method.cited.title
        where = f"{method.cited.authors}, {method.cited.venue}"
        line = f"Method: **{method.title}** (`{run.method_name}`), {paper} ({where})."
        if method.status:
            line += f" Status: *{method.status}*."
        parts.append(f"{line}\n\n    {method.formula}")
    section = {key: run.resolved[key] for key in ("method", "objective") if run.resolved.get(key)}
    if section:
        parts.append(_block("yaml", yaml.safe_dump(section, sort_keys=False, allow_unicode=True)))
    elif run.provenance.get("objective"):
        parts.append(_block("text", "\n".join(run.provenance["objective"])))
    if run.distilled and run.temperatures:
        parts.append(f"Temperature at the end: {'; '.join(map(_temperature, run.temperatures.items()))}.")
    if run.adapter:
        rank = f" of rank {run.adapter['r']}" if run.adapter.get("r") else ""
        kind = str(run.adapter.get("peft_type", "")).lower()
        parts.append(f"Trained were a `{kind}` adapter{rank} and the head; the rest of the base stayed as it was.")
    training = run.resolved.get("training") or run.provenance.get("training") or {}
    known = [f"`{key}` {training[key]}" for key in SETTINGS if training.get(key) not in (None, False)]
    known += [f"`seed` {run.seed}"] if run.seed is not None else []
    if known:
        parts.append(f"Settings: {', '.join(known)}.")
    if (run.folder / "resolved_config.yaml").is_file():
        parts.append("`hf-kd train resolved_config.yaml` repeats the run, with every default spelled out.")
    label_map = run.provenance.get("label_map")
    if label_map:
        parts.append(f"Classes of the teacher that were taught as classes of the student:\n\n{_label_map(label_map)}")
    parts += [f"![{title}]({file})" for file, title in FIGURES.items() if (run.folder / file).is_file()]
    return "\n\n".join(parts) or "Nothing was recorded beyond the model."


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _temperature(entry: tuple[str, tuple[float, float]]) -> str:
    loss, (student, teacher) = entry
    same = abs(student - teacher) <= 1e-6 * abs(teacher)
    words = f"{student:.4g} on both sides" if same else f"{student:.4g} for the student, {teacher:.4g} for the teacher"
    return f"{words} (`{loss}`)" if loss else words


def _label_map(label_map: Mapping[str, Any]) -> str:
    """A table from student class to the teacher's classes."""
    ours, theirs = label_map["student_labels"], label_map["teacher_labels"]
    rows = [
        f"| {_cell(name)} | {', '.join(_cell(theirs[index]) for index in group) or '(none: labels alone)'} |"
        for name, group in zip(ours, label_map["groups"], strict=True)
    ]
    more = [f"\n{len(rows) - SHOWN_LABELS} more in `distillation.json`."] if len(rows) > SHOWN_LABELS else []
    return "\n".join(["| student | teacher |", "| --- | --- |", *rows[:SHOWN_LABELS], *more])


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _data(run: RunRecord) -> str:
    parts = []
    if run.data_name:
        link = f"[{run.hub_dataset}]({HUB}/datasets/{run.hub_dataset})" if run.hub_dataset else f"`{run.data_name}`"
        if run.hub_dataset and run.hub_dataset != run.data_name:
            link = f"`{run.data_name}`, which is {link}"
        extra = [f"{key} `{run.data[key]}`" for key in ("subset", "revision") if run.data.get(key)]
        commit = (run.provenance.get("data") or {}).get("commit")
        extra += [f"at commit `{commit}`"] if commit else []
        parts.append(f"Data: {', '.join([link, *extra])}.")
    if run.results:
        rows, labelled = run.results["train_rows"], run.results["labelled_rows"]
        some = "all" if rows == labelled else f"{labelled:,}"
        count = "Rows streamed and not counted" if rows is None else f"{rows:,} training rows, {some} with a label"
        parts.append(f"{count}; fingerprint of the rows `{run.results['data_fingerprint']}`.")
    parts += [_preprocessing(run), _processors(run)]
    labels = [str(label) for _, label in sorted((run.config.get("id2label") or {}).items(), key=lambda e: int(e[0]))]
    if labels:
        more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        shown = ", ".join(f"`{_cell(label)}`" for label in labels[:SHOWN_LABELS])
        parts.append(f"{len(labels)} class{'es' if len(labels) > 1 else ''}: {shown}{more}.")
    return " ".join(filter(None, parts)) or "Nothing is known of the data."


def _preprocessing(run: RunRecord) -> str:
    """What the saved processor does, in words."""
    given = run.processor
    if "image_processor_type" in given:
        parts = []
        if given.get("do_resize") and given.get("size"):
            parts.append(f"resized to {_size(given['size'])}")
        if given.get("do_center_crop") and given.get("crop_size"):
            parts.append(f"cropped to {_size(given['crop_size'])}")
        if given.get("do_normalize"):
            parts.append(f"normalised by mean {given.get('image_mean')} and deviation {given.get('image_std')}")
        return f"Images are {', '.join(parts)} (`{given['image_processor_type']}`)." if parts else ""
    if "tokenizer_class" in given:
        length = run.data.get("max_length")
        cut = f", cut after {length} tokens" if length else ""
        return f"Texts are split by the saved `{given['tokenizer_class']}`{cut}."
    return ""


def _processors(run: RunRecord) -> str:
    """Where the processors were taken from, if that is not where their models came from."""
    lines = []
    for key, whose, model in (("processor", "The", run.student), ("teacher_processor", "The teacher's", run.teacher)):
        source, known = run.provenance.get(key) or {}, model or {}
        elsewhere = (source.get("name"), source.get("commit")) != (known.get("name"), known.get("commit"))
        if source.get("commit") and elsewhere:
            lines.append(f"{whose} processor is that of {_model(source)}.")
    return " ".join(lines)


def _size(size: Mapping[str, int]) -> str:
    if "height" in size:
        return f"{size['height']}x{size['width']}"
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in size.items())


def _cost(run: RunRecord) -> str:
    parts = []
    environment = run.environment or run.provenance.get("environment") or {}
    if run.results:
        parts.append(f"{run.results['train_steps']:,} optimizer steps in {run.results['train_seconds']:.0f} s")
    elif run.state.get("global_step"):
        parts.append(f"{run.state['global_step']:,} optimizer steps")
    if environment.get("device"):
        processes = environment.get("processes", 1)
        parts.append(f"on {processes} process{'es' if processes > 1 else ''}, device `{environment['device']}`")
    lines = [f"{' '.join(parts)}."] if parts else []
    flos = run.state.get("total_flos")
    if flos:
        lines.append(f"{flos:.2e} floating-point operations by the Trainer's estimate, the student's alone.")
    versions = [f"{k} {environment[k]}" for k in ("hf_kd", "torch", "transformers", "datasets") if environment.get(k)]
    lines += [f"Versions: {', '.join(versions)}."] if versions else []
    return " ".join(lines) or "Not recorded."


def _limits(run: RunRecord, repeats: Sequence[RunRecord]) -> str:
    lines = []
    split, scores = run.scores
    if scores and run.data_name:
        lines.append(f"The scores are of the {split} split of {run.data_name}; other data were not tried.")
    elif scores:
        lines.append("The scores are of one evaluation set; other data were not tried.")
    if run.distilled:
        lines.append("A student takes over its teacher's errors and biases along with what it knows.")
    if not repeats and scores:
        lines.append("With one seed, differences of a few rows say nothing.")
    if run.config.get("problem_type") != REGRESSION:
        lines.append("Every input gets one of the classes above, also one that belongs to none of them.")
    if run.method is not None and run.distilled:
        lines += [f"Of the method: {hazard}" for hazard in run.method.hazards]
        if run.method.status:
            lines.append(f"The method is not, or not wholly, the published one: {run.method.status}.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(run: RunRecord, license: str | None, teacher_license: str | None) -> str:
    own = f"`{license}`." if license else "Not stated."
    if not run.distilled or run.teacher is None:
        return own
    theirs = f"The teacher's is `{teacher_license}`" if teacher_license else "The teacher's was not found"
    return f"{own} {theirs}; what it and the data ask of models made with them is for you to check."


def _citation(run: RunRecord) -> str:
    if run.method is None or not run.distilled:
        return "hf_kd, version " + str(run.provenance.get("hf_kd") or run.environment.get("hf_kd") or "unknown") + "."
    cited = run.method.cited
    year = re.search(r"\d{4}", cited.venue)
    fields = {
        "title": f"{{{cited.title}}}",
        "author": cited.authors.replace(" et al.", " and others").replace(" & ", ", ").replace(", ", " and "),
        "howpublished": cited.venue,
        **({"year": year.group()} if year else {}),
        **({"url": cited.url} if cited.url else {}),
    }
    lines = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
    return _block("bibtex", f"@misc{{{run.method_name},\n{lines}\n}}")
