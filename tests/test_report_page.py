"""The page of a report: what is on it, that its numbers are the summary's, and that nothing hostile gets through."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from comparison_folders import make_comparison

from hf_kd.registry import ConfigError
from hf_kd.report import read_results, write_report
from hf_kd.report.page import render

HOSTILE = (
    "<script>alert(1)</script>",
    '" onload="alert(2)',
    "</title></style><img src=//evil.example/x>",
    "{{ 7 * 7 }}{% raw %}",
    "x" * 3000,
    "\u202etxet\u202c שלום",
    "half a pair \ud800 and \x1b[31m a bell \x07",
    r"$\frac{x$ & `code` | cell",
    "_private\nnewline",
)
VOID = {"meta", "br", "img", "link", "input", "hr", "base"}


class Page(HTMLParser):
    """The elements of a page, its tables as texts, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.tables, self.texts, self.styles = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "the page is not well nested"

    def handle_data(self, data):
        (self.styles if "style" in self.open else self.texts).append(data)
        if self.tables and self.tables[-1] and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    @property
    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def table(self, *heads):
        """The rows, by their first cell, of the first table whose heads begin so."""
        for table in self.tables:
            if table and [cell.strip() for cell in table[0][: len(heads)]] == list(heads):
                return {" ".join(row[0].split()): [" ".join(cell.split()) for cell in row[1:]] for row in table[1:]}
        raise AssertionError(f"no table starts with {heads}")


def page_of(folder):
    content, figures = render(read_results(folder), Path(folder) / "report.html", "report_figures")
    return Page(content), figures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("comparison") / "c", methods=("alone", "kd", "ctkd", "dtkd"))


@pytest.fixture(scope="module")
def page(folder):
    return page_of(folder)[0]


def test_every_section_and_figure_is_there(page, folder):
    """What is missing without a word is taken for something that was not measured."""
    sections = ("results", "learning", "behaviour", "cost", "runs", "setup", "again")
    assert set(sections) <= set(page.ids)
    figures = ("scores", "difference_to_baseline", "difference_to_kd", "eval_accuracy", "loss", "eval_loss")
    figures += ("eval_agreement", "loss_components", "temperatures", "agreement", "reliability", "cost", "seconds")
    assert {f"figure-{name}" for name in figures} <= set(page.ids)
    links = [a["href"] for tag, a in page.elements if tag == "a" and a["href"].startswith("#")]
    assert {link[1:] for link in links} <= set(page.ids), "a link leads nowhere"
    assert len(page.ids) == len(set(page.ids))
    header = json.loads((folder / "comparison.json").read_text())
    for word in (header["command"], header["data"]["fingerprint"], "2.15.0", "NVIDIA H200", "0, 1, 2"):
        assert word in page.text
    assert "What failed" not in page.text


def test_numbers_on_the_page_are_those_of_the_summary(page, folder):
    """A table that rounds or counts in its own way contradicts the file beside it."""
    summary = json.loads((folder / "summary.json").read_text())["pairs"]["resnet32x4-resnet8x4"]
    board = page.table("Method", "Seeds")

    def shown(value):
        return f"{value * 100:.1f}".replace("-", "−")

    def signed(value):
        return f"{value * 100:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")

    def find(label):
        return next(cells for name, cells in board.items() if name.split()[0] == label)

    for entry in summary["methods"]:
        cells = find(entry["label"])
        assert cells[0] == str(entry["n"])
        assert cells[1] == f"{shown(entry['mean'])} ± {shown(entry['sd'])}"
        for place, key in ((2, "to_baseline"), (3, "to_kd")):
            if entry[key] is None:
                assert cells[place] == "–"
                continue
            low, high = entry[key]["ci"]
            assert cells[place].startswith(f"{signed(entry[key]['difference'])} [{signed(low)}, {signed(high)}]")
            assert cells[place].endswith(entry[key]["verdict"])
        assert cells[5] == shown(entry["ece"])
        if entry["agreement"] is not None:
            assert cells[4] == shown(entry["agreement"])
    rows = [row for table in page.tables for row in table if row and row[0] == "kd" and len(row) == 14]
    low, high = next(e for e in summary["methods"] if e["label"] == "kd")["to_baseline"]["rows_ci"]
    assert f"[{signed(low)}, {signed(high)}]" in rows[0]


def test_scores_after_training_are_no_part_of_a_curve(folder):
    """They are of two splits, and would end every curve in a drop."""
    history = read_results(folder).runs[0].history
    assert len(history) == 24
    assert all(record.get("eval_accuracy") != 0.0 and "train_runtime" not in record for record in history)


def test_methods_are_ranked_and_the_teacher_stands_above(page, folder):
    summary = json.loads((folder / "summary.json").read_text())["pairs"]["resnet32x4-resnet8x4"]
    means = {entry["label"]: entry["mean"] for entry in summary["methods"]}
    names = [name.split()[0] for name in page.table("Method", "Seeds")]
    assert names == ["Teacher", *sorted(means, key=means.get, reverse=True)]


def outward(page):
    """Everything on a page that could make a browser ask somebody for something."""
    found = [f"<{t}>" for t, _ in page.elements if t in ("script", "iframe", "link", "object", "embed", "base", "img")]
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name.startswith("on") or (name == "style" and "url" in value):
                found.append(f"{tag}.{name}={value[:60]}")
            if name in ("src", "srcset", "action", "formaction", "data", "poster", "background", "ping"):
                found.append(f"{tag}.{name}={value[:60]}")
            if name in ("href", "xlink:href") and not value.startswith(("#", "./")):
                found.append(f"{tag}.{name}={value[:60]}")
    return found + re.findall(r"url\(|@import|http", "".join(page.styles))


def test_the_page_asks_nobody_for_anything(page):
    """It is to open on a train, and to say nothing to anyone about who reads it."""
    assert outward(page) == []
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a]
    assert policies[0].startswith("default-src 'none'")


def test_figures_say_what_they_show(page):
    """Who cannot see them hears the values; a caption says how many seeds and what a band is."""
    drawings = [a for tag, a in page.elements if tag == "svg" and a["class"] == "chart"]
    assert drawings
    assert all(a["role"] == "img" and len(a["aria-label"]) > 10 for a in drawings)
    assert "Lines are means over n = 3 seeds; bands reach from the lowest to the highest seed" in page.text
    scrolling = [a for _, a in page.elements if "scroll" in a.get("class", "").split()]
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in scrolling)
    heads = [a for tag, a in page.elements if tag == "th"]
    assert all(a["scope"] in ("row", "col") for a in heads)


def test_hostile_names_are_text(tmp_path, page):
    """Labels and class names come from files of others; one `<script>` in a class name is code on every reader."""
    names = [*(word.replace("\ud800", "") for word in HOSTILE), "last"]
    bad = make_comparison(
        tmp_path / "c",
        methods=("alone", HOSTILE[0], HOSTILE[3], HOSTILE[5], HOSTILE[7]),
        seeds=(0, 1),
        pairs=((HOSTILE[2], HOSTILE[1]),),
        rows=60,
        epochs=3,
        name=HOSTILE[0],
        class_names=names,
        states={(HOSTILE[3], 1): "failed"},
    )
    lines = (bad / "results.jsonl").read_text().replace("FloatingPointError", "<b onclick=x>")
    (bad / "results.jsonl").write_text(lines)
    report = write_report(bad)  # PNGs too
    hostile = Page(report.page.read_text(encoding="utf-8"))
    assert outward(hostile) == []
    assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements} | {"g", "use"}
    assert {k for _, a in hostile.elements for k in a} <= {k for _, a in page.elements for k in a} | {"colspan"}
    for word in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], "<b onclick=x>", "half a pair"):
        assert word in hostile.text
    assert "\u202e" not in hostile.text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.figures)


def test_a_half_written_line_is_left_out_and_said(tmp_path):
    """A run that is killed while its line is written; the summary may be ahead of what is left."""
    made = make_comparison(tmp_path / "c", methods=("alone", "kd"), rows=60, epochs=3)
    text = (made / "results.jsonl").read_text()
    (made / "results.jsonl").write_text(text[:-40])
    page, _ = page_of(made)
    assert "The last line of results.jsonl is half-written" in page.text
    assert page.table("Method", "Seeds")["kd"][0] == "2 of 3"
    assert "5 finished, 1 incomplete" in page.text
    assert "kd, seed 2 (unfinished)" in page.text


def test_broken_files_are_said_and_do_not_stop_the_report(tmp_path):
    """One broken run among thirty is no reason to show none."""
    made = make_comparison(tmp_path / "c", methods=("alone", "kd"), rows=60, epochs=3, with_summary=False)
    runs = made / "runs" / "resnet32x4-resnet8x4" / "kd"
    (runs / "seed0" / "trainer_state.json").write_text("{")
    (runs / "seed1" / "test_rows.safetensors").write_bytes(b"no")
    with (made / "results.jsonl").open("a") as file:
        file.write('[1]\n{"pair": 3}\n')
        escaping = {"pair": "p", "method": "kd", "seed": 0, "state": "failed", "folder": "../../.."}
        file.write(json.dumps(escaping) + "\n")
    (made / "summary.json").write_text("[]")
    page, _ = page_of(made)
    for words in (
        "trainer_state.json in",
        "test_rows.safetensors",
        "cannot be read",
        "without pair, method",
        "outside",
    ):
        assert words in page.text, words
    assert page.table("Method", "Seeds")["kd"][0] == "3"


def test_what_failed_or_is_incomplete_stands_at_the_top(tmp_path):
    """A mean over the runs that happened to survive must not pass for the whole."""
    states = {("ctkd", 0): "failed", ("ctkd", 1): "unfinished", ("ctkd", 2): "not started"}
    made = make_comparison(tmp_path / "c", methods=("alone", "kd", "ctkd"), rows=60, epochs=6, states=states)
    page, _ = page_of(made)
    assert page.text.index("What failed, and what is incomplete") < page.text.index("Agreement, %")
    assert "ctkd, seed 0 failed: FloatingPointError: `kd_loss` became non-finite" in page.text
    assert "ctkd, seed 1 (unfinished)" in page.text
    assert "ctkd, seed 2 (not started)" in page.text
    assert page.table("Method", "Seeds")["ctkd"][0] == "0 of 3"
    drawn = {a.get("aria-label", "") for tag, a in page.elements if tag == "svg"}
    assert any("ctkd" in words for words in drawn), "the curve of an unfinished run, from its checkpoint"


def test_a_protocol_that_chose_on_the_test_rows_is_flagged(tmp_path):
    made = make_comparison(tmp_path / "c", methods=("alone", "kd"), rows=60, epochs=3, protocol="best_test")
    page, _ = page_of(made)
    assert "Mind: The column of the best epoch was chosen on the test rows" in page.text
    summary = json.loads((made / "summary.json").read_text())["pairs"]["resnet32x4-resnet8x4"]
    best = next(e for e in summary["methods"] if e["label"] == "kd")["best_test"]["mean"]
    assert page.table("Method", "Seeds")["kd"][-1].startswith(f"{best * 100:.1f}")
    assert page.table("Method", "Seeds")["kd"][-1].endswith("⚠")


def test_two_seeds_give_no_verdict(tmp_path):
    made = make_comparison(tmp_path / "c", methods=("alone", "wttm"), rows=60, epochs=3, seeds=(0, 1))
    page, _ = page_of(made)
    assert page.table("Method", "Seeds")["wttm"][2].endswith("no verdict: fewer than 3 seeds")
    assert "Mind: Fewer than 3 seeds" in page.text
    assert not {"helps", "hurts"} & {
        word for table in page.tables for row in table for cell in row[1:] for word in cell.split()
    }


def test_an_old_summary_is_not_believed(tmp_path):
    """A summary from before the last run would be quoted as if it were of all runs."""
    made = make_comparison(tmp_path / "c", methods=("alone", "kd"), rows=60, epochs=3)
    summary = json.loads((made / "summary.json").read_text())
    entry = summary["pairs"]["resnet32x4-resnet8x4"]["methods"][1]
    right, entry["mean"], entry["n"] = entry["mean"], 0.123, 2
    (made / "summary.json").write_text(json.dumps(summary))
    page, _ = page_of(made)
    assert page.table("Method", "Seeds")["kd"][1].startswith(f"{right * 100:.1f}")
    assert "summary.json is older than results.jsonl" in page.text


def test_several_pairs_and_sizes_are_kept_apart(tmp_path):
    pairs = (("wide", "narrow"), ("deep", "shallow"))
    made = make_comparison(tmp_path / "c", methods=("alone", "kd"), rows=60, epochs=3, pairs=pairs)
    page, figures = page_of(made)
    assert {"pair-1", "pair-2", "figure-scores_1", "figure-scores_2"} <= set(page.ids)
    cost = next(figure for figure in figures if figure.name == "cost")
    assert [panel.x_label for panel in cost.panels] == ["parameters", "latency, ms"]
    assert len({figure.name for figure in figures}) == len(figures), "two figures would share a PNG"


def test_a_folder_without_anything_is_refused_in_words(tmp_path):
    with pytest.raises(ConfigError, match="neither a comparison"):
        read_results(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        read_results(tmp_path / "nowhere")
    make_comparison(tmp_path / "one", methods=("alone",), rows=20, epochs=1, seeds=(0,))
    with pytest.raises(ConfigError, match=r"holds comparisons \(one\)"):
        read_results(tmp_path)
    header = json.loads((tmp_path / "one" / "comparison.json").read_text())
    (tmp_path / "one" / "comparison.json").write_text(json.dumps({**header, "format": 9}))
    with pytest.raises(ConfigError, match="format 9"):
        read_results(tmp_path / "one")


def test_a_report_needs_no_library_of_models(folder, tmp_path):
    """It is to be written where the logs lie, on a laptop or a login node."""
    code = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "datasets", "accelerate", "torchvision", "peft", "evaluate"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from hf_kd.report import read_results
from hf_kd.report.page import render
from pathlib import Path
content, figures = render(read_results(sys.argv[1]), Path(sys.argv[2]), "f")
print(len(figures))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(folder), str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 12
