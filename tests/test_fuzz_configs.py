"""Every key of a configuration, wrong in every way: it is refused in words at its place, or it is a configuration."""

import copy
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
import yaml
from config_mutants import EVERY_SECTION, MIXED, OF_IMAGES, Mutant, mutants
from omegaconf import OmegaConf
from transformers import TrainerCallback

from hf_kd.experiment import dump_resolved, load_config, parse_config, run_experiment
from hf_kd.registry import ConfigError, printable

CONFIGS = Path(__file__).parents[1] / "configs"
SHIPPED = {
    path.stem: path
    for path in (
        *(path for path in sorted((CONFIGS / "embedded").glob("*.yaml")) if not path.stem.startswith("compare_")),
        CONFIGS / "banking77" / "roberta_to_bert_lora_dist.yaml",
        CONFIGS / "cifar100" / "vit_b_to_mobilenetv3_ctkd.yaml",
        CONFIGS / "glue" / "stsb_bert_to_bert_small_logit_mse.yaml",
    )
}
OURS = {"every section": EVERY_SECTION, "images": OF_IMAGES, "mixed": MIXED}
STEP = 11  # of the default run: one mutant in so many; all of them are `slow`
OF_A_LIBRARY = re.compile(
    r"Traceback|ValidationError|validation error|pydantic|NoneType|object at 0x|<class|OmegaConf"
    r"|object has no attribute|unhashable|KeyError|AttributeError|TypeError|IndexError|unexpected keyword"
)


def base(name, folder):
    """A valid configuration by name, on folders that are there."""
    if name in OURS:
        mapping = OURS[name]
    else:
        mapping = OmegaConf.to_container(OmegaConf.load(SHIPPED[name]))
        if str(mapping.get("teacher", {}).get("model", "")).startswith("./"):
            mapping["teacher"]["model"] = str(folder)
    return {**mapping, "output_dir": str(folder / "run")}


def complaints(mutant, problems):
    """What is wrong with the words in which a mutant is refused."""
    key = ".".join(map(str, mutant.path))
    entry = isinstance(mutant.path[-1], int) and mutant.what == "left out"  # what is gone is named by its list
    last = re.escape(printable(str(mutant.path[-2 if entry else -1]))[:40])
    shown = [printable(key)[:90], " ".join(key.split())[:90]]
    named = False
    for line in problems:
        key = shown[line.startswith(shown[1])]
        if line != printable(line):
            yield f"not one line to read: {line[:200]!r}"
        if OF_A_LIBRARY.search(line):
            yield f"a library's words: {line[:300]}"
        if not re.search(r"[.?)!]$", line):
            yield f"no sentence: {line[-200:]}"
        at = next((line[: i.start()] for i in re.finditer(": ", line) if key.startswith(line[: i.start()])), "")
        at = key if line.startswith(key) else at or line.split(": ")[0]
        above = at == key or key.startswith(f"{at}.") or at.startswith(f"{key}.")
        named |= above or re.search(rf"(?<!\w){last}", line) is not None
    if not named:
        yield f"no line names {key}: {problems}"


def verdict(mutant):
    """What is wrong with how a mutant is taken, and whether it is a configuration."""
    try:
        config = parse_config(mutant.mapping)
    except ConfigError as error:
        return [f"{mutant}: {said}" for said in complaints(mutant, error.problems)], False
    except Exception as error:  # noqa: BLE001 - what else there is is what is looked for
        return [f"{mutant}: {type(error).__name__}: {error}"[:300]], False
    try:
        resolved = dump_resolved(config)
        again = dump_resolved(parse_config(yaml.safe_load(resolved)))
    except Exception as error:  # noqa: BLE001 - as above
        return [f"{mutant}: its resolved form: {type(error).__name__}: {error}"[:300]], True
    changed = yaml.safe_load(again) != yaml.safe_load(resolved)
    return [f"{mutant}: its resolved form is another configuration"] if changed else [], True


def all_wrong(name, folder, start, step):
    """Everything wrong with every `step`-th mutant, how many there were, and how many of them are configurations."""
    mapping = base(name, folder)
    parse_config(mapping)
    found, count, valid = [], 0, 0
    for mutant in islice(mutants(mapping), start, None, step):
        wrong, is_valid = verdict(mutant)
        found += wrong
        count, valid = count + 1, valid + is_valid
    return found, count, valid


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*SHIPPED, *OURS])
def test_a_wrong_key_or_value_is_refused_in_words_at_its_place(name, tmp_path):
    """A traceback from a library names neither the file nor the key; a coerced value trains something else."""
    found, count, valid = all_wrong(name, tmp_path, 3, STEP)
    assert not found, "\n".join(found[:20])
    assert count >= 50  # of the smallest file; 900 to 3,600 before the step
    assert 0 < valid < count / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*SHIPPED, *OURS])
def test_every_wrong_key_and_value_is_refused_in_words_at_its_place(name, tmp_path, record_property):
    """The same for all of them."""
    found, count, valid = all_wrong(name, tmp_path, 0, 1)
    record_property("mutants", count)
    assert not found, f"{len(found)} of {count}:\n" + "\n".join(found[:40])
    assert count >= 600
    assert 0 < valid < count / 2


# ---- Files and overrides

TEXTS = (
    *(
        "",
        "[",
        "{",
        "]",
        "${x}",
        "${data.name}",
        "${output_dir}",
        "${",
        "???",
        "!!python/object:os.system x",
        "&a [*a]",
    ),
    *(
        "!!python/object/apply:os.mkdir [made]",
        "!!binary aGk=",
        "!!set {a, b}",
        "2020-01-01",
        "*x",
        "'",
        "\t",
        "1e999",
    ),
    *(".nan", "0x10", "1_000", "~", "{<<: {a: 1}}", "${oc.env:NOT_THERE}", "${oc.decode:'['}", "${nope:x}", "a: b: c"),
    *(
        "@",
        "> x",
        "- a\n- b",
        "x" * 5000,
        "\x00",
        "\ud800",
        "\x1b[31m",
        "yes",
        "1:30",
        "{1: 2}",
        "{null: 1}",
        "!!python/object:os.system x",
    ),
    *("{a: 1, a: 2}", "[" * 2000, "{a: " * 2000),
)
KEYS = (
    *("output_dir", "seed", "teacher", "teacher.model", "student.config.hidden_size", "data.metrics", "method", ""),
    *("training.learning_rate", "training.save_strategy", "new.deep.key", "data.name.x", "training[0]", "[", "${x}"),
    *("data.metrics[5]", "__class__", "_metadata", "???", "a b", "a:b"),
)


@pytest.mark.filterwarnings("ignore")
def test_any_override_is_applied_or_refused_in_words(tmp_path, monkeypatch):
    """The shell hands over anything: half a quote, a glob, a control character."""
    monkeypatch.chdir(tmp_path)
    found = []
    pairs = [(key, text) for key in KEYS for text in TEXTS][::4]
    for key, text in pairs:
        try:
            config = load_config(SHIPPED["digits_student"], [f"{key}={text}", f"teacher.model={tmp_path}"])
            yaml.safe_load(dump_resolved(config))
        except ConfigError as error:
            found += [(key, text[:40], line[:200]) for line in error.problems if line != printable(line)]
        except Exception as error:  # noqa: BLE001 - what else there is is what is looked for
            found.append((key, text[:40], f"{type(error).__name__}: {error}"[:200]))
    assert not found, "\n".join(map(str, found[:20]))
    assert len(pairs) > 200
    assert list(tmp_path.iterdir()) == []


FILES = {
    "nothing": b"",
    "another encoding": "seed: \u00e9".encode("latin-1"),
    "UTF-16": "seed: 1".encode("utf-16"),
    "NUL": b"\x00",
    "a control character": b"a: \x01",
    "a list": b"- a",
    "a word": b"x",
    "a number": b"1",
    "two documents": b"seed: 1\n---\nseed: 2",
    "a circle": b"a: &a\n  b: *a\n",
    "an object": b"!!python/object/apply:os.mkdir [made]",
    "a function": b"seed: !!python/name:os.system",
    "deep": b"{" * 5000,
    "a list as a key": b"? [a, b]\n: 1",
    "a tab": b"\t- a",
    "a bomb": b"a: &x [1,2,3,4,5,6,7,8,9]\nb: &y [*x,*x,*x,*x,*x,*x]\nc: &z [*y,*y,*y,*y,*y,*y]\n"
    b"d: &w [*z,*z,*z,*z,*z,*z]\ne: &v [*w,*w,*w,*w,*w,*w]\nf: [*v,*v,*v,*v,*v,*v,*v,*v]",
}


@pytest.mark.parametrize("kind", FILES)
def test_any_file_is_read_or_refused_in_words(kind, tmp_path, monkeypatch):
    """A picture under the name of a configuration, or one that is made to hurt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(FILES[kind])
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml")
    assert all(line == printable(line) for line in caught.value.problems)
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    """Editors on Windows write one, and `unknown key 'seed'` would be a riddle."""
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfseed: 1")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    assert not [line for line in caught.value.problems if "seed" in line]


# ---- What only the data or the model can refuse

RUN = {
    "student": {"config": {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}},
    "data": {"name": "embedded/digits", "max_samples": 40, "class_weights": "balanced"},
    "objective": {"ce_weight": 1.0, "kd_weight": 0.0},
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.001,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "metric_for_best_model": "accuracy",
    },
}
RUN["student"]["config"] |= {"intermediate_size": 16, "patch_size": 4}
LATER = (
    *(("student", "config", "hidden_size", value) for value in (0, -1)),
    *(("student", "config", "patch_size", value) for value in (0, [], 16)),
    ("student", "config", "num_attention_heads", -1),
    ("student", "config", "hidden_dropout_prob", 1.5),
    *(("data", "max_samples", value) for value in (0, {"a": 1})),
    *(("data", "class_weights", value) for value in ("x", [], {"a": 1.0})),
    *(("data", "name", value) for value in ("a\nb: c", "x" * 5000, "../..")),
    ("training", "metric_for_best_model", "x"),
    ("training", "report_to", "tensorbord"),
    ("training", "optim_args", "eps"),
)


class Steps(TrainerCallback):
    """Counts them."""

    def __init__(self):
        self.count = 0

    def on_step_end(self, *_, **__):
        self.count += 1


def outcome(mutant):
    """What is wrong with how a run of a mutant ends; nothing where it is refused in time, or trains."""
    try:
        config = parse_config(mutant.mapping)
    except ConfigError:
        return []
    steps = Steps()
    try:
        run_experiment(config, callbacks=[steps])
    except ConfigError as error:
        wrong = [line for line in error.problems if line != printable(line)]
        return [f"{mutant}: after {steps.count} steps: {error}"] if steps.count or wrong else []
    except Exception as error:  # noqa: BLE001 - what else there is is what is looked for
        return [f"{mutant}: {type(error).__name__}: {error}"[:300]]
    return []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", LATER, ids=lambda change: ".".join(map(str, change))[:50])
def test_what_only_the_data_or_the_model_refuse_is_refused_before_training(change, tmp_path):
    """In words and with the section, though it took loading them."""
    *path, value = change
    mapping = {**copy.deepcopy(RUN), "output_dir": str(tmp_path / "run")}
    section = mapping
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ConfigError):
        run_experiment(mapping, callbacks=[steps := Steps()])
    assert steps.count == 0
    assert not outcome(Mutant(tuple(path), "changed", mapping))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_mutant_of_a_run_trains_or_is_refused_in_words(tmp_path):
    """All that is a configuration, but for sizes that no machine has."""
    mapping = {**copy.deepcopy(RUN), "output_dir": str(tmp_path / "run")}
    chosen = [m for m in mutants(mapping) if m.path[0] != "output_dir" and not re.search("huge|beyond|added", m.what)]
    found = []
    for mutant in chosen:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        found += outcome(mutant)
    assert not found, "\n".join(found)
    assert len(chosen) > 300
