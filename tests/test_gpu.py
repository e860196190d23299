"""On a GPU: the sampler's graph, its memory, PPO under bf16-mixed, compiled blocks. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from tiny import PROMPTS, REWARD, STORIES, TASK, Rows, write
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_rlhf import decode
from lightning_rlhf.data import PromptData
from lightning_rlhf.decode import FixedSteps
from lightning_rlhf.generation import sample_with
from lightning_rlhf.models import load_lm, run_context
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.tokens import pad_batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
ROWS = [[1, 300, 301, 302], [1, 290], [1, 310, 311, 312, 313, 314, 315], [1]]


def small(kind: str) -> Any:
    """A model on the GPU."""
    torch.manual_seed(0)
    if kind == "stories":
        return load_lm(STORIES).model.cuda()
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval().cuda()


def prompts(rows: list[list[int]] = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask."""
    tokens, mask = pad_batch(rows, 0)
    return tokens.cuda(), mask.cuda()


@pytest.mark.parametrize("options", [{}, {"stop": (300, 13, 5, 426, 318), "pad_id": 7}, {"compiled": True}])
@pytest.mark.parametrize("kind", ["stories", "gpt2"])
@pytest.mark.parametrize("rows", [ROWS, [ROWS[2]] * 4])
def test_the_graph_draws_as_the_models_forward(
    kind: str, options: dict[str, Any], rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, mask) = small(kind), prompts(rows)
    replays = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    found = sample_with(model, tokens, mask, 20, 1.0, 3, **options)
    assert replays
    monkeypatch.setattr(decode, "family_of", lambda _: None)
    own = sample_with(model, tokens, mask, 20, 1.0, 3, **options)
    assert torch.equal(found.tokens, own.tokens)
    torch.testing.assert_close(found.logprobs, own.logprobs, rtol=1e-4, atol=1e-4)


def test_the_graph_under_autocast_and_after_an_update() -> None:
    """Weights that have changed are seen, and no graph's memory is left behind."""
    model, (tokens, mask) = small("stories"), prompts(ROWS * 16)
    with run_context("bf16", model):
        first = sample_with(model, tokens, mask, 20, 1.0, 3)
        reserved = []
        for _ in range(5):
            again = sample_with(model, tokens, mask, 20, 1.0, 3)
            assert torch.equal(first.tokens, again.tokens)
            reserved.append(torch.cuda.memory_reserved())
        assert reserved[0] == reserved[-1]
        for p in model.parameters():
            p.data.mul_(0.5)
        assert not torch.equal(sample_with(model, tokens, mask, 20, 1.0, 3).tokens, first.tokens)


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "32-true"}, {"mode": "eos", "stop_token": " the"}, {"mode": "truncated", "kl_loss": 1.0},
     {"compile_blocks": True}, {"trainable_layers": 2}, {"value": "separate", "gradient_checkpointing": True}],
)  # fmt: skip
def test_ppo(tmp_path: Path, options: dict[str, Any]) -> None:
    """The first ratio is 1 and the first KL 0, under bf16-mixed too; the sampler's graph is in use; weights move."""
    precision = options.pop("precision", "bf16-mixed")
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    module = PPOModule(
        policy=STORIES, reward=f"{tmp_path / 'rewards.py'}:spaces", output=str(tmp_path / "policy"), task=TASK,
        optimizer=lambda p: AdamTF(p, lr=1e-3), num_ppo_epochs=2, micro_batch_size=4, allow_unguarded=True, **options,
    )  # fmt: skip
    data = PromptData(write(tmp_path / "prompts.jsonl", [{"prompt": p} for p in PROMPTS]), STORIES, TASK, 8, 24)
    rows = Rows()
    trainer = L.Trainer(
        max_epochs=1, accelerator="gpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[rows],
    )  # fmt: skip
    FixedSteps.last.clear()
    trainer.fit(module, data)
    assert FixedSteps.last
    assert len(rows.rows) == 3
    assert rows.rows[0]["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert all(r["ppo/ratio_error"] < (1e-3 if options.get("compile_blocks") else 1e-6) for r in rows.rows)
    assert all(r["objective/sampler_error"] < (1e-3 if precision == "32-true" else 0.5) for r in rows.rows)
    assert rows.rows[2]["objective/kl"] != 0
    assert (tmp_path / "policy/model.safetensors").is_file()
