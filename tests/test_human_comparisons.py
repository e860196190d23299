"""runs/human_comparisons: the whole of it on tiny files of the same layout, and its baselines on pairs made up for them."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf.cli import main
from lightning_rlhf.models import load_tokenizer
from lightning_rlhf.records import Comparison, read_comparisons
from lightning_rlhf.tokens import decode

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("human_comparisons", ROOT / "runs/human_comparisons.py")
assert spec is not None
assert spec.loader is not None
human = importlib.util.module_from_spec(spec)
spec.loader.exec_module(human)

AXES = ("coherence", "consistency", "fluency", "relevance")


def zipped(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """20 dialogues whose longer answer was chosen, 10 articles with three summaries."""
    talk = "\n\nHuman: Hello {}, tell me of the day when you and your dog went to the park.\n\nAssistant:"
    dialogues = [
        {"chosen": talk.format(i) + " We ran and we ran, and the sun was big.", "rejected": talk.format(i) + " No."}
        for i in range(20)
    ]
    zipped(tmp_path / "data/hh_harmless/comparisons.jsonl.gz", dialogues)
    summaries = {"A": ("The cat ran.", 5.0), "B": ("A dog.", 1.0), "C": ("The cat sat.", 1.0)}
    articles = [
        {
            "id": str(i), "article": f"Once upon a time there was a cat named {i}. " * 9, "reference": "x",
            "references": ["The cat ran."],
            "systems": {k: {"summary": t, "ratings": dict.fromkeys(AXES, r)} for k, (t, r) in summaries.items()},
        }
        for i in range(10)
    ]  # fmt: skip
    zipped(tmp_path / "data/summeval/ratings.jsonl.gz", articles)
    return tmp_path / "data"


@pytest.mark.filterwarnings("ignore")
def test_from_files_to_table(data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("stories260k")
    for name, query, response in (("hh_harmless", 24, 8), ("summeval", 32, 6)):
        human.prepare(name, str(data), str(tmp_path), "stories260k", str(query), str(response))
        train, val = (list(read_comparisons(tmp_path / name / f"{s}.jsonl")) for s in ("train", "val"))
        assert (len(train), len(val)) == ((16, 4) if name == "hh_harmless" else (8, 2))
        assert {len(c.prompt) for c in train + val} == {query}
        assert max(len(r) for c in train + val for r in c.responses) == response
        text = decode(tokenizer, train[0].prompt)  # type: ignore[arg-type]
        assert text.endswith("\n\nAssistant:" if name == "hh_harmless" else "\n\nTL;DR:")
        main([
            "fit", "-c", str(ROOT / f"configs/human/{name}.yaml"), "-c", str(ROOT / "configs/hardware/cpu.yaml"),
            "--run_dir", str(tmp_path / name), "--lm", "stories260k", "--task.query_length", str(query),
            "--task.response_length", str(response), "--model.num_hidden_layers", "2", "--model.lora.top_blocks", "1",
            "--model.normalise_samples", "8", "--model.rollout_batch_size", "8", "--trainer.enable_progress_bar", "false",
            "--trainer.logger", "false", "--trainer.callbacks", "[]",
        ])  # fmt: skip
    assert train[0].ranks == [1, 2, 2]
    lines = human.probe(str(tmp_path / "hh_harmless"), "stories260k", "1", "5").splitlines()
    assert len(lines) == 2 + 2 * 2 and lines[2].startswith("| 1 | last token |") and lines[5].startswith("| 5 | mean over")
    assert lines[5].split(" | ")[2] == "1.000"  # the chosen answers are all the same text
    # the query is read once for all responses: the states are those of each read by itself
    lm = human.load_lm("stories260k")
    (both,) = human.states(lm, train[:1], [5])
    for text, state in zip(train[0].responses, both, strict=True):
        ids = human.torch.tensor([[*train[0].prompt, *text]])
        hidden = lm.model(ids, output_hidden_states=True).hidden_states[5][0, len(train[0].prompt) :].detach().numpy()
        assert state[0, 0] == pytest.approx(hidden[-1], abs=1e-4) and state[1, 0] == pytest.approx(hidden.mean(0), abs=1e-4)
    lines = human.table(str(tmp_path)).splitlines()
    assert len(lines) == 2 + 2 * 4
    assert "| hh_harmless | length alone | 1.000 |" in lines[3]
    assert "| summeval | rouge alone | 1.000 |" in lines[8]
    found = json.loads((tmp_path / "human_comparisons.json").read_text(encoding="utf-8"))
    assert found["summeval"]["length alone"]["n"] == 2
    for name in found:
        own = found[name]["reward model (stories260k)"]
        trained = json.loads((tmp_path / name / "reward/reward.json").read_text(encoding="utf-8"))
        assert [own["accuracy"], own["low"]] == pytest.approx([trained["accuracy"], trained["accuracy_low"]])
        more, low, high = found[name]["rouge alone"]["more"]
        assert more == pytest.approx(own["accuracy"] - found[name]["rouge alone"]["accuracy"]) and low <= more <= high
    assert found["hh_harmless"]["held_out_figures"]["by_length"]


def test_baseline_learns_the_side_and_no_more() -> None:
    pair = lambda better, worse: Comparison("p", ["a", "b"], best=1, meta={"features": {"length": [[worse], [better]]}})  # noqa: E731
    rate = lambda train, val: human.shares(human.baseline(train, val, "length")).mean()  # noqa: E731
    shorter = [pair(1.0, 2.0)] * 7 + [pair(2.0, 1.0)] * 3
    assert rate(shorter, [pair(0.0, 5.0), pair(5.0, 0.0)]) == 0.5
    assert rate(shorter, [pair(0.0, 5.0), pair(-1.0, 0.5)]) == 1.0
    # a ranking of three counts as much as a pair, not as three
    ranked = Comparison("p", ["a", "b", "c"], ranks=[1, 2, 3], meta={"features": {"length": [[3.0], [2.0], [1.0]]}})
    assert rate([ranked, pair(1.0, 3.0), pair(1.0, 3.0)], [pair(0.0, 1.0)]) == 1.0


def test_what_is_not_there_is_skipped(tmp_path: Path) -> None:
    done = subprocess.run([ROOT / "runs/human_comparisons.sh", tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{name}: skipped, {tmp_path}/{name}/{file}.jsonl.gz is not there"
        for name, file in (("hh_harmless", "comparisons"), ("summeval", "ratings"))
    ]
