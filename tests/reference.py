"""The papers' equations in float64, row by row, with nothing but `math`.

Independent of `hf_kd` on purpose: nothing is imported from it, so a shared mistake would have to be made twice. One
row is a list of floats, a batch is a list of rows; gradients are central differences unless a formula is short.
"""

import math

# Batch of 4, 5 classes. In row 3 the student's first choice is wrong.
STUDENT = [
    [1.234, -0.567, 0.891, 2.345, -1.678],
    [-0.123, 3.210, 0.456, -0.789, 1.012],
    [0.345, 0.678, -0.912, 1.456, 0.234],
    [2.101, -1.432, 1.765, -0.098, 0.543],
]
TEACHER = [
    [0.876, -1.234, 1.543, 4.321, -2.109],
    [-0.654, 5.678, 1.234, -1.987, 2.345],
    [1.098, 2.765, -1.543, 2.109, -0.432],
    [4.567, -2.345, 2.876, 0.321, -0.765],
]
LABELS = [3, 1, 1, 0]
NEGATIVE_ROW = [-0.234, -0.567, -0.891, -0.345, -1.678]
"""A student row whose largest logit is negative."""


def mean(values):
    return math.fsum(values) / len(values)


def log_softmax(row, temperature=1.0):
    scaled = [x / temperature for x in row]
    top = max(scaled)
    total = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - total for x in scaled]


def softmax(row, temperature=1.0):
    return [math.exp(x) for x in log_softmax(row, temperature)]


def cross_entropy(student, labels, label_smoothing=0.0):
    """Mean over the rows."""
    losses = []
    for row, label in zip(student, labels, strict=True):
        log_q = log_softmax(row)
        losses.append(-(1 - label_smoothing) * log_q[label] - label_smoothing * mean(log_q))
    return mean(losses)


def kl(teacher_row, student_row, teacher_temperature=1.0, student_temperature=1.0, epsilon=0.0):
    log_p, log_q = log_softmax(teacher_row, teacher_temperature), log_softmax(student_row, student_temperature)
    total = 0.0
    for a, b in zip(log_p, log_q, strict=True):
        probability = math.exp(a) + epsilon
        total += probability * (math.log(probability) - b)
    return total


def kd_rows(student, teacher, temperatures):
    """T² KL per row, one temperature per row."""
    return [t * t * kl(v, z, t, t) for z, v, t in zip(student, teacher, temperatures, strict=True)]


def kd(student, teacher, temperature):
    """Hinton's loss."""
    return mean(kd_rows(student, teacher, [temperature] * len(student)))


def kd_limit(student, teacher):
    """T² KL for T towards infinity: half the variance over classes of the logits' difference."""
    halves = []
    for z, v in zip(student, teacher, strict=True):
        difference = [b - a for a, b in zip(z, v, strict=True)]
        centre = mean(difference)
        halves.append(0.5 * mean([(d - centre) ** 2 for d in difference]))
    return mean(halves)


def kd_row_slope(student_row, teacher_row, temperature):
    """d(T² KL)/dT = 2T KL + T² dKL/dT, both distributions moving."""
    a, b = [x / temperature for x in teacher_row], [x / temperature for x in student_row]
    p, q = softmax(a), softmax(b)
    a_mean = math.fsum(w * x for w, x in zip(p, a, strict=True))
    slope = 0.0
    for p_k, q_k, a_k, b_k in zip(p, q, a, b, strict=True):
        p_slope = -p_k * (a_k - a_mean) / temperature
        slope += p_slope * (a_k - b_k) - (q_k - p_k) * b_k / temperature
    return 2 * temperature * kl(teacher_row, student_row, temperature, temperature) + temperature**2 * slope


def kd_slope(student, teacher, temperature):
    return mean([kd_row_slope(z, v, temperature) for z, v in zip(student, teacher, strict=True)])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ctkd_temperature(raw, start=1.0, width=20.0):
    return start + width * sigmoid(raw)


def ctkd_slope(raw, width=20.0):
    """d tau / d raw."""
    return width * sigmoid(raw) * (1 - sigmoid(raw))


def ctkd_lambda(epoch, loops, low=0.0, high=1.0):
    """CTKD's Eq. 11; epochs count from 1."""
    return low + 0.5 * (high - low) * (1 + math.cos((1 + min(epoch, loops) / loops) * math.pi))


def ctkd_reversed_gradient(student, teacher, epoch, loops, kd_weight, raw=1.0):
    """What reaches `raw`: minus lambda times the gradient of the weighted loss."""
    slope = kd_slope(student, teacher, ctkd_temperature(raw)) * ctkd_slope(raw)
    return -ctkd_lambda(epoch, loops) * kd_weight * slope


def sgd_first_step(value, gradient, learning_rate, weight_decay):
    """With momentum but without history, the first step is plain."""
    return value - learning_rate * (gradient + weight_decay * value)


def ctkd_instance(student, teacher, temperatures, epsilon=0.0):
    """The instance-wise loss; `epsilon` is added to the teacher's probabilities without renormalising."""
    rows = zip(student, teacher, temperatures, strict=True)
    return mean([t * t * kl(v, z, t, t, epsilon) for z, v, t in rows])


def ctkd_instance_gradient(student, teacher, raws):
    """d loss / d raw_i."""
    rows = zip(student, teacher, raws, strict=True)
    return [kd_row_slope(z, v, ctkd_temperature(r)) * ctkd_slope(r) / len(student) for z, v, r in rows]


def dtkd_temperatures(student, teacher, tau=4.0):
    """Teacher's and student's temperature per row."""
    tops = [(max(v), max(z)) for z, v in zip(student, teacher, strict=True)]
    return [2 * x / (x + y) * tau for x, y in tops], [2 * y / (x + y) * tau for x, y in tops]


def dtkd_rows(student, teacher, tau=4.0, temperatures=None, compensated=True):
    teacher_t, student_t = temperatures or dtkd_temperatures(student, teacher, tau)
    rows = zip(student, teacher, teacher_t, student_t, strict=True)
    return [kl(v, z, a, b) * (a * b if compensated else 1.0) for z, v, a, b in rows]


def dtkd(student, teacher, tau=4.0, temperatures=None):
    return mean(dtkd_rows(student, teacher, tau, temperatures))


def dtkd_total(student, teacher, labels, epoch, alpha, beta, tau=4.0, warmup=20):
    """The authors' total; epochs count from 1."""
    distillation = alpha * dtkd(student, teacher, tau) + beta * kd(student, teacher, tau)
    return min(epoch / warmup, 1.0) * distillation + cross_entropy(student, labels)


def sharpness(row, temperature):
    return math.log(math.fsum(math.exp(x / temperature) for x in row))


def dtkd_exact_shift(student, teacher, tau=4.0):
    """The shift that really equalises the sharpness of both sides, by bisection."""
    shifts = []
    for z, v in zip(student, teacher, strict=True):
        low, high = -0.999 * tau, 0.999 * tau
        for _ in range(200):
            middle = (low + high) / 2
            too_sharp = sharpness(v, tau + middle) > sharpness(z, tau - middle)
            low, high = (middle, high) if too_sharp else (low, middle)
        shifts.append((low + high) / 2)
    return shifts


def sharpness_gaps(student, teacher, teacher_temperatures, student_temperatures):
    rows = zip(student, teacher, teacher_temperatures, student_temperatures, strict=True)
    return [abs(sharpness(v, a) - sharpness(z, b)) for z, v, a, b in rows]


def dtkd_errata_shift(student, teacher, tau=4.0):
    """What the author's errata derives instead; larger than tau on ordinary rows, so of no use."""
    pairs = [zip(z, v, strict=True) for z, v in zip(student, teacher, strict=True)]
    return [max((b - a) / (b + a) * tau for a, b in row) for row in pairs]


def power_sums(teacher, gamma):
    """sum_k p_k^gamma of the untempered teacher."""
    return [math.fsum(p**gamma for p in softmax(row)) for row in teacher]


def ttm_rows(student, teacher, gamma):
    """KL between the renormalised power p^gamma and the student, by the definition (powers of probabilities)."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        powers = [p**gamma for p in softmax(v)]
        transformed = [x / math.fsum(powers) for x in powers]
        pairs = zip(transformed, log_softmax(z), strict=True)
        values.append(math.fsum(p * (math.log(p) - log_q) for p, log_q in pairs))
    return values


def ttm(student, teacher, gamma):
    return mean(ttm_rows(student, teacher, gamma))


def wttm(student, teacher, gamma):
    rows = zip(power_sums(teacher, gamma), ttm_rows(student, teacher, gamma), strict=True)
    return mean([u * value for u, value in rows])


def renyi_entropy(probabilities, order):
    return math.log(math.fsum(q**order for q in probabilities)) / (1 - order)


def entropy(probabilities):
    return -math.fsum(p * math.log(p) for p in probabilities)


def ttm_as_kd_rows(student, teacher, temperature):
    """TTM's Eq. 15: KD plus a Rényi-entropy regulariser of the student."""
    values = []
    for z, v in zip(student, teacher, strict=True):
        regulariser = entropy(softmax(v, temperature)) - renyi_entropy(softmax(z), 1 / temperature)
        values.append(temperature * kl(v, z, temperature, temperature) + (temperature - 1) * regulariser)
    return values


def ttm_as_kd_total(student, teacher, labels, temperature, weight):
    """TTM's Eq. 18: the same for the totals, with beta = weight T / (1 - weight)."""
    beta = weight / (1 - weight) * temperature
    renyi = mean([renyi_entropy(softmax(z), 1 / temperature) for z in student])
    shannon = mean([entropy(softmax(v, temperature)) for v in teacher])
    kd_total = (1 - weight) * cross_entropy(student, labels) + weight * kd(student, teacher, temperature)
    regularised = kd_total - weight * temperature * (temperature - 1) * renyi
    return regularised / (1 - weight) + beta * (temperature - 1) * shannon


def row_gradient(function, batch, row, h=2e-3):
    """d function / d batch[row], by five-point central differences."""
    gradient = []
    for k in range(len(batch[row])):

        def at(step, k=k):
            moved = [list(r) for r in batch]
            moved[row][k] += step
            return function(moved)

        gradient.append((at(-2 * h) - 8 * at(-h) + 8 * at(h) - at(2 * h)) / (12 * h))
    return gradient
