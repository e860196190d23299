"""The policy in a checkpoint of the stage sft or ppo: what trained of it, and the model that it belongs in."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from .lora import LoRA
from .tasks import UsageError


@dataclass(frozen=True)
class Checkpoint:
    """The policy in a stage's checkpoint: what trained, and what it belongs in."""

    start: str  # the model that training began from
    start_hash: str | None  # of its weights then (`weights_hash`), where the command line kept it
    lora: LoRA | None
    trainable_layers: int | None
    frozen: torch.dtype  # of the weights that did not train
    weights: dict[str, Tensor]  # by name in the model; mapped from the file, not read yet


def is_checkpoint(found: str) -> bool:
    """Whether what `find_lm` found is a checkpoint."""
    return Path(found).is_file() and not found.endswith(".gguf")


def checkpoint_content(file: str | Path) -> dict[str, Any] | None:
    """What is in a checkpoint: plain values, and tensors that are mapped from the file; None where it is not whole, or none."""
    try:
        with _disable_current_modes():  # an estimate counts what is made, and what is mapped takes no memory
            saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError):
        return None  # the last ones where bytes were damaged
    return saved if isinstance(saved, dict) else None


def read_checkpoint(file: str) -> Checkpoint:
    """The policy in a file that `StageCheckpoint`, or another callback of Lightning's, wrote. Nothing in it is run.

    Raises:
        UsageError: It is no whole checkpoint, or of another stage than sft and ppo.
    """
    saved = checkpoint_content(file)
    stage = (saved or {}).get("stage")
    name, given = (stage.get("name"), stage.get("options")) if isinstance(stage, dict) else (None, None)
    options = {k.removeprefix("model."): v for k, v in given.items()} if isinstance(given, dict) else {}
    named = re.fullmatch(r"(.+?)(?: \((weights [0-9a-f]{12}|not found)\))?", str(options.get("policy", "")))
    if saved is None or name not in ("sft", "ppo") or named is None:
        of = f"a checkpoint of {f'the stage {name!r}' if name else 'no stage'}"
        found = "a file that is no whole checkpoint" if saved is None else of
        raise UsageError(
            f"model {file!r}: found {found}, expected a directory, a .gguf file or a checkpoint of the stage sft or ppo"
        )
    start, then = named.groups()
    lora = {k.removeprefix("lora."): v for k, v in options.items() if k.startswith("lora.")}
    prefix = "policy."
    weights = {k.removeprefix(prefix): v for k, v in saved.get("state_dict", {}).items() if k.startswith(prefix)}
    half = {v.dtype for v in weights.values()} - {torch.float32}  # all of a stage at precision bf16-true
    frozen = half.pop() if half else getattr(torch, options.get("frozen_dtype") or "float32")
    return Checkpoint(start, then, LoRA(**lora) if lora else None, options.get("trainable_layers"), frozen, weights)
