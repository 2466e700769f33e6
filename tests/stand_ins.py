"""Tiny stand-ins for what `configs/` names on the Hub: the same ids, architectures, class names, files and columns.

Each entry says what its repository's pages show: the model type, what it calls its classes, whether the weights are
pickled, and which files hold the tokenizer or image processor. Weights are random, vocabularies and images tiny. Where
the class names could not be seen, the entry says "made up".
"""

import hashlib
import io
import json
from pathlib import Path

import architectures
import datasets
import torch
from hub_server import Repo, git_oid
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    BertTokenizerFast,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    DistilBertTokenizerFast,
    MobileNetV1ImageProcessor,
    MobileNetV2ImageProcessor,
    RobertaTokenizerFast,
    ViTImageProcessor,
)

from hf_kd.heads import head_layers
from hf_kd.students import student_from_config

SIZE = 32
CIFAR_WORDS = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR = CIFAR_WORDS.split()
CLINC = [f"intent_{index}" for index in range(42)] + ["oos"] + [f"intent_{index}" for index in range(42, 150)]
BANKING = [f"topic_{index}" for index in range(74)] + ["Refund_not_showing_up", "reverted_card_payment?", "age_limit"]


def imagenet_names(machine):
    """The 1,000 names as timm has them, and what the crane that is a machine is called."""
    info = ImageNetInfo("imagenet-1k")
    names = [info.label_name_to_description(name) for name in info.label_names()]
    assert [index for index, name in enumerate(names) if name == "crane"] == [134, 517]
    return names[:517] + [machine] + names[518:]


IMAGENET = imagenet_names("crane")

SHAPES = {**architectures.ALL, "mobilenet_v1": {"image_size": SIZE, "depth_multiplier": 0.1, "min_depth": 2}}
SHAPES = {kind: {**shape, **({"max_position_embeddings": 200} if "vocab_size" in shape else {})}
          for kind, shape in SHAPES.items()}  # fmt: skip

# ---- Models: id -> (architecture, names of the classes or their number, pickled, processor, further settings)

WORDS = [f"w{index}" for index in range(30)]


def bert_words(folder, cls=BertTokenizerFast, cased=False):
    """A WordPiece tokenizer, as `save_pretrained` writes it."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary(cased)]))
    cls.from_pretrained(folder, do_lower_case=not cased, model_max_length=512).save_pretrained(folder)


def bert_vocabulary(folder):
    """Its vocabulary alone, as in Google's repositories of small BERTs."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary(False)]))


def bert_cased(folder):
    bert_words(folder, cased=True)


def distilbert_words(folder):
    bert_words(folder, DistilBertTokenizerFast)


def roberta_bytes(folder):
    """A byte-level tokenizer without merges: other tokens than BERT's for the same text."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    entries = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({entry: index for index, entry in enumerate(entries)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    RobertaTokenizerFast(tokenizer_object=backend, model_max_length=512).save_pretrained(folder)


def vocabulary(cased):
    """The cased one has a word more in front, so its ids are others."""
    return ["W0", *WORDS] if cased else WORDS


def images(cls, mean=0.5, **size):
    def save(folder):
        given = size or {"size": {"height": SIZE, "width": SIZE}}
        cls(**given, image_mean=[mean] * 3, image_std=[0.5] * 3).save_pretrained(folder)

    return save


def nothing(folder):
    """A repository of timm: the processor follows from its configuration."""


VIT, DEIT = images(ViTImageProcessor), images(DeiTImageProcessor, 0.48, size={"height": 36, "width": 36},
                                              crop_size={"height": SIZE, "width": SIZE})  # fmt: skip
CONVNEXT = images(ConvNextImageProcessor, 0.45, size={"shortest_edge": SIZE}, crop_pct=0.875)
MOBILE = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIZE, "width": SIZE}}
DEEP = {"num_hidden_layers": 5}  # so that four of its layers are a choice

MODELS = {
    # CIFAR-100
    "edumunozsala/vit_base-224-in21k-ft-cifar100": ("vit", CIFAR, False, None, {}),  # names made up
    "google/vit-base-patch16-224-in21k": ("vit", 2, False, VIT, {}),
    "Ahmed9275/Vit-Cifar100": ("vit", CIFAR, True, VIT, DEEP),  # names made up
    "karan99300/ConvNext-finetuned-CIFAR100": ("convnext", 100, False, CONVNEXT, {}),  # names made up
    "MazenAmria/swin-tiny-finetuned-cifar100": ("swin", CIFAR, True, CONVNEXT, {}),  # names made up
    "WinKawaks/vit-tiny-patch16-224": ("vit", IMAGENET, False, VIT, {}),
    "microsoft/resnet-18": ("resnet", IMAGENET, False, CONVNEXT, {}),
    "timm/mobilenetv3_small_100.lamb_in1k": ("timm", "mobilenetv3_small_100", False, nothing, {}),
    # ImageNet
    "facebook/deit-base-patch16-224": ("vit", IMAGENET, True, DEIT, {"num_hidden_layers": 3}),
    "facebook/deit-tiny-patch16-224": ("vit", IMAGENET, True, DEIT, {}),
    "timm/resnet34.tv_in1k": ("timm", "resnet34", False, nothing, {"layers": [1] * 4, "channels": [4, 4, 8, 8]}),
    "timm/resnet50.tv_in1k": ("timm", "resnet50", False, nothing, {"layers": [1] * 4, "channels": [4, 4, 8, 8]}),
    "timm/regnety_160.deit_in1k": (
        "timm", "regnety_160", False, nothing, {"w0": 8, "wa": 8.0, "wm": 2.0, "group_size": 8, "depth": 8}),
    "google/mobilenet_v1_1.0_224": ("mobilenet_v1", 1001, False, images(MobileNetV1ImageProcessor, **MOBILE), {}),
    "google/mobilenet_v2_1.0_224": ("mobilenet_v2", 1001, False, images(MobileNetV2ImageProcessor, **MOBILE), {}),
    # GLUE
    "textattack/bert-base-uncased-SST-2": ("bert", 2, True, bert_words, {}),
    "textattack/bert-base-uncased-MRPC": ("bert", 2, True, bert_words, DEEP),
    "textattack/bert-base-uncased-CoLA": ("bert", 2, True, bert_words, {}),
    "textattack/bert-base-uncased-MNLI": ("bert", 3, True, bert_words, {}),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": (
        "distilbert", ["NEGATIVE", "POSITIVE"], False, distilbert_words, {}),
    "FacebookAI/roberta-large-mnli": (
        "roberta", ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], False, roberta_bytes, {"vocab_size": 300}),
    "gchhablani/bert-base-cased-finetuned-stsb": ("bert", 1, True, bert_cased, {"problem_type": "regression"}),
    "google-bert/bert-base-uncased": ("bert", 0, False, bert_words, {}),
    "distilbert/distilbert-base-uncased": ("distilbert", 0, False, distilbert_words, {}),
    "google/bert_uncased_L-2_H-128_A-2": ("bert", 0, False, bert_vocabulary, {}),
    "google/bert_uncased_L-4_H-512_A-8": ("bert", 0, True, bert_vocabulary, {}),
    # CLINC150 and BANKING77
    "transformersbook/bert-base-uncased-finetuned-clinc": ("bert", CLINC, True, bert_words, {}),
    "philschmid/BERT-Banking77": ("bert", sorted(BANKING), True, bert_words, {}),
    "philschmid/RoBERTa-Banking77": ("roberta", sorted(BANKING), True, roberta_bytes, {"vocab_size": 300}),
}  # fmt: skip


def model_files(name, folder):
    """The files of a model's repository."""
    kind, classes, pickled, processor, settings = MODELS[name]
    folder.mkdir(parents=True)
    if processor is not None:
        processor(folder)
    if kind == "timm":
        return timm_files(classes, folder, settings)
    config = CONFIG_MAPPING[kind](**{**SHAPES[kind], **settings}, **head(classes))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = student_from_config(config)
        for layer in head_layers(model):
            torch.nn.init.normal_(layer.bias)  # a bias of 0 is taken for a head that was never trained
    state = model.state_dict()
    if classes == 0:  # pretrained on text alone: no head
        prefix = f"{model.base_model_prefix}."
        state = {key: value for key, value in state.items() if key.startswith(prefix)}
    model.config.save_pretrained(folder)
    save_weights(state, folder, pickled)
    return folder


def head(names):
    """What a configuration says of its classes; models of ImageNet have two of one name."""
    if isinstance(names, int):
        return {"num_labels": names or 2}
    ids = dict(enumerate(names))
    return {"id2label": ids, "label2id": {name: index for index, name in ids.items()}}


def timm_files(architecture, folder, settings):
    import timm

    model = timm.create_model(architecture, num_classes=1000, **settings)
    given = {key: model.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct", "classifier")}
    given |= {"tag": "in1k", "custom_load": False, "input_size": [3, SIZE, SIZE], "fixed_input_size": False}
    given |= {"num_classes": 1000, "pool_size": [1, 1], "crop_mode": "center"}
    content = {"architecture": architecture, "num_classes": 1000, "num_features": model.num_features}
    content |= {"pretrained_cfg": given, **({"model_args": settings} if settings else {})}
    (folder / "config.json").write_text(json.dumps(content))
    save_weights(model.state_dict(), folder, False)
    return folder


def save_weights(state, folder, pickled):
    state = {key: value.clone().contiguous() for key, value in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# ---- Data: id -> revision, and per configuration the splits


def sentence(row):
    return " ".join(WORDS[(row * step) % len(WORDS)] for step in (1, 3, 7, 11)[: 2 + row % 3])


def texts(columns, label, sizes, hidden=()):
    """Splits of texts; the label of a hidden one is -1."""
    label, feature, values = label
    made = {}
    for split, size in sizes.items():
        rows = {column: [sentence(row + place) for row in range(size)] for place, column in enumerate(columns)}
        rows[label] = [-1 if split in hidden else values(row) for row in range(size)]
        features = {**{column: datasets.Value("string") for column in columns}, label: feature}
        made[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return made


def classes(label, names):
    return label, datasets.ClassLabel(names=list(names)), lambda row: row % len(names)


def pictures(column, labels, sizes, hidden=(), heights=3):
    """Images of so many heights: those of CIFAR-100 have one."""
    made = {}
    for split, size in sizes.items():
        colors = [(row * 7 % 256, row, len(split)) for row in range(size)]
        drawn = [Image.new("RGB", (SIZE, SIZE + row % heights), color) for row, color in enumerate(colors)]
        rows, features = {column: drawn}, {column: datasets.Image()}
        for label, names in labels.items():
            rows[label] = [-1 if split in hidden else row % len(names) for row in range(size)]
            features[label] = datasets.ClassLabel(names=list(names))
        made[split] = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return made


GLUE = {"train": 60, "validation": 10, "test": 6}
MNLI = {"train": 60, "validation_matched": 10, "validation_mismatched": 10, "test_matched": 6, "test_mismatched": 6}
PAIR = ("sentence1", "sentence2")
PARQUET = "refs/convert/parquet"


def data():
    """Repository, revision, configuration, splits."""
    score = "label", datasets.Value("float32"), lambda row: float(row % 6)
    sst2, mrpc = classes("label", ["negative", "positive"]), classes("label", ["not_equivalent", "equivalent"])
    cola = classes("label", ["unacceptable", "acceptable"])
    mnli = classes("label", ["entailment", "neutral", "contradiction"])
    coarse = [f"coarse_{index}" for index in range(20)]
    half, plus = {"train": 160, "test": 20}, {"train": 160, "validation": 20, "test": 20}
    return [
        ("uoft-cs/cifar100", "main", "cifar100",
         pictures("img", {"fine_label": CIFAR, "coarse_label": coarse}, {"train": 110, "test": 12}, heights=1)),
        ("ILSVRC/imagenet-1k", "main", "default",
         pictures("image", {"label": imagenet_names("crane2")}, {"train": 40, "validation": 8, "test": 4}, {"test"})),
        ("nyu-mll/glue", "main", "sst2", texts(["sentence"], sst2, GLUE, {"test"})),
        ("nyu-mll/glue", "main", "mrpc", texts(PAIR, mrpc, GLUE)),
        ("nyu-mll/glue", "main", "cola", texts(["sentence"], cola, GLUE, {"test"})),
        ("nyu-mll/glue", "main", "mnli",
         texts(["premise", "hypothesis"], mnli, MNLI, {"test_matched", "test_mismatched"})),
        ("nyu-mll/glue", "main", "stsb", texts(PAIR, score, GLUE, {"test"})),
        ("clinc/clinc_oos", "main", "plus", texts(["text"], classes("intent", CLINC), plus)),
        ("PolyAI/banking77", PARQUET, "default", texts(["text"], classes("label", BANKING), half)),
    ]  # fmt: skip


# ---- Into the Hub


def put(hub, kind, name, files, revision="main"):
    """A commit of `path -> bytes`, added to what is there."""
    repo = hub.repos.setdefault((kind, name), Repo())
    ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    tree = dict(repo.commits[repo.refs[ref]][0]) if ref in repo.refs else {}
    for path, content in files.items():
        large = path.endswith((".safetensors", ".bin", ".parquet"))
        oid = hashlib.sha256(content).hexdigest() if large else git_oid(content)
        hub.blobs[oid] = content
        tree[path] = (oid, large)
    repo.commit(ref, tree, f"{len(files)} files")
    if ref != "refs/heads/main" and "refs/heads/main" not in repo.refs:
        repo.commit("refs/heads/main", {}, "a loading script")


def fill(hub, folder):
    """Everything that `configs/` names."""
    for name in MODELS:
        made = model_files(name, Path(folder) / name)
        put(hub, "models", name, {path.name: path.read_bytes() for path in made.iterdir()})
    cards = {}
    for name, revision, subset, splits in data():
        files, entries = {}, []
        for split, table in splits.items():
            buffer = io.BytesIO()
            table.to_parquet(buffer)
            path = f"{subset}/{split}/0000.parquet" if revision == PARQUET else f"{subset}/{split}-00000.parquet"
            files[path] = buffer.getvalue()
            entries.append(f"  - split: {split}\n    path: {path}\n")
        cards.setdefault(name, []).append(f"- config_name: {subset}\n  data_files:\n{''.join(entries)}")
        if revision == "main":
            files["README.md"] = f"---\nconfigs:\n{''.join(cards[name])}---\n".encode()
        put(hub, "datasets", name, files, revision)
