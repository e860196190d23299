"""One token a row at a time, after the prompt was read: the step of the sampler (`generation.py`).

`Forward` is the model's own forward with transformers' cache, for any causal LM. It makes masks, positions and a longer cache
anew for each token, which takes longer than the matrix products of a small model. `LlamaSteps` runs a Llama's blocks itself, on
a cache of fixed size: the same modules and weights (adapters too), the same numbers up to the order of additions.
`CompiledSteps` runs the same as one function of static shapes under `torch.compile`, which takes up to a minute once for each
shape: it pays where a step is many small operations, and a run long.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

Keep = Callable[[Tensor], None]  # is given the watched block's input, (rows, 1, D)


class Steps(Protocol):
    """What the sampler runs."""

    fixed: bool  # rows that have ended stay in the batch, whose shape must not change

    def step(self, token: Tensor) -> Tensor:
        """The tokens just drawn, (rows, 1) → the next token's logits (rows, V)."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone, (n,) long."""
        ...


def steps_of(
    model: Any,
    cache: Any,
    mask: Tensor,
    following: Tensor,
    length: int,
    watch: nn.Module | None,
    keep: Keep | None,
    compiled: bool = False,
) -> Steps:
    """The quickest that the model allows.

    Args:
        model: A causal LM that has read the prompts.
        cache: What it returned, (rows, heads, P, d) a layer; taken over.
        mask: (rows, P) bool, True at real tokens.
        following: (rows, 1) long: the position of the first token after the prompt.
        length: Most steps that will be asked for.
        watch, keep: A block of the model and what is called with its input; the model's own forward has a hook for that.
        compiled: Compile the step, where it is `LlamaSteps`.
    """
    plain = type(model) is LlamaForCausalLM and not any(isinstance(p, DTensor) for p in model.parameters())
    if plain and model.model.rotary_emb.rope_type in ("default", "linear", "llama3"):  # the others depend on the length
        steps = CompiledSteps if compiled else LlamaSteps
        return steps(model, cache, mask, following, length, watch, keep)
    return Forward(model, cache, mask, following)


class Forward:
    """The model's own forward."""

    fixed = False

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

    fixed = False

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
        done = self.at - self.first
        logits, given = self.run(token, self.cos[:, :, done : done + 1], self.sin[:, :, done : done + 1])
        self.at += 1
        if given is not None and self.keep is not None:
            self.keep(given)
        return logits

    def run(self, token: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """`_step` on the places up to this token's."""
        upto = self.at + 1
        past = [(keys[:, :, :upto], values[:, :, :upto]) for keys, values in self.cached]
        seen = None if self.seen is None else self.seen[..., :upto]
        return _step(self.model, token, slice(self.at, upto), past, cos, sin, seen, self.watch)

    def select(self, rows: Tensor) -> None:
        """As `Steps` says."""
        self.cached = [(keys[rows], values[rows]) for keys, values in self.cached]
        self.cos, self.sin = self.cos[rows], self.sin[rows]
        self.seen = None if self.seen is None else self.seen[rows]


class CompiledSteps(LlamaSteps):
    """`LlamaSteps` as one compiled function: a step looks at all P + length places, those to come hidden from it.

    A multiple of `ROUND` places, so that prompts of other lengths seldom need another function. What each took is printed.
    """

    fixed = True
    ROUND = 32
    known: ClassVar[set[tuple[int, ...]]] = set()

    def __init__(
        self, model: Any, cache: Any, mask: Tensor, following: Tensor, length: int, watch: nn.Module | None, keep: Keep | None
    ) -> None:
        super().__init__(model, cache, mask, following, length + -(mask.shape[1] + length) % self.ROUND, watch, keep)
        self.places = torch.arange(self.first + self.cos.shape[2], device=mask.device)

    def run(self, token: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor | None]:
        """The compiled `_step` on all places; the first of a shape is timed."""
        began, shape = time.perf_counter(), (id(self.model), len(token), len(self.places), self.seen is None, self.watch is None)
        here = self.places[self.at : self.at + 1]
        upto = self.places <= here
        seen = upto if self.seen is None else self.seen & upto
        cos, sin = cos.contiguous(), sin.contiguous()  # the table's strides follow the prompts' width: one function each
        found = _compiled()(self.model, token, here, self.cached, cos, sin, seen, self.watch)
        if shape not in self.known:
            self.known.add(shape)
            print(f"sampler: first step of {shape[1]} rows of {shape[2]} places: {time.perf_counter() - began:.1f} s", flush=True)
        return found  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> None:
        """Never asked for."""
        raise NotImplementedError


@functools.cache
def _compiled() -> Any:
    """The step under `torch.compile`, one for the process: its code is kept by shape."""
    return torch.compile(_step, dynamic=False)


def _step(
    model: Any,
    token: Tensor,
    here: slice | Tensor,
    past: list[tuple[Tensor, Tensor]],
    cos: Tensor,
    sin: Tensor,
    seen: Tensor | None,
    watch: nn.Module | None,
) -> tuple[Tensor, Tensor | None]:
    """One token a row through all blocks: (rows, 1) → the next one's logits (rows, V), and what the watched block was given.

    Args:
        here: The token's place, to which its keys and values are written: a slice, or (1,) long.
        past: Keys and values of a layer, each (rows, heads, places, d).
        cos, sin: (rows, 1, 1, d), of the token's position.
        seen: (rows, 1, 1, places) bool, or what broadcasts to it; None: all.
    """
    hidden, given = model.model.embed_tokens(token), None
    for block, (keys, values) in zip(model.model.layers, past, strict=True):
        if block is watch:
            given = hidden
        attended = _attend(block.self_attn, _norm(block.input_layernorm, hidden), here, keys, values, cos, sin, seen)
        hidden = hidden + attended
        hidden = hidden + block.mlp(_norm(block.post_attention_layernorm, hidden))
    return model.lm_head(_norm(model.model.norm, hidden))[:, -1], given


def _attend(
    module: Any, hidden: Tensor, here: slice | Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, seen: Tensor | None
) -> Tensor:
    """(rows, 1, D) → (rows, 1, D); writes this token's key and value."""
    rows, size = len(hidden), module.head_dim
    query = module.q_proj(hidden).view(rows, -1, 1, size)
    key = module.k_proj(hidden).view(rows, -1, 1, size)
    both = torch.cat([query, key], 1)
    turned = torch.cat([-both[..., size // 2 :], both[..., : size // 2]], -1)
    both = both * cos + turned * sin
    keys[:, :, here] = both[:, query.shape[1] :].to(keys.dtype)
    values[:, :, here] = module.v_proj(hidden).view(rows, -1, 1, size).to(values.dtype)
    # the queries of one key's head as the rows of one product: for a single token quicker than a fused kernel on a CPU
    grouped = both[:, : query.shape[1]].view(rows, key.shape[1], -1, size) * module.scaling
    scores = grouped @ keys.transpose(2, 3)  # (rows, key heads, queries a key, places)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    found = scores.softmax(-1).to(values.dtype) @ values
    return module.o_proj(found.view(rows, 1, -1))  # type: ignore[no-any-return]


def _with_room(cached: Tensor, length: int) -> Tensor:
    """(rows, heads, P, d) → (rows, heads, P + length, d), what is new 0: a place that is hidden must still be finite."""
    whole = cached.new_zeros((*cached.shape[:2], cached.shape[2] + length, cached.shape[3]))
    whole[:, :, : cached.shape[2]] = cached
    return whole


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """LlamaRMSNorm in one operation."""
    if hidden.dtype != torch.float32:
        return module(hidden)  # type: ignore[no-any-return]
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)
