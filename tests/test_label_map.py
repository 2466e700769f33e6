"""Labels between teacher and student: matched by name, said in words, exact in the loss."""

import json
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny import LogitTable, Rows, build_trainer, classifier, examples, logits, table, train, update, weights

from hf_kd import DistillationObjective, build_objective
from hf_kd.label_map import LabelMap, normalized
from hf_kd.losses import KDLoss
from hf_kd.objective import Batch

NAMES = ("cat", "dog", "emu", "fox", "gnu")
ORDER = (3, 0, 4, 1, 2)
"""Place of each class in the permuted teacher's head."""


def named(architecture, seed, names, **config):
    """A classifier with named classes."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    return classifier(architecture, seed, classes=len(names), **labels, **config)


def rebuilt(teacher, columns, names):
    """The same teacher with other rows in its last layer: `columns` are class ids of its own."""
    other = named("bert", 1, names)
    state = weights(teacher)
    for key in ("classifier.weight", "classifier.bias"):
        state[key] = state[key][list(columns)]
    other.load_state_dict(state)
    return other


# --- Matching --------------------------------------------------------------------------------------------------------


def test_another_order_is_undone():
    """The most common accident: sorted by name here, by frequency there."""
    label_map = LabelMap.match(["dog", "Guinea-Pig", "cat"], ["cat", "dog", "guinea  pig"])
    assert (label_map.groups, label_map.by) == (((2,), (0,), (1,)), "name")
    assert (label_map.is_identity, label_map.is_complete, label_map.is_one_to_one) == (False, True, True)
    answer = torch.tensor([[1.0, 2.0, 3.0]])
    assert label_map(answer).tolist() == [[3.0, 1.0, 2.0]]


def test_classes_that_only_the_teacher_has_are_left_out_and_the_rest_renormalised():
    """Its distribution given that it is one of the student's: `p_k / (p_cat + p_dog)`."""
    label_map = LabelMap.match(["cat", "emu", "dog"], ["dog", "cat"])
    answer = torch.tensor([[0.3, 2.0, -1.0]], dtype=torch.float64)
    p = answer.softmax(-1)[0]
    expected = torch.stack([p[2], p[0]]) / (p[0] + p[2])
    torch.testing.assert_close(label_map(answer).softmax(-1)[0], expected)


def test_several_classes_become_one_with_their_summed_probability():
    label_map = LabelMap.match(
        ["tabby", "siamese", "dog", "emu"], ["dog", "cat"], {"tabby": "cat", "siamese": "cat", "emu": None}
    )
    assert label_map.groups == ((2,), (0, 1))
    answer = torch.tensor([[0.3, 2.0, -1.0, 5.0], [-700.0, -690.0, 1.0, 0.0]], dtype=torch.float64)
    p = answer[:, :3].softmax(-1)
    torch.testing.assert_close(label_map(answer).softmax(-1), torch.stack([p[:, 2], p[:, 0] + p[:, 1]], dim=-1))


def test_of_several_labels_per_row_the_union_is_at_least_one_of_them():
    """Sigmoids do not sum to one: the union of two labels of 0.5 each is 0.75, not a logit of ln 2."""
    label_map = LabelMap.match(["a", "b", "c"], ["c", "ab"], {"a": "ab", "b": "ab"})
    answer = torch.tensor([[0.0, 0.0, -3.0], [-200.0, -300.0, 1.0], [90.0, 1.0, 0.5]])
    mapped = label_map(answer, "multi_label_classification")
    assert mapped[0, 1].sigmoid().item() == pytest.approx(0.75, abs=1e-6)
    assert mapped[1, 1].item() == pytest.approx(-200.0)  # softplus is 0 there in float32
    assert mapped[2, 1].item() == pytest.approx(90.0 + 1.3133, abs=1e-3)  # ln((1 + e^90)(1 + e) - 1)
    torch.testing.assert_close(mapped[:, 0], answer[:, 2])


def test_a_students_further_classes_have_no_column():
    label_map = LabelMap.match(["emu", "cat"], ["cat", "dog", "emu"])
    assert (label_map.groups, label_map.shared, label_map.is_complete) == (((1,), (), (0,)), (0, 2), False)
    assert label_map(torch.tensor([[1.0, 2.0]])).tolist() == [[2.0, 1.0]]


def test_names_that_transformers_makes_up_are_matched_by_position():
    generic = [f"LABEL_{index}" for index in range(3)]
    for teacher, student, must_be_checked in (
        (generic, generic, False),
        (generic, ["a", "b", "c"], True),
        (["a", "b", "c"], generic, True),
    ):
        label_map = LabelMap.match(teacher, student)
        assert (label_map.by, label_map.is_identity, label_map.must_be_checked) == ("position", True, must_be_checked)
    with pytest.raises(ValueError, match="predicts 3 labels but `model` predicts 2.*label_map"):
        LabelMap.match(generic, ["a", "b"])
    with pytest.raises(ValueError, match="predicts 3 labels but `model` predicts 2"):
        LabelMap.match(generic, generic[:2])  # equal made-up names mean nothing
    assert LabelMap.match(generic, ["a", "b"], {"LABEL_2": "a", "LABEL_0": "b"}).groups == ((2,), (0,))


def test_repeated_names_are_fine_in_the_same_order_and_refused_in_another():
    """ImageNet has two cranes, the bird and the machine."""
    assert LabelMap.match(["crane", "cat", "crane"], ["crane", "cat", "crane"]).is_identity
    with pytest.raises(ValueError, match="'crane' is the name of several classes"):
        LabelMap.match(["crane", "crane", "cat"], ["cat", "crane", "crane"])


def test_classes_of_one_name_are_told_apart_by_id():
    """ImageNet has two cranes; models call both so, and the data set calls the second one crane2."""
    teacher, student = ["crane", "dog", "crane", "7"], ["crane", "dog", "crane2", "seven"]
    with pytest.raises(ValueError, match=r"several classes .* by id: `label_map=\{0: ...\}`"):
        LabelMap.match(teacher, student)
    label_map = LabelMap.match(teacher, student, {2: "crane2", 7: "seven"})  # a class's name goes before an id
    assert (label_map.is_identity, label_map.by) == (True, "map")
    assert LabelMap.match(["a", "a"], ["a", "b"], {"1": "b"}).is_identity
    with pytest.raises(ValueError, match="'4' is no class of `teacher_model`"):
        LabelMap.match(teacher, student, {4: "crane2"})


@pytest.mark.parametrize(
    ("teacher", "student", "mapping", "message"),
    [
        (
            NAMES,
            ("cat", "dog", "emu", "fox", "gnus"),
            None,
            r"'gnu' may be 'gnus'.*Teacher: 'cat', .*label_map=\{'gnu'",
        ),
        (("a", "b"), ("c", "d"), None, "'a', 'b' and the student's 'c', 'd' have no partner"),
        (NAMES, NAMES, {"catt": "cat"}, "'catt' is no class of `teacher_model`. Did you mean 'cat'"),
        (NAMES, NAMES, {"cat": "dgo"}, "'dgo' is no class of `model`. Did you mean 'dog'"),
        (NAMES, NAMES, ["cat"], r"must map names"),
        (NAMES, NAMES, {"cat": ["dog"]}, r"must map names"),
        ([str(i) for i in range(99)], [str(i) for i in range(1, 100)], None, r"'0' and .*\(99 in all\)"),
    ],
)
def test_names_without_a_partner_are_refused_with_both_lists(teacher, student, mapping, message):
    """Dropped in silence, a misspelt class is never taught."""
    with pytest.raises(ValueError, match=message):
        LabelMap.match(teacher, student, mapping)


@pytest.mark.parametrize(("suffix", "dump"), [("json", json.dumps), ("yaml", yaml.safe_dump)])
def test_a_file_of_a_mapping_is_read(suffix, dump, tmp_path):
    path = tmp_path / f"labels.{suffix}"
    path.write_text(dump({"tabby": "cat", "emu": None}))
    assert LabelMap.match(["dog", "tabby", "emu"], ["cat", "dog"], path).groups == ((1,), (0,))
    with pytest.raises(ValueError, match="cannot be read"):
        LabelMap.match(["a"], ["b"], tmp_path / "nowhere.json")
    path.write_text("a: [")
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        LabelMap.match(["a"], ["b"], path)


def test_a_map_travels():
    """To other processes, and into a manifest."""
    label_map = LabelMap.match(["tabby", "dog"], ["dog", "cat", "emu"], {"tabby": "cat"})
    assert pickle.loads(pickle.dumps(label_map)) == label_map
    assert LabelMap.from_dict(json.loads(json.dumps(label_map.to_dict()))) == label_map
    with pytest.raises(AttributeError):
        label_map.by = "luck"
    with pytest.raises(ValueError, match="in one group at most"):
        LabelMap(("a",), ("a", "b"), ((0,), (0,)))


def test_the_report_shows_every_class_on_either_side():
    report = LabelMap.match(["tabby", "dog", "ox"], ["dog", "cat"], {"tabby": "cat", "ox": None}).report()
    assert report.splitlines() == [
        "2 of 3 teacher classes teach 2 of 2 student classes (by map):",
        "  teacher  student",
        "  1 dog    0 dog",
        "  0 tabby  1 cat",
        "  2 ox     -",
    ]
    assert LabelMap.match(NAMES, NAMES).report(limit=2).endswith("  … and 3 more")


def test_normalised_names_ignore_case_and_separators():
    assert normalized("  Guinea-Pig_x ") == "guinea_pig_x"


def test_logits_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"teacher with 2 classes and got logits of shape \(1, 3\)"):
        LabelMap.match(["a", "b"], ["b", "a"])(torch.zeros(1, 3))


# --- The same teacher under other labels teaches the same -----------------------------------------------------------


ROWS = examples("bert", 16, "mixed")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """What a teacher with the student's own labels makes of a student, and the logs of it."""
    trainer = train(
        tmp_path_factory.mktemp("aligned"), named("bert", 0, NAMES), named("bert", 1, NAMES), table(ROWS), method="kd"
    )
    return weights(trainer.model), trainer.state.log_history


def test_a_permuted_teacher_gives_the_same_run(aligned, tmp_path):
    """Bit for bit: exchanging columns is no arithmetic."""
    permuted = [NAMES[index] for index in ORDER]
    teacher = rebuilt(named("bert", 1, NAMES), ORDER, permuted)
    assert not torch.equal(logits(teacher, ROWS).argmax(-1), logits(named("bert", 1, NAMES), ROWS).argmax(-1))
    trainer = train(tmp_path, named("bert", 0, NAMES), teacher, table(ROWS), method="kd")
    torch.testing.assert_close(weights(trainer.model), aligned[0], rtol=0, atol=1e-6)
    assert trainer.state.log_history[0]["kd_loss"] == pytest.approx(aligned[1][0]["kd_loss"], rel=1e-6)
    assert trainer.state.log_history[1]["teacher_accuracy"] == aligned[1][1]["teacher_accuracy"]


def test_a_teacher_of_more_classes_gives_the_run_of_its_restriction(aligned, tmp_path):
    """Whatever it says of the others must not reach the student."""
    teacher = rebuilt(named("bert", 1, NAMES), (4, 1, 0, 3, 0, 2), ("gnu", "dog", "cat", "fox", "ox", "emu"))
    trainer = train(
        tmp_path, named("bert", 0, NAMES), teacher, table(ROWS), method="kd", trainer={"label_map": {"ox": None}}
    )
    torch.testing.assert_close(weights(trainer.model), aligned[0], rtol=0, atol=1e-6)
    plain = train(tmp_path, named("bert", 0, NAMES), teacher, table(ROWS), method="kd")
    torch.testing.assert_close(weights(plain.model), aligned[0], rtol=0, atol=1e-6)


def test_a_users_names_give_the_same_run(aligned, tmp_path):
    other = ("chat", "chien", "emeu", "renard", "gnou")
    trainer = train(
        tmp_path,
        named("bert", 0, NAMES),
        rebuilt(named("bert", 1, NAMES), range(5), other),
        table(ROWS),
        method="kd",
        trainer={"label_map": dict(zip(other, NAMES, strict=True))},
    )
    torch.testing.assert_close(weights(trainer.model), aligned[0], rtol=0, atol=0)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_column_of_logits_is_in_the_teachers_order(with_teacher, aligned, tmp_path):
    """Stored before the map: one file serves every student."""
    names = [NAMES[index] for index in ORDER] + ["ox"]
    teacher = rebuilt(named("bert", 1, NAMES), (*ORDER, 0), names)
    rows = [row | {"teacher_logits": a} for row, a in zip(ROWS, logits(teacher, ROWS).tolist(), strict=True)]
    given = {"trainer": {"label_map": LabelMap.match(names, NAMES)}}
    trainer = train(
        tmp_path, named("bert", 0, NAMES), teacher if with_teacher else None, table(rows), method="kd", **given
    )
    torch.testing.assert_close(weights(trainer.model), aligned[0], rtol=0, atol=1e-6)
    without = train(tmp_path, named("bert", 0, NAMES), None, table(ROWS), method="kd", kd_weight=0.0, **given)
    assert without.state.global_step == 4
    missing = build_trainer(tmp_path, named("bert", 0, NAMES), None, table(ROWS), method="kd", **given)
    with pytest.raises(ValueError, match="batch without a `teacher_logits` column"):
        missing.train()


@pytest.mark.parametrize("method", ["wkd_l", "feature_mse"])
def test_losses_that_look_into_the_teacher_see_its_classes_in_the_students_order(method, tmp_path):
    """The rows of its last layer must be exchanged like its logits; its features have no order."""
    runs = []
    for order in (range(5), ORDER):
        teacher = rebuilt(named("bert", 1, NAMES), order, [NAMES[index] for index in order])
        rows = table(examples("bert", 8))
        runs.append(weights(train(tmp_path, named("bert", 0, NAMES), teacher, rows, method=method).model))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-5)
    if method == "wkd_l":
        teacher = rebuilt(named("bert", 1, NAMES), (0, 1, 2, 3, 4, 4), (*NAMES, "ox"))
        joined = {"trainer": {"label_map": {"ox": "cat"}}, "method": method}
        with pytest.raises(ValueError, match="none for their union"):
            train(tmp_path, named("bert", 0, NAMES), teacher, table(ROWS), **joined)


def test_several_labels_per_row_are_matched_by_label(tmp_path):
    problem = {"problem_type": "multi_label_classification"}
    rows = table([row | {"labels": [float(index == row["labels"]) for index in range(5)]} for row in ROWS])
    runs = []
    for order in (range(5), ORDER):
        teacher = rebuilt(named("bert", 1, NAMES), order, [NAMES[index] for index in order])
        run = train(tmp_path, named("bert", 0, NAMES, **problem), teacher, rows, method="bernoulli_kl")
        runs.append(weights(run.model))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-6)


def test_a_new_student_brings_its_own_labels(tmp_path):
    """With `model_init` the model of `__init__` is not the trained one, and a map bound to it is of another head."""
    orders = iter([NAMES, NAMES[::-1]])
    seen = []

    def model_init():
        return named("bert", 0, next(orders, NAMES[::-1]))

    trainer = build_trainer(
        tmp_path, None, named("bert", 1, NAMES), table(ROWS), method="kd", trainer={"model_init": model_init}
    )
    seen.append(trainer.teacher.label_map.is_identity)
    trainer.train()
    assert seen == [True]
    assert trainer.teacher.label_map.groups == ((4,), (3,), (2,), (1,), (0,))


# --- A student that knows more ---------------------------------------------------------------------------------------


SHARED = (0, 2, 3)
LABELS = torch.tensor([0, 1, 2, -100, 3, 4, 4, 2])


def batch(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(8, 5, generator=generator, dtype=dtype)
    return student, 3 * torch.randn(8, 3, generator=generator, dtype=dtype)


def bound(name, shared=SHARED, **settings):
    objective = build_objective(name, num_labels=len(shared), **settings).double()
    objective.bind({"num_labels": 5}, shared=shared)
    return objective.double()


def by_hand(name, student, teacher, **settings):
    """CE over all labelled rows; the method, made for three classes, over the rows that it may see."""
    rows = [index for index, label in enumerate(LABELS.tolist()) if label not in (1, 4)]
    places = torch.tensor([{-100: -100, 0: 0, 2: 1, 3: 2}[LABELS[index].item()] for index in rows])
    plain = build_objective(name, num_labels=3, **settings).double()
    kd = plain(student[rows][:, SHARED], teacher[rows], places).loss
    kd = kd - plain.ce_weight * F.cross_entropy(student[rows][:, SHARED], places, ignore_index=-100)
    return plain.ce_weight * F.cross_entropy(student, LABELS, ignore_index=-100) + kd


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "logit_mse", "dtkd", "wttm", "nkd"])
def test_distillation_over_the_shared_classes_is_exact(name):
    """Value and gradient: labels outside train the classifier alone, and no other class leaks into the losses."""
    student, teacher = batch()
    results = []
    for function in (lambda z: bound(name)(z, teacher, LABELS).loss, lambda z: by_hand(name, z, teacher)):
        z = student.clone().requires_grad_()
        value = function(z)
        value.backward()
        results.append((value.detach(), z.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["kd", "dkd"])
@pytest.mark.parametrize("split", [[3, 5], [1, 1, 6], [2, 4, 2]])
def test_micro_batches_add_up_over_the_shared_classes(name, split):
    """The rows left out are counted over the whole step, not per micro-batch."""
    student, teacher = batch()
    objective, results = bound(name), []
    for parts in ([8], split):
        z, total = student.clone().requires_grad_(), 0.0
        counts = {"num_rows": 8, "num_labelled": 7, "taught_counts": (5, 4)}
        for part in zip(z.split(parts), teacher.split(parts), LABELS.split(parts), strict=True):
            total = total + objective(*part, **counts).loss
        total.backward()
        results.append((total.detach(), z.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(results[0][0], bound(name)(student, teacher, LABELS).loss)


def test_a_batch_of_other_classes_alone_trains_the_classifier_alone():
    """Nothing to distil is 0, not 0/0; a relation of no rows would be NaN."""
    student, teacher = batch()
    labels = torch.tensor([1, 4] * 4)
    for name in ("kd", "dkd", "dist", "pkt"):
        z = student.clone().requires_grad_()
        output = bound(name)(z, teacher, labels)
        output.loss.backward()
        assert output.components["kd_loss"] == 0
        expected = student.clone().requires_grad_()
        (bound(name).ce_weight * F.cross_entropy(expected, labels)).backward()
        torch.testing.assert_close(z.grad, expected.grad)


def test_a_relation_over_all_processes_sees_the_taught_rows_alone():
    """What is gathered holds every row; each process then adds its share of the taught ones."""
    student, teacher = batch()
    whole = Batch(student, teacher, LABELS)
    expected = bound("dist")(student, teacher, LABELS).components["kd_loss"]
    parts = [
        bound("dist")(z, v, y, num_rows=8, num_labelled=7, taught_counts=(5, 4), whole_batch=whole)
        for z, v, y in zip(student.split(3), teacher.split(3), LABELS.split(3), strict=True)
    ]
    torch.testing.assert_close(sum(part.components["kd_loss"] for part in parts), expected)


def test_task_serialisation_classifies_all_classes_on_the_layer():
    objective = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=0.5, kd_weight=1.0, task_serialization=True)
    objective.bind({"num_labels": 5}, shared=SHARED)
    assert objective.serialization.in_features == 5
    with torch.no_grad():
        objective.serialization.weight.mul_(2.0)
    student, teacher = batch(dtype=torch.float32)
    output = objective(student, teacher, LABELS)
    ce = 0.5 * F.cross_entropy(2 * student, LABELS, ignore_index=-100)
    torch.testing.assert_close(output.components["ce_loss"], ce)
    taught = torch.tensor([0, 2, 3, 4, 7])
    kd = KDLoss(2.0)(student[taught][:, SHARED], teacher[taught]).loss.mean()
    torch.testing.assert_close(output.components["kd_loss"], kd)


def test_losses_without_a_teacher_see_all_classes_and_rows():
    """Teacher-free regularisation looks at the labels, which know all classes."""
    student, teacher = batch()
    plain = build_objective("tf_kd", num_labels=5).double()
    expected = plain(student, None, LABELS).loss
    plain.bind({"num_labels": 5}, shared=SHARED)
    torch.testing.assert_close(plain(student, teacher, LABELS).loss, expected)


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "ctkd"])
def test_one_step_is_the_same_for_every_split_with_a_teacher_of_fewer_classes(method, tmp_path):
    """The trainer counts the rows that the teacher has a say on; `dist` relates rows, so it is split in one way."""
    names = [NAMES[index] for index in SHARED]
    rows = examples("bert", 8, "mixed")
    before, updates = weights(named("bert", 0, NAMES)), []
    for size, steps in ((8, 1), (2, 4)) if method != "dist" else ((8, 1), (8, 1)):
        trainer = train(
            tmp_path,
            named("bert", 0, NAMES),
            named("bert", 1, names),
            table(rows),
            method=method,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        assert trainer.state.global_step == 1
        updates.append(update(before, weights(trainer.model)))
    torch.testing.assert_close(updates[0], updates[1], rtol=0, atol=1e-6)


def test_a_step_of_the_trainer_is_the_objectives(tmp_path):
    """Counts, labels and logits reach the objective as they should."""
    student, teacher = batch()
    rows = Rows([{"row": index, "labels": int(label)} for index, label in enumerate(LABELS)])
    model = LogitTable(student.tolist())
    given = {"label_map": LabelMap.match([NAMES[index] for index in SHARED], NAMES)}
    objective = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=0.5, kd_weight=1.0)
    trainer = build_trainer(
        tmp_path,
        model,
        lambda row: teacher[row],
        rows,
        trainer={**given, "objective": objective},
        per_device_train_batch_size=3,
        gradient_accumulation_steps=3,
        learning_rate=1.0,
    )
    trainer.train()
    z = student.clone().requires_grad_()
    same = DistillationObjective([(1.0, KDLoss(2.0))], ce_weight=0.5, kd_weight=1.0)
    same.bind({"num_labels": 5}, shared=SHARED)
    same(z, teacher, LABELS).loss.backward()
    torch.testing.assert_close(student - model.answers.detach(), z.grad, rtol=0, atol=1e-6)
    record = trainer.state.log_history[0]
    right = [i for i in (0, 2, 4, 7) if SHARED[teacher[i].argmax()] == LABELS[i]]
    assert record["teacher_accuracy"] == pytest.approx(len(right) / 4)


def test_an_evaluation_compares_over_the_shared_classes(tmp_path):
    """The teacher's class 1 is the student's class 2; on rows of classes it does not know nothing is compared."""
    names = [NAMES[index] for index in SHARED]
    rows = examples("bert", 12)
    assert Counter(row["labels"] in SHARED for row in rows)[False] > 0
    student, teacher = named("bert", 0, NAMES), named("bert", 1, names)
    trainer = build_trainer(
        tmp_path, student, teacher, table(rows), trainer={"eval_dataset": table(rows)}, evaluate_with_teacher=True
    )
    metrics = trainer.evaluate()
    kept = [index for index, row in enumerate(rows) if row["labels"] in SHARED]
    z, v = logits(student, rows)[kept][:, SHARED], logits(teacher, rows)[kept]
    labels = torch.tensor([SHARED.index(rows[index]["labels"]) for index in kept])
    assert metrics["eval_agreement"] == pytest.approx((z.argmax(-1) == v.argmax(-1)).double().mean().item())
    assert metrics["eval_teacher_accuracy"] == pytest.approx((v.argmax(-1) == labels).double().mean().item())
    kl = F.kl_div(z.log_softmax(-1), v.log_softmax(-1), log_target=True, reduction="batchmean")
    assert metrics["eval_teacher_kl"] == pytest.approx(kl.item(), rel=1e-5)


def test_what_the_teacher_does_not_know_is_said(tmp_path, caplog):
    """Half a distillation looks like a whole one in every log."""
    build_trainer(tmp_path, named("bert", 0, (*NAMES, "yak")), named("bert", 1, NAMES), table(ROWS))
    assert "does not know 1 of the 6 classes of `model` (yak): distillation is over the others" in caplog.text
    given = {"trainer": {"label_map": {"ox": None}}}
    with pytest.raises(ValueError, match="share the class 'cat' alone"):
        build_trainer(tmp_path, named("bert", 0, NAMES), named("bert", 1, ("cat", "ox")), table(ROWS), **given)


def test_made_up_names_on_both_sides_are_said_once(tmp_path, caplog):
    """A warning per trainer of a search is noise."""
    student, rows = classifier("bert", 0, classes=11), table(examples("bert", 4, classes=11))
    for seed in (1, 2):
        build_trainer(tmp_path, student, classifier("bert", seed, classes=11), rows)
    assert caplog.text.count("The 11 classes of `teacher_model` and `model` are matched by position") == 1


def test_maps_that_nothing_can_be_read_into_are_refused(tmp_path):
    given = {"trainer": {"label_map": {"a": "b"}}}
    with pytest.raises(ValueError, match="`teacher_model` has no config"):
        build_trainer(tmp_path, named("bert", 0, NAMES), lambda input_ids: None, table(ROWS), **given)
    regression = classifier("bert", 0, classes=1, problem_type="regression")
    with pytest.raises(ValueError, match="outputs are numbers"):
        build_trainer(tmp_path, regression, classifier("bert", 1, classes=1), table(ROWS), method="logit_mse", **given)
    other = {"trainer": {"label_map": LabelMap.match(["a", "b"], ["b", "a"])}}
    with pytest.raises(ValueError, match="made for 2 classes of `teacher_model`, which has 5"):
        build_trainer(tmp_path, named("bert", 0, NAMES), named("bert", 1, NAMES), table(ROWS), **other)
