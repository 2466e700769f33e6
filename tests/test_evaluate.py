"""An evaluation scores any classifier in the classes of the data, alone or beside a teacher, class by class."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from tiny import classifier
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification, ViTImageProcessor
from typer.testing import CliRunner

from hf_kd import evaluate_model, load_task
from hf_kd.cli import app
from hf_kd.data.wordpiece import train_wordpiece
from hf_kd.experiment import evaluate_run, run_experiment
from hf_kd.metrics import BatchedMetrics, ClassScore, class_scores, classification_metrics
from hf_kd.registry import ConfigError

DIGITS = [str(digit) for digit in range(10)]
ANIMALS = ["cat", "dog", "emu"]
FEW = {"max_samples": 60}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ORDER = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]


def vit(seed, names=DIGITS, size=8):
    """A ViT with random weights, wide enough in its answers."""
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ViTConfig(image_size=size, patch_size=size // 2, initializer_range=0.5, **ENCODER, **classes)
        return ViTForImageClassification(config)


@pytest.fixture(scope="module")
def task():
    return load_task("embedded/digits")


@pytest.fixture(scope="module")
def folder(task, tmp_path_factory):
    """Two classifiers of digits as folders: `model`, and `teacher`, which is the better one."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("model", fitted(vit(0), task, 20)), ("teacher", fitted(vit(1), task, 60))):
        model.save_pretrained(folder / name)
        task.processing_class.save_pretrained(folder / name)
    return folder


def fitted(model, task, steps):
    """The model after a few steps, so that its answers have to do with the labels."""
    rows = task.train.select(range(256))
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), torch.tensor([int(r["labels"]) for r in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def answers(folder, rows):
    model = AutoModelForImageClassification.from_pretrained(folder)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return model(pixel_values=pixels).logits.double().numpy()


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def labels_of(rows):
    return np.array([int(row["labels"]) for row in rows])


@pytest.fixture(scope="module")
def compared(folder):
    return evaluate_model(folder / "model", "embedded/digits", teacher=folder / "teacher", batch_size=100)


# ---- Numbers


def test_scores_are_those_of_the_logits_on_all_rows(compared, folder, task):
    """A last batch that is counted short, or another split, is a number that nobody can repeat."""
    labels = labels_of(task.test)
    for name, scores in (("model", compared.scores), ("teacher", compared.teacher_scores)):
        logits = answers(folder / name, task.test)
        assert scores["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
        assert scores["loss"] == pytest.approx(-log_softmax(logits)[np.arange(len(labels)), labels].mean(), rel=1e-5)
    assert (compared.rows, compared.labelled, compared.left_out) == (250, 250, 0)
    assert compared.teacher_scores["accuracy"] > compared.scores["accuracy"] > 0.2
    assert compared.data_fingerprint == task.fingerprint


def test_agreement_and_divergence_are_from_the_teacher_to_the_model(compared, folder, task):
    """KL the wrong way round is another number, and both look plausible."""
    student, teacher = (answers(folder / name, task.test) for name in ("model", "teacher"))
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    assert compared.teacher_kl == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1).mean(), rel=1e-5)
    assert compared.agreement == pytest.approx((student.argmax(1) == teacher.argmax(1)).mean())


def test_the_table_by_class_counts_what_was_lost_and_gained(compared, folder, task):
    """The mean hides that the student lost all of one class; exchanged columns would praise it."""
    labels = labels_of(task.test)
    student, teacher = (answers(folder / name, task.test).argmax(1) == labels for name in ("model", "teacher"))
    assert [entry.difference for entry in compared.per_class] == sorted(e.difference for e in compared.per_class)
    assert {entry.name for entry in compared.per_class} == set(DIGITS)
    for entry in compared.per_class:
        own = labels == int(entry.name)
        assert entry.rows == own.sum()
        assert entry.score == pytest.approx(student[own].mean())
        assert entry.teacher_score == pytest.approx(teacher[own].mean())
        assert entry.difference == pytest.approx(student[own].mean() - teacher[own].mean())
        assert (entry.lost, entry.gained) == ((teacher & ~student)[own].sum(), (student & ~teacher)[own].sum())
    assert compared.per_class[0].lost > compared.per_class[0].gained


def test_batches_score_as_all_rows_at_once():
    """Calibration and macro F1 of batches cannot be averaged."""
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 4)), generator.integers(0, 4, 50)
    labels[[3, 40, 41, 42, 43, 44]] = -100
    compute = classification_metrics(list("abcd"), top_k=2, extra=["nll", "brier"])
    batched = BatchedMetrics(compute)
    for start in range(0, 50, 5):
        batched.add(logits[start : start + 5], labels[start : start + 5])
    assert batched.compute() == pytest.approx(compute(type("P", (), {"predictions": logits, "label_ids": labels})))
    assert "logits" not in batched.rows()


# ---- Classes by name


def permuted(folder, to, names=None):
    """The model with its classes in another order, and the names that go with it or others."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[ORDER].clone())
        model.classifier.bias.copy_(model.classifier.bias[ORDER].clone())
    names = [DIGITS[index] for index in ORDER] if names is None else names
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(to)
    ViTImageProcessor.from_pretrained(folder).save_pretrained(to)
    return to


def test_a_model_with_permuted_class_ids_is_scored_right(compared, folder, tmp_path):
    """The class ids of a model from elsewhere are in an order of its own: by id, all would be wrong."""
    own, theirs = permuted(folder / "model", tmp_path / "model"), permuted(folder / "teacher", tmp_path / "teacher")
    found = evaluate_model(own, "embedded/digits", teacher=theirs)
    assert found.scores == pytest.approx(compared.scores, rel=1e-5)
    assert found.teacher_scores == pytest.approx(compared.teacher_scores, rel=1e-5)
    assert found.teacher_kl == pytest.approx(compared.teacher_kl, rel=1e-5)
    assert found.per_class == compared.per_class
    assert found.label_map["3"] == ["3"]


def test_names_that_lie_are_spoken_of(folder, tmp_path):
    """Near chance is often a label order; the evaluation says which order would be right."""
    found = evaluate_model(permuted(folder / "teacher", tmp_path, DIGITS), "embedded/digits")
    assert found.scores["accuracy"] < 0.3
    (said,) = [note for note in found.notes if "permuted" in note]
    assert "'0': '3'" in said
    assert "(its class: the data's)" in said
    assert "teacher" not in said


def test_near_chance_is_said_and_not_refused(folder):
    """It is a result, and usually a wrong processor or an untrained head."""
    found = evaluate_model(vit(7), "embedded/digits", processor=folder / "model", data_options=FEW)
    assert any("guessing among 10 classes gives 10.0%" in note for note in found.notes)


def test_a_model_of_more_classes_chooses_among_those_of_the_data(folder, task, compared):
    """A model of ImageNet on ten of its classes is asked which of the ten."""
    source = AutoModelForImageClassification.from_pretrained(folder / "model")
    model = vit(0, [*DIGITS[:4], "ten", *DIGITS[4:], "eleven"])
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("classifier")}
    model.load_state_dict(state, strict=False)
    places = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        model.classifier.weight[places] = source.classifier.weight
        model.classifier.bias[places] = source.classifier.bias
        model.classifier.bias[[4, 11]] = 100.0  # what it would say otherwise
    found = evaluate_model(model, task)
    assert found.scores == pytest.approx(compared.scores, rel=1e-5)
    assert any("12 classes, and 10 of them are in the data" in note for note in found.notes)


def test_rows_of_classes_that_the_model_does_not_know_are_left_out_and_counted(folder, task):
    """It can only be wrong on them; counted as wrong or silently dropped, the number says something else."""
    names = ["7", "2", "5"]
    source = AutoModelForImageClassification.from_pretrained(folder / "model")
    model = vit(0, names)
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("classifier")}
    model.load_state_dict(state, strict=False)
    with torch.no_grad():
        model.classifier.weight.copy_(source.classifier.weight[[7, 2, 5]])
        model.classifier.bias.copy_(source.classifier.bias[[7, 2, 5]])
    found = evaluate_model(model, task, teacher=folder / "teacher", teacher_processor=folder / "teacher")
    labels = labels_of(task.test)
    kept = np.isin(labels, [2, 5, 7])
    student, teacher = (answers(folder / name, task.test)[kept][:, [2, 5, 7]] for name in ("model", "teacher"))
    right = np.array([2, 5, 7])[student.argmax(1)] == labels[kept]
    assert (found.rows, found.left_out) == (kept.sum(), 250 - kept.sum())
    assert found.scores["accuracy"] == pytest.approx(right.mean())
    assert found.agreement == pytest.approx((student.argmax(1) == teacher.argmax(1)).mean())
    assert {entry.name for entry in found.per_class} == {"2", "5", "7"}
    assert any("does not know 0, 1, 3, 4, 6, … (7 classes): 175 rows" in note for note in found.notes)


def test_a_teacher_of_fewer_classes_is_compared_on_those(folder, task):
    """Its recall on a class that it does not know is not 0: there is none."""
    teacher = vit(3, DIGITS[:6])
    found = evaluate_model(folder / "model", task, teacher=teacher, teacher_processor=folder / "teacher")
    by_name = {entry.name: entry for entry in found.per_class}
    assert by_name["9"].teacher_score is None
    assert by_name["9"].lost is None
    assert by_name["5"].teacher_score is not None
    with torch.no_grad():
        logits = teacher.eval()(pixel_values=torch.stack([row["pixel_values"] for row in task.test])).logits.numpy()
    known = labels_of(task.test) < 6
    right = logits.argmax(1)[known] == labels_of(task.test)[known]
    assert found.teacher_scores["accuracy"] == pytest.approx(right.mean())
    assert any("The teacher does not know 6, 7, 8, 9" in note for note in found.notes)


def test_the_teacher_reads_inputs_of_its_own(folder, tmp_path):
    """A teacher of larger images shown the student's would be wrong, and blamed."""
    vit(5, size=16).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    alone = evaluate_model(tmp_path, "embedded/digits", data_options=FEW)
    beside = evaluate_model(folder / "model", "embedded/digits", teacher=tmp_path, data_options=FEW)
    assert beside.teacher_scores == pytest.approx(alone.scores, rel=1e-4)


# ---- Texts, several labels, numbers


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Text classifiers and tables of their kinds, in one folder."""
    folder = tmp_path_factory.mktemp("texts")
    words = ["return", "the", "value", "of", "a", "list", "or", "dict", "and", "raise"]
    tokenizer = train_wordpiece([" ".join(words)], vocab_size=100, max_length=10**9)
    heads = {
        "animals": {"classes": 3},
        "several": {"classes": 3, "problem_type": "multi_label_classification"},
        "number": {"classes": 1},
        "digits": {"classes": 2},
    }
    names = {"animals": ANIMALS, "several": list("abc"), "digits": ["zero", "one"]}
    for name, given in heads.items():
        model = classifier("bert", 3, vocab_size=len(tokenizer), max_position_embeddings=24, **given)
        if name in names:
            model.config.id2label = dict(enumerate(names[name]))
            model.config.label2id = {label: index for index, label in enumerate(names[name])}
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    generator = np.random.default_rng(0)
    rows = [" ".join(generator.choice(words, size)) for size in generator.integers(2, 40, 50)]
    tables = {
        "animals": [ANIMALS[i % 3] for i in range(50)],
        "several": [[c for c in "abc" if generator.random() < 0.4] for _ in range(50)],
        "number": generator.normal(size=50).tolist(),
        "planets": [["mars", "venus"][i % 2] for i in range(50)],
        "ids": [i % 2 for i in range(50)],
    }
    for name, labels in tables.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(rows, labels, strict=True)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_all_rows_of_a_single_file_are_scored(texts):
    """`load_task` keeps four fifths of a file for training: a tenth of someone's test set is not their test set."""
    whole = evaluate_model(texts / "animals", texts / "animals.jsonl")
    assert (whole.split, whole.rows) == ("all", 50)
    assert sum(entry.rows for entry in whole.per_class) == 50
    part = evaluate_model(texts / "animals", texts / "animals.jsonl", split="test")
    assert (part.split, part.rows) == ("test", 5)
    few = evaluate_model(texts / "animals", texts / "animals.jsonl", data_options={"max_samples": 20})
    assert few.rows == 20


def test_a_split_by_its_owners_name_is_scored_whole(texts, tmp_path):
    """MNLI has two validation splits."""
    lines = (texts / "animals.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:30]))
    (tmp_path / "odd.jsonl").write_text("\n".join(lines[30:]))
    assert evaluate_model(texts / "animals", tmp_path, split="odd").rows == 20


def test_texts_longer_than_the_model_are_cut_to_its_positions(texts):
    """Position 25 of 24 is an index error in the middle of the night."""
    found = evaluate_model(texts / "animals", texts / "animals.jsonl")
    assert any("24 tokens, as many as the model has positions" in note for note in found.notes)


def test_several_labels_per_row_are_scored_by_label(texts):
    """Recall of one class says nothing where rows have several; the table is F1 by label."""
    found = evaluate_model(texts / "several", texts / "several.jsonl", teacher=texts / "several")
    assert (found.measure, found.metric, found.agreement) == ("f1", "map", 1.0)
    assert found.teacher_scores == pytest.approx(found.scores)
    assert np.mean([entry.score for entry in found.per_class]) == pytest.approx(found.scores["f1_macro"])
    assert all(entry.difference == 0 and entry.lost == 0 for entry in found.per_class)


def test_a_number_per_row_has_no_table_by_class(texts):
    found = evaluate_model(texts / "number", texts / "number.jsonl", teacher=texts / "number")
    assert found.per_class == []
    assert found.teacher_mse == 0.0
    assert found.scores["loss"] == pytest.approx(found.scores["mse"], rel=1e-5)
    assert found.teacher_scores == pytest.approx(found.scores, rel=1e-5)


# ---- Refusals


def refused(*arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        evaluate_model(*arguments, **keywords)
    (problem,) = caught.value.problems
    return problem


def test_classes_without_a_partner_are_refused_in_words(texts):
    """By luck, cat is mars. The words are about a model and data, not about a student."""
    said = refused(texts / "animals", texts / "planets.jsonl")
    assert said.startswith("model: the model and the data name their classes differently")
    assert "label_map={'emu': 'venus'}" in said
    assert "teacher_model" not in said
    assert "student" not in said
    said = refused(texts / "digits", texts / "ids.jsonl")
    assert "'zero', 'one'" in said
    found = evaluate_model(texts / "digits", texts / "ids.jsonl", label_map={"zero": 0, "one": 1})
    assert found.label_map == {"0": ["zero"], "1": ["one"]}


@pytest.mark.parametrize(
    ("model", "data", "keywords", "said"),
    [
        ("animals", "embedded/digits", {}, "model: '{}/animals' is a bert, which classifies texts, and the rows of"),
        ("nowhere/at/all", "embedded/digits", {}, "model: there is no folder"),
        ("animals", "embedded/docstrings", {"split": "tset"}, "split: embedded/docstrings has no 'tset'. Did you"),
        ("animals", "{}/animals.jsonl", {"split": "dev2"}, "split: `load_task(splits=...)` names the split 'dev2'"),
        ("animals", "{}/animals.jsonl", {"data_options": {"label_column": "lable"}}, "Did you mean 'label'?"),
        ("animals", "{}/animals.jsonl", {"data_options": {"max_samples": 0}}, "max_samples: expected a whole number"),
        ("animals", "{}/animals.jsonl", {"dtype": "half"}, "dtype: unknown precision 'half'"),
        ("animals", "{}/animals.jsonl", {"device": "tpu"}, "device: 'tpu' is not here. Available: auto, cpu"),
        ("animals", "{}/animals.jsonl", {"batch_size": 0}, "batch_size:"),
        ("animals", "{}/animals.jsonl", {"processor": "{}"}, "processor: '{}' holds no tokenizer"),
        ("animals", "{}/animals.jsonl", {"teacher": "{}/several"}, "teacher: '{}/several' has a head of 3 outputs"),
        ("several", "{}/animals.jsonl", {"data_options": {"problem_type": "single_label_classification"}}, "head of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused_in_words(texts, model, data, keywords, said):
    """Each of these is a traceback otherwise, from the middle of a library."""

    def filled(value):
        return value.replace("{}", str(texts)) if isinstance(value, str) else value

    problem = refused(str(texts / model), filled(data), **{key: filled(value) for key, value in keywords.items()})
    assert filled(said) in problem


def test_a_teacher_of_another_kind_is_refused(texts, folder):
    said = refused(folder / "model", "embedded/digits", teacher=texts / "animals")
    assert said.startswith("teacher: ")
    assert "no rows that both read" in said


def test_an_untrained_head_is_refused(texts, tmp_path):
    """A backbone from the Hub has a head of random numbers, and would get a score."""
    classifier("bert", 0).bert.save_pretrained(tmp_path)
    said = refused(tmp_path, texts / "animals.jsonl", processor=texts / "animals")
    assert "freshly initialised" in said


def test_a_split_without_labels_is_refused(folder, task):
    hidden = task.test.map(lambda row: {"labels": -100})
    with pytest.raises(ConfigError, match="no row of it has a label"):
        evaluate_model(folder / "model", type(task)(**{**vars(task), "test": hidden}))


# ---- The folder of a run


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run_experiment(
        {
            "output_dir": str(out),
            "student": {"config": {"model_type": "vit", **ENCODER, "patch_size": 4}},
            "teacher": {"model": str(folder / "teacher"), "sanity_check": False},
            "data": {"name": "embedded/digits", "labelled": 100, "metrics": ["nll"], "max_samples": {"test": 200}},
            "method": "kd",
            "training": {
                "max_steps": 3,
                "evaluate_with_teacher": True,
                "per_device_train_batch_size": 64,
                "learning_rate": 1e-2,
                "report_to": "none",
                "disable_tqdm": True,
                "use_cpu": True,
                "dataloader_pin_memory": False,
            },
        }
    )
    return out


def test_the_folder_of_a_run_says_on_which_data_and_against_whom(run, folder):
    """Its numbers are those that the run wrote, to the last row."""
    found = evaluate_run(run)
    written = json.loads((run / "results.json").read_text())["test"]
    for key in ("accuracy", "nll", "loss", "ece"):
        assert found.scores[key] == pytest.approx(written[key], rel=1e-4)
    assert found.agreement == pytest.approx(written["agreement"])
    assert found.teacher_kl == pytest.approx(written["teacher_kl"], rel=1e-4)
    assert found.teacher == str(folder / "teacher")
    assert (found.rows, found.split) == (200, "test")
    assert evaluate_run(run, with_teacher=False, data_options={"max_samples": 30}).rows == 30


def test_a_run_compared_with_its_teacher_leaves_the_table_by_class(run):
    """And its card shows the worst of it."""
    written = json.loads((run / "per_class.json").read_text())
    assert (written["split"], written["measure"]) == ("test", "recall")
    assert [ClassScore(**entry) for entry in written["classes"]] == evaluate_run(run).per_class
    worst = written["classes"][0]
    row = f"| {worst['name']} | {worst['rows']} | {worst['teacher_score']:.3f} | {worst['score']:.3f} |"
    assert row in (run / "README.md").read_text()


def test_the_file_of_a_run_allows_no_code(run, tmp_path, monkeypatch):
    """A downloaded folder must not be able to ask for what its user did not allow."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    resolved = yaml.safe_load((run / "resolved_config.yaml").read_text())
    resolved["teacher"] |= {"trust_remote_code": True, "use_safetensors": False}
    (copy / "resolved_config.yaml").write_text(yaml.safe_dump(resolved))
    asked = []
    from hf_kd.experiment import loading

    real = loading.load_teacher
    monkeypatch.setattr(loading, "load_teacher", lambda *a, **k: asked.append(k) or real(*a, **k))
    evaluate_run(copy, data_options=FEW)
    assert len(asked) == 2
    assert all(not given["trust_remote_code"] and given["use_safetensors"] for given in asked)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": {"model": "./gone/teacher"}}, "teacher: there is no folder './gone/teacher'"),
        ({"data": {"path": "gone.csv"}}, "data: the run read 'gone.csv', and there is no such file"),
        ({"data": {"nmae": "x"}}, "resolved_config.yaml: data.nmae: unknown key"),
    ],
    ids=["teacher", "data", "key"],
)
def test_what_a_run_names_and_is_gone_is_said(run, tmp_path, change, said):
    resolved = {**yaml.safe_load((run / "resolved_config.yaml").read_text()), **change}
    (tmp_path / "resolved_config.yaml").write_text(yaml.safe_dump(resolved))
    with pytest.raises(ConfigError) as caught:
        evaluate_run(tmp_path)
    assert said in caught.value.problems[0]


# ---- The command


def evaluate(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_command_prints_the_worst_classes_and_writes_all(folder, tmp_path, compared):
    """What is read and what is kept."""
    out = tmp_path / "deep" / "scores.json"
    result = evaluate(
        folder / "model", "--data", "embedded/digits", "--teacher", folder / "teacher", "--output", out,
        "--metrics", "nll",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{compared.agreement:.4f}" in result.stdout
    assert "only teacher right" in result.stdout
    assert str(out) in result.stdout
    written = json.loads(out.read_text())
    assert written["scores"]["nll"] == pytest.approx(written["scores"]["loss"], rel=1e-5)
    assert len(written["per_class"]) == 10
    assert written["environment"]["torch"]


def test_the_table_says_how_many_classes_it_leaves_out(compared):
    from dataclasses import replace

    from hf_kd.cli.evaluate import _classes_title, classes_table

    many = replace(compared, per_class=compared.per_class * 3)
    assert "the worst 10 of 30 classes" in _classes_title(many)
    assert classes_table(many).row_count == 10
    assert "all 10 classes" in _classes_title(compared)


def test_a_run_is_evaluated_without_further_words(run):
    """The folder is enough, and the result lies in it."""
    result = evaluate(run, "--max-samples", 40, "--no-teacher")
    assert result.exit_code == 0, result.output
    written = json.loads((run / "evaluation.json").read_text())
    assert (written["rows"], written["teacher"]) == (40, None)


def test_the_command_refuses_in_words(texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = evaluate(texts / "animals")
    assert result.exit_code == 2
    assert "data: is needed, because" in result.stderr
    result = evaluate(texts / "animals", "--data", texts / "planets.jsonl")
    assert result.exit_code == 2
    assert "--label-map" in result.stderr
    result = evaluate(texts / "animals", "--no-teacher", "--teacher", "x")
    assert "Leave one of them out" in result.stderr
    assert not Path("evaluation.json").exists()


def test_a_pair_of_text_columns_is_named_by_repeating(texts, tmp_path):
    rows = [json.loads(line) for line in (texts / "animals.jsonl").read_text().splitlines()]
    pairs = [{"a": row["text"], "b": "value", "label": row["label"]} for row in rows]
    datasets.Dataset.from_list(pairs).to_json(tmp_path / "pairs.jsonl")
    options = ("--text-column", "a", "--text-column", "b", "--output", tmp_path / "out.json")
    result = evaluate(texts / "animals", "--data", tmp_path / "pairs.jsonl", *options)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == 50


def test_scores_by_class_without_a_teacher_begin_with_the_lowest():
    rows = {"labelled": np.ones(5), "label": np.array([0, 0, 1, 2, 2]), "right": np.array([1.0, 0, 1, 0, 0])}
    measure, scores = class_scores(rows, ["a", "b", "c", "never"])
    assert measure == "recall"
    assert [(entry.name, entry.score, entry.teacher_score) for entry in scores] == [
        ("c", 0.0, None),
        ("a", 0.5, None),
        ("b", 1.0, None),
    ]
