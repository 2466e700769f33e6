"""Metrics as `evaluate.Metric` subclasses, and the `compute_metrics` callables the Trainer takes.

`evaluate.load("accuracy")` downloads a script; the classes here come with the package, so they work offline, and in
`evaluate.combine`. They never see logits: `reduce_logits` turns a ``(rows, num_labels)`` array into a few numbers per
row (argmax, confidence, top-k hit) first, because what a metric sees is written to an Arrow table.

Nothing is written anywhere unless a ``cache_dir`` is given; then everything lands under it.
"""

from .batched import BatchedMetrics
from .compute import (
    CLASS_METRICS,
    ClassificationMetrics,
    MultiLabelMetrics,
    RegressionMetrics,
    classification_metrics,
    metrics_for,
)
from .per_class import ClassScore, class_scores
from .reduction import agreement, expected_calibration_error, reduce_logits
from .scores import (
    Accuracy,
    BinaryF1,
    BrierScore,
    ExpectedCalibrationError,
    MacroF1,
    MatthewsCorrelation,
    MeanSquaredError,
    MicroF1,
    NegativeLogLikelihood,
    PearsonCorrelation,
    SpearmanCorrelation,
    TeacherAgreement,
    TopKAccuracy,
)

__all__ = [
    "CLASS_METRICS",
    "Accuracy",
    "BatchedMetrics",
    "BinaryF1",
    "BrierScore",
    "ClassScore",
    "ClassificationMetrics",
    "ExpectedCalibrationError",
    "MacroF1",
    "MatthewsCorrelation",
    "MeanSquaredError",
    "MicroF1",
    "MultiLabelMetrics",
    "NegativeLogLikelihood",
    "PearsonCorrelation",
    "RegressionMetrics",
    "SpearmanCorrelation",
    "TeacherAgreement",
    "TopKAccuracy",
    "agreement",
    "class_scores",
    "classification_metrics",
    "expected_calibration_error",
    "metrics_for",
    "reduce_logits",
]
