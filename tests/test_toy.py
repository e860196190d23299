"""PPO against the optimum where it is known: all 25 responses of a toy are enumerated.

Over responses y, with ρ the reference, r the reward and β fixed, the objective E_π r − β KL(π, ρ) is largest at
π*(y) ∝ ρ(y) exp(r(y) / β), where it is β log Z, Z = Σ ρ(y) exp(r(y) / β); at π = ρ it is E_ρ r.
"""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lightning_rlhf.data import PromptBatch, PromptData
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.tasks import Task

LETTERS, BETA, TEMPERATURE = "abcde", 0.5, 0.8
RESPONSES = ["".join(pair) for pair in itertools.product(LETTERS, repeat=2)]
# a table without structure: the best response is not made of the best letters
TABLE = dict(zip(RESPONSES, torch.randn(25, generator=torch.Generator().manual_seed(7)).tolist(), strict=True))
TASK = Task(name="toy", query_length=1, start_text=None, end_text=None, response_length=2, truncate_text=None,
            truncate_after=0, temperature=TEMPERATURE)  # fmt: skip


def toy(folder: Path) -> str:
    """A random Llama of five letters."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=5, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         max_position_embeddings=8, bos_token_id=None, eos_token_id=None, pad_token_id=None,
                         tie_word_embeddings=False, initializer_range=0.2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def log_probabilities(model: Any) -> Tensor:
    """log π(y) of the 25 responses to "a", by the chain rule from plain forwards."""
    rows = torch.tensor([[0, *(LETTERS.index(c) for c in y)] for y in RESPONSES])
    logp = torch.log_softmax(model(input_ids=rows).logits.double() / TEMPERATURE, -1)
    each = torch.arange(25)
    return logp[each, 0, rows[:, 1]] + logp[each, 1, rows[:, 2]]


def test_ppo_reaches_the_optimum(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        f"TABLE = {TABLE!r}\n\n\ndef score(prompts, completions, **columns):\n    return [TABLE[c] for c in completions]\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a"}) + "\n", encoding="utf-8")
    name = toy(tmp_path / "toy")
    module = PPOModule(
        name, f"{tmp_path / 'reward.py'}:score", str(tmp_path / "policy"), TASK, optimizer=lambda p: AdamTF(p, lr=1e-2),
        kl_coef=BETA, kl_target=None, whiten_rewards=False, num_ppo_epochs=4,
    )  # fmt: skip
    data = PromptData(str(prompts), name, TASK, batch_size=256, total_episodes=256 * 90)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)

    reward = torch.tensor([TABLE[y] for y in RESPONSES], dtype=torch.float64)
    log_rho, log_pi = log_probabilities(module.reference), log_probabilities(module.policy)
    assert abs(log_rho.exp().sum().item() - 1) < 1e-9
    start = (log_rho.exp() * reward).sum().item()
    best = BETA * torch.logsumexp(log_rho + reward / BETA, 0).item()
    reached = (log_pi.exp() * (reward - BETA * (log_pi - log_rho))).sum().item()
    assert best - start > 0.2
    share = (reached - start) / (best - start)
    print(f"E_ρ r = {start:.4f}, J(π) = {reached:.4f}, β log Z = {best:.4f}: {share:.1%} of what there is to gain")
    assert 0.97 <= share <= 1.0
    # the logged figures are estimates of the same two numbers
    logged = trainer.callback_metrics
    kl = (log_pi.exp() * (log_pi - log_rho)).sum().item()
    assert abs(float(logged["objective/kl"]) - kl) < 0.25
    assert abs(float(logged["objective/score_total"]) - reached) < 0.25


def test_what_is_cut_off_is_not_scored(tmp_path: Path) -> None:
    """Here the id that fills the cut-off places is a letter: it must not be read."""
    (tmp_path / "reward.py").write_text(
        "def score(prompts, completions, **columns):\n    return [10.0 * len(c) + len(p) for p, c in zip(prompts, completions)]\n"
    )
    task = replace(TASK, truncate_text="c", penalty=-9.0)
    module = PPOModule(toy(tmp_path / "toy"), f"{tmp_path / 'reward.py'}:score", str(tmp_path / "policy"), task)
    module.configure_model()
    tokens = torch.zeros((4, 1), dtype=torch.long)
    batch = PromptBatch(tokens, tokens == 0, [[0]] * 4, ["a"] * 4, {})
    responses = torch.tensor([[2, 1], [1, 2], [1, 0], [2, 2]])  # cb, bc, ba, cc
    scores, found = module.score(batch, responses, torch.ones((4, 3), dtype=torch.bool), None)
    assert scores.tolist() == [11.0, 21.0, -9.0, 11.0]  # c, bc, none, c
    assert found.tolist() == [True, True, False, True]
