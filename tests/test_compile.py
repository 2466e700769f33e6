"""`torch_compile` changes the speed of a step, not the step. Two processes are in `test_distributed.py`.

The default run takes the backend that only traces, `eager`: what is traced wrongly or not at all shows with it.
"""

import pytest
import recomputing
import torch
from architectures import build, rows
from safetensors.torch import load_file
from tiny import Projected, Rows, build_trainer, update, weights
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_kd import DistillationObjective, KDLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]
TOLERANCE = 1e-5
"""Relative. Traced, the operations are the same; compiled, some are fused, with units of 1e-7 for each."""

OF_A_TEMPERATURE = 2e-5
"""Absolute. Its gradient is a small difference of large parts, and its rate here is 10: over two steps plain
micro-batches of 2 move it by 7e-6 and inductor by 1.1e-5."""


def projector():
    """What is learned beside the student, and looks into it with a hook."""
    losses = [(1.0, KDLoss(4.0)), (0.5, Projected())]
    return DistillationObjective(losses, ce_weight=0.5, kd_weight=1.0, task_serialization=True)


CASES = {  # name -> architecture, kind of student, whether there is a projector, training arguments
    "bert-ctkd": ("bert", "ctkd", False, {}),
    "vit-ctkd": ("vit", "ctkd", False, {}),
    "resnet-dkd": ("resnet", "ctkd", False, {"method": "dkd", "method_kwargs": None}),
    "modernbert-relation": ("modernbert", "ctkd", False, {"method": "dist", "method_kwargs": None}),
    "bert-projector": ("bert", "ctkd", True, {}),
    "vit-lora": ("vit", "lora", False, {}),
    "bert-self": ("bert", "lora", False, {"teacher": "self"}),
    "vit-lora-recomputed": (
        "vit",
        "lora",
        False,
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "bert-tail": ("bert", "ctkd", False, {"count": 11, "gradient_accumulation_steps": 2}),
}
QUICK = ("bert-projector", "vit-lora-recomputed")


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Each test compiles for itself, and counts."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def made(folder, case, backend=None, *, resume=None, **more):
    """A trainer, and where its student started."""
    name, kind, projects, settings = CASES[case]
    settings = {**settings, **more}
    student, count = recomputing.student_for(name, kind, dropout=False), settings.pop("count", 8)
    teacher = settings.pop("teacher", None) or build(name, 1)
    if teacher == "self":
        bias = student.get_base_model().classifier.original_module.bias
        torch.nn.init.normal_(bias, std=0.1, generator=torch.Generator().manual_seed(0))
    if resume is not None:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.5 * parameter.requires_grad)  # what it starts from is in the checkpoint
    before = weights(student)
    own = {"objective": projector()} if projects else {}
    method = {} if projects else {"method": "ctkd", "method_kwargs": {"curriculum": 0.0, "initial": -2.0}}
    trainer = build_trainer(
        folder,
        student,
        teacher,
        Rows(rows(name, count)),
        trainer={"eval_dataset": Rows(rows(name, 5, seed=1)), **own},
        **{"per_device_train_batch_size": 8, "num_train_epochs": 2, "temperature_learning_rate": 10.0},
        **{"learning_rate": 0.05, "torch_compile_backend": backend, **method, **settings},
    )
    return trainer, (before, weights(trainer.objective))


def frames():
    """How many were compiled, and where a trace broke off."""
    counters = torch._dynamo.utils.counters
    return counters["frames"]["ok"], dict(counters["graph_break"])


def ended(trainer, before):
    """How far the student went and what is learned beside it, and what an evaluation says."""
    student, objective = before
    ways = [update(student, weights(trainer.model))]
    if objective:
        ways.append(update(objective, weights(trainer.objective)))
    return ways, trainer.evaluate()["eval_loss"]


def check_same(found, expected):
    """Each by its own measure: a temperature of order 1 would hide a student that moves by 0.1."""
    assert expected[0].norm() > 1e-2
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= TOLERANCE * other.norm() + (OF_A_TEMPERATURE if other.numel() == 1 else 0.0)


def check_compiled(folder, case, backend):
    """Two epochs are the same compiled; the student is traced as a whole, and the teacher stays as it is."""
    trainer, before = made(folder / "plain", case)
    trainer.train()
    expected, expected_loss = ended(trainer, before)
    assert frames() == (0, {})
    trainer, before = made(folder / "compiled", case, backend)
    trainer.train()
    count, breaks = frames()
    assert count >= 1
    assert breaks == {}
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    assert not isinstance(trainer.teacher.model, torch._dynamo.OptimizedModule)
    found, loss = ended(trainer, before)
    check_same(found, expected)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_a_compiled_student_learns_what_a_plain_one_learns(case, tmp_path):
    """A loss whose hook is lost in the trace would compare features of another batch."""
    check_compiled(tmp_path, case, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_student_compiled_by_inductor_learns_what_a_plain_one_learns(case, tmp_path):
    """The backend that users get, where there is a compiler for it."""
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except Exception as error:  # noqa: BLE001  (whatever the compiler says)
        pytest.skip(f"inductor does not work here: {' '.join(str(error).split())[:200]}")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    check_compiled(tmp_path, case, "inductor")


@pytest.mark.parametrize("case", ["bert-projector", pytest.param("vit-ctkd", marks=pytest.mark.slow)])
def test_checkpoints_of_a_compiled_student_are_those_of_a_plain_one(case, tmp_path):
    """`torch.compile` puts `_orig_mod.` before every name, and what is saved so loads as a fresh model."""
    trainer, _ = made(tmp_path, case, "eager", save_strategy="epoch")
    trainer.train()
    trainer.save_model()
    folders = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", tmp_path]
    keys = {name for folder in folders for path in folder.glob("*.safetensors") for name in load_file(path)}
    assert keys
    assert not [name for name in keys if "_orig_mod" in name]
    auto = AutoModelForImageClassification if case.startswith("vit") else AutoModelForSequenceClassification
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(weights(loaded), weights(trainer.model), rtol=0, atol=0)
    torch.compiler.reset()
    for backend in ("eager", None):  # a run that was compiled goes on without, and the other way round
        resumed, _ = made(tmp_path / f"again-{backend}", case, backend, resume=True, save_strategy="epoch")
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        torch.testing.assert_close(weights(resumed.model), weights(trainer.model), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bert-projector", "vit-ctkd"])
def test_a_compiled_student_is_evaluated_first_and_trained_again(case, tmp_path):
    """What was compiled before, in another mode or with the hooks of another run, is not what runs now."""
    results = []
    for backend in (None, "eager"):
        trainer, before = made(tmp_path / str(backend), case, backend)
        losses = [trainer.evaluate()["eval_loss"]]
        for _ in range(2):
            trainer.train()
            losses.append(trainer.evaluate()["eval_loss"])
        results.append((ended(trainer, before)[0], losses))
    (expected, losses), (found, others) = results
    check_same(found, expected)
    assert others == pytest.approx(losses, rel=TOLERANCE)
    assert losses[2] != losses[0]
