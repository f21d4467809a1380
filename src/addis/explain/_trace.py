"""Traces a model with ``torch.fx`` and leaves no mark on it.

Tracing runs the model's own ``forward`` with proxies in the place of tensors. A cache that it
fills, a list that it appends to or a hook that it fires would keep one.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

__all__ = ["Tracer", "unmarked"]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set)


class Tracer(fx.Tracer):
    """Runs no hook of a module that it looks into.

    What such a hook changes is missing from the trace, so a trace must be checked on the model.
    """

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        return m.forward(*args, **kwargs)


@contextmanager
def unmarked(model: nn.Module) -> Iterator[None]:
    """Sets the attributes of all modules, and what the containers in them hold, back on the way
    out.
    """
    kept: list[tuple[Any, Any]] = []
    for module in model.modules():
        own = vars(module)
        kept.append((own, dict(own)))
        kept += [(v, v.copy()) for v in own.values() if type(v) in _CONTAINERS]
    try:
        yield
    finally:
        for value, before in kept:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(before)
