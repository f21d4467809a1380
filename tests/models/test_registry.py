"""Every registered model, and the functions ``create``, ``info`` and ``names``."""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from addis import models
from addis.models._table import MODELS

ALL = models.names()
FOLDER = Path(__file__).parents[2]


def images(name: str, n: int = 2) -> torch.Tensor:
    return torch.rand(n, *models.info(name).input_size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_every_parameter_of_every_model(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name)
    logits = model(images(name))
    assert logits.shape == (2, models.info(name).num_classes)
    assert logits.isfinite().all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        if parameter.dim() > 1:  # the bias of a convolution has no effect ahead of BatchNorm
            assert parameter.grad.any(), label


@pytest.mark.parametrize("name", ALL)
def test_batch_of_one_gives_its_row_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, dtype=torch.float64).eval()
    batch = images(name).double()
    with torch.inference_mode():
        torch.testing.assert_close(model(batch[:1]), model(batch)[:1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_state_dict_and_copy_make_the_same_model_and_a_tracer_follows_it(name: str) -> None:
    torch.manual_seed(0)
    model, other = models.create(name).eval(), models.create(name).eval()
    assert not all(map(torch.equal, model.parameters(), other.parameters()))
    batch = images(name, 1)
    with torch.inference_mode():
        logits = model(batch)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(batch), logits)
        assert torch.equal(copy.deepcopy(model)(batch), logits)
        if "densenet" not in name:  # torchvision's dense layers ask for the type of their input
            assert torch.equal(torch.fx.symbolic_trace(model)(batch), logits)


@pytest.mark.parametrize("name", ALL)
def test_device_and_dtype_reach_every_parameter(name: str) -> None:
    model = models.create(name, device="meta", dtype=torch.float16)
    for value in (*model.parameters(), *model.buffers()):
        assert value.is_meta
        assert value.dtype in (torch.float16, torch.int64)
    assert sum(p.numel() for p in model.parameters()) == models.info(name).parameters


@pytest.mark.parametrize("name", ["resnet20", "cnn5", "vgg8b", "wide_resnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = models.create(name).eval()
    batch = images(name)
    with torch.inference_mode():
        want = model(batch)
        got = model.to(dtype)(batch.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet18", "cifar10_resnet18"])
def test_channels_last_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name).eval()
    batch = images(name)
    with torch.inference_mode():
        want = model(batch)
        got = model.to(memory_format=torch.channels_last)(
            batch.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("name", [n for n in ALL if MODELS[n].input_size[1] < 64])
def test_every_small_model_takes_28_32_and_64_pixels(name: str, size: int) -> None:
    if "vgg_small" in name and size == 28:
        pytest.skip("its five pools need 32 pixels")
    sized = "image_size" in inspect.signature(MODELS[name].factory).parameters
    model = models.create(
        name, in_channels=2, num_classes=7, **({"image_size": size} if sized else {})
    )
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 2, size, size)).shape == (1, 7)


def test_one_model_compiles_whole_and_exports() -> None:
    model = models.create("resnet20").eval()
    batch = images("resnet20")
    with torch.inference_mode():
        want = model(batch)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(batch), want)
    free = torch.export.Dim("n", min=1)
    exported = torch.export.export(model, (batch,), dynamic_shapes={"images": {0: free}}).module()
    torch.testing.assert_close(exported(batch[:1]), want[:1], atol=1e-5, rtol=1e-4)


def test_pickled_model_types_are_importable() -> None:
    for name in ALL:
        for layer in models.create(name, device="meta").modules():
            assert getattr(sys.modules[type(layer).__module__], type(layer).__name__)


# --- names, info, create -----------------------------------------------------------------------


def test_import_and_listing_load_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys, addis.models as m; m.names(); m.names('*'); m.create('vgg8b', device='meta');"
        "m.info('resnet20'); print([n for n in ('timm', 'torchvision') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_names_match_wildcards_in_order() -> None:
    assert models.names() == sorted(models.names())
    assert models.names("resnet?0") == ["resnet20"]
    assert models.names("cifar10_resnet[45]*") == ["cifar10_resnet44", "cifar10_resnet56"]
    assert models.names("nothing*") == []


def test_names_of_the_libraries_are_theirs() -> None:
    assert "timm/resnet50" in models.names("timm/resnet*")
    assert models.names("torchvision/squeezenet*") == [
        "torchvision/squeezenet1_0",
        "torchvision/squeezenet1_1",
    ]
    assert "torchvision/fcn_resnet50" not in models.names("torchvision/*")  # no classifier


def test_info_of_a_pretrained_model_says_what_it_takes() -> None:
    known = models.info("cifar10_wrn16_4")
    assert known.parameters == 2_748_890
    assert (known.mean, known.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (known.input_size, known.num_classes, known.accuracy) == ((3, 32, 32), 10, 0.9471)
    assert known.weights == "cifar10_wrn16_4.safetensors"
    assert models.info("cifar10_resnet56").mean == (0.485, 0.456, 0.406)


def test_info_of_an_untrained_model_leaves_pixels_alone() -> None:
    known = models.info("lenet")
    assert (known.mean, known.std, known.accuracy, known.weights) == ((0.0,), (1.0,), None, None)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_info_of_a_library_model_agrees_with_the_model(library: str) -> None:
    known = models.info(f"{library}/resnet18")
    model = models.create(f"{library}/resnet18", device="meta")
    assert known.parameters == sum(p.numel() for p in model.parameters()) == 11_689_512
    assert (known.input_size, known.num_classes) == ((3, 224, 224), 1000)
    assert known.mean == (0.485, 0.456, 0.406)
    assert known.weights is not None


def test_info_is_frozen() -> None:
    with pytest.raises(AttributeError):
        models.info("lenet").parameters = 3  # type: ignore[misc]


def test_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet21'; did you mean .*resnet20"):
        models.create("resnet21")
    with pytest.raises(ValueError, match=r"timm has no model 'resnt50'; did you mean .*resnet50"):
        models.create("timm/resnt50")
    with pytest.raises(ValueError, match=r"timm has no weights 'resnet50.nobody'"):
        models.info("timm/resnet50.nobody")
    with pytest.raises(ValueError, match=r"torchvision has no classifier 'resnt50'; did you mean"):
        models.info("torchvision/resnt50")
    with pytest.raises(ValueError, match=r"addis.models.names\(\) lists them"):
        models.info("zzzz")


@pytest.mark.parametrize(
    ("name", "option", "near"),
    [
        ("vgg8b", "widht", "width"),
        ("cifar10_resnet20", "xyzzy", ""),
        ("timm/resnet18", "drop_rat", "drop_rate"),
        ("torchvision/vgg11", "dropot", "dropout"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest_names(
    name: str, option: str, near: str
) -> None:
    hint = f"; did you mean {near}" if near else "; it takes num_classes"
    with pytest.raises(ValueError, match=f"model '{name}' has no option '{option}'{hint}"):
        models.create(name, **{option: 1})


@pytest.mark.parametrize(
    ("name", "option"), [("timm/resnet18", "checkpoint_path"), ("torchvision/resnet18", "progress")]
)
def test_loading_behind_the_back_of_create_is_refused(name: str, option: str) -> None:
    with pytest.raises(ValueError, match=f"takes no option '{option}'; files are loaded with"):
        models.create(name, **{option: "somewhere.pth"})


def test_options_reach_the_factory() -> None:
    model = models.create("wide_resnet", depth=10, width=1, num_classes=3, in_channels=1)
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 3)
    assert (
        models.create("timm/resnet18", in_channels=1, num_classes=4, device="meta").fc.out_features
        == 4
    )  # type: ignore[union-attr]


def test_whole_numbers_are_no_data_type_of_a_model() -> None:
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type, got torch.int8"):
        models.create("lenet", dtype=torch.int8)


class OfflineError(FileNotFoundError, ValueError):
    """What versions of the hub before 1.0 raise."""


def test_pretrained_weights_of_a_library_without_a_network_are_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OfflineError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline)
    for library in ("timm", "torchvision"):
        with pytest.raises(RuntimeError, match=f"weights of {library}/resnet18 .*no network"):
            models.create(f"{library}/resnet18", pretrained=True)


def test_page_lists_every_model_with_its_parameters() -> None:
    page = (FOLDER / "docs" / "models.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|", page, flags=re.MULTILINE))
    assert rows == {name: f"{models.info(name).parameters:,}" for name in ALL}
