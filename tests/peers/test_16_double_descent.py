"""Agreement with scikit-learn, SciPy and PyTorch's own solver on the linear models of the study."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from addis.analyze import least_squares_path, random_features, rf_curve
from addis.analyze._data import nested_sample, stream

pytestmark = pytest.mark.peers
linear_model = pytest.importorskip("sklearn.linear_model")
model_selection = pytest.importorskip("sklearn.model_selection")

source = torch.Generator().manual_seed(0)
X = torch.rand(120, 10, generator=source, dtype=torch.float64)
Y = ((X - 0.5) @ torch.randn(10, 3, generator=source, dtype=torch.float64)).argmax(1)
SHAPES = [(60, 20), (60, 60), (60, 200)]


def problem(n: int, p: int) -> tuple[torch.Tensor, torch.Tensor]:
    layer = random_features(X, p, generator=torch.Generator().manual_seed(1))
    return layer(X[:n]), torch.nn.functional.one_hot(Y[:n], 3).double() - 1 / 3


@pytest.mark.parametrize(("n", "p"), SHAPES)
@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_ridge_equals_scikit_learn_with_alpha_times_n(n, p, penalty):
    design, targets = problem(n, p)
    peer = linear_model.Ridge(alpha=penalty * n, fit_intercept=False, solver="svd")
    expected = peer.fit(design.numpy(), targets.numpy()).coef_.T
    found = least_squares_path(design, targets, ridge=(penalty,)).coefficients[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("n", "p"), SHAPES)
def test_least_norm_equals_scipy_and_torch_lstsq_with_the_svd_driver(n, p):
    design, targets = problem(n, p)
    found = least_squares_path(design, targets).coefficients[0, 0]
    scale = float(found.norm())
    by_scipy = scipy.linalg.lstsq(design.numpy(), targets.numpy(), cond=1e-10)[0]
    by_torch = torch.linalg.lstsq(design, targets, rcond=1e-10, driver="gelsd").solution
    np.testing.assert_allclose(found.numpy(), by_scipy, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(found.numpy(), by_torch.numpy(), rtol=0, atol=1e-8 * scale)


def test_a_ridge_curve_equals_scikit_learn_fitted_point_by_point():
    train, test = (X[:80], Y[:80]), (X[80:], Y[80:])
    curve = rf_curve(*train, *test, p=(5, 40, 200), n=(40,), ridge=(1e-3,), seeds=2)
    for seed in range(2):
        sample = nested_sample(80, 40, seed)
        targets = torch.nn.functional.one_hot(train[1][sample], 3).double() - 1 / 3
        layer = random_features(train[0], 200, generator=stream(seed, "features 0"))
        for i, p in enumerate((5, 40, 200)):
            peer = linear_model.Ridge(alpha=1e-3 * 40, fit_intercept=False, solver="svd")
            peer.fit(layer(train[0][sample], p).numpy(), targets.numpy())
            wrong = peer.predict(layer(test[0], p).numpy()).argmax(1) != test[1].numpy()
            assert curve.runs("test_error")[i, seed] == pytest.approx(wrong.mean())


def test_a_sample_curve_agrees_with_a_learning_curve_of_scikit_learn_on_the_same_samples():
    """The peer's ``learning_curve`` fits nested samples too; given our order it is our curve."""
    sizes = [10, 20, 40, 60, 80]
    curve = rf_curve(
        X[:80], Y[:80], X[80:], Y[80:], p=(30,), n=sizes, ridge=(0.1,), seeds=1
    )  # fmt: skip
    layer = random_features(X[:80], 30, generator=stream(0, "features 0"))
    order = torch.cat([nested_sample(80, 80, 0), torch.arange(80, 120)])
    features = layer(X[order]).numpy()
    targets = (torch.nn.functional.one_hot(Y[order], 3).double() - 1 / 3).numpy()

    class Penalised(linear_model.Ridge):
        """Penalises the mean loss, as we do, so that ``alpha`` follows the sample's size."""

        def fit(self, X, y):
            self.alpha = 0.1 * len(X)
            return super().fit(X, y)

    _, _, scores = model_selection.learning_curve(
        Penalised(fit_intercept=False, solver="svd"), features, targets, train_sizes=sizes,
        cv=[(np.arange(80), np.arange(80, 120))],
        scoring=lambda model, x, y: (model.predict(x).argmax(1) != y.argmax(1)).mean(),
    )  # fmt: skip
    np.testing.assert_allclose(curve.runs("test_error")[:, 0], scores[:, 0], atol=1e-12)
