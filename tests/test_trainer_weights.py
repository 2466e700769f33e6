"""The student's weights come back from a checkpoint whole, whatever names the checkpoint uses."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, build_trainer, classifier, examples, table, weights

ROWS, SAVED_AT = 12, 4


def _run(folder, architecture, seed, resume=None, **overrides):
    given = {
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "optim": "adamw_torch",
        "save_strategy": "steps",
        "save_steps": SAVED_AT,
    }
    rows = table(examples(architecture, ROWS, "mixed"))
    student, teacher = classifier(architecture, seed), classifier(architecture, 9)
    trainer = build_trainer(folder, student, teacher, rows, **{**given, **overrides})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resumed_student_is_the_uninterrupted_one(architecture, tmp_path):
    """ViT is saved under older names than it runs under: read straight, a resumed ViT kept fresh layers."""
    whole = _run(tmp_path, architecture, 0)
    resumed = _run(tmp_path / "resumed", architecture, 1, str(tmp_path / f"checkpoint-{SAVED_AT}"))
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["vit", "bert"])
def test_best_model_is_loaded_whole(architecture, tmp_path):
    """The same names decide what `load_best_model_at_end` hands to the user."""
    rows = table(examples(architecture, ROWS))
    student, teacher = classifier(architecture, 0), classifier(architecture, 9)
    trainer = build_trainer(
        tmp_path,
        student,
        teacher,
        rows,
        trainer={"eval_dataset": rows},
        num_train_epochs=3,
        learning_rate=0.7,  # far too high on purpose: the first checkpoint is the best
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = type(student).from_pretrained(trainer.state.best_model_checkpoint)
    assert trainer.state.best_global_step < trainer.state.global_step
    torch.testing.assert_close(weights(trainer.model), weights(best), rtol=0, atol=0)


def test_checkpoint_that_lacks_weights_is_refused(tmp_path):
    _run(tmp_path, "vit", 0)
    file = tmp_path / f"checkpoint-{SAVED_AT}" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("classifier.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        _run(tmp_path / "resumed", "vit", 1, str(file.parent))
