"""Tiny classifiers, tiny datasets and one short training: what the trainer's tests are made of."""

import atexit
import gc

import datasets
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PrinterCallback,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_kd import DistillationTrainer, DistillationTrainingArguments, KDLoss
from hf_kd.losses import DistillationLoss, LossOutput
from hf_kd.temperatures import Progress

gc.freeze()  # each training starts with a full collection: 0.6 s for walking all that was imported, every time
atexit.register(gc.unfreeze)

CLASSES = 5
VOCABULARY = 50
LENGTH = 8
IMAGE = 8
TEXT = ("bert", "distilbert")
ARCHITECTURES = ("bert", "distilbert", "resnet", "vit", "convnext")
LABELS = ("labelled", "unlabelled", "mixed")
PROBLEMS = {  # name -> what the head is for, its outputs
    "several-labels": ("multi_label_classification", 4),
    "one-number": ("regression", 1),
    "three-numbers": ("regression", 3),
}
TIMES = ("runtime", "per_second", "preparation_time")
"""Parts of the log keys that a clock decides."""


class EvalBatchNorm2d(torch.nn.BatchNorm2d):
    """Stays in eval mode: statistics of a batch depend on how it is split, so no exact scale can hold with them."""

    def train(self, mode=True):
        return super().train(False)


def classifier(architecture, seed, *, classes=CLASSES, **config):
    """A randomly initialised classifier without dropout, the same for the same seed, wide enough in its answers."""
    spread = {"initializer_range": 0.3, "num_labels": classes}
    encoder = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * LENGTH, **spread}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if architecture == "bert":
            return BertForSequenceClassification(BertConfig(**{**text, **encoder, **dropout, **config}))
        if architecture == "distilbert":
            layers = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
            off = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
            return DistilBertForSequenceClassification(DistilBertConfig(**{**text, **layers, **off, **config}))
        if architecture == "vit":
            picture = {"image_size": IMAGE, "patch_size": 4}
            return ViTForImageClassification(ViTConfig(**{**picture, **encoder, **dropout, **spread, **config}))
        stages = {"hidden_sizes": [8, 16], "depths": [1, 1]}
        if architecture == "convnext":
            patches = {"num_stages": 2, "patch_size": 2, "drop_path_rate": 0.0, "layer_scale_init_value": 1.0}
            return ConvNextForImageClassification(ConvNextConfig(**{**stages, **patches, **spread, **config}))
        layers = {"embedding_size": 8, "layer_type": "basic", "downsample_in_first_stage": False}
        spread.pop("initializer_range")
        model = ResNetForImageClassification(ResNetConfig(**{**stages, **layers, **spread, **config}))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.__class__ = EvalBatchNorm2d
        return model


def examples(architecture, rows, labels="labelled", *, classes=CLASSES, seed=0):
    """Rows as plain dicts of lists; `labels` is one of `LABELS`, or "none" for no label column at all."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(rows):
        if architecture in TEXT:
            ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=generator)
            row = {"input_ids": ids.tolist(), "attention_mask": [1] * LENGTH}
        else:
            row = {"pixel_values": torch.randn(3, IMAGE, IMAGE, generator=generator).tolist()}
        label = int(torch.randint(0, classes, (), generator=generator))
        if labels != "none":
            row["labels"] = label if labels == "labelled" or (labels == "mixed" and index % 3 == 0) else -100
        result.append(row)
    return result


def head(architecture, seed, problem, **config):
    """A `classifier` for one of `PROBLEMS`."""
    problem_type, outputs = PROBLEMS[problem]
    return classifier(architecture, seed, classes=outputs, problem_type=problem_type, **config)


def with_targets(rows, problem, labels="labelled"):
    """The same rows with labels for one of `PROBLEMS`; None where there is none."""
    problem_type, outputs = PROBLEMS[problem]
    generator = torch.Generator().manual_seed(1)
    result = []
    for index, row in enumerate(rows):
        target = torch.randn(outputs, generator=generator)
        target = (target > 0).float() if problem_type.startswith("multi") else target
        known = labels == "labelled" or (labels == "mixed" and index % 3 == 0)
        label = target.tolist() if outputs > 1 else target.item()
        result.append({**row, "labels": label if known else None})
    return result


def mixed_rows(rows, *, weighed=False):
    """Rows that come mixed already: some members unlabelled, shares of 0, 1 and between, weights below 1."""
    made = []
    for index, row in enumerate(examples("bert", rows, "labelled")):
        label, other = row["labels"], (row["labels"] + index) % 5
        row["labels"] = -100 if index % 4 == 1 else label
        row["labels_mix"] = -100 if index % 5 == 2 else other
        row["mix_lambda"] = (0.3, 1.0, 0.85, 0.0, 0.5, 0.07)[index % 6]
        if weighed:
            row |= {"label_weight": 0.02 + 0.1 * (index % 3), "label_weight_mix": 0.4 - 0.05 * (index % 4)}
        made.append(row)
    return made


def table(rows):
    """A `datasets.Dataset` of `rows`, in memory."""
    return datasets.Dataset.from_list(rows)


class Rows(torch.utils.data.Dataset):
    """A plain torch dataset of `rows`, as tensors."""

    def __init__(self, rows):
        self.rows = [{key: _tensor(value) for key, value in row.items()} for row in rows]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


def _tensor(value):
    return torch.tensor(value) if isinstance(value, list) else value


class LogitTable(torch.nn.Module):
    """A model that answers row i with the logits it holds, in float64."""

    def __init__(self, answers):
        super().__init__()
        self.answers = torch.nn.Parameter(torch.tensor(answers, dtype=torch.float64))

    def forward(self, row):
        return {"logits": self.answers[row]}


FROZEN = {"learning_rate": 1e-30}
"""Moves no number of order one; the schedule's factor is what it is."""


def batch_of(rows):
    """All `rows` as one batch of tensors."""
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


@torch.no_grad()
def logits(model, rows):
    """What `model` alone answers."""
    training = model.training
    model.eval()
    columns = {key: value for key, value in batch_of(rows).items() if key != "labels"}
    answer = model(**columns).logits
    model.train(training)
    return answer


def arguments(folder, **overrides):
    """Arguments of a short, silent, deterministic run: plain SGD, no clipping, rows in order."""
    given = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "ddp_find_unused_parameters": False,
        "ddp_timeout": 60,
    }
    return DistillationTrainingArguments(str(folder), **{**given, **overrides})


def build_trainer(folder, student, teacher=None, train=None, *, trainer=None, **overrides):
    """A trainer; `trainer` holds further arguments of `DistillationTrainer`, `overrides` are training arguments."""
    built = DistillationTrainer(
        student, arguments(folder, **overrides), train_dataset=train, teacher_model=teacher, **(trainer or {})
    )
    built.remove_callback(PrinterCallback)
    return built


def train(folder, student, teacher=None, train=None, **keywords):
    """Build a trainer and train; returns it."""
    built = build_trainer(folder, student, teacher, train, **keywords)
    built.train()
    return built


class Gram(KDLoss):
    """A batch relation over a temperature: how alike the rows of a batch are to each other, on both sides."""

    name = "gram"
    row_wise = False

    def forward(self, student_logits, teacher_logits, labels=None, *, progress=Progress()):
        t = self.temperature(student_logits, teacher_logits, labels, progress=progress)
        q, p = (student_logits / t.student).softmax(-1), (teacher_logits / t.teacher).softmax(-1)
        gap = (q @ q.T - p @ p.T).square().sum() / len(q)
        return LossOutput(t.compensation * gap, t, {"gap": gap.detach()})


class Projected(DistillationLoss):
    """Pooled features through a learned projector."""

    name = "projected"
    needs = ("student_features", "teacher_features")
    learnable = True

    def __init__(self):
        super().__init__()
        self.projector = None

    def bind(self, sizes):
        shape = sizes["student_features"], sizes["teacher_features"]
        if self.projector is None or (self.projector.in_features, self.projector.out_features) != shape:
            self.projector = torch.nn.Linear(*shape)

    def forward(
        self, student_logits, teacher_logits, labels=None, *, progress=Progress(), student_features, teacher_features
    ):
        return LossOutput((self.projector(student_features) - teacher_features).square().mean(-1))


def weights(model):
    """A copy of the state, by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def update(before, after):
    """How far all weights moved, as one float64 vector."""
    names = [name for name, value in before.items() if value.is_floating_point()]
    return torch.cat([(after[name].double() - before[name].double()).flatten() for name in names])


def relative_difference(actual, expected):
    """Norm of the difference over the norm of what was expected."""
    return float((actual - expected).norm() / expected.norm())


def without_times(records):
    """Log records without what a clock decides."""
    return [{k: v for k, v in record.items() if not any(part in k for part in TIMES)} for record in records]


def assert_same_run(resumed, whole):
    """Bit for bit: weights, both optimizers, temperatures, records and the run's mean loss."""
    (resumed, resumed_output), (whole, whole_output) = resumed, whole
    torch.testing.assert_close(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    torch.testing.assert_close(
        dict(resumed.objective.state_dict()), dict(whole.objective.state_dict()), rtol=0, atol=0
    )
    mine, other = (t.optimizer.state_dict()["state"] for t in (resumed, whole))
    torch.testing.assert_close(mine, other, rtol=0, atol=0)
    mine, other = (t._objective_state.state() for t in (resumed, whole))
    torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert without_times(resumed.state.log_history) == without_times(whole.state.log_history)
    assert resumed_output.training_loss == whole_output.training_loss
