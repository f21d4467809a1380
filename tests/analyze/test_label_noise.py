import math

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from addis.analyze import LabelNoise, noisy_labels

N, K = 20_000, 10
CLEAN = torch.arange(N) % K


def dataset(n: int = 200, classes: int = 5) -> TensorDataset:
    return TensorDataset(torch.arange(float(n))[:, None], torch.arange(n) % classes)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.9])
def test_fraction_of_wrong_labels_is_p_within_three_standard_errors(p):
    changed = (noisy_labels(CLEAN, p, num_classes=K, seed=3) != CLEAN).double().mean()
    assert abs(float(changed) - p) < 3 * math.sqrt(p * (1 - p) / N)


def test_wrong_labels_are_uniform_over_the_other_classes_and_never_the_true_one():
    noisy = noisy_labels(CLEAN, 0.5, num_classes=K, seed=1)
    shift = ((noisy - CLEAN) % K)[noisy != CLEAN]
    counts = torch.bincount(shift, minlength=K)
    assert counts[0] == 0
    expected = len(shift) / (K - 1)
    chi_square = float(((counts[1:] - expected) ** 2 / expected).sum())
    assert chi_square < 26.1  # 99.9th percentile of chi-square with 8 degrees of freedom


def test_pairwise_noise_goes_to_the_next_class_and_from_the_last_to_the_first():
    noisy = noisy_labels(CLEAN, 0.3, num_classes=K, kind="pairwise")
    changed = noisy != CLEAN
    assert torch.equal(noisy[changed], (CLEAN[changed] + 1) % K)
    assert abs(float(changed.double().mean()) - 0.3) < 3 * math.sqrt(0.21 / N)


def test_matrix_noise_follows_the_rows_of_the_matrix():
    matrix = torch.tensor([[0.0, 0.8, 0.2], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]])
    clean = torch.arange(N) % 3
    noisy = noisy_labels(clean, 0.4, num_classes=3, kind=matrix)
    for i in range(3):
        moved = noisy[(clean == i) & (noisy != clean)]
        share = torch.bincount(moved, minlength=3).double() / len(moved)
        assert torch.allclose(share, matrix[i].double(), atol=3 * 0.5 / math.sqrt(len(moved)))


def test_more_noise_keeps_the_labels_that_were_already_wrong():
    few, many = (noisy_labels(CLEAN, p, num_classes=K) for p in (0.1, 0.2))
    wrong = few != CLEAN
    assert torch.equal(many[wrong], few[wrong])


def test_noise_depends_on_the_seed_and_not_on_the_global_generator():
    first = noisy_labels(CLEAN, 0.2, num_classes=K, seed=0)
    torch.manual_seed(99)
    assert torch.equal(first, noisy_labels(CLEAN, 0.2, num_classes=K, seed=0))
    assert not torch.equal(first, noisy_labels(CLEAN, 0.2, num_classes=K, seed=1))


def test_samples_are_nested_if_taken_after_the_noise_not_before():
    whole = LabelNoise(dataset(), p=0.5, seed=2)
    half, apart = whole.subset(range(100)), LabelNoise(dataset(100), p=0.5, seed=2)
    assert torch.equal(half.targets, whole.targets[:100])
    assert not torch.equal(apart.targets, half.targets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_inputs_of_a_tensor_data_set_are_the_very_tensor(dtype):
    inputs = torch.zeros(4, 2, dtype=dtype)
    assert LabelNoise(TensorDataset(inputs, torch.arange(4)), p=0.3).xy[0] is inputs


def test_no_noise_gives_the_very_tensor():
    data = TensorDataset(torch.rand(10, 2), torch.arange(10))
    assert LabelNoise(data, p=0).targets is data.tensors[1]


def test_labels_are_the_same_in_every_epoch_and_any_order():
    noisy = LabelNoise(dataset(), p=0.3, seed=2)
    seen = [
        {
            int(x): int(y)
            for xs, ys in DataLoader(noisy, 7, shuffle=True)
            for x, y in zip(xs, ys, strict=True)
        }
        for _ in range(2)
    ]
    assert seen[0] == seen[1] == {i: int(y) for i, y in enumerate(noisy.targets)}
    assert torch.equal(LabelNoise(dataset(), p=0.3, seed=2).targets, noisy.targets)


def test_a_subset_keeps_the_labels_of_its_samples():
    noisy = LabelNoise(dataset(), p=0.3, seed=2)
    index = torch.tensor([150, 3, 77, 3])
    part = noisy.subset(index)
    assert torch.equal(part.targets, noisy.targets[index])
    assert torch.equal(part.true_targets, noisy.true_targets[index])
    assert [int(part[i][0]) for i in range(4)] == index.tolist()
    assert torch.equal(part.xy[0].squeeze(1), index.float())


def test_the_data_set_underneath_keeps_its_labels():
    data = dataset()
    before = data.tensors[1].clone()
    LabelNoise(data, p=0.5)
    assert torch.equal(data.tensors[1], before)


def test_memorised_and_recovered_count_the_wrong_labels_only():
    noisy = LabelNoise(dataset(), p=0.3, seed=2)
    assert noisy.memorised(noisy.targets) == 1.0
    assert noisy.memorised(noisy.true_targets) == 0.0
    assert noisy.recovered(noisy.true_targets) == 1.0
    half = noisy.true_targets.clone()
    wrong = noisy.changed.nonzero().squeeze(1)
    half[wrong[: len(wrong) // 4]] = noisy.targets[wrong[: len(wrong) // 4]]
    assert noisy.memorised(half) == pytest.approx((len(wrong) // 4) / len(wrong))
    assert math.isnan(LabelNoise(dataset(), p=0.0).memorised(noisy.targets))


def test_any_map_style_data_set_is_read_item_by_item():
    class Plain(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            return torch.full((2,), float(i)), i % 3

    noisy = LabelNoise(Plain(), p=0.5, seed=0)
    assert noisy.num_classes == 3
    assert noisy.subset([4, 5]).xy[0].tolist() == [[4.0, 4.0], [5.0, 5.0]]


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_noise_outside_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match=r"noise must be in \[0, 1\)"):
        LabelNoise(dataset(), p=p)


def test_one_class_with_noise_is_refused_and_without_is_not():
    one = TensorDataset(torch.rand(5, 1), torch.zeros(5, dtype=torch.int64))
    LabelNoise(one, p=0.0)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        LabelNoise(one, p=0.1)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.eye(3), "diagonal"),
        (torch.ones(2, 2) / 2, r"\(3, 3\) matrix"),
        (torch.full((3, 3), 0.2), "row sums"),
        (torch.tensor([[0, 2.0, -1.0]] * 3), "row sums"),
    ],
)
def test_a_matrix_that_is_no_distribution_of_wrong_labels_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        noisy_labels(torch.arange(3), 0.1, num_classes=3, kind=matrix)


def test_labels_of_a_wrong_kind_or_range_are_refused():
    with pytest.raises(TypeError, match="int64"):
        noisy_labels(torch.rand(3), 0.1, num_classes=3)
    with pytest.raises(ValueError, match=r"0 \.\.\. 2, got 0 \.\.\. 5"):
        noisy_labels(torch.tensor([0, 5]), 0.1, num_classes=3)
    with pytest.raises(ValueError, match="kind"):
        noisy_labels(torch.arange(3), 0.1, num_classes=3, kind="cyclic")
