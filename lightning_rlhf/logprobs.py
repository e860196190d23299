"""From hidden states to log-probabilities: of tokens, entropies, and the exact KL to a reference, some rows of logits at a time.

A vocabulary is so wide that the logits of a batch, (B, T, V) in float32, would be the largest thing in memory. Where the output
embedding is frozen, as it is where top blocks or adapters train, the gradient is made in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compiling import compile_once
from .objective import check_temperature, full_kl


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Next-token logits: (…, D) → (…, V)."""
    return within(model, model.get_output_embeddings(), hidden)  # type: ignore[no-any-return]


def within(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` as a part of the model's forward: a sharded model gathers its weights for it (`sharding.py`)."""
    run = getattr(model, "within", None)
    return run(function, *args) if run else function(*args)


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the labels: (B, T, V), (B, T) → (B, T), float32 also for bf16 logits.

    Raises ValueError for a temperature that is not above 0 or shapes that do not fit, IndexError for a label outside 0 … V − 1.
    """
    check_temperature(temperature)
    if logits.shape[:-1] != labels.shape:
        found = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise ValueError(f"token_logprobs: found {found}, expected (B, T, V) and (B, T)")
    scaled = logits.float() / temperature
    nothing = -(2**31)  # torch's own label to ignore, −100, would have log-prob 0 unseen
    flat = F.cross_entropy(scaled.flatten(0, -2), labels.flatten().long(), reduction="none", ignore_index=nothing)
    return -flat.view(labels.shape)


def entropy_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature): (B, T, V) → (B, T), float32."""
    logp = F.log_softmax(logits.float() / temperature, dim=-1)
    return -(logp.exp() * torch.where(logp == -torch.inf, 0.0, logp)).sum(-1)  # a token that cannot come counts 0


class _HeadLogprobs(torch.autograd.Function):
    """Log-probs of labels and entropies from hidden states, some rows of logits at a time; see `head_logprobs`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float, rows: int, fused: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.rows, ctx.dtype, ctx.fused = temperature, rows, hidden.dtype, fused
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        ctx.vocabulary, weight = len(weight), aligned(weight)
        logprobs, entropy = hidden.new_empty(len(labels), dtype=torch.float32), hidden.new_empty(len(labels), dtype=torch.float32)
        frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        slope = torch.empty_like(hidden) if frozen and ctx.needs_input_grad[0] else None
        for i in range(0, len(labels), rows):
            part = slice(i, i + rows)
            if fused and slope is None:
                logits = _logits(hidden[part], weight, bias, ctx.vocabulary)
                logprobs[part], entropy[part] = compile_once(_statistics, dynamic=True)(logits, labels[part], temperature)
                continue
            scaled, p, log_total = _softmax_parts(_scaled_logits(hidden[part], weight, bias, temperature, ctx.vocabulary))
            logprobs[part] = scaled.gather(1, labels[part].unsqueeze(1)).squeeze(1) - log_total
            entropy[part] = log_total - _dot(p, scaled)
            if slope is not None:  # d log p(label) / d hidden = (w_label - p W) / temperature
                slope[part] = (weight[labels[part]] - _times(p, weight)) / temperature
        ctx.frozen = frozen
        if slope is not None:
            ctx.save_for_backward(slope)
        elif not frozen:
            ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            return (gradient.unsqueeze(1) * slope).to(ctx.dtype), None, None, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for i in range(0, len(labels), ctx.rows):
            part = slice(i, i + ctx.rows)
            logits = _logits(hidden[part], weight, bias, ctx.vocabulary)
            slope_of = compile_once(_slope, dynamic=True) if ctx.fused else _slope
            slope = slope_of(logits, labels[part], gradient[part], ctx.temperature, len(weight) - ctx.vocabulary)
            to_hidden[part] = slope @ weight
            to_weight += slope.T @ hidden[part]
            if to_bias is not None:
                to_bias += slope[:, : ctx.vocabulary].sum(0)
        return to_hidden.to(ctx.dtype), to_weight[: ctx.vocabulary], to_bias, None, None, None, None


class _HeadKL(torch.autograd.Function):
    """Log-probs, entropies, exact KL and the reference's log-probs from hidden states; see `head_logprobs_and_kl`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, head: nn.Linear, labels: Tensor, ref_hidden: Tensor, ref_head: nn.Linear, temperature: float,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.dtype = hidden.dtype
        weight, ref_weight = head.weight, ref_head.weight
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, ref_hidden, weight, ref_weight = (x.to(dtype) for x in (hidden, ref_hidden, weight, ref_weight))
        vocabulary, weight, ref_weight = len(weight), aligned(weight), aligned(ref_weight)
        logprobs, entropy, kl, ref_logprobs = (hidden.new_empty(len(labels), dtype=torch.float32) for _ in range(4))
        slopes = (torch.empty_like(hidden), torch.empty_like(hidden)) if ctx.needs_input_grad[0] else ()
        for i in range(0, len(labels), rows):
            part = slice(i, i + rows)
            label = labels[part].unsqueeze(1)
            reference, _, log_total = _softmax_parts(
                _scaled_logits(ref_hidden[part], ref_weight, ref_head.bias, temperature, vocabulary)
            )
            ref_logprobs[part] = reference.gather(1, label).squeeze(1) - log_total
            log_ratio, p, own_total = _softmax_parts(
                _scaled_logits(hidden[part], weight, head.bias, temperature, vocabulary)
            )
            logprobs[part] = log_ratio.gather(1, label).squeeze(1) - own_total
            entropy[part] = own_total - _dot(p, log_ratio)
            log_ratio -= reference
            log_ratio += (log_total - own_total).unsqueeze(1)  # log π_v / ρ_v
            kl[part] = _dot(p, log_ratio)
            if slopes:  # the first as in `_HeadLogprobs`; d KL / d logit_v = p_v (log π_v / ρ_v - KL) / temperature
                slopes[0][part] = (weight[labels[part]] - _times(p, weight)) / temperature
                log_ratio -= kl[part].unsqueeze(1)
                slopes[1][part] = _times(log_ratio.mul_(p), weight) / temperature
        if slopes:
            ctx.save_for_backward(*slopes)
        ctx.mark_non_differentiable(entropy, ref_logprobs)
        return logprobs, entropy, kl, ref_logprobs

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, to_logprobs: Tensor, _: Tensor, to_kl: Tensor, __: Tensor
    ) -> tuple[Tensor | None, ...]:
        slopes = ctx.saved_tensors
        to_hidden = to_logprobs.unsqueeze(1) * slopes[0] + to_kl.unsqueeze(1) * slopes[1]
        return to_hidden.to(ctx.dtype), None, None, None, None, None, None


ALIGNED = 64  # rows of an output embedding that a GPU's matrix units take together


def aligned(weight: Tensor) -> Tensor:
    """(V, D) → with zero rows up to a multiple of 64, where it is multiplied in half precision on a GPU: an odd V, as GPT-2's
    50,257, takes kernels that are five times slower."""
    missing = missing_rows(len(weight), weight.device.type, weight.dtype)
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight


def missing_rows(vocabulary: int, device: str, dtype: torch.dtype) -> int:
    """How many rows `aligned` adds."""
    return -vocabulary % ALIGNED if wants_alignment(device, dtype) else 0


def wants_alignment(device: str, dtype: torch.dtype) -> bool:
    """Half precision on a GPU."""
    return device == "cuda" and dtype in (torch.bfloat16, torch.float16)


def head_of(model: Any) -> Callable[[Tensor], Tensor]:
    """The output embedding as it is best called many times with the same weights: (…, D) → (…, V)."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        return head  # type: ignore[no-any-return]
    device, dtype, vocabulary = head.weight.device.type, head.weight.dtype, len(head.weight)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if not missing_rows(vocabulary, device, dtype):
        return head
    weight = aligned(head.weight.to(dtype))
    return lambda hidden: _logits(hidden.to(dtype), weight, head.bias, vocabulary)


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    """(N, V) float32, (V', D) aligned → their product (N, D), of the weight's type."""
    missing = len(weight) - rows.shape[1]
    rows = rows.to(weight.dtype)
    return (F.pad(rows, (0, missing)) if missing else rows) @ weight


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, vocabulary: int) -> Tensor:
    """(…, D), (V', D) aligned, (V,) → (…, V), of the weight's type."""
    with torch.autocast(hidden.device.type, enabled=False):
        if bias is not None:
            bias = F.pad(bias.to(weight.dtype), (0, len(weight) - vocabulary))
        return F.linear(hidden, weight, bias)[..., :vocabulary]


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, vocabulary: int) -> Tensor:
    """(N, D), (V', D) aligned, (V,) → (N, V) float32, divided by the temperature."""
    return _logits(hidden, weight, bias, vocabulary).float().div_(temperature)


def _statistics(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(N, V), (N,) → log-probs of the labels and entropies (N,), float32."""
    scaled = logits.float() / temperature
    total = scaled.logsumexp(-1)
    p = (scaled - total.unsqueeze(1)).exp()
    return scaled.gather(1, labels.unsqueeze(1)).squeeze(1) - total, total - (p * scaled).sum(-1)


def _slope(logits: Tensor, labels: Tensor, gradient: Tensor, temperature: float, more: int) -> Tensor:
    """d (gradient · log-probs of the labels) / d logits: (N, V), (N,), (N,) → (N, V + more zeros), of the logits' type."""
    slope = logits.float().div_(temperature).softmax(-1).neg_()
    slope.scatter_add_(1, labels.unsqueeze(1), torch.ones_like(slope[:, :1]))
    slope = slope.mul_((gradient / temperature).unsqueeze(1)).to(logits.dtype)
    return F.pad(slope, (0, more)) if more else slope


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(N, V), (N, V) → (N,), in float32: autocast would have it in half precision."""
    with torch.autocast(a.device.type, enabled=False):
        return torch.linalg.vecdot(a, b)


def _softmax_parts(scaled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, V) → the same less each row's largest, in place; their softmax (N, V); the log of its denominator (N,)."""
    scaled -= scaled.amax(-1, keepdim=True)
    p = scaled.exp()
    total = p.sum(-1, keepdim=True)
    p /= total
    return scaled, p, total.log().squeeze(1)


def head_logprobs(
    model: Any, hidden: Tensor, labels: Tensor, temperature: float = 1.0, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at the labels, and the entropy: (B, T, D), (B, T) → (B, T), (B, T), float32.

    `token_logprobs` and `entropy_of` of `logits_of`, without (B, T, V): a few rows of logits stand at a time. Where the
    output embedding is frozen the slope (w_label - p W) / temperature is made on the way, so that nothing is computed twice;
    where it trains, the backward pass computes the logits again. The entropy has no gradient. `fused`: what follows on the logits
    of an output embedding that trains is compiled (a GPU's memory is what it takes time for).
    """
    logprobs, entropy = within(model, _head_logprobs, model, hidden, labels, temperature, fused)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def _head_logprobs(model: Any, hidden: Tensor, labels: Tensor, temperature: float, fused: bool) -> tuple[Tensor, Tensor]:
    """`head_logprobs`, where the output embedding's weight is at hand; results may be flat."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:  # with an adapter on it
        logits = head(hidden)
        return token_logprobs(logits, labels, temperature), entropy_of(logits.detach(), temperature)
    flat, rows = (hidden.flatten(0, -2), head.weight, head.bias, labels.flatten()), _rows_of_logits(head)
    found = _HeadLogprobs.apply(*flat, temperature, rows, fused)
    return cast(tuple[Tensor, Tensor], found)


def _rows_of_logits(head: nn.Linear) -> int:
    """How many rows of a head's logits stand at a time."""
    return rows_of_logits(head.weight.device.type, head.weight.shape[0])


def rows_of_logits(device: str, vocabulary: int) -> int:
    """How many rows of logits stand at a time: 16 MB of them on a CPU, 512 MB on a GPU, in float32."""
    return max(1, (2**22 if device == "cpu" else 2**27) // vocabulary)


class Against(NamedTuple):
    """What the policy says of tokens, and the reference: (…) float32 each."""

    logprobs: Tensor
    entropy: Tensor  # without a gradient
    kl: Tensor  # exact KL(π, ρ) of the token, over the vocabulary
    ref_logprobs: Tensor  # without a gradient


def head_logprobs_and_kl(
    model: Any, hidden: Tensor, labels: Tensor, reference: Any, ref_hidden: Tensor, temperature: float = 1.0
) -> Against:
    """`head_logprobs`, and the exact KL to a reference, both softmax(logits / T): (…, D), (…), (…, D).

    Where both output embeddings are plain and frozen, (N, V) never exists, and the slopes are made on the way of one pass;
    where one trains or carries an adapter, the logits of the KL stand whole.
    """
    heads = model.get_output_embeddings(), reference.get_output_embeddings()
    if any(type(head) is not nn.Linear or head.weight.requires_grad for head in heads) or hasattr(model, "within"):
        logprobs, entropy = head_logprobs(model, hidden, labels, temperature)
        kl = full_kl(logits_of(model, hidden), logits_of(reference, ref_hidden), temperature)
        with torch.no_grad():
            ref_logprobs, _ = head_logprobs(reference, ref_hidden, labels, temperature)
        return Against(logprobs, entropy, kl, ref_logprobs)
    flat = hidden.flatten(0, -2), heads[0], labels.flatten(), ref_hidden.flatten(0, -2), heads[1]
    found = _HeadKL.apply(*flat, temperature, _rows_of_logits(heads[0]))
    return Against(*(x.view(labels.shape) for x in found))
