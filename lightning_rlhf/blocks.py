"""A network's blocks: where they are, and how they run: recomputed in the backward pass, or compiled.

Neither changes what is computed; compiled blocks round elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .compiling import compile_once
from .tasks import UsageError


def blocks_of(model: Any) -> list[nn.Module]:
    """The blocks of a language model or trunk, in order.

    Raises:
        UsageError: There is no list of as many modules as the config has layers.
    """
    trunk, number = model.base_model, model.config.num_hidden_layers
    found = [m for m in trunk.children() if isinstance(m, nn.ModuleList) and len(m) == number]
    if len(found) != 1:
        options = "gradient_checkpointing, compile_blocks, num_hidden_layers, ModelParallelStrategy"
        raise UsageError(f"{options}: not supported for {type(trunk).__name__}, whose blocks are not one list")
    return list(found[0])


@contextmanager
def checkpointed(model: Any, on: bool) -> Iterator[None]:
    """Where gradients are on, each block keeps its input alone, and runs again in the backward pass: the same gradients.

    The blocks stay in eval mode (transformers' own switch wants training mode, and that would turn dropout on).

    Args:
        model: A language model or trunk, about to run.
        on: False: nothing changes.
    """
    wrap = lambda block: functools.partial(checkpoint, block.forward, use_reentrant=False)  # noqa: E731
    with _run_by(wrap, blocks_of(model) if on and torch.is_grad_enabled() else []):
        yield


@contextmanager
def compiled(model: Any, on: bool) -> Iterator[None]:
    """The blocks under `torch.compile`, one function for all that are of a class: small operations become one kernel.

    Args:
        model: A language model or trunk, about to read whole sequences.
        on: False: nothing changes.
    """
    wrap = lambda block: functools.partial(compile_once(type(block).forward), block)  # noqa: E731
    with _run_by(wrap, blocks_of(model) if on else []):
        yield


@contextmanager
def _run_by(wrap: Callable[[Any], Callable[..., Any]], blocks: list[nn.Module]) -> Iterator[None]:
    """`wrap(block)` stands in for each block's forward meanwhile."""
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = wrap(block)
    try:
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
