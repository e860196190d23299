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

from .objective import full_kl


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Next-token logits: (…, D) → (…, V)."""
    return within(model, model.get_output_embeddings(), hidden)  # type: ignore[no-any-return]


def within(model: Any, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` as a part of the model's forward: a sharded model gathers its weights for it (`sharding.py`)."""
    run = getattr(model, "within", None)
    return run(function, *args) if run else function(*args)


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the labels: (B, T, V), (B, T) → (B, T), float32 also for bf16 logits."""
    scaled = logits.float() / temperature
    flat = F.cross_entropy(scaled.flatten(0, -2), labels.flatten().long(), reduction="none")
    return -flat.view(labels.shape)


def entropy_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats of softmax(logits / temperature): (B, T, V) → (B, T), float32."""
    logp = F.log_softmax(logits.float() / temperature, dim=-1)
    return -(logp.exp() * logp).sum(-1)


class _HeadLogprobs(torch.autograd.Function):
    """Log-probs of labels and entropies from hidden states, some rows of logits at a time; see `head_logprobs`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, temperature: float, rows: int
    ) -> tuple[Tensor, Tensor]:
        ctx.temperature, ctx.rows, ctx.dtype = temperature, rows, hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
        logprobs, entropy = hidden.new_empty(len(labels), dtype=torch.float32), hidden.new_empty(len(labels), dtype=torch.float32)
        frozen = not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2])
        slope = torch.empty_like(hidden) if frozen and ctx.needs_input_grad[0] else None
        for i in range(0, len(labels), rows):
            part = slice(i, i + rows)
            scaled, p, log_total = _softmax_parts(_scaled_logits(hidden[part], weight, bias, temperature))
            logprobs[part] = scaled.gather(1, labels[part].unsqueeze(1)).squeeze(1) - log_total
            entropy[part] = log_total - _dot(p, scaled)
            if slope is not None:  # d log p(label) / d hidden = (w_label - p W) / temperature
                slope[part] = (weight[labels[part]] - p.to(weight.dtype) @ weight) / temperature
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
            return (gradient.unsqueeze(1) * slope).to(ctx.dtype), None, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        to_hidden, to_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for i in range(0, len(labels), ctx.rows):
            part = slice(i, i + ctx.rows)
            slope = _scaled_logits(hidden[part], weight, bias, ctx.temperature).softmax(-1).neg_()
            slope.scatter_add_(1, labels[part].unsqueeze(1), torch.ones_like(slope[:, :1]))
            slope = (slope * (gradient[part] / ctx.temperature).unsqueeze(1)).to(weight.dtype)
            to_hidden[part] = slope @ weight
            to_weight += slope.T @ hidden[part]
            if to_bias is not None:
                to_bias += slope.sum(0)
        return to_hidden.to(ctx.dtype), to_weight, to_bias, None, None, None


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
        logprobs, entropy, kl, ref_logprobs = (hidden.new_empty(len(labels), dtype=torch.float32) for _ in range(4))
        slopes = (torch.empty_like(hidden), torch.empty_like(hidden)) if ctx.needs_input_grad[0] else ()
        for i in range(0, len(labels), rows):
            part = slice(i, i + rows)
            label = labels[part].unsqueeze(1)
            reference, _, log_total = _softmax_parts(_scaled_logits(ref_hidden[part], ref_weight, ref_head.bias, temperature))
            ref_logprobs[part] = reference.gather(1, label).squeeze(1) - log_total
            log_ratio, p, own_total = _softmax_parts(_scaled_logits(hidden[part], weight, head.bias, temperature))
            logprobs[part] = log_ratio.gather(1, label).squeeze(1) - own_total
            entropy[part] = own_total - _dot(p, log_ratio)
            log_ratio -= reference
            log_ratio += (log_total - own_total).unsqueeze(1)  # log π_v / ρ_v
            kl[part] = _dot(p, log_ratio)
            if slopes:  # the first as in `_HeadLogprobs`; d KL / d logit_v = p_v (log π_v / ρ_v - KL) / temperature
                slopes[0][part] = (weight[labels[part]] - p.to(weight.dtype) @ weight) / temperature
                log_ratio -= kl[part].unsqueeze(1)
                slopes[1][part] = (log_ratio.mul_(p).to(weight.dtype) @ weight) / temperature
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


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(N, D), (V, D), (V) → (N, V) float32, divided by the temperature."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype)).float().div_(temperature)


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


def head_logprobs(model: Any, hidden: Tensor, labels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature) at the labels, and the entropy: (B, T, D), (B, T) → (B, T), (B, T), float32.

    `token_logprobs` and `entropy_of` of `logits_of`, without (B, T, V): a few rows of logits stand at a time. Where the
    output embedding is frozen the slope (w_label - p W) / temperature is made on the way, so that nothing is computed twice;
    where it trains, the backward pass computes the logits again. The entropy has no gradient.
    """
    logprobs, entropy = within(model, _head_logprobs, model, hidden, labels, temperature)
    return logprobs.view(labels.shape), entropy.view(labels.shape)


def _head_logprobs(model: Any, hidden: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`head_logprobs`, where the output embedding's weight is at hand; results may be flat."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:  # with an adapter on it
        logits = head(hidden)
        return token_logprobs(logits, labels, temperature), entropy_of(logits.detach(), temperature)
    rows = _rows_of_logits(head)
    found = _HeadLogprobs.apply(hidden.flatten(0, -2), head.weight, head.bias, labels.flatten(), temperature, rows)
    return cast(tuple[Tensor, Tensor], found)


def _rows_of_logits(head: nn.Linear) -> int:
    """How many rows of logits stand at a time: 16 MB of them on a CPU, 512 MB on a GPU, in float32."""
    numbers = 2**22 if head.weight.device.type == "cpu" else 2**27
    return max(1, numbers // head.weight.shape[0])


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
