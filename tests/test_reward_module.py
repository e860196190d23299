"""The reward model trains from every label type and mixture; its normalisations; several devices do what one does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as L
import torch
import yaml
from safetensors.torch import load_file

from lightning_rlhf.blocks import blocks_of
from lightning_rlhf.cli import main
from lightning_rlhf.data import PreferenceData, SFTData
from lightning_rlhf.lora import LoRA
from lightning_rlhf.models import load_lm, load_tokenizer
from lightning_rlhf.optim import AdamTF
from lightning_rlhf.reward import RewardModule, labels_loss
from lightning_rlhf.scalar import classifier_problems, load_scalar
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.stage import StageModule
from lightning_rlhf.tasks import Task, UsageError
from lightning_rlhf.tokens import pad_batch

LM = "stories260k"
TASK = Task(name="toy", query_length=12, start_text=None, response_length=6, truncate_text=None, truncate_after=0)
PROMPTS = ["Once upon a time", "Lily", "The big dog ran", "Tom was sad. He", "She said"]
TEXTS = [" and ran away", " sat on it", " is big", " was very happy to see the bird"]
ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "best_of_n": lambda i: {"responses": TEXTS[: 3 + i % 2], "best": i % 3},
    "pairwise": lambda i: {"chosen": TEXTS[i % 4], "rejected": TEXTS[(i + 1) % 4], "margin": 0.5 * (i % 3)},
    "ranked": lambda i: {"responses": TEXTS[: 2 + i % 3], "ranks": [1 + (i + j) % 2 for j in range(2 + i % 3)]},
    "scalar_rating": lambda i: {"response": TEXTS[i % 4], "rating": float(1 + i % 4)},
    "scalar_compare": lambda i: {"responses": TEXTS[i % 3 : i % 3 + 2], "margin": 0.5 * (i % 3) - 0.4},
}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def labels(folder: Path, kind: str, n: int, name: str = "train") -> str:
    return write(folder / f"{name}.{kind}.jsonl", [{"prompt": PROMPTS[i % 5], **ROWS[kind](i)} for i in range(n)])


def trainer_of(**options: Any) -> L.Trainer:
    given = dict(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, num_sanity_val_steps=0)
    return L.Trainer(**{**given, **options}, enable_progress_bar=False, enable_model_summary=False)  # type: ignore[arg-type]


def fit(folder: Path, data: PreferenceData, lr: float = 1e-3, **options: Any) -> tuple[RewardModule, dict[str, Any]]:
    given: dict[str, Any] = dict(normalise_samples=16, rollout_batch_size=16, trainable_layers=2)
    module = RewardModule(LM, str(folder / "reward"), TASK, lambda p: AdamTF(p, lr=lr), **{**given, **options})
    assert data.check() + module.check(data, trainer_of(), False) == []
    trainer_of().fit(module, data)
    return module, json.loads((folder / "reward/reward.json").read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------------------------------------- label types


@pytest.mark.parametrize("batch_size", [1, 4])
def test_all_label_types_in_one_run(tmp_path: Path, batch_size: int) -> None:
    """Ragged numbers of responses, different K and batches of one."""
    train = [labels(tmp_path, kind, 3) for kind in ROWS]
    val = [labels(tmp_path, kind, 3, "val") for kind in ROWS]
    data = PreferenceData(train, LM, TASK, val, batch_size=batch_size)
    _, info = fit(tmp_path, data, margin=True, centring=0.01)
    assert info["label_types"] == {kind: 3 for kind in ROWS}
    assert (info["labels"], info["held_out"]) == (15, 15)
    # the ratings 1, 2, 3 decide the first target; the second is always (0, 1)
    targets = [(n["target_mean"], n["target_std"]) for n in info["normalisations"]]
    assert targets == [pytest.approx((2.0, math.sqrt(2 / 3))), (0.0, 1.0)]
    figures = info["held_out_figures"]
    assert figures["n"] == 12  # a rating of one response prefers nothing
    assert figures["scalar_rating"]["n"] == figures["scalar_compare"]["n"] == 3
    assert figures["scalar_rating"]["label_variance"] == pytest.approx(2 / 3)
    assert figures["by_strength"]
    assert 0 <= info["accuracy_low"] <= info["accuracy"] <= info["accuracy_high"] <= 1


@pytest.mark.parametrize("kind", ROWS)
def test_each_label_type_is_learned(tmp_path: Path, kind: str) -> None:
    """Repeated labels: the held-out loss falls far below that of rewards that know nothing."""
    file = write(tmp_path / "same.jsonl", [{"prompt": PROMPTS[i % 2], **ROWS[kind](i % 2)} for i in range(64)])
    data = PreferenceData(file, LM, TASK, file, batch_size=4)
    module, info = fit(tmp_path, data, lr=3e-3)
    loss = float(module.trainer.callback_metrics["val/loss"])
    if kind.startswith("scalar"):
        assert loss < 0.2 * info["held_out_figures"][kind]["label_variance"]
    else:
        assert loss < 0.5 * info["held_out_figures"]["log_loss_chance"]
        assert info["accuracy"] == 1.0
        assert loss == pytest.approx(info["held_out_figures"]["log_loss"], rel=1e-5)


def test_ratings_alone_have_no_accuracy(tmp_path: Path) -> None:
    file = labels(tmp_path, "scalar_rating", 8)
    _, info = fit(tmp_path, PreferenceData(file, LM, TASK, file, batch_size=4))
    assert info["accuracy"] is info["chance"] is None
    assert list(info["held_out_figures"]) == ["scalar_rating"]


# ------------------------------------------------------------------------------------------------------- smaller models


@pytest.mark.parametrize("options", [{}, {"trainable_layers": 1}, {"lora": LoRA()}], ids=["whole", "top", "adapters"])
def test_a_model_of_the_first_blocks(tmp_path: Path, options: dict[str, Any]) -> None:
    """It trains, its directory loads with its size, and the reference that normalises is the policy, whole."""
    data = PreferenceData(labels(tmp_path, "best_of_n", 8), LM, TASK, batch_size=4)
    options = {"trainable_layers": None, **options}
    module, info = fit(tmp_path, data, num_hidden_layers=2, **options)
    whole, _ = fit(tmp_path / "whole", PreferenceData(labels(tmp_path, "best_of_n", 8), LM, TASK, batch_size=4))
    assert torch.equal(module.reference_samples[0], whole.reference_samples[0])
    assert info["num_hidden_layers"] == 2
    assert not (tmp_path / "reward/adapter").exists()  # the policy is not what they belong on
    scalar, _, _ = load_scalar(tmp_path / "reward")
    assert len(blocks_of(scalar.trunk)) == 2
    start = load_lm(LM).model.base_model.state_dict()
    moved = {n for n, p in scalar.trunk.state_dict().items() if not torch.equal(p, start[n])}
    assert any(n.startswith("layers.1.") for n in moved)
    assert any(n.startswith("layers.0.") for n in moved) == (options["trainable_layers"] is None)
    tokens, mask = module.reference_samples
    with torch.no_grad():
        torch.testing.assert_close(scalar(tokens, mask), module.scalar(tokens, mask), rtol=1e-4, atol=1e-4)


def test_more_blocks_than_there_are(tmp_path: Path) -> None:
    data = PreferenceData(labels(tmp_path, "best_of_n", 8), LM, TASK, batch_size=4)
    with pytest.raises(UsageError, match="model.num_hidden_layers: found 9, expected 1 to the model's 5 blocks"):
        fit(tmp_path, data, num_hidden_layers=9, trainable_layers=None)


# --------------------------------------------------------------------------------------------------------- normalisation


def rewards_of(folder: Path, rows: list[tuple[str, str]]) -> torch.Tensor:
    scalar, _, _ = load_scalar(folder / "reward")
    tokenizer = load_tokenizer(LM)
    with torch.no_grad():
        return scalar(*pad_batch([tokenizer(p + c).input_ids for p, c in rows], 0, "right"))


def test_reference_summaries_get_mean_0_and_keep_their_scale(tmp_path: Path) -> None:
    texts = [(p, " was a long day") for p in PROMPTS]
    references = write(tmp_path / "references.jsonl", [{"prompt": p, "completion": c} for p, c in texts])
    data = PreferenceData(labels(tmp_path, "pairwise", 8), LM, TASK, batch_size=4, references=references)
    module, info = fit(tmp_path, data, lr=0.0, normalise="reference_summaries")
    (found,) = info["normalisations"]
    assert (found["when"], found["n"], found["target_mean"], found["target_std"]) == ("after training", 5, 0.0, None)
    rewards = rewards_of(tmp_path, texts)
    assert rewards.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert info["gain"] == 1.0  # nothing was trained, nothing rescaled
    assert info["bias"] == pytest.approx(-found["mean"])
    assert rewards.std(correction=0).item() == pytest.approx(found["std"], rel=1e-4)
    assert found["std"] > 0.01
    assert found["std"] != pytest.approx(1.0, abs=0.01)
    # a checkpoint carries what a resume needs
    again = RewardModule(LM, str(tmp_path / "x"), TASK, normalise="reference_summaries")
    again.load_stage_state(module.stage_state())
    assert again.normalisations == info["normalisations"]
    assert again.reference_samples is not None
    assert len(again.reference_samples[0]) == 5


def test_no_normalisation(tmp_path: Path) -> None:
    data = PreferenceData(labels(tmp_path, "pairwise", 4), LM, TASK, batch_size=4)
    module, info = fit(tmp_path, data, lr=0.0, normalise="none")
    assert (info["gain"], info["bias"], info["normalisations"], info["normalise"]) == (1.0, 0.0, [], "none")
    again = RewardModule(LM, str(tmp_path / "x"), TASK, normalise="none")
    again.load_stage_state(module.stage_state())
    assert again.reference_samples is None


def test_centring_keeps_rewards_near_0(tmp_path: Path) -> None:
    file = labels(tmp_path, "pairwise", 64)
    found = {}
    for centring in (0.0, 1.0):
        folder = tmp_path / str(centring)
        folder.mkdir()
        fit(folder, PreferenceData(file, LM, TASK, batch_size=2), lr=3e-3, normalise="none", centring=centring)
        rewards = rewards_of(folder, [(p, t) for p in PROMPTS for t in TEXTS])
        found[centring] = abs(rewards.mean().item())
    assert found[1.0] < 0.5 * found[0.0]


def test_a_loss_of_every_token_is_added(tmp_path: Path) -> None:
    """c times the same loss of the means; the gradient reaches places before the last one; validation is of the last alone."""
    module = RewardModule(LM, str(tmp_path / "r"), TASK, normalise="none", token_loss=0.5)
    plain = RewardModule(LM, str(tmp_path / "p"), TASK, normalise="none")
    data = PreferenceData(labels(tmp_path, "ranked", 8), LM, TASK, batch_size=8)
    data.setup()
    batch = PreferenceData.collate(data.items["train"])
    found = []
    for one in (module, plain):
        one.configure_model()
        one.log = lambda *_, **__: None  # type: ignore[method-assign]
        one._trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, barebones=False)  # type: ignore[assignment]
        found.append(one.training_step(batch, 0))
        assert torch.equal(one.scores(batch), one.scores_and_means(batch)[0])
    scores, means = module.scores_and_means(batch)
    assert found[0].item() == pytest.approx((labels_loss(scores, batch) + 0.5 * labels_loss(means, batch)).item())
    assert found[1].item() == pytest.approx(labels_loss(scores, batch).item()) != found[0].item()
    assert torch.equal(means == -math.inf, scores == -math.inf)


# ---------------------------------------------------------------------------------------------------------------- checks


def test_all_problems_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    data = PreferenceData(labels(tmp_path, "best_of_n", 3), LM, TASK, batch_size=1, references="none.jsonl")
    module = RewardModule(LM, str(tmp_path / "r"), TASK, centring=-1.0, margin=True)
    assert data.check() == ["data.references: none.jsonl: no such file"]
    data = PreferenceData(data.files["train"], LM, TASK, batch_size=1)  # type: ignore[arg-type]
    assert data.check() == []
    assert module.check(data, trainer_of(), False) == [
        "model.centring: found -1.0, expected 0 or more",
        "model.margin: found true, and no pair of data.train with a margin",
    ]
    module = RewardModule(LM, str(tmp_path / "r"), TASK, normalise="reference_summaries")
    (problem,) = module.check(data, trainer_of(), False)
    assert problem.startswith("model.normalise, data.references: found reference_summaries and None; expected reference")


def test_ratings_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "Lily", "response": t, "rating": 3} for t in TEXTS])
    data = PreferenceData(file, LM, TASK)
    assert data.check() == []
    module = RewardModule(LM, str(tmp_path / "r"), TASK)
    assert module.check(data, trainer_of(), False) == ["data.train: all 4 ratings are the same, expected different ones"]


def test_files_of_several_formats_and_their_problems(tmp_path: Path) -> None:
    one, two = labels(tmp_path, "best_of_n", 2), labels(tmp_path, "pairwise", 3)
    data = PreferenceData([one, two], LM, TASK, batch_size=2)
    assert data.check() == []
    assert data.files == {"train": one, "train[1]": two, "val": None, "references": None}
    assert [where for where, _ in data.records["train"]] == [*(f"{one}:{i}" for i in (1, 2)),
                                                             *(f"{two}:{i}" for i in (1, 2, 3))]  # fmt: skip
    assert PreferenceData([one, "none.jsonl"], LM, TASK).check() == ["data.train[1]: none.jsonl: no such file"]
    assert PreferenceData([], LM, TASK).check() == ["data.train: found no file, expected at least one"]
    assert PreferenceData(f"{tmp_path}/train.pair*.jsonl", LM, TASK).check() == []
    (problem,) = PreferenceData(f"{tmp_path}/none*.jsonl", LM, TASK).check()
    assert "found no file, expected a directory with" in problem


def test_mixed_files_from_the_command_line(tmp_path: Path, tiny_run: Path, command: Callable[..., list[str]]) -> None:
    ratings = [{"prompt": f"Lily was {i}.", "response": " a good cat.", "rating": i} for i in range(4)]
    overlay = {"data": {"init_args": {"train": ["${run_dir}/labels/val.jsonl", write(tmp_path / "ratings.jsonl", ratings)]}}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    words = ("--model.output", str(tmp_path / "out"), "--trainer.logger", "false", "--trainer.callbacks", "[]")
    main(command("reward", tiny_run, "-c", str(tmp_path / "mixed.yaml"), *words))
    info = json.loads((tmp_path / "out/reward.json").read_text(encoding="utf-8"))
    assert info["label_types"] == {"best_of_n": 40, "scalar_rating": 4}
    run = json.loads((tmp_path / "out/run.json").read_text(encoding="utf-8"))
    assert run["figures"]["held_out_figures"] == info["held_out_figures"]
    assert {Path(f).name for f in run["data"]} == {"val.jsonl", "ratings.jsonl"}


# -------------------------------------------------------------------------------------------------------- several devices


class Ranks:
    """As much of a Trainer as the checks read."""

    world_size, precision = 4, "32-true"


def test_a_batch_must_have_a_record_for_each_device(tmp_path: Path) -> None:
    data = PreferenceData(labels(tmp_path, "pairwise", 8), LM, TASK, batch_size=3)
    assert data.check() == []
    assert RewardModule(LM, str(tmp_path / "r"), TASK).check(data, Ranks(), False) == [
        "data.batch_size: found 3, expected at least one a device: 4"
    ]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Seven records in batches of three: the second rank has no share of the last batch, in training and validation."""
    mixed = write(tmp_path / "mixed.jsonl", [{"prompt": PROMPTS[i % 5], **ROWS["best_of_n"](i)} for i in range(3)])
    pairs = labels(tmp_path, "pairwise", 4)
    texts = [" ran.", " sat on the mat and", " was happy"]
    told = write(tmp_path / "sft.jsonl", [{"prompt": PROMPTS[i % 5], "completion": texts[i % 3]} for i in range(7)])

    def run(folder: Path, stage: str, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        sgd = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
        module: StageModule
        data: Any
        if stage == "sft":
            module = SFTModule(LM, str(folder / stage), TASK, sgd, trainable_layers=1)
            data = SFTData(told, LM, TASK, told, batch_size=3)
        else:
            more: dict[str, Any] = dict(normalise_samples=16, rollout_batch_size=16, trainable_layers=1)
            module = RewardModule(LM, str(folder / stage), TASK, sgd, **more)
            data = PreferenceData([mixed, pairs], LM, TASK, [mixed, pairs], batch_size=3)
        trainer_of(**options).fit(module, data)
        figures = json.loads((folder / stage / "run.json").read_text(encoding="utf-8"))["figures"]
        return load_file(folder / stage / "model.safetensors"), figures

    for stage in ("sft", "reward"):
        one, expected = run(tmp_path / "one", stage)
        two, found = run(tmp_path / "two", stage, strategy="ddp_fork", devices=2)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{stage}: {name}")
        assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-5)
        if stage == "reward":
            assert found["accuracy"] == expected["accuracy"]
            assert found["held_out_figures"]["n"] == 7
            assert found["held_out_figures"]["log_loss"] == pytest.approx(expected["held_out_figures"]["log_loss"], rel=1e-5)


def test_a_family_without_a_sequence_classifier_is_refused_at_the_start(tmp_path: Path) -> None:
    from transformers import CohereConfig, CohereForCausalLM

    sizes = dict(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CohereForCausalLM(CohereConfig(**sizes)).save_pretrained(tmp_path / "cohere")
    (problem,) = classifier_problems(str(tmp_path / "cohere"))
    assert f"model.policy: found {tmp_path}/cohere of the family cohere, of which transformers has no sequence" in problem
    assert classifier_problems("stories260k") == classifier_problems("no such model") == []
    module = RewardModule(str(tmp_path / "cohere"), str(tmp_path / "reward"), TASK)
    data = PreferenceData(labels(tmp_path, "best_of_n", 3), LM, TASK, batch_size=1)
    data.check()
    assert problem in module.check(data, trainer_of(), False)
