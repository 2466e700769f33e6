"""Reports of runs that were really made, of a comparison at full size, and in a real browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from comparison_folders import METHODS, make_comparison
from test_report_page import page_of

from hf_kd.experiment import load_config, run_experiment
from hf_kd.report import write_report

STUDENT = Path(__file__).parents[1] / "configs" / "embedded" / "digits_student.yaml"
SHORT = ["training.max_steps=4", "training.logging_steps=1", "training.eval_strategy=steps", "training.eval_steps=2"]
SHORT += [
    "training.disable_tqdm=true",
    "data.max_samples=40",
    "data.labelled=20",
    "training.per_device_train_batch_size=8",
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A student alone, and one that learns from it."""
    folder = tmp_path_factory.mktemp("runs")
    alone = ["teacher=null", "method.kd_weight=0", "method.ce_weight=1", f"output_dir={folder / 'alone'}"]
    taught = [f"teacher.model={folder / 'alone'}", "teacher.sanity_check=false", "method=dtkd"]
    taught += ["training.evaluate_with_teacher=true", f"output_dir={folder / 'dtkd'}"]
    for overrides in (alone, taught):
        run_experiment(load_config(STUDENT, [*SHORT, *overrides]))
    return folder


def test_a_run_leaves_all_that_its_report_needs(runs):
    """A key that is renamed in the logs would leave a figure out without a word."""
    page, figures = page_of(runs / "dtkd")
    expected = {"scores", "eval_accuracy", "loss", "eval_loss", "eval_agreement", "loss_components", "temperatures"}
    assert expected | {"agreement", "reliability"} == {figure.name for figure in figures}
    results = json.loads((runs / "dtkd" / "results.json").read_text())
    assert page.table("Method", "Seeds")["dtkd"][1] == f"{results['test']['accuracy'] * 100:.1f}"
    ece = next(figure for figure in figures if figure.name == "reliability").panels[1].note
    assert ece == f"ECE {results['test']['ece'] * 100:.1f} %", "the diagram's error is that of the metric"
    assert results["data_fingerprint"] in page.text
    assert page.table("Class", "Rows")


def test_runs_side_by_side_have_their_student_alone_as_baseline(runs):
    page, figures = page_of(runs)
    board = page.table("Method", "Seeds")
    assert {name.split()[0] for name in board} == {"Teacher", "alone", "dtkd"}
    assert board["dtkd"][2].endswith("no verdict: fewer than 3 seeds")
    assert "difference_to_baseline" in {figure.name for figure in figures}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    made = tmp_path_factory.mktemp("full") / "c"
    return make_comparison(made, methods=METHODS, classes=100, rows=10_000, epochs=240)


@pytest.mark.slow
def test_ten_methods_three_seeds_and_a_hundred_classes_make_a_page_of_reasonable_size(full):
    report = write_report(full)
    assert report.page.stat().st_size < 1_500_000
    assert len(report.figures) == 13


@pytest.mark.slow
def test_a_browser_asks_nobody_complains_about_nothing_and_need_not_scroll_sideways(full, tmp_path):
    """360 pixels are the narrowest phones; the frame's page measures the report from outside."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine to open the page with")
    write_report(full, tmp_path / "report.html")
    measure = "const d = f.contentDocument.documentElement; document.title = `${d.scrollWidth} ${d.clientWidth}`"
    frame = '<iframe id="f" width="360" height="800" style="border:0" src="report.html"></iframe>'
    (tmp_path / "frame.html").write_text(f"<html><body>{frame}<script>f.onload = () => {{ {measure} }}</script>")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--disable-background-networking",
    ]
    command += ["--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=120)
    width, visible = map(int, re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups())
    assert 300 < visible <= 360
    assert width == visible
    assert "CONSOLE" not in done.stderr, "the policy of the page refuses every request, and says so here"
