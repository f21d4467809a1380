"""Linear models on fixed features, exactly: one decomposition serves every ridge, every epoch and
every target.

Paper: P. Nakkiran et al., "Deep Double Descent", ICLR 2020, arXiv:1912.02292 (random features);
effective parameters of A. Curth, A. Jeffares, M. van der Schaar, "A U-turn on Double Descent",
NeurIPS 2023, arXiv:2310.18988, equation 4.

Index letters: ``n`` training samples, ``p`` features, ``m`` probe samples, ``r`` rank, ``R``
ridges, ``T`` step counts, ``M`` targets. With ``Phi = U diag(s) V^T`` every estimator here is ``B =
V diag(f) U^T Y`` and only the filter ``f`` differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["LeastSquaresPath", "Spectrum", "filters", "least_squares_path"]

_RANK_TOLERANCE = 1e-10  # singular values below this fraction of the largest count as zero
_GRAM_CONDITION = 1e4  # a Gram matrix squares it: 1e-16 * 1e8 leaves eight digits; above, the SVD
_NEAR_SQUARE = 0.1  # within this fraction of p = n the SVD is taken at once


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """What an estimator needs of a design matrix ``Phi`` and of other samples' features
    ``Phi_probe``.

    Args:
        left: ``U``, float64 ``(n, r)``.
        values: Singular values ``s``, float64 ``(r,)``, falling, those that count as zero left out.
        probe: ``Phi_probe V``, float64 ``(m, r)``.
        route: How it was computed: ``"svd"``; ``"qr"``: after a reduction to the smaller side;
            ``"gram"``: from the eigenvectors of the Gram matrix of the smaller side.
    """

    left: Tensor
    values: Tensor
    probe: Tensor
    route: Literal["svd", "qr", "gram"]

    @classmethod
    def of(cls, design: Tensor, probe: Tensor) -> Spectrum:
        """Decomposes ``design`` ``(n, p)`` by the cheapest route that keeps the small singular
        values.
        """
        n, p = design.shape
        if not near_square(n, p):
            if p > n:
                found = cls.of_gram(design @ design.T, probe @ design.T)
            else:
                found = cls._of_covariance(design, probe)
            if found is not None:
                return found
        if p > n and not near_square(n, p):
            q, triangle = torch.linalg.qr(design.T)  # Phi = triangle^T q^T, triangle (n, n)
            u, s, vh = torch.linalg.svd(triangle.T, full_matrices=False)
            return cls._truncated(u, s, (probe @ q) @ vh.T, "qr")
        u, s, vh = torch.linalg.svd(design, full_matrices=False)
        return cls._truncated(u, s, probe @ vh.T, "svd")

    @classmethod
    def of_gram(cls, gram: Tensor, cross: Tensor) -> Spectrum | None:
        """From ``Phi Phi^T`` ``(n, n)`` and ``Phi_probe Phi^T`` ``(m, n)``; ``None`` if it is too
        ill-conditioned.
        """
        solved = _eigen(gram)
        if solved is None:
            return None
        s, u = solved
        return cls(u, s, (cross @ u) / s, "gram")

    @classmethod
    def _of_covariance(cls, design: Tensor, probe: Tensor) -> Spectrum | None:
        """From ``Phi^T Phi`` ``(p, p)``, for many more samples than features."""
        solved = _eigen(design.T @ design)
        if solved is None:
            return None
        s, v = solved
        return cls((design @ v) / s, s, probe @ v, "gram")

    @classmethod
    def _truncated(
        cls, u: Tensor, s: Tensor, probe: Tensor, route: Literal["svd", "qr"]
    ) -> Spectrum:
        rank = int((s > _RANK_TOLERANCE * s[0]).sum())
        return cls(u[:, :rank], s[:rank], probe[:, :rank], route)

    def effective_parameters(self, filter_: Tensor) -> tuple[Tensor, Tensor]:
        """Effective parameters on the training samples and on the probe samples (Curth et al. 2023,
        equation 4).

        A linear smoother predicts ``S Y``; ``p_eff = n / m * ||S||_F^2`` over the rows of the
        samples asked about. For least squares with ``p < n`` both are near ``p``; beyond, the
        training value stays at ``n`` while the one on new samples falls.

        Args:
            filter_: ``(..., r)``.

        Returns:
            Two tensors ``(...,)``.
        """
        n, m = len(self.left), max(len(self.probe), 1)
        train = (filter_ * self.values).square().sum(-1)
        test = filter_.square() @ self.probe.square().sum(0) * (n / m)
        return train, test


def near_square(n: int, p: int) -> bool:
    """Whether ``p`` is so near ``n`` that only the SVD resolves the smallest singular value."""
    return abs(p - n) <= _NEAR_SQUARE * n


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor] | None:
    """Singular values, falling, and vectors of a Gram matrix; ``None`` if its root's condition
    number is too high.
    """
    squared, vectors = torch.linalg.eigh(gram)
    if not float(squared[0]) * _GRAM_CONDITION**2 > float(squared[-1]):
        return None
    return squared.flip(0).sqrt(), vectors.flip(1)


def filters(
    values: Tensor,
    n: int,
    *,
    ridge: Sequence[float] = (0.0,),
    steps: Sequence[int | None] = (None,),
    lr: float | None = None,
) -> Tensor:
    r"""The filter ``f`` of each estimator: ``B = V diag(f) U^T Y``.

    Gradient descent from zero on ``(1 / 2n) ||Phi B - Y||^2 + (ridge / 2) ||B||^2`` gives after
    ``t`` steps

        ``f = s / (s^2 + ridge n) * (1 - (1 - lr (s^2 / n + ridge))^t)``.

    ``t -> infinity`` is ridge regression, and ``ridge = 0`` with it the solution of least norm, ``f
    = 1 / s``.

    Args:
        values: ``s``, ``(r,)``, all positive.
        n: Training samples.
        ridge: Penalties, ``>= 0``.
        steps: Step counts, ``>= 0``; ``None`` is convergence.
        lr: Step size; by default ``1 / (s_max^2 / n + ridge)``, the inverse of the objective's
            curvature.

    Returns:
        ``(R, T, r)``.

    Raises:
        ValueError: A negative ridge or step count, ``lr <= 0``, or an ``lr`` with which gradient
            descent diverges.
    """
    penalties = torch.tensor(list(ridge), dtype=values.dtype, device=values.device)
    if len(penalties) == 0 or bool((penalties < 0).any()):
        raise ValueError(f"ridge must be >= 0, got {tuple(ridge)}")
    curvature = values.square() / n + penalties[:, None]  # (R, r)
    converged = values / n / curvature
    top = (
        curvature.max(1, keepdim=True).values if len(values) else curvature.new_ones(len(ridge), 1)
    )
    rate = 1 / top if lr is None else torch.full_like(top, lr)
    if bool((rate <= 0).any()) or (
        any(t is not None for t in steps) and bool((rate * top >= 2).any())
    ):
        raise ValueError(f"lr must be in (0, {float(2 / top.max()):.6g}) to converge, got {lr}")
    shrink = rate * curvature  # (R, r) in (0, 2)
    return torch.stack([converged * _grown(shrink, t) for t in steps], dim=1)


def _grown(shrink: Tensor, steps: int | None) -> Tensor:
    """``1 - (1 - shrink)^steps`` without cancellation where ``shrink`` is small."""
    if steps is None:
        return torch.ones_like(shrink)
    if steps < 0:
        raise ValueError(f"steps must be >= 0 or None, got {steps}")
    small = torch.where(shrink < 0.5, shrink, 0.0)
    return torch.where(
        shrink < 0.5, -torch.expm1(steps * torch.log1p(-small)), 1 - (1 - shrink) ** steps
    )


@dataclass(frozen=True, slots=True, eq=False)
class LeastSquaresPath:
    """Solutions of one linear problem over ridges and step counts.

    Args:
        coefficients: ``B``, float64 ``(R, T, p, M)``.
        effective_parameters: float64 ``(R, T)``: squared Frobenius norm of the matrix that maps
            ``Y`` to the fit.
        rank: Number of singular values that count as positive.
    """

    coefficients: Tensor
    effective_parameters: Tensor
    rank: int

    def predict(self, design: Tensor) -> Tensor:
        """``design @ B`` for new features ``(m, p)``: ``(R, T, m, M)``."""
        return design.to(self.coefficients.dtype) @ self.coefficients


def least_squares_path(
    design: Tensor,
    targets: Tensor,
    *,
    ridge: Sequence[float] = (0.0,),
    steps: Sequence[int | None] = (None,),
    lr: float | None = None,
) -> LeastSquaresPath:
    """Least squares of least norm, ridge and gradient descent, for all ridges and step counts from
    one SVD.

    The objective is ``(1 / 2n) ||Phi B - Y||^2 + (ridge / 2) ||B||^2``: a mean over the samples, so
    ``ridge`` is scikit-learn's ``alpha / n``. No intercept.

    >>> design = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    >>> path = least_squares_path(design, torch.tensor([[3.0], [4.0]]))
    >>> path.coefficients[0, 0].squeeze(1).tolist()  # of all that fit, the one of least norm
    [3.0, 2.0, 0.0]

    Args:
        design: ``Phi``, ``(n, p)``; computed with in float64 whatever its dtype.
        targets: ``Y``, ``(n, M)``.
        ridge: Penalties, ``>= 0``.
        steps: Numbers of gradient steps from zero; ``None`` is convergence.
        lr: Step size; by default one over the largest curvature.

    Raises:
        ValueError: Shapes that do not match, a value that is not finite, or see :func:`filters`.
    """
    if design.dim() != 2 or targets.dim() != 2 or len(design) != len(targets) or not design.numel():
        raise ValueError(
            f"design must be (n, p) and targets (n, M), "
            f"got {tuple(design.shape)} and {tuple(targets.shape)}"
        )
    phi, y = design.to(torch.float64), targets.to(torch.float64)
    if not bool(torch.isfinite(phi).all() & torch.isfinite(y).all()):
        raise ValueError("design and targets must be finite, got NaN or infinity")
    u, s, vh = torch.linalg.svd(phi, full_matrices=False)
    rank = int((s > _RANK_TOLERANCE * s[0]).sum())
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    f = filters(s, len(phi), ridge=ridge, steps=steps, lr=lr)
    coefficients = vh.T @ (f[..., None] * (u.T @ y))
    return LeastSquaresPath(coefficients, (f * s).square().sum(-1), rank)
