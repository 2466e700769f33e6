"""One fixed temperature."""

from torch import Tensor

from .base import Progress, Temperatures, TemperatureStrategy, positive, scalar_like, shared


class ConstantTemperature(TemperatureStrategy):
    r"""The same \(T\) on both sides for the whole run, compensated by \(T^2\).

    The gradient of \(\mathrm{KL}(p(T) \Vert q(T))\) shrinks like \(1/T^2\); the factor keeps it on the scale of the
    cross-entropy, so that the weights need no retuning when \(T\) moves.

    Args:
        temperature: Finite and > 0. Small values pass on little beyond the teacher's first choice; for large ones the
            loss tends to matching centred logits.

    Shape:
        student, teacher, compensation, weight: `()`.

    Raises:
        TypeError: If `temperature` is not a number.
        ValueError: If it is 0, negative or not finite.

    References:
        Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015,
        https://huggingface.co/papers/1503.02531, §2.
    """

    name = "constant"
    compensates_product = True

    def __init__(self, temperature: float = 4.0):
        super().__init__()
        self.temperature = positive("ConstantTemperature", "temperature", temperature)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Progress = Progress(),
    ) -> Temperatures:
        """Constant, whatever the batch."""
        return shared(scalar_like(student_logits, self.temperature), student_logits)

    def extra_repr(self) -> str:
        """Hyperparameters, for `repr` and the manifest of a checkpoint."""
        return f"temperature={self.temperature}"
