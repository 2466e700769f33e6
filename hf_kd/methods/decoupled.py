"""Methods that treat the labelled class, or the rows, apart: DKD, NKD, WSLD."""

from .base import Method, Setting, paper_url

_MDISTILLER = "mdistiller's DKD configs"


def _dkd_pairs() -> dict[str, Setting]:
    pairs = {
        2.0: ("resnet56-resnet20", "resnet110-resnet32"),
        6.0: ("vgg13-vgg8", "vgg13-mobilenet_v2", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1"),
        8.0: (
            "resnet32x4-resnet8x4",
            "resnet32x4-shufflenet_v1",
            "resnet32x4-shufflenet_v2",
            "resnet50-mobilenet_v2",
            "wrn_40_2-shufflenet_v1",
        ),
    }
    source = f"{_MDISTILLER}: BETA per pair"
    return {pair: Setting({"beta": beta}, source) for beta, names in pairs.items() for pair in names}


DECOUPLED_METHODS: dict[str, Method] = {
    "dkd": Method(
        title="Decoupled distillation: target class and other classes apart",
        strategy="constant",
        loss="dkd",
        formula="ce_weight·CE + kd_weight·w(t)·T²·[alpha·KL(b_t ‖ b_s) + beta·KL(p̂ ‖ q̂)], b = (p_y, 1 - p_y), "
        "p̂ over the other classes",
        paper="Zhao et al., Decoupled Knowledge Distillation, CVPR 2022",
        url=paper_url("2203.08679"),
        default=Setting(
            {"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 4.0, "alpha": 1.0, "beta": 8.0, "warmup": 20 / 240},
            f"{_MDISTILLER} for CIFAR-100, defaults; warm-up as a share",
        ),
        benchmarks={
            "cifar100": Setting(
                {"ce_weight": 1.0, "temperature": 4.0, "alpha": 1.0, "beta": 8.0, "warmup_epochs": 20},
                f"{_MDISTILLER}, defaults: CE 1, ALPHA 1, BETA 8, T 4, WARMUP 20 of 240 epochs",
            ),
            "imagenet": Setting(
                {"ce_weight": 1.0, "temperature": 1.0, "alpha": 1.0, "beta": 0.5, "warmup_epochs": 1},
                f"{_MDISTILLER} for ImageNet: ALPHA 1, BETA .5, T 1, WARMUP 1",
            ),
        },
        pairs={"cifar100": _dkd_pairs()},
        parameters=("alpha", "beta"),
        hosts=None,
        notes="Needs labels. With two classes it is alpha times KD. On standardised logits (CVPR 2024) alpha and beta "
        "are 9 times as large: temperature={name: standardized}, alpha=9, beta=72.",
    ),
    "nkd": Method(
        title="Normalised distillation: target by confidence, other classes renormalised",
        strategy="constant",
        loss="nkd",
        formula="ce_weight·CE + kd_weight·[-p_y·log q_y + gamma·T²·H(p̂(T), q̂(T))], p̂ over the other classes",
        paper="Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with "
        "Normalized Loss and Customized Soft Labels, ICCV 2023",
        url=paper_url("2303.13005"),
        default=Setting({"ce_weight": 1.0, "kd_weight": 1.0, "temperature": 1.0, "gamma": 1.5}, "as on ImageNet"),
        benchmarks={
            "cifar100": Setting(
                {"ce_weight": 1.0, "temperature": 3.0, "gamma": 3.5},
                "authors' code, config for ResNet-34 to ResNet-18: temperature 3, gamma 3.5",
            ),
            "imagenet": Setting(
                {"ce_weight": 1.0, "temperature": 1.0, "gamma": 1.5},
                "authors' code, configs of convolutional students: temperature 1, gamma 1.5 (DeiT: gamma 1)",
            ),
        },
        parameters=("gamma",),
        hosts=None,
        notes="Needs labels. With two classes only the target's term is left.",
    ),
    "wsld": Method(
        title="Weighted soft labels: rows weighted by how far the teacher is ahead",
        strategy="constant",
        loss="soft_cross_entropy",
        sample_weight="wsld",
        formula="ce_weight·CE + kd_weight·T²·(1 - exp(-CE_s / CE_t))·H(p(T), q(T))",
        paper="Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective, "
        "ICLR 2021",
        url=paper_url("2102.00650"),
        default=Setting({"ce_weight": 1.0, "kd_weight": 2.5, "temperature": 2.0}, "as on ImageNet"),
        benchmarks={
            "cifar100": Setting(
                {"ce_weight": 1.0, "kd_weight": 2.25, "temperature": 4.0}, "authors' code: alpha 2.25, T 4, CE 1"
            ),
            "imagenet": Setting(
                {"ce_weight": 1.0, "kd_weight": 2.5, "temperature": 2.0}, "authors' code: alpha 2.5, T 2, CE 1"
            ),
        },
        hosts=None,
        notes="Needs labels. Two users of the authors' code could not reproduce its CIFAR-100 numbers.",
    ),
}
