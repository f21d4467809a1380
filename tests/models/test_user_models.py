"""Models of the user's own: ``module:factory``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from addis import models

MODULE = """
import torch
from torch import nn

class Net(nn.Linear):
    @classmethod
    def narrow(cls):
        return cls(2, 1)

def make(num_classes=3, *, bias=True):
    return nn.Linear(4, num_classes, bias=bias)

def anything(**options):
    return nn.Linear(4, options["num_classes"])

def needs(size):
    return nn.Linear(size, 1)

def wrong():
    return "a model"

def fails():
    raise KeyError("inside the factory")

net = nn.Linear(2, 2)
number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "addis_user_nets.py").write_text(MODULE)
    (tmp_path / "addis_user_broken.py").write_text("import addis_no_such_module\n")
    (tmp_path / "addis_user_raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_factory_gets_the_options_and_the_type() -> None:
    model = models.create("addis_user_nets:make", num_classes=5, bias=False, dtype=torch.float64)
    assert isinstance(model, nn.Linear)
    assert (model.out_features, model.bias, model.weight.dtype) == (5, None, torch.float64)
    assert models.create("addis_user_nets:make").out_features == 3


def test_class_method_and_open_keywords_work() -> None:
    assert models.create("addis_user_nets:Net.narrow").in_features == 2
    assert models.create("addis_user_nets:anything", num_classes=7).out_features == 7


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    want = nn.Linear(4, 3)
    save_file(want.state_dict(), tmp_path / "w.safetensors")
    model = models.create("addis_user_nets:make", weights=tmp_path / "w.safetensors")
    assert torch.equal(model.weight, want.weight)
    with pytest.raises(ValueError, match=r"unexpected: bias"):
        models.create("addis_user_nets:make", bias=False, weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("addis_user_net:make", ValueError, r"cannot import 'addis_user_net' .*PYTHONPATH\?"),
        ("addis_user_broken:make", ValueError, r"cannot import .*No module named 'addis_no_such_m"),
        ("addis_user_raises:make", ValueError, r"cannot import .*ZeroDivisionError"),
        ("addis_user_nets:mak", ValueError, r"has no attribute 'mak'; did you mean make\?"),
        ("addis_user_nets:Net.wide", ValueError, r"has no attribute 'wide'"),
        ("addis_user_nets:needs", ValueError, r"needs the option 'size'"),
        ("addis_user_nets:wrong", TypeError, r"must return an nn.Module, got a str"),
        ("addis_user_nets:net", TypeError, r"function or class that builds a model, got a Linear"),
        ("addis_user_nets:number", TypeError, r"function or class that builds a model, got a int"),
        ("addis_user_nets:", ValueError, r"is named module:factory, got 'addis_user_nets:'"),
        (":make", ValueError, r"is named module:factory, got ':make'"),
        (".relative:make", ValueError, r"cannot import '.relative'"),
    ],
)
def test_what_is_no_factory_is_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        models.create(name)


def test_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no option 'bais'; did you mean bias\?; it takes num_"):
        models.create("addis_user_nets:make", bais=True)
    with pytest.raises(ValueError, match=r"has no option 'num_classes'"):
        models.create("addis_user_nets:needs", size=3, num_classes=2)


def test_error_inside_the_factory_is_the_users_to_see() -> None:
    with pytest.raises(KeyError, match="inside the factory"):
        models.create("addis_user_nets:fails")


def test_it_has_no_published_weights() -> None:
    with pytest.raises(ValueError, match=r"has no published weights; give weights=PATH"):
        models.create("addis_user_nets:make", pretrained=True)
