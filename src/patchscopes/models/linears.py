"""The matrices of linear layers, however a family keeps them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer x ↦ x · weightᵀ + bias."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None


def matrix_of(module: nn.Module) -> Matrix | None:
    """The matrix of a plain Linear, or of GPT-2's Conv1D, which keeps it transposed; None for anything else.

    Subclasses (quantised, adapted) are something else: they may compute otherwise.
    """
    if type(module) is nn.Linear:
        return Matrix(module.weight, module.bias)
    if type(module) is Conv1D:
        return Matrix(module.weight.t(), module.bias)
    return None
