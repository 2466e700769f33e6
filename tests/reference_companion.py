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

