"""`torch.compile`, as blocks (`blocks.py`), the sampler's step (`decode.py`) and rows of logits (`logprobs.py`) ask for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

MOST = 256  # shapes of one function, with and without gradients; beyond PyTorch's own limit it would run uncompiled, unsaid


@functools.cache
def compile_once(function: Callable[..., Any], dynamic: bool = False) -> Any:
    """A function under `torch.compile`, one for the process: its code is kept by shape.

    Args:
        function: What first runs under a dispatch mode (a counter of operations or bytes) is never compiled afterwards.
        dynamic: One code for all shapes. False: one for each, whatever was seen before, so that a run that is resumed rounds as
            the one that was not.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST)
    return torch.compile(function, dynamic=dynamic)
