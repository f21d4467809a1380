"""Evaluation counts each sample once and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from addis import train


def data(n: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 5, generator=generator)
    return x, torch.randint(4, (n,), generator=generator)


def net() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


def pairs(size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("size", [1, 4, 22, 23, 50])
def test_batches_of_any_size_give_the_values_of_the_whole_set(size: int) -> None:
    x, y = data()
    model = net().double()
    loader = [(a.double(), b) for a, b in pairs(size)]
    found = train.evaluate(model, loader)
    logits = model.eval()(x.double())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-12)
    assert found.accuracy == (logits.argmax(1) == y).sum().item() / 23
    assert found.samples == 23
    assert found.seconds > 0


def test_a_torch_loader_keeps_its_last_uneven_batch() -> None:
    loader = DataLoader(TensorDataset(*data()), batch_size=8)
    assert train.evaluate(net(), loader).accuracy == train.evaluate(net(), pairs(23)).accuracy


def test_modes_buffers_and_gradients_are_left_alone() -> None:
    model = net().train()
    model[2].eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model[0].weight.grad = marked = torch.ones_like(model[0].weight)
    train.evaluate(model, pairs(4))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad is marked


def test_modes_come_back_after_an_error() -> None:
    model = net().train()
    with pytest.raises(RuntimeError):
        train.evaluate(model, [(torch.zeros(3, 99), torch.zeros(3, dtype=torch.long))])
    assert model.training
    assert model[1].training


def test_no_graph_is_built() -> None:
    seen = []

    def metric(logits: Tensor, targets: Tensor) -> Tensor:
        seen.append(logits.requires_grad)
        return logits.sum()

    train.evaluate(net(), pairs(23), metrics={"sum": metric})
    assert seen == [False]


def test_a_metric_may_give_a_mean_or_a_value_a_sample() -> None:
    def top2(logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.topk(2).indices == targets[:, None]).any(1).double()

    def mean(logits: Tensor, targets: Tensor) -> Tensor:
        return top2(logits, targets).mean()

    found = train.evaluate(net(), pairs(5), metrics={"top2": top2, "mean": mean})
    x, y = data()
    expected = top2(net().eval()(x), y).mean().item()
    assert found.metrics == {"top2": pytest.approx(expected), "mean": pytest.approx(expected)}


def test_another_loss_may_be_measured() -> None:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.multi_margin_loss(logits, targets)

    x, y = data()
    expected = loss(net().eval()(x), y).item()
    assert train.evaluate(net(), pairs(4), loss=loss).loss == pytest.approx(expected, rel=1e-6)


def test_fabric_gives_its_precision() -> None:
    from lightning_fabric import Fabric

    kinds = set()
    model = net()
    model[0].register_forward_hook(lambda m, i, o: kinds.add(o.dtype))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    found = train.evaluate(model, pairs(4), fabric=fabric)
    assert kinds == {torch.bfloat16}
    assert found.samples == 23


def test_inputs_take_the_precision_of_the_weights() -> None:
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    found = train.evaluate(net().double(), pairs(4), fabric=fabric)
    x, y = data()
    logits = net().double().eval()(x.double())
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)


X, Y = data()


@pytest.mark.parametrize(
    ("loader", "error", "match"),
    [
        ([], ValueError, "loader is empty"),
        ([(X[:0], Y[:0])], ValueError, "loader is empty"),
        ([X], TypeError, "a pair of tensors, got Tensor"),
        ([(X, Y, Y)], TypeError, "a pair of tensors, got tuple"),
        ([(X, 3)], TypeError, "a pair of tensors, got tuple"),
        ([(X, Y[:5])], ValueError, r"targets must be \(23,\), got \(5,\)"),
        ([(X, Y[:, None])], ValueError, r"targets must be \(23,\), got \(23, 1\)"),
        ([(X[:, None].expand(23, 2, 5), Y)], ValueError, r"logits \(N, K\), got \(23, 2, 4\)"),
    ],
)
def test_bad_batches_are_refused(loader: list[object], error: type[Exception], match: str) -> None:
    model = nn.Linear(5, 4)
    with pytest.raises(error, match=match):
        train.evaluate(model, loader)


def test_bad_metrics_are_refused() -> None:
    with pytest.raises(ValueError, match=r"half must be a scalar or \(23,\), got shape \(11,\)"):
        train.evaluate(net(), pairs(23), metrics={"half": lambda a, b: a[:11, 0]})
    with pytest.raises(ValueError, match="must not be named loss or accuracy"):
        train.evaluate(net(), pairs(23), metrics={"loss": lambda a, b: a.sum()})
