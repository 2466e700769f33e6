"""A model of a user's own, as files of a package: what no test can have in a module of its own."""

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path

LAYERS = """
import torch


class Bag(torch.nn.Module):
    def __init__(self, words, width):
        super().__init__()
        self.table = torch.nn.Embedding(words, width)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1).float()
        return (self.table(input_ids) * mask).sum(1) / mask.sum(1)
"""

MODELING = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from .layers import Bag


class BagConfig(PreTrainedConfig):
    model_type = "own_bag"

    def __init__(self, words=50, width=8, **kwargs):
        self.words, self.width = words, width
        super().__init__(**kwargs)


class BagForSequenceClassification(PreTrainedModel):
    config_class = BagConfig
    base_model_prefix = "bag"

    def __init__(self, config):
        super().__init__(config)
        self.bag = Bag(config.words, config.width)
        self.classifier = torch.nn.Linear(config.width, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SequenceClassifierOutput(logits=self.classifier(self.bag(input_ids, mask)))
"""


@contextmanager
def own_package(folder, name="ownmodels", *, distribution=None):
    """The module `NAME.modeling`, importable within the block.

    Args:
        folder: Where its files go.
        name: Of the package.
        distribution: `(name, version)` under which it seems to be installed.
    """
    package = Path(folder) / name
    package.mkdir(parents=True)
    for file, text in (("__init__", ""), ("layers", LAYERS), ("modeling", MODELING)):
        (package / f"{file}.py").write_text(text)
    if distribution is not None:
        title, version = distribution
        info = Path(folder) / f"{title.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {title}\nVersion: {version}\n")
        (info / "top_level.txt").write_text(f"{name}\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n{name}/modeling.py,,\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield importlib.import_module(f"{name}.modeling")
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.split(".")[0] == name]:
            del sys.modules[module]


def register(module):
    """As the documentation of transformers says."""
    module.BagConfig.register_for_auto_class()
    module.BagForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")


def build(module, words=50, **labels):
    labels = labels or {"num_labels": 5}
    return module.BagForSequenceClassification(module.BagConfig(words=words, **labels))
