import math

import pytest
import torch

from addis.analyze import least_squares_path
from addis.analyze._least_squares import Spectrum, filters
from tests.analyze import oracles

SHAPES = [(30, 12), (30, 29), (20, 20), (20, 24), (12, 40), (1, 5), (5, 1), (1, 1)]


def problem(n: int, p: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    design = torch.randn(n, p, generator=source, dtype=torch.float64)
    return design, torch.randn(n, 3, generator=source, dtype=torch.float64)


@pytest.mark.parametrize(("n", "p"), SHAPES)
@pytest.mark.parametrize("penalty", [0.0, 1e-3, 1.0])
def test_solution_equals_the_pseudo_inverse_and_the_normal_equations(n, p, penalty):
    design, targets = problem(n, p)
    path = least_squares_path(design, targets, ridge=(penalty,))
    expected = oracles.ridge(design, targets, penalty)
    assert torch.allclose(path.coefficients[0, 0], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "p"), SHAPES)
@pytest.mark.parametrize("penalty", [0.0, 0.05])
def test_closed_form_descent_equals_two_hundred_explicit_steps(n, p, penalty):
    design, targets = problem(n, p)
    top = float(torch.linalg.matrix_norm(design, 2)) ** 2 / n + penalty
    for lr in (
        0.3 / top,
        1.7 / top,
    ):  # below and above the step that a mode decays at without sign change
        path = least_squares_path(design, targets, ridge=(penalty,), steps=(0, 1, 200), lr=lr)
        for index, steps in enumerate((0, 1, 200)):
            expected = oracles.descent(design, targets, penalty, steps, lr)
            assert torch.allclose(path.coefficients[0, index], expected, rtol=0, atol=1e-10)


def test_long_descent_reaches_the_solution_of_least_norm():
    design, targets = problem(12, 40)
    path = least_squares_path(design, targets, steps=(10**6, None))
    assert torch.allclose(path.coefficients[0, 0], path.coefficients[0, 1], atol=1e-12)


def test_slow_modes_keep_their_digits_over_many_steps():
    design = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    path = least_squares_path(design, torch.ones(2, 1), steps=(10**6,), lr=1.0)
    # the slow mode has shrink = 1e-12 / 2: after 1e6 steps 5e-7 of its way to 1e6 is done
    assert float(path.coefficients[0, 0, 1, 0]) == pytest.approx(-math.expm1(-5e-7) * 1e6, rel=1e-9)


@pytest.mark.parametrize(("n", "p"), [(20, 20), (20, 60), (1, 4)])
def test_wide_designs_of_full_rank_are_interpolated(n, p):
    design, targets = problem(n, p)
    fit = least_squares_path(design, targets).predict(design)[0, 0]
    assert float((fit - targets).square().sum()) < 1e-16 * float(targets.square().sum())


def test_no_other_interpolator_has_a_smaller_norm():
    design, targets = problem(12, 40)
    found = least_squares_path(design, targets).coefficients[0, 0]
    null = torch.linalg.svd(design).Vh[12:]
    source = torch.Generator().manual_seed(1)
    for _ in range(20):
        other = found + null.T @ torch.randn(28, 3, generator=source, dtype=torch.float64)
        assert torch.allclose(design @ other, targets, atol=1e-10)
        assert float(other.norm()) > float(found.norm())


def test_a_vanishing_ridge_is_the_solution_of_least_norm():
    for n, p in ((30, 12), (12, 40)):
        path = least_squares_path(*problem(n, p), ridge=(0.0, 1e-14))
        assert torch.allclose(path.coefficients[0], path.coefficients[1], atol=1e-6)


def test_duplicated_rows_and_constant_features_lower_the_rank_and_keep_the_solution():
    design, targets = problem(15, 9)
    design[3] = design[4]
    design[:, 2] = design[:, 5] = 1.0
    path = least_squares_path(design, targets)
    assert path.rank == 8
    assert torch.allclose(path.coefficients[0, 0], torch.linalg.pinv(design) @ targets, atol=1e-10)


def test_float32_and_non_contiguous_designs_give_the_float64_solution():
    design, targets = problem(14, 6)
    single = design.float().T.contiguous().T
    assert not single.is_contiguous()
    path = least_squares_path(single, targets.float())
    expected = oracles.ridge(single.double(), targets.float().double(), 0.0)
    assert path.coefficients.dtype == torch.float64
    assert torch.allclose(path.coefficients[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize(("n", "p"), [(60, 20), (20, 60), (20, 21), (20, 20), (30, 29)])
@pytest.mark.parametrize("penalty", [0.0, 1e-2])
def test_every_route_predicts_what_the_smoother_matrix_predicts(n, p, penalty):
    design, targets = problem(n, p)
    probe, _ = problem(7, p, seed=9)
    spectrum = Spectrum.of(design, probe)
    f = filters(spectrum.values, n, ridge=(penalty,))[0, 0]
    found = spectrum.probe @ (f[:, None] * (spectrum.left.T @ targets))
    assert torch.allclose(found, oracles.smoother(design, probe, penalty) @ targets, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "p", "route"), [(60, 20, "gram"), (20, 60, "gram"), (20, 22, "svd"), (20, 18, "svd")]
)
def test_gram_matrices_are_used_away_from_the_square_design_only(n, p, route):
    assert Spectrum.of(problem(n, p)[0], problem(3, p)[0]).route == route


@pytest.mark.parametrize(("n", "p", "route"), [(20, 60, "qr"), (60, 20, "svd")])
def test_an_ill_conditioned_design_is_decomposed_without_its_gram_matrix(n, p, route):
    design, targets = problem(n, p)
    u, _, vh = torch.linalg.svd(design, full_matrices=False)
    values = torch.logspace(0, -7, 20, dtype=torch.float64)  # condition number 1e7
    design = u * values @ vh
    spectrum = Spectrum.of(design, design)
    assert spectrum.route == route
    assert torch.allclose(spectrum.values, values, rtol=1e-8)
    fit = spectrum.probe @ ((spectrum.left.T @ targets) / spectrum.values[:, None])
    assert torch.allclose(fit, u @ (u.T @ targets), atol=1e-7)


@pytest.mark.parametrize(("n", "p"), [(30, 12), (20, 60), (20, 20)])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_effective_parameters_are_the_norms_of_the_smoother_matrix(n, p, penalty):
    design, targets = problem(n, p)
    probe, _ = problem(9, p, seed=3)
    spectrum = Spectrum.of(design, probe)
    train, test = spectrum.effective_parameters(filters(spectrum.values, n, ridge=(penalty,)))
    on_train, on_test = (oracles.smoother(design, x, penalty) for x in (design, probe))
    assert float(train) == pytest.approx(float(on_train.square().sum()), rel=1e-6)
    assert float(test) == pytest.approx(float(on_test.square().sum(1).mean()) * n, rel=1e-6)
    path = least_squares_path(design, targets, ridge=(penalty,))
    assert float(path.effective_parameters) == pytest.approx(float(train), rel=1e-6)


def test_effective_parameters_of_least_squares_are_p_below_n_and_n_above_it():
    for n, p in ((30, 12), (20, 60)):
        path = least_squares_path(*problem(n, p))
        assert float(path.effective_parameters) == pytest.approx(min(n, p))


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.1, 2, 5])
def test_isotropic_regression_has_the_risk_of_hastie_et_al(ratio):
    n, draws, signal, sigma = 40, 600, 2.0, 0.7
    p = int(n * ratio)
    source = torch.Generator().manual_seed(int(ratio * 10))
    risks = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        design = torch.randn(n, p, generator=source, dtype=torch.float64)
        beta = torch.randn(p, 1, generator=source, dtype=torch.float64)
        beta *= math.sqrt(signal) / beta.norm()
        noise = sigma * torch.randn(n, 1, generator=source, dtype=torch.float64)
        found = least_squares_path(design, design @ beta + noise).coefficients[0, 0]
        risks[i] = (found - beta).square().sum()
    error = float(risks.std()) / math.sqrt(draws)
    assert abs(float(risks.mean()) - oracles.isotropic_risk(n, p, signal, sigma)) < 3 * error


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ridge": (-1.0,)}, "ridge must be >= 0"),
        ({"ridge": ()}, "ridge must be >= 0"),
        ({"steps": (-1,)}, "steps must be >= 0"),
        ({"lr": 0.0}, "lr must be in"),
        ({"steps": (3,), "lr": 1e6}, "to converge"),
    ],
)
def test_values_outside_their_range_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        least_squares_path(*problem(6, 3), **kwargs)


def test_wrong_shapes_and_numbers_that_are_not_finite_are_refused():
    design, targets = problem(6, 3)
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(5, 3\)"):
        least_squares_path(design, targets[:5])
    with pytest.raises(ValueError, match="finite"):
        least_squares_path(design / 0, targets)
