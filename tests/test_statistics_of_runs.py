"""The statistics of a comparison: against independent computations, and by simulation where a promise is a rate."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from hf_kd.statistics_of_runs import (
    bootstrap_interval,
    holm,
    latest,
    paired_difference,
    summarise,
    verdict,
)
from hf_kd.test_rows import TestRows

ALONE = {"label": "alone", "baseline": True, "section": {"ce_weight": 1.0, "kd_weight": 0.0}}


def method(label, **section):
    return {"label": label, "baseline": False, "section": {"name": label, **section}}


def comparison(names=("kd",), seeds=(0, 1, 2), pairs=("default",), **changed):
    labels = ["alone", *names]
    given = {
        "metric": "accuracy",
        "greater_is_better": True,
        "protocol": "last",
        "seeds": list(seeds),
        "pairs": [{"name": name, "methods": labels} for name in pairs],
        "methods": [ALONE, *(method(label) for label in names)],
    }
    return {**given, **changed}


def line(label, seed, value, pair="default", **changed):
    given = {"pair": pair, "method": label, "seed": seed, "state": "finished", "test": {"accuracy": value}}
    return {**given, **changed}


def rows_with(right, label=None):
    """Test rows of which these are answered right."""
    right = np.asarray(right, dtype=bool)
    label = np.ones(len(right), np.int32) if label is None else np.asarray(label, np.int32)
    prediction = np.where(right, label, label + 1).astype(np.int32)
    confidence = np.full(len(right), 0.5, np.float32)
    return TestRows(label, prediction, confidence, np.where(right, 0.1, 2.0).astype(np.float32), ("a", "b", "c"))


def no_rows(line):
    return None


def entry(summary, label, pair="default"):
    return next(entry for entry in summary["pairs"][pair]["methods"] if entry["label"] == label)


# ---- The parts


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired_difference_is_that_of_scipy(n):
    generator = np.random.default_rng(n)
    first, second = generator.normal(0.9, 0.01, n), generator.normal(0.89, 0.01, n)
    expected = stats.ttest_rel(first, second)
    found = paired_difference(first, second)
    assert found.difference == pytest.approx((first - second).mean(), abs=1e-12)
    assert found.sd == pytest.approx((first - second).std(ddof=1), abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)  # differences are rounded to 12 decimals
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), abs=1e-10)


def test_paired_difference_of_three_by_hand():
    """d = 1, 2, 3: mean 2, s 1, t = 2√3 with 2 degrees of freedom, whose distribution has a closed form."""
    found = paired_difference([2, 4, 6], [1, 2, 3])
    t = 2 * 3**0.5
    assert (found.difference, found.sd) == (2, 1)
    assert found.p == pytest.approx(1 - t / (2 + t * t) ** 0.5, rel=1e-12)
    assert found.interval[1] - 2 == pytest.approx(4.302652729911275 / 3**0.5, rel=1e-9)  # tables: t(.975, 2) = 4.3027


def test_equal_differences_are_certain_and_none_is_not():
    """Rounding must not decide: .3 - .2 and .2 - .1 differ in the last bit, and t would be huge or undefined."""
    same = paired_difference([0.3, 0.2, 0.7], [0.2, 0.1, 0.6])
    assert (same.sd, same.p) == (0, 0)
    assert same.interval == pytest.approx((0.1, 0.1))
    none = paired_difference([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (none.difference, none.sd, none.p) == (0, 0, 1)


def test_one_pair_has_a_difference_alone():
    found = paired_difference([0.9], [0.8])
    assert found.difference == pytest.approx(0.1)
    assert (found.sd, found.interval, found.p) == (None, None, None)


@pytest.mark.parametrize("series", [([], []), ([1, 2], [1]), ([[1]], [[1]])])
def test_series_that_are_no_pairs_are_refused(series):
    with pytest.raises(ValueError, match="paired_difference"):
        paired_difference(*series)


def test_holm_multiplies_by_what_is_left():
    """m = 4: .005·4, .01·3, .03·2, and .04·1 raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_sequential_procedure_rejects():
    """Holm as published: go through the sorted p's while p ≤ α / (m - k + 1), and stop at the first that is not."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = generator.beta(0.3, 3, size=5).tolist()
        rejected = set()
        for k, index in enumerate(sorted(range(5), key=p_values.__getitem__)):
            if p_values[index] > 0.05 / (5 - k):
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


@pytest.mark.parametrize("kind", ["few values", "many values"])
def test_bootstrap_is_that_of_scipy(kind):
    """Both ways of drawing; two intervals of 10,000 draws differ by about 2 % of their width."""
    generator = np.random.default_rng(3)
    values = generator.normal(0.1, 1, 2_000)
    if kind == "few values":
        values = np.round(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", batch=500, random_state=generator
    ).confidence_interval
    found = bootstrap_interval(values)
    width = expected.high - expected.low
    assert found == pytest.approx(tuple(expected), abs=0.06 * width)
    assert found == bootstrap_interval(values), "the same each time"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((3, 0.1, 0.01, (0.02, 0.2)), "helps"),
        ((3, -0.1, 0.01, (-0.2, -0.02)), "hurts"),
        ((3, 0.1, 0.06, (0.02, 0.2)), "no evidence"),  # the seeds do not agree
        ((3, 0.1, 0.01, (-0.02, 0.2)), "no evidence"),  # other rows might not show it
        ((3, 0.1, 0.01, (-0.2, -0.02)), "no evidence"),  # contradiction
        ((3, 0.0, 1.0, (0.0, 0.0)), "no evidence"),
        ((3, 0.1, 0.01, None), "helps"),
        ((2, 0.1, 0.0001, (0.02, 0.2)), None),
        ((3, 0.1, None, None), None),
    ],
)
def test_verdict_wants_seeds_and_rows(given, expected):
    assert verdict(*given) == expected


def test_less_can_be_better():
    assert verdict(3, -0.1, 0.01, (-0.2, -0.02), greater_is_better=False) == "helps"


# ---- Rates, by simulation


def test_interval_covers_the_truth_as_often_as_it_says():
    """2,000 sets of 3: the standard error of a rate of .95 is .005."""
    generator = np.random.default_rng(1)
    base = generator.normal(0.9, 0.02, (2_000, 3))  # what both methods share under a seed
    first, second = base + generator.normal(0.01, 0.01, base.shape), base + generator.normal(0, 0.01, base.shape)
    intervals = [paired_difference(a, b).interval for a, b in zip(first, second, strict=True)]
    covered = np.mean([low <= 0.01 <= high for low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.02)


def simulated(repeats, seeds, effects, rows=400, seed=0):
    """Verdicts on methods that are right on each row with a chance of the row's own, raised by `effects`."""
    generator = np.random.default_rng(seed)
    labels = [f"m{i}" for i in range(len(effects))]
    given = comparison(labels, range(seeds))
    found = []
    for _ in range(repeats):
        hardness = generator.beta(6, 1, rows)
        right = {
            (label, s): generator.random(rows) < np.clip(hardness + effect, 0, 1)
            for label, effect in zip(["alone", *labels], [0, *effects], strict=True)
            for s in range(seeds)
        }
        lines = [line(label, s, answers.mean()) for (label, s), answers in right.items()]
        summary = summarise(lines, given, lambda one, right=right: rows_with(right[one["method"], one["seed"]]))
        found.append([entry(summary, label)["to_baseline"]["verdict"] for label in labels])
    return np.array(found)


def test_methods_that_do_nothing_are_seldom_said_to():
    """Four methods without an effect: in at most one comparison of twenty any of them gets a verdict.

    150 comparisons: the standard error of .05 is .018, so .1 is nearly three of them above. It is less in truth,
    because the rows must agree.
    """
    found = simulated(repeats=150, seeds=3, effects=(0, 0, 0, 0))
    assert (found != "no evidence").any(1).mean() < 0.1


def test_a_clear_effect_is_found():
    """A verdict that never comes is safe and useless."""
    found = simulated(repeats=40, seeds=5, effects=(0.06, -0.06))
    assert (found[:, 0] == "helps").mean() > 0.6
    assert (found[:, 1] == "hurts").mean() > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_verdicts_stay_below_five_percent(seeds):
    """3,000 comparisons: the standard error is .004."""
    found = simulated(repeats=3_000, seeds=seeds, effects=(0, 0, 0), seed=seeds)
    assert (found != "no evidence").any(1).mean() < 0.05 + 0.012


# ---- A comparison


def test_summary_is_made_of_the_seeds_that_both_have():
    values = {"alone": [0.80, 0.82, 0.81, None], "kd": [0.85, 0.86, 0.88, 0.99], "x": [0.84, None, 0.83, None]}
    lines = [line(label, s, v) for label, row in values.items() for s, v in enumerate(row) if v is not None]
    summary = summarise(lines, comparison(["kd", "x"], range(4)), no_rows)
    pair, kd, x = summary["pairs"]["default"], entry(summary, "kd"), entry(summary, "x")
    assert (pair["baseline"], pair["reference"]) == ("alone", "kd")
    assert kd["n"] == 4
    assert kd["mean"] == pytest.approx(0.895)
    assert kd["sd"] == pytest.approx(np.std(values["kd"], ddof=1))
    assert (kd["min"], kd["max"]) == (0.85, 0.99)
    expected = stats.ttest_rel([0.85, 0.86, 0.88], [0.80, 0.82, 0.81])
    assert kd["to_baseline"]["n"] == 3
    assert kd["to_baseline"]["p"] == pytest.approx(expected.pvalue)
    assert kd["to_baseline"]["ci"] == pytest.approx(list(expected.confidence_interval()))
    other = stats.ttest_rel([0.84, 0.83], [0.80, 0.81]).pvalue
    assert kd["to_baseline"]["p_holm"] == pytest.approx(min(1, 2 * min(expected.pvalue, other)))
    assert kd["to_kd"] is None
    assert x["to_kd"]["n"] == 2
    assert x["to_kd"]["p_holm"] == x["to_kd"]["p"], "a family of one"
    assert x["to_kd"]["verdict"] is None
    assert entry(summary, "alone")["to_baseline"] is None
    missing = [{"method": "alone", "seed": 3}, {"method": "x", "seed": 1}, {"method": "x", "seed": 3}]
    assert pair["incomplete"] == [{**run, "state": "missing"} for run in missing]
    assert summary["runs"] == {"wanted": 12, "finished": 9, "failed": 0}
    json.dumps(summary, allow_nan=False)


def test_a_failed_run_counts_as_missing_until_it_is_finished():
    failed = line("kd", 0, 0, state="failed", error="OutOfMemoryError: too much", test={})
    lines = [line("alone", 0, 0.8), failed]
    summary = summarise(lines, comparison(seeds=[0]), no_rows)
    expected = [{"method": "kd", "seed": 0, "state": "failed", "error": "OutOfMemoryError: too much"}]
    assert summary["pairs"]["default"]["incomplete"] == expected
    assert entry(summary, "kd") | {"label": "kd", "n": 0, "mean": None, "to_baseline": None} == entry(summary, "kd")
    assert summary["runs"]["failed"] == 1
    for later in ([line("kd", 0, 0.9)], [line("kd", 0, 0.9), failed]):
        again = summarise([*lines, *later], comparison(seeds=[0]), no_rows)
        assert again["pairs"]["default"]["incomplete"] == []
        assert entry(again, "kd")["mean"] == 0.9
    assert len(latest([*lines, *lines])) == 2


def test_rows_are_paired_and_averaged_over_seeds():
    """A method that is better on every row it differs on: the interval over rows is that of the mean difference."""
    generator = np.random.default_rng(5)
    base = [generator.random(300) < 0.8 for _ in range(3)]
    better = [right | (generator.random(300) < 0.3) for right in base]
    right = {("alone", s): base[s] for s in range(3)} | {("kd", s): better[s] for s in range(3)}
    lines = [line(label, s, answers.mean()) for (label, s), answers in right.items()]
    labels = np.ones(300, np.int32)
    summary = summarise(lines, comparison(), lambda one: rows_with(right[one["method"], one["seed"]], labels))
    found = entry(summary, "kd")["to_baseline"]
    differences = np.mean([b.astype(float) - a for a, b in zip(base, better, strict=True)], axis=0)
    assert found["rows_ci"] == pytest.approx(list(bootstrap_interval(differences)))
    assert found["rows_ci"][0] < found["difference"] < found["rows_ci"][1]
    assert found["difference"] == pytest.approx(differences.mean())


def test_unlabelled_test_rows_do_not_count():
    label = [1, -100, 1, -100]
    summary = summarise(
        [line(m, s, v) for m, v in (("alone", 0.5), ("kd", 1.0)) for s in range(3)],
        comparison(),
        lambda one: rows_with([True, False, one["method"] == "kd", False], label),
    )
    assert entry(summary, "kd")["to_baseline"]["rows_ci"] == pytest.approx([0.0, 1.0])


def test_runs_on_other_rows_are_not_paired():
    """Row i of one is not row i of the other; a mean over their differences would mean nothing."""
    lines = [line(m, s, 0.5) for m, s in itertools.product(("alone", "kd"), range(3))]
    labels = {"alone": [1, 1, 0, 0], "kd": [0, 0, 1, 1]}
    summary = summarise(lines, comparison(), lambda one: rows_with([True] * 4, labels[one["method"]]))
    assert entry(summary, "kd")["to_baseline"]["rows_ci"] is None


def test_other_metrics_have_no_interval_over_rows():
    lines = [line(m, s, 0, test={"f1": 0.1 * s}) for m in ("alone", "kd") for s in range(3)]
    summary = summarise(lines, comparison(metric="f1"), lambda one: rows_with([True, False]))
    assert entry(summary, "kd")["to_baseline"]["rows_ci"] is None
    assert entry(summary, "kd")["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ([method("kd"), method("dkd")], "kd"),
        ([method("kd T=2", name="kd"), method("dkd")], "kd T=2"),
        ([method("kd T=2", name="kd"), method("kd T=4", name="kd")], None),
        ([method("dkd")], None),
    ],
)
def test_the_reference_is_plain_kd_where_it_is_clear_which(methods, expected):
    labels = [entry["label"] for entry in methods]
    given = comparison(labels, methods=[ALONE, *methods])
    assert summarise([], given, no_rows)["pairs"]["default"]["reference"] == expected


def test_best_over_epochs_stands_apart_and_is_flagged():
    """The test split chose that epoch: its number is never `mean`, and never decides."""
    lines = [
        line(m, s, v, best_test_accuracy=v + 0.05, best_test_epoch=3)
        for m, v in (("alone", 0.8), ("kd", 0.9))
        for s in range(3)
    ]
    summary = summarise(lines, comparison(protocol="best_test"), no_rows)
    kd = entry(summary, "kd")
    assert kd["mean"] == pytest.approx(0.9)
    assert kd["best_test"]["mean"] == pytest.approx(0.95)
    assert kd["to_baseline"]["difference"] == pytest.approx(0.1)
    assert "flatter" in summary["warnings"][0]
    assert summarise(lines, comparison(), no_rows)["warnings"] == []


def test_agreement_and_calibration_are_means_over_seeds():
    lines = [line("kd", s, 0.9, test={"accuracy": 0.9, "agreement": 0.8 + 0.1 * s, "ece": 0.02}) for s in range(2)]
    kd = entry(summarise(lines, comparison(), no_rows), "kd")
    assert kd["agreement"] == pytest.approx(0.85)
    assert kd["ece"] == pytest.approx(0.02)


def test_unequal_starts_are_said():
    """Other initial weights or another order of rows, and the difference is not the method's alone."""
    same = {"initial_weights": "aa", "data_order": "bb"}
    lines = [line("alone", 0, 0.8, **same), line("kd", 0, 0.9, **same), line("x", 0, 0.9, **same)]
    assert summarise(lines, comparison(["kd", "x"]), no_rows)["warnings"] == []
    lines[1] |= {"data_order": "cc"}
    (said,) = summarise(lines, comparison(["kd", "x"]), no_rows)["warnings"]
    assert said.startswith("default, seed 0: kd had the rows in another order than alone, x")
    lines[1] |= {"data_order": None}  # a run that was taken up again
    assert summarise(lines, comparison(["kd", "x"]), no_rows)["warnings"] == []
