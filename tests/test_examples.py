"""Every example runs as it stands, in a folder of its own, and does what it says."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_worker
import pytest
import stand_ins
from tiny import classifier

from hf_kd.experiment import load_config, run_experiment

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What the example printed, from an empty folder that it must leave empty."""
    folder = tmp_path_factory.mktemp("example")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "custom_temperature.py")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(folder.iterdir())
    return done.stdout


def test_own_temperature_teaches(output):
    """Above .9; with these labels alone and as many epochs the student stays near .76."""
    assert float(re.search(r"test accuracy: (\S+)", output).group(1)) > 0.9


def test_own_temperature_is_logged_and_learned_under_both_losses(output):
    for loss in ("kd", "dkd"):
        spreads = [float(s) for s in re.findall(rf"'temperature/{loss}/spread': (\S+?)[,}}]", output)]
        assert len(spreads) == 4
        assert spreads[-1] > spreads[0] > 0  # all classes start at one temperature


def test_own_temperature_is_resumed_bit_for_bit(output):
    assert "the same after a resume: True\n" in output


def test_examples_are_listed_and_use_public_names_only():
    """What a user copies must not reach behind a leading underscore, nor edit a table."""
    names = ["custom_temperature.py", "image_classification.py", "text_classification.py"]
    assert [path.name for path in EXAMPLES] == names  # a new one needs a test that runs it
    for path in EXAMPLES:
        assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("hf_kd")]
        names = [alias.name for node in imported for alias in node.names]
        assert names
        assert not [name for name in names if name.startswith("_") or name.isupper()]


QUICK = "--save_strategy no --disable_tqdm True --use_cpu True --dataloader_pin_memory False --learning_rate 2e-3"


def run_example(name, folder, *arguments):
    """What it printed, run in `folder` without a network."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), *QUICK.split(), "--output_dir", "outputs", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fewer_layers_of_a_teacher_are_distilled_one_after_the_other(tmp_path):
    """Each starts from the teacher's own layers and ends as a classifier."""
    overrides = ["training.num_train_epochs=3", "training.disable_tqdm=true", f"output_dir={tmp_path / 'teacher'}"]
    run_experiment(load_config(ROOT / "configs" / "embedded" / "digits_teacher.yaml", overrides))
    given = "--teacher teacher --data embedded/digits --layers 2 1 --max_steps 80 --per_device_train_batch_size 32"
    printed = run_example("image_classification.py", tmp_path, *given.split())
    lines = re.findall(r"^(\d) of 4 layers \[(.*)\]: .* test accuracy \S+ -> (\S+)$", printed, flags=re.M)
    assert [line[:2] for line in lines] == [("2", "0, 3"), ("1", "0")]
    assert all(float(line[2]) > 0.6 for line in lines)


@pytest.mark.parametrize("student", ["other", '{"hidden_size": 8, "intermediate_size": 8}'], ids=["other", "fresh"])
def test_methods_are_compared_over_the_same_pair(student, tmp_path):
    """Also where the student is a checkpoint of other classes that reads other tokens."""
    teacher, tokenizer = hub_worker.teacher("text")
    for part in (teacher, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    (tmp_path / "other").mkdir()
    stand_ins.bert_words(tmp_path / "other")
    classifier("bert", 2, classes=7).save_pretrained(tmp_path / "other")
    for split, rows in hub_worker.rows("text").items():
        (tmp_path / "rows").mkdir(exist_ok=True)
        rows.to_csv(tmp_path / "rows" / f"{split}.csv")
    (tmp_path / "rows" / "labels.txt").write_text("negative\npositive\n")
    given = ["--teacher", "teacher", "--data", "rows", "--student", student, "--methods", "kd", "wttm"]
    printed = run_example("text_classification.py", tmp_path, *given, "--max_steps", "4")
    assert re.findall(r"^(\w+): test accuracy [01]\.\d{3}$", printed, flags=re.M) == ["kd", "wttm"]


def test_the_sweep_prints_its_table_from_the_committed_runs(tmp_path):
    """Finished runs are not run again: with all of them at hand nothing trains, and the numbers in words are these."""
    script = ROOT / "examples" / "benchmarks" / "aekt_sweep.py"
    shutil.copy(ROOT / "configs" / "embedded" / "results" / "aekt_sweep.jsonl", tmp_path / "runs.jsonl")
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if "±" in line][1:]
    assert len(rows) == 3 + 12 + 6
    said = re.findall(r"^    (\.\d{4}) \|", script.read_text(encoding="utf-8"), flags=re.M)
    assert said
    assert set(said) <= {row.split(" | ")[0].lstrip("0") for row in rows}
    assert [path.name for path in tmp_path.iterdir()] == ["runs.jsonl"]


@pytest.mark.parametrize("data", ["clinc150", "banking77"])
def test_the_intents_table_is_that_of_the_committed_runs(data, tmp_path):
    """The numbers in the script's words are those of the lines beside the configurations."""
    script = ROOT / "examples" / "benchmarks" / "intents.py"
    shutil.copy(ROOT / "configs" / data / "results" / "scratch.jsonl", tmp_path / f"{data}.jsonl")
    command = [sys.executable, str(script), str(tmp_path), "--data", data]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = dict(re.findall(r"^\| ([\w ]+) \| 0(\.\d{4}(?: ± 0\.\d{4})?) \|", done.stdout, flags=re.M))
    said = re.findall(
        r"^    (\.\S+(?: \+- \S+)?) +\| (\.\S+(?: \+- \S+)?) +\| ([\w ]+)", script.read_text(), flags=re.M
    )
    column = ["clinc150", "banking77"].index(data)
    assert len(said) == len(rows) == 8
    assert {words[2].strip(): words[column].replace("+- ", "± 0") for words in said} == rows
