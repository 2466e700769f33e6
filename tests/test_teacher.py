"""The teacher: trained or refused, matched class by class, run frozen and like the student, never kept."""

import hashlib

import pytest
import torch
from tiny import ARCHITECTURES, CLASSES, Rows, build_trainer, classifier, examples, logits, table, train, weights
from transformers import BertModel

from hf_kd import ConfigError, load_teacher
from hf_kd.teacher import FrozenTeacher

ROWS = examples("bert", 8)


@pytest.fixture
def student():
    return classifier("bert", 0)


@pytest.fixture
def teacher():
    return classifier("bert", 1)


def fingerprint(model):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def observed(module, seen):
    """Append `(training, grad enabled, dtype of the output)` of every call to `seen`."""
    module.register_forward_hook(lambda m, _, output: seen.append((m.training, torch.is_grad_enabled(), output.dtype)))


# --- Running it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_teacher_is_placed_on_first_use_and_never_prepared(bf16, student, teacher, tmp_path, monkeypatch):
    """A teacher prepared in `__init__` makes `evaluate()` run the student without its autocast, and is bound to an
    accelerator that a search or a second run replaces."""
    moved = []
    monkeypatch.setattr(teacher, "to", lambda *args, **kwargs: moved.append(args) or teacher)
    seen = []
    observed(student.classifier, seen)
    trainer = build_trainer(tmp_path, student, teacher, table(ROWS), trainer={"eval_dataset": table(ROWS)}, bf16=bf16)
    assert moved == []
    assert trainer.accelerator._models == []

    dtype = torch.bfloat16 if bf16 else torch.float32
    assert trainer.evaluate()["eval_loss"] > 0
    assert moved == []  # an evaluation without it costs nothing
    assert {found for _, _, found in seen} == {dtype}
    trainer.train()
    assert moved == [(torch.device("cpu"),)]
    assert {found for _, _, found in seen} == {dtype}
    assert [trainer.accelerator.unwrap_model(m) for m in trainer.accelerator._models] == [student]


def test_teacher_runs_in_eval_mode_without_gradient_whatever_the_user_did(student, teacher, tmp_path):
    """Dropout in the teacher is noise in the targets; a graph through it is memory for nothing."""
    seen = []
    observed(teacher.classifier, seen)
    trainer = build_trainer(tmp_path, student, teacher, table(ROWS))
    teacher.train()
    trainer.train()
    assert seen == [(False, False, torch.float32)] * 2
    assert not any(p.requires_grad for p in teacher.parameters())


def test_teacher_is_neither_trained_nor_saved(student, teacher, tmp_path):
    """A teacher under the optimizer drifts (weight decay alone suffices); one in the checkpoint doubles its size."""
    before = fingerprint(teacher)
    trainer = train(
        tmp_path, student, teacher, table(ROWS), optim="adamw_torch", weight_decay=0.1, save_strategy="epoch"
    )
    assert fingerprint(teacher) == before
    stepped = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not stepped & {id(p) for p in teacher.parameters()}
    assert not any("teacher" in name for name, _ in trainer.model.named_parameters())
    saved = sum(f.stat().st_size for f in (tmp_path / "checkpoint-2").iterdir() if f.suffix == ".safetensors")
    size = sum(p.numel() * 4 for p in student.parameters())
    assert saved < 1.2 * size


def test_teacher_is_autocast_like_the_student(student, teacher, tmp_path):
    """An unprepared teacher stays in float32 under bf16: half the speed, and targets of another precision."""
    seen = {"student": [], "teacher": []}
    observed(student.classifier, seen["student"])
    observed(teacher.classifier, seen["teacher"])
    trainer = train(tmp_path, student, teacher, table(ROWS), bf16=True)
    for calls in seen.values():
        assert {dtype for _, _, dtype in calls} == {torch.bfloat16}
    assert trainer._teacher_logits(Rows(ROWS)[0] | batch(ROWS)).dtype == torch.float32
    assert trainer.state.log_history[0]["kd_loss"] > 0


def batch(rows):
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_teacher_takes_the_batch_as_it_is(architecture, tmp_path):
    """`from_pretrained` keeps a checkpoint's bfloat16, and convolutions refuse float32 pixels then."""
    rows = examples(architecture, 4)
    half = classifier(architecture, 1).to(torch.bfloat16)
    trainer = train(tmp_path, classifier(architecture, 0), half, table(rows))
    expected = logits(classifier(architecture, 1), rows)
    answer = trainer._teacher_logits(batch(rows))
    assert answer.dtype == torch.float32
    assert (answer - expected).abs().max() < 0.1 * expected.abs().max()


def test_no_teacher_runs_at_kd_weight_0(student, teacher, tmp_path):
    """A baseline must not pay for a teacher, nor need one."""
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    with_teacher = train(tmp_path, student, teacher, table(ROWS), kd_weight=0.0)
    assert calls == []
    without = train(tmp_path, classifier("bert", 0), None, table(ROWS), kd_weight=0.0)
    torch.testing.assert_close(weights(without.model), weights(with_teacher.model), rtol=0, atol=0)


# --- Other kinds of teacher ------------------------------------------------------------------------------------------


def kinds_of_teacher():
    def named(input_ids, attention_mask):
        return classifier("bert", 1).eval()(input_ids=input_ids, attention_mask=attention_mask).logits

    def anything(**columns):
        return named(**columns)

    def as_array(input_ids, attention_mask):
        return named(input_ids, attention_mask).numpy()

    def as_mapping(input_ids, attention_mask):
        return {"logits": named(input_ids, attention_mask)}

    return {kind.__name__: kind for kind in (named, anything, as_array, as_mapping)}


@pytest.mark.parametrize("kind", kinds_of_teacher())
def test_any_function_from_columns_to_logits_is_a_teacher(kind, student, teacher, tmp_path):
    """Ensembles, remote models and other libraries' models teach like a model of transformers."""
    expected = weights(train(tmp_path, student, teacher, table(ROWS)).model)
    trainer = train(tmp_path, classifier("bert", 0), kinds_of_teacher()[kind], table(ROWS))
    torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=0)


@pytest.mark.parametrize("make", [table, Rows], ids=["datasets", "torch"])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_a_column_of_logits_is_a_teacher(with_teacher, make, student, teacher, tmp_path):
    """Logits computed before must survive the removal of columns, and give the same run as the live teacher."""
    expected = weights(train(tmp_path, student, teacher, table(ROWS)).model)
    answers = logits(teacher, ROWS).tolist()
    rows = [row | {"teacher_logits": answer} for row, answer in zip(ROWS, answers, strict=True)]
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer = train(tmp_path, classifier("bert", 0), teacher if with_teacher else None, make(rows))
    assert calls == []
    torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_path_is_a_teacher(kind, student, teacher, tmp_path):
    """The name of a checkpoint is what most users have at hand."""
    expected = weights(train(tmp_path, student, teacher, table(ROWS)).model)
    teacher.save_pretrained(tmp_path / "teacher")
    trainer = train(tmp_path, classifier("bert", 0), kind(tmp_path / "teacher"), table(ROWS))
    torch.testing.assert_close(weights(trainer.model), expected, rtol=0, atol=0)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_headless_checkpoint_is_refused(student, tmp_path):
    """`from_pretrained` initialises a missing head at random and only a log line says so; the student learns noise."""
    BertModel(classifier("bert", 1).config).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"classifier\.bias, classifier\.weight freshly initialised"):
        load_teacher(str(tmp_path / "base"))
    with pytest.raises(ValueError, match="freshly initialised"):
        build_trainer(tmp_path, student, str(tmp_path / "base"), table(ROWS))


def test_replaced_head_is_refused(teacher, tmp_path):
    """`ignore_mismatched_sizes` throws the trained head away."""
    teacher.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path)).config.num_labels == CLASSES
    with pytest.raises(ValueError, match="freshly initialised"):
        load_teacher(str(tmp_path), num_labels=3, ignore_mismatched_sizes=True)


def test_checkpoint_that_is_not_there_is_refused_in_words(student, tmp_path):
    with pytest.raises(ConfigError, match="teacher_model: .* could not be loaded"):
        build_trainer(tmp_path, student, str(tmp_path / "nowhere"), table(ROWS))


def test_student_is_not_its_own_teacher(student, tmp_path):
    """Freezing the teacher would freeze the student: a run that ends early, having learned nothing."""
    with pytest.raises(ValueError, match="share weights"):
        build_trainer(tmp_path, student, student, table(ROWS))
    teacher = classifier("bert", 1)
    teacher.bert.embeddings = student.bert.embeddings
    with pytest.raises(ValueError, match="share weights"):
        build_trainer(tmp_path, student, teacher, table(ROWS))
    assert all(p.requires_grad for p in student.parameters())


def test_other_number_of_classes_is_refused(student, tmp_path):
    with pytest.raises(ValueError, match="predicts 7 labels but `model` predicts 5"):
        build_trainer(tmp_path, student, classifier("bert", 1, classes=7), table(ROWS))
    trainer = build_trainer(tmp_path, student, lambda input_ids: torch.zeros(len(input_ids), 7), table(ROWS))
    with pytest.raises(ValueError, match=r"shape \(4, 7\), `model` with \(4, 5\)"):
        trainer.train()


def named_classes(seed, *names):
    return classifier("bert", seed, classes=len(names), id2label=dict(enumerate(names)))


def test_other_classes_are_refused_with_both_names(tmp_path):
    """A teacher of another task answers too, and the loss looks fine."""
    with pytest.raises(ValueError, match=r"Teacher: 'dog', 'cat', 'gnu'\. Student: 'cat', 'dog', 'emu'"):
        build_trainer(tmp_path, named_classes(0, "cat", "dog", "emu"), named_classes(1, "dog", "cat", "gnu"))


@pytest.mark.parametrize(
    "names", [("Cat", "Guinea-Pig"), ("cat", "guinea  pig"), ("LABEL_0", "LABEL_1"), ("cat", "guinea_pig")], ids=str
)
def test_same_classes_under_other_spellings_are_accepted(names, tmp_path):
    """Generic names say nothing, and nobody should have to rename `Guinea-Pig`."""
    build_trainer(tmp_path, named_classes(0, "cat", "guinea_pig"), named_classes(1, *names))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_teacher_is_stopped_at_the_first_batch(value, student, tmp_path):
    """One NaN target and every weight is NaN one step later."""

    def teacher(input_ids):
        answer = torch.zeros(len(input_ids), CLASSES)
        answer[1, 2] = value
        return answer

    trainer = build_trainer(tmp_path, student, teacher, table(ROWS))
    with pytest.raises(ValueError, match="NaN or infinite logits on 1 of 4 rows of the first batch"):
        trainer.train()


def test_things_that_do_not_answer_are_refused_in_words(student, tmp_path):
    with pytest.raises(TypeError, match="cannot be called"):
        build_trainer(tmp_path, student, {"logits": 1}, table(ROWS))
    headless = build_trainer(tmp_path, student, BertModel(student.config), table(ROWS))
    with pytest.raises(ValueError, match="without `logits`"):
        headless.train()
    stranger = build_trainer(tmp_path, student, lambda pixel_values: pixel_values, table(ROWS))
    with pytest.raises(ValueError, match="`teacher_model` reads pixel_values and the batch has .*input_ids"):
        stranger.train()


@pytest.mark.parametrize("is_good", [False, True])
def test_teacher_near_chance_is_reported(is_good, student, tmp_path, caplog):
    """A head that was never trained, shuffled labels or wrong inputs: the run looks healthy and teaches noise."""
    rows = examples("bert", 160)
    for index, row in enumerate(rows):
        row["teacher_logits"] = [0.0] * CLASSES
        row["teacher_logits"][row["labels"] if is_good else index % CLASSES] = 5.0
    trainer = train(tmp_path, student, None, table(rows), per_device_train_batch_size=16)
    assert ("Check that its head is trained" in caplog.text) is not is_good
    right = [record["teacher_accuracy"] for record in trainer.state.log_history[:-1]]
    assert (min(right) == 1.0) is is_good


def test_frozen_teacher_leaves_placed_models_where_they_are(student):
    """Quantised and dispatched models refuse to be moved."""
    teacher = classifier("bert", 1)
    teacher.hf_device_map = {"": "cpu"}
    teacher.to = None  # would not be callable
    frozen = FrozenTeacher(teacher, student)
    frozen._place(torch.device("cpu"))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("convnext", {"channels_last": True}),
        ("resnet", {"channels_last": True}),
        ("vit", {"attn_implementation": "eager"}),
        ("bert", {"attn_implementation": "eager"}),
    ],
)
def test_ways_to_compute_change_no_answer(tmp_path, architecture, options):
    """Up to rounding; and the weights are laid out, or attended to, as asked."""
    classifier(architecture, 3).save_pretrained(tmp_path)
    plain, other = load_teacher(str(tmp_path)), load_teacher(str(tmp_path), **options)
    rows = examples(architecture, 6)
    torch.testing.assert_close(logits(other, rows), logits(plain, rows), rtol=1e-4, atol=1e-5)
    if "channels_last" in options:
        kernels = [weight for weight in other.parameters() if weight.dim() == 4 and min(weight.shape[1:]) > 1]
        assert kernels
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    else:
        assert (plain.config._attn_implementation, other.config._attn_implementation) == ("sdpa", "eager")


@pytest.mark.parametrize("is_run", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_teacher_keeps_its_name_and_answers(tmp_path, is_run):
    """Wrapped instead, it would be another class with other keys: to the cards, to resume, and to a cache."""
    classifier("bert", 3).save_pretrained(tmp_path)
    plain, compiled = load_teacher(str(tmp_path)), load_teacher(str(tmp_path), torch_compile=True)
    assert compiled._compiled_call_impl is not None
    assert type(compiled) is type(plain)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    if is_run:
        rows = examples("bert", 6)
        torch.testing.assert_close(logits(compiled, rows), logits(plain, rows), rtol=1e-4, atol=1e-5)
