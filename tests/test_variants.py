"""The variants of PPO in process, on the embedded stories260k; 2019's own form is in test_train.py."""

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as L
import torch
from pytorch_lightning.loggers import CSVLogger
from tiny import PROMPTS
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_rlhf import blocks, decode
from lightning_rlhf import logprobs as heads
from lightning_rlhf.alarms import Thresholds
from lightning_rlhf.blocks import blocks_of
from lightning_rlhf.cli import main
from lightning_rlhf.data import PromptBatch, PromptData
from lightning_rlhf.models import load_lm, load_tokenizer
from lightning_rlhf.objective import gae, penalised
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.ppo import PPOModule, Rollout
from lightning_rlhf.ppo_networks import Outputs
from lightning_rlhf.scalar import ScalarModel, load_scalar, save_reward
from lightning_rlhf.scoring import LearnedReward, WeightedReward
from lightning_rlhf.stage import StageCheckpoint
from lightning_rlhf.tasks import Task, UsageError
from lightning_rlhf.trunks import first_blocks
from lightning_rlhf.validation import beats

FIXED = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=" a", truncate_after=1)
EOS = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=None, truncate_after=0, penalty=-1.0)
REWARD = '''
def length(prompts, completions, **columns):
    return [c.count(" ") - 0.1 * len(c) + 0.01 * len(p) for p, c in zip(prompts, completions, strict=True)]


def minus(prompts, completions, **columns):
    return [-float(len(c)) for c in completions]


def topic(prompts, completions, topic, **columns):
    return [float(t) for t in topic]
'''


class Rows(L.Callback):
    """The figures of each iteration."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class Spy:
    """Keeps the rollouts of a run."""

    def __init__(self) -> None:
        self.kept: list[tuple[PromptBatch, Rollout]] = []

    def __call__(self, module: PPOModule) -> None:
        plain = module.rollout

        def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
            found = plain(batch, seed)
            if seed is None:
                self.kept.append((batch, found))
            return found

        module.rollout = rollout  # type: ignore[method-assign]


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def made(folder: Path, iterations: int = 2, val: int = 0, batch_size: int = 8, **options: Any) -> tuple[PPOModule, PromptData]:
    """A module and its data, not started."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    records = [{"prompt": p, "reference": p[::-1], "topic": i} for i, p in enumerate(PROMPTS)]
    given: dict[str, Any] = dict(policy="stories260k", reward=f"{folder / 'rewards.py'}:length", num_ppo_epochs=2)
    given |= dict(optimizer=lambda p: AdamTF(p, lr=1e-3), task=EOS if options.get("mode") == "eos" else FIXED)
    given |= dict(output=str(folder / "policy"), **options)
    held_out = lines(folder / "val.jsonl", records[:val]) if val else None
    data = PromptData(
        lines(folder / "prompts.jsonl", records), "stories260k", given["task"], batch_size, iterations * batch_size, val=held_out
    )
    return PPOModule(**given), data


def trainer_of(*callbacks: L.Callback, every: int | float = 1.0) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, precision="32-true", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks),
        val_check_interval=every,
    )  # fmt: skip


def run(
    folder: Path, before: Callable[[PPOModule], None] | None = None, every: int | float = 1.0, **options: Any
) -> tuple[PPOModule, list[dict[str, float]]]:
    """A run; `before` is handed the module before it starts."""
    module, data = made(folder, **options)
    assert module.check(data, trainer_of(), False) == []
    if before:
        before(module)
    rows = Rows()
    trainer_of(rows, every=every).fit(module, data)
    return module, rows.rows


# ------------------------------------------------------------------------------------------------------------ mode eos

STOP = " the"  # a frequent token: some responses stop early, some late, some never


def test_eos_mode_by_hand(tmp_path: Path) -> None:
    """Masks, scores, and the figures over real tokens alone, with a pad that is EOS."""
    spy = Spy()
    options: dict[str, Any] = dict(mode="eos", stop_token=STOP, missing_eos_penalty=-3.0, kl_target=None, kl_coef=0.2)

    def before(module: PPOModule) -> None:
        spy(module)
        module.configure_model()
        module.pad_id = module.tokenizer.eos_token_id

    module, rows = run(tmp_path, before, iterations=2, batch_size=32, **options)
    stop = module.stop[1]
    lengths: set[int] = set()
    for (batch, rollout), row in zip(spy.kept, rows, strict=True):
        for text, tokens, real, score, found in zip(
            batch.texts, rollout.tokens[:, -6:].tolist(), rollout.real.tolist(), rollout.scores.tolist(), rollout.found.tolist(),
            strict=True,
        ):  # fmt: skip
            ends = [i for i, t in enumerate(tokens) if t in (2, stop)]
            n = ends[0] + 1 if ends else 6
            lengths.add(n)
            assert real == [True] * n + [False] * (6 - n)
            assert tokens[n:] == [2] * (6 - n)
            assert found == bool(ends)
            response = module.tokenizer.decode([*module.tokenizer(text).input_ids, *tokens[:n]], skip_special_tokens=True)
            completion = response[len(text) :]
            expected = completion.count(" ") - 0.1 * len(completion) + 0.01 * len(text) if ends else -3.0
            assert score == pytest.approx(expected, abs=1e-5)
        # means over real tokens, response by response
        real = rollout.real
        kl = torch.where(real, rollout.logprobs - rollout.ref_logprobs, 0.0)
        assert row["objective/kl"] == pytest.approx(kl.sum(1).mean().item(), abs=1e-5)
        assert row["objective/entropy"] == pytest.approx(-rollout.logprobs[real].sum().item() / 32, rel=1e-5)
        assert row["objective/length"] == pytest.approx(real.sum().item() / 32)
        assert row["objective/found"] == pytest.approx(rollout.found.float().mean().item())
        assert row["ppo/val/mean"] == pytest.approx(rollout.values[real].mean().item(), abs=1e-6)
        assert row["ppo/ratio_error"] < 1e-5
    assert 6 in lengths and len(lengths) > 2 and rows[1]["objective/kl"] != 0
    # the scorer's log-probs of a response alone, unpadded
    _, rollout = spy.kept[0]
    model = load_lm("stories260k").model
    for tokens, mask, real, logprobs in zip(rollout.tokens, rollout.mask, rollout.real, rollout.logprobs, strict=True):
        alone, n = tokens[mask], int(real.sum())
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=alone[None]).logits[0, :-1] / 0.7, -1)
        torch.testing.assert_close(logprobs[real], logp[torch.arange(len(alone) - 1), alone[1:]][-n:], rtol=1e-4, atol=1e-4)


def weights(module: PPOModule) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_what_stands_after_the_end_changes_nothing(tmp_path: Path, value: str) -> None:
    """Garbage in the rollout's masked places: tokens, log-probs and values."""
    moved = []
    for name in ("clean", "soiled"):

        def before(module: PPOModule, soil: bool = name == "soiled") -> None:
            plain = module.rollout

            def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
                found = plain(batch, seed)
                if soil:
                    for tensor in (found.logprobs, found.values, found.ref_logprobs):
                        tensor[~found.real] = 1e6
                    found.tokens[:, -6:][~found.real] = 77
                return found

            module.rollout = rollout  # type: ignore[method-assign]

        module, _ = run(tmp_path / name, before, mode="eos", stop_token=STOP, value=value, micro_batch_size=2)
        moved.append(weights(module))
    assert torch.equal(*moved)


@pytest.mark.parametrize("num_mini_batches", [1, 2])
def test_micro_batches_of_ragged_rows_change_nothing(tmp_path: Path, num_mini_batches: int) -> None:
    """A micro-batch counts by its tokens, not by its rows."""
    options: dict[str, Any] = dict(mode="eos", stop_token=STOP, num_mini_batches=num_mini_batches, num_ppo_epochs=1, iterations=1)
    options |= dict(batch_size=16, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2))
    whole, rows = run(tmp_path / "whole", **options)
    parts, same = run(tmp_path / "parts", micro_batch_size=1, **options)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=3e-7)
    for name in ("ppo/loss/policy", "ppo/loss/value", "ppo/policy/entropy", "ppo/val/error"):
        assert rows[0][name] == pytest.approx(same[0][name], abs=1e-5), name


def test_a_special_stop_token_is_not_part_of_the_text(tmp_path: Path) -> None:
    """EOS and `<s>` end a response; the reward reads what stands before them, as token ids and as text alike."""
    trunk = load_lm("stories260k")
    torch.manual_seed(0)
    save_reward(tmp_path / "reward", ScalarModel(trunk.model.base_model, 64, 0.1), trunk.tokenizer, {"task": "toy"})
    module, _ = made(tmp_path / "run", mode="eos", stop_token="<s>", reward=str(tmp_path / "reward"))
    module.configure_model()
    assert module.stop == (2, 1)
    responses = torch.tensor([[300, 301, 1, 2, 2, 2], [300, 301, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2], [300, 301, 302, 303, 304, 305]])
    real = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    batch = PromptBatch(torch.full((4, 2), 290), torch.ones((4, 2), dtype=torch.bool), [[1, 290]] * 4, ["x"] * 4, {})
    scores, found = module.score(batch, responses, torch.cat([batch.mask, real], 1), None)
    reward = LearnedReward(str(tmp_path / "reward"))
    expected = reward.score_tokens([[1, 290, 300, 301], [1, 290]]).tolist()
    assert found.tolist() == [True, True, True, False]
    assert scores.tolist() == pytest.approx([expected[0], expected[0], expected[1], -1.0], abs=1e-5)


# ------------------------------------------------------------------------------------------------------- value network


@pytest.mark.parametrize("layers", [None, 2])
def test_a_separate_value_network(tmp_path: Path, layers: int | None) -> None:
    module, rows = run(tmp_path, value="separate", trainable_layers=layers, iterations=3)
    assert all(r["ppo/ratio_error"] < 1e-5 for r in rows)
    assert rows[0]["ppo/val/mean"] == 0.0 != rows[1]["ppo/val/mean"]
    start = dict(load_lm("stories260k").model.base_model.named_parameters())
    moved = {n for n, p in module.value_trunk.named_parameters() if not torch.equal(p, start[n])}
    trained = {n for n, p in module.value_trunk.named_parameters() if p.requires_grad}
    assert moved and moved <= trained
    assert (trained == set(start)) == (layers is None)
    assert (module.value_split is not None) == (layers is not None)
    # the policy's gradient does not reach it, nor its own the policy: without the value loss it stays
    still, _ = run(tmp_path / "still", value="separate", vf_coef=0.0)
    assert all(torch.equal(p, start[n]) for n, p in still.value_trunk.named_parameters())
    # it is in the checkpoint's keys, and the export loads and gives the same values
    assert any(k.startswith("value_trunk.") for k in module.trained_keys())
    scalar, _, info = load_scalar(tmp_path / "policy" / "value")
    assert info["role"] == "value"
    tokens = torch.tensor([[1, 300, 301, 302, 303, 304, 305, 306]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        values = module.policy_outputs(tokens, mask, None)[1]
        ours = [scalar(tokens[:, : n + 1], mask[:, : n + 1]).item() for n in range(1, 7)]
    assert values[0].tolist() == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("blocks", [5, 2])
def test_a_value_network_starts_from_a_reward_model(tmp_path: Path, blocks: int) -> None:
    lm = load_lm("stories260k")
    torch.manual_seed(0)
    scalar = ScalarModel(first_blocks(lm.model.base_model, blocks), 64, 0.1)
    scalar.gain.data.fill_(-2.0)
    scalar.bias.data.fill_(0.7)
    save_reward(tmp_path / "reward", scalar, lm.tokenizer, {"task": "toy"})
    module, _ = made(tmp_path / "run", value="separate", value_init=str(tmp_path / "reward"))
    module.configure_model()
    tokens = torch.tensor([[1, 300, 301, 302, 303, 304, 305, 306]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        values = module.policy_outputs(tokens, mask, None)[1]
        rewards = [scalar(tokens[:, : n + 1], mask[:, : n + 1]).item() for n in range(1, 7)]
    assert values[0].tolist() == pytest.approx(rewards, abs=1e-5)
    # it may be smaller than the policy, of which the top blocks alone train: then it trains whole
    options = dict(value="separate", value_init=str(tmp_path / "reward"), reward=str(tmp_path / "reward"), trainable_layers=3)
    trained, rows = run(tmp_path / "trained", iterations=2, allow_unguarded=True, **options)
    assert all(r["ppo/ratio_error"] < 1e-5 for r in rows)
    assert (trained.value_split is None) == (blocks == 2)
    before, after = scalar.trunk.state_dict(), trained.value_trunk.state_dict()
    assert torch.equal(before["layers.0.mlp.up_proj.weight"], after["layers.0.mlp.up_proj.weight"]) == (blocks == 5)
    assert len(blocks_of(load_scalar(tmp_path / "trained/policy/value")[0].trunk)) == blocks


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("options", [{}, {"mode": "eos", "stop_token": " the"}, {"trainable_layers": 2}])
def test_the_compiled_sampler_is_asked_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The function itself, not compiled here (tests/test_decode.py does)."""
    _, plain = run(tmp_path / "plain", iterations=2, **options)
    steps = []
    monkeypatch.setattr(decode, "compile_once", lambda step: lambda *given: steps.append(1) or step(*given))
    _, found = run(tmp_path / "compiled", iterations=2, compile_sampler=True, **options)
    assert steps
    timed = ("elapsed", "tok/s")
    for one, other in zip(plain, found, strict=True):
        assert {k for k in one if one[k] != pytest.approx(other[k], rel=1e-3, abs=1e-4) and not k.startswith(timed)} == set()


# -------------------------------------------------------------------------------------------------- KL, steps, rewards


@pytest.mark.parametrize("estimator", ["k2", "k3", "full"])
def test_other_estimators_are_logged_and_penalised(tmp_path: Path, estimator: str) -> None:
    spy = Spy()
    module, rows = run(tmp_path, spy, iterations=3, kl_estimator=estimator, kl_coef=0.5, kl_target=None)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    for (_, rollout), row in zip(spy.kept, rows, strict=True):
        d = (rollout.logprobs - rollout.ref_logprobs).double()
        assert row["objective/kl_k1"] == pytest.approx(d.sum(1).mean().item(), abs=1e-5)
        expected = {"k2": d**2 / 2, "k3": (-d).exp() - 1 + d, "full": rollout.full_kl}[estimator]
        assert row["objective/kl"] == pytest.approx(expected.sum(1).mean().item(), abs=1e-4)  # type: ignore[union-attr]
        assert row["objective/kl"] >= -1e-5
    assert rows[2]["objective/kl"] > 1e-4
    # the exact KL, from logits of plain forwards
    _, rollout = spy.kept[0]
    if estimator == "full":
        assert rollout.full_kl is not None and rollout.full_kl.abs().max() < 1e-5
    assert module.kl.coef == 0.5


def test_a_token_s_own_term_is_k1(tmp_path: Path) -> None:
    """One token a response: the exact KL is the same for every token, so that without its own term nothing would hold π."""
    module, _ = made(tmp_path, kl_estimator="full", whiten_rewards=False)
    module.trainer = trainer_of()  # type: ignore[assignment]
    k1, full = torch.tensor([[1.0], [-1.0], [0.5]]), torch.full((3, 1), 0.2)
    real, zero = torch.ones((3, 1), dtype=torch.bool), torch.zeros((3, 1))
    blind, returns = module.advantages(-0.5 * full, zero, real)
    assert blind.abs().max() < 1e-3
    own, same = module.advantages(-0.5 * full, zero, real, 0.5 * (full - k1))
    expected = -0.5 * k1
    assert torch.equal(returns, same)  # the value function learns the exact one
    torch.testing.assert_close(own, (expected - expected.mean()) / expected.std(correction=0), rtol=1e-5, atol=1e-5)
    module.whiten_rewards = True  # the term is scaled as the rewards are
    rewards = torch.tensor([[3.0], [1.0], [2.0]])
    scale = 1 / rewards.std(correction=0)
    own, _ = module.advantages(rewards, zero, real, 0.5 * (full - k1))
    expected = (rewards + 0.5 * (full - k1)) * scale
    torch.testing.assert_close(own, (expected - expected.mean()) / expected.std(correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"mode": "eos", "micro_batch_size": 2}, {"trainable_layers": 2}])
def test_the_loss_has_the_exact_kl_where_it_is_asked_for(tmp_path: Path, options: dict[str, Any]) -> None:
    spy = Spy()
    options = dict(iterations=4, kl_coef=0.5, kl_target=None, kl_estimator="full", num_ppo_epochs=1, **options)
    _, rows = run(tmp_path / "with", spy, kl_loss=3.0, **options)
    for (_, rollout), row in zip(spy.kept, rows, strict=True):
        assert rollout.full_kl is not None
        expected = 3.0 * 0.5 * rollout.full_kl[rollout.real].mean().item()
        found = row["ppo/loss/total"] - row["ppo/loss/policy"] - 0.1 * row["ppo/loss/value"]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    _, without = run(tmp_path / "without", **options)
    assert 1e-4 < rows[-1]["objective/kl"] < 0.7 * without[-1]["objective/kl"]
    assert all(row["ppo/ratio_error"] < 1e-5 for row in rows)


@pytest.mark.parametrize("mode", ["truncated", "fixed"])
def test_nothing_after_the_truncate_token_is_learned_from(tmp_path: Path, mode: str) -> None:
    """Whatever was sampled there: the update and the figures are the same to the bit; in mode `fixed` they are not."""
    ends = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=" a", truncate_after=1)
    found = []
    for filler in (5, 300):
        def other_tail(module: PPOModule, filler: int = filler) -> None:
            import lightning_rlhf.ppo as ppo

            plain = ppo.sample_with

            def sampled(*given: Any, **more: Any) -> Any:
                drawn = plain(*given, **more)
                tokens = drawn.tokens.clone()
                tokens[:, 2] = module.resolved.truncate  # what counts ends here
                tokens[::2, 3:] = filler
                return drawn._replace(tokens=tokens)

            monkey.setattr(ppo, "sample_with", sampled)

        with pytest.MonkeyPatch.context() as monkey:
            options: dict[str, Any] = dict(iterations=2, mode=mode, task=ends, kl_coef=0.5, kl_loss=1.0)
            module, rows = run(tmp_path / str(filler), other_tail, **options)
        found.append((weights(module), [{k: v for k, v in r.items() if "elapsed" not in k and "tok/s" not in k} for r in rows]))
    assert torch.equal(found[0][0], found[1][0]) == (mode == "truncated")
    assert (found[0][1] == found[1][1]) == (mode == "truncated")


def test_sequence_level_differs_from_token_level(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(iterations=3, kl_coef=0.5, kl_target=None)
    token, _ = run(tmp_path / "token", **options)
    sequence, rows = run(tmp_path / "sequence", kl_level="sequence", **options)
    assert not torch.equal(weights(token), weights(sequence))
    assert rows[0]["objective/kl"] == 0.0


def test_inner_epochs_end_at_the_target_kl(tmp_path: Path) -> None:
    _, rows = run(tmp_path / "free", num_ppo_epochs=4, num_mini_batches=2)
    assert [r["ppo/epochs"] for r in rows] == [4, 4]
    assert [r["ppo/steps"] for r in rows] == [8, 8]
    _, rows = run(tmp_path / "tight", num_ppo_epochs=4, num_mini_batches=2, target_kl=1e-9)
    assert [r["ppo/epochs"] for r in rows] == [1, 1]  # its second minibatch already sees another policy
    assert [r["ppo/steps"] for r in rows] == [2, 2]
    _, rows = run(tmp_path / "loose", num_ppo_epochs=4, target_kl=1e9)
    assert [r["ppo/epochs"] for r in rows] == [4, 4]


def test_the_other_ranks_decide_too(tmp_path: Path) -> None:
    """approxkl is the mean over ranks: another rank's large one ends this rank's epochs."""

    def before(module: PPOModule) -> None:
        def gathered(values: Tensor) -> Tensor:
            if values.dtype != torch.float64:  # the statistics of a step alone
                return values
            other = values.clone()
            other[:, 4] = 2e6
            return torch.cat([values, other])

        module.gathered = gathered  # type: ignore[method-assign]

    _, rows = run(tmp_path / "alone", num_ppo_epochs=4, target_kl=1e5)
    assert rows[0]["ppo/epochs"] == 4
    _, rows = run(tmp_path / "two", before, num_ppo_epochs=4, target_kl=1e5)
    assert rows[0]["ppo/epochs"] == 1
    assert rows[0]["ppo/policy/approxkl"] == pytest.approx(1e6)


def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(iterations=1, num_ppo_epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    free, rows = run(tmp_path / "free", **options)
    clipped, same = run(tmp_path / "clipped", max_grad_norm=0.01, **options)
    module, _ = made(tmp_path / "start", **options)
    module.configure_model()
    start = weights(module)
    norm = ((weights(free) - start) / 0.1).norm().item()
    assert rows[0]["ppo/grad_norm"] == same[0]["ppo/grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert norm > 0.02
    assert ((weights(clipped) - start) / 0.1).norm().item() == pytest.approx(0.01, rel=1e-3)


def poisoned(steps: set[int]) -> Callable[[PPOModule], None]:
    """Values that are not numbers in these optimizer steps, and with them the advantages of the iteration."""

    def before(module: PPOModule) -> None:
        plain, count = module.policy_outputs, [0]

        def outputs(*given: Any) -> Outputs:
            found = plain(*given)
            if torch.is_grad_enabled():
                found = found._replace(values=found.values * (math.nan if count[0] in steps else 1.0))
                count[0] += 1
            return found

        module.policy_outputs = outputs  # type: ignore[method-assign]

    return before


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    told = r"ALARM: found ppo/loss/policy = nan, ppo/loss/value = nan.* at iteration 1.*; the step was skipped"
    with pytest.warns(UserWarning, match=told):
        module, rows = run(tmp_path, poisoned({2, 3}), iterations=3, num_ppo_epochs=2)
    assert [r["ppo/skipped"] for r in rows] == [0, 2, 0]
    assert [r["ppo/steps"] for r in rows] == [2, 0, 2]
    assert module.skipped_steps == module.stage_state()["skipped_steps"] == 2
    assert bool(torch.isfinite(weights(module)).all())
    assert math.isnan(rows[1]["ppo/loss/value"]) and math.isfinite(rows[2]["ppo/loss/value"])
    figures = json.loads((tmp_path / "policy/run.json").read_text())["figures"]
    assert figures["skipped_steps"] == 2
    assert figures["alarms"]["not_finite"].startswith("found ppo/loss/policy = nan, ppo/loss/value = nan")


def test_too_many_of_them_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lower the learning rate \(3 steps skipped, model.max_skipped_steps = 2\)"):
        run(tmp_path, poisoned(set(range(100))), iterations=3, max_skipped_steps=2)
    assert not (tmp_path / "policy").exists()


def test_a_log_prob_that_is_not_finite_is_skipped_too(tmp_path: Path) -> None:
    """β stays as it was, and what later iterations are compared with is the first that can be."""

    def before(module: PPOModule) -> None:
        plain = module.rollout

        def rollout(batch: PromptBatch, seed: int | None = None) -> Rollout:
            found = plain(batch, seed)
            return found if module.updates else replace(found, logprobs=found.logprobs * torch.tensor([[math.nan]] + [[1.0]] * 7))

        module.rollout = rollout  # type: ignore[method-assign]

    module, rows = run(tmp_path, before, iterations=3, kl_coef=0.15)
    assert [r["ppo/skipped"] for r in rows] == [2, 0, 0]
    assert [r["objective/kl_coef"] for r in rows][:2] == pytest.approx([0.15, 0.15])
    start = module.alarms.start
    assert start and start["entropy"] == pytest.approx(rows[1]["objective/entropy"] / rows[1]["objective/length"], rel=0.5)


def test_every_batch_has_every_column(tmp_path: Path) -> None:
    """A column of one prompt alone, of training or validation, is None elsewhere; validation's samples have ids of their own."""
    (tmp_path / "sparse.py").write_text(
        "def score(prompts, completions, topic, kind):\n    return [bool(t) + 2.0 * bool(k) for t, k in zip(topic, kind)]\n"
    )
    module, data = made(tmp_path, reward=f"{tmp_path / 'sparse.py'}:score", batch_size=4, iterations=4, val=4)
    for name, more in (("prompts", {"topic": 1}), ("val", {"kind": 2, "id": "first"})):
        rows = [{"prompt": p, **(more if i == 0 else {})} for i, p in enumerate(PROMPTS[:8])]
        lines(tmp_path / f"{name}.jsonl", rows)
    assert module.check(data, trainer_of(), False) == []
    trainer_of(every=2).fit(module, data)
    assert [r["id"] for r in table(tmp_path, 0)] == ["first", *map(str, range(1, 8))]


def test_the_learning_rate_is_of_the_whole_run(tmp_path: Path) -> None:
    """lr (1 − u / updates) with the updates of data.total_episodes, although the Trainer stops before."""
    module, data = made(tmp_path, iterations=10)
    rows, trainer = Rows(), trainer_of()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_train_batches=2, callbacks=[rows],
    )  # fmt: skip
    trainer.fit(module, data)
    assert [r["ppo/lr"] for r in rows.rows] == pytest.approx([1e-3, 9e-4])


def test_rewards_add_up(tmp_path: Path) -> None:
    spy = Spy()
    parts = [WeightedReward(f"{tmp_path / 'rewards.py'}:{name}", weight) for name, weight in (("length", 2.0), ("topic", -0.5))]
    module, _ = run(tmp_path, spy, reward=parts, iterations=2, batch_size=16, score_clip=1.5)
    clipped = 0
    for batch, rollout in spy.kept:
        texts = [
            module.tokenizer.decode([*module.tokenizer(t).input_ids, *tokens[kept].tolist()], skip_special_tokens=True)[len(t) :]
            for t, tokens, kept in zip(batch.texts, rollout.tokens[:, -6:], rollout.kept, strict=True)
        ]
        for text, prompt, topic, score, found in zip(
            texts, batch.texts, batch.columns["topic"], rollout.scores.tolist(), rollout.found.tolist(), strict=True
        ):
            plain = 2 * (text.count(" ") - 0.1 * len(text) + 0.01 * len(prompt)) - 0.5 * topic
            clipped += found and abs(plain) > 1.5
            assert score == pytest.approx(max(-1.5, min(1.5, plain)) if found else -1.0, abs=1e-5)
    assert clipped
    whole = module.whole_reward()(prompts=["ab"], completions=[" c"], topic=[3])
    assert whole == pytest.approx([2 * (1 - 0.2 + 0.02) - 1.5])


# ------------------------------------------------------------------------------------------------ validation and alarms


class Lengths(Metric):
    """As a torchmetrics text metric: two lists of texts, a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("longer", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: list[str], target: list[str]) -> None:
        self.longer += sum(len(p) > len(t) for p, t in zip(preds, target, strict=True))
        self.n += len(preds)

    def compute(self) -> dict[str, Tensor]:
        return {"longer": self.longer / self.n}


def table(folder: Path, iteration: int) -> list[dict[str, Any]]:
    text = (folder / f"policy.samples/{iteration:06d}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_validation(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(iterations=4, val=6, batch_size=4, every=2, metrics=[CharErrorRate(), Lengths()])
    module, rows = run(tmp_path, held_out_reward=f"{tmp_path / 'rewards.py'}:minus", **options)
    assert sorted(f.name for f in (tmp_path / "policy.samples").iterdir()) == ["000000.jsonl", "000002.jsonl", "000004.jsonl"]
    first, last = table(tmp_path, 0), table(tmp_path, 4)
    assert [r["id"] for r in first] == [r["id"] for r in last] == [str(i) for i in range(6)]
    assert [r["prompt"] for r in last] == PROMPTS[:6]
    assert [r["reference"] for r in last] == [p[::-1] for p in PROMPTS[:6]]
    assert {(r["task"], r["policy"], r["iteration"], r["index"]) for r in last} == {("toy", "ppo", 4, 0)}
    assert [r["seed"] for r in first] == [r["seed"] for r in last]  # the same draws
    assert all(r["kl"] == 0 for r in first) and any(r["kl"] != 0 for r in last)
    logged = {k: float(v) for k, v in module.trainer.callback_metrics.items()}
    scores = [[r["score"] for r in t] for t in (first, last)]
    assert [a.score for a in module.first or []] == scores[0]
    assert logged["val/score"] == pytest.approx(sum(scores[1]) / 6)
    assert logged["val/kl"] == pytest.approx(sum(r["kl"] for r in last) / 6)
    assert logged["val/beats_first"] == pytest.approx(sum((b > a) + 0.5 * (a == b) for a, b in zip(*scores, strict=True)) / 6)
    assert rows[0]["val/beats_first"] == 0.5  # iteration 0 against itself
    for row in last:
        text = row["response"]
        expected = text.count(" ") - 0.1 * len(text) + 0.01 * len(row["prompt"]) if row["stopped"] else -1.0
        assert row["score"] == pytest.approx(expected, abs=1e-5)
        assert row["held_out"] == -len(text)
    metric = CharErrorRate()
    metric.update([r["response"] for r in last], [r["reference"] for r in last])
    assert logged["val/CharErrorRate"] == pytest.approx(metric.compute().item())
    assert logged["val/longer"] == pytest.approx(sum(len(r["response"]) > len(r["reference"]) for r in last) / 6)


def test_a_validation_is_logged_once(tmp_path: Path) -> None:
    """Iteration 0's runs within a training step, whose figures Lightning would log again at each later one."""
    module, data = made(tmp_path, iterations=4, val=6, batch_size=4)
    trainer = trainer_of(every=2)
    logger = CSVLogger(tmp_path)
    trainer.loggers, trainer.log_every_n_steps = [logger], 1  # type: ignore[attr-defined]
    trainer.fit(module, data)
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/kl"]] == ["0", "1", "3"]
    assert [float(row["val/kl"]) == 0 for row in rows if row["val/kl"]] == [True, False, False]
    assert [row["step"] for row in rows if row["objective/kl"]] == ["0", "1", "2", "3"]


class Spread(Metric):
    """A value for each response, or several values at once."""

    def __init__(self, several: bool) -> None:
        super().__init__()
        self.several, self.values = several, [1.0, 2.0]

    def update(self, preds: list[str], target: list[str]) -> None:
        pass

    def compute(self) -> Any:
        return (torch.tensor(5.0), torch.tensor(self.values)) if self.several else torch.tensor(self.values)


def test_metrics_of_one_class_and_of_several_values(tmp_path: Path) -> None:
    module, _ = run(tmp_path, iterations=1, val=2, metrics=[Spread(False), Spread(True), Spread(False)])
    figures = {k: v for k, v in module.figures.items() if "Spread" in k}
    assert figures == {"val/Spread": 1.5, "val/Spread_1": 5.0, "val/Spread_2": 1.5}


def test_scores_of_another_reward_are_not_compared_with(tmp_path: Path) -> None:
    """A resume with another reward scores iteration 0's answers by it; over-optimisation begins anew."""
    options: dict[str, Any] = dict(iterations=4, val=5, held_out_reward=f"{tmp_path / 'run/rewards.py'}:minus")
    first, data = made(tmp_path / "run", **options)

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer_of(StageCheckpoint(str(tmp_path / "last.ckpt"), every=1), Stop(), every=2).fit(first, data)
    best = first.alarms.best
    reward = tmp_path / "run/plus.py"
    reward.write_text("from rewards import length\n\n\ndef plus(**given):\n    return [x + 10 for x in length(**given)]\n")
    sys.path.insert(0, str(tmp_path / "run"))
    resumed, data = made(tmp_path / "run", **options, reward=f"{reward}:plus")
    resumed.options = {**first.options, "model.reward": "another"}
    resumed.allowed_changes = frozenset({"model.reward"})
    trainer_of(every=2).fit(resumed, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    for then, now in zip(first.first or [], resumed.first or [], strict=True):
        assert now.score == pytest.approx(then.score + 10 if then.stopped else then.score)
    assert resumed.alarms.best and best and max(resumed.alarms.best[0]) > max(best[0]) + 5


def test_validation_leaves_training_alone(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", iterations=3)
    watched, _ = run(tmp_path / "watched", iterations=3, val=5, every=1)
    assert torch.equal(weights(plain), weights(watched))


def test_a_resumed_run_validates_as_the_whole_one(tmp_path: Path) -> None:
    """The checkpoint falls before the validation of its iteration, which the kill prevented."""
    options: dict[str, Any] = dict(iterations=6, val=5, held_out_reward=f"{tmp_path / 'whole/rewards.py'}:minus")
    whole, _ = run(tmp_path / "whole", every=2, **options)

    class Stop(L.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if pl_module.updates == 4:
                raise KeyboardInterrupt

    killed, data = made(tmp_path / "killed", **options)
    checkpoint = StageCheckpoint(str(tmp_path / "last.ckpt"), every=2)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer_of(checkpoint, Stop(), every=2).fit(killed, data)
    assert not (tmp_path / "killed/policy.samples/000004.jsonl").exists()
    resumed, data = made(tmp_path / "killed", **options)
    resumed.options = killed.options
    trainer_of(every=2).fit(resumed, data, ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))
    assert whole.stage_state() == resumed.stage_state()
    for iteration in (0, 2, 4, 6):
        assert table(tmp_path / "whole", iteration) == table(tmp_path / "killed", iteration)


def test_beats_by_hand() -> None:
    assert beats([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, -1.0]) == pytest.approx(2.5 / 4)


def test_an_alarm_warns_and_is_kept(tmp_path: Path) -> None:
    """No response of six tokens has a truncate token that the model never says."""
    never = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text="Z", truncate_after=1)
    with pytest.warns(UserWarning, match=r"ALARM: penalised: 100% of the responses did not end as they should .*\(iteration 1\)"):
        run(tmp_path, task=never, iterations=2, alarms=Thresholds(patience=2))
    figures = json.loads((tmp_path / "policy/run.json").read_text())["figures"]
    assert figures["alarms"].keys() == {"penalised"}
    with pytest.raises(UsageError, match=r"alarm: penalised: 100% .*\(model.alarms.stop\)"):
        run(tmp_path / "stop", task=never, iterations=2, alarms=Thresholds(patience=2, stop=True))
    assert not (tmp_path / "stop/policy").exists()


def test_over_optimisation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held-out reward that is the opposite of the one that is trained on."""
    (tmp_path / "opposite.py").write_text(
        "def good(prompts, completions, **columns):\n    return [c.count('e') / 1.0 for c in completions]\n\n\n"
        "def bad(prompts, completions, **columns):\n    return [-c.count('e') / 1.0 for c in completions]\n"
    )
    free = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=None, truncate_after=0)
    options: dict[str, Any] = dict(reward=f"{tmp_path / 'opposite.py'}:good", held_out_reward=f"{tmp_path / 'opposite.py'}:bad")
    options |= dict(task=free, kl_coef=0.0, kl_target=None, alarms=Thresholds(over_optimised=1.0))
    options["optimizer"] = lambda p: AdamTF(p, lr=3e-3)
    with pytest.warns(UserWarning, match="ALARM: over-optimisation: the reward rose by"):
        module, _ = run(tmp_path / "run", iterations=12, batch_size=32, val=8, every=4, **options)
    assert "over_optimised" in module.alarms.raised


# --------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "EOS"}, "model.mode: found 'EOS', expected one of ['fixed', 'truncated', 'eos']"),
        ({"mode": "truncated", "task": EOS}, "task.truncate_text: found null with model.mode = truncated, expected the text"),
        ({"kl_loss": -0.5}, "model.kl_loss: found -0.5, expected at least 0"),
        ({"kl_estimator": "k4"}, "model.kl_estimator: found 'k4', expected one of ['k1', 'k2', 'k3', 'full']"),
        ({"kl_level": "word"}, "model.kl_level: found 'word'"),
        ({"value": "none"}, "model.value: found 'none'"),
        ({"score_clip": 0.0}, "model.score_clip: found 0.0, expected above 0, or null"),
        ({"target_kl": -1.0}, "model.target_kl: found -1.0, expected above 0, or null"),
        ({"max_grad_norm": 0.0}, "model.max_grad_norm: found 0.0, expected above 0, or null"),
        ({"max_skipped_steps": -1}, "model.max_skipped_steps: found -1, expected at least 0"),
        ({"reward": []}, "model.reward: found an empty list, expected at least one {reward, weight}"),
        ({"mode": "eos", "task": FIXED}, "task.truncate_text: found ' a' with model.mode = eos"),
        ({"stop_token": "<s>"}, "model.stop_token: found '<s>', expected null without model.mode = eos"),
        ({"missing_eos_penalty": -2.0}, "model.missing_eos_penalty: found -2.0, expected null without model.mode = eos"),
        ({"value_init": "stories260k"}, "model.value_init: found 'stories260k' for a shared value function"),
        ({"value": "separate", "value_init": "./none"}, "model './none': no such directory or file"),
        ({"held_out_reward": "known:sentiment"}, "model.held_out_reward: given without data.val"),
        ({"held_out_reward": "known:taste", "val": 2}, "no such known reward"),
        ({"metrics": [CharErrorRate()]}, "model.metrics: given without data.val, expected validation prompts"),
        ({"alarms": Thresholds(patience=0)}, "model.alarms.patience: found 0, expected at least 1"),
        ({"cliprange": -0.2}, "model.cliprange: found -0.2, expected above 0"),
        ({"cliprange_value": 0.0}, "model.cliprange_value: found 0.0, expected above 0"),
        ({"lam": 1.5}, "model.lam: found 1.5, expected 0 to 1"),
        ({"gamma": -0.1}, "model.gamma: found -0.1, expected 0 to 1"),
        ({"vf_coef": -1.0}, "model.vf_coef: found -1.0, expected at least 0"),
        ({"kl_tolerance": -1.0}, "model.kl_tolerance: found -1.0, expected at least 0"),
        ({"vf_coef": math.inf}, "model.vf_coef: found inf, expected at least 0"),
        ({"mode": "eos", "missing_eos_penalty": math.nan}, "model.missing_eos_penalty: found nan, expected a finite number"),
        ({"reward": [WeightedReward("known:sentiment", math.nan)]}, "model.reward: found a weight of nan for known:sentiment"),
        ({"kl_horizon": 1.5}, "model.kl_horizon: found 1.5 with data.batch_size 8"),
        ({"reward": [WeightedReward("known:sentiment"), WeightedReward("known:taste")]}, "no such known reward"),
    ],
)
def test_options_are_checked(tmp_path: Path, options: dict, message: str) -> None:
    module, data = made(tmp_path, **options)
    problems = module.check(data, trainer_of(), False)
    assert len(problems) == 1
    assert message in problems[0]


def test_compiled_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions themselves, not compiled here (tests/test_memory.py does), in a few widths; `validate` too."""
    calls: list[tuple[str, int]] = []

    def uncompiled(function: Any, dynamic: bool = False) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            calls.append((function.__qualname__, next(x for x in given if isinstance(x, torch.Tensor)).shape[1]))
            return function(*given, **named)

        return run

    options: dict[str, Any] = dict(iterations=2, micro_batch_size=4, val=4)
    _, plain = run(tmp_path / "plain", **options)
    monkeypatch.setattr(blocks, "compile_once", uncompiled)
    monkeypatch.setattr(heads, "compile_once", uncompiled)
    _, found = run(tmp_path / "compiled", compile_blocks=True, **options)
    names = {name for name, _ in calls}
    assert names == {"LlamaDecoderLayer.forward", "_statistics", "_slope"}
    assert {width % 8 for name, width in calls if name.startswith("Llama")} == {0}
    timed = ("elapsed", "tok/s")
    for one, other in zip(plain, found, strict=True):
        assert {k for k in one if one[k] != pytest.approx(other[k], rel=1e-3, abs=1e-4) and not k.startswith(timed)} == set()
    again, data = made(tmp_path / "compiled", compile_blocks=True, overwrite=True, **options)
    trainer_of().validate(again, data, verbose=False)  # under inference mode


class NotFinite:
    """A reward of token ids, one of them not a number."""

    def score_tokens(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor([math.nan] + [0.0] * (len(rows) - 1))


def test_a_run_is_as_long_as_its_episodes(tmp_path: Path) -> None:
    module, data = made(tmp_path)
    for epochs, steps, message in ((2, -1, "trainer.max_epochs: found 2"), (1, 3, "trainer.max_steps: found 3")):
        trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, max_epochs=epochs, max_steps=steps)
        (problem,) = module.check(data, trainer, False)
        assert problem.startswith(message)


def test_more_tokens_than_positions(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    load_tokenizer("stories260k").save_pretrained(tmp_path / "gpt2")
    module, data = made(tmp_path, policy=str(tmp_path / "gpt2"))
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.endswith("gpt2 has 16 positions") and problem.startswith("task.query_length, task.response_length: found ")


def test_a_learned_score_that_is_not_finite_stops(tmp_path: Path) -> None:
    module, data = made(tmp_path)
    module.configure_model()
    module.scorers = [replace(module.scorers[0], reward=NotFinite(), same_tokens=True)]
    with pytest.raises(UsageError, match="model.reward: 1 of 8 scores are not finite at iteration 0, expected finite numbers"):
        trainer_of().fit(module, data)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_tokens_own_kl_is_k1_in_its_advantage(tmp_path: Path, level: str) -> None:
    """Whatever estimate the others have: advantages are those of GAE on rewards in which that token's own term alone is k1."""
    module, _ = made(tmp_path, kl_estimator="k3", kl_level=level, gamma=0.9, lam=0.5)
    g = torch.Generator().manual_seed(0)
    kl, k1, values = (torch.randn(2, 5, generator=g) for _ in range(3))
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    kl, k1, values, scores = kl * real, k1 * real, values * real, torch.randn(2, generator=g)
    of = lambda k: gae(penalised(scores, k, real, kl_coef=0.3, level=level), values, real, gamma=0.9, lam=0.5)[0]  # noqa: E731
    found = of(kl) + 0.3 * (kl - k1) * module.reach(real)
    for t in range(5):
        only = kl.clone()
        only[:, t] = k1[:, t]
        torch.testing.assert_close(found[:, t][real[:, t]], of(only)[:, t][real[:, t]])


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = made(tmp_path, compile_sampler=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.startswith("model.compile_sampler: found true without a C++ compiler")


def test_a_value_network_of_another_vocabulary(tmp_path: Path) -> None:
    lm = load_lm("stories260k")
    lm.tokenizer.add_tokens(["another"])
    lm.model.resize_token_embeddings(513)
    lm.model.save_pretrained(tmp_path / "other")
    lm.tokenizer.save_pretrained(tmp_path / "other")
    module, _ = made(tmp_path / "run", value="separate", value_init=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="model.value_init: .*other and stories260k have different vocabularies"):
        module.configure_model()


def test_the_command_line_takes_them_all(tmp_path: Path, tiny_run: Path, command: Callable[..., list[str]]) -> None:
    """Lists, nested thresholds and a metric by class path; and `validate` with the trained policy."""
    over = {
        "model": {"init_args": {
            "reward": [{"reward": f"{tiny_run}/reward"}, {"reward": "known:sentiment", "weight": 0.5}],
            "metrics": [{"class_path": "torchmetrics.text.CharErrorRate"}], "alarms": {"entropy": 0.1, "stop": False},
            "held_out_reward": "known:sentiment", "value": "separate", "value_init": f"{tiny_run}/reward", "mode": "eos",
            "stop_token": "<s>", "kl_estimator": "k3", "max_grad_norm": 1.0, "target_kl": 0.5, "output": str(tmp_path / "out"),
        }},
        "task": {"truncate_text": None, "truncate_after": 0},
        "data": {"init_args": {"val": str(tmp_path / "val.jsonl")}},
        "trainer": {"val_check_interval": 2, "logger": {"init_args": {"save_dir": str(tmp_path / "logs")}}, "callbacks": []},
    }  # fmt: skip
    shown = [json.loads(line) for line in (tiny_run / "prompts/val.jsonl").read_text(encoding="utf-8").splitlines()]
    lines(tmp_path / "val.jsonl", [{**row, "reference": "The end."} if i else row for i, row in enumerate(shown)])
    (tmp_path / "over.json").write_text(json.dumps(over), encoding="utf-8")
    words = command("ppo", tiny_run, "-c", str(tmp_path / "over.json"), "--model.alarms.patience", "4")
    words += ["--model.allow_unguarded", "true"]
    main(words)
    info = json.loads((tmp_path / "out/run.json").read_text())
    assert info["config"]["model"]["init_args"]["alarms"]["patience"] == 4
    assert info["config"]["model"]["init_args"]["alarms"]["entropy"] == 0.1
    assert {"val/score", "val/beats_first", "val/held_out", "ppo/grad_norm"} <= info["figures"].keys()
    assert info["figures"]["val/CharErrorRate"] > 0  # over the prompts that have a reference
    assert (tmp_path / "out/value/reward.json").is_file()
    assert (tmp_path / "out.samples/000004.jsonl").is_file()
    main(["validate", *words[1:], "--model.policy", str(tmp_path / "out"), "--model.value_init", str(tmp_path / "out/value")])
    assert (tmp_path / "out.samples/000000.jsonl").is_file()


Words = Callable[..., list[str]]


def test_validate_needs_validation_prompts(tiny_run: Path, command: Words, refused: Callable[..., str]) -> None:
    words = command("ppo", tiny_run)
    assert "validate: data.val: not given, expected a file of held-out records" in refused(["validate", *words[1:]])
    words = command("reward", tiny_run)
    assert "validate: --ckpt_path: not given, expected a checkpoint" in refused(["validate", *words[1:]])
