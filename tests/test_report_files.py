"""Reports of single runs and of folders of runs, the exported file, the part of a README, and the command."""

import json

import pytest
import yaml
from comparison_folders import make_comparison
from test_report_page import Page, page_of
from typer.testing import CliRunner

from hf_kd.cli import app
from hf_kd.registry import ConfigError
from hf_kd.report import export_results, read_results, update_readme, write_report
from hf_kd.report.tables import leaderboard

START, END = "<!-- hf-kd results quick -->", "<!-- end of hf-kd results -->"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("files") / "c", rows=300, epochs=4)


# --- runs ------------------------------------------------------------------------------------------------------------


def make_run(folder, method="kd", seed=0, *, accuracy=0.8, teacher="teachers/big", state="finished", **training):
    """The folder of `hf-kd train`, as far as a report reads it."""
    folder.mkdir(parents=True)
    config = {
        "output_dir": str(folder),
        "seed": seed,
        "teacher": None if method == "alone" else {"model": teacher},
        "student": {"config": {"model_type": "vit"}},
        "data": {"name": "embedded/digits", "seed": seed},
        "method": {"name": "kd" if method == "alone" else method, "temperature": 4.0},
        "training": {"learning_rate": 0.003, **training},
    }
    (folder / "resolved_config.yaml").write_text(yaml.safe_dump(config))
    environment = {"hf_kd": "0.1.0", "torch": "2.15.0", "device": "cpu", "processes": 1, "platform": "Linux"}
    (folder / "environment.json").write_text(json.dumps(environment))
    records = [{"step": s, "epoch": s / 10, "loss": 3 / s, "eval_loss": 2 / s} for s in (10, 20, 30)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": records}))
    test = {"accuracy": accuracy, "loss": 0.5, "ece": 0.1}
    result = {"method": config["method"]["name"], "seed": seed, "test": test, "validation": test}
    result |= {"metric": "accuracy", "data": "embedded/digits", "data_fingerprint": "abc", "train_rows": 1297}
    result |= {"student_parameters": 15490, "train_seconds": 8.0, "train_steps": 30, "total_seconds": 10.0}
    if state == "finished":
        (folder / "results.json").write_text(json.dumps(result))
    return folder


def test_a_single_run_has_a_report(tmp_path):
    page, figures = page_of(make_run(tmp_path / "out" / "kd"))
    assert page.table("Method", "Seeds")["kd"][:2] == ["1", "80.00"]
    assert {"loss", "eval_loss"} <= {figure.name for figure in figures}
    assert "hf-kd train" in page.text
    assert "fingerprint of the rows is abc" in page.text


def test_logs_alone_are_enough(tmp_path):
    """A run that was killed, or copied without the rest."""
    run = tmp_path / "run"
    run.mkdir()
    records = [{"step": s, "loss": 1 / s} for s in (1, 2)]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": records}))
    page, figures = page_of(run)
    assert [figure.name for figure in figures] == ["loss"]
    assert "run (unfinished)" in page.text
    assert "optimizer step" in page.text
    assert write_report(run).page == run / "report.html"


def test_runs_in_one_folder_are_lined_up_by_method_and_seed(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "kd" / f"s{seed}", "kd", seed, accuracy=0.8 + 0.01 * seed)
        make_run(tmp_path / "alone" / f"s{seed}", "alone", seed, accuracy=0.7 + 0.01 * seed, max_steps=30)
    make_run(tmp_path / "ctkd", "ctkd", 0, state="unfinished")
    results = read_results(tmp_path)
    (pair,) = results.pairs
    assert (pair.name, pair.baseline, pair.reference) == ("big → vit", "alone", "kd")
    kd = next(standing for standing in leaderboard(pair) if standing.label == "kd")
    assert (kd.score, kd.to_baseline.value) == ("81.00 ± 1.00", "+10.00")
    page, _ = page_of(tmp_path)
    assert page.table("Setting", "alone", "ctkd", "kd") == {"training.max_steps": ["30", "null", "null"]}
    assert "nothing says that they were meant to be compared" in page.text
    assert "ctkd, seed 0 (unfinished)" in page.text


def test_runs_of_one_method_with_other_settings_are_not_pooled_as_seeds(tmp_path):
    """Their spread would pass for that of seeds."""
    make_run(tmp_path / "a", "kd", 0, accuracy=0.8)
    make_run(tmp_path / "b", "kd", 1, accuracy=0.9, weight_decay=0.2)
    make_run(tmp_path / "c", "kd", 1, accuracy=0.9, weight_decay=0.2)
    results = read_results(tmp_path)
    assert {standing.label: standing.n for standing in leaderboard(results.pairs[0])} == {"kd (a)": 1, "kd (b)": 1}
    assert any("is there twice" in note for note in results.notes)


# --- one file --------------------------------------------------------------------------------------------------------


def test_an_exported_file_carries_all_numbers(folder, tmp_path):
    """Committed beside a configuration, it gives the tables again without a single run folder."""
    path = export_results(folder, tmp_path / "quick.jsonl")
    first, *lines, last = [json.loads(line) for line in path.read_text().splitlines()]
    assert (list(first), list(last), len(lines)) == (["comparison"], ["summary"], 9)
    original, again = read_results(folder), read_results(path)
    assert again.kind == "file"
    assert [leaderboard(pair) for pair in again.pairs] == [leaderboard(pair) for pair in original.pairs]
    assert again.notes == []
    assert export_results(again, tmp_path / "again.jsonl").read_text() == path.read_text()
    assert read_results(tmp_path / "quick.jsonl").test_rows == original.test_rows
    page, _ = page_of(path)
    assert "Nothing over time is known here" in page.text


def test_a_summary_of_other_results_is_not_adopted(folder, tmp_path):
    """A line edited by hand must not keep the verdict that it had."""
    path = export_results(folder, tmp_path / "quick.jsonl")
    lines = path.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"method": "dkd"' in line)
    lines[at] = lines[at].replace('"accuracy": 0.7', '"accuracy": 0.5')
    path.write_text("\n".join(lines) + "\n")
    results = read_results(path)
    assert any("dkd: the stored summary is not one of these results" in note for note in results.notes)
    standings = {standing.label: standing for standing in leaderboard(results.pairs[0])}
    assert standings["dkd"].to_baseline.rows == ""
    assert standings["kd"].to_baseline.rows != ""


def test_a_file_without_its_header_is_refused(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(ConfigError, match="its first line is not"):
        read_results(tmp_path / "other.jsonl")


def test_an_export_has_the_name_by_which_it_is_found(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"does not end in \.jsonl"):
        export_results(folder, tmp_path / "quick.json")
    export_results(folder, tmp_path / "one" / "quick.jsonl")
    assert read_results(tmp_path / "one").name == "quick"


# --- README ----------------------------------------------------------------------------------------------------------


def test_the_table_of_a_readme_is_rewritten_and_nothing_else(folder, tmp_path):
    readme = tmp_path / "README.md"
    before, after = f"# Title\r\n\r\n{START}", f"{END}\r\n\r\nüber | all\r\n"
    readme.write_bytes(f"{before}\r\nold\r\n{after}".encode())
    readme.chmod(0o644)
    assert update_readme(folder, readme)
    text = readme.read_bytes().decode()
    assert text.startswith(before + "\r\n")
    assert text.endswith(after)
    assert "old" not in text
    assert "\n" not in text.replace("\r\n", "")
    assert readme.stat().st_mode & 0o777 == 0o644
    assert not update_readme(folder, readme), "the second time nothing changes"
    assert readme.read_bytes().decode() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_the_table_says_what_it_is_of(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n")
    update_readme(export_results(folder, tmp_path / "quick.jsonl"), readme)
    text = readme.read_text()
    kd = next(standing for standing in leaderboard(read_results(folder).pairs[0]) if standing.label == "kd")
    row = next(line for line in text.splitlines() if line.startswith("| kd |"))
    assert row.startswith(
        f"| kd | 3 | {kd.score} | {kd.to_baseline.value} {kd.to_baseline.interval} *{kd.to_baseline.verdict}* |"
    )
    for words in ("300 rows", "0123abcd4567", "seeds 0, 1 and 2", "NVIDIA H200", "torch 2.15.0", "last epoch"):
        assert words in text
    assert "`hf-kd compare configs/cifar100/quick.yaml`" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count(" | ") for line in table}) == 1


def test_hostile_labels_stay_in_their_cells(tmp_path):
    bad = "a | b `c`\n<img src=x> [link](http://evil.example) <!-- hf-kd results x -->"
    made = make_comparison(tmp_path / "c", methods=("alone", bad), rows=40, epochs=2)
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n")
    update_readme(made, readme)
    text = readme.read_text()
    assert "<img" not in text
    assert "](" not in text.replace("\\]", "")
    assert "http://" not in text
    assert text.count("<!--") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert not update_readme(made, readme)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Title\n", "has no place for the results of 'quick'"),
        (f"<!-- hf-kd results quik -->\n{END}\n", "Did you mean 'quik'"),
        (f"{START}\n", "is not followed by"),
        (f"{START}\n<!-- hf-kd results other -->\n{END}\n", "is not followed by"),
        (f"{START}\n{END}\n{START}\n{END}\n", "2 times"),
    ],
)
def test_a_readme_without_a_clear_place_is_refused_and_left_alone(folder, tmp_path, text, words):
    """Everything behind a lost end marker would be cut away."""
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match=words):
        update_readme(folder, readme)
    assert readme.read_text() == text


def test_a_readme_in_another_encoding_is_refused_in_words(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_bytes(f"{START}\n{END}\n\xfc".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        update_readme(folder, readme)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_its_figures(folder, tmp_path):
    output = tmp_path / "deep" / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert str(output) in done.output
    page = Page(output.read_text(encoding="utf-8"))
    links = [a["href"] for tag, a in page.elements if tag == "a" and not a["href"].startswith("#")]
    assert links
    for link in links:
        assert (output.parent / link).exists(), link


def test_the_command_writes_only_what_it_is_asked_for(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{START}\n{END}\n")
    arguments = ["report", str(folder), "--readme", str(readme), "--export", str(tmp_path / "quick.jsonl")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "was rewritten" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "quick.jsonl"]
    assert not (folder / "report.html").exists()


def test_wrong_input_ends_in_words_and_code_2(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "REPORT: 1 problem" in done.output
