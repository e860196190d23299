"""One token a row at a time, after the prompt was read: the step of the sampler (`generation.py`).

`Forward` is the model's own forward with transformers' cache, for any causal LM. It makes masks, positions and a longer cache
anew for each token, which takes longer than the matrix products of a small model. `CachedSteps` runs the blocks of a Llama or a
GPT-2 itself (`FAMILIES`), on a cache of fixed size: the same modules and weights (adapters too), the same numbers up to the
order of additions. `FixedSteps` does so with tensors that keep their shapes and places: on a GPU a step is
captured as a CUDA graph, which the others replay, so that a token costs what its kernels take and not their launches. On either
device it may run under `torch.compile`, which takes up to a minute once for each shape and pays where a run is long.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel, LlamaForCausalLM

from .compiling import compile_once
from .logprobs import head_of

Keep = Callable[[Tensor], None]  # is given the watched block's input, (rows, 1, D)
TOGETHER = 1 << 16  # weights that are copied each step for the sake of one product in place of several
Past = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (rows, heads, places, d)


class Steps(Protocol):
    """What the sampler runs."""

    fixed: bool  # rows that have ended stay in the batch, whose shape must not change

    def step(self, token: Tensor) -> Tensor:
        """The tokens just drawn, (rows, 1) → the next token's logits (rows, V), which may be overwritten by the next step."""
        ...

    def select(self, rows: Tensor) -> None:
        """Go on with these rows alone, (n,) long."""
        ...


class Family(NamedTuple):
    """How one kind of model takes a step: one token a row, (rows, 1), through its blocks.

    `position` is what `table` has of the token's position; the others are those of `_step`.
    """

    blocks: Callable[[Any], Any]  # model → its blocks
    table: Callable[[Any, Tensor], tuple[Tensor, ...]]  # model, positions (rows, n) long → what they mean to it, (…, n, d)
    embed: Callable[[Any, Tensor, list[Tensor]], Tensor]  # model, token, position → (rows, 1, D)
    block: Callable[..., Tensor]  # block, (rows, 1, D), here, keys, values, position, seen → (rows, 1, D)
    normed: Callable[[Any, Tensor], Tensor]  # model, (rows, 1, D) → what the output embedding is given
    kept: Callable[[Any], tuple[int, int]]  # config → heads of keys and values, and their width


def family_of(model: Any) -> Family | None:
    """The model's family; None where its own forward must run."""
    kind = type(model)
    if kind is LlamaForCausalLM and model.model.rotary_emb.rope_type in ("default", "linear", "llama3"):
        found = FAMILIES["llama"]  # the other tables depend on the length
    elif kind is GPT2LMHeadModel and not (model.config.add_cross_attention or model.config.reorder_and_upcast_attn):
        found = FAMILIES["gpt2"]
    else:
        return None
    return None if any(isinstance(p, DTensor) for p in model.parameters()) else found


def unread(model: Any, tokens: Tensor, num_samples: int) -> Any:
    """A cache of no place, from which steps may begin with prompts of one token (B, 1); None: the model must read them.

    A small model's own forward takes as long for one token as several steps do.
    """
    family = family_of(model)
    if family is None or tokens.shape[1] > 1:
        return None
    heads, width = family.kept(model.config)
    none = model.get_input_embeddings().weight.detach().new_zeros((len(tokens) * num_samples, heads, 0, width))
    cache = DynamicCache()
    for layer, _ in enumerate(family.blocks(model)):
        cache.update(none, none, layer)
    return cache


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
        model: A causal LM that has read the prompts, or none of them (`unread`).
        cache: What it returned, (rows, heads, P, d) a layer; taken over.
        mask: (rows, P) bool, True at real tokens.
        following: (rows, 1) long: the position of the first token after the prompt.
        length: Most steps that will be asked for.
        watch, keep: A block of the model and what is called with its input; the model's own forward has a hook for that.
        compiled: Compile the step, where the blocks are run here.
    """
    family = family_of(model)
    if family is None:
        return Forward(model, cache, mask, following)
    if compiled or mask.device.type == "cuda":
        return FixedSteps(family, model, cache, mask, following, length, watch, keep, compiled)
    return CachedSteps(family, model, cache, mask, following, length, watch, keep)


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


class CachedSteps:
    """A family's blocks on a cache of P + length places."""

    fixed = False

    def __init__(
        self, family: Family, model: Any, cache: Any, mask: Tensor, following: Tensor, length: int, watch: nn.Module | None,
        keep: Keep | None,
    ) -> None:  # fmt: skip
        self.family, self.model, self.watch, self.keep = family, model, watch, keep
        self.head = head_of(model)
        self.first = self.at = mask.shape[1]  # place of the next token
        self.cached: Past = []
        for layer in cache.layers:
            self.cached.append((_with_room(layer.keys, length), _with_room(layer.values, length)))
            layer.keys = layer.values = None
        self.table = family.table(model, following + torch.arange(length, device=mask.device))
        self.seen = None  # where prompts are padded: (rows, 1, 1, P + length) bool
        if not bool(mask.all()):
            self.seen = F.pad(mask, (0, length), value=True)[:, None, None]

    def step(self, token: Tensor) -> Tensor:
        """As `Steps` says."""
        logits, given = self.run(token)
        self.at += 1
        if given is not None and self.keep is not None:
            self.keep(given)
        return logits

    def run(self, token: Tensor) -> tuple[Tensor, Tensor | None]:
        """The family's step on the places up to this token's."""
        done, upto = self.at - self.first, self.at + 1
        past = [(keys[:, :, :upto], values[:, :, :upto]) for keys, values in self.cached]
        seen = None if self.seen is None else self.seen[..., :upto]
        position = [x[..., done : done + 1, :] for x in self.table]
        return _step(self.family, self.model, token, slice(self.at, upto), past, position, seen, self.watch, self.head)

    def select(self, rows: Tensor) -> None:
        """As `Steps` says."""
        self.cached = [(keys[rows], values[rows]) for keys, values in self.cached]
        self.table = tuple(x[rows] for x in self.table)
        self.seen = None if self.seen is None else self.seen[rows]


class FixedSteps(CachedSteps):
    """`CachedSteps` of fixed shapes: a step looks at all P + length places, those to come hidden from it.

    Compiled, it has a multiple of `ROUND` places, so that prompts of other lengths seldom need another function. What the first
    call of each took is printed.
    """

    fixed = True
    ROUND = 32
    FEWEST = 4  # steps for which a graph is captured
    known: ClassVar[Any] = weakref.WeakKeyDictionary()  # model → shapes that have run: what is made on first use is there
    last: ClassVar[dict[torch.device, tuple[Any, Any]]] = {}  # each device's last graph, for its memory, and its stream

    def __init__(
        self, family: Family, model: Any, cache: Any, mask: Tensor, following: Tensor, length: int, watch: nn.Module | None,
        keep: Keep | None, compiled: bool,
    ) -> None:  # fmt: skip
        room = length + (-(mask.shape[1] + length) % self.ROUND if compiled else 0)
        super().__init__(family, model, cache, mask, following, room, watch, keep)
        self.compiled, self.graph = compiled, cast(Any, None)
        self.captures = mask.device.type == "cuda" and length >= self.FEWEST
        self.places = torch.arange(self.first + room, device=mask.device)
        self.here = self.places[self.first : self.first + 1].clone()
        self.token = torch.empty_like(following)

    def run(self, token: Tensor) -> tuple[Tensor, Tensor | None]:
        """On all places; where there is a GPU from a graph, captured once a step of these shapes has run."""
        self.token.copy_(token)
        known, shape = self.known.setdefault(self.model, set()), self.shape
        if self.captures and shape in known:
            if self.graph is None:
                self._capture()
            self.graph.replay()
            logits, given = self.found
            given = None if given is None else given.clone()
        else:
            began = time.perf_counter()
            logits, given = self._places()
            if self.compiled and shape not in known:
                took, rows = time.perf_counter() - began, len(self.token)
                print(f"sampler: first step of {rows} rows of {len(self.places)} places: {took:.1f} s", flush=True)
            known.add(shape)
        self.here += 1
        return logits, given

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a compiled function, or a library's choice of one, depends on."""
        half = torch.is_autocast_enabled(self.token.device.type)
        return len(self.token), len(self.places), self.seen is None, self.watch is None, self.compiled, half

    def _places(self) -> tuple[Tensor, Tensor | None]:
        """The step, of tensors alone."""
        position = [x.index_select(-2, self.here - self.first) for x in self.table]  # contiguous: one compiled function each
        upto = (self.places <= self.here)[None, None, None]
        seen = upto if self.seen is None else self.seen & upto
        # a graph has no cost between blocks, so that one of them is compiled, in seconds; without one, all in one function
        step, family = _step, self.family
        if self.compiled and self.captures:
            family = family._replace(block=compile_once(family.block))
        elif self.compiled:
            step = compile_once(_step)
        return step(family, self.model, self.token, self.here, self.cached, position, seen, self.watch, self.head)

    def _capture(self) -> None:
        """The step as a CUDA graph. Nothing runs meanwhile; `torch.cuda.graph` would give all cached memory back first."""
        device, graph = self.token.device, torch.cuda.CUDAGraph()
        before, stream = self.last.get(device) or (None, torch.cuda.Stream(device))
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=before.pool() if before is not None else None, capture_error_mode="thread_local")
            try:
                self.found = self._places()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph, self.last[device] = graph, (graph, stream)

    def select(self, rows: Tensor) -> None:
        """Never asked for."""
        raise NotImplementedError


def _step(
    family: Family,
    model: Any,
    token: Tensor,
    here: slice | Tensor,
    past: Past,
    position: list[Tensor],
    seen: Tensor | None,
    watch: nn.Module | None,
    head: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor | None]:
    """One token a row through all blocks: (rows, 1) → the next one's logits (rows, V), and what the watched block was given.

    Args:
        here: The token's place, to which its keys and values are written: a slice, or (1,) long.
        past: Keys and values of a layer, each (rows, heads, places, d).
        position: What the family's table has of the token's position.
        seen: (rows, 1, 1, places) bool, or what broadcasts to it; None: all.
        head: The output embedding.
    """
    hidden, given = family.embed(model, token, position), None
    for block, (keys, values) in zip(family.blocks(model), past, strict=True):
        if block is watch:
            given = hidden
        hidden = family.block(block, hidden, here, keys, values, position, seen)
    return head(family.normed(model, hidden))[:, -1], given


# --------------------------------------------------------------------------------------------------------------- families


def _llama_table(model: Any, positions: Tensor) -> tuple[Tensor, ...]:
    """Cosines and sines, (rows, 1, n, d) each."""
    hidden = model.model.embed_tokens.weight[:1].detach()  # the rotary table has its type
    return tuple(x.unsqueeze(1) for x in model.model.rotary_emb(hidden, position_ids=positions))


def _llama_block(
    block: Any, hidden: Tensor, here: slice | Tensor, keys: Tensor, values: Tensor, position: list[Tensor], seen: Tensor | None
) -> Tensor:
    """(rows, 1, D) → (rows, 1, D); writes this token's key and value."""
    module, normed, (cos, sin) = block.self_attn, _norm(block.input_layernorm, hidden), position
    size, mlp = module.head_dim, block.mlp
    parts = _products((module.q_proj, module.k_proj, module.v_proj), normed)
    query, key, value = (part.view(len(hidden), -1, 1, size) for part in parts)
    both = torch.cat([query, key], 1)
    turned = torch.cat([-both[..., size // 2 :], both[..., : size // 2]], -1)
    query, key = (both * cos + turned * sin).split([query.shape[1], key.shape[1]], 1)
    hidden = hidden + module.o_proj(_attend(query * module.scaling, key, value, here, keys, values, seen))
    gate, up = _products((mlp.gate_proj, mlp.up_proj), _norm(block.post_attention_layernorm, hidden))
    return hidden + mlp.down_proj(mlp.act_fn(gate) * up)  # type: ignore[no-any-return]


def _gpt2_block(
    block: Any, hidden: Tensor, here: slice | Tensor, keys: Tensor, values: Tensor, position: list[Tensor], seen: Tensor | None
) -> Tensor:
    """As `_llama_block`; the position is in the embedding."""
    module = block.attn
    parts = module.c_attn(block.ln_1(hidden)).split(module.split_size, 2)
    query, key, value = (x.view(len(hidden), -1, 1, module.head_dim) for x in parts)
    hidden = hidden + module.c_proj(_attend(query * module.scaling, key, value, here, keys, values, seen))
    return hidden + block.mlp(block.ln_2(hidden))  # type: ignore[no-any-return]


FAMILIES = {
    "llama": Family(
        blocks=lambda model: model.model.layers,
        table=_llama_table,
        embed=lambda model, token, position: model.model.embed_tokens(token),
        block=_llama_block,
        normed=lambda model, hidden: _norm(model.model.norm, hidden),
        kept=lambda config: (config.num_key_value_heads, config.head_dim or config.hidden_size // config.num_attention_heads),
    ),
    "gpt2": Family(
        blocks=lambda model: model.transformer.h,
        table=lambda model, positions: (positions.unsqueeze(-1),),
        embed=lambda model, token, position: model.transformer.wte(token) + model.transformer.wpe(position[0].squeeze(-1)),
        block=_gpt2_block,
        normed=lambda model, hidden: model.transformer.ln_f(hidden),
        kept=lambda config: (config.n_head, config.n_embd // config.n_head),
    ),
}


def _products(layers: tuple[Any, ...], x: Tensor) -> tuple[Tensor, ...]:
    """What each linear layer makes of (rows, 1, D). Compiled code puts small ones together: a CPU's cost is then the call."""
    weights: list[Tensor] = [layer.weight for layer in layers if type(layer) is nn.Linear]
    biases: list[Tensor] = [layer.bias for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
    alike = len(weights) == len(layers) and len(biases) in (0, len(layers))
    if not (alike and torch.compiler.is_compiling() and x.device.type == "cpu" and sum(w.numel() for w in weights) <= TOGETHER):
        return tuple(layer(x) for layer in layers)
    found = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return found.split([len(w) for w in weights], -1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, here: slice | Tensor, keys: Tensor, values: Tensor, seen: Tensor | None
) -> Tensor:
    """(rows, heads, 1, d), scaled, twice (rows, key heads, 1, d) → (rows, 1, heads · d); writes this token's key and value."""
    keys[:, :, here] = key.to(keys.dtype)
    values[:, :, here] = value.to(values.dtype)
    # the queries of one key's head as the rows of one product: for a single token quicker than a fused kernel on a CPU
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    if grouped.shape[2] > 1 and wants_fused(grouped.device.type):
        found = F.scaled_dot_product_attention(grouped.to(keys.dtype), keys, values, attn_mask=seen, scale=1.0)
        return found.reshape(len(query), 1, -1)
    narrow = sums_products(query)
    # (rows, key heads, queries a key, places)
    scores = (grouped.unsqueeze(3) * keys.unsqueeze(2)).sum(-1) if narrow else grouped @ keys.transpose(2, 3)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    weights = scores.softmax(-1).to(values.dtype)
    found = (weights.unsqueeze(-1) * values.unsqueeze(2)).sum(3) if narrow else weights @ values
    return found.reshape(len(query), 1, -1)


def sums_products(query: Tensor) -> bool:
    """Where compiled code adds up products itself: on a CPU hundreds of narrow heads cost a library's products more."""
    return torch.compiler.is_compiling() and query.device.type == "cpu" and query.shape[-1] <= 16


def wants_fused(device: str) -> bool:
    """Where several queries share keys: on a GPU the fused kernel takes a third of the time of two products."""
    return device == "cuda"


def _with_room(cached: Tensor, length: int) -> Tensor:
    """(rows, heads, P, d) → (rows, heads, P + length, d), what is new 0: a place that is hidden must still be finite.

    Under autocast in its type: each step's products would round the whole cache to it.
    """
    half = torch.is_autocast_enabled(cached.device.type)
    dtype = torch.get_autocast_dtype(cached.device.type) if half else cached.dtype
    whole = cached.new_zeros((*cached.shape[:2], cached.shape[2] + length, cached.shape[3]), dtype=dtype)
    whole[:, :, : cached.shape[2]] = cached
    return whole


def _norm(module: Any, hidden: Tensor) -> Tensor:
    """LlamaRMSNorm in one operation."""
    if hidden.dtype != torch.float32:
        return module(hidden)  # type: ignore[no-any-return]
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)
