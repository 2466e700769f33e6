"""The networks of the CIFAR literature: the sizes and function of the benchmark, as models of transformers."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image
from tiny import table, train
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

import hf_kd.models
from hf_kd import METHODS, ConfigError, load_teacher
from hf_kd.experiment import parse_config, run_experiment
from hf_kd.experiment.build import build_task
from hf_kd.heads import classification_layer
from hf_kd.models import LITERATURE, OWN_TYPES, cifar_processor, literature_config
from hf_kd.publish.folder import bundle, check_folder
from hf_kd.students import student_from_config

EACH = {  # of each family, a small one
    "cifar_resnet": {"depth": 8},
    "cifar_deep_resnet": {"depth": 18, "width": 0.25},
    "cifar_wrn": {"depth": 10, "width": 1},
    "cifar_vgg": {"depth": 8},
    "cifar_mobilenet_v2": {"width": 0.25, "expansion": 2},
    "cifar_shufflenet_v1": {"stage_sizes": [48, 96], "blocks": [2, 2], "groups": 3},
    "cifar_shufflenet_v2": {"stage_sizes": [16, 32], "blocks": [2, 2], "last_size": 48},
}

# Parameters at 100 classes, and the channels of the maps, of the public benchmark's own modules.
BENCHMARK = {
    "resnet8": (83_892, (16, 16, 32, 64)),
    "resnet14": (181_108, (16, 16, 32, 64)),
    "resnet20": (278_324, (16, 16, 32, 64)),
    "resnet32": (472_756, (16, 16, 32, 64)),
    "resnet44": (667_188, (16, 16, 32, 64)),
    "resnet56": (861_620, (16, 16, 32, 64)),
    "resnet110": (1_736_564, (16, 16, 32, 64)),
    "resnet8x4": (1_233_540, (32, 64, 128, 256)),
    "resnet32x4": (7_433_860, (32, 64, 128, 256)),
    "resnet18": (11_220_132, (64, 64, 128, 256, 512)),
    "resnet50": (23_705_252, (64, 256, 512, 1024, 2048)),
    "wrn_16_1": (180_916, (16, 16, 32, 64)),
    "wrn_16_2": (703_284, (16, 32, 64, 128)),
    "wrn_40_1": (569_780, (16, 16, 32, 64)),
    "wrn_40_2": (2_255_156, (16, 32, 64, 128)),
    "vgg8": (3_965_028, (64, 128, 256, 512, 512)),
    "vgg11": (9_277_284, (64, 128, 256, 512, 512)),
    "vgg13": (9_462_180, (64, 128, 256, 512, 512)),
    "vgg16": (14_774_436, (64, 128, 256, 512, 512)),
    "vgg19": (20_086_692, (64, 128, 256, 512, 512)),
    "mobilenet_v2": (812_836, (16, 12, 16, 48, 160)),
    "shufflenet_v1": (949_258, (24, 240, 480, 960)),
    "shufflenet_v2": (1_355_528, (24, 116, 232, 464)),
}
SIDES = {"vgg": (32, 16, 8, 4, 4), "mobilenet_v2": (16, 16, 8, 4, 2), "shufflenet": (32, 16, 8, 4)}
WIDER = {"mobilenet_v2": 1280, "shufflenet_v2": 1024}  # a last convolution widens the last map

# The first three of seven logits of the second image, of the benchmark's own modules with the weights of `lay_down`.
VALUES = {
    "resnet8": (0.5424959229, -0.3004999906, 0.6500482399),
    "resnet8x4": (0.4517375036, -0.7741864047, 0.0115320839),
    "resnet18": (0.3478397562, -0.5898611681, 2.0445548732),
    "resnet50": (-2.0708697929, 5.2527081872, -11.2360434470),
    "wrn_16_2": (0.9611932998, 0.7932712529, -0.4394298704),
    "vgg8": (0.1065325994, -0.5719889831, 0.5420943750),
    "mobilenet_v2": (-0.1477626327, 0.0944691201, -0.0211746377),
    "shufflenet_v1": (-0.6229334793, 0.1796832449, 0.7691256306),
    "shufflenet_v2": (-0.0453005159, 0.1217037126, 0.0564909278),
}


def network(model_type, seed=0, *, labels=5, **settings):
    """A small one of a family, with random statistics in its BatchNorms, so that none of them is the identity."""
    config = AutoConfig.for_model(model_type, num_labels=labels, **{**EACH[model_type], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForImageClassification.from_config(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(rows=2, side=32, seed=0, **kind):
    return torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed), **kind)


def answers(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels).logits


# --- Sizes and function ----------------------------------------------------------------------------------------------


def test_every_network_of_the_literature_is_expected():
    assert set(LITERATURE) == set(BENCHMARK)
    assert {settings["model_type"] for settings in LITERATURE.values()} == set(OWN_TYPES) == set(EACH)


@pytest.mark.parametrize("name", LITERATURE)
def test_sizes_are_the_benchmarks(name):
    """Another stem, a bias more, a stride elsewhere: the paper's number of parameters or the maps would be others."""
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(literature_config(name, num_labels=100))
        found = model.eval()(torch.empty(2, 3, 32, 32), output_hidden_states=True)
        pooled = model.backbone(torch.empty(2, 3, 32, 32)).pooler_output
    parameters, channels = BENCHMARK[name]
    assert model.num_parameters() == parameters
    assert found.logits.shape == (2, 100)
    sides = next((sides for start, sides in SIDES.items() if name.startswith(start)), None)
    sides = sides or (32, 32, 16, 8, 4)[: len(channels)]
    assert [tuple(m.shape) for m in found.hidden_states] == [
        (2, size, side, side) for size, side in zip(channels, sides, strict=True)
    ]
    assert pooled.shape == (2, model.config.feature_size) == (2, WIDER.get(name, channels[-1]))


def test_the_documented_table_is_true():
    """The table of the docstring is what is read first."""
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", hf_kd.models.__doc__, re.MULTILINE)
    assert {name: int(count.replace(",", "")) for name, count in rows} == {n: c for n, (c, _) in BENCHMARK.items()}


def lay_down(model):
    """Weights by a rule of their shape alone, so that no names are needed to give another module the same."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                k = torch.arange(module.num_features, dtype=torch.float64)
                module.weight.copy_(1 + 0.2 * k.sin())
                module.bias.copy_(0.1 * k.cos())
                module.running_mean.copy_(0.1 * (2 * k).sin())
                module.running_var.copy_(1 + 0.3 * (3 * k).cos())
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                n = module.weight.numel()
                wave = (torch.arange(n, dtype=torch.float64).square() * 0.37).sin().view_as(module.weight)
                module.weight.copy_(wave * math.sqrt(2 * len(module.weight) / n))
                if module.bias is not None:
                    module.bias.copy_(torch.arange(len(module.bias), dtype=torch.float64).sin() * 0.1)


@pytest.mark.parametrize("name", VALUES)
def test_answers_are_the_benchmarks(name):
    """A ReLU, a pooling or a shortcut elsewhere changes no shape. Printed to 10 decimals, so exact to half of one."""
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(literature_config(name, num_labels=7))
    model = model.double().to_empty(device="cpu")
    lay_down(model)
    n = torch.arange(2 * 3 * 32 * 32, dtype=torch.float64)
    pixels = ((n * 0.01).sin() + (n.square() * 0.11).cos()).view(2, 3, 32, 32)
    assert answers(model, pixels)[1, :3].tolist() == pytest.approx(VALUES[name], abs=6e-11)


def test_the_pairs_of_the_methods_are_networks_of_the_literature():
    """A recipe takes both ends of a pair from `LITERATURE` by name."""
    pairs = {pair for method in METHODS.values() for pair in method.pairs.get("cifar100", ())}
    assert len(pairs) >= 10
    assert {end for pair in pairs for end in pair.split("-")} <= set(LITERATURE)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'resnet8x5'.*Did you mean 'resnet8x4'"):
        literature_config("resnet8x5")


# --- How they start --------------------------------------------------------------------------------------------------


def spread(tensor):
    """Standard deviation, and kurtosis: 3 of a normal distribution, 1.8 of a uniform one."""
    value = tensor.detach().double()
    return value.std().item(), ((value / value.std()) ** 4).mean().item()


@pytest.mark.parametrize("model_type", EACH)
def test_weights_start_as_in_the_benchmark(model_type):
    """`from_config` of transformers starts weights anew, by the model's rule or by its own, std 0.02.

    Of n draws the standard deviation is known to 1/sqrt(2n): 5 % are 4 of those for the 3,200 and more looked at.
    """
    torch.manual_seed(0)
    model = student_from_config(AutoConfig.for_model(model_type, num_labels=100, **EACH[model_type]))
    shuffles = model_type.startswith("cifar_shufflenet")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            values = (module.weight, module.bias, module.running_mean, module.running_var)
            assert [value.unique().item() for value in values] == [1, 0, 0, 1]
        elif isinstance(module, nn.Conv2d) and module.weight.numel() >= 3200:
            out, into, *kernel = module.weight.shape
            std, kurtosis = spread(module.weight)
            fan = into * math.prod(kernel) * 3 if shuffles else out * math.prod(kernel) / 2
            assert std == pytest.approx(fan**-0.5, rel=0.05)
            assert kurtosis == pytest.approx(1.8 if shuffles else 3.0, abs=0.35)
            assert module.bias is None or not module.bias.any()
    small = model_type in ("cifar_vgg", "cifar_mobilenet_v2")
    std, kurtosis = spread(model.classifier.weight)
    assert std == pytest.approx(0.01 if small else (3 * model.classifier.in_features) ** -0.5, rel=0.05)
    assert kurtosis == pytest.approx(3.0 if small else 1.8, abs=0.35)
    assert bool(model.classifier.bias.any()) is not (small or model_type == "cifar_wrn")


# --- As models of transformers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", EACH)
def test_a_saved_network_answers_bit_for_bit_the_same(model_type, tmp_path):
    """Through the Auto classes, as whoever finds the folder loads it; nothing missing and nothing left over."""
    model = network(model_type, id2label=dict(enumerate("abcde")), labels=5)
    expected = answers(model, images())
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(answers(loaded, images()), expected)
    assert loaded.config.id2label == dict(enumerate("abcde"))
    assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    backbone = AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(model.classifier(backbone(images()).pooler_output), expected)


@pytest.mark.parametrize("model_type", EACH)
def test_output_comes_in_the_forms_of_transformers(model_type):
    model = network(model_type)
    pixels, labels = images(), torch.tensor([1, 4])
    full = model(pixels, labels=labels, output_hidden_states=True)
    assert full.loss.item() == pytest.approx(nn.functional.cross_entropy(full.logits, labels).item(), rel=1e-6)
    assert model(pixels).hidden_states is None
    parts = model(pixels, labels=labels, return_dict=False)
    assert torch.equal(parts[0], full.loss)
    assert torch.equal(parts[1], full.logits)
    features = model.backbone(pixels).pooler_output
    assert classification_layer(model, "student", "this") is model.classifier
    assert torch.equal(model.classifier(features), full.logits)


@pytest.mark.parametrize("model_type", EACH)
def test_channels_last_is_the_same_function(model_type, tmp_path):
    """In float64, where no ReLU falls on the other side by rounding; also its gradients, in training."""
    plain, ordered = (network(model_type, channels_last=flag).double().train() for flag in (False, True))
    convolutions = [module for module in ordered.modules() if isinstance(module, nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
    pixels, labels = images(8, side=16, dtype=torch.float64), torch.arange(8) % 5
    entered = []
    convolutions[0].register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    found = [model(pixels, labels=labels, output_hidden_states=True) for model in (plain, ordered)]
    assert entered[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found[1].logits, found[0].logits, rtol=1e-9, atol=1e-11)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in found[1].hidden_states)
    for output in found:
        output.loss.backward()
    for one, other in zip(plain.parameters(), ordered.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-7, atol=1e-9)
    ordered.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last) and torch.equal(module.weight, own.weight)
        for module, own in zip([m for m in loaded.modules() if isinstance(m, nn.Conv2d)], convolutions, strict=True)
    )


@pytest.mark.parametrize("model_type", EACH)
def test_small_images_pass(model_type):
    """8 pixels, as the embedded digits have: means over places, not over a fixed 8x8."""
    assert answers(network(model_type), images(side=8)).shape == (2, 5)


def test_images_that_vgg_leaves_nothing_of_are_refused_in_words():
    with pytest.raises(ValueError, match=r"images of 4x4.*three poolings.*8 pixels"):
        network("cifar_vgg")(images(side=4))


def test_vgg_pools_once_more_from_64_pixels_on():
    """As the benchmark does for Tiny-ImageNet."""
    maps = network("cifar_vgg")(images(1, side=64), output_hidden_states=True).hidden_states
    assert [m.shape[-1] for m in maps] == [64, 32, 16, 8, 4]


SETTINGS = [
    ("cifar_resnet", {"depth": 9}, "6n [+] 2"),
    ("cifar_resnet", {"width": 0}, "no channels"),
    ("cifar_resnet", {"depth": "8"}, "int"),
    ("cifar_resnet", {"num_channels": 0}, "an image has channels"),
    ("cifar_deep_resnet", {"depth": 20}, "18, 34, 50, 101, 152"),
    ("cifar_deep_resnet", {"width": 0.0}, "1/16"),
    ("cifar_wrn", {"depth": 12}, "6n [+] 4"),
    ("cifar_wrn", {"dropout": 1.0}, "probability"),
    ("cifar_vgg", {"depth": 12}, "8, 11, 13, 16, 19"),
    ("cifar_mobilenet_v2", {"width": 0.01}, "1/16"),
    ("cifar_mobilenet_v2", {"expansion": 0}, "no channels inside"),
    ("cifar_shufflenet_v1", {"groups": 7}, "multiples of groups"),
    ("cifar_shufflenet_v1", {"stage_sizes": [240, 240, 960]}, "multiples of groups"),
    ("cifar_shufflenet_v2", {"stage_sizes": [117, 232, 464]}, "even"),
    ("cifar_shufflenet_v2", {"blocks": [4, 8]}, "equally many"),
]


@pytest.mark.parametrize(("model_type", "settings", "said"), SETTINGS)
def test_settings_that_make_no_network_are_refused(model_type, settings, said):
    with pytest.raises(Exception, match=said):  # transformers has a class of its own for it
        AutoConfig.for_model(model_type, **settings)


@pytest.mark.parametrize(("model_type", "settings", "said"), SETTINGS)
def test_they_are_refused_at_their_key(model_type, settings, said, tmp_path):
    """Before any data are loaded."""
    student = {"config": {"model_type": model_type, **settings}}
    with pytest.raises(ConfigError, match=said) as refused:
        parse_config(run(tmp_path, student))
    assert [line.split(":")[0] for line in refused.value.problems] == [f"student.config.{next(iter(settings))}"]


# --- In training -----------------------------------------------------------------------------------------------------

METHOD = {"name": "kd", "ce_weight": 1.0, "kd_weight": 0.0}
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 256,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}


def run(folder, student, **sections):
    given = {"data": {"name": "embedded/digits"}, "method": METHOD, "training": QUICK, **sections}
    return {"output_dir": str(folder / "run"), "student": student, **given}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder that a run left, of a wide ResNet for the digits."""
    folder = tmp_path_factory.mktemp("teacher")
    run_experiment(parse_config(run(folder, {"config": {"model_type": "cifar_wrn", **EACH["cifar_wrn"]}})))
    return folder / "run"


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """A folder that a run left, of a ResNet taught by it through features."""
    folder = tmp_path_factory.mktemp("student")
    settings = {"config": {"model_type": "cifar_resnet", "depth": 8, "channels_last": True}}
    section = {"model": str(teacher), "sanity_check": False}
    run_experiment(parse_config(run(folder, settings, teacher=section, method={"name": "feature_mse"})))
    return folder / "run"


def test_a_run_leaves_a_network_that_the_auto_classes_load(student):
    """With features of the teacher, the digits' 8 pixels, and what others need to load it."""
    model, info = AutoModelForImageClassification.from_pretrained(student, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == 10
    assert AutoImageProcessor.from_pretrained(student).size["height"] == 8
    card = (student / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "`import hf_kd`" in card
    code = json.loads((student / "distillation.json").read_text())["student"]["code"]
    assert code["carried"]
    assert code["imports"] == []
    assert {f"{file}.py" for file in ("cifar_base", "cifar_configs", "cifar_resnet")} <= set(bundle(student))
    check_folder(student)
    check_folder(student, trust_remote_code=True)


@pytest.mark.parametrize("model_type", EACH)
def test_each_learns_from_a_teachers_features(model_type, teacher, tmp_path):
    """Features and the weight of the teacher's last layer reach a loss, and every parameter gets a gradient."""
    own = network(model_type, labels=10)
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    pixels = images(16, side=16)
    rows = table([{"pixel_values": x.tolist(), "labels": i % 10} for i, x in enumerate(pixels)])
    trainer = train(
        tmp_path,
        own,
        load_teacher(str(teacher)),
        rows,
        method="feature_mse",
        per_device_train_batch_size=16,
        learning_rate=0.1,
    )
    assert trainer.state.global_step == 1
    still = [name for name, value in own.named_parameters() if torch.equal(value.detach(), before[name])]
    assert not still


def test_recomputing_activations_is_refused(tmp_path):
    """It would run each BatchNorm twice a step."""
    rows = table([{"pixel_values": images(1)[0].tolist(), "labels": 1}] * 4)
    with pytest.raises(ValueError, match="CifarResNetForImageClassification has no layers"):
        train(tmp_path, network("cifar_resnet"), network("cifar_wrn"), rows, activation_checkpointing=True)


def pictures(folder):
    """A folder of images, two classes."""
    for split in ("train", "validation", "test"):
        for index in range(4):
            path = folder / split / ("dark", "light")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (60 * index + 5 * len(split), 40, 9)).save(path)
    return folder


def test_a_student_from_scratch_gets_the_processor_of_the_benchmark(tmp_path):
    """Nobody has to name one: CIFAR-100's normalisation, 32 pixels, and no resampling of what has them."""
    config = parse_config(
        run(tmp_path, {"config": {"model_type": "cifar_vgg"}}, data={"path": str(pictures(tmp_path / "set"))})
    )
    task = build_task(config)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    processor = task.processing_class
    assert (tuple(processor.image_mean), tuple(processor.image_std), processor.size["height"]) == (mean, std, 32)
    noise = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = torch.as_tensor(cifar_processor()([Image.fromarray(noise.numpy())])["pixel_values"][0])
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    torch.testing.assert_close(found.double(), (noise.permute(2, 0, 1) / 255.0 - mean) / std, rtol=0, atol=2e-6)


def test_a_teacher_of_the_family_lends_its_processor(teacher, tmp_path):
    """It was trained with that one: the 8 pixels of the digits here."""
    student = {"config": {"model_type": "cifar_resnet", "depth": 8}}
    data = {"path": str(pictures(tmp_path / "set"))}
    config = parse_config(run(tmp_path, student, data=data, teacher={"model": str(teacher)}, method={"name": "kd"}))
    assert build_task(config).processing_class.size["height"] == 8


# --- Where the package is, and where it is not -----------------------------------------------------------------------


def python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_importing_the_package_registers_them_without_importing_anything():
    """The losses are used without transformers, whose import takes seconds."""
    code = """
import sys, hf_kd
assert not {"torch", "transformers"} & set(sys.modules)
from transformers import AutoConfig
assert AutoConfig.for_model("cifar_resnet", depth=8).depth == 8
assert "hf_kd.models.networks" not in sys.modules
from transformers import AutoModel
print(type(AutoModel.from_config(AutoConfig.for_model("cifar_vgg"))).__name__)
"""
    assert python(code).split()[-1] == "CifarVGGModel"


def test_saved_networks_load_where_the_package_is_not(tmp_path):
    """With the code beside the weights, and the same answers."""
    for model_type in EACH:
        model = network(model_type)
        model.save_pretrained(tmp_path / model_type)
        torch.save(answers(model, images(1)), tmp_path / model_type / "answers.pt")
    torch.save(images(1), tmp_path / "images.pt")
    code = """
import sys, torch
from pathlib import Path
sys.modules["hf_kd"] = None
from transformers import AutoModelForImageClassification
folder = Path(sys.argv[1])
pixels = torch.load(folder / "images.pt")
for path in sorted(folder.iterdir()):
    if path.is_dir():
        model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(pixels).logits, torch.load(path / "answers.pt"))
        print(path.name)
"""
    assert python(code, tmp_path).split() == sorted(EACH)
