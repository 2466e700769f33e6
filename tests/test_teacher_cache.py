"""A cached teacher teaches what the live one does, to exactly the rows it answered to, or the cache is refused."""

import math
import pickle

import datasets
import numpy as np
import pytest
import torch
from tiny import CLASSES, LENGTH, VOCABULARY, classifier, examples, head, logits, table, train, with_targets

from hf_kd import KDLoss, Mixing, TeacherCache
from hf_kd.objective import DistillationObjective
from hf_kd.teacher_cache import KeyedRows, row_keys

ROWS = 24


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert (value - second[name]).abs().max() <= tolerance * scale, name


def run(folder, *, teacher=None, cache=None, rows=None, architecture="bert", student=None, trainer=None, **overrides):
    rows = table(examples(architecture, ROWS, "mixed")) if rows is None else rows
    student = classifier(architecture, 1) if student is None else student
    settings = {"num_train_epochs": 3, "train_sampling_strategy": "random", **overrides}
    return train(folder, student, teacher, rows, trainer={"teacher_cache": cache, **(trainer or {})}, **settings)


def losses(trainer):
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.fixture
def filled(tmp_path):
    """`(folder, teacher)` of a cache with the answers to `examples("bert", ROWS, "mixed")`."""
    teacher = classifier("bert", 7)
    run(tmp_path / "filling", teacher=teacher, cache=tmp_path / "cache", num_train_epochs=1)
    return tmp_path / "cache", teacher


# ---- The same run


@pytest.mark.parametrize(
    ("architecture", "method"), [("bert", "ctkd"), ("bert", "wttm"), ("bert", "dist"), ("vit", "kd"), ("vit", "dtkd")]
)
def test_a_cached_run_is_the_live_run(tmp_path, architecture, method):
    """Shuffled, accumulated, several epochs; the last run has no teacher at all."""
    teacher = classifier(architecture, 7)
    settings = {"method": method, "gradient_accumulation_steps": 2, "architecture": architecture}
    live = run(tmp_path / "live", teacher=teacher, **settings)
    filled = run(tmp_path / "filled", teacher=teacher, cache=tmp_path / "cache", **settings)
    again = run(tmp_path / "again", cache=tmp_path / "cache", **settings)
    assert filled.state.global_step == 9
    assert_close(weights(live), weights(filled), 1e-4)
    assert_close(weights(filled), weights(again), 0)
    assert losses(live) == pytest.approx(losses(again), rel=1e-5)


def test_stored_logits_are_the_teachers_in_any_order(filled):
    folder, teacher = filled
    rows = examples("bert", ROWS, "mixed")
    order = np.random.default_rng(0).permutation(ROWS)
    cache = TeacherCache(folder)
    stored = cache.read(cache.find(row_keys(table(rows))[order]))["teacher_logits"]
    torch.testing.assert_close(stored, logits(teacher, rows)[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_bring_the_same_answers(tmp_path, filled, workers):
    settings = {"dataloader_num_workers": workers, "num_train_epochs": 1}
    live = run(tmp_path / "live", teacher=filled[1], **settings)
    assert_close(weights(live), weights(run(tmp_path / "run", cache=filled[0], **settings)), 1e-4)


def test_a_subset_in_another_order_reads_the_same_cache(tmp_path, filled, asked):
    folder, teacher = filled
    rows = table(examples("bert", ROWS, "mixed")).select([20, 3, 3, 11, 0, 7])
    cached = run(tmp_path / "cached", teacher=teacher, cache=folder, rows=rows)
    assert asked == []
    assert_close(weights(run(tmp_path / "live", teacher=teacher, rows=rows)), weights(cached), 1e-4)


def test_labels_play_no_part_in_which_row_is_which(tmp_path, filled):
    run(tmp_path / "run", cache=filled[0], rows=table(examples("bert", ROWS, "labelled")), num_train_epochs=1)


def test_only_new_rows_are_asked_and_equal_ones_once(tmp_path, filled, asked):
    folder, teacher = filled
    more = examples("bert", ROWS, "mixed") + examples("bert", 6, seed=5) * 2
    run(tmp_path / "more", teacher=teacher, cache=folder, rows=table(more), num_train_epochs=1)
    assert sum(asked) == 6
    assert len(TeacherCache(folder)) == ROWS + 6


def test_another_label_map_reads_the_same_cache(tmp_path, filled, asked):
    """Stored are the teacher's own classes; which of the student's they are is decided when they are read."""
    folder, teacher = filled
    names = [f"class {i}" for i in range(CLASSES)]
    order = [2, 0, 1, 4, 3]
    ids = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    label_map = {f"LABEL_{i}": names[j] for i, j in enumerate(order)}
    settings = {"trainer": {"label_map": label_map}, "num_train_epochs": 1}
    cached = run(tmp_path / "cached", cache=folder, student=classifier("bert", 1, **ids), **settings)
    assert asked == []
    live = run(tmp_path / "live", teacher=teacher, student=classifier("bert", 1, **ids), **settings)
    assert_close(weights(live), weights(cached), 1e-4)
    plain = run(tmp_path / "plain", teacher=teacher, num_train_epochs=1)
    assert losses(plain) != pytest.approx(losses(cached), rel=1e-3), "the map changes something"


@pytest.mark.parametrize("problem", ["several-labels", "one-number"])
def test_other_kinds_of_heads(tmp_path, problem):
    rows = table(with_targets(examples("bert", 12, "none"), problem, "mixed"))
    losses_ = {"several-labels": "bernoulli_kl", "one-number": "logit_mse"}
    settings = {"rows": rows, "method": losses_[problem], "num_train_epochs": 1}
    teacher, student = head("bert", 7, problem), lambda: head("bert", 1, problem)
    live = run(tmp_path / "live", teacher=teacher, student=student(), **settings)
    run(tmp_path / "fill", teacher=teacher, cache=tmp_path / "cache", student=student(), **settings)
    cached = run(tmp_path / "cached", cache=tmp_path / "cache", student=student(), **settings)
    assert_close(weights(live), weights(cached), 1e-4)


@pytest.mark.parametrize("method", ["feature_mse", "wkd_l"])
def test_losses_on_features_read_them_from_the_cache(tmp_path, method):
    teacher = classifier("bert", 7)
    live = run(tmp_path / "live", teacher=teacher, method=method, num_train_epochs=1)
    run(tmp_path / "fill", teacher=teacher, cache=tmp_path / "cache", method=method, num_train_epochs=1)
    cached = run(tmp_path / "cached", cache=tmp_path / "cache", method=method, num_train_epochs=1)
    assert_close(weights(live), weights(cached), 1e-4)


def test_a_function_can_be_cached(tmp_path, asked):
    answers = classifier("bert", 7)

    def far_away(input_ids, attention_mask):
        return answers(input_ids, attention_mask).logits

    live = run(tmp_path / "live", teacher=answers, num_train_epochs=1)
    asked.clear()
    cached = run(tmp_path / "cached", teacher=far_away, cache=tmp_path / "cache", num_train_epochs=2)
    assert sum(asked) == ROWS
    assert losses(cached)[:6] == pytest.approx(losses(live), rel=1e-5)


def test_evaluation_with_the_teacher_reads_its_answers(tmp_path, asked):
    teacher, rows = classifier("bert", 7), table(examples("bert", 10, seed=3))
    settings = {"trainer": {"eval_dataset": rows}, "evaluate_with_teacher": True, "eval_strategy": "epoch"}
    run(tmp_path / "fill", teacher=teacher, cache=tmp_path / "cache", **settings)
    assert sum(asked) == ROWS + 10
    asked.clear()
    cached = run(tmp_path / "cached", cache=tmp_path / "cache", **settings)
    assert asked == []
    live = run(tmp_path / "live", teacher=teacher, **settings)
    found, expected = (
        [r["eval_teacher_kl"] for r in trainer.state.log_history if "eval_teacher_kl" in r]
        for trainer in (cached, live)
    )
    assert len(found) == 3
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_resumed_run_reads_the_same_answers(tmp_path, filled):
    settings = {"cache": filled[0], "save_strategy": "steps", "save_steps": 4, "method": "ctkd"}
    whole = run(tmp_path / "whole", **settings)
    student = classifier("bert", 1)
    again = run(tmp_path / "again", student=student, max_steps=4, **settings)
    again.args.max_steps = -1
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_close(weights(whole), weights(again), 0)


# ---- Random changes


class Noisy:
    """Adds noise to the tokens: an augmentation from torch's generator."""

    def __call__(self, batch):
        ids = [self.changed(torch.tensor(row)) for row in batch["input_ids"]]
        return {**batch, "input_ids": ids, "attention_mask": [torch.ones(LENGTH, dtype=torch.int64) for _ in ids]}

    def changed(self, row):
        return torch.where(torch.rand(len(row)) < 0.3, torch.randint(1, VOCABULARY, (len(row),)), row)


def noisy(rows=ROWS):
    return table(examples("bert", rows, "labelled")).with_transform(Noisy())


def test_views_replay_the_augmentation_that_the_teacher_saw(tmp_path, asked):
    """Three epochs of two views: the third sees the first again; live on the same views it is the same run."""
    teacher = classifier("bert", 7)
    live = run(tmp_path / "live", teacher=teacher, rows=noisy(), augmentation_views=2)
    asked.clear()
    cache = TeacherCache(tmp_path / "cache", views=2)
    filled = run(tmp_path / "filled", teacher=teacher, cache=cache, rows=noisy())
    assert sum(asked) == 2 * ROWS
    assert_close(weights(live), weights(filled), 1e-4)
    settings = {"rows": noisy(), "dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    again = run(tmp_path / "again", cache=TeacherCache(tmp_path / "cache", views=2), **settings)
    assert_close(weights(filled), weights(again), 0)


def test_views_are_of_rows_and_differ_from_each_other(tmp_path):
    """Which batch, order, seed or epoch a row comes in plays no part; another view is another picture."""
    rows = noisy()
    keys = row_keys(rows)
    viewed = KeyedRows(rows, keys, 2)
    first = viewed.read([4, 9], 0)
    torch.manual_seed(99)
    alone = KeyedRows(rows.select([9]), keys[[9]], 2).read([0], 0)
    assert torch.equal(first[1]["input_ids"], alone[0]["input_ids"])
    assert not torch.equal(alone[0]["input_ids"], viewed.read([9], 1)[0]["input_ids"])


def test_reading_views_leaves_no_trace_in_the_draws_of_training():
    rows = noisy()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    KeyedRows(rows, row_keys(rows), 2).read([1, 2], 0)
    assert torch.equal(torch.rand(3), expected)


def test_random_rows_without_views_are_refused(tmp_path):
    with pytest.raises(ValueError, match="another one each time a row is read.*Set `views`"):
        run(tmp_path / "run", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=noisy())


class Private(Noisy):
    """Draws from a generator of its own, which nobody can seed."""

    def __init__(self):
        self.generator = torch.Generator()

    def changed(self, row):
        return torch.randint(1, VOCABULARY, (LENGTH,), generator=self.generator)


def test_views_that_cannot_be_repeated_are_refused(tmp_path):
    rows = table(examples("bert", ROWS)).with_transform(Private())
    cache = TeacherCache(tmp_path / "cache", views=2)
    with pytest.raises(ValueError, match="a generator that the data set keeps for itself"):
        run(tmp_path / "run", teacher=classifier("bert", 7), cache=cache, rows=rows)


def test_another_augmentation_is_refused(tmp_path):
    cache = tmp_path / "cache"
    run(tmp_path / "run", teacher=classifier("bert", 7), cache=TeacherCache(cache, views=1), rows=noisy())

    class Otherwise(Noisy):
        def changed(self, row):
            torch.rand(1)
            return super().changed(row)

    rows = table(examples("bert", ROWS, "labelled")).with_transform(Otherwise())
    with pytest.raises(ValueError, match="is not shown to the teacher as it was"):
        run(tmp_path / "other", cache=TeacherCache(cache, views=1), rows=rows)


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.8), Mixing(mixup=0.4, cutmix=1.0, mix_probability=0.7)], ids=repr)
def test_mixtures_come_again_with_the_same_partner_share_and_box(tmp_path, asked, mixing):
    rows = table([{**row, "label_weight": 0.5 + i % 3} for i, row in enumerate(examples("vit", ROWS, "mixed"))])
    settings = {"architecture": "vit", "trainer": {"mixing": mixing}, "rows": rows, "gradient_accumulation_steps": 2}
    teacher = classifier("vit", 7)
    live = run(tmp_path / "live", teacher=teacher, augmentation_views=2, **settings)
    asked.clear()
    filled = run(tmp_path / "filled", teacher=teacher, cache=TeacherCache(tmp_path / "cache", views=2), **settings)
    assert sum(asked) == 2 * ROWS
    again = run(tmp_path / "again", cache=TeacherCache(tmp_path / "cache", views=2), **settings)
    assert_close(weights(live), weights(filled), 1e-4)
    assert_close(weights(filled), weights(again), 0)
    plain = run(tmp_path / "plain", teacher=teacher, **{**settings, "trainer": {}})
    assert losses(plain) != pytest.approx(losses(live), rel=1e-3), "something is mixed"


def test_partners_are_rows_of_the_set_whatever_their_order():
    rows = table(examples("vit", ROWS))
    order = np.random.default_rng(0).permutation(ROWS)
    keys, mixing = row_keys(rows), Mixing(mixup=1.0)
    straight, turned = KeyedRows(rows, keys, 2, mixing), KeyedRows(rows.select(order), keys[order], 2, mixing)
    assert np.array_equal(straight.known_by(1)[order], turned.known_by(1))
    assert not np.array_equal(straight.known_by(0), straight.known_by(1))
    one, other = straight.read([int(order[3])], 1)[0], turned.read([3], 1)[0]
    assert one["mix_lambda"] == other["mix_lambda"]
    assert np.array_equal(np.asarray(one["pixel_values"]), np.asarray(other["pixel_values"]))
    fewer = KeyedRows(rows.select(range(10)), keys[:10], 2, mixing)
    assert (fewer.known_by(1) != straight.known_by(1)[:10]).any(), "another set has other mixtures"
    stronger = KeyedRows(rows, keys, 2, Mixing(mixup=0.5))
    assert (stronger.known_by(1) != straight.known_by(1)).any(1).all(), "so have other settings"


@pytest.mark.parametrize("then", ["live", "filling"])
def test_a_run_goes_on_from_the_cache_that_it_began_without(tmp_path, filled, then):
    """The teacher was there, and need not be any more; answers that are not as given are another run's."""
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    first = {"teacher": filled[1], "cache": None if then == "live" else filled[0]}
    run(tmp_path / "whole", **first, **settings)
    for cache in (filled[0], TeacherCache(tmp_path / "half", dtype="float16")):
        is_half = isinstance(cache, TeacherCache)
        teacher = filled[1] if is_half else None
        again = run(tmp_path / "again", cache=cache, teacher=teacher, **{**settings, "save_strategy": "no"})
        again.args.max_steps = 6
        if is_half:
            with pytest.raises(ValueError, match="answers as given .now: in float16, top_k None"):
                again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
        else:
            again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
            assert again.state.global_step == 6


def test_a_run_resumed_in_mid_epoch_reads_the_same_mixtures(tmp_path):
    settings = {
        **{"architecture": "vit", "trainer": {"mixing": Mixing(mixup=0.8)}, "method": "ctkd"},
        **{"save_strategy": "steps", "save_steps": 4, "dataloader_num_workers": 1},
    }
    rows, cache = table(examples("vit", ROWS)), tmp_path / "cache"
    made = {"rows": rows, "teacher": classifier("vit", 7), **settings}
    whole = run(tmp_path / "whole", cache=TeacherCache(cache, views=2), **made)
    again = run(tmp_path / "again", cache=TeacherCache(cache, views=2), rows=rows, max_steps=4, **settings)
    again.args.max_steps = -1
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_close(weights(whole), weights(again), 0)


# ---- Streams


def stream(rows):
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def test_a_stream_finds_the_answers_by_what_its_rows_hold(tmp_path, asked):
    rows = examples("bert", ROWS, "mixed")
    settings = {"max_steps": 12, "train_sampling_strategy": "sequential"}
    live = run(tmp_path / "live", teacher=classifier("bert", 7), rows=stream(rows), **settings)
    asked.clear()
    teacher = classifier("bert", 7)
    run(tmp_path / "fill", teacher=teacher, cache=tmp_path / "cache", rows=stream(rows), **settings)
    assert sum(asked) == ROWS
    shuffled = stream(rows).shuffle(seed=3, buffer_size=8)
    asked.clear()
    run(tmp_path / "shuffled", teacher=teacher, cache=tmp_path / "cache", rows=shuffled, **settings)
    assert asked == []
    again = run(tmp_path / "again", cache=tmp_path / "cache", rows=stream(rows), **settings)
    assert_close(weights(live), weights(again), 1e-4)


def test_a_stream_with_rows_that_nobody_answered_is_refused_in_words(tmp_path, filled):
    rows = examples("bert", 4, seed=9)
    with pytest.raises(ValueError, match="holds no answer for 4 of 4 rows"):
        run(tmp_path / "run", cache=filled[0], rows=stream(rows), max_steps=1)


# ---- Refusals


def test_another_teacher_is_refused_and_nothing_is_asked(tmp_path, filled, asked):
    with pytest.raises(ValueError, match=r"was made with teacher.weights \w+ \(now: \w+\)"):
        run(tmp_path / "run", teacher=classifier("bert", 8), cache=filled[0])
    assert asked == []


def test_a_teacher_that_was_trained_on_is_refused(tmp_path, filled):
    teacher = classifier("bert", 7)
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.weight.mul_(1.001)
    with pytest.raises(ValueError, match="teacher.weights"):
        run(tmp_path / "run", teacher=teacher, cache=filled[0])


def test_other_precision_is_refused(tmp_path, filled):
    with pytest.raises(ValueError, match=r"teacher.precision float32 \(now: bfloat16\)"):
        run(tmp_path / "run", teacher=classifier("bert", 7).to(torch.bfloat16), cache=filled[0])


def test_other_inputs_of_the_same_rows_are_refused(tmp_path):
    """The text is the same, its tokens are not: another tokenizer, or a shorter `max_length`."""
    rows = [{**row, "text": f"row {i}"} for i, row in enumerate(examples("bert", ROWS))]
    run(tmp_path / "fill", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=table(rows))
    shorter = table([{**row, "input_ids": row["input_ids"][:6], "attention_mask": [1] * 6} for row in rows])
    for teacher in (None, classifier("bert", 7)):
        with pytest.raises(ValueError, match=r"row 0 of the training rows is not shown .* as it was .*24 of 24 rows"):
            run(tmp_path / "other", teacher=teacher, cache=tmp_path / "cache", rows=shorter)
    cache = TeacherCache(tmp_path / "cache", check_inputs=False)
    run(tmp_path / "allowed", cache=cache, rows=shorter, num_train_epochs=1)


def test_a_shorter_text_length_is_refused_though_it_cuts_few_rows(tmp_path):
    """One text of two hundred is long enough to be cut."""
    rows = [{**row, "text": f"row {i:03}"} for i, row in enumerate(examples("bert", 200))]
    rows[77]["text"] += " and much more"
    run(tmp_path / "fill", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=table(rows), max_steps=1)
    cut = [dict(row) for row in rows]
    cut[77] |= {"input_ids": rows[77]["input_ids"][:6], "attention_mask": [1] * 6}
    with pytest.raises(ValueError, match="row 77 of the training rows is not shown .* as it was"):
        run(tmp_path / "other", cache=tmp_path / "cache", rows=table(cut), max_steps=1)


@pytest.mark.parametrize("make", [lambda rows: table(rows), lambda rows: stream(rows)], ids=["table", "stream"])
def test_rows_that_only_share_a_text_that_is_no_input_are_refused(tmp_path, make):
    """The names of the labels beside tokens: by them all rows of a class would be one row."""
    rows = make([{**row, "label_text": f"class {row['labels']}"} for row in examples("bert", ROWS)])
    with pytest.raises(ValueError, match="have the same texts or images.*one of them would get the answer"):
        run(tmp_path / "run", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=rows, max_steps=1)


def test_other_inputs_of_a_stream_are_refused(tmp_path):
    rows = [{**row, "text": f"row {i}"} for i, row in enumerate(examples("bert", ROWS))]
    shorter = [{**row, "input_ids": row["input_ids"][:6], "attention_mask": [1] * 6} for row in rows]
    run(tmp_path / "fill", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=stream(rows), max_steps=1)
    for teacher in (None, classifier("bert", 7)):
        with pytest.raises(ValueError, match="is not shown to the teacher as it was"):
            run(tmp_path / "other", teacher=teacher, cache=tmp_path / "cache", rows=stream(shorter), max_steps=1)


def test_a_stream_that_changes_each_time_is_refused(tmp_path):
    def noise(row):
        return {**row, "input_ids": torch.randint(1, VOCABULARY, (LENGTH,)).tolist()}

    rows = stream([{**row, "text": f"row {i}"} for i, row in enumerate(examples("bert", ROWS))]).map(noise)
    with pytest.raises(ValueError, match="others each time they pass"):
        run(tmp_path / "run", teacher=classifier("bert", 7), cache=tmp_path / "cache", rows=rows, max_steps=1)


def test_labels_that_are_not_there_do_not_look_like_augmentation(tmp_path):
    rows = [{**row, "labels": math.nan if i % 3 else 0.5} for i, row in enumerate(examples("bert", 12, "none"))]
    teacher, student = head("bert", 7, "one-number"), head("bert", 1, "one-number")
    settings = {"rows": table(rows), "method": "logit_mse", "num_train_epochs": 1}
    run(tmp_path / "run", teacher=teacher, student=student, cache=tmp_path / "cache", **settings)


def test_a_teacher_changed_between_two_trainings_is_refused(tmp_path):
    teacher = classifier("bert", 7)
    trainer = run(tmp_path / "run", teacher=teacher, cache=tmp_path / "cache", num_train_epochs=1)
    trainer.train()
    with torch.no_grad():
        teacher.classifier.bias += 1
    with pytest.raises(ValueError, match="teacher.weights"):
        trainer.train()


def test_one_changed_weight_is_another_teacher(tmp_path, filled):
    folder, teacher = filled
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight[11, 5] += 1e-3
    with pytest.raises(ValueError, match=r"was made with teacher.checksum \w+ \(now: \w+\)"):
        run(tmp_path / "run", teacher=teacher, cache=folder)


def test_another_function_of_the_same_name_is_refused(tmp_path):
    def far_away(seed):
        model = classifier("bert", seed)
        return lambda input_ids, attention_mask: model(input_ids, attention_mask).logits

    settings = {"cache": tmp_path / "cache", "num_train_epochs": 1}
    run(tmp_path / "run", teacher=far_away(7), **settings)
    run(tmp_path / "again", teacher=far_away(7), **settings)
    with pytest.raises(ValueError, match="answers 4 of 4 rows otherwise than when the cache was filled"):
        run(tmp_path / "other", teacher=far_away(8), **settings)


def test_a_transform_set_on_the_same_rows_between_two_trainings_is_refused(tmp_path):
    rows = table([{**row, "text": f"row {i}"} for i, row in enumerate(examples("bert", ROWS))])
    trainer = run(tmp_path / "run", cache=tmp_path / "cache", teacher=classifier("bert", 7), rows=rows, max_steps=1)
    rows.set_transform(lambda batch: {**batch, "input_ids": [ids[::-1] for ids in batch["input_ids"]]})
    with pytest.raises(ValueError, match="is not shown to the teacher as it was"):
        trainer.train()


def test_missing_answers_without_a_teacher_are_refused(tmp_path, filled):
    rows = table(examples("bert", ROWS, "mixed") + examples("bert", 3, seed=5))
    with pytest.raises(ValueError, match="lacks 3 of 27 answers to the training rows, and there is no teacher"):
        run(tmp_path / "run", cache=filled[0], rows=rows)
    with pytest.raises(ValueError, match="the cache is empty and there is no teacher to fill it"):
        run(tmp_path / "run", cache=tmp_path / "nothing")


def test_features_that_were_not_stored_are_refused(tmp_path, filled):
    for teacher in (None, filled[1]):
        with pytest.raises(ValueError, match="without|no pooled features"):
            run(tmp_path / "run", teacher=teacher, cache=filled[0], method="feature_mse")


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"teacher_cache": 3}, "got int.*Pass a folder, or a `TeacherCache`"),
        ({"mixing": Mixing(mixup=0.8)}, "Say how many of each row, e.g. `TeacherCache\\(folder, views=8\\)`"),
        ({"teacher_model": "self"}, "always there"),
    ],
)
def test_what_does_not_go_with_a_cache_is_refused(tmp_path, trainer, words):
    teacher = trainer.pop("teacher_model", classifier("vit", 7))
    with pytest.raises((ValueError, TypeError), match=words):
        run(tmp_path / "run", teacher=teacher, cache=tmp_path / "cache", architecture="vit", trainer=trainer)


def test_stored_logits_in_the_data_beside_a_cache_are_refused(tmp_path, filled):
    rows = [{**row, "teacher_logits": [0.0] * CLASSES} for row in examples("bert", ROWS)]
    with pytest.raises(ValueError, match="the data have a column `teacher_logits` too"):
        run(tmp_path / "run", cache=filled[0], rows=table(rows))


def test_views_that_contradict_are_refused(tmp_path):
    cache = TeacherCache(tmp_path / "cache", views=2)
    with pytest.raises(ValueError, match=r"augmentation_views=3\)` and `TeacherCache\(views=2\)` contradict"):
        run(tmp_path / "run", teacher=classifier("bert", 7), cache=cache, rows=noisy(), augmentation_views=3)


def test_a_baseline_asks_nobody(tmp_path, asked):
    objective = DistillationObjective([(1.0, KDLoss(4.0))], ce_weight=1.0, kd_weight=0.0)
    run(tmp_path / "run", teacher=classifier("bert", 7), cache=tmp_path / "cache", trainer={"objective": objective})
    assert asked == []
    assert not (tmp_path / "cache").exists()


def test_a_cache_travels_to_other_processes(filled):
    cache = TeacherCache(filled[0])
    keys = row_keys(table(examples("bert", ROWS, "mixed")))
    copy = pickle.loads(pickle.dumps(cache))
    places = copy.find(keys)
    assert torch.equal(copy.read(places)["teacher_logits"], cache.read(places)["teacher_logits"])
