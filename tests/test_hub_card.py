"""The model card says what a run wrote down, all of it and nothing else, and survives whoever writes after it."""

import json
import re
import shutil

import pytest
import tiny
import yaml
from hub_worker import image_processor, tokenizer
from huggingface_hub import ModelCard
from transformers import PrinterCallback

from hf_kd import METHODS
from hf_kd.model_card import PROVENANCE, read_record, write_card

SECRET = "hf_" + "s3cretTokenThatNobodyMaySee00" * 2


@pytest.fixture
def folder(tmp_path):
    """What a run of `hf-kd train` leaves, by hand, so that every number is known."""
    folder = tmp_path / "run"
    write_run(folder)
    return folder


def write_run(folder, *, seed=42, accuracy=0.9, teacher="org/teacher", method="ctkd", **results):
    folder.mkdir()
    tiny.classifier("bert", 0, classes=2, id2label={0: "no", 1: "yes"}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    test = {"accuracy": accuracy, "f1_macro": 0.8, "ece": 0.05, "loss": 0.3}
    test |= {"agreement": 0.95, "teacher_kl": 0.02, "teacher_accuracy": 0.91} if teacher else {}
    given = {
        "results.json": {
            **{"method": method, "seed": seed, "validation": {"accuracy": 0.5}, "test": test, "data": "org/data"},
            **{"student_parameters": 1234, "teacher_parameters": 5678 if teacher else None, "train_rows": 100},
            **{"labelled_rows": 60, "train_steps": 7, "train_seconds": 8.2, "data_fingerprint": "abc", **results},
        },
        "environment.json": {"hf_kd": "0.1.0", "torch": "2.9", "device": "cuda:0", "processes": 2},
        "trainer_state.json": {
            "total_flos": 1e12,
            "log_history": [
                {"step": 1, "loss": 2.0, "temperature/student_mean": 1.5, "temperature/teacher_mean": 1.5},
                {"step": 2, "loss": 1.0, "temperature/student_mean": 2.5, "temperature/teacher_mean": 2.5},
            ],
        },
        PROVENANCE: {
            "hf_kd": "0.1.0",
            "teacher": {"name": teacher, "commit": "c" * 40, "parameters": 5678, "local": False} if teacher else None,
            "student": {"name": "org/base", "commit": "d" * 40, "parameters": 1234, "class": "BertFor"},
            "method": method,
        },
    }
    resolved = {"seed": seed, "data": {"name": "org/data", "max_length": 16}, "method": {"name": method}}
    (folder / "resolved_config.yaml").write_text(yaml.safe_dump(resolved | {"training": {"learning_rate": 0.01}}))
    for name, content in given.items():
        (folder / name).write_text(json.dumps(content))


def edit(folder, name, **values):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | values))


def section(text, title):
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_card_says_who_taught_what_how(folder):
    """What a reader needs to judge the model: teacher with commit, method with source, data, scores, cost."""
    text = write_card(folder, repo_id="org/student").read_text()
    assert f"[org/teacher](https://huggingface.co/org/teacher) at commit `{'c' * 40}`" in text
    assert f"[org/base](https://huggingface.co/org/base) at commit `{'d' * 40}`" in text
    for part in ("5,678", "1,234", "`ctkd`", METHODS["ctkd"].formula, METHODS["ctkd"].url, "AAAI 2023"):
        assert part in text
    assert "Temperature at the end: 2.5 on both sides." in text
    assert "100 training rows, 60 with a label" in section(text, "Data")
    assert "cut after 16 tokens" in section(text, "Data")
    assert "`no`, `yes`" in section(text, "Data")
    assert "7 optimizer steps in 8 s on 2 processes, device `cuda:0`" in section(text, "Cost")
    assert "95.0% of the rows" in section(text, "Results")
    assert "title = {{Curriculum Temperature for Knowledge Distillation}}" in section(text, "Citation")


def test_the_card_of_a_stream_does_not_count_its_rows(folder):
    """The run is over by then: a card that fails would take hours of training with it."""
    edit(folder, "results.json", train_rows=None, labelled_rows=None)
    text = write_card(folder, repo_id="org/student").read_text()
    assert "Rows streamed and not counted; fingerprint of the rows `abc`" in section(text, "Data")


def test_metadata_are_what_the_hub_reads(folder):
    """A model without them is not found by task, data set or score. The teacher is not the base of the weights."""
    data = ModelCard.load(write_card(folder, repo_id="org/student")).data
    assert data.base_model == "org/base"
    assert data.datasets == ["org/data"]
    assert (data.pipeline_tag, data.library_name) == ("text-classification", "transformers")
    assert set(data.tags) == {"hf_kd", "knowledge-distillation", "method:ctkd", "teacher:org/teacher"}
    assert data.metrics == ["accuracy", "f1"]
    assert data.license is None
    results = {result.metric_name: result for result in data.eval_results}
    assert set(results) == {"accuracy", "f1_macro", "ece", "loss"}
    assert (results["accuracy"].metric_value, results["accuracy"].dataset_type) == (0.9, "org/data")
    assert (results["accuracy"].dataset_split, data.model_name) == ("test", "student")


def test_the_licence_is_only_said_where_it_is_known(folder):
    """A licence made up by a program binds nobody and misleads everybody."""
    assert "Not stated. The teacher's was not found" in write_card(folder).read_text()
    text = write_card(folder, license="mit", teacher_license="cc-by-nc-4.0").read_text()
    assert ModelCard(text).data.license == "mit"
    assert "`mit`. The teacher's is `cc-by-nc-4.0`" in text


def table(folder, **kwargs):
    lines = [line for line in write_card(folder, **kwargs).read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("*"): dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_one_run_shows_no_spread_and_what_was_not_measured_is_called_that(folder):
    """A table that looks like three seeds and is one is a lie with decimals."""
    rows = table(folder)
    assert set(rows) == {"Teacher", "This student"}
    assert rows["Teacher"]["accuracy (test)"] == "0.9100"
    assert rows["Teacher"]["ece (test)"] == ""
    assert rows["This student"]["accuracy (test)"] == "0.9000"
    text = (folder / "README.md").read_text()
    assert "±" not in text
    assert "Not given: the same student trained without a teacher." in text
    scores = json.loads((folder / "results.json").read_text())["test"]
    edit(folder, "results.json", test={"accuracy": scores["accuracy"]})
    assert "the teacher's own score and the same student" in write_card(folder).read_text()


def test_seeds_and_the_student_alone_stand_beside_it(folder, tmp_path):
    """The mean and the spread are those of the runs given: .9, .8 and .7 are .8 ± .1."""
    for seed, accuracy in ((1, 0.8), (2, 0.7)):
        write_run(tmp_path / f"seed{seed}", seed=seed, accuracy=accuracy)
    write_run(tmp_path / "alone", accuracy=0.6, teacher=None, method="kd")
    repeats = [tmp_path / "seed1", tmp_path / "seed2"]
    rows = table(folder, repeats=repeats, baselines=[tmp_path / "alone"])
    assert rows["The same over 3 seeds"]["accuracy (test)"] == "0.8000 ± 0.1000"
    assert rows["The same over 3 seeds"]["seeds"] == "42, 1, 2"
    assert rows["Student alone"]["accuracy (test)"] == "0.6000"
    assert rows["This student"]["accuracy (test)"] == "0.9000", "the weights pushed are this run's"
    assert ModelCard.load(folder / "README.md").data.eval_results[0].metric_value == 0.9


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"seed": 42}, "repeats", "its seed 42 is there already"),
        ({"seed": 1, "data_fingerprint": "xyz"}, "repeats", "other rows (xyz, not abc)"),
        ({"seed": 1, "method": "kd"}, "repeats", "it differs in method"),
        ({"seed": 1}, "baselines", "it was distilled from org/teacher"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(folder, tmp_path, given, kind, words):
    """A mean over different experiments is a number of nothing."""
    write_run(tmp_path / "other", **given)
    with pytest.raises(ValueError, match=re.escape(words)):
        write_card(folder, **{kind: [tmp_path / "other"]})


def test_a_damaged_file_is_named(folder):
    """A card without its results, silently, would be published."""
    (folder / "results.json").write_text('{"test": ')
    with pytest.raises(ValueError, match=r"results\.json cannot be read"):
        write_card(folder)


def test_status_and_hazards_of_the_method_are_said(folder):
    """A reconstruction from an abstract must not look like the published method."""
    edit(folder, "results.json", method="aekt_reconstruction")
    text = write_card(folder).read_text()
    assert "Status: *reconstruction from the abstract*" in section(text, "Training")
    assert METHODS["aekt_reconstruction"].hazards[0] in section(text, "Limits")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_card_with_its_citation(folder, method):
    edit(folder, "results.json", method=method)
    text = write_card(folder).read_text()
    assert f"@misc{{{method}," in text
    assert METHODS[method].cited.title in text


def test_the_label_map_is_a_table(folder):
    """Whose classes were taught as which cannot be guessed from the weights."""
    names = {"teacher_labels": ["tabby", "siamese", "dog"], "student_labels": ["cat", "dog", "bird"]}
    edit(folder, PROVENANCE, label_map={**names, "groups": [[0, 1], [2], []]})
    text = write_card(folder).read_text()
    assert "| cat | tabby, siamese |" in text
    assert "| bird | (none: labels alone) |" in text


def test_a_student_alone_is_called_that(tmp_path):
    write_run(tmp_path / "alone", teacher=None, method="kd")
    text = write_card(tmp_path / "alone").read_text()
    assert "trained without a teacher" in text
    assert "distil" not in text.replace(PROVENANCE, "").split("## Citation")[0].split("---", 2)[2]
    assert ModelCard(text).data.tags == ["hf_kd"]


# ---- Whoever writes before and after


def test_what_a_person_wrote_is_kept(folder):
    """An evening's text lost at the next push."""
    path = write_card(folder)
    mine = path.read_text().replace("---\n\n<!--", "---\n\nMy own words.\n\n<!--", 1) + "\nAnd more.\n"
    path.write_text(mine.replace("library_name", "language: de\nlicense: mit\nlibrary_name"))
    edit(folder, "results.json", train_steps=99)
    again = write_card(folder, tags="mine").read_text()
    assert again.count("My own words.") == again.count("And more.") == again.count("## Results") == 1
    assert again.index("My own words.") < again.index("# run") < again.index("And more.")
    assert "99 optimizer steps" in again
    data = ModelCard(again).data
    assert (data.language, data.license) == ("de", "mit")
    assert "mine" in data.tags
    assert write_card(folder).read_text() == again, "writing twice changes nothing"


def test_a_card_without_our_part_gets_it_at_its_end(folder):
    (folder / "README.md").write_text("---\ntags:\n- x\n---\n\n# By hand\n")
    text = write_card(folder).read_text()
    assert text.index("# By hand") < text.index("## Results")
    assert "x" in ModelCard(text).data.tags


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({}, ['pipeline("text-classification", model="org/x")']),
        ({"problem_type": "multi_label_classification"}, ["top_k=None"]),
    ],
)
def test_the_snippet_is_for_the_task(folder, config, parts):
    edit(folder, "config.json", **config)
    text = section(write_card(folder, repo_id="org/x").read_text(), "How to use")
    assert all(part in text for part in parts)


def run_snippet(folder, capsys):
    code = re.search(r"```python\n(.*?)```", section(write_card(folder).read_text(), "How to use"), flags=re.S)
    exec(compile(code.group(1), "README.md", "exec"), {})  # the reader's first step
    return capsys.readouterr().out


def test_the_snippet_runs_for_texts(folder, capsys):
    assert "'label'" in run_snippet(folder, capsys)


def test_the_snippet_runs_for_pairs(folder, capsys):
    resolved = yaml.safe_load((folder / "resolved_config.yaml").read_text())
    resolved["data"]["text_column"] = ["premise", "hypothesis"]
    (folder / "resolved_config.yaml").write_text(yaml.safe_dump(resolved))
    assert "score" in run_snippet(folder, capsys)
    assert "text_pair" in (folder / "README.md").read_text()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_snippet_runs_for_images(tmp_path, capsys, channels):
    tiny.classifier("vit", 0, classes=3, num_channels=channels).save_pretrained(tmp_path)
    processor = image_processor()
    if channels == 1:
        processor.image_mean, processor.image_std, processor.do_convert_rgb = [0.5], [0.5], False
    processor.save_pretrained(tmp_path)
    assert "LABEL_" in run_snippet(tmp_path, capsys)


# ---- The trainer


def trained(folder, **overrides):
    rows = tiny.table(tiny.examples("bert", 8))
    teacher, student = tiny.classifier("bert", 1), tiny.classifier("bert", 2)
    overrides = {"trainer": {"eval_dataset": rows, "processing_class": tokenizer()}, **overrides}
    built = tiny.train(folder, student, teacher, rows, **overrides)
    built.remove_callback(PrinterCallback)
    return built


def test_a_card_from_python_has_what_there_is(tmp_path):
    """Without `hf-kd train` there is no results.json; the log and both models are there all the same."""
    built = trained(tmp_path, method="dtkd", eval_strategy="epoch", hub_token=SECRET)
    built.create_model_card(license="mit", tags=["mine"], dataset_tags="org/rows", finetuned_from="org/base")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["org/rows"], "org/base")
    assert "mine" in data.tags
    text = (tmp_path / "README.md").read_text()
    assert "| **This student** |" in text
    assert "(evaluation)" in text
    assert "a model made in Python (BertForSequenceClassification)" in text
    assert METHODS["dtkd"].title in text
    assert (tmp_path / "temperature.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "loss.png").is_file()
    built.create_model_card()
    again = ModelCard.load(tmp_path / "README.md").data
    assert (again.license, again.datasets, again.base_model) == ("mit", ["org/rows"], "org/base")


def test_our_card_takes_the_place_of_the_trainers_own(tmp_path):
    """Upstream's draft lists an optimizer and loses what was said; a card must not depend on who writes last."""
    built = trained(tmp_path)
    super(type(built), built).create_model_card()  # the same method of ours, through the class
    ours = (tmp_path / "README.md").read_text()
    from transformers import Trainer

    Trainer.create_model_card(built, tags="kept")
    assert "## Results" not in (tmp_path / "README.md").read_text()
    built.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert ModelCard(text).text == ModelCard(ours).text
    assert "kept" in ModelCard(text).data.tags


def test_every_saved_student_says_where_it_comes_from(tmp_path):
    """A checkpoint that is found a year later."""
    trained(tmp_path, method="ctkd", save_strategy="epoch")
    record = read_record(next(tmp_path.glob("checkpoint-*")))
    assert record.provenance["method"] == "ctkd"
    assert record.teacher["class"] == "BertForSequenceClassification"
    assert any("CTKDTemperature" in line for line in record.provenance["objective"])


def test_the_token_is_written_nowhere(tmp_path, monkeypatch, caplog):
    """`training_args.bin` is pushed with every model, and a public token is gone within minutes."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    built = trained(tmp_path, hub_token=SECRET, save_strategy="epoch")
    built.create_model_card()
    built.save_model()
    built.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not [path.name for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in repr(built.args) + str(built.args) + built.args.to_json_string() + caplog.text
    assert built.args.hub_token == SECRET, "it is still there for pushing"


def test_a_run_folder_that_moves_keeps_its_card(folder, tmp_path):
    """Nothing in a card depends on where the folder lies, but the line that loads it."""
    first = write_card(folder, repo_id="org/x").read_text()
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert write_card(tmp_path / "elsewhere", repo_id="org/x").read_text() == first
