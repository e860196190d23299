"""Bytes that operations on fake tensors would take: each storage counted while it lives, the highest point of a phase kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live, and keeps the highest point of each phase.

    What a fake tensor is asked for as a number is 1, and as a truth True. A selection by a fake mask takes everything.

    Args:
        by_role: Bytes of what is told apart from activations, asked at each new high point.
    """

    def __init__(self, by_role: Callable[[], dict[str, int]]) -> None:
        super().__init__()
        self.by_role, self.phase = by_role, "load"
        self.live = 0
        self.beside: dict[str, int] = {}  # by role: what is there and no operation makes
        self.storages: dict[int, int] = {}
        self.highest: dict[str, int] = {}
        self.roles: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run, and count what came out."""
        if func in ANSWERS and any(isinstance(a, FakeTensor) for a in args):
            return ANSWERS[func](args[0])
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)])
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.count(value)
        return out

    def count(self, value: Tensor) -> None:
        """Take in a tensor's storage, unless it is known."""
        storage = value.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not size or key in self.storages:
            return
        self.storages[key] = size
        self.live += size
        weakref.finalize(storage, self._freed, key).atexit = False
        self.look()

    def _freed(self, key: int) -> None:
        """A storage is gone."""
        self.live -= self.storages.pop(key, 0)

    def look(self) -> None:
        """Keep a new high point of the phase."""
        now = self.live + sum(self.beside.values())
        seen = sum(self.roles[self.phase].values()) if self.phase in self.roles else -1
        if now > 1.01 * seen:  # a little more is not worth a look at every parameter
            roles = {**self.by_role(), **self.beside}
            self.roles[self.phase] = {**roles, "activations": max(0, now - sum(roles.values()))}

    @contextmanager
    def during(self, phase: str, **beside: int) -> Iterator[None]:
        """A phase, in which there are further bytes of some roles."""
        previous, before = self.phase, self.beside
        self.phase, self.beside = phase, {**before, **{k: before.get(k, 0) + v for k, v in beside.items()}}
        self.look()
        yield
        self.phase, self.beside = previous, before


ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    torch.ops.aten._local_scalar_dense.default: lambda x: True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1,
    torch.ops.aten.equal.default: lambda x: True,
    torch.ops.aten.allclose.default: lambda x: True,
}


def _places(index: Tensor | None) -> Sequence[Tensor | None]:
    """A mask as the places that it selects (a fake one: all), anything else as it is."""
    if index is None or index.dtype != torch.bool:
        return [index]
    mask = torch.ones(index.shape, dtype=torch.bool) if isinstance(index, FakeTensor) else index
    return list(mask.nonzero().unbind(1))


def storage_bytes(tensors: Iterable[Tensor | None], seen: set[int] | None = None) -> int:
    """Bytes of the tensors' storages, each once, and none of `seen`, which they join."""
    seen = set() if seen is None else seen
    total = 0
    for tensor in tensors:
        if tensor is not None and (storage := tensor.untyped_storage())._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total


def tensors_of(parts: Iterable[Any]) -> Iterator[Tensor]:
    """Parameters and buffers of the modules among `parts`."""
    for part in parts:
        if isinstance(part, nn.Module):
            yield from part.parameters()
            yield from part.buffers()
