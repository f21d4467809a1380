"""Times local training beside back-propagation and the published script; counts kept bytes.

The script is anokland/local-loss at 7b3b40b, one file that parses arguments, downloads data and
trains when it is imported. It is read at run time: its imports, classes, functions, argument parser
and table of networks are executed, the rest is not. Its bpf losses read ``ctx.saved_variables``,
which torch no longer has; they get an object that holds ``saved_tensors`` under that name. Its own
``train`` function makes the step, with its prints held back. Batches are of 32 (128 with
``--full``), networks of full width on 32x32 images without dropout, in channels_last, which is
faster for back-propagation and for local losses alike (the script flattens by ``view`` and cannot
have it), Adam at 5e-4, fused in ours and in back-propagation; the script makes its own, which is
not. Of VGG8B's step 87 % are convolutions; ours run by `addis.nn.Winograd`, the script's by oneDNN.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addis import data
from addis.models import vgg8b, vgg11b
from addis.nn import Winograd
from addis.studies._p24_nets import Way
from addis.studies._p24_trials import Sets, Source, Train, sets, train
from addis.study import Row, absent, peer_repository, timed
from addis.train.local import (
    UpdateRules,
    localize,
    milestones,
    similarity_loss,
    similarity_matrix,
)

REPOSITORY, COMMIT = "anokland+local-loss", "7b3b40b"
LEAKY = partial(nn.LeakyReLU, 0.01)
ADAM = partial(torch.optim.Adam, lr=5e-4, fused=True)
Net = Literal["vgg8b", "vgg11b", "30 convolutions"]


class PublishedScript:
    """The published script's parts, with a model and a training step of its own.

    Args:
        path: The checkout.
        arguments: Its command line.
        num_classes: Classes.
        input_dim: Height and width of the images.
        input_ch: Channels of the images.
    """

    def __init__(
        self,
        path: Path,
        arguments: Sequence[str],
        *,
        num_classes: int = 10,
        input_dim: int = 32,
        input_ch: int = 3,
    ) -> None:
        self.scope = _definitions(path / "train.py")
        args: argparse.Namespace = self.scope["parser"].parse_args(["--no-cuda", *arguments])
        args.cuda = False
        self.scope.update(args=args, num_classes=num_classes, checkpoint=None)
        if args.model == "mlp":
            build = partial(self.scope["Net"], args.num_layers, args.num_hidden)
            self.model = build(input_dim, input_ch, num_classes)
        else:
            self.model = self.scope["VGGn"](
                args.model, input_dim, input_ch, num_classes, args.feat_mult
            )
        optimizer = torch.optim.Adam(self.model.parameters(), lr=args.lr)
        self.scope.update(model=self.model, optimizer=optimizer)
        self.model.set_learning_rate(args.lr)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One batch through the script's own ``train``."""
        self.scope["train_loader"] = _OneBatch(x, y)
        with contextlib.redirect_stdout(io.StringIO()):
            self.scope["train"](1, self.scope["args"].lr)

    def set_lr(self, lr: float) -> None:
        """Sets the step of every block and of the output layer."""
        self.model.set_learning_rate(lr)
        for group in self.scope["optimizer"].param_groups:
            group["lr"] = lr

    @torch.no_grad()
    def error(self, x: Tensor, y: Tensor) -> float:
        """Wrong samples in percent."""
        self.model.eval()
        wrong = 0
        for images, labels in zip(x.split(500), y.split(500), strict=True):
            logits, _ = self.model(images, labels, F.one_hot(labels, 10).float())
            wrong += int((logits.argmax(1) != labels).sum())
        return 100 * wrong / len(y)


class _OneBatch(list[tuple[Tensor, Tensor]]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__([(x, y)])
        self.dataset = range(len(x))


def _definitions(script: Path) -> dict[str, Any]:
    wanted: list[ast.stmt] = []
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        text = ast.unparse(node)
        if isinstance(
            node, ast.Import | ast.ImportFrom | ast.ClassDef | ast.FunctionDef
        ) or text.startswith(("parser", "cfg")):
            wanted.append(node)
    scope: dict[str, Any] = {"__name__": "published_local_loss"}
    exec(compile(ast.Module(wanted, []), str(script), "exec"), scope)
    if not hasattr(torch.autograd.function.FunctionCtx, "saved_variables"):
        fa = scope["LinearFAFunction"]
        backward = fa.backward
        fa.backward = staticmethod(
            lambda ctx, grad: backward(
                SimpleNamespace(
                    saved_variables=ctx.saved_tensors, needs_input_grad=ctx.needs_input_grad
                ),
                grad,
            )
        )
    return scope


def rows(*, full: bool = False, device: str = "cpu") -> Iterator[Row]:
    """Every row of the comparison."""
    torch.manual_seed(0)
    n = 128 if full else 32
    x, y = torch.randn(n, 3, 32, 32, device=device), torch.randint(10, (n,), device=device)
    x = x.to(memory_format=torch.channels_last)
    yield from _steps(x, y, device)
    yield from _published(x, y, full=full)
    yield from _streams(x, y, device)
    yield from _kept(x[:16], y[:16], device)
    yield _closed_form(y, device)
    if full:
        yield from _errors()


def _steps(x: Tensor, y: Tensor, device: str) -> Iterator[Row]:
    """One step of each loss beside back-propagation through the same network.

    On a CPU also with both sides by Winograd's convolutions, which local training takes by itself,
    and with local training alone by them, as a user finds it.
    """
    works: dict[str, Callable[[], object]] = {}
    losses: tuple[tuple[Literal["pred", "predsim"], Callable[[], nn.Module], float], ...]
    losses = (("pred", nn.ReLU, 0.80), ("predsim", LEAKY, 2.3))
    for name, activation, _ in losses:
        net = _vgg8b(activation, device)
        backprop = _backprop(net, x, y)
        works[f"bp {name}"], works[f"bp {name} winograd"] = backprop, _by_winograd(backprop)
        for kernels in ("", " winograd"):
            rules = UpdateRules(winograd=bool(kernels))
            local = localize(
                net, x[:2], loss=name, dim_in_decoder=2048, optimizer=ADAM, rules=rules
            )
            works[name + kernels] = partial(local.train_step, x, y)
    net = _vgg8b(LEAKY, device)
    deep = localize(net, x[:2], dim_in_decoder=2048, optimizer=ADAM, detach=False)
    works["deep"] = partial(deep.train_step, x, y)
    seconds = dict(zip(works, timed(*works.values(), repeats=5, device=device), strict=True))
    cpu = device == "cpu"
    for name, _, target in losses:
        work = f"step of {name}, VGG8B"
        pairs: list[tuple[str, str, str, float | None]]
        pairs = [("back-propagation, torch's convolutions", name, f"bp {name}", target)]
        if cpu:
            quick = f"{name} winograd"
            pairs.append(("back-propagation, both by Winograd", quick, f"bp {quick}", target))
            pairs.append(("back-propagation, ours by Winograd", quick, f"bp {name}", None))
        for peer, ours, theirs, goal in pairs:
            yield _row(work, peer, seconds[ours], seconds[theirs], goal, len(x))
    yield _row(
        "step of predsim, VGG8B",
        "the same heads, detach=False",
        seconds["predsim winograd"],
        seconds["deep"],
        None,
        len(x),
    )


def _by_winograd(step: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with Winograd():
            return step()

    return run


def _vgg8b(activation: Callable[[], nn.Module], device: str) -> nn.Module:
    net = vgg8b(dropout=0.0, activation=activation).to(device)
    return net.to(memory_format=torch.channels_last)


def _backprop(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = ADAM(net.parameters())

    def step() -> None:
        torch.autograd.backward(F.cross_entropy(net(x), y))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _row(
    work: str,
    peer: str,
    ours: float,
    theirs: float,
    target: float | None,
    n: int,
    version: str = "",
) -> Row:
    return Row(
        work=f"{work}, batch {n}",
        peer=peer,
        version=version or f"torch {torch.__version__}",
        unit="ms",
        addis=ours * 1e3,
        peer_value=theirs * 1e3,
        ratio=ours / theirs,
        target=target,
        note=f"{torch.get_num_threads()} thread(s), {platform.machine()}",
    )


def _published(x: Tensor, y: Tensor, *, full: bool) -> Iterator[Row]:
    """The published script's step; it has no dropout here, nor do we."""
    losses: tuple[tuple[Literal["pred", "predsim"], float | None], ...] = (
        ("predsim", 1 / 1.3),
        ("pred", None),
    )
    path = peer_repository(REPOSITORY, COMMIT)
    for loss, target in losses:
        work = f"step of {loss}, VGG8B"
        if path is None:
            yield absent(work, REPOSITORY, "ADDIS_PEERS names no checkout", target=target)
            continue
        nonlinearity = "leakyrelu" if loss == "predsim" else "relu"
        script = PublishedScript(
            path, ["--loss-sup", loss, "--nonlin", nonlinearity, "--dim-in-decoder", "2048"]
        )
        activation = LEAKY if loss == "predsim" else nn.ReLU
        local = localize(
            _vgg8b(activation, "cpu"), x[:2].cpu(), loss=loss, dim_in_decoder=2048, optimizer=ADAM
        )
        batch = x.cpu(), y.cpu()
        plain = batch[0].contiguous(), batch[1]
        ours, theirs = timed(
            partial(local.train_step, *batch), partial(script.step, *plain), repeats=5
        )
        yield _row(work, REPOSITORY, ours, theirs, target, len(x), version=COMMIT)


def _errors() -> Iterator[Row]:
    """Test error after the small study's training, the script beside ours: one recipe, two codes.

    Both see the same images in the same batches; initial weights and dropout are their own draws.
    """
    path = peer_repository(REPOSITORY, COMMIT)
    source, epochs, lr, decoder = Source("fashion_mnist", 1, 10_000, 2000), 12, 5e-4, 1024
    ways: tuple[Way, ...] = ("pred", "predsim")
    for way in ways:
        work = f"test error of {way}, VGG8B of an eighth of the width, 10,000 garments, 12 epochs"
        if path is None:
            yield absent(work, REPOSITORY, "ADDIS_PEERS names no checkout", unit="%")
            continue
        ours = train(
            Train(
                source=source, net="vgg8b", width=0.125, way=way, blocks=0, epochs=epochs, lr=lr,
                dropout=0.1, dim_in_decoder=decoder, batch_size=128, seed=0, probe=False,
                device="cpu",
            )
        )["test_error"]  # fmt: skip
        assert isinstance(ours, float)
        theirs = _error_of_script(path, way, sets(source, 0), epochs, lr, decoder)
        yield Row(
            work=work, peer=REPOSITORY, version=COMMIT, unit="%", addis=ours, peer_value=theirs,
            ratio=ours / theirs, target=None, note="one seed; the spread over seeds is the study's",
        )  # fmt: skip


def _error_of_script(
    path: Path, way: Way, images: Sets, epochs: int, lr: float, decoder: int
) -> float:
    torch.manual_seed(0)
    script = PublishedScript(
        path,
        [
            "--model", "vgg8b", "--feat-mult", "0.125", "--loss-sup", way, "--dropout", "0.1",
            "--nonlin", "relu" if way == "pred" else "leakyrelu", "--lr", str(lr),
            "--dim-in-decoder", str(decoder),
        ],
        input_dim=28,
        input_ch=1,
    )  # fmt: skip
    batches = data.Batches(images.train, 128, seed=0, drop_last=True)
    for epoch in range(epochs):
        if epoch in milestones(epochs):
            lr *= 0.25
            script.set_lr(lr)
        for batch in batches:
            script.step(*batch)
    return script.error(*images.test)


def _streams(x: Tensor, y: Tensor, device: str) -> Iterator[Row]:
    work, target = "step of predsim on two streams, VGG8B", 1 / 1.2
    if not device.startswith("cuda"):
        yield absent(work, "sequential", "needs a CUDA device", target=target)
        return
    net = _vgg8b(LEAKY, device)
    one = localize(net, x[:2], dim_in_decoder=2048)
    two = localize(net, x[:2], dim_in_decoder=2048, schedule="streams")
    ours, theirs = timed(
        partial(two.train_step, x, y),
        partial(one.train_step, x, y),
        repeats=20,
        warmup=5,
        device=device,
    )
    yield _row(work, "sequential", ours, theirs, target, len(x))


def _kept(x: Tensor, y: Tensor, device: str) -> Iterator[Row]:
    """Bytes kept for backward at the peak, which grow with the batch alone."""
    cases: tuple[tuple[Net, Literal["pred", "predsim"], float | None], ...] = (
        ("vgg8b", "pred", None),
        ("vgg8b", "predsim", None),
        ("vgg11b", "pred", 0.30),
        ("vgg11b", "predsim", 0.36),
        ("30 convolutions", "pred", None),
        ("30 convolutions", "predsim", 0.06),
    )
    for name, loss, target in cases:
        for in_place in (False, True):
            net = _net(name, loss, in_place=in_place).to(device)
            report = localize(net, x[:2], loss=loss, optimizer=ADAM).memory_report(x, y)
            suffix = ", its activations in place" if in_place else ""
            peers = [
                ("back-propagation" + suffix, report.backprop_bytes, None if in_place else target)
            ]
            if not in_place:
                peers.append(("torch.utils.checkpoint", report.checkpoint_bytes, None))
            for peer, size, goal in peers:
                yield Row(
                    work=f"kept for backward by {loss}, {name}, batch {len(x)}",
                    peer=peer,
                    version=f"torch {torch.__version__}",
                    unit="MiB",
                    addis=report.local_bytes / 2**20,
                    peer_value=size / 2**20,
                    ratio=report.local_bytes / size,
                    target=goal,
                )


def _net(name: Net, loss: str, *, in_place: bool) -> nn.Module:
    leaky = loss != "pred"
    activation = (
        partial(nn.LeakyReLU, 0.01, inplace=in_place)
        if leaky
        else partial(nn.ReLU, inplace=in_place)
    )
    if name == "vgg8b":
        return vgg8b(dropout=0.0, activation=activation)
    if name == "vgg11b":
        return vgg11b(dropout=0.0, activation=activation)
    layers: list[nn.Module] = []
    for i in range(30):
        layers += [
            nn.Conv2d(3 if i == 0 else 64, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            activation(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _closed_form(y: Tensor, device: str) -> Row:
    h = torch.randn(len(y), 256, 32, 32, device=device, requires_grad=True)
    target = similarity_matrix(F.one_hot(y, 10).float())

    def ours() -> None:
        torch.autograd.grad(similarity_loss(h, y, num_classes=10), h)

    def autograd() -> None:
        torch.autograd.grad(F.mse_loss(similarity_matrix(h), target), h)

    a, b = timed(ours, autograd, repeats=7, device=device)
    return _row(
        "similarity loss and gradient of (n, 256, 32, 32)",
        "autograd through the matrix",
        a,
        b,
        None,
        len(y),
    )
