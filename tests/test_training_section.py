"""The section `training`: what would fail when all is loaded, or never be said, is refused at its key, at once."""

import os

import pytest
from test_fuzz_configs import RUN

from hf_kd.experiment import parse_config, run_experiment
from hf_kd.registry import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing")


def given(tmp_path, **training):
    return {**RUN, "output_dir": str(tmp_path / "run"), "training": {**RUN["training"], **training}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adam_beta1": 1.5}, "training.adam_beta1: 1.5 is refused (Invalid beta parameter at index 0: 1.5)."),
        ({"adam_epsilon": -1.0}, "training.adam_epsilon: -1.0 is refused (Invalid epsilon value: -1.0)."),
        ({"optim": "sgd", "optim_args": "momentum=-1"}, "training.optim_args: 'momentum=-1' is refused (Invalid"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "training.lr_scheduler_type: 'cosine_with_min_lr' is refused"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "training.lr_scheduler_kwargs.foo: unknown key."),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}, "training.lr_scheduler_kwargs: "),
        ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-9}, "training.learning_rate: 1e-09 is refused"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "training: lr_scheduler_type reduce_lr_on"),
        ({"dataloader_persistent_workers": True}, "training.dataloader_persistent_workers: True is refused"),
        ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": 0}, "training.dataloader_prefetch_factor: exp"),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"foo": 1}},
         "training.gradient_checkpointing_kwargs.foo: unknown key."),
        ({"torch_compile_mode": "x"}, "training.torch_compile_mode: unknown value 'x'."),
        ({"torch_compile_backend": "inducter"}, "training.torch_compile_backend: unknown value 'inducter'. Did you"),
        ({"log_level": "warn"}, "training.log_level: unknown value 'warn'."),
        ({"label_smoothing_factor": 1.5}, "training.label_smoothing_factor: expected less than or equal to 1"),
        ({"label_smoothing_factor": -0.1}, "training.label_smoothing_factor: expected greater than or equal to 0"),
        ({"max_grad_norm": -1.0}, "training.max_grad_norm: expected greater than or equal to 0"),
        ({"report_to": None}, "training.report_to: null names no tracker."),
        ({"max_steps": 0}, "training.max_steps: 0 would train for num_train_epochs."),
        ({"max_steps": -5}, "training.max_steps: expected greater than or equal to -1"),
        ({"save_steps": 0, "save_strategy": "steps"}, "training.save_steps: expected greater than 0"),
        ({"save_total_limit": 0}, "training.save_total_limit: expected greater than or equal to 1"),
        ({"eval_accumulation_steps": 0}, "training.eval_accumulation_steps: expected greater than or equal to 1"),
        ({"batch_eval_metrics": True}, "training.batch_eval_metrics: does not belong here: the metrics of a run see"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_the_optimizer_schedule_or_loader_refuse_is_refused_at_its_key(settings, said, tmp_path):
    """Data and models took minutes to load; and some of these are never refused: no checkpoint is ever saved, or a
    negative smoothing sharpens the labels."""
    with pytest.raises(ConfigError) as caught:
        parse_config(given(tmp_path, **settings))
    (problem,) = caught.value.problems
    assert problem.startswith(said)
    assert problem.endswith((".", ")"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim": "lomo"}, "training.optim: 'lomo' needs a package that is not installed (You need to install"),
        ({"optim": "grokadamw"}, "training.optim: 'grokadamw' needs a package that is not installed (Please"),
        ({"fsdp": "full_shard"}, "training.fsdp: shards a student over several processes, and this is the only one."),
    ],
    ids=str,
)
def test_what_this_machine_lacks_is_said_before_anything_is_loaded(settings, said, tmp_path, monkeypatch):
    """The file itself is right, and may be checked where the package is not."""
    config = parse_config(given(tmp_path, **settings))
    monkeypatch.setattr("hf_kd.experiment.run.build_task", lambda *_: pytest.fail("the data were loaded"))
    with pytest.raises(ConfigError) as caught:
        run_experiment(config)
    (problem,) = caught.value.problems
    assert problem.startswith(said)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adafactor"},
        {"optim": "adamw_bnb_8bit"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 1}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
        {"lr_milestones": [1, 2]},
        {"max_steps": -1, "save_steps": 0.5, "eval_steps": None, "save_total_limit": None},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True},
    ],
    ids=str,
)
def test_what_is_right_is_taken(settings, tmp_path):
    """A check that builds what the Trainer builds must not refuse what the Trainer takes."""
    parse_config(given(tmp_path, **settings))


def test_checking_leaves_no_trace_in_the_environment(tmp_path, monkeypatch):
    """Arguments with a compiler set a variable, after which every later training in the process compiles."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    before = dict(os.environ)
    parse_config(given(tmp_path, torch_compile=True, torch_compile_backend="eager", torch_compile_mode="lite"))
    assert dict(os.environ) == before
