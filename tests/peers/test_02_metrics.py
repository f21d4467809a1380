"""The metrics of paper 02 beside Quantus, captum and scikit-image, where the definitions agree.

They do not agree here: Quantus' SensitivityN removes features in the order of relevance and
correlates over images (Ancona et al. draw random sets and correlate over them); its
RegionPerturbation pads an image whose side is not a multiple of the patch (here the last tile
absorbs the remainder), gives drops and not normalised curves, and its baseline ``"mean"`` is one
value for all channels.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from addis.explain import (
    bbox_ratio,
    degradation,
    grid_pointing,
    noisy_linear,
    sensitivity_n,
    spearman,
    ssim,
)

pytestmark = pytest.mark.peers


@pytest.fixture
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus")


def net(channels=3):
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 4)).eval()
    model[-1].weight.data.mul_(10)
    return model


def batch(n=4, side=16):
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(n, 3, side, side, generator=g),
        torch.arange(n) % 4,
        torch.rand(n, side, side, generator=g),
    )


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation_of_quantus_steps_through_the_same_images(quantus, order):
    model, (x, target, maps) = net(), batch()
    theirs = quantus.RegionPerturbation(
        patch_size=4, regions_evaluation=16, order=order, perturb_baseline=0.0, normalise=False,
        abs=False, disable_warnings=True,
    )  # fmt: skip
    drops = theirs(
        model=model, x_batch=x.numpy(), y_batch=target.numpy(), a_batch=maps[:, None].numpy(),
        device="cpu", softmax=True,
    )  # fmt: skip
    ours = degradation(model, x, target, maps, tile=4, fill=torch.zeros(1))
    curve = getattr(ours, order)
    assert np.allclose(curve[:, :1] - curve[:, 1:], np.array(drops), atol=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_noisy_linear_imputation_of_quantus_solves_the_same_system(quantus, share):
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 14, 11, generator=g, dtype=torch.float64)
    missing = torch.rand(2, 14, 11, generator=g) < share
    ours = noisy_linear(x, missing, noise=0.0, tolerance=1e-12)
    from quantus.functions.perturb_func import noisy_linear_imputation

    for image, hole, found in zip(x, missing, ours, strict=True):
        theirs = noisy_linear_imputation(
            image.numpy().copy(), hole.flatten().nonzero()[:, 0].numpy(), noise=0.0
        )
        assert np.allclose(found, np.array(theirs).reshape(3, 14, 11), atol=1e-9)


def test_relevance_rank_accuracy_of_quantus_is_the_bounding_box_ratio(quantus):
    x, target, maps = batch()
    boxes = torch.tensor([[1, 2, 6, 9], [0, 0, 5, 5], [10, 9, 16, 16], [3, 3, 4, 12]])
    masks = torch.zeros(4, 1, 16, 16)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[:, y0:y1, x0:x1] = 1
    metric = quantus.RelevanceRankAccuracy(normalise=False, abs=False, disable_warnings=True)
    theirs = metric(
        model=net(), x_batch=x.numpy(), y_batch=target.numpy(), a_batch=maps[:, None].numpy(),
        s_batch=masks.numpy().astype(int), device="cpu",
    )  # fmt: skip
    assert np.allclose(bbox_ratio(maps, boxes), theirs, atol=1e-12)


def test_attribution_localisation_of_quantus_on_a_cell_is_grid_pointing(quantus):
    x, target, maps = batch()
    maps = maps - 0.4
    cell = torch.arange(4)
    masks = torch.zeros(4, 1, 16, 16)
    for i in range(4):
        r, c = divmod(i, 2)
        masks[i, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] = 1
    metric = quantus.AttributionLocalisation(
        normalise=False, abs=False, positive_attributions=True, disable_warnings=True
    )
    theirs = metric(
        model=net(), x_batch=x.numpy(), y_batch=target.numpy(),
        a_batch=maps.clamp_min(0)[:, None].numpy(), s_batch=masks.numpy().astype(int),
        device="cpu",
    )  # fmt: skip
    assert np.allclose(grid_pointing(maps, cell), theirs, atol=1e-6)


def test_captums_input_x_gradient_of_a_linear_model_gets_one_at_every_n():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).double()
    x, target, _ = batch()
    maps = attr.InputXGradient(model).attribute(x.double(), target=target).sum(1)
    found = sensitivity_n(model, x.double(), target, maps, tile=4)
    assert torch.allclose(found, torch.ones_like(found), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 16), (31, 37), (11, 24)])
def test_ssim_equals_scikit_image(shape):
    metrics = pytest.importorskip("skimage.metrics")
    g = torch.Generator().manual_seed(4)
    a, b = (torch.randn(3, *shape, generator=g).abs() for _ in range(2))

    def unit(values):
        return ((values - values.min()) / (values.max() - values.min())).double().numpy()

    expected = [
        metrics.structural_similarity(
            unit(u), unit(v), data_range=1.0, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for u, v in zip(a, b, strict=True)
    ]  # fmt: skip
    assert np.allclose(ssim(a, b), expected, atol=1e-6)


def test_similarities_of_quantus_are_ours(quantus):
    g = torch.Generator().manual_seed(5)
    a, b = (torch.randn(16, 16, generator=g) for _ in range(2))
    theirs = quantus.similarity_func.correlation_spearman(a.flatten().numpy(), b.flatten().numpy())
    assert spearman(a[None], b[None]).item() == pytest.approx(float(theirs), abs=1e-6)
