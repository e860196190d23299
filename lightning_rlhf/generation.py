"""Sampling: one prefill, a key-value cache, a seeded generator; and the truncation rule of 2019.

`sample` draws exactly `length` tokens and EOS does not stop (Ziegler et al. 2019); `sample_until` ends a response at a stop
token (Stiennon et al. 2020). The seam for another engine is these two: what comes back is token ids and masks; the
log-probabilities that PPO learns from are computed by `ppo.py` itself, with the function that the update uses, because a
cached sampler's differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compiling import compile_once
from .decode import steps_of, unread
from .objective import check_temperature
from .tokens import position_ids

ASKED_EACH = 8  # steps on a GPU between two questions whether all rows have ended


def seed_for(seed: int, iteration: int, rank: int = 0) -> int:
    """The sampling seed of one iteration on one rank: no random state has to be saved for a resume."""
    return (seed * 1_000_003 + iteration * 9_973 + rank) % (2**63 - 1)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One token a row: the first whose cumulative probability exceeds a uniform number; (B, V), (B, 1) float64 → (B, 1) long.

    `torch.multinomial` draws V numbers a row, which on a CPU takes longer than the output embedding; one sum over V in
    float32 would lose tokens rarer than 6e-8. So first a block of tokens, then a token of the block, both in float64; of few
    tokens there is one block.
    """
    rows, block = len(probabilities), 256
    if probabilities.shape[1] <= 4 * block:
        ends = probabilities.double().cumsum(-1)
        return torch.searchsorted(ends, uniform * ends[:, -1:], right=True).clamp_max(probabilities.shape[1] - 1)
    blocks = F.pad(probabilities, (0, -probabilities.shape[1] % block)).view(rows, -1, block)
    ends = blocks.sum(-1).double().cumsum(-1)  # (B, V / 256)
    uniform = uniform * ends[:, -1:]
    chosen = torch.searchsorted(ends, uniform, right=True).clamp_max(ends.shape[1] - 1)
    end = ends.gather(1, chosen)
    start = F.pad(ends, (1, 0)).gather(1, chosen)
    within = blocks[torch.arange(rows, device=ends.device), chosen.squeeze(1)].double().cumsum(-1)  # (B, 256)
    height = (uniform - start) / (end - start) * within[:, -1:]
    inside = torch.searchsorted(within, height, right=True).clamp_max(block - 1)
    return (chosen * block + inside).clamp_max(probabilities.shape[1] - 1)


def draw_from(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), and its log-prob: (B, V), (B, 1) float64 → (B, 1), (B, 1) float32."""
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    token = draw(probabilities, uniform)
    return token, probabilities.gather(1, token).log()


@contextmanager
def casts_kept(device: str) -> Iterator[None]:
    """Under autocast, keep weights as they are cast: sampling takes the same ones for each token, and Lightning keeps none.

    PyTorch keeps those of weights that train, outside of compiled functions; frozen ones are better held in bf16
    (`model.frozen_dtype`).

    Args:
        device: Its type, `cpu` or `cuda`.
    """
    if not torch.is_autocast_enabled(device):
        yield
        return
    torch.clear_autocast_cache()
    try:
        with torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=True):
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def given_to(module: nn.Module | None, keep: Callable[[Tensor], None]) -> Iterator[None]:
    """`keep` is called with what the module is called with."""
    hook = None if module is None else module.register_forward_pre_hook(lambda _, given: keep(given[0]))
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


class Drawn(NamedTuple):
    """What `sample_with` saw on the way."""

    tokens: Tensor  # (B n, R) long; pad after a stop token
    logprobs: Tensor  # (B n, R) float32, of the tokens, by the sampler's own (cached) passes; 0 after a stop token
    inputs: Tensor | None  # (B, P + R, D): what the watched module was given; nothing of use after a stop token


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
        mask: (B, P) bool (or 1 and 0), True at real tokens; each row's last place is real.
        length: Tokens to sample, R.
        temperature: Above 0.
        seed: Of the generator; the same seed and shapes give the same tokens.
        num_samples: Responses a prompt, n; the prompt is read once, but for one of a single token.

    Returns:
        (B * n, R) long; rows of one prompt are adjacent.

    Raises:
        ValueError: A row that is not left-padded, no prompt, no response to one, or a temperature that is not above 0.
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
    stop: Sequence[int] = (),
    pad_id: int = 0,
    compiled: bool = False,
    stop_after: int = 0,
) -> Drawn:
    """`sample`, with the log-probs of what was drawn, and what a block of the model was given at each place.

    Args:
        watch: A block of the model whose input is kept, so that blocks below it need not be run again; one response a prompt.
        stop: Ids that end a response: what comes after one is not sampled, and rows that have ended leave the batch.
        pad_id: Stands after a stop token.
        compiled: Compile the step of a Llama or GPT-2; its batch keeps its shape, so that rows that have ended stay in it.
        stop_after: First index, from 0, at which a stop token counts.
    """
    if not len(tokens) or num_samples < 1:
        raise ValueError(f"sample: found {len(tokens)} prompts and num_samples {num_samples}, expected at least one of each")
    tokens, mask = tokens.long(), mask.bool()  # a tokenizer's own mask is of integers
    if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError("sample: padding after a prompt's first token, expected left-padded prompts of at least one token")
    check_temperature(temperature)
    if watch is not None and num_samples > 1:
        raise ValueError(f"sample_with: found num_samples {num_samples} with a watched block, expected 1")
    rows, width = len(tokens) * num_samples, tokens.shape[1]
    there = torch.arange(rows, device=tokens.device)  # the rows that the batch still has
    seen: list[tuple[Tensor, Tensor]] = []  # rows, and what the watched block was given of them
    keep = lambda given: seen.append((there, given))  # noqa: E731
    generator = torch.Generator(device=tokens.device).manual_seed(seed)
    stops = torch.tensor(list(stop), dtype=torch.long, device=tokens.device)
    sampled = tokens.new_full((rows, length), pad_id)
    logprobs = torch.zeros((rows, length), device=tokens.device)
    with casts_kept(tokens.device.type), given_to(watch, keep):
        positions, cache = position_ids(mask), unread(model, tokens, num_samples)
        each = lambda x: x if num_samples == 1 else x.repeat_interleave(num_samples, 0)  # noqa: E731
        if cache is None:
            out = model(input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=True, logits_to_keep=1)
            cache, logits = out.past_key_values, each(out.logits[:, -1])
            if num_samples > 1:
                cache.batch_repeat_interleave(num_samples)
            steps = steps_of(model, cache, each(mask), each(positions[:, -1:] + 1), length, watch, keep, compiled)
        else:  # the first step reads the prompts' only token
            steps = steps_of(model, cache, each(mask[:, :0]), each(positions), length + 1, watch, keep, compiled)
            logits = steps.step(each(tokens))
        drawing = compile_once(draw_from) if compiled and steps.fixed and tokens.is_cuda else draw_from
        asked = ASKED_EACH if steps.fixed and tokens.is_cuda else 1  # a GPU must have done all steps to answer
        live = torch.ones_like(there, dtype=torch.bool)  # rows of the batch that have not ended
        for step in range(length):
            uniform = torch.rand((rows, 1), generator=generator, dtype=torch.float64, device=tokens.device)
            token, logprob = drawing(logits, uniform[there], temperature)  # (rows of the batch, 1) each
            sampled[there, step] = torch.where(live, token.squeeze(1), pad_id)
            logprobs[there, step] = torch.where(live, logprob.squeeze(1), 0.0)
            after = live & ~torch.isin(token.squeeze(1), stops) if stop and step >= stop_after else live
            needed = after if watch is None else live  # a watched block sees the stop token too
            if (step + 1 == length and watch is None) or (stop and step % asked == 0 and not bool(needed.any())):
                break
            live = after
            if stop and not steps.fixed and 8 * int((~needed).sum()) >= len(needed):  # copying the cache for fewer does not pay
                left = needed.nonzero().squeeze(1)
                there, live, token = there[left], live[left], token[left]
                steps.select(left)
            logits = steps.step(token)
    return Drawn(sampled, logprobs, _assembled(seen, rows, width + length) if seen else None)


def _assembled(seen: list[tuple[Tensor, Tensor]], rows: int, width: int) -> Tensor:
    """(B, width, D) of parts of some rows each, side by side; 0 where there is none."""
    if all(len(there) == rows for there, _ in seen) and sum(part.shape[1] for _, part in seen) == width:
        return torch.cat([part for _, part in seen], 1)
    whole, at = seen[0][1].new_zeros((rows, width, seen[0][1].shape[2])), 0
    for there, part in seen:
        whole[there, at : at + part.shape[1]] = part
        at += part.shape[1]
    return whole


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
    if not stop:
        raise ValueError("sample_until: found no stop token, expected at least one")
    drawn = sample_with(model, tokens, mask, length, temperature, seed, num_samples, stop=stop, pad_id=pad_id)
    return until(drawn.tokens, stop, pad_id)


def until(drawn: Tensor, stop: Sequence[int], pad_id: int) -> Sampled:
    """Responses (B, R) up to and with their first stop token."""
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
    mask = hit.long().cumsum(1) - hit.long() == 0  # no such token before this place
    found = hit.any(1)
    return torch.where(mask, responses, pad_id), mask, found
