"""What stands under a head: a network's hidden states, its lower blocks apart from its upper ones, its first blocks alone.

The trunk may be split (`SplitTrunk`): where only the top blocks train, what stands below them is computed once and shared
by the policy, the reference and the reward model, bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .blocks import blocks_of
from .logprobs import within
from .tasks import UsageError
from .tokens import position_ids


def hidden_states(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Final normed hidden states: tokens (B, T), mask (B, T) bool → (B, T, D)."""
    return within(model, _hidden_states, model, tokens, mask)  # type: ignore[no-any-return]


def _hidden_states(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    out = model.base_model(input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False)
    return out.last_hidden_state


class _Zero(nn.Module):
    """Stands in for GPT-2's position embedding above a split, where positions were already added."""

    def forward(self, position: Tensor) -> Tensor:
        return torch.zeros((), device=position.device)


class SplitTrunk:
    """A trunk seen as frozen blocks below and trained blocks above; both views share the model's parameters.

    `below(tokens, mask)` → (B, T, D) without gradient; `above(that, mask)` → final normed hidden states. Their
    composition is the model's own forward, operation by operation.

    Args:
        model: A causal LM or sequence classifier of the Llama family (`layers`, `norm`) or of GPT-2's (`h`, `ln_f`).
        trained: Number of top blocks that train; all blocks below them, the embeddings and the output embedding freeze.

    Raises:
        UsageError: Another family, or more blocks than there are.
    """

    def __init__(self, model: Any, trained: int) -> None:
        base = model.base_model
        families = (("layers", "norm", ""), ("h", "ln_f", "wpe"))
        names = next((n for n in families if hasattr(base, n[0]) and hasattr(base, n[1])), None)
        if names is None:
            raise UsageError(f"trainable_layers: not supported for {type(base).__name__}; leave it null to train all layers")
        blocks, norm, positions = names
        layers = getattr(base, blocks)
        if not 0 < trained <= len(layers):
            raise UsageError(f"trainable_layers: found {trained}, expected 1 to the model's {len(layers)} blocks")
        self.trained, self.cut = trained, len(layers) - trained
        self.first = layers[self.cut]  # its input is what `below` gives
        self._below, self._above = copy.copy(base), copy.copy(base)
        self._below._modules = {**base._modules, blocks: layers[: self.cut], norm: nn.Identity()}
        self._above._modules = {**base._modules, blocks: layers[self.cut :]}
        if positions:
            self._above._modules[positions] = _Zero()
        if kinds := getattr(base.config, "layer_types", None):  # looked up by a block's number
            for part, some in ((self._below, kinds[: self.cut]), (self._above, kinds[self.cut :])):
                part.config = copy.copy(base.config)
                part.config.layer_types = some
        if not self._composes(base):
            raise UsageError(f"trainable_layers: not supported for {type(base).__name__}; leave it null to train all layers")
        for p in model.parameters():
            p.requires_grad_(False)
        for module in (layers[self.cut :], getattr(base, norm)):
            for p in module.parameters():
                p.requires_grad_(True)

    @torch.no_grad()
    def _composes(self, base: Any) -> bool:
        """Whether both parts together are the model, which some do something to embeddings or blocks that a part cannot tell."""
        weight = base.get_input_embeddings().weight
        if weight.is_meta or isinstance(weight, FakeTensor):
            return True  # no content to tell from (`estimate.py`)
        training = base.training
        base.eval()
        tokens = torch.arange(4, device=weight.device).unsqueeze(0)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        whole, parts = _hidden_states(base, tokens, mask), self.above(self.below(tokens, mask), mask)
        base.train(training)
        return torch.allclose(parts, whole, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def below(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, T), mask (B, T) bool → hidden states under the first trained block (B, T, D)."""
        return self._below(
            input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state

    def above(self, features: Tensor, mask: Tensor) -> Tensor:
        """What `below` gave (B, T, D) → final normed hidden states (B, T, D)."""
        return self._above(
            inputs_embeds=features, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state

    def shared_with(self, model: Any) -> SplitTrunk | None:
        """Another model split at the same block, if `below` serves both; None where it does not."""
        try:
            other = SplitTrunk(model, self.trained)
        except UsageError:  # another family, or fewer blocks
            return None
        return other if self.shares_below(other) else None

    def shares_below(self, other: SplitTrunk | None) -> bool:
        """Whether the other trunk, cut at the same block, has bit-equal parameters below: then `below` serves both."""
        if other is None or other.cut != self.cut:
            return False
        mine = {k: v for k, v in self._below.state_dict().items()}
        theirs = {k: v for k, v in other._below.state_dict().items()}
        return mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


def first_blocks(trunk: Any, number: int) -> Any:
    """A copy of a trunk with its first blocks alone, between its embeddings and its final norm.

    Args:
        trunk: A Hugging Face base model; it stays as it is.
        number: Blocks to keep.

    Raises:
        UsageError: There are fewer, they are not one list, or the config says more of each (GPT-Neo) than this function knows.
    """
    blocks = blocks_of(trunk)
    if not 0 < number <= len(blocks):
        raise UsageError(f"model.num_hidden_layers: found {number}, expected 1 to the model's {len(blocks)} blocks")
    shorter = copy.copy(trunk)
    (name,) = (n for n, m in trunk.named_children() if isinstance(m, nn.ModuleList) and list(m) == blocks)
    shorter._modules = {**trunk._modules, name: nn.ModuleList(blocks[:number])}
    shorter.config = copy.copy(trunk.config)
    shorter.config.num_hidden_layers = number
    if getattr(trunk.config, "layer_types", None):
        shorter.config.layer_types = trunk.config.layer_types[:number]
    try:
        type(shorter.config)(**shorter.config.to_dict())
    except Exception as error:
        raise UsageError(f"model.num_hidden_layers: {type(trunk).__name__} is not supported: {error}") from None
    return copy.deepcopy(shorter)


PACKED = {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"}  # whose attention is what a mask of four dimensions allows


def full_attention(config: Any) -> bool:
    """Whether every block looks at all places before it, as far back as there are any."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return not (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True))


class Packed(NamedTuple):
    """Groups of rows that begin alike, each as one row: what they share once, then what is left of each, one after another."""

    tokens: Tensor  # (B, L)
    attention: Tensor  # (B, 1, L, L) bool: who looks at whom
    positions: Tensor  # (B, L)
    kept: Tensor  # (B, N, O) bool: True at real tokens of what is left of each row, which are the last N O places
    last: Tensor  # (B, N): which of these is its last real token


def shared_lengths(tokens: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """How many tokens a group's rows share from the start, each keeping one of its own, and the rows' lengths: as `pack_groups`
    takes them → (B, 1), (B, n) long."""
    tokens, mask = tokens.view(-1, n, tokens.shape[1]), mask.view(-1, n, mask.shape[1])
    lengths = mask.sum(2)
    real = lengths > 0
    leader = tokens[torch.arange(len(tokens), device=tokens.device), real.long().argmax(1)]  # (B, T): the first row that there is
    alike = ((tokens == leader.unsqueeze(1)) & mask | ~real.unsqueeze(2)).all(1).long().cumprod(1).sum(1)
    return torch.minimum(alike, torch.where(real, lengths, tokens.shape[2]).amin(1) - 1).unsqueeze(1), lengths


def pack_groups(tokens: Tensor, mask: Tensor, n: int) -> Packed:
    """Pack groups of n rows, so that what a group's rows share (the query) is read once.

    Args:
        tokens: (B n, T) right-padded rows; those of one group are adjacent.
        mask: (B n, T) bool, True at real tokens; a row without any is no row.
        n: Rows a group.
    """
    shared, lengths = shared_lengths(tokens, mask, n)
    tokens, mask = tokens.view(-1, n, tokens.shape[1]), mask.view(-1, n, mask.shape[1])
    groups, _, width = tokens.shape
    leader = tokens[torch.arange(groups, device=tokens.device), (lengths > 0).long().argmax(1)]
    most, own = int(shared.max()), int((lengths - shared).max())
    at = torch.arange(most, device=tokens.device)
    after = shared + torch.arange(own, device=tokens.device)  # (B, own): places in the rows
    source = after.clamp_max(width - 1).unsqueeze(1).expand(-1, n, -1)
    rest, rest_kept = tokens.gather(2, source), mask.gather(2, source) & (after < width).unsqueeze(1)
    packed = torch.cat([leader[:, :most], rest.flatten(1)], 1)
    kept = torch.cat([at < shared, rest_kept.flatten(1)], 1)
    positions = torch.cat([at.expand(groups, -1), after.repeat(1, n)], 1)
    row = torch.cat([at.new_full((most,), -1), torch.arange(n, device=tokens.device).repeat_interleave(own)])  # −1: shared
    places = torch.arange(len(row), device=tokens.device)
    seen = (places.unsqueeze(1) >= places) & ((row == -1) | (row.unsqueeze(1) == row))  # (L, L)
    attention = seen & kept.unsqueeze(1) | (places.unsqueeze(1) == places)  # itself at least, or a softmax is over nothing
    return Packed(packed, attention.unsqueeze(1), positions, rest_kept, (lengths - shared - 1).clamp_min(0))
