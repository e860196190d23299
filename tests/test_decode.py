"""The steps of a Llama and a GPT-2 give the model's logits, padded or not, with adapters, after rows left, of fixed shape; and
compiled they draw the same."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from tiny import STORIES
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from lightning_rlhf import decode
from lightning_rlhf.decode import CachedSteps, FixedSteps, Forward, Steps, family_of, steps_of
from lightning_rlhf.generation import sample_with, until
from lightning_rlhf.lora import LoRA, add_lora, lora_layers
from lightning_rlhf.models import load_lm
from lightning_rlhf.tokens import pad_batch, position_ids

ROWS = [[1, 300, 301, 302], [1, 290], [1, 310, 311, 312, 313, 314, 315], [1]]
TOKENS = torch.randint(3, 500, (6, 4, 1), generator=torch.Generator().manual_seed(0))  # of six steps


def read(model: Any, rows: list[list[int]], forward: bool, fixed: bool = False) -> Steps:
    """The steps after these prompts."""
    tokens, mask = pad_batch(rows, 0, "left")
    places = position_ids(mask)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask.long(), position_ids=places, use_cache=True)
    following = places[:, -1:] + 1
    if forward:
        return Forward(model, out.past_key_values, mask, following)
    if fixed:
        family = family_of(model)
        assert family is not None
        return FixedSteps(family, model, out.past_key_values, mask, following, len(TOKENS), None, None, compiled=False)
    return steps_of(model, out.past_key_values, mask, following, len(TOKENS), None, None)


def small(kind: str) -> Any:
    """The embedded model (grouped heads), with adapters; a Llama with biases, a head a key and scaled rotations; or a GPT-2."""
    torch.manual_seed(0)
    if kind == "gpt2":
        gpt2 = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
        return GPT2LMHeadModel(gpt2).eval()
    if kind == "biased":
        rotary = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=10_000.0,
                      original_max_position_embeddings=16)  # fmt: skip
        config = LlamaConfig(
            vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attention_bias=True,
            mlp_bias=True, rope_parameters=rotary, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        return model
    model = load_lm(STORIES).model
    if kind == "adapters":
        add_lora(model, LoRA(r=2), 1)
        for _, layer in lora_layers(model):
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return model


@pytest.mark.parametrize("rows", [ROWS, [ROWS[0]] * 4], ids=["padded", "even"])
@pytest.mark.parametrize("kind", ["stories", "adapters", "biased", "gpt2"])
@torch.no_grad()
def test_steps_are_the_models_own(kind: str, rows: list[list[int]]) -> None:
    model = small(kind)
    ours, own = read(model, rows, forward=False), read(model, rows, forward=True)
    assert isinstance(ours, CachedSteps)
    left = torch.arange(4)
    for i, token in enumerate(TOKENS):
        if i == 3:  # rows leave, and the rest change places
            left = torch.tensor([3, 0, 2])
            ours.select(left)
            own.select(left)
        found, expected = ours.step(token[left]), own.step(token[left])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert float(expected.std()) > 0.1


@pytest.mark.parametrize("rows", [ROWS, [ROWS[0]] * 4], ids=["padded", "even"])
@pytest.mark.parametrize("kind", ["stories", "gpt2"])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_steps_of_fixed_shape_are_the_models_own(
    kind: str, rows: list[list[int]], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's graph replays them: the places to come are hidden."""
    monkeypatch.setattr(decode, "wants_fused", lambda device: fused)
    model = small(kind)
    ours, own = read(model, rows, forward=False, fixed=True), read(model, rows, forward=True)
    for token in TOKENS:
        torch.testing.assert_close(ours.step(token), own.step(token), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_watched_block_is_seen() -> None:
    model = small("stories")
    tokens, mask = pad_batch(ROWS, 0, "left")
    places = position_ids(mask)
    out = model(input_ids=tokens, attention_mask=mask.long(), position_ids=places, use_cache=True)
    seen: list[Tensor] = []
    block = model.model.layers[2]
    ours = steps_of(model, out.past_key_values, mask, places[:, -1:] + 1, 1, block, seen.append)
    ours.step(TOKENS[0])
    own: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: own.append(given[0]))
    read(model, ROWS, forward=True).step(TOKENS[0])
    hook.remove()
    assert len(seen) == 1 and len(own) == 2  # the prompts' pass, and the step
    torch.testing.assert_close(seen[0], own[1], rtol=1e-4, atol=1e-4)


def test_other_models_take_their_own_forward() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, reorder_and_upcast_attn=True
    )  # fmt: skip
    assert isinstance(read(GPT2LMHeadModel(config).eval(), ROWS, forward=False), Forward)
    opt = OPTConfig(vocab_size=512, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2)
    assert isinstance(read(OPTForCausalLM(opt).eval(), ROWS, forward=False), Forward)
    changing = small("stories")
    changing.model.rotary_emb.rope_type = "dynamic"  # its table depends on the length so far
    assert isinstance(read(changing, ROWS, forward=False), Forward)


@pytest.mark.parametrize("kind", ["stories", "gpt2"])
@torch.no_grad()
def test_bf16(kind: str) -> None:
    """Under autocast the steps round as the model's forward does, to what bf16 holds."""
    model = small(kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, own = read(model, ROWS, forward=False), read(model, ROWS, forward=True)
        for token in TOKENS:
            found, expected = ours.step(token).float(), own.step(token).float()
            assert float((found - expected).abs().mean()) < 0.02 * float(expected.std())


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler, and there is no c++ here")
def test_compiled_steps_draw_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Ragged prompts, rows that end early, a watched block; another width of prompts needs no other function."""
    torch.manual_seed(0)
    counters.clear()
    config = LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, initializer_range=0.5)  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for rows in ([[5], [1, 2, 3, 4], [7, 8]], [[9] * 6, [1, 2, 3], [4] * 2]):
        tokens, mask = pad_batch(rows, 0)
        whole = sample_with(model, tokens, mask, 12, 1.0, 3)
        every: list[dict[str, Any]] = [{}, {"stop": whole.tokens[:, 4].tolist(), "pad_id": 39, "watch": model.model.layers[1]}]
        for options in every:
            plain, compiled = (sample_with(model, tokens, mask, 12, 1.0, 3, compiled=c, **options) for c in (False, True))
            assert torch.equal(compiled.tokens, plain.tokens)
            torch.testing.assert_close(compiled.logprobs, plain.logprobs, rtol=1e-5, atol=1e-5)
            if options:
                real = torch.cat([mask, until(plain.tokens, options["stop"], 39).mask], 1)
                torch.testing.assert_close(compiled.inputs[real], plain.inputs[real], rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().out.count("sampler: first step of 3 rows of 32 places: ") == 2
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.parametrize("kind", ["stories", "adapters", "biased"])
@torch.no_grad()
def test_products_put_together_are_the_layers_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, x = small(kind).model.layers[0].self_attn, torch.randn(4, 1, 32 if kind == "biased" else 64)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    expected = [layer(x) for layer in layers]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    called: list[Any] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: called.append(layer))
    for found, of in zip(decode._products(layers, x), expected, strict=True):
        torch.testing.assert_close(found, of, rtol=1e-5, atol=1e-5)
    assert called == (list(layers) if kind == "adapters" else [])


@torch.no_grad()
def test_the_compiled_function_uncompiled_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it runs where torch.compile gives up: the cache is in bf16, and the rotary table makes float32 of the keys."""
    model = small("stories")
    tokens, mask = pad_batch(ROWS, 0)
    monkeypatch.setattr(decode, "compile_once", lambda step: step)
    with torch.autocast("cpu", torch.bfloat16):
        plain, found = (sample_with(model, tokens, mask, 6, 1.0, 3, compiled=c) for c in (False, True))
    assert torch.equal(found.tokens, plain.tokens)
    torch.testing.assert_close(found.logprobs, plain.logprobs, rtol=0, atol=0.05)
