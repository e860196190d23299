"""The summaries' tasks run whole, on the embedded model, with their own configs and a shrinking overlay; the rest of the four
run elsewhere (sentiment in `test_readme.py`; descriptiveness differs from it in its labeler alone)."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.__main__ import main as eval_main
from lightning_rlhf.cli import main

ROOT = Path(__file__).resolve().parent.parent
FALSE = ("--trainer.enable_progress_bar", "--trainer.enable_model_summary")
QUIET = [*(w for flag in FALSE for w in (flag, "false")), "--trainer.accelerator", "cpu"]
TASK = {"query_length": 48, "response_length": 12, "truncate_after": 4}
NAMES = ("Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Sue", "Tim", "Amy")
SHRINK: dict[str, dict[str, Any]] = {
    "prompts": {"train": 16, "val": 8, "test": 6},
    "labels": {"batch_size": 16},
    "sft": {"data": {"init_args": {"batch_size": 8}}},
    "start": {"data": {"init_args": {"batch_size": 8}}},
    "reward": {
        "data": {"init_args": {"batch_size": 8}},
        "model": {"init_args": {"normalise_samples": 16, "rollout_batch_size": 16}},
    },
    "ppo": {
        "data": {"init_args": {"batch_size": 8, "total_episodes": 16}},
        "model": {"init_args": {"allow_unguarded": True, "micro_batch_size": 8}},
    },
    "eval": {"batch_size": 8, "n_samples": 2},
}


def sources(folder: Path) -> dict[str, Path]:
    """Posts in lines and articles in .story files, made up."""
    rows = [
        {"subreddit": "pets", "title": f"{a} and {b}", "summary": f"{a} was so happy that he and the dog ran"}
        | {"post": f"{a} met {b} in the park. They ran.\n\nThen {b} was sad."}
        for a in NAMES
        for b in NAMES[:3]
    ]
    (folder / "posts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "stories").mkdir()
    for i, row in enumerate(rows):
        text = f"(CNN) -- {row['title']} met.\n\n{row['post']}\n\n@highlight\n\n{row['summary']}\n"
        (folder / f"stories/{i}.story").write_text(text, encoding="utf-8")
    return {"tldr": folder / "posts.jsonl", "cnndm": folder / "stories"}


def best_of_labels(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script by which runs/task.sh makes the start's demonstrations. This model seldom ends a line: any end will do."""
    with monkeypatch.context() as words:
        words.setattr("sys.argv", ["", str(labels / "train.jsonl"), str(labels / "best.jsonl"), "--end", ""])
        runpy.run_path(str(ROOT / "runs/best_of_labels.py"), run_name="__main__")
    best = {(r["prompt"], r["responses"][r["best"]]) for r in rows(labels / "train.jsonl")}
    assert {(r["prompt"], r["completion"]) for r in rows(labels / "best.jsonl")} == best


def test_what_the_labels_like_best_ends_and_is_of_the_two_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = [  # (ranks, responses)
        ([2, 1, 3], ["a\n", "b", "c\n"]), ([1, 3, 2], ["a\n", "b\n", "c\n"]), ([2, 1, 3], ["a", "b", "c\n"]),
        ([1, 3, 2], ["a\n", "b\n", "c\n"]),
    ]  # fmt: skip
    labels = [{"prompt": f"p{i % 3}", "responses": texts, "ranks": ranks} for i, (ranks, texts) in enumerate(ranked)]
    labels[3]["prompt"] = "p1"  # as the second: one demonstration
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labels), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "labels.jsonl"), str(tmp_path / "best.jsonl")])
    runpy.run_path(str(ROOT / "runs/best_of_labels.py"), run_name="__main__")
    assert rows(tmp_path / "best.jsonl") == [{"prompt": "p0", "completion": "a\n"}, {"prompt": "p1", "completion": "a\n"}]
    rated = [{**{k: v for k, v in row.items() if k != "ranks"}, "ratings": [-r for r in row["ranks"]]} for row in labels]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rated), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "rated.jsonl"), str(tmp_path / "of-rated.jsonl")])
    runpy.run_path(str(ROOT / "runs/best_of_labels.py"), run_name="__main__")
    assert rows(tmp_path / "of-rated.jsonl") == rows(tmp_path / "best.jsonl")
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "labels.jsonl"), str(tmp_path / "best.jsonl"), "--end", "?"])
    with pytest.raises(SystemExit, match="no response of rank 2 or better that ends with"):
        runpy.run_path(str(ROOT / "runs/best_of_labels.py"), run_name="__main__")


@pytest.mark.parametrize(("task", "folder"), [("tldr", ""), ("cnndm", ""), ("tldr", "2020")])
def test_a_summary_task_runs_whole(task: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run, source = tmp_path / "run", sources(tmp_path)[task]
    for stage, change in SHRINK.items():
        change = {**change, "run_dir": str(run), "lm": "stories260k", "task": dict(TASK)}
        if stage == "prompts":
            change["source"] = str(source)
        if stage == "start":
            if task != "cnndm":
                continue
            best_of_labels(run / "labels", monkeypatch)
        if stage == "ppo" and task == "cnndm":
            change["model"] = {"init_args": {**change["model"]["init_args"], "policy": str(run / "start")}}
        if folder:  # this tokenizer's own end of text, and room for a title
            change["task"] |= {"truncate_text": "</s>", "truncate_after": 0, "query_length": 80}
        if folder and stage == "ppo":
            change["task"]["truncate_text"] = None
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(change), encoding="utf-8")
        files = [f"configs/{task}/{stage}.yaml", f"configs/{task}/{folder}/{stage}.yaml", str(tmp_path / f"{stage}.yaml")]
        words = [w for f in files if "//" not in f for w in ("-c", f)]
        if stage == "eval":
            eval_main(["report", *words])
        else:
            main([stage, *words] if stage in ("prompts", "labels") else ["fit", *words, *QUIET])
    prompts = rows(run / "prompts/train.jsonl")
    assert all(r["reference"].endswith(" ran") for r in prompts)
    if folder:
        assert all(re.fullmatch(r"SUBREDDIT: r/pets\n\nTITLE: .*\n\nPOST: .*\n\nTL;DR:", r["prompt"], re.DOTALL) for r in prompts)
    assert all(r["completion"].endswith("</s>" if folder else "\n") for r in rows(run / "prompts/demonstrations.train.jsonl"))
    labels = rows(run / "labels/train.jsonl")
    assert {len(r["responses"]) for r in labels} == {2 if folder else 4}
    assert labels and {r["id"]: r["reference"] for r in prompts}.items() >= {r["id"]: r["reference"] for r in labels}.items()
    assert not any("</s>" in text for r in labels for text in r["responses"])
    report = json.loads((run / "report/report.json").read_text(encoding="utf-8"))
    assert report["task"] == task
    if task == "cnndm":
        assert {"sft", "start", "reward", "ppo"} == report["curves"].keys()
    assert report["reward_model"]["labeler_accuracy"] is not None  # ROUGE found its references
    assert all(0 <= p["scores"]["known"]["mean"] <= 1 for p in report["policies"])


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_script_runs_each_stage_of_a_task() -> None:
    """Every config that runs/task.sh can name is there, for each task and each overlay folder that it is told of."""
    script = (ROOT / "runs/task.sh").read_text(encoding="utf-8")
    named = set(re.findall(r'configs/\$TASK/(\w+)\.yaml"', script)) | set(re.findall(r"for STAGE in (.*); do", script)[0].split())
    assert named == {"prompts", "labels", "sft", "start", "reward", "ppo", "eval"}
    for task in ("sentiment", "descriptiveness", "tldr", "cnndm"):
        for folder in ("", "smollm2"):
            found = {f.stem for f in (ROOT / "configs" / task / folder).glob("*.yaml")}
            assert found - {"online"} == named - ({"start"} if task in ("sentiment", "descriptiveness") else set())
    for folder in ("descriptiveness/stories260k", "tldr/2020"):
        assert {f.stem for f in (ROOT / "configs" / folder).glob("*.yaml")} == named - {"start"}
