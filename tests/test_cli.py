"""Bad input ends in one clear message and exit status 2, before any model is loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning.accelerators import CUDAAccelerator

from lightning_rlhf import prompts, runinfo
from lightning_rlhf.cli import main
from lightning_rlhf.data import PromptData
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.runinfo import RunInfo
from lightning_rlhf.tasks import Task

Refused = Callable[..., str]
Command = Callable[..., list[str]]
GOOD = {"prompt": "Once upon a time", "responses": [" a", " b", " c", " d"], "best": 2}


def lines(*records: object) -> bytes:
    return b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


BAD_COMPARISONS = {
    "broken line": (lines(GOOD, b'{"prompt": "a", "resp\n'), [":2: "]),
    "missing field": (lines(GOOD, {"prompt": "a", "best": 0}), [":2: ", "responses"]),
    "wrong type": (lines(GOOD, {**GOOD, "responses": "all"}), [":2: field 'responses'", '"all"', "expected"]),
    "best out of range": (lines(GOOD, {**GOOD, "best": 4}), [":2: field 'best': found 4", "expected", "0 to 3"]),
    "best of the wrong type": (lines(GOOD, {**GOOD, "best": "2"}), [":2: field 'best': found \"2\"", "expected"]),
    "a byte that is not UTF-8": (lines(GOOD, b'{"prompt": "\xff"}\n'), [":2: ", "UTF-8"]),
    "nothing in it": (b"", ["empty"]),
    "nothing usable in it": (lines({**GOOD, "responses": ["", "", "", ""]}), ["comparisons.jsonl"]),
    "no judgement": (lines({k: v for k, v in GOOD.items() if k != "best"}), ["comparisons.jsonl", "best"]),
}


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(("case", "split"), [*((case, "train") for case in BAD_COMPARISONS), ("broken line", "val")])
def test_bad_comparisons(case: str, split: str, tmp_path: Path, command: Command, refused: Refused) -> None:
    content, expected = BAD_COMPARISONS[case]
    files = {"train": tmp_path / "good.jsonl", "val": tmp_path / "good.jsonl", split: tmp_path / "comparisons.jsonl"}
    (tmp_path / "good.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "comparisons.jsonl").write_bytes(content)
    flags = [word for s, file in files.items() for word in (f"--data.{s}", str(file))]
    message = refused(command("reward", tmp_path / "run", *flags))
    assert str(tmp_path / "comparisons.jsonl") in message
    for part in expected:
        assert part in message
    assert not (tmp_path / "run" / "logs").exists()


@pytest.mark.usefixtures("no_models")
def test_bad_demonstrations_and_prompts(tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    (tmp_path / "bad.jsonl").write_bytes(lines({"prompt": "a", "completion": 3}))
    message = refused(
        command("sft", tiny_run, "--model.output", str(tmp_path / "out"), "--data.train", str(tmp_path / "bad.jsonl"))
    )
    assert f"{tmp_path / 'bad.jsonl'}:1: field 'completion': found 3, expected" in message
    (tmp_path / "bad.jsonl").write_bytes(lines({"prompt": "a"}, {"query": "a"}))
    message = refused(
        command("ppo", tiny_run, "--model.output", str(tmp_path / "out"), "--data.train", str(tmp_path / "bad.jsonl"))
    )
    assert f"{tmp_path / 'bad.jsonl'}:2: field 'prompt'" in message
    message = refused(command("ppo", tiny_run, "--data.train", str(tmp_path / "none.jsonl")))
    assert f"data.train: {tmp_path / 'none.jsonl'}: no such file" in message


OPTIONS = {
    "misspelt": (["--model.kl_coeff", "0.1"], ["kl_coeff"]),
    "wrong type": (["--model.kl_coef", "much"], ["kl_coef", "much", "float"]),
    "wrong type in the task": (["--task.query_length", "long"], ["query_length", "long", "int"]),
    "unknown class": (["--data", "lightning_rlhf.data.NoData"], ["NoData"]),
    "minibatches": (["--model.num_mini_batches", "3"], ["data.batch_size: 8 cannot be split into model.num_mini_batches = 3"]),
    "no minibatch": (["--model.num_mini_batches", "0"], ["model.num_mini_batches: found 0, expected at least 1"]),
    "micro-batches": (["--model.micro_batch_size", "3"], ["model.micro_batch_size: minibatches of 8", "micro-batches of 3"]),
    "batch": (["--data.batch_size", "0"], ["data.batch_size: found 0, expected at least 1"]),
    "episodes": (["--data.total_episodes", "7"], ["data.total_episodes: found 7, expected at least data.batch_size = 8"]),
    "truncation": (["--task.truncate_after", "24"], ["task.truncate_after: found 24, expected 0 to response_length - 1 = 23"]),
    "temperature": (["--task.temperature", "0"], ["task.temperature: found 0", "expected above 0"]),
    "16-mixed": (["--trainer.precision", "16-mixed"], ["trainer.precision: found 16-mixed", "gradient scaler skips"]),
    "64-true": (["--trainer.precision", "64-true"], ["trainer.precision: found 64-true, expected 32-true or bf16-mixed"]),
    "negative β": (["--model.kl_coef", "-0.1"], ["model.kl_coef: found -0.1", "--model.allow_negative_kl true"]),
    "KL target": (["--model.kl_target", "-6"], ["model.kl_target", "-6"]),
    "unguarded": (["--model.guard_comparisons", "null"], ["model.guard_comparisons: not given", "--model.allow_unguarded true"]),
    "guard's file": (["--model.guard_comparisons", "none.jsonl"], ["model.guard_comparisons: ", "none.jsonl", "no such file"]),
    "guard's pair": (
        ["--model.guard_pairs", '[{"prompt": "a", "better": "b"}]'],
        ["model.guard_pairs[0]: found ['better', 'prompt'], expected ['better', 'prompt', 'worse']"],
    ),
    "no such directory": (["--model.policy", "./none"], ["model './none': no such directory or file"]),
    "no such Hub model": (["--lm", "nobody/nothing"], ["model 'nobody/nothing': neither an embedded model", "stories260k"]),
    "no such reward": (["--model.reward", "none"], ["reward 'none': no reward.json there"]),
    "no such known reward": (
        ["--model.reward", "known:taste"],
        ["no such known reward, expected one of ['descriptiveness', 'rouge', 'sentiment']"],
    ),
    "no such module": (["--model.reward", "no_such_module:f"], ["no_such_module", "expected a reward directory"]),
    "seed of a part": (["--data.seed", "3"], ["data.seed: found 3, expected it once for all parts, as seed_everything (now 1)"]),
    "task of a part": (["--model.task.name=tldr"], ["model.task.name: found tldr, expected it once for all parts, as task.name"]),
    "seed": (["--seed_everything", "-1"], ["seed_everything: found -1, expected 0 to 4294967295"]),
    "reference": (
        ["--model.reward", "known:rouge"],
        ["prompts/train.jsonl:1: field 'reference': not there, expected one, for known:rouge"],
    ),
    "a class": (["--model.reward", "decimal:Decimal"], ["found a class, expected a function, or an object that can be called"]),
    "a function's arguments": (
        ["--model.reward", "operator:add"],
        ["reward 'operator:add': ", "it is called with prompts, completions, id, reference"],
    ),
    "metrics": (
        ["--model.metrics", '[{"class_path": "eval.metrics.Rouge"}]', "--data.val", "PROMPTS"],
        ["model.metrics: given, and no prompt of data.val has a reference to compare with"],
    ),
    "validation": (
        ["--trainer.val_check_interval", "50", "--data.val", "PROMPTS"],
        ["trainer.val_check_interval: found 50, and ", "training batches, expected at most as many"],
    ),
    "alarm": (["--model.alarms.repetition", "30"], ["model.alarms.repetition: found 30, expected above 0 and below 1"]),
    "checkpoint": (["--ckpt_path", "none.ckpt"], ["--ckpt_path: none.ckpt: no such file"]),
    "config": (["-c", "none.yaml"], ["none.yaml: No such file or directory, expected a YAML file of options"]),
}


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case: str, tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    flags, expected = OPTIONS[case]
    flags = [str(tiny_run / "prompts/val.jsonl") if flag == "PROMPTS" else flag for flag in flags]
    message = refused(command("ppo", tiny_run, "--model.output", str(tmp_path / "out"), *flags))
    for part in expected:
        assert part in message
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_models")
def test_all_problems_are_told_at_once(tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    message = refused(command(
        "ppo", tiny_run, "--model.output", str(tmp_path / "out"), "--data.total_episodes", "7", "--model.kl_coef", "-1",
        "--model.num_mini_batches", "3", "--task.truncate_after", "99", "--model.guard_comparisons", "null",
        "--data.train", "none.jsonl", "--ckpt_path", "none.ckpt",
    ))  # fmt: skip
    for part in (
        "total_episodes",
        "kl_coef",
        "num_mini_batches",
        "truncate_after",
        "guard_comparisons",
        "data.train",
        "ckpt_path",
    ):
        assert part in message
    assert len(message.strip().splitlines()) == 7


@pytest.mark.usefixtures("no_models")
def test_misspelt_key_in_a_file(tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    (tmp_path / "over.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"cliprage": 0.1}}}), encoding="utf-8")
    assert "cliprage" in refused(command("ppo", tiny_run, "-c", str(tmp_path / "over.yaml")))
    broken = {
        b"model:\n  a: [\n": ":3: ",
        b"- a\n": ": found list",
        b"": ": found NoneType",
        b"a: \xff\n": ": found a byte that is not",
    }
    for content, expected in broken.items():
        (tmp_path / "over.yaml").write_bytes(content)
        assert f"{tmp_path / 'over.yaml'}{expected}" in refused(command("ppo", tiny_run, "-c", str(tmp_path / "over.yaml")))


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_existing_output_is_kept(stage: str, tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    words = command(stage, tiny_run, "--model.output", str(tmp_path / "out"))
    message = refused(words)
    assert f"model.output: {tmp_path / 'out'} exists" in message
    assert "--model.overwrite true" in message
    with pytest.raises(AssertionError, match="a model was loaded"):  # so far, and no refusal
        main([*words, "--model.overwrite", "true"])


@pytest.mark.usefixtures("no_models")
def test_reward_of_another_task(tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    shutil.copytree(tiny_run / "reward", tmp_path / "reward")
    info = json.loads((tmp_path / "reward/reward.json").read_text())
    (tmp_path / "reward/reward.json").write_text(json.dumps({**info, "task": "tldr"}))
    words = command("ppo", tiny_run, "--model.reward", str(tmp_path / "reward"), "--model.output", str(tmp_path / "out"))
    message = refused(words)
    assert "was made for task 'tldr', this run's task is 'sentiment'" in message
    assert "--model.allow_other_task true" in message
    with pytest.raises(AssertionError, match="a model was loaded"):
        main([*words, "--model.allow_other_task", "true"])


@pytest.mark.usefixtures("no_models")
def test_prompt_longer_than_the_task_allows(tmp_path: Path, tiny_run: Path, command: Command, refused: Refused) -> None:
    """Found when the data is tokenised, inside Trainer.fit, and still one message."""
    (tmp_path / "long.jsonl").write_bytes(lines({"prompt": "a"}, {"prompt": "once upon a time " * 20}))
    message = refused(
        command("ppo", tiny_run, "--model.output", str(tmp_path / "out"), "--data.train", str(tmp_path / "long.jsonl"))
    )
    assert f"{tmp_path / 'long.jsonl'}:2: field 'prompt': found " in message
    assert "tokens, expected at most task.query_length = 24" in message


@pytest.mark.usefixtures("no_models")
def test_what_the_trainer_cannot_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_run: Path, command: Command, refused: Refused
) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: False))
    words = command("ppo", tiny_run, "--model.output", str(tmp_path / "out"))
    assert "error: trainer: " in refused([*words, "--trainer.accelerator", "cuda"])
    assert "error: trainer: " in refused([*words, "--trainer.strategy", "nonsense"])
    assert "StageCheckpoint.every: found 0" in refused([*words, "--trainer.callbacks", json.dumps(
        [{"class_path": "lightning_rlhf.stage.StageCheckpoint", "init_args": {"path": "x.ckpt", "every": 0}}])])  # fmt: skip


def test_16_mixed_is_refused_for_ppo_with_the_reason(tiny_run: Path) -> None:
    module = PPOModule("stories260k", "known:sentiment", str(tiny_run / "none"), Task())
    data = PromptData(str(tiny_run / "prompts/train.jsonl"), "stories260k", Task(), batch_size=8)
    found = module.check(data, SimpleNamespace(precision="16-mixed", world_size=1), resuming=False)  # type: ignore[arg-type]
    assert len(found) == 1
    assert "trainer.precision: found 16-mixed" in found[0]
    assert "gradient scaler skips optimizer steps" in found[0]


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("stage", "flags", "expected"),
    [
        ("labels", ["--num_samples", "1"], ["num_samples: found 1, expected at least 2"]),
        ("labels", ["--batch_size", "0", "--precision", "half"], ["batch_size: found 0", "precision: found 'half'"]),
        ("labels", ["--prompts", "none"], ["prompts: none/train.jsonl: no such file"]),
        ("labels", ["--labeler", "known:taste"], ["no such known reward"]),
        ("labels", ["--lm", "./none"], ["model './none': no such directory or file"]),
        ("labels", ["--task.truncate_after", "30"], ["task.truncate_after: found 30"]),
        ("labels", ["--sampels", "4"], ["sampels"]),
        ("labels", ["--num_sample", "4"], ["--num_sample 4: found an unknown option"]),  # no option by the beginning of its name
        ("prompts", ["--train", "0", "--val", "0"], ["train: found 0, expected at least 1", "val: found 0"]),
        ("prompts", ["--source", "none"], ["source: 'none': found no such file or folder, expected novels, self or a path"]),
        ("prompts", ["--lm", "./none"], ["model './none'"]),
        ("prompts", ["--train", "many"], ["train", "many", "int"]),
    ],
)
def test_bad_options_of_functions(
    stage: str, flags: list[str], expected: list[str], tmp_path: Path, tiny_run: Path, command: Command, refused: Refused
) -> None:
    message = refused(command(stage, tiny_run, "--output", str(tmp_path / "out"), *flags))
    for part in expected:
        assert part in message
    assert not (tmp_path / "out").exists()


def test_unknown_command(refused: Refused) -> None:
    commands = "prompts, labels, split, label, online, fit, validate, estimate"
    assert refused(["train"]) == f"error: no command 'train', expected one of: {commands}\n"


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    out = capsys.readouterr().out
    for word in ("usage: lightning-rlhf", "prompts", "labels", "split", "fit", "validate", "-c CONFIG"):
        assert word in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["labels", "--help"], ["num_samples", "Responses a comparison"]),
        (["fit", "--help"], ["--run_dir", "--lm", "--task.query_length", "Longest query in tokens", "--ckpt_path"]),
        (["fit", "--model.help", "lightning_rlhf.ppo.PPOModule"], ["kl_coef", "the KL coefficient at the start"]),
    ],
)
def test_help_explains_options(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for part in expected:
        assert part in out


def test_interrupt_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prompts, "build_prompts", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["prompts"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_failed_compilation_names_the_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def backend(graph: object, inputs: object) -> None:
        raise KeyError("buf3")

    def compiles(**options: object) -> None:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))

    monkeypatch.setattr(prompts, "build_prompts", compiles)
    with pytest.raises(SystemExit) as stopped:
        main(["prompts"])
    assert stopped.value.code == 2
    found = capsys.readouterr().err
    assert found.startswith("error: model.compile_blocks, model.compile_sampler: PyTorch ")
    assert "KeyError: 'buf3'" in found and "Traceback" not in found


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/x/eval/__main__.py", "report", "--output", "a b"], "python -m eval report --output 'a b'"),
        (["/x/lightning_rlhf/__main__.py", "fit"], "python -m lightning_rlhf fit"),
        (["/x/bin/lightning-rlhf", "fit", "-c", "a.yaml"], "lightning-rlhf fit -c a.yaml"),
    ],
)
def test_a_runs_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, argv: list[str], expected: str) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert RunInfo("fit", 1).record()["command"] == expected


def test_another_projects_commit_is_not_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the package is installed in an environment inside a repository of the user's own."""
    installed = tmp_path / ".venv/site-packages/lightning_rlhf/runinfo.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    (tmp_path / "mine.txt").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "mine.txt"], ["commit", "-qm", "mine"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(runinfo, "__file__", str(installed))
    assert runinfo.commit() is None
    subprocess.run([*git, "add", str(installed)], check=True)
    assert str(runinfo.commit()).endswith("+")
