"""A trunk with a scalar head, and its directory: the reward model (and PPO's separate value network).

The directory is one that `AutoModelForSequenceClassification` loads; gain, bias and where they are from stand in `reward.json`.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification, AutoTokenizer

from .folders import atomic_directory
from .lora import plain_copy, save_adapter
from .models import config_of, find_lm, fuse_activations, pad_apart, readable_weights, without_pad
from .tasks import UsageError
from .tokens import position_ids
from .trunks import PACKED, full_attention, pack_groups, shared_lengths


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
        """`forward` for groups of n right-padded rows that share their beginning, which is read once where the trunk's attention
        allows it (`trunks.PACKED`): (B n, T) → (B, n).

        With four responses of 24 tokens to a query of 32 that is 128 tokens a group instead of 224. The score of a row
        without a real token means nothing.
        """
        return self.score_last_and_each(tokens, mask, n, each=False)[0]

    def score_last_and_each(self, tokens: Tensor, mask: Tensor, n: int, each: bool = True) -> tuple[Tensor, Tensor]:
        """`score_groups`, and the mean of the scores at each of a row's own tokens, those that its group does not share (at least
        the last): (B, n) twice, the second 0 unless asked for."""
        states, kept, last = self._own_states(tokens, mask, n)
        at_end = states.gather(2, last[:, :, None, None].expand(-1, -1, 1, states.shape[3])).squeeze(2)  # (B, n, D)
        scores = self.gain * self.head(at_end) + self.bias
        if not each:
            return scores, torch.zeros_like(scores)
        mean = torch.where(kept, self.head(states), 0.0).sum(2) / kept.sum(2).clamp_min(1)
        return scores, self.gain * mean + self.bias

    def _own_states(self, tokens: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B n, T) → hidden states of the rows' own tokens (B, n, O, D), which are real (B, n, O), which is the last (B, n)."""
        config = self.trunk.config
        if config.model_type not in PACKED or not full_attention(config):
            places = torch.arange(mask.shape[1], device=mask.device)
            real = mask | (~mask.any(1, keepdim=True) & (places == 0))
            hidden = self.trunk(
                input_ids=tokens, attention_mask=real.long(), position_ids=position_ids(real), use_cache=False
            ).last_hidden_state
            shared, lengths = shared_lengths(tokens, mask, n)
            kept = mask.view(-1, n, len(places)) & (places >= shared.unsqueeze(2))
            return hidden.view(-1, n, *hidden.shape[1:]), kept, (lengths - 1).clamp_min(0)
        packed = pack_groups(tokens, mask, n)
        dtype = self.trunk.get_input_embeddings().weight.dtype
        if torch.is_autocast_enabled(tokens.device.type):
            dtype = torch.get_autocast_dtype(tokens.device.type)
        attention = torch.zeros_like(packed.attention, dtype=dtype).masked_fill_(~packed.attention, torch.finfo(dtype).min)
        hidden = self.trunk(
            input_ids=packed.tokens, attention_mask=attention, position_ids=packed.positions, use_cache=False
        ).last_hidden_state
        own = packed.kept.shape[1:]
        return hidden[:, -own.numel() :].unflatten(1, own), packed.kept, packed.last


def classifier_problems(name: str) -> list[str]:
    """Whether transformers has a sequence classifier of a model's family, which is what a reward directory is loaded as."""
    try:
        config = None if find_lm(name).endswith(".gguf") else config_of(name)
    except (UsageError, OSError, ValueError):
        return []  # told elsewhere
    if config is None or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return []
    return [
        f"model.policy: found {name} of the family {config.model_type}, of which transformers has no sequence classifier to "
        "export a reward as; expected one of which it has (GPT-2, Llama, Qwen, Mistral, Gemma, …)"
    ]


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
    pad_apart(model, tokenizer)
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
        UsageError: The directory or one of its files is missing, or a field is, or is no number.
    """
    file = Path(directory) / "reward.json"
    if not file.is_file():
        raise UsageError(f"reward {str(directory)!r}: no reward.json there, expected a directory that the reward stage wrote")
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: {error}, expected the file that the reward stage wrote") from None
    for field in ("task", "gain", "bias"):
        if field not in info:
            raise UsageError(f"{file}: field {field!r} is missing")
        if field != "task" and not (type(info[field]) in (int, float) and math.isfinite(info[field])):
            raise UsageError(f"{file}: field {field!r}: found {info[field]!r}, expected a finite number")
    for kind, names in (("config", "config.json"), ("weights", "*.safetensors"), ("tokenizer", "tokenizer*")):
        if not any(file.parent.glob(names)):
            raise UsageError(f"reward {str(directory)!r}: found no {kind} ({names}) there, expected a whole reward directory")
    return dict(info)


def load_scalar(directory: str | Path) -> tuple[ScalarModel, Any, dict[str, Any]]:
    """A reward directory → (model in eval mode, tokenizer, reward.json)."""
    info = read_reward_info(directory)
    with readable_weights(str(directory)):
        classifier = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    own = getattr(classifier.config, "vocab_size_without_pad", None)
    if own is not None:
        without_pad(classifier, own)
    fuse_activations(classifier)
    scalar = ScalarModel(classifier.base_model, classifier.score.weight.shape[1], std=0.0)
    with torch.no_grad():
        scalar.head.weight.copy_(classifier.score.weight)
        scalar.gain.fill_(info["gain"])
        scalar.bias.fill_(info["bias"])
    return scalar.eval(), tokenizer, info
