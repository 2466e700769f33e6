"""Every strategy and loss the contract checks run on: id -> factory. The only list to extend."""

from functools import partial

from hf_kd.losses import (
    AlphaBetaLoss,
    BinaryCrossEntropyLoss,
    DKDLoss,
    HardLabelLoss,
    HellingerLoss,
    JeffreysLoss,
    JensenShannonLoss,
    KDLoss,
    LogitHuberLoss,
    LogitMSELoss,
    NKDLoss,
    RenyiLoss,
    ReverseKLLoss,
    SampleWeightedLoss,
    SkewKLLoss,
    SoftCrossEntropyLoss,
    TotalVariationLoss,
)
from hf_kd.temperatures import (
    ClampedTemperature,
    ConstantTemperature,
    CosineTemperature,
    CTKDInstanceTemperature,
    CTKDTemperature,
    CWSMTemperature,
    DTKDTemperature,
    ExponentialTemperature,
    FLSWTemperature,
    LinearTemperature,
    NormTemperature,
    ScaledTemperature,
    StandardizedTemperature,
    TTMTemperature,
    WarmupTemperature,
    WTTMTemperature,
)

NUM_LABELS = 5

TEMPERATURE_CASES = {
    "constant": ConstantTemperature,
    "constant-sharp": partial(ConstantTemperature, 0.5),
    "linear": LinearTemperature,
    "linear-up": partial(LinearTemperature, 1.0, 8.0, until=0.5),
    "cosine": CosineTemperature,
    "exponential": ExponentialTemperature,
    "ctkd": CTKDTemperature,
    "ctkd-epochs": partial(CTKDTemperature, 2.0, 5.0, initial=-1.0, curriculum_epochs=10),
    "ctkd_instance": partial(CTKDInstanceTemperature, NUM_LABELS),
    "ctkd_instance-narrow": partial(CTKDInstanceTemperature, NUM_LABELS, 2.0, 5.0, hidden_size=3, curriculum=0.0),
    "dtkd": DTKDTemperature,
    "dtkd-detach": partial(DTKDTemperature, 2.0, detach=True),
    "dtkd-center": partial(DTKDTemperature, 4.0, center=True),
    "ttm": TTMTemperature,
    "ttm-gamma": partial(TTMTemperature, gamma=0.1),
    "wttm": WTTMTemperature,
    "wttm-gamma": partial(WTTMTemperature, gamma=0.1),
    "wttm-sharp": partial(WTTMTemperature, 0.5),
    "standardized": StandardizedTemperature,
    "standardized-population": partial(StandardizedTemperature, 3.0, ddof=0, epsilon=0.0, detach=True),
    "standardized-ctkd": partial(StandardizedTemperature, "ctkd"),
    "standardized-dtkd": partial(StandardizedTemperature, {"name": "dtkd", "temperature": 2.0}),
    "norm": NormTemperature,
    "norm-detach": partial(NormTemperature, 1.0, ddof=0, detach=True),
    "flsw": FLSWTemperature,
    "flsw-strong": partial(FLSWTemperature, 2.0, beta=5.0, gamma=0.5),
    "cwsm": CWSMTemperature,
    "cwsm-strong": partial(CWSMTemperature, 1.0, beta=3.0),
    "clamped": ClampedTemperature,
    "clamped-ctkd": partial(ClampedTemperature, "ctkd", 2.0, 18.0),
    "clamped-norm": partial(ClampedTemperature, "norm", 1.0, 3.0),
    "warmup": WarmupTemperature,
    "warmup-dtkd": partial(WarmupTemperature, "dtkd", 2.0, until=0.5),
    "scaled": ScaledTemperature,
    "scaled-ctkd_instance": partial(
        ScaledTemperature, "ctkd_instance", {"name": "cosine", "start": 2.0, "end": 0.5}, num_labels=NUM_LABELS
    ),
}


def _kd_over(strategy):
    return lambda temperature=None: KDLoss(strategy() if temperature is None else temperature)


LOSS_CASES = {
    "kd": KDLoss,
    "kd-epsilon": partial(KDLoss, teacher_epsilon=1e-7),
    "kd-element-mean": partial(KDLoss, compensate=False, element_mean=True),
    **{f"kd-over-{name}": _kd_over(strategy) for name, strategy in TEMPERATURE_CASES.items()},
    "dkd": DKDLoss,
    "dkd-imagenet": partial(DKDLoss, 1.0, 0.5, temperature=1.0),
    "dkd-target-only": partial(DKDLoss, 1.0, 0.0),
    "dkd-over-ctkd": lambda temperature="ctkd": DKDLoss(temperature=temperature),
    "dkd-over-standardized": lambda temperature="standardized": DKDLoss(temperature=temperature),
    "nkd": NKDLoss,
    "nkd-cifar": partial(NKDLoss, 3.5, temperature=3.0),
    "weighted": lambda temperature=4.0: SampleWeightedLoss(KDLoss(temperature)),
    "weighted-wsld": lambda temperature=2.0: SampleWeightedLoss(SoftCrossEntropyLoss(temperature), "wsld"),
    "weighted-entropy-of-dkd": lambda temperature="ctkd": SampleWeightedLoss(
        DKDLoss(temperature=temperature), {"name": "teacher_entropy", "temperature": 2.0}
    ),
    "reverse_kl": ReverseKLLoss,
    "jeffreys": JeffreysLoss,
    "jensen_shannon": JensenShannonLoss,
    "jensen_shannon-teacher": partial(JensenShannonLoss, 0.1, temperature=4.0, compensate=True),
    "jensen_shannon-reverse": partial(JensenShannonLoss, 1),
    "skew_kl": SkewKLLoss,
    "skew_kl-reverse": partial(SkewKLLoss, 0.3, reverse=True),
    "total_variation": TotalVariationLoss,
    "hellinger": HellingerLoss,
    "renyi": RenyiLoss,
    "renyi-2": partial(RenyiLoss, 2.0),
    "alpha_beta": AlphaBetaLoss,
    "alpha_beta-reverse-limit": partial(AlphaBetaLoss, 0.0, 0.5, author_limits=True),
    "alpha_beta-log": partial(AlphaBetaLoss, 0.0, 0.0),
    "soft_cross_entropy": SoftCrossEntropyLoss,
    "soft_cross_entropy-element-mean": partial(SoftCrossEntropyLoss, compensate=False, element_mean=True),
    "hard_label": HardLabelLoss,
    "binary_cross_entropy": BinaryCrossEntropyLoss,
    "logit_mse": LogitMSELoss,
    "logit_mse-center": partial(LogitMSELoss, center=True, half_sum=True),
    "logit_huber": LogitHuberLoss,
    "logit_huber-center": partial(LogitHuberLoss, 0.5, center=True),
}
