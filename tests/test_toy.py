"""PPO against the optimum where it is known: toys whose every response can be enumerated.

Over responses y, with ρ the reference, r the reward and β fixed, the objective E_π r − β KL(π, ρ) is largest at
π*(y) ∝ ρ(y) exp(r(y) / β), where it is β log Z, Z = Σ ρ(y) exp(r(y) / β); at π = ρ it is E_ρ r. As β varies, the points
(KL(π*, ρ), E_π* r) are the frontier: no policy has more reward at that KL.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import lightning_rlhf.ppo as ppo
from lightning_rlhf.data import PromptBatch, PromptData
from lightning_rlhf.generation import Sampled
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.tasks import Task

LETTERS, TEMPERATURE, PENALTY = "abcde", 0.7, -1.0
TASK = Task(name="toy", query_length=1, start_text=None, end_text=None, response_length=2, truncate_text=None,
            truncate_after=0, penalty=PENALTY, temperature=TEMPERATURE)  # fmt: skip
# mode fixed: all 25 pairs. Mode eos, where e ends a response: "e", "ae" … "de", and the 16 that do not stop
RESPONSES = {
    "fixed": ["".join(pair) for pair in itertools.product(LETTERS, repeat=2)],
    "eos": ["e", *(x + y for x, y in itertools.product("abcd", LETTERS))],
}
# tables without structure: the best response is not made of the best letters
TABLE = dict(zip(RESPONSES["fixed"], torch.randn(25, generator=torch.Generator().manual_seed(7)).tolist(), strict=True))
TABLE |= {"": -0.5, "a": 0.3, "b": 1.5, "c": -1.2, "d": 0.9}  # mode eos: the text before e


def toy(folder: Path, eos: bool = False) -> str:
    """A random GPT-2 of five letters; `eos`: the last one is EOS, and the pad too."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"eos_token": "e", "pad_token": "e"} if eos else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    # positions of its own: without them the states after "a" and after "aa" are one
    config = GPT2Config(vocab_size=5, n_embd=32, n_layer=1, n_head=2, n_positions=8, bos_token_id=None, eos_token_id=None,
                        tie_word_embeddings=False, initializer_range=0.1)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def log_probabilities(model: Any, mode: str) -> Tensor:
    """log π(y) of all responses to "a", by the chain rule from plain forwards."""
    found = []
    for y in RESPONSES[mode]:
        row = torch.tensor([[0, *(LETTERS.index(c) for c in y)]])
        logp = torch.log_softmax(model(input_ids=row).logits[0].double() / TEMPERATURE, -1)
        found.append(sum(logp[t, row[0, t + 1]] for t in range(len(y))))
    return torch.stack(found)  # type: ignore[arg-type]


def reward_of(y: str, mode: str) -> float:
    if mode == "fixed":
        return TABLE[y]
    return TABLE[y[:-1]] if y.endswith("e") else PENALTY


@dataclass(frozen=True)
class Outcome:
    """How near a trained policy is to the optimum."""

    share: float  # (J(π) − E_ρ r) / (β log Z − E_ρ r)
    gap: float  # reward that the frontier has more at the policy's KL, as a share of what it has over E_ρ r
    kl: float
    reward: float
    logged_kl: float
    logged_total: float


def tilted(log_rho: Tensor, reward: Tensor, beta: float) -> tuple[float, float]:
    """(KL, mean reward) of π*."""
    log_pi = torch.log_softmax(log_rho + reward / beta, 0)
    return (log_pi.exp() * (log_pi - log_rho)).sum().item(), (log_pi.exp() * reward).sum().item()


def frontier(log_rho: Tensor, reward: Tensor, kl: float) -> float:
    """The most reward at that KL, by bisection over β."""
    low, high = 1e-3, 1e3
    for _ in range(80):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if tilted(log_rho, reward, middle)[0] > kl else (low, middle)
    return tilted(log_rho, reward, low)[1]


def train(folder: Path, beta: float, mode: str = "fixed", lr: float = 1e-2, iterations: int = 28, **options: Any) -> Outcome:
    """A short run, measured exactly."""
    (folder / "reward.py").write_text(
        f"TABLE = {TABLE!r}\n\n\ndef score(prompts, completions, **columns):\n"
        "    return [TABLE.get(c, 0.0) for c in completions]\n"
    )
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a"}) + "\n", encoding="utf-8")
    name = toy(folder / "toy", eos=mode == "eos")
    given: dict[str, Any] = dict(kl_coef=beta, kl_target=None, whiten_rewards=False, allow_negative_kl=True, mode=mode)
    given["optimizer"] = lambda p: AdamTF(p, lr=lr)
    module = PPOModule(name, f"{folder / 'reward.py'}:score", str(folder / "policy"), TASK, **{**given, **options})
    data = PromptData(str(prompts), name, TASK, batch_size=512, total_episodes=512 * iterations)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    reward = torch.tensor([reward_of(y, mode) for y in RESPONSES[mode]], dtype=torch.float64)
    log_rho, log_pi = log_probabilities(module.reference, mode), log_probabilities(module.policy, mode)
    assert abs(log_rho.exp().sum().item() - 1) < 1e-9
    start = (log_rho.exp() * reward).sum().item()
    best = beta * torch.logsumexp(log_rho + reward / beta, 0).item()
    kl, mean = (log_pi.exp() * (log_pi - log_rho)).sum().item(), (log_pi.exp() * reward).sum().item()
    most = frontier(log_rho, reward, kl)
    logged = trainer.callback_metrics
    outcome = Outcome(
        (mean - beta * kl - start) / (best - start), (most - mean) / (most - start), kl, mean,
        float(logged["objective/kl"]), float(logged["objective/score_total"]),
    )  # fmt: skip
    print(f"β {beta}, {mode}, {options}: E_ρ r {start:.3f}, βlogZ {best:.3f}, {outcome}")
    return outcome


DOMINANT: dict[str, Any] = dict(beta=2.0, lr=5e-3, iterations=42)  # the KL term: π* is 0.1 nats from ρ
EOS: dict[str, Any] = dict(beta=0.5, mode="eos")


@pytest.mark.parametrize(
    "options",
    [
        dict(beta=1.0),
        DOMINANT,
        EOS,
        dict(**EOS, kl_estimator="full"),
    ],
    ids=lambda o: ",".join(f"{k}={o[k]}" for k in ("beta", "mode", "kl_estimator") if k in o),
)
def test_ppo_reaches_the_optimum(tmp_path: Path, options: dict[str, Any]) -> None:
    found = train(tmp_path, **options)
    assert 0.97 <= found.share <= 1.0
    assert -1e-6 <= found.gap <= 0.03
    # the logged figures are estimates of the same two numbers, from before the last update
    assert abs(found.logged_kl - found.kl) < 0.25
    assert abs(found.logged_total - (found.reward - options["beta"] * found.kl)) < 0.25


def rewards_with(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Tensor]) -> None:
    plain = ppo.penalised
    monkeypatch.setattr(ppo, "penalised", lambda scores, kl, *a, **k: change(plain, scores, kl, *a, **k))


def on_the_first_token(plain: Callable[..., Tensor], scores: Tensor, kl: Tensor, *a: Any, **k: Any) -> Tensor:
    rewards = plain(torch.zeros_like(scores), kl, *a, **k)
    rewards[:, 0] += scores
    return rewards


def shifted_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ppo.until

    def shifted(*a: Any) -> Sampled:
        found = plain(*a)
        return found._replace(mask=torch.cat([torch.zeros_like(found.mask[:, :1]), found.mask[:, :-1]], 1))

    monkeypatch.setattr(ppo, "until", shifted)


def without_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PPOModule.reference_logprobs
    monkeypatch.setattr(PPOModule, "reference_logprobs", lambda self, hidden, *a: plain(self, hidden * TEMPERATURE, *a))


MUTATIONS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any]]] = {
    "the reward's sign": (lambda m: rewards_with(m, lambda f, scores, *a, **k: f(-scores, *a, **k)), dict(beta=1.0)),
    "the KL's sign": (lambda m: rewards_with(m, lambda f, scores, kl, *a, **k: f(scores, -kl, *a, **k)), dict(beta=1.0)),
    "the score on a wrong token": (lambda m: rewards_with(m, on_the_first_token), dict(beta=1.0)),
    "a mask shifted by one": (shifted_mask, EOS),
    "a temperature left out of the reference": (without_temperature, DOMINANT),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mistake_misses_the_optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    """The settings are those of runs above that reach it."""
    mutate, options = MUTATIONS[mutation]
    mutate(monkeypatch)
    found = train(tmp_path, **options)
    assert found.share < 0.9


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
