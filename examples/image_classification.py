r"""How few of its teacher's layers does a student need? Fewer and fewer of them, evenly spaced, distilled and scored.

    python examples/image_classification.py --layers 6 4 2 --output_dir outputs/layers --num_train_epochs 10

with models and data from the Hub, or without a network, after `hf-kd train configs/embedded/digits_teacher.yaml`:

    python examples/image_classification.py --teacher outputs/embedded/digits_teacher --data embedded/digits \
        --layers 2 1 --labelled 200 --output_dir outputs/layers --learning_rate 1e-3 --num_train_epochs 10 \
        --per_device_train_batch_size 64 --save_strategy no
"""

import copy
from dataclasses import dataclass, field

from transformers import AutoImageProcessor, AutoModelForImageClassification, HfArgumentParser, set_seed

from hf_kd import DistillationTrainer, DistillationTrainingArguments, init_from_teacher, load_task, load_teacher


@dataclass
class Arguments:
    teacher: str = field(
        default="edumunozsala/vit_base-224-in21k-ft-cifar100", metadata={"help": "Its layers must be of one size."}
    )
    processor: str = field(
        default="google/vit-base-patch16-224-in21k", metadata={"help": "The image processor; embedded sets have one."}
    )
    data: str = field(default="cifar100", metadata={"help": "A benchmark, a folder, or a data set on the Hub."})
    labelled: int | None = field(default=None, metadata={"help": "Keep the labels of so many training rows only."})
    layers: list[int] = field(default_factory=lambda: [6, 4, 2], metadata={"help": "Sizes of the students."})


def main():
    own, args = HfArgumentParser((Arguments, DistillationTrainingArguments)).parse_args_into_dataclasses()
    processor = None if own.data.startswith("embedded/") else AutoImageProcessor.from_pretrained(own.processor)
    task = load_task(own.data, processor=processor, labelled=own.labelled)
    teacher = load_teacher(own.teacher)
    for layers in own.layers:
        set_seed(args.seed)
        config = copy.deepcopy(teacher.config)
        config.num_hidden_layers = layers
        config.update(task.head)
        student = AutoModelForImageClassification.from_config(config)
        report = init_from_teacher(student, teacher, "even")
        trainer = DistillationTrainer(
            student, args, task.collator, task.train, processing_class=task.processing_class,
            compute_metrics=task.compute_metrics, teacher_model=teacher)  # fmt: skip
        before = trainer.evaluate(task.test)["eval_accuracy"]
        trainer.train()
        after = trainer.evaluate(task.test)["eval_accuracy"]
        of = f"{layers} of {teacher.config.num_hidden_layers} layers {list(report.layers)}"
        print(f"{of}: {student.num_parameters():,} parameters, test accuracy {before:.3f} -> {after:.3f}")


if __name__ == "__main__":
    main()
