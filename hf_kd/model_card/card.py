"""The card as a file: metadata, our part of the text, and whatever a person wrote around it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .record import OF_THE_TEACHER, RunRecord, comparable, read_record
from .sections import body

CARD = "README.md"
BEGIN = "<!-- hf_kd: from here on written from the run; what stands outside of these marks is kept -->"
END = "<!-- hf_kd: end -->"
UPSTREAM = "generated automatically according to the information the Trainer had access to"
"""How the Trainer's own draft of a card begins: ours replaces it."""

PEFT_DRAFT = "# Model Card for Model ID"
"""How PEFT's begins, which is written whenever an adapter is saved; its metadata are not what a person said."""

METRICS = {"accuracy": "accuracy", "f1_macro": "f1", "f1_micro": "f1", "f1": "f1", "mse": "mse"}
"""Our names of metrics that the Hub has under a name."""


def write_card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    model_name: str | None = None,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    base_model: str | None = None,
    pipeline_tag: str | None = None,
    datasets: str | Sequence[str] | None = None,
    teacher_license: str | None = None,
    repeats: Iterable[str | Path] = (),
    baselines: Iterable[str | Path] = (),
) -> Path:
    """Write the card of the run in `folder` to its `README.md`.

    Only what the run wrote down is said: no number is made up, and what nobody measured is called that. Metadata that
    stand there already are kept where the run says nothing else, and so is text around our part; the draft that the
    Trainer writes is replaced.

    Args:
        folder: The folder of a run, with a saved student.
        repo_id: Where it is to be found on the Hub; by default the card shows how to load the folder.
        revision: The branch there.
        model_name: The title; by default the name of the repository or the folder.
        language: ISO codes.
        license: Of the student. It is not derived from the teacher's or the data's.
        tags: Added to ours.
        base_model: The checkpoint that the student started from; by default as recorded.
        pipeline_tag: The Hub's name of the task; by default that of the architecture.
        datasets: Ids on the Hub; by default as recorded.
        teacher_license: If known.
        repeats: Folders of the same run under other seeds, for the table.
        baselines: Folders of the student trained without a teacher, for the table.

    Returns:
        The path of the card.

    Raises:
        ValueError: A file of the run cannot be read, or a run cannot be compared with this one.
    """
    run = read_record(folder)
    repeats = comparable(run, map(read_record, repeats), same=True)
    baselines = comparable(run, map(read_record, baselines), same=False)
    path = run.folder / CARD
    known, text = _existing(path)
    name = model_name or (repo_id or run.folder.resolve().name).split("/")[-1]
    given = {
        "language": language,
        "license": license,
        "base_model": base_model or _base_model(run),
        "base_model_relation": _relation(run, base_model),
        "pipeline_tag": pipeline_tag or run.pipeline_tag,
        "library_name": "peft" if run.adapter and not run.merged else "transformers",
        "metrics": list(dict.fromkeys(METRICS[key] for key in run.scores[1] if key in METRICS)) or None,
    }
    kept = {**known, **{key: value for key, value in given.items() if value}}
    data = ModelCardData(
        **{key: value for key, value in kept.items() if key not in _OURS},
        tags=_union(known.get("tags"), _tags(run), tags),
        datasets=_union(known.get("datasets"), datasets or run.hub_dataset) or None,
        model_name=name,
        eval_results=_results(run, given["pipeline_tag"]) or None,
    )
    if not data.eval_results:
        data.model_name = None
    ours = body(
        run,
        name=name,
        location=repo_id or Path(folder).as_posix(),
        on_hub=repo_id is not None,
        revision=revision,
        license=data.license,
        teacher_license=teacher_license,
        repeats=repeats,
        baselines=baselines,
    )
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{_replaced(text, ours)}\n", encoding="utf-8")
    return path


_OURS = ("tags", "datasets", "model-index", "model_name", "eval_results")


def _existing(path: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of the card that is there."""
    if not path.is_file():
        return {}, ""
    try:
        card = ModelCard.load(path, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} begins with metadata that cannot be read ({' '.join(str(error).split())}). Correct or remove it."
        ) from error
    text = card.text.strip()
    known = card.data.to_dict()
    if text.startswith(PEFT_DRAFT):
        return {}, ""
    if UPSTREAM in text:
        known = {key: known[key] for key in ("language", "license", "tags", "datasets", "base_model") if key in known}
        known["tags"] = [tag for tag in known.get("tags", []) if tag != "generated_from_trainer"]
    return known, "" if UPSTREAM in text else text


def is_edited(path: Path) -> bool:
    """Whether the card there has text of a person's own, around our part or in place of it."""
    _, text = _existing(path)
    if BEGIN in text and END in text:
        text = text.split(BEGIN, 1)[0] + text.split(END, 1)[1]
    return bool(text.strip())


def _replaced(text: str, ours: str) -> str:
    """`text` with our part in its place, after what a person wrote where it had none."""
    ours = f"{BEGIN}\n\n{ours.strip()}\n\n{END}"
    if BEGIN in text and END in text:
        before, rest = text.split(BEGIN, 1)
        return f"{before}{ours}{rest.split(END, 1)[1]}".strip()
    return f"{text}\n\n{ours}".strip()


def _union(*groups: str | Iterable[str] | None) -> list[str]:
    lists = ([group] if isinstance(group, str) else group or [] for group in groups)
    return list(dict.fromkeys(item for group in lists for item in group))


def _tags(run: RunRecord) -> list[str]:
    tags = ["hf_kd", *(["peft", str(run.adapter.get("peft_type", "adapter")).lower()] if run.adapter else [])]
    if run.distilled:
        tags += ["knowledge-distillation", *([f"method:{run.method_name}"] if run.method_name else [])]
        teacher = run.teacher or {}
        tags += [f"teacher:{teacher['name']}"] if teacher.get("commit") else []
    return tags


def _base_model(run: RunRecord) -> str | None:
    """The Hub id of the checkpoint that the student started from; the teacher is not one."""
    return run.student["name"] if run.student.get("commit") else None


def _relation(run: RunRecord, base_model: str | None) -> str | None:
    """What the Hub calls the way from the base to what is at the top of the repository."""
    if not (base_model or _base_model(run)):
        return None
    return "adapter" if run.adapter and not run.merged else "finetune"


def _results(run: RunRecord, pipeline_tag: str | None) -> list[EvalResult]:
    """This model's own scores; those of other seeds belong to other weights."""
    split, scores = run.scores
    if not run.data_name or not pipeline_tag:
        return []
    kind = run.hub_dataset or re.sub(r"[^\w./-]+", "-", run.data_name)
    return [
        EvalResult(
            task_type=pipeline_tag,
            dataset_type=kind,
            dataset_name=run.data_name,
            dataset_config=run.data.get("subset"),
            dataset_split=run.data.get("splits", {}).get(split, split),
            dataset_revision=_data_revision(run),
            metric_type=METRICS.get(key, key),
            metric_name=key,
            metric_value=value,
        )
        for key, value in _numbers(scores).items()
        if key not in OF_THE_TEACHER
    ]


def _data_revision(run: RunRecord) -> str | None:
    if not run.hub_dataset:
        return None
    return (run.provenance.get("data") or {}).get("commit") or run.data.get("revision")


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in scores.items() if isinstance(value, (int, float))}
