r"""Which method suits this teacher and this student? One run each, from the same start over the same rows.

    python examples/text_classification.py --methods kd ctkd wttm --output_dir outputs/methods

with models and data from the Hub, or without a network, after `hf-kd train configs/embedded/docstrings_teacher.yaml`:

    python examples/text_classification.py --teacher outputs/embedded/docstrings_teacher --data embedded/docstrings \
        --student '{"hidden_size": 16, "intermediate_size": 32}' --labelled 600 --output_dir outputs/methods \
        --learning_rate 5e-3 --num_train_epochs 6 --per_device_train_batch_size 64 --save_strategy no
"""

import json
from dataclasses import dataclass, field

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, set_seed

from hf_kd import DistillationTrainer, DistillationTrainingArguments, add_teacher_inputs, load_task, load_teacher


@dataclass
class Arguments:
    teacher: str = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
    student: str = field(
        default="google/bert_uncased_L-2_H-128_A-2",
        metadata={"help": "A checkpoint; or settings, as JSON, that make a fresh one of the teacher's architecture."},
    )
    data: str = field(default="glue/sst2", metadata={"help": "A benchmark, a folder, or a data set on the Hub."})
    labelled: int | None = field(default=None, metadata={"help": "Keep the labels of so many training rows only."})
    methods: list[str] = field(default_factory=lambda: ["kd", "ctkd", "wttm"], metadata={"help": "`hf-kd methods`."})


def new_student(own, task):
    if not own.student.startswith("{"):
        options = {"dtype": "float32", "ignore_mismatched_sizes": True, **task.head}
        return AutoModelForSequenceClassification.from_pretrained(own.student, **options)
    config = AutoConfig.from_pretrained(own.teacher, **json.loads(own.student), **task.head)
    return AutoModelForSequenceClassification.from_config(config)


def main():
    own, args = HfArgumentParser((Arguments, DistillationTrainingArguments)).parse_args_into_dataclasses()
    theirs = AutoTokenizer.from_pretrained(own.teacher)
    tokenizer = theirs if own.student.startswith("{") else AutoTokenizer.from_pretrained(own.student)
    plain = load_task(own.data, processor=tokenizer, labelled=own.labelled)
    task = add_teacher_inputs(plain, theirs)  # as it is, where both read the same tokens
    teacher = load_teacher(own.teacher)
    for args.method in own.methods:
        set_seed(args.seed)
        trainer = DistillationTrainer(
            new_student(own, task), args, task.collator, task.train, processing_class=tokenizer,
            compute_metrics=task.compute_metrics, teacher_model=teacher,
            teacher_processing_class=None if task is plain else theirs)  # fmt: skip
        trainer.train()
        print(f"{args.method}: test {task.metric} {trainer.evaluate(task.test)[f'eval_{task.metric}']:.3f}")


if __name__ == "__main__":
    main()
