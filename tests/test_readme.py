"""The README's commands run, one a stage, with a shrinking overlay; the demo is nothing but them."""

from __future__ import annotations

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main as eval_main
from lightning_rlhf.cli import main

ROOT = Path(__file__).resolve().parent.parent
SHRINK = {
    "prompts": "--train 24 --val 8 --test 8",
    "labels": "--batch_size 16",
    "sft": "--data.batch_size 8",
    "reward": "--data.batch_size 8 --model.normalise_samples 16 --model.rollout_batch_size 16",
    "ppo": "--data.batch_size 8 --data.total_episodes 16 --model.allow_unguarded true",
    "report": "--batch_size 8 --n_samples 2",
}
FIT = "--trainer.enable_progress_bar false --trainer.enable_model_summary false --trainer.accelerator cpu"


def commands(text: str) -> list[list[str]]:
    """Command lines of our programs in a text, as words."""
    return [shlex.split(line) for line in text.splitlines() if re.match(r"(lightning-rlhf|python -m eval) ", line)]


def stage_of(command: list[str]) -> str:
    """The stage that a command runs: of `fit`, the name of its first config."""
    config = next(w for w in command if w.endswith(".yaml"))
    return "report" if command[0] == "python" else Path(config).stem


OWN = {"--samples", "label", "file:answers.jsonl"}  # of commands on samples of one's own, or on which people label
README = [c for c in commands((ROOT / "README.md").read_text(encoding="utf-8")) if not OWN & set(c)]  # a run's stages


def test_readme_shows_each_stage_in_order() -> None:
    stages = [stage_of(c) for c in README if "--ckpt_path" not in c]
    assert stages == list(SHRINK)


def test_demo_is_the_readmes_commands() -> None:
    script = (ROOT / "runs/sentiment.sh").read_text(encoding="utf-8")
    script = script.replace("$BASE", "configs/sentiment").replace("$OVER", "configs/sentiment/stories260k")
    flags = r' (-c \$HARDWARE|--run_dir "\$RUN"|--seed(_everything)? "\$SEED"|\$PROMPTS|\$PPO)'
    plain = [re.sub(flags, "", line.strip()) for line in script.splitlines()]
    assert commands("\n".join(plain)) == [c for c in README if "--ckpt_path" not in c]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which every stage command of the README has run."""
    out = tmp_path_factory.mktemp("readme") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for command in README:
            stage = stage_of(command)
            extra = [*shlex.split(SHRINK[stage]), "--run_dir", str(out)]
            if "--ckpt_path" in command:
                at = command.index("--ckpt_path") + 1
                command = [*command[:at], str(out / "checkpoints/ppo.ckpt"), *command[at + 1 :]]
            if command[0] == "python":
                eval_main([*command[3:], *extra])
            else:
                main([*command[1:], *extra, *(shlex.split(FIT) if command[1] == "fit" else [])])
    return out


def test_stages_leave_what_the_next_one_reads(run_dir: Path) -> None:
    for file in (
        "prompts/train.jsonl", "labels/train.jsonl", "labels/demonstrations.train.jsonl", "sft/model.safetensors",
        "reward/reward.json", "ppo/model.safetensors", "ppo/value_head.safetensors", "report/report.html",
    ):  # fmt: skip
        assert (run_dir / file).is_file(), file
    for stage in ("prompts", "labels", "sft", "reward", "ppo"):
        info = json.loads((run_dir / stage / "run.json").read_text(encoding="utf-8"))
        assert info["stage"] == stage
        assert info["seed"] == 1
        assert info["versions"]["torch"]
        assert info["seconds"] > 0


def test_queries_are_distinct_and_in_one_split(run_dir: Path) -> None:
    queries = [
        json.loads(line)["prompt"]
        for split in ("train", "val", "test")
        for line in (run_dir / f"prompts/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(queries) == len(set(queries)) == 24 + 8 + 8


def test_exports_load_with_transformers(run_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for stage in ("sft", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(run_dir / stage)
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        AutoModelForCausalLM.from_pretrained(run_dir / stage)
    assert AutoModelForSequenceClassification.from_pretrained(run_dir / "reward").config.num_labels == 1


def test_report_holds_what_was_promised(run_dir: Path) -> None:
    report = json.loads((run_dir / "report/report.json").read_text(encoding="utf-8"))
    assert [p["name"] for p in report["policies"]] == ["zero-shot", "zero-shot (second draw)", "supervised", "rlhf"]
    for policy in report["policies"]:
        assert {"known", "learned", "kl"} <= policy["scores"].keys()
        assert policy["scores"]["known"]["n"] == 8
        assert {"1", "2", "3"} == policy["distinct"].keys()
        assert policy["perplexity"] > 1
    assert len(report["comparisons"]) == 6  # each pair of the four once
    assert len(report["samples"]) == 2
    assert {"sft", "reward", "ppo"} == report["curves"].keys()
    assert {"objective/score", "objective/kl", "objective/kl_coef"} <= report["curves"]["ppo"].keys()
    assert report["reward_model"]["chance"] == pytest.approx(0.25)
    assert [r["stage"] for r in report["provenance"]] == ["prompts", "labels", "sft", "reward", "ppo", "eval"]


def test_zero_shot_has_no_kl_to_itself(run_dir: Path) -> None:
    rows = [json.loads(line) for line in (run_dir / "report/scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(r["scores"]["kl"] == 0 for r in rows if r["policy"].startswith("zero-shot"))
    assert any(r["scores"]["kl"] != 0 for r in rows if r["policy"] == "rlhf")


def test_a_second_report_samples_nothing_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr("eval.sample.answer", never)
    monkeypatch.setattr("eval.sample.call_reward", never)
    monkeypatch.chdir(ROOT)
    before = (run_dir / "report/scores.jsonl").read_bytes()
    command = next(c for c in README if c[0] == "python")
    eval_main([*command[3:], *shlex.split(SHRINK["report"]), "--run_dir", str(run_dir)])
    assert (run_dir / "report/scores.jsonl").read_bytes() == before
    # beside another run, with a further reward model, and a short browser
    more = ["--more_logs.again", str(run_dir / "logs"), "--ensemble", f"[{run_dir / 'reward'}]", "--n_browse", "3"]
    eval_main([*command[3:], *shlex.split(SHRINK["report"]), "--run_dir", str(run_dir), *more])
    report = json.loads((run_dir / "report/report.json").read_text(encoding="utf-8"))
    assert [found["name"] for found in report["frontier"]["runs"]] == ["ppo", "again"]
    assert len(report["ensemble"]["members"]) == 2
    assert (len(report["samples"]), len(report["more_samples"])) == (2, 1)
    assert (run_dir / "report/scores.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge", "votes"], "judge: found 'votes'"),
        (["--prompts", "nowhere.jsonl"], "prompts: nowhere.jsonl: no such file"),
        (["--more_logs.other", "nowhere"], "more_logs.other: nowhere: found no ppo/version_*/metrics.csv there"),
        (["--ensemble", "[nowhere]"], "reward 'nowhere': no reward.json there"),
        (["--ensemble", "[nowhere]", "--comparisons", "null"], "expected learned_reward and comparisons with it"),
        (["--second_draw", "nobody"], "second_draw: found 'nobody'"),
        (["--policies.rlhf", "out/nowhere/at/all"], "model 'out/nowhere/at/all': no such directory"),
        (["--precision", "8"], "precision: found '8'"),
    ],
)
def test_eval_names_what_is_wrong(
    run_dir: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = next(c for c in README if c[0] == "python")
    with pytest.raises(SystemExit) as stop:
        eval_main([*command[3:], "--run_dir", str(run_dir), "--output", str(run_dir / "elsewhere"), *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


CLASSES = {"PPOModule": "ppo", "PPONetworks": "ppo_networks", "RewardModule": "reward", "StageModule": "stage"}


def test_each_equation_of_the_method_has_its_function_and_its_test() -> None:
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[3]) if "." in name]
    tests = [file for row in rows for file in re.findall(r"`(tests/[\w/.]+)`", row[4])]
    assert len(named) > 70 and len(tests) > 70
    for name in named:
        owner, attribute = name.rsplit(".", 1)
        if owner in CLASSES:
            found: Any = getattr(import_module(f"lightning_rlhf.{CLASSES[owner]}"), owner)
        else:
            found = import_module(owner if owner.startswith("eval.") else f"lightning_rlhf.{owner}")
        assert hasattr(found, attribute), name
    assert not [file for file in tests if not (ROOT / file).is_file()]
