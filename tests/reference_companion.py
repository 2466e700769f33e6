"""The companion methods' equations in float64, with nothing but numpy: row losses unless a docstring says otherwise.

Independent of `hf_kd` on purpose, like `reference.py`: nothing is imported from it. Arrays are `(batch, classes)`.
"""

import numpy as np

STUDENT = np.array(
    [
        [1.234, -0.567, 0.890, -1.111, 0.321],
        [-0.250, 2.100, 0.475, 0.050, -0.900],
        [0.600, 0.700, -0.300, 1.800, 0.150],
        [-1.200, 0.340, 0.560, -0.780, 0.910],
    ]
)
TEACHER = np.array(
    [
        [4.321, -1.250, 1.500, -2.000, 0.750],
        [-0.800, 3.600, 1.950, -0.450, -1.700],
        [0.300, 2.450, -1.100, 2.900, 0.050],
        [-2.500, 0.650, 3.150, -1.400, 1.750],
    ]
)
LABELS = np.array([0, 1, 3, 4])
"""In the last row the teacher's first choice is wrong; the student's are all right."""


def softmax(logits, temperature=1.0):
    powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def kl_of_probabilities(p, q):
    return (p * np.log(p / q)).sum(1)


def numeric_gradient(function, logits, h=2e-3):
    """d function / d logits, by five-point central differences: about ten digits where the function is smooth."""
    gradient = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = h
        near = function(logits + step) - function(logits - step)
        far = function(logits + 2 * step) - function(logits - 2 * step)
        gradient[place] = (8 * near - far) / (12 * h)
    return gradient


# --- divergences, regressions, labels -----------------------------------------------------------------------------


def reverse_kl(student, teacher, temperature=1.0):
    return kl_of_probabilities(softmax(student, temperature), softmax(teacher, temperature))


def jeffreys(student, teacher, temperature=1.0, reverse_weight=0.5):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return (((1 - reverse_weight) * p - reverse_weight * q) * np.log(p / q)).sum(1)


def jensen_shannon(student, teacher, beta, temperature=1.0):
    """As entropies: H(m) - b H(p) - (1 - b) H(q), for 0 < beta < 1."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    entropy = lambda x: -(x * np.log(x)).sum(1)  # noqa: E731
    return entropy(beta * p + (1 - beta) * q) - beta * entropy(p) - (1 - beta) * entropy(q)


def skew_kl(first, second, alpha, temperature=1.0):
    a, b = softmax(first, temperature), softmax(second, temperature)
    return kl_of_probabilities(a, alpha * a + (1 - alpha) * b)


def total_variation(student, teacher, temperature=1.0):
    """The largest difference in the probability of any event: the classes where the teacher has more."""
    return np.maximum(softmax(teacher, temperature) - softmax(student, temperature), 0).sum(1)


def hellinger(student, teacher, temperature=1.0):
    """One minus the Bhattacharyya coefficient."""
    return 1 - np.sqrt(softmax(teacher, temperature) * softmax(student, temperature)).sum(1)


def renyi(student, teacher, alpha, temperature=1.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return np.log((p**alpha / q ** (alpha - 1)).sum(1)) / (alpha - 1)


def alpha_beta(student, teacher, alpha, beta, temperature=1.0):
    """The general case, for positive orders."""
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    total = alpha + beta
    return (p**total / (beta * total) + q**total / (alpha * total) - p**alpha * q**beta / (alpha * beta)).sum(1)


def alpha_beta_limit(first, second, order, temperature=1.0, author=False):
    """One order 0: `first` is the side whose order is not."""
    a, b = softmax(first, temperature) ** order, softmax(second, temperature) ** order
    return (a * np.log(a / b) - a + b).sum(1) / (order if author else order * order)


def log_ratio_square(student, teacher, temperature=1.0):
    """Both orders 0."""
    return 0.5 * (np.log(softmax(teacher, temperature) / softmax(student, temperature)) ** 2).sum(1)


def soft_cross_entropy(student, teacher, temperature=1.0):
    return -(softmax(teacher, temperature) * np.log(softmax(student, temperature))).sum(1)


def hard_label(student, teacher):
    return -np.log(softmax(student)[np.arange(len(student)), teacher.argmax(1)])


def binary_cross_entropy(student, teacher, temperature=1.0):
    """Mean over classes."""
    p, sigmoid = softmax(teacher, temperature), 1 / (1 + np.exp(-student / temperature))
    return -(p * np.log(sigmoid) + (1 - p) * np.log(1 - sigmoid)).mean(1)


def centred(logits):
    return logits - logits.mean(1, keepdims=True)


def logit_mse(student, teacher):
    """Mean over classes."""
    return ((student - teacher) ** 2).mean(1)


def logit_huber(student, teacher, delta=1.0):
    """Mean over classes."""
    size = abs(student - teacher)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).mean(1)


def ofa(student, teacher, labels, gamma, temperature=1.0):
    onehot = np.eye(student.shape[1])[labels]
    weights = (softmax(teacher, temperature) + onehot) ** gamma - onehot
    return -(weights * np.log(softmax(student, temperature))).sum(1)


def teacher_free(student, labels, temperature, confidence):
    """Sum over classes."""
    classes = student.shape[1]
    virtual = np.where(np.eye(classes, dtype=bool)[labels], confidence, (1 - confidence) / (classes - 1))
    return kl_of_probabilities(softmax(virtual, temperature), softmax(student))


def taid_loss(student, teacher, t):
    return kl_of_probabilities(softmax((1 - t) * student + t * teacher), softmax(student))


def taid(losses, fractions, start=0.4, end=1.0, rate=5e-4, momentum=0.99):
    """Where the target lies after each step."""
    t, change, previous, positions = start, 0.0, None, []
    for loss, fraction in zip(losses, fractions, strict=True):
        linear = start + (end - start) * fraction
        if previous is not None:
            change = momentum * change + (1 - momentum) * (previous - loss) / previous
            t = min(end, max(linear, t + rate * (1 - t) / (1 + np.exp(-change))))
        previous = loss
        positions.append(max(t, linear))
    return positions


# --- target and other classes, temperatures per row, sample weights -----------------------------------------------


def kl(teacher, student):
    """KL of two softmaxes per row, from logits."""
    return kl_of_probabilities(softmax(teacher), softmax(student))


def of_label(values, labels):
    return values[np.arange(len(labels)), labels]


def without_label(values, labels):
    """`(batch, classes - 1)`: the other columns in their order."""
    return np.stack([np.delete(row, label) for row, label in zip(values, labels, strict=True)])


def tckd(student, teacher, labels, temperature):
    """Target mass against all the rest, from probabilities, times T²."""
    p, q = (of_label(softmax(x, temperature), labels) for x in (teacher, student))
    return temperature**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))


def nckd(student, teacher, labels, temperature):
    """The others' probabilities renormalised, times T²."""
    p, q = (without_label(softmax(x, temperature), labels) for x in (teacher, student))
    return temperature**2 * kl_of_probabilities(p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True))


def dkd(student, teacher, labels, temperature, alpha, beta):
    first, second = tckd(student, teacher, labels, temperature), nckd(student, teacher, labels, temperature)
    return alpha * first + beta * second


def nkd(student, teacher, labels, temperature, gamma):
    """Target term at temperature 1, others' soft cross-entropy at `temperature`, times T²."""
    target = -of_label(softmax(teacher), labels) * np.log(of_label(softmax(student), labels))
    others = [without_label(softmax(x, temperature), labels) for x in (teacher, student)]
    p, q = (x / x.sum(1, keepdims=True) for x in others)
    return target - gamma * temperature**2 * (p * np.log(q)).sum(1)


def standardized(logits, ddof, epsilon=1e-7):
    """Centred and scaled row by row."""
    centred = logits - logits.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).sum(1, keepdims=True) / (logits.shape[1] - ddof))
    return centred / (spread + epsilon)


def logit_standardization(student, teacher, temperature, ddof):
    z, v = standardized(student, ddof) / temperature, standardized(teacher, ddof) / temperature
    return temperature**2 * kl(v, z)


def normkd(student, teacher, temperature, ddof=1):
    z, v = (temperature * x.std(1, ddof=ddof, keepdims=True) for x in (student, teacher))
    return v[:, 0] ** 2 * kl(teacher / v, student / z)


def flsw_temperatures(student, teacher, temperature=4.0, beta=1.0, gamma=2.0):
    norms = [np.sqrt((x**2).sum(1)) + 1e-4 for x in (student, teacher)]
    weight = (1 - (student * teacher).sum(1) / (norms[0] * norms[1])) ** gamma
    return temperature + beta * (weight.mean() - weight)


def cwsm_temperatures(student, temperature=4.0, beta=1.0):
    weight = 1 / (softmax(student).max(1) + 1e-3)
    return temperature + beta * (weight.mean() - weight)


def wsld_weights(student, teacher, labels):
    ratio = np.log(of_label(softmax(student), labels)) / (np.log(of_label(softmax(teacher), labels)) - 1e-7)
    return 1 - np.exp(-ratio)
