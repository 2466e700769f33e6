"""The bench times the loop that trains and a floor that does the same work, and its words follow from its numbers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tiny import classifier, relative_difference, update, weights
from typer.testing import CliRunner

from hf_kd import DistillationTrainingArguments, load_task
from hf_kd.bench import (
    PARTS,
    RULES,
    BenchResult,
    Block,
    CacheEstimate,
    Profile,
    first_thing,
    read_bench,
    run_bench,
    write_bench,
)
from hf_kd.bench.advice import NOTHING
from hf_kd.bench.clocks import PartClocks
from hf_kd.bench.memory import Memory
from hf_kd.bench.result import BARE_BOTH, BARE_STUDENT, CLOCKED, OTHER, OURS, PLAIN_TRAINER
from hf_kd.bench.run import Loops, number_of_threads, timed_config
from hf_kd.cli import app
from hf_kd.cli import bench as words
from hf_kd.data.wordpiece import train_wordpiece
from hf_kd.experiment import parse_config, store_teacher_logits
from hf_kd.registry import ConfigError

ROWS = 60
CHECKPOINTING = "activation_checkpointing"
if CHECKPOINTING not in DistillationTrainingArguments.__dataclass_fields__:
    CHECKPOINTING = "gradient_checkpointing"
QUICK = {"steps": 2, "warmup": 1, "repeats": 2}
SAME = 1e-5
"""Relative: three float32 steps whose sums run in another order."""


@pytest.fixture(scope="module")
def digits():
    return load_task("embedded/digits", max_samples=ROWS)


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    """A ViT whose classes come in another order than the data's."""
    folder = tmp_path_factory.mktemp("bench") / "teacher"
    names = [str(i) for i in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    classifier("vit", 9, classes=10, **ids).save_pretrained(folder)
    digits.processing_class.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def given(teacher, tmp_path):
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "output_dir": str(tmp_path / "run"),
        "seed": 3,
        "teacher": {"model": teacher},
        "student": {"config": {"model_type": "vit", "patch_size": 4, "initializer_range": 0.3, **vit}},
        "data": {"name": "embedded/digits", "max_samples": ROWS},
        "method": {"name": "kd", "temperature": 4.0, "ce_weight": 0.3, "kd_weight": 0.7},
        "training": {
            "per_device_train_batch_size": 16,
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "optim": "sgd",
            "report_to": "none",
            "dataloader_pin_memory": False,
            "use_cpu": True,
        },
    }


def with_training(given, **values):
    return {**given, "training": {**given["training"], **values}}


def without_teacher(given):
    return {**given, "teacher": None, "method": {"name": "kd", "kd_weight": 0.0, "ce_weight": 1.0}}


def made(given, digits, folder, steps, with_trainer=False):
    """The loops of a bench, with nothing trained yet."""
    loops = Loops(timed_config(parse_config(given), str(folder), steps), digits, steps - 1, 1)
    loops.prepare(True, with_trainer)
    return loops


def ways(loops, other):
    """How far ours and another loop move students that start alike."""
    ours = loops.trainer.model
    before = weights(ours), weights(other)
    torch.testing.assert_close(*before, rtol=0, atol=0)
    loops.loops[OURS]()
    name = PLAIN_TRAINER if loops.plain is not None else BARE_BOTH if loops.is_taught else BARE_STUDENT
    loops.loops[name]()
    return update(before[0], weights(ours)), update(before[1], weights(other))


# ---- The floor does the same work


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_the_bare_loop_takes_our_steps(given, digits, tmp_path, optim):
    """A floor on other rows, or with another loss, clipping or optimizer, is no floor: three steps, 60 rows by 16."""
    given = with_training(given, optim=optim, learning_rate=0.1 if optim == "sgd" else 1e-3, max_grad_norm=0.5)
    loops = made(given, digits, tmp_path, 3)
    mine, floor = ways(loops, loops.bare.student)
    assert mine.norm() > 1e-3
    # Adam divides by the size of a gradient: rounding of the smallest ones is not small after it
    assert relative_difference(floor, mine) < (SAME if optim == "sgd" else 1e-3)


def test_it_takes_them_over_epochs_micro_batches_and_with_workers(given, digits, tmp_path):
    """The rows of the second epoch come in another order than those of the first, and a worker may bring them."""
    given = with_training(given, per_device_train_batch_size=10, gradient_accumulation_steps=2)
    loops = made(with_training(given, dataloader_num_workers=1), digits, tmp_path, 5)
    mine, floor = ways(loops, loops.bare.student)
    assert relative_difference(floor, mine) < SAME


def test_the_bare_student_and_the_plain_trainer_take_the_steps_of_plain_training(given, digits, tmp_path):
    """At kd_weight 0 our loop is plain training, and so must be what it is compared with."""
    given = without_teacher(given)
    mine, floor = ways(*_with(made(given, digits, tmp_path, 3), lambda loops: loops.bare.student))
    assert relative_difference(floor, mine) < SAME
    mine, plain = ways(*_with(made(given, digits, tmp_path, 3, True), lambda loops: loops.plain.model))
    assert relative_difference(plain, mine) < SAME


def _with(loops, other):
    return loops, other(loops)


def test_clocks_change_no_step(given, digits, tmp_path):
    """Patched methods that lose an argument or a return value would time another training."""
    given = with_training({**given, "method": {"name": "ctkd"}}, gradient_accumulation_steps=2)  # 32 and 28 rows
    first, second = (made(given, digits, tmp_path / name, 4) for name in ("a", "b"))
    first.loops[OURS]()
    second.loops[CLOCKED]()
    torch.testing.assert_close(weights(first.trainer.model), weights(second.trainer.model), rtol=0, atol=0)
    learned = [dict(loops.trainer.objective.state_dict()) for loops in (first, second)]
    torch.testing.assert_close(*learned, rtol=0, atol=0)
    assert learned[0]


def test_clocks_come_off_again(given, digits, tmp_path):
    """A clock that stays would slow the blocks that are timed as they are, each one more than the last."""
    loops = made(given, digits, tmp_path, 3)
    trainer = loops.trainer
    before = {id(owner): set(vars(owner)) for owner in (trainer, trainer.accelerator, trainer.model)}
    callbacks = len(trainer.callback_handler.callbacks)
    loops.loops[OURS]()
    known = {id(owner): set(vars(owner)) for owner in (trainer, trainer.accelerator, trainer.model)}
    loops.loops[CLOCKED]()
    for owner in (trainer, trainer.accelerator, trainer.model):
        assert set(vars(owner)) == known[id(owner)] >= before[id(owner)]
    assert len(trainer.callback_handler.callbacks) == callbacks


# ---- What is measured


def test_parts_add_up_to_the_step_and_none_is_missing(given, digits):
    """A part that is counted twice, or a negative rest, makes every share wrong."""
    result = run_bench(given, task=digits, **QUICK)
    assert result.loops == [OURS, CLOCKED, BARE_BOTH, BARE_STUDENT]
    clocked = result.of(CLOCKED)
    assert len(clocked) == QUICK["repeats"]
    for block in clocked:
        assert set(block.parts) == set(PARTS)
        assert sum(block.parts.values()) == pytest.approx(block.seconds)
        rest = block.parts[OTHER]
        assert all(seconds > 0 for name, seconds in block.parts.items() if name != OTHER), f"{block.parts}"
        assert rest > -0.01 * block.seconds, f"{block.parts}"
    assert {block.rows for block in result.blocks if block.rows} == {16 + 16}, "steps two and three of an epoch"
    assert result.notes == []
    assert result.memory_bytes >= 0
    assert "resident" in result.memory_kind
    assert result.cache == CacheEstimate(ROWS, 10)
    assert not Path(given["output_dir"]).exists()


def test_loops_run_by_turns_in_an_order_that_rotates(given, digits):
    """A loop that always came first would pay for a machine that slows down, or profit from it."""
    told = []
    result = run_bench(given, task=digits, on_repeat=lambda n, blocks: told.append((n, blocks)), **QUICK)
    by_repeat = [[block for block in result.blocks if block.repeat == repeat] for repeat in range(2)]
    assert [sorted(block.place for block in blocks) for blocks in by_repeat] == [[0, 1, 2, 3]] * 2
    assert by_repeat[0][0].loop != by_repeat[1][0].loop
    assert told == list(enumerate(by_repeat))


def test_a_part_counts_what_it_does_itself():
    """The objective is `compute_loss` without the forwards in it."""
    now = iter(range(100))
    clocks = PartClocks.__new__(PartClocks)
    clocks._stack, clocks.memory, clocks.device = [], None, torch.device("cpu")
    clocks.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_kd.bench.clocks.time.perf_counter", lambda: next(now))
        with clocks.part("objective"), clocks.part("student_forward"), clocks.part("teacher_forward"):
            pass
        with clocks.part("backward"):
            pass
    found = clocks.parts(10.0)
    assert [found[name] for name in ("objective", "student_forward", "teacher_forward", "backward")] == [2, 2, 1, 1]
    assert found["other"] == 10 - 6


def test_without_a_teacher(given, digits):
    result = run_bench(without_teacher(given), task=digits, with_trainer=True, **QUICK)
    assert result.loops == [OURS, CLOCKED, BARE_STUDENT, PLAIN_TRAINER]
    assert result.share("teacher_forward") == (0, 0, 0)
    assert result.cache is None
    assert result.setup["teacher"] == "none"


def test_with_stored_logits(given, tmp_path):
    """The loop that a store is for has no live teacher to time, and none to save."""
    asked = {**given, "teacher": {**given["teacher"], "sanity_check": False}}
    stored = store_teacher_logits(parse_config(asked), tmp_path / "rows", splits=("train",))
    data = {"path": stored.folder}
    student = {**given["student"], "processor": given["teacher"]["model"]}
    result = run_bench({**given, "student": student, "data": data, "teacher": {"column": "teacher_logits"}}, **QUICK)
    assert BARE_BOTH in result.loops
    assert result.cache is None
    assert result.setup["teacher"] == "stored"
    assert result.share("teacher_forward").median < 0.5


WORDS = "red blue green cat dog emu runs sleeps fast eats hay"


def test_texts_in_bfloat16_with_a_teacher_that_reads_other_inputs(tmp_path):
    """Another tokenizer, autocast and checkpointed activations: the floor must be able to run what the loop runs."""
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    for name, known in (("teacher", WORDS), ("student", WORDS.upper() + " a b c d e f")):
        tokens = train_wordpiece([known], vocab_size=100, max_length=16)
        tokens.save_pretrained(tmp_path / name)
        if name == "teacher":
            text = {"vocab_size": len(tokens), "max_position_embeddings": 16}
            classifier("bert", 1, classes=2, **text, **names).save_pretrained(tmp_path / name)
    lines = [f"{' '.join(WORDS.split()[i % 7 :][:4])},{('no', 'yes')[i % 2]}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    given = {
        "output_dir": str(tmp_path / "run"),
        "teacher": {"model": str(tmp_path / "teacher"), "dtype": "bfloat16"},
        "student": {"config": {"model_type": "bert", **bert}, "processor": str(tmp_path / "student")},
        "data": {"path": str(tmp_path / "rows.csv")},
        "method": {"name": "dtkd"},
        "training": {
            "per_device_train_batch_size": 8,
            "bf16": True,
            CHECKPOINTING: True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "report_to": "none",
        },
    }
    result = run_bench(given, with_trainer=True, **QUICK)
    assert result.loops == [OURS, CLOCKED, BARE_BOTH, BARE_STUDENT, PLAIN_TRAINER]
    assert (result.setup["precision"], result.setup["rows_are"]) == ("bf16", "texts")
    assert result.profile["teacher_dtype"] == "bfloat16"
    given["training"] = {**given["training"], "bf16": False}
    assert run_bench(given, **QUICK).setup["precision"] == "no", "a teacher in bfloat16 beside a student in float32"


@pytest.mark.parametrize(
    ("problem_type", "columns", "method"),
    [("multi_label_classification", "a,b,c", "bernoulli_kl"), ("regression", "number", "logit_mse")],
)
def test_other_heads(problem_type, columns, method, tmp_path):
    """A floor for classes alone would end in an error of torch."""
    tokens = train_wordpiece([WORDS], vocab_size=100, max_length=16)
    classes = len(columns.split(","))
    names = dict(enumerate(columns.split(","))) if classes > 1 else {0: "LABEL_0"}
    ids = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 16, "problem_type": problem_type}
    classifier("bert", 1, classes=classes, **text, **ids).save_pretrained(tmp_path / "teacher")
    tokens.save_pretrained(tmp_path / "teacher")
    labels = [[name for j, name in names.items() if (i + j) % 2] if classes > 1 else i / 10 for i in range(40)]
    rows = [{"text": WORDS[i % 9 :], "label": label} for i, label in enumerate(labels)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bert = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    given = {
        "output_dir": str(tmp_path / "run"),
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"config": {"model_type": "bert", **bert}},
        "data": {"path": str(tmp_path / "rows.jsonl"), "problem_type": problem_type},
        "method": {"name": method},
        "training": {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": "none"},
    }
    given["training"]["dataloader_pin_memory"] = False
    result = run_bench(given, with_trainer=True, **QUICK)
    assert result.loops == [OURS, CLOCKED, BARE_BOTH, BARE_STUDENT, PLAIN_TRAINER]


def test_settings_that_evaluate_save_and_stop_are_left_out(given, digits):
    """They would be timed, or write, or end the block before its clock stops."""
    given = with_training(
        given,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        early_stopping_patience=1,
        evaluate_with_teacher=True,
        num_train_epochs=1,
    )
    result = run_bench(given, task=digits, steps=5, warmup=1, repeats=2)  # more than the one epoch
    assert all(block.steps == 5 for block in result.blocks)
    assert result.config["training"]["eval_strategy"] == "epoch", "the result says what was given"


def test_without_the_bare_loops(given, digits, monkeypatch):
    """A student that fills the device leaves no room for a second one; that is said, and there is a way round it."""
    monkeypatch.setattr(Loops, "_another_student", None)
    result = run_bench(given, task=digits, with_floor=False, **QUICK)
    assert result.loops == [OURS, CLOCKED]
    assert result.rows_per_second > 0


def test_no_room_for_a_second_student_is_said_in_words(given, digits, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("hf_kd.bench.floor.BareLoop.run", full)
    with pytest.raises(ConfigError, match="--no-floor"):
        run_bench(given, task=digits, **QUICK)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_a_teacher_that_is_the_student_without_its_adapter(given, digits, tmp_path):
    """The floor needs a base of its own: our student's, while that one trains, is a third model."""
    ids = {"id2label": digits.id2label, "label2id": digits.label2id}
    model = classifier("vit", 1, classes=10, **ids)
    torch.nn.init.normal_(model.classifier.bias)  # as if trained
    model.save_pretrained(tmp_path / "base")
    digits.processing_class.save_pretrained(tmp_path / "base")
    student = {"model": str(tmp_path / "base"), "peft": {"type": "lora", "r": 2}}
    given = {**given, "teacher": {"model": "self"}, "student": student}
    loops = made(given, digits, tmp_path, 3)
    mine, floor = ways(loops, loops.bare.student)
    assert relative_difference(floor, mine) < SAME


def test_a_teacher_that_lacks_classes(given, digits, tmp_path):
    names = [str(i) for i in range(7)]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    classifier("vit", 9, classes=7, **ids).save_pretrained(tmp_path / "teacher")
    result = run_bench({**given, "teacher": {"model": str(tmp_path / "teacher")}}, task=digits, **QUICK)
    assert BARE_BOTH in result.loops
    assert (result.cache.why_not, result.cache.classes) == (None, 7), "the teacher's own classes are stored"


def test_augmented_rows_are_sized_by_view(given):
    data = {"name": "embedded/digits", "max_samples": ROWS, "augmentation": "crop_flip"}
    result = run_bench({**given, "data": data}, **QUICK)
    assert result.cache == CacheEstimate(ROWS, 10, None, True)
    assert result.profile["can_cache"] is True


def test_with_a_teacher_cache(given, digits, tmp_path):
    """The loop that a cache is for: no teacher in a step, and the floor learns from the same answers."""
    asked = {**given, "teacher": {**given["teacher"], "sanity_check": False}, "teacher_cache": str(tmp_path / "c")}
    for _ in range(2):  # filled first, read then
        result = run_bench(asked, task=digits, **QUICK)
        assert BARE_BOTH in result.loops
        assert result.cache is None
        assert (result.setup["teacher"], result.setup["teacher_parameters"]) == ("stored", None)


def test_wrong_numbers_are_refused_in_words(given):
    for name in ("steps", "warmup", "repeats", "threads"):
        with pytest.raises(ValueError, match=f"run_bench.*{name}"):
            run_bench(given, **{name: 0})
    with pytest.raises(ConfigError, match="studnet"):
        run_bench({**given, "studnet": {}})


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with number_of_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_memory_is_the_peak():
    """What was there before counts for nothing, and what was freed again for as much as it was."""
    memory = Memory()
    memory.begin(torch.device("cpu"))
    held = torch.ones(2**24)
    memory.sample()
    del held
    assert 2**26 * 0.9 < memory.end() < 2**26 * 1.5


# ---- Rules, on profiles of no machine


def profile(**shares):
    facts = {name: shares.pop(name) for name in list(shares) if name not in PARTS}
    return Profile(shares={name: shares.get(name, 0.0) for name in PARTS}, **facts)


ON_GPU = {"device": "cuda", "has_bf16": True}


@pytest.mark.parametrize(
    ("measured", "rule"),
    [
        (profile(data=0.4), "data_workers"),
        (profile(data=0.4, num_workers=4), "data_inputs"),
        (profile(data=0.4, teacher_forward=0.5, can_cache=True), "data_workers"),
        (profile(data=0.1, teacher_forward=0.5, can_cache=True), "teacher_cache"),
        (profile(teacher_forward=0.5, can_cache=False), None),
        (profile(teacher_forward=0.5, can_cache=True, teacher_dtype="float32", **ON_GPU), "teacher_dtype"),
        (profile(teacher_forward=0.5, can_cache=True, teacher_dtype="bfloat16", **ON_GPU), "teacher_cache"),
        (profile(teacher_forward=0.5, teacher_dtype="float32", precision="bf16", **ON_GPU), None),
        (profile(teacher_forward=0.5, teacher_dtype="float32", device="cpu"), None),
        (profile(student_forward=0.3, backward=0.4, **ON_GPU), "student_precision"),
        (profile(student_forward=0.3, backward=0.4, precision="bf16", **ON_GPU), None),
        (profile(student_forward=0.3, backward=0.4), None),
        (profile(objective=0.2, backward=0.4), "objective"),
        (profile(optimizer=0.2, other=0.2), "overhead"),
        (profile(student_forward=0.3, backward=0.4, optimizer=0.1, other=0.1, data=0.1), None),
    ],
)
def test_the_first_rule_that_holds_speaks(measured, rule):
    said = first_thing(measured)
    if rule is None:
        assert said == NOTHING
    else:
        expected = next(each for each in RULES if each.name == rule)
        share = measured.share(*expected.parts)
        assert said == expected.advice.replace("{share}", f"{share:.0%}")


def test_every_rule_reads_parts_that_there_are_and_says_a_share():
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert set(rule.parts) <= set(PARTS)
        assert 0 < rule.threshold < 1
        assert "{share}" in rule.advice


# ---- Numbers and files


def synthetic(**changes):
    """Three repeats on a machine that slows down, twice as slow in the last: ours is always 1.1 times the floor."""
    blocks = []
    for repeat, pace in enumerate((1.0, 1.5, 2.0)):
        parts = dict(zip(PARTS, (0.1, 0.4, 0.1, 0.2, 0.1, 0.05, 0.05), strict=True))
        parts = {name: seconds * pace * 1.05 for name, seconds in parts.items()}
        for place, (loop, seconds) in enumerate({OURS: 1.0, CLOCKED: 1.05, BARE_BOTH: 1 / 1.1}.items()):
            clocked = {"rows": 320, "parts": parts} if loop == CLOCKED else {}
            blocks.append(Block(loop, repeat, place, 10, seconds * pace, seconds, **clocked))
    values = {
        "settings": {"steps": 10, "warmup": 1, "repeats": 3, "threads": 1},
        "environment": {"torch": "2", "device": "cpu", "processor": "a processor", "processes": 1},
        "config": {"seed": 0},
        "setup": {
            "data": "rows",
            "rows_are": "images",
            "losses": ["kd"],
            "student_parameters": 10,
            "teacher_parameters": 100,
            "teacher": "live",
            "rows_per_step": 32,
            "precision": "no",
        },
        "profile": {"device": "cpu", "can_cache": True},
        "cache": CacheEstimate(1000, 2000),
        "memory_bytes": 3 * 2**20,
        "memory_kind": "of a test",
        "blocks": blocks,
    }
    return BenchResult(**{**values, **changes})


def test_ratios_are_paired():
    """On a machine whose speed drifts, the ratio of the medians would have a spread that the loops do not have."""
    result = synthetic()
    assert result.ratio(BARE_BOTH) == pytest.approx((1.1, 1.1, 1.1))
    assert result.step().median == pytest.approx(0.15)
    assert result.step() == pytest.approx((0.15, 0.125, 0.175))
    assert result.clocks_cost == pytest.approx(0.05)
    assert result.shares["teacher_forward"] == pytest.approx(0.4)
    assert result.steps_per_second_without_teacher == pytest.approx(1 / (0.15 * 0.6))
    assert result.rows_per_second == pytest.approx(32 / 0.15)


def test_sizes_of_a_store():
    assert CacheEstimate(1000, 10).sizes == {"float32": 64_000, "float16": 44_000}
    assert CacheEstimate(1000, 2000).sizes["float16, top 100"] == 1000 * (100 * (2 + 4) + 4 + 24)
    assert CacheEstimate(None, 10).sizes == {}


def test_json_there_and_back(tmp_path):
    result = synthetic(notes=["a note"])
    path = write_bench(result, tmp_path / "new" / "bench.json")
    assert read_bench(path) == result
    assert json.loads(path.read_text())["summary"] == json.loads(json.dumps(result.summary()))


def test_files_that_are_no_bench_are_refused(tmp_path):
    other = tmp_path / "other.json"
    for text in ("{", "[]", "{}", '{"format": 0, "blocks": []}'):
        other.write_text(text)
        with pytest.raises(ConfigError, match="hf-kd bench"):
            read_bench(other)
    with pytest.raises(ConfigError, match="cannot write"):
        write_bench(synthetic(), other / "below" / "bench.json")


# ---- The command


def shown(result, capsys):
    words.show(result)
    return " ".join(capsys.readouterr().out.split())


def test_tables_and_sentences(capsys):
    text = shown(synthetic(notes=["a note"]), capsys)
    assert "teacher forward 63.00 (52.50–73.50) 40.0%" in text
    assert "With these clocks a step took 158 ms (131–184), without them 150 ms (125–175) (+5% in pairs)" in text
    assert "bare loop of both models 136 (114–159) 1.100 (1.100–1.100) 1.100" in text
    assert "6.667 steps, 213 images per second" in text
    assert "Memory: 3.0 MiB (of a test)." in text
    assert "1,000 rows of 2,000 logits take 7.7 MiB in float32, 3.8 MiB in float16, 613.3 KiB in float16, top" in text
    assert "First: The teacher takes 40% of a step" in text
    assert "Note: a note" in text
    assert "1 thread on a processor" in text


def test_what_is_not_there_is_not_shown(capsys):
    result = synthetic(cache=None, memory_bytes=None, profile={"device": "cuda"})
    text = shown(result, capsys)
    assert "logits" not in text
    assert "Memory" not in text
    assert "CPU time" not in text, "of a process that waits for a device it says nothing"
    why = shown(synthetic(cache=CacheEstimate(10, 10, "rows change")), capsys)
    assert "A teacher cache would not do here: rows change." in why
    blocks = [replace(block, seconds=1.0, parts=None) if block.loop == OURS else block for block in result.blocks]
    assert "With these clocks" in shown(replace(result, blocks=blocks), capsys)


def test_the_command_writes_its_json_and_nothing_else(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    options = ["--steps", "1", "--warmup", "1", "--repeats", "2"]
    done = CliRunner().invoke(app, ["bench", "config.yaml", "method.temperature=2", *options])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "config.yaml"]
    result = read_bench(tmp_path / "bench.json")
    assert result.config["method"]["temperature"] == 2
    assert result.environment["torch"] == torch.__version__.split("+")[0]
    assert {"processor", "platform", "processes"} <= set(result.environment)
    assert "repeat 2 of 2" in done.output
    assert result.advice in done.output.replace("\n", " ")
    assert "bare loop of both models" in done.output


def test_the_command_refuses_in_words(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    done = CliRunner().invoke(app, ["bench", "config.yaml", "training.learning_rte=1"])
    assert done.exit_code == 2
    assert "training.learning_rte" in done.output
    done = CliRunner().invoke(app, ["bench", "config.yaml", "--repeats", "1"])
    assert done.exit_code == 2
    for output, why in ((".", "is a folder"), ("config.yaml/bench.json", "cannot write")):
        done = CliRunner().invoke(app, ["bench", "config.yaml", "--output", output])
        assert done.exit_code == 2
        assert why in done.output
        assert "repeat" not in done.output, "said before minutes are spent, not after"
    assert list(tmp_path.glob("*.json")) == []


@pytest.mark.slow
def test_two_processes_speak_with_one_voice(given, tmp_path):
    """Every process must run every loop, or the collectives of one wait for the other for ever."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "hf_kd", "bench", "config.yaml", "--trainer"]
    command += ["--steps", "2", "--warmup", "1", "--repeats", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("repeat 1 of 2") == 1
    result = read_bench(tmp_path / "bench.json")
    assert result.loops == [OURS, CLOCKED, BARE_BOTH, BARE_STUDENT, PLAIN_TRAINER]
    assert result.setup["rows_per_step"] == 32
    assert result.environment["processes"] == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu(given, precision):
    given = with_training(given, use_cpu=False, **({} if precision == "no" else {precision: True}))
    result = run_bench(given, with_trainer=True, **QUICK)
    assert result.profile["device"] == "cuda"
    assert result.setup["precision"] == precision
    assert "device memory" in result.memory_kind
    assert result.memory_bytes > 0
    for block in result.of(CLOCKED):
        assert sum(block.parts.values()) == pytest.approx(block.seconds)
