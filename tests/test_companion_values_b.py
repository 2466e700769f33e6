"""DKD, NKD, WSLD, temperatures from the logits: the published methods' values, in float64, through the users' API.

Two batches. The companion one is of `reference_companion.py`; the other is of `reference.py`, with DKD's values on it
and those of CTKD on DKD. All digits come from numpy scripts and agree with the authors' own functions where those
could be run. A value printed to ten decimals is off by at most 5e-11; gradients are pinned by their Frobenius norm.
"""

import numpy as np
import pytest
import reference as seed
import reference_companion as ref
import torch

from hf_kd import Progress, build_objective
from hf_kd.losses import DKDLoss, KDLoss, NKDLoss, SampleWeightedLoss, SoftCrossEntropyLoss, as_loss
from hf_kd.losses.weights import WSLDWeight
from hf_kd.temperatures import CTKDTemperature, CWSMTemperature, FLSWTemperature, NormTemperature
from hf_kd.temperatures import StandardizedTemperature as Standardized

S, T, Y = (torch.tensor(x) for x in (ref.STUDENT, ref.TEACHER, ref.LABELS))
ARRAYS = (ref.STUDENT, ref.TEACHER)
PRINTED = 5e-11 + 1e-13  # half a unit of the tenth decimal, and the order of float64 sums

Z = torch.tensor(seed.STUDENT, dtype=torch.float64)
V = torch.tensor(seed.TEACHER, dtype=torch.float64)
L = torch.tensor(seed.LABELS)


def value_and_norm(loss):
    student = S.clone().requires_grad_()
    value = loss.double()(student, T, Y).loss.mean()
    value.backward()
    return value.item(), student.grad.norm().item()


LOGIT_STD = 0.0696321082
NORM = 0.3078180617

# Statistics without gradient: the references hold them fixed.
WSLD = ref.wsld_weights(*ARRAYS, ref.LABELS)
FLSW = ref.flsw_temperatures(*ARRAYS)[:, None]
CWSM = ref.cwsm_temperatures(ref.STUDENT)[:, None]

VALUES = {  # key: (loss, the same from the reference, value, gradient norm)
    "tckd T=4": (
        DKDLoss(1.0, 0.0),
        lambda s: ref.tckd(s, ref.TEACHER, ref.LABELS, 4),
        0.3363747975,
        0.2122870862,
    ),
    "nckd T=4": (
        DKDLoss(0.0, 1.0),
        lambda s: ref.nckd(s, ref.TEACHER, ref.LABELS, 4),
        0.6033756268,
        0.2906535232,
    ),
    "dkd alpha=1 beta=8 T=4": (
        DKDLoss(),
        lambda s: ref.dkd(s, ref.TEACHER, ref.LABELS, 4, 1, 8),
        5.1633798115,
        2.3282432667,
    ),
    "dkd alpha=1 beta=.5 T=1": (
        DKDLoss(1.0, 0.5, temperature=1.0),
        lambda s: ref.dkd(s, ref.TEACHER, ref.LABELS, 1, 1, 0.5),
        0.3502393568,
        0.1958717340,
    ),
    "nkd T=1 gamma=1.5": (
        NKDLoss(),
        lambda s: ref.nkd(s, ref.TEACHER, ref.LABELS, 1, 1.5),
        1.8615250210,
        0.3821220002,
    ),
    "nkd T=3 gamma=3.5": (
        NKDLoss(3.5, temperature=3.0),
        lambda s: ref.nkd(s, ref.TEACHER, ref.LABELS, 3, 3.5),
        41.6752984115,
        1.0195893460,
    ),
    "wsld T=2": (
        as_loss({"name": "soft_cross_entropy", "temperature": 2.0, "sample_weight": "wsld"}),
        lambda s: 4 * WSLD * ref.soft_cross_entropy(s, ref.TEACHER, 2),
        3.9822652817,
        0.2289434718,
    ),
    "flsw": (
        SoftCrossEntropyLoss("flsw"),
        lambda s: ref.soft_cross_entropy(s, ref.TEACHER, FLSW),
        1.5368996736,
        0.0181114577,
    ),
    "cwsm": (
        SoftCrossEntropyLoss("cwsm"),
        lambda s: ref.soft_cross_entropy(s, ref.TEACHER, CWSM),
        1.5362578053,
        0.0202533232,
    ),
    "logit-std kd T=2 ddof=1": (
        KDLoss(Standardized(2.0)),
        lambda s: ref.logit_standardization(s, ref.TEACHER, 2, 1),
        LOGIT_STD,
        0.1027965973,
    ),
    "logit-std kd T=2 ddof=0": (
        KDLoss(Standardized(2.0, ddof=0)),
        lambda s: ref.logit_standardization(s, ref.TEACHER, 2, 0),
        0.0887478071,
        0.1309494693,
    ),
    "logit-std kd T=2 ddof=1, detached": (KDLoss(Standardized(2.0, detach=True)), None, LOGIT_STD, 0.1070916897),
    "logit-std dkd T=2, 9*(tckd+8*nckd)": (
        DKDLoss(9.0, 72.0, temperature=Standardized(2.0)),
        lambda s: ref.dkd(ref.standardized(s, 1), ref.standardized(ref.TEACHER, 1), ref.LABELS, 2, 9, 72),
        4.6476176401,
        7.9080383941,
    ),
    "normkd T=2": (
        KDLoss(NormTemperature(2.0)),
        lambda s: ref.normkd(s, ref.TEACHER, 2),
        NORM,
        0.4647783883,
    ),
    "normkd T=2, detached": (KDLoss(NormTemperature(2.0, detach=True)), None, NORM, 0.4755206168),
}


@pytest.mark.parametrize("case", VALUES)
def test_value_and_gradient_norm_as_printed(case):
    """The norm tells a detached statistic from one that carries gradient, where the value cannot."""
    loss, _, value, norm = VALUES[case]
    assert value_and_norm(loss) == (pytest.approx(value, abs=PRINTED), pytest.approx(norm, abs=PRINTED))


@pytest.mark.parametrize("case", [case for case, row in VALUES.items() if row[1] is not None])
def test_reference_gives_value_and_gradient(case):
    """Row by row and entry by entry, so that two errors cannot cancel in a mean."""
    loss, reference, value, norm = VALUES[case]
    assert reference(ref.STUDENT).mean() == pytest.approx(value, abs=PRINTED)
    student = S.clone().requires_grad_()
    output = loss.double()(student, T, Y).loss
    np.testing.assert_allclose(output.detach().numpy(), reference(ref.STUDENT), atol=1e-12)
    output.mean().backward()
    expected = ref.numeric_gradient(lambda s: reference(s).mean(), ref.STUDENT)
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-9)


# --- the sum of its parts --------------------------------------------------------------------------------------------


def test_kd_is_target_plus_muted_others():
    """The identity DKD starts from, on each row: KD = TCKD + (1 - p_y) NCKD."""
    parts = DKDLoss()(S, T, Y).parts
    muted = parts["tckd"] + (1 - (T / 4).softmax(-1).gather(1, Y[:, None]).squeeze(1)) * parts["nckd"]
    torch.testing.assert_close(muted, KDLoss(4.0)(S, T).loss, rtol=1e-12, atol=1e-14)
    assert muted.mean().item() == pytest.approx(0.7558618491, abs=PRINTED)


def test_parts_are_what_alpha_and_beta_multiply():
    output = DKDLoss(0.7, 3.0)(S, T, Y)
    torch.testing.assert_close(output.loss, 0.7 * output.parts["tckd"] + 3.0 * output.parts["nckd"])


def test_normkd_is_logit_standardisation_with_row_weights():
    """The two differ by a factor per row, (sigma_t T)² against T², and by the 1e-7 of one of them."""
    norm, standard = KDLoss(NormTemperature(2.0)), KDLoss(Standardized(2.0, epsilon=0.0))
    factor = T.std(-1).square()
    torch.testing.assert_close(norm(S, T).loss, factor * standard(S, T).loss, rtol=1e-12, atol=1e-14)


# --- the other batch: F, F2, F3, G -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("temperature", "tckd", "nckd", "with_8", "with_2"),
    [
        (4.0, 0.5060206984, 0.3283472052, 3.1327983398, 1.1627151088),
        (1.0, 0.2186880438, 0.1436528785, 1.3679110715, 0.5059938007),
    ],
)
def test_f_dkd(temperature, tckd, nckd, with_8, with_2):
    output = DKDLoss(temperature=temperature)(Z, V, L)
    assert output.parts["tckd"].mean().item() == pytest.approx(tckd, abs=PRINTED)
    assert output.parts["nckd"].mean().item() == pytest.approx(nckd, abs=PRINTED)
    assert output.loss.mean().item() == pytest.approx(with_8, abs=PRINTED)
    assert DKDLoss(1.0, 2.0, temperature=temperature)(Z, V, L).loss.mean().item() == pytest.approx(with_2, abs=PRINTED)


def test_f2_identity():
    parts = DKDLoss()(Z, V, L).parts
    confidence = (V / 4).softmax(-1).gather(1, L[:, None]).squeeze(1)
    assert (parts["tckd"] + (1 - confidence) * parts["nckd"]).mean().item() == pytest.approx(0.6979208606, abs=PRINTED)


def test_f3_ctkd_on_dkd_value_and_gradient():
    """The published code gives NaN to the temperature here. The gradient is printed to seven digits."""
    strategy = CTKDTemperature(curriculum=0.0).double()
    loss = DKDLoss(1.0, 2.0, temperature=strategy)(Z, V, L).loss.mean()
    assert loss.item() == pytest.approx(1.1458127323, abs=PRINTED)
    loss.backward()
    assert -strategy.raw.grad.item() == pytest.approx(-8.525941e-03, abs=1e-9)  # the reversal is one minus sign

    def part(raw):
        arrays = np.array(seed.STUDENT), np.array(seed.TEACHER), np.array(seed.LABELS)
        return ref.dkd(*arrays, seed.ctkd_temperature(raw), 1, 2).mean()

    h = 1e-2
    slope = (part(1 - 2 * h) - 8 * part(1 - h) + 8 * part(1 + h) - part(1 + 2 * h)) / (12 * h)
    assert -strategy.raw.grad.item() == pytest.approx(slope, abs=1e-10)


def test_f3_ctkd_on_dkd_as_users_write_it():
    objective = build_objective(
        "dkd", temperature={"name": "ctkd", "curriculum": 0.0}, beta=2.0, ce_weight=1.0, warmup=0.0
    ).double()
    output = objective(Z, V, L, progress=Progress())
    assert output.loss.item() == pytest.approx(1.8905272174, abs=PRINTED)
    output.loss.backward()
    (raw,) = objective.temperature_parameters()
    assert raw.grad.item() == pytest.approx(8.525941e-03, abs=1e-9)


@pytest.mark.parametrize("others_only", [False, True])
def test_g_gradients_at_temperature_1(others_only):
    """G1: the gradient of KL is q - p. G2: that of NCKD is the same of the renormalised others, 0 on the target."""
    student = Z.clone().requires_grad_()
    loss = DKDLoss(0.0, 1.0, temperature=1.0) if others_only else KDLoss(1.0)
    loss(student, V, L).loss.sum().backward()
    p, q = V.softmax(-1), Z.softmax(-1)
    if others_only:
        rest = torch.ones_like(p).scatter(1, L[:, None], 0.0)
        p, q = p * rest, q * rest
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    torch.testing.assert_close(student.grad, q - p, rtol=0, atol=1e-12)


def test_g3_target_probabilities():
    """The merged logits' softmax is (p_y, 1 - p_y)."""
    from hf_kd.functional import merge_others

    teacher, student = (merge_others(x, L).softmax(-1)[:, 0] for x in (V, Z))
    expected = (
        [0.9094646247, 0.9526693248, 0.5675109130, 0.8302292048],
        [0.6115723474, 0.8138567264, 0.2110027419, 0.4841885753],
        [1.4870924570, 1.1705614685, 2.6895902298, 1.7146815255],
    )
    for values, printed in zip((teacher, student, teacher / student), expected, strict=True):
        assert values.tolist() == pytest.approx(printed, abs=PRINTED)


# --- auxiliary values ------------------------------------------------------------------------------------------------


def test_flsw_and_cwsm_temperatures_as_printed():
    """Printed to eight decimals."""
    for strategy, reference, printed in (
        (FLSWTemperature(), ref.flsw_temperatures(*ARRAYS), [4.00234111, 4.0032752, 3.99805213, 3.99633156]),
        (CWSMTemperature(), ref.cwsm_temperatures(ref.STUDENT), [3.72148018, 4.6184563, 4.14231694, 3.51774658]),
    ):
        temperatures = strategy(S, T)
        assert temperatures.student is temperatures.teacher
        assert temperatures.student.squeeze(-1).tolist() == pytest.approx(printed, abs=6e-9)
        np.testing.assert_allclose(temperatures.student.squeeze(-1).numpy(), reference, atol=1e-12)
        assert not temperatures.parts["guarded"].any()


def test_wsld_weights_as_printed():
    """Printed to eight decimals."""
    weights = WSLDWeight()(S, T, Y)
    assert weights.tolist() == pytest.approx([0.99993757, 0.84860662, 0.68270571, 0.42783848], abs=6e-9)
    output = SampleWeightedLoss(KDLoss(2.0), "wsld")(S, T, Y)
    torch.testing.assert_close(output.parts["sample_weight"], weights)
    torch.testing.assert_close(output.loss, weights * KDLoss(2.0)(S, T).loss)


def test_wsld_as_users_write_it():
    """The authors' alpha is the weight of the distillation."""
    objective = build_objective("wsld", benchmark="cifar100", ce_weight=0.0).double()
    student = S.clone().requires_grad_()
    loss = objective(student, T, Y).loss
    loss.backward()
    assert loss.item() == pytest.approx(40.8266987557, abs=PRINTED)
    assert student.grad.norm().item() == pytest.approx(0.5298227634, abs=PRINTED)
