"""Sampling: one prefill, a key-value cache, a seeded generator; and the truncation rule of 2019.

`sample` draws exactly `length` tokens and EOS does not stop (Ziegler et al. 2019); `sample_until` ends a response at a stop
token (Stiennon et al. 2020). The seam for another engine is these two: what comes back is token ids and masks; the
log-probabilities that PPO learns from are computed by `ppo.py` itself, with the function that the update uses, because a
cached sampler's differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .models import position_ids


def seed_for(seed: int, iteration: int, rank: int = 0) -> int:
    """The sampling seed of one iteration on one rank: no random state has to be saved for a resume."""
    return (seed * 1_000_003 + iteration * 9_973 + rank) % (2**63 - 1)


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row: the first whose cumulative probability exceeds a uniform number; (B, V) → (B, 1) long.

    `torch.multinomial` draws V numbers a row, which on a CPU takes longer than the output embedding; one sum over V in
    float32 would lose tokens rarer than 6e-8. So first a block of tokens, then a token of the block, both in float64.
    """
    rows, block = len(probabilities), 256
    blocks = F.pad(probabilities, (0, -probabilities.shape[1] % block)).view(rows, -1, block)
    ends = blocks.sum(-1).double().cumsum(-1)  # (B, V / 256)
    uniform = torch.rand((rows, 1), generator=generator, dtype=torch.float64, device=ends.device) * ends[:, -1:]
    chosen = torch.searchsorted(ends, uniform, right=True).clamp_max(ends.shape[1] - 1)
    end = ends.gather(1, chosen)
    start = F.pad(ends, (1, 0)).gather(1, chosen)
    within = blocks[torch.arange(rows, device=ends.device), chosen.squeeze(1)].double().cumsum(-1)  # (B, 256)
    height = (uniform - start) / (end - start) * within[:, -1:]
    inside = torch.searchsorted(within, height, right=True).clamp_max(block - 1)
    return (chosen * block + inside).clamp_max(probabilities.shape[1] - 1)


class Drawn(NamedTuple):
    """What `sample_with` saw on the way."""

    tokens: Tensor  # (B n, R) long
    logprobs: Tensor  # (B n, R) float32, of the tokens, by the sampler's own (cached) passes
    inputs: Tensor | None  # (B, P + R, D): what the watched module was given


def sample(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    length: int,
    temperature: float,
    seed: int,
    num_samples: int = 1,
) -> Tensor:
    """Sample `length` tokens after each prompt from softmax(logits / temperature) over the whole vocabulary.

    Args:
        model: A Hugging Face causal LM.
        tokens: (B, P) left-padded prompts.
        mask: (B, P) bool, True at real tokens; each row's last place is real.
        length: Tokens to sample, R.
        temperature: Above 0.
        seed: Of the generator; the same seed and shapes give the same tokens.
        num_samples: Responses a prompt, n; the prompt is read once.

    Returns:
        (B * n, R) long; rows of one prompt are adjacent.

    Raises:
        ValueError: A row that is not left-padded.
    """
    return sample_with(model, tokens, mask, length, temperature, seed, num_samples).tokens


@torch.no_grad()
def sample_with(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    length: int,
    temperature: float,
    seed: int,
    num_samples: int = 1,
    watch: nn.Module | None = None,
) -> Drawn:
    """`sample`, with the log-probs of what was drawn, and what a block of the model was given at each place.

    Args:
        watch: A block of the model whose input is kept, so that blocks below it need not be run again; one response a prompt.
    """
    if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError("sample: padding after a prompt's first token, expected left-padded prompts of at least one token")
    if watch is not None and num_samples > 1:
        raise ValueError(f"sample_with: found num_samples {num_samples} with a watched block, expected 1")
    inputs: list[Tensor] = []
    hook = watch.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) if watch is not None else None
    try:
        found, logprobs = _sample(model, tokens, mask, length, temperature, seed, num_samples, last=watch is not None)
    finally:
        if hook is not None:
            hook.remove()
    return Drawn(found, logprobs, torch.cat(inputs, 1) if inputs else None)


def _sample(
    model: Any, tokens: Tensor, mask: Tensor, length: int, temperature: float, seed: int, num_samples: int, last: bool
) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs, (B n, R) each; `last`: run the model on the last token too."""
    generator = torch.Generator(device=tokens.device).manual_seed(seed)
    positions = position_ids(mask)
    out = model(input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1)
    cache, logits = out.past_key_values, out.logits[:, -1]
    following = positions[:, -1:] + 1
    if num_samples > 1:
        cache.batch_repeat_interleave(num_samples)
        logits, mask, following = (x.repeat_interleave(num_samples, 0) for x in (logits, mask, following))
    one = torch.ones((mask.shape[0], 1), dtype=torch.bool, device=mask.device)
    sampled, logprobs = [], []
    for step in range(length):
        probabilities = torch.softmax(logits.float() / temperature, dim=-1)
        token = draw(probabilities, generator)  # (B n, 1)
        sampled.append(token)
        logprobs.append(probabilities.gather(1, token).log())
        if step + 1 == length and not last:
            break
        mask = torch.cat([mask, one], 1)
        out = model(
            input_ids=token,
            attention_mask=mask.long(),
            position_ids=following + step,
            past_key_values=cache,
            use_cache=True,
        )
        logits = out.logits[:, -1]
    return torch.cat(sampled, 1), torch.cat(logprobs, 1)


class Sampled(NamedTuple):
    """Responses of different lengths. The mask tells what is real: a stop token's id may also be the pad's."""

    tokens: Tensor  # (B n, R) long, pad after the stop token
    mask: Tensor  # (B n, R) bool, True up to and with the stop token
    stopped: Tensor  # (B n,) bool: a stop token is there


def sample_until(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    length: int,
    temperature: float,
    seed: int,
    stop: Sequence[int],
    pad_id: int,
    num_samples: int = 1,
) -> Sampled:
    """Sample after each prompt until a stop token, at most `length` tokens: what `sample` draws, up to the first stop token.

    Args:
        model, tokens, mask, length, temperature, seed, num_samples: As for `sample`.
        stop: Ids that end a response; at least one.
        pad_id: Fills up a response that has ended; may be a stop token's id.

    Raises:
        ValueError: No stop token; or as `sample`.
    """
    return until(sample(model, tokens, mask, length, temperature, seed, num_samples), stop, pad_id)


def until(drawn: Tensor, stop: Sequence[int], pad_id: int) -> Sampled:
    """Responses (B, R) up to and with their first stop token.

    Raises:
        ValueError: No stop token.
    """
    if not stop:
        raise ValueError("sample_until: found no stop token, expected at least one")
    ends = torch.isin(drawn, torch.tensor(list(stop), device=drawn.device))
    real = ends.long().cumsum(1) - ends.long() == 0  # no stop token before this place
    return Sampled(torch.where(real, drawn, pad_id), real, ends.any(1))


def truncate(responses: Tensor, truncate_token: int | None, truncate_after: int, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad everything after the first truncate token at index >= truncate_after (Ziegler et al. 2019, §2.1).

    Args:
        responses: (B, R) long.
        truncate_token: Its id, or None: nothing is cut and all is found.
        truncate_after: First index, from 0, at which it counts.
        pad_id: Fills what is cut off.

    Returns:
        tokens (B, R); mask (B, R) bool, True up to and with the truncate token (the whole row where there is none);
        found (B,) bool.
    """
    if truncate_token is None:
        return responses, torch.ones_like(responses, dtype=torch.bool), responses.new_ones(len(responses), dtype=torch.bool)
    places = torch.arange(responses.shape[1], device=responses.device)
    hit = (responses == truncate_token) & (places >= truncate_after)
    found = hit.any(1)
    last = torch.where(found, hit.long().argmax(1), responses.shape[1] - 1)
    mask = places <= last.unsqueeze(1)
    return torch.where(mask, responses, pad_id), mask, found
