"""One token a row at a time, after the prompt was read: the step of the sampler (`generation.py`).

`Forward` is the model's own forward with transformers' cache, for any causal LM. It makes masks, positions and a longer cache
anew for each token, which takes longer than the matrix products of a small model. `LlamaSteps` runs a Llama's blocks itself, on
a cache of fixed size: the same modules and weights (adapters too), the same numbers up to the order of additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

Keep = Callable[[Tensor], None]  # is given the watched block's input, (rows, 1, D)


class Steps(Protocol):
    """What the sampler runs."""

    def step(self, token: Tensor) -> Tensor:
        """The tokens just drawn, (rows, 1) → the next token's logits (rows, V)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone, (n,) long."""
        ...


def steps_of(
    model: Any, cache: Any, mask: Tensor, following: Tensor, length: int, watch: nn.Module | None, keep: Keep | None
) -> Steps:
    """The quicker of the two that the model allows.

    Args:
        model: A causal LM that has read the prompts.
        cache: What it returned, (rows, heads, P, d) a layer; taken over.
        mask: (rows, P) bool, True at real tokens.
        following: (rows, 1) long: the position of the first token after the prompt.
        length: Most steps that will be asked for.
        watch, keep: A block of the model and what is called with its input; the model's own forward has a hook for that.
    """
    plain = type(model) is LlamaForCausalLM and not any(isinstance(p, DTensor) for p in model.parameters())
    if plain and model.model.rotary_emb.rope_type in ("default", "linear", "llama3"):  # the others depend on the length
        return LlamaSteps(model, cache, mask, following, length, watch, keep)
    return Forward(model, cache, mask, following)


class Forward:
    """The model's own forward."""

    def __init__(self, model: Any, cache: Any, mask: Tensor, following: Tensor) -> None:
        self.model, self.cache, self.mask, self.following, self.done = model, cache, mask, following, 0

    def step(self, token: Tensor) -> Tensor:
        """As `Steps` says."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        out = self.model(
            input_ids=token,
            attention_mask=self.mask.long(),
            position_ids=self.following + self.done,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.done += 1
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> None:
        """As `Steps` says."""
        self.mask, self.following = self.mask[rows], self.following[rows]
        self.cache.batch_select_indices(rows)


class LlamaSteps:
    """Llama's blocks on a cache of P + length places."""

    def __init__(
        self, model: Any, cache: Any, mask: Tensor, following: Tensor, length: int, watch: nn.Module | None, keep: Keep | None
    ) -> None:
        self.model, self.watch, self.keep = model, watch, keep
        self.at = mask.shape[1]  # place of the next token
        self.cached: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            self.cached.append((_with_room(layer.keys, length), _with_room(layer.values, length)))
            layer.keys = layer.values = None
        positions = following + torch.arange(length, device=mask.device)  # (rows, length)
        hidden = model.model.embed_tokens.weight[:1]  # the rotary table has its type
        table = model.model.rotary_emb(hidden, position_ids=positions)
        self.cos, self.sin = (x.unsqueeze(1) for x in table)  # (rows, 1, length, d)
        self.seen = None  # where prompts are padded: (rows, 1, 1, P + length) bool
        if not bool(mask.all()):
            self.seen = F.pad(mask, (0, length), value=True)[:, None, None]
        self.first = self.at

    def step(self, token: Tensor) -> Tensor:
        """As `Steps` says."""
        place = self.at - self.first
        cos, sin = self.cos[:, :, place : place + 1], self.sin[:, :, place : place + 1]
        self.at += 1
        seen = None if self.seen is None else self.seen[..., : self.at]
        hidden = self.model.model.embed_tokens(token)
        for block, (keys, values) in zip(self.model.model.layers, self.cached, strict=True):
            if block is self.watch and self.keep is not None:
                self.keep(hidden)
            hidden = hidden + self._attend(block.self_attn, _norm(block.input_layernorm, hidden), keys, values, cos, sin, seen)
            hidden = hidden + block.mlp(_norm(block.post_attention_layernorm, hidden))
        return self.model.lm_head(_norm(self.model.model.norm, hidden))[:, -1]  # type: ignore[no-any-return]

    def _attend(
        self, module: Any, hidden: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None
    ) -> Tensor:
        """(rows, 1, D) → (rows, 1, D); writes this token's key and value."""
        rows, size = len(hidden), module.head_dim
        query = module.q_proj(hidden).view(rows, -1, 1, size)
        key = module.k_proj(hidden).view(rows, -1, 1, size)
        both = torch.cat([query, key], 1)
        turned = torch.cat([-both[..., size // 2 :], both[..., : size // 2]], -1)
        both = both * cos + turned * sin
        keys[:, :, self.at - 1 : self.at] = both[:, query.shape[1] :]
        values[:, :, self.at - 1 : self.at] = module.v_proj(hidden).view(rows, -1, 1, size)
        # the queries of one key's head as the rows of one product: for a single token quicker than a fused kernel on a CPU
        grouped = both[:, : query.shape[1]].view(rows, key.shape[1], -1, size) * module.scaling
        scores = grouped @ keys[:, :, : self.at].transpose(2, 3)  # (rows, key heads, queries a key, places)
        if seen is not None:
            scores = scores.masked_fill(~seen, -torch.inf)
        found = scores.softmax(-1).to(values.dtype) @ values[:, :, : self.at]
        return module.o_proj(found.view(rows, 1, -1))  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> None:
        """As `Steps` says."""
        self.cached = [(keys[rows], values[rows]) for keys, values in self.cached]
        self.cos, self.sin = self.cos[rows], self.sin[rows]
        self.seen = None if self.seen is None else self.seen[rows]


def _with_room(cached: Tensor, length: int) -> Tensor:
    """(rows, heads, P, d) → (rows, heads, P + length, d), what is new not filled."""
    whole = cached.new_empty((*cached.shape[:2], cached.shape[2] + length, cached.shape[3]))
    whole[:, :, : cached.shape[2]] = cached
    return whole


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """LlamaRMSNorm in one operation."""
    if hidden.dtype != torch.float32:
        return module(hidden)  # type: ignore[no-any-return]
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)
