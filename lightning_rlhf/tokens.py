"""Texts as token ids and back, and batches of them. Masks, never token ids, tell real tokens from padding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .tasks import UsageError

PAD = "<|pad|>"  # added to a tokenizer that has no pad token of its own, or another special one for it


def encode(tokenizer: Any, text: str | Sequence[int]) -> list[int]:
    """Token ids of a text that stands at the beginning, without special tokens; lists of ids pass through."""
    if not isinstance(text, str):
        return [int(i) for i in text]
    return list(tokenizer.encode(text, add_special_tokens=False))


def encode_continuation(tokenizer: Any, text: str | Sequence[int]) -> list[int]:
    """Token ids of a text that follows another one: a tokenizer that puts a space before each text must not do so here.

    Raises:
        UsageError: The tokenizer merges the text with whatever stands before it.
    """
    if not isinstance(text, str):
        return [int(i) for i in text]
    if not text:
        return []
    for anchor in ("\n", "a", "."):
        before = _anchor_ids(tokenizer, anchor)
        both = tokenizer.encode(anchor + text, add_special_tokens=False)
        if both[: len(before)] == before:
            return list(both[len(before) :])
    raise UsageError(f"cannot tokenise {text[:40]!r} as a continuation: every anchor merges with it")


@functools.lru_cache(maxsize=16)
def _anchor_ids(tokenizer: Any, anchor: str) -> list[int]:
    """Token ids of what continuations are made to follow; a tokenizer is its own key."""
    return list(tokenizer.encode(anchor, add_special_tokens=False))


def decode(tokenizer: Any, tokens: Sequence[int], continuation: bool = False) -> str:
    """The text of token ids, exactly; `continuation`: as it stands after other text (its leading space kept)."""
    ids = [int(i) for i in tokens]
    if not continuation:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    anchor = _anchor_ids(tokenizer, "a")
    head = tokenizer.decode(anchor, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode(anchor + ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(whole[len(head) :])


def vocabulary(tokenizer: Any) -> dict[str, int]:
    """Token → id, without the pad token that an export added (`save_policy`): what a start and what came of it share."""
    return {token: i for token, i in tokenizer.get_vocab().items() if token != PAD}


def bos_ids(tokenizer: Any) -> list[int]:
    """The special tokens that this tokenizer puts before a text by itself (Llama's BOS; none for GPT-2)."""
    plain, special = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(special) - len(plain) + 1):
        if special[start : start + len(plain)] == plain:
            return list(special[:start])
    return []


def position_ids(mask: Tensor) -> Tensor:
    """(B, T) bool, True at real tokens → (B, T) long: the number of earlier real tokens, for pads too.

    A left-padded row so gets the positions that it would have alone (Ziegler et al. 2019, `policy.py`).
    """
    real = mask.long()
    return real.cumsum(dim=1) - real


def pad_batch(rows: Sequence[Sequence[int]], pad_id: int, side: str = "left", length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of ids → (tokens (B, T) long, mask (B, T) bool), padded on one side to `length` or the longest row.

    Raises ValueError for another side than left or right, and a row longer than `length`.
    """
    if side not in ("left", "right"):
        raise ValueError(f"pad_batch: found side {side!r}, expected left or right")
    longest = max([1, *(len(r) for r in rows)])
    width = longest if length is None else length
    if length is not None and any(len(r) > length for r in rows):
        raise ValueError(f"pad_batch: found a row of {longest} tokens, expected at most {length}")
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        if not row:
            continue
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return tokens, mask
