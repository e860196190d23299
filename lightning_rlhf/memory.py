"""What keeps networks small: equal frozen weights held once, frozen weights in bf16 (and `blocks.checkpointed`).

Nothing here changes a number but `to_dtype`, which rounds weights that do not train.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .lora import MergedLinear, merged_weight, read_adapter, replace_module


class SharedWeights:
    """Frozen parameters of all networks, by their place in the trunk: a network that has an equal one takes that instead."""

    def __init__(self) -> None:
        self.kept: dict[str, list[nn.Parameter]] = {}
        self.networks: list[Any] = []

    def add(self, model: Any, adapter: Path | None = None) -> None:
        """Share a network's frozen parameters with those added before it.

        Args:
            model: A language model, or a trunk. What trains in it is left alone.
            adapter: Where the adapters lie that were merged into it; a layer that is one of the weights added before and its
                adapter's product, bit for bit, becomes a `MergedLinear`.
        """
        self.networks.append(model)
        self._take_adapters(model, adapter)
        for place, module in _places(model):
            for name, p in module.named_parameters(recurse=False):
                if p.requires_grad:
                    continue
                known = self.kept.setdefault(f"{place}.{name}", [])
                same = next((other for other in known if other is p or _equal(other, p)), None)
                if same is None:
                    known.append(p)
                elif same is not p:
                    setattr(module, name, same)

    def _take_adapters(self, model: Any, adapter: Path | None) -> None:
        """Replace merged layers by weights that are there already and adapters."""
        trunk = model.base_model
        for name, (a, b, scaling, transposed) in (read_adapter(adapter, trunk.base_model_prefix) if adapter else {}).items():
            layer = trunk.get_submodule(name)
            a, b = a.to(layer.weight.device), b.to(layer.weight.device)
            for weight in self.kept.get(f"{name}.weight", []):
                if weight.dtype == a.dtype and _equal(merged_weight(weight, a, b, scaling, transposed), layer.weight):
                    replace_module(trunk, name, MergedLinear(layer, weight, a, b, scaling, transposed))
                    break


def _places(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(place, module) of a trunk's modules, named alike in every network, and of a language model's output embedding."""
    for name, module in model.base_model.named_modules():
        yield name.replace(".base_layer", "").replace(".plain", ""), module
    if (head := model.get_output_embeddings()) is not None:
        yield "output_embedding", head


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are bit-equal, in type, shape and values, on one device."""
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(one, other)


def to_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Round a network's frozen parameters, in place; what trains, and buffers (a rotary table), keep their type."""
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(dtype)
