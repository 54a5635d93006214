"""Sums over positions from which every linear map between two layers follows, and how good one is: no state is kept.

Of each source layer the covariance Cxx, of each target layer the variances, of each pair the cross-covariance Cxy. From
these come

    affine        W = Cxx⁺ Cxy                 least squares
    ridge         W = D (R + αI)⁻¹ D Cxy       D = 1/σ of each source dimension, R = D Cxx D their correlations
    orthogonal    W = U Vᵀ, Cxy = U S Vᵀ       Procrustes; where widths differ, only rows or columns are orthonormal

each with the bias ȳ − x̄ W. All of it is float64 and about the mean at every step, and least squares is solved between
dimensions of unit variance: in many models a few dimensions are ten thousand times larger than the others (three of 640
hold 95 % of Gemma 3's energy), and their squares would swallow the rest.

Axes: position, d_source, d_target.
"""

from collections.abc import Mapping as Dict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from patchscopes.errors import MappingError
from patchscopes.mappings.mapping import Mapping, Pair, Quality

RANK = 1e-12  # correlations below this share of the largest are rounding

States = Dict[int, Float[Tensor, "position d_model"]]


class Moments:
    """Means and centred sums of products for some pairs (ℓ, ℓ*), over the `n` positions seen so far."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = tuple(sorted(set(pairs)))
        self.n = 0
        self._mean_x: dict[int, Tensor] = {}
        self._mean_y: dict[int, Tensor] = {}
        self._xx: dict[int, Tensor] = {}
        self._yy: dict[int, Tensor] = {}
        self._xy: dict[Pair, Tensor] = {}

    def add(
        self,
        source: Dict[int, Float[Tensor, "position d_source"]],
        target: Dict[int, Float[Tensor, "position d_target"]],
    ) -> None:
        """Take in the states at some positions, by layer; row k of all of them is about the same token.

        Raises MappingError where one is not finite.
        """
        chunk = Moments(self.pairs)
        x = {layer: _centred(source, layer, chunk._mean_x) for layer in sorted({a for a, _ in self.pairs})}
        y = {layer: _centred(target, layer, chunk._mean_y) for layer in sorted({b for _, b in self.pairs})}
        chunk.n = len(next(iter(x.values())))
        chunk._xx = {layer: states.T @ states for layer, states in x.items()}
        chunk._yy = {layer: states.square().sum(0) for layer, states in y.items()}
        chunk._xy = {(a, b): x[a].T @ y[b] for a, b in self.pairs}
        self.absorb(chunk)

    def absorb(self, other: "Moments") -> None:
        """Take in what another one of the same pairs has seen (Chan, Golub & LeVeque 1979)."""
        assert self.pairs == other.pairs
        if not other.n:
            return
        if not self.n:
            for mine, theirs in zip(self._sums(), other._sums(), strict=True):
                mine.update({key: tensor.clone() for key, tensor in theirs.items()})
            self.n = other.n
            return
        n = self.n + other.n
        weight = self.n * other.n / n
        dx = {layer: other._mean_x[layer] - mean for layer, mean in self._mean_x.items()}
        dy = {layer: other._mean_y[layer] - mean for layer, mean in self._mean_y.items()}
        for layer, d in dx.items():
            self._xx[layer] += other._xx[layer] + weight * torch.outer(d, d)
            self._mean_x[layer] += d * (other.n / n)
        for layer, d in dy.items():
            self._yy[layer] += other._yy[layer] + weight * d.square()
            self._mean_y[layer] += d * (other.n / n)
        for a, b in self.pairs:
            self._xy[a, b] += other._xy[a, b] + weight * torch.outer(dx[a], dy[b])
        self.n = n

    def mean(self, layer: int) -> Float64[Tensor, " d_source"]:
        """The mean state at source layer `layer`."""
        return self._mean_x[layer]

    def deviation(self, layer: int) -> Float64[Tensor, " d_target"]:
        """How much each dimension of target layer `layer` varies."""
        return (self._yy[layer] / self.n).clamp(min=0).sqrt()

    def solver(self, layer: int) -> "LeastSquares":
        """What solves least squares from source layer `layer`, whatever the target and the ridge."""
        return LeastSquares.of(self._xx[layer] / self.n)

    def affine(self, pair: Pair, solver: "LeastSquares", ridge: float = 0.0) -> Mapping:
        """The least-squares map of a pair, with `ridge` on the weights of inputs of unit variance."""
        return self._with_bias(pair, solver.solve(self._xy[pair] / self.n, ridge))

    def orthogonal(self, pair: Pair) -> Mapping:
        """The map U Vᵀ with orthonormal rows, columns or both, of C_xy = U S Vᵀ: that with the largest tr(Wᵀ C_xy).

        Where d_source ≤ d_target, ‖xW‖ = ‖x‖ for every such W, and it is the least-squares fit among them. Where
        d_source > d_target, ‖xW‖ depends on W: it correlates best with the target, and is not the least-squares fit.
        """
        u, _, v = torch.linalg.svd(self._xy[pair] / self.n, full_matrices=False)
        return self._with_bias(pair, u @ v)

    def errors(self, pair: Pair, mapping: Mapping) -> "Errors":
        """How far `mapping` is from the target states seen here, dimension by dimension."""
        a, b = pair
        weight, bias = mapping.weight.double().cpu(), mapping.bias.double().cpu()
        variance = self._yy[b] / self.n
        explained = 2 * (weight * (self._xy[pair] / self.n)).sum(0) - (weight * ((self._xx[a] / self.n) @ weight)).sum(
            0
        )
        offset = self._mean_y[b] - self._mean_x[a] @ weight - bias
        return Errors(self.n, variance - explained + offset.square(), variance)

    def _with_bias(self, pair: Pair, weight: Float64[Tensor, "d_source d_target"]) -> Mapping:
        bias = self._mean_y[pair[1]] - self._mean_x[pair[0]] @ weight
        return Mapping(weight.float().contiguous(), bias.float())

    def _sums(self) -> tuple[dict[object, Tensor], ...]:
        sums: tuple[dict[object, Tensor], ...] = (self._mean_x, self._mean_y, self._xx, self._yy, self._xy)  # type: ignore[assignment]
        return sums


def _centred(states: States, layer: int, means: dict[int, Tensor]) -> Float64[Tensor, "position d_model"]:
    """The states of one layer without their mean, which goes to `means`."""
    x = states[layer].detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise MappingError(
            f"states at layer {layer} are not finite: they are too large for this dtype; load the model in float32 or "
            "bfloat16."
        )
    means[layer] = x.mean(0)
    return x - means[layer]


@dataclass(frozen=True)
class LeastSquares:
    """The eigenvectors of the correlations of source dimensions: one decomposition for all targets and ridges."""

    deviation: Float64[Tensor, " d_source"]
    values: Float64[Tensor, " d_source"]
    vectors: Float64[Tensor, "d_source d_source"]

    @classmethod
    def of(cls, covariance: Float64[Tensor, "d_source d_source"]) -> "LeastSquares":
        """From the covariance of the source. A dimension that never varies is given no weight."""
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(deviation > 0, 1 / deviation, 0)
        values, vectors = torch.linalg.eigh(inverse[:, None] * covariance * inverse)
        return cls(deviation, values, vectors)

    def solve(self, cross: Float64[Tensor, "d_source d_target"], ridge: float) -> Float64[Tensor, "d_source d_target"]:
        """The weights for a cross-covariance; the smallest ones where several are as good."""
        inverse = torch.where(self.deviation > 0, 1 / self.deviation, 0)[:, None]
        kept = self.values > RANK * self.values[-1]
        scale = torch.where(
            kept,
            1
            / (self.values.clamp(min=0) + ridge).where(
                kept, torch.ones((), dtype=self.values.dtype, device=self.values.device)
            ),
            0,
        )
        rotated = self.vectors.T @ (inverse * cross)
        return inverse * (self.vectors @ (scale[:, None] * rotated))


@dataclass(frozen=True)
class Errors:
    """Mean squared errors over `n` positions beside the variances of what was to be found, by target dimension."""

    n: int
    squared: Float64[Tensor, " d_target"]
    variance: Float64[Tensor, " d_target"]

    def quality(self) -> Quality:
        """The figures that a mapping carries; None for a share of a variance that is 0."""
        total = float(self.variance.sum())
        shares = self._shares()
        return Quality(
            n_tokens=self.n,
            r2=1 - float(self.squared.sum()) / total if total > 0 else None,
            r2_median=float(shares.median()) if len(shares) else None,
        )

    def mean_r2(self) -> float:
        """The mean of the dimensions' R²: what a ridge is chosen by, since a few dimensions may hold most of a sum."""
        shares = self._shares()
        return float(shares.mean()) if len(shares) else 0.0

    def _shares(self) -> Float64[Tensor, " d_varying"]:
        varies = self.variance > 0
        return 1 - self.squared[varies] / self.variance[varies]
