"""Shared by the tests: a tiny run directory on the embedded model, made once by the commands themselves."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub's client
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors gain nothing from threads, and on a busy machine lose a lot

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu")
SMALL = {
    "prompts": ("--train", "160", "--val", "40", "--test", "8"),
    "labels": (),
    "sft": ("--data.batch_size", "60", *QUIET),
    "reward": ("--data.batch_size", "60", "--model.normalise_samples", "32", "--model.rollout_batch_size", "32", *QUIET),
    "ppo": ("--data.batch_size", "8", "--data.total_episodes", "32", *QUIET),
}


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """`command(stage, run_dir, *flags)`: the words of a stage's command, shrunk; later flags win."""

    def words(stage: str, run_dir: str | Path, *flags: str) -> list[str]:
        base = [stage] if stage in ("prompts", "labels") else ["fit"]
        for folder in (CONFIGS / "sentiment", CONFIGS / "sentiment" / "stories260k"):
            base += ["-c", str(folder / f"{stage}.yaml")]
        # a tiny reward model passes the guard with room to spare only on what it was trained on
        guard = ("--model.guard_comparisons", f"{run_dir}/labels/train.jsonl") if stage == "ppo" else ()
        return [*base, "--run_dir", str(run_dir), *SMALL[stage], *guard, *flags]

    return words


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., list[str]]) -> Path:
    """A run directory with prompts, labels and a reward model that beats chance. Read it, never write into it."""
    from lightning_rlhf.cli import main

    run_dir = tmp_path_factory.mktemp("tiny") / "run"
    for stage in ("prompts", "labels"):
        main(command(stage, run_dir))
    main(command("reward", run_dir, "--data.batch_size", "8", "--trainer.max_epochs", "4"))
    return run_dir


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model's weights fails the test."""
    import transformers

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    for name in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", refuse)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(args, main=…)`: run a command that must end in one message and exit status 2; returns the message."""

    def run(args: list[str], main: Callable[[list[str]], None] | None = None) -> str:
        from lightning_rlhf import cli

        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            (main or cli.main)(args)
        out, err = capsys.readouterr()
        assert stopped.value.code == 2, err
        assert "Traceback" not in out + err
        assert err.count("error: ") == 1, err
        return err[err.index("error: ") :]

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium of the system; a test that wants it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[dev]')")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    with sync_api.sync_playwright() as playwright:
        # --no-sandbox: a container's root has no user namespace to make one in; the page is our own file.
        program = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=180_000)
        yield program
        program.close()
