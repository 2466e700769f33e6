"""The student's weights back from a checkpoint, whatever names they were saved under."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def is_plain_checkpoint(model: nn.Module, folder: str | Path) -> bool:
    """Whether `folder` holds all weights of a model of transformers: no adapter, no shards of a sharded launch."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    is_whole = isinstance(model, PreTrainedModel) and getattr(model, "hf_quantizer", None) is None
    return is_whole and any((Path(folder) / name).is_file() for name in names)


def restore_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Give `model` the weights in `folder`, all of them.

    Checkpoints carry the Hub's names, which for some architectures (ViT) are no longer the modules' own.
    `from_pretrained` translates them; reading the state dict straight leaves such weights as they are. The random
    state is kept: a resumed run draws what the uninterrupted one draws.

    Raises:
        ValueError: Weights are missing, additional or of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        loaded, info = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, output_loading_info=True
        )
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *(key[0] for key in info["mismatched_keys"])})
    if wrong:
        raise ValueError(
            f"`DistillationTrainer` cannot restore `model` from {str(folder)!r}: {', '.join(wrong[:4])}"
            f"{' …' if len(wrong) > 4 else ''} are missing, additional or of another shape, so the run would go on "
            "with other weights than it had. Resume with the student the run was started with."
        )
    model.load_state_dict(loaded.state_dict())
