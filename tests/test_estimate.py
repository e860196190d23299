"""The estimate's roles against counted bytes, its count against a real run, and what `fit` does with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_rlhf import estimate, fit
from lightning_rlhf.cli import main
from lightning_rlhf.estimate import Estimate, divided
from lightning_rlhf.lora import LoRA, add_lora
from lightning_rlhf.machine import available_memory, resident
from lightning_rlhf.meter import Meter, storage_bytes
from lightning_rlhf.models import load_lm, load_tokenizer, save_policy
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.scalar import ScalarHead, ScalarModel, save_reward

Command = Callable[..., list[str]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model directory of two tiny blocks with the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer("stories260k").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def words(command: Command, small: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """`words(stage, *flags)`: a stage's shrunk options on that model; its data and its reward are not there."""
    folder = tmp_path_factory.mktemp("estimate") / "run"

    def run(stage: str, *flags: str) -> list[str]:
        more = ("--model.guard_comparisons", "null") if stage == "ppo" else ()
        return [*command(stage, folder)[1:], "--lm", small, "--data.batch_size", "16", *more, *flags]

    return run


@pytest.fixture(scope="module")
def estimated(words: Callable[..., list[str]]) -> Callable[..., dict[str, Any]]:
    """`estimated(stage, *flags)`: what `estimate --json` prints; each once."""

    @cache
    def run(stage: str, *flags: str) -> dict[str, Any]:
        out = StringIO()
        with redirect_stdout(out):
            main(["estimate", *words(stage, *flags), "--json", "true"])
        return dict(json.loads(out.getvalue()[out.getvalue().index("{") :]))

    return run


def counted(name: str) -> dict[str, int]:
    """Bytes of a model's parts, counted on the real ones."""
    model = load_lm(name).model
    head = ScalarHead(model.config.hidden_size)
    parameters = [*model.parameters(), *head.parameters()]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer = AdamTF(parameters, lr=1e-3)
    optimizer.step()
    return {
        "policy": storage_bytes([*model.parameters(), *model.buffers()]),
        "trained": storage_bytes(parameters),
        "trunk": storage_bytes([*model.base_model.parameters(), *model.base_model.buffers()]),
        "trunk trained": storage_bytes(model.base_model.parameters()),
        "head": storage_bytes(head.parameters()),
        "gradients": storage_bytes(p.grad for p in parameters),
        "optimizer": storage_bytes(v for s in optimizer.state.values() for v in s.values()),
    }


@pytest.mark.usefixtures("no_models")
def test_no_weight_is_read(estimated: Callable[..., dict[str, Any]]) -> None:
    """Not even the data need be there; every phase is told, and the highest named."""
    found = estimated("ppo")
    assert set(found["phases"]) == {"load", "rollout", "scoring", "update", "checkpoint", "export"}
    assert found["peak_phase"] == max(found["totals"], key=found["totals"].get)
    assert found["peak"] == max(found["totals"].values())
    assert any("prompts/train.jsonl: not there yet" in note for note in found["notes"])
    assert any("reward is not there yet" in note for note in found["notes"])


def test_roles_are_those_of_the_real_networks(estimated: Callable[..., dict[str, Any]], small: str) -> None:
    real, found = counted(small), estimated("ppo")["phases"]["checkpoint"]
    assert found["policy"] == found["reference"] == real["policy"]
    assert found["value"] == real["head"]
    assert found["reward"] == real["trunk"] + real["head"] + 8  # its gain and bias
    assert found["gradients"] == real["gradients"]
    assert found["optimizer"] == real["optimizer"]
    assert found["buffers"] == int(1.125 * (real["trained"] + real["optimizer"]))  # a checkpoint holds these


def test_roles_of_the_other_stages(estimated: Callable[..., dict[str, Any]], small: str) -> None:
    real = counted(small)
    sft = estimated("sft")["phases"]
    assert sft["update"]["policy"] == real["policy"]
    assert sft["checkpoint"]["gradients"] == real["gradients"] - real["head"]
    reward = estimated("reward")["phases"]
    assert reward["update"]["reward"] == real["trunk"] + real["head"] + 8
    assert reward["rollout"]["policy"] == real["policy"] - real["trunk"]  # the output embedding, on the same trunk
    assert reward["rollout"]["cache"] > 0
    assert reward["checkpoint"]["gradients"] == real["trunk trained"] + real["head"] + 8


def test_options_move_what_they_should(estimated: Callable[..., dict[str, Any]], small: str) -> None:
    real, whole = counted(small), estimated("ppo")["phases"]["update"]
    micro = estimated("ppo", "--model.micro_batch_size", "4", "--trainer.precision", "bf16-mixed")["phases"]["update"]
    assert whole["activations"] / micro["activations"] > 4  # four times for the rows, and more for the precision
    compiled = estimated("ppo", "--model.compile_sampler", "true")["phases"]["rollout"]
    assert {**compiled, "process": 0} == {**estimated("ppo")["phases"]["rollout"], "process": 0}
    compiles: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda *_, **__: compiles.append(1))
        blocks = estimated("ppo", "--model.compile_blocks", "true")
    assert blocks["totals"]["update"] > 0
    assert not compiles  # what first runs while bytes are counted is never compiled in this process again
    other = estimated("ppo", "--model.value", "separate", "--model.trainable_layers", "1")["phases"]["checkpoint"]
    trunk = load_lm(small).model.base_model
    block = storage_bytes([*trunk.layers[1].parameters(), *trunk.norm.parameters()])
    assert block + real["head"] <= other["value"] < block + real["head"] + 1000  # a rotary table; the block below is the policy's
    assert other["gradients"] < 0.7 * real["gradients"]


def test_fake_run_counts_what_a_real_one_does(
    words: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same meter over a real iteration: the update's activations within 0.5 %."""
    parsed: list[Any] = []
    monkeypatch.setattr(fit.EstimateCLI, "_run_subcommand", lambda self, subcommand: parsed.append(self))
    for _ in range(2):
        main(["estimate", *words("ppo", "--model.reward", "known:sentiment")])
    fake = estimate.estimate(parsed[0].model, parsed[0].datamodule, parsed[0].trainer)
    run = estimate.StageRun(parsed[1].model, parsed[1].datamodule, parsed[1].trainer)
    batch = run.batch()
    run.module.configure_model()
    run._attach()
    for tensor in (*run.module.parameters(), *run.module.buffers()):
        run.meter.count(tensor)
    with run.meter:
        run._ppo(batch)
    assert run.meter.roles["update"]["activations"] == pytest.approx(fake.phases["update"]["activations"], rel=0.005)


def test_a_reward_of_adapters_is_counted_on_the_policy_s_weights(
    words: Callable[..., list[str]], small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapter's file is read, though nothing else is; one that trained all its weights is a copy of its own. A shared value
    head of an earlier PPO is read too."""
    parsed: list[Any] = []
    monkeypatch.setattr(fit.EstimateCLI, "_run_subcommand", lambda self, subcommand: parsed.append(self))
    found = {}
    for kind in ("adapters", "whole"):
        lm = load_lm(small)
        scalar = ScalarModel(lm.model.base_model, 32, 0.3)
        if kind == "adapters":
            add_lora(lm.model, LoRA(r=2), 1)
        save_reward(tmp_path / kind, scalar, lm.tokenizer, {"task": "sentiment", "base": small})
        main(["estimate", *words("ppo", "--model.reward", str(tmp_path / kind), "--model.lora.r", "2")])
        one = parsed.pop()
        found[kind] = estimate.estimate(one.model, one.datamodule, one.trainer).phases["update"]["reward"]
    assert found["adapters"] < 0.4 * found["whole"]
    head = {"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}
    save_policy(tmp_path / "policy", load_lm(small).model, load_tokenizer(small), head)
    main(["estimate", *words("ppo", "--model.reward", "known:sentiment", "--model.value_init", str(tmp_path / "policy"))])
    one = parsed.pop()
    assert estimate.estimate(one.model, one.datamodule, one.trainer).peak > 0


def test_sharded_networks_are_divided() -> None:
    roles = {"policy": 80, "reward": 40, "gradients": 16, "optimizer": 33, "activations": 7, "process": 5}
    assert divided(roles, 8, gathered=False) == {**roles, "policy": 10, "reward": 5, "gradients": 2, "optimizer": 5}
    assert divided(roles, 8, gathered=True)["policy"] == 90
    assert divided(roles, 1, gathered=True) == roles


def test_meter_counts_what_lives() -> None:
    meter = Meter(lambda: {"policy": 100})
    with meter, meter.during("update"):
        a = torch.ones(1000)  # 4000 bytes
        b = a.view(10, 100)  # no storage of its own
        c = a + 1  # 4000
        del c
        d = a.double()  # 8000, after 4000 have gone
        assert meter.live == 12_000
        with meter.during("export", buffers=50_000):
            pass
    assert b.numel() == 1000 and d.numel() == 1000
    assert meter.roles["update"] == {"policy": 100, "activations": 11_900}
    assert meter.roles["export"] == {"policy": 100, "buffers": 50_000, "activations": 11_900}


# ------------------------------------------------------------------------------------------------------------- refusal


def made(**roles: int) -> Estimate:
    return Estimate("ppo", {"update": {k: v * 2**20 for k, v in roles.items()}}, "cpu", 1, 1000 * 2**20)


def test_refusal_names_what_to_change_the_largest_first() -> None:
    text = made(activations=900, optimizer=300, policy=100, gradients=150).refusal()
    assert "found 1,000 MB available (cpu), this run is estimated to need 1,450 MB in update" in text
    assert text.index("model.micro_batch_size") < text.index("model.trainable_layers") < text.index("a smaller lm")
    assert "--allow_out_of_memory true" in text
    assert "trainable_layers" not in made(activations=2000, optimizer=1).refusal()
    assert "model.gradient_checkpointing" in text and "the process itself 900 MB" in made(process=900, policy=1).refusal()


@pytest.fixture
def startable(words: Callable[..., list[str]], tmp_path: Path) -> list[str]:
    """A `fit` that could start, on hardly any memory."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": [5, 6, 7]}) + "\n", encoding="utf-8")
    return ["fit", *words("ppo", "--model.reward", "known:sentiment", "--data.train", str(prompts))]


@pytest.mark.usefixtures("no_models")
def test_fit_refuses_what_cannot_fit(startable: list[str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 0)
    monkeypatch.setattr(estimate, "estimate", lambda *args: made(activations=900, optimizer=300))
    message = refused(startable)
    assert "memory: found 1,000 MB available (cpu), this run is estimated to need 1,200 MB in update" in message
    assert "model.micro_batch_size" in message
    with (
        pytest.warns(UserWarning, match="the run starts ALTHOUGH memory: found 1,000 MB"),
        pytest.raises(AssertionError, match="a model was loaded"),
    ):
        main([*startable, "--allow_out_of_memory", "true"])


@pytest.mark.usefixtures("no_models")
def test_a_model_that_cannot_be_counted_is_not_refused(startable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("no fake kernel")

    monkeypatch.setattr(estimate, "available_memory", lambda: 0)
    monkeypatch.setattr(estimate, "estimate", broken)
    with (
        pytest.warns(UserWarning, match="memory could not be estimated .RuntimeError: .*no fake kernel"),
        pytest.raises(AssertionError, match="a model was loaded"),
    ):
        main(startable)


@pytest.mark.usefixtures("no_models")
def test_where_memory_is_plenty_nothing_is_counted(startable: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is above the estimate, and a run far below memory costs no count."""
    monkeypatch.setattr(estimate, "available_memory", lambda: 2**40)
    monkeypatch.setattr(estimate, "estimate", lambda *args: pytest.fail("counted"))
    with pytest.raises(AssertionError, match="a model was loaded"):
        main(startable)


def test_bound_is_above_the_estimate(words: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    monkeypatch.setattr(fit.EstimateCLI, "_run_subcommand", lambda self, subcommand: parsed.append(self))
    main(["estimate", *words("ppo", "--model.reward", "known:sentiment")])
    run = parsed[0]
    above = estimate.bound(run.model, run.datamodule)
    assert estimate.estimate(run.model, run.datamodule, run.trainer).peak - resident() < above - 2**29


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000", "sys/fs/cgroup/a/memory.current": "3000",
          "sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.stat": "anon 9\ninactive_file 1000\n"}, 3000),
        ({"proc/self/cgroup": "3:cpu:/x\n4:memory:/j\n", "sys/fs/cgroup/memory/j/memory.limit_in_bytes": "7000",
          "sys/fs/cgroup/memory/j/memory.usage_in_bytes": "6500"}, 500),
    ],
)  # fmt: skip
def test_available_memory_respects_control_groups(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    for name, content in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert available_memory(str(tmp_path)) == expected


def test_table(words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    main(["estimate", *words("sft")])
    out = capsys.readouterr().out
    for word in (*estimate.ROLES, "total", "peak: "):
        assert f"\n{word}" in out
