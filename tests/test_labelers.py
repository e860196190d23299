"""The simulated labeler picks the argmax of the known reward; the same seed gives the same labels."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from lightning_rlhf import labelers
from lightning_rlhf.files import DataError
from lightning_rlhf.folders import alone
from lightning_rlhf.known import RougeReward, SentimentReward
from lightning_rlhf.labelers import Answers, answer, compare, label, redrawn
from lightning_rlhf.models import load_lm, run_context
from lightning_rlhf.records import Prompt, label_type, read_comparisons, read_demonstrations
from lightning_rlhf.scoring import code_of
from lightning_rlhf.tasks import Task, UsageError, task_tokens

TASK = Task(query_length=24, start_text=None)
LABELER = "def longest(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n"


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def labelled(tiny_run: Path, output: Path, **options: Any) -> list[dict[str, Any]]:
    given = {"train": 6, "val": 3, "batch_size": 4, "precision": "32", **options}
    label("stories260k", TASK, str(tiny_run / "prompts"), str(output), **given)
    return rows(output / "train.jsonl")


def test_best_is_the_argmax_of_the_known_reward(tiny_run: Path) -> None:
    reward = SentimentReward()
    for split, n in (("train", 160), ("val", 40)):
        comparisons = rows(tiny_run / f"labels/{split}.jsonl")
        assert len(comparisons) == n
        for row in comparisons[:40]:
            scores = list(reward(prompts=[row["prompt"]] * 4, completions=row["responses"]))
            assert row["best"] == scores.index(max(scores))
            assert row["labeler_scores"] == pytest.approx(scores, abs=1e-5)


def test_files_are_read_by_the_stages(tiny_run: Path) -> None:
    for split in ("train", "val"):
        comparisons = list(read_comparisons(str(tiny_run / f"labels/{split}.jsonl")))
        chosen = list(read_demonstrations(str(tiny_run / f"labels/demonstrations.{split}.jsonl")))
        assert [(c.prompt, c.responses[c.best]) for c in comparisons if c.best is not None] == [
            (d.prompt, d.completion) for d in chosen
        ]
        prompts = rows(tiny_run / f"prompts/{split}.jsonl")
        assert [(p["id"], p["prompt"]) for p in prompts] == [
            (r["id"], r["prompt"]) for r in rows(tiny_run / f"labels/{split}.jsonl")
        ]
    info = json.loads((tiny_run / "labels/run.json").read_text(encoding="utf-8"))
    assert info["figures"] == {"train": 160, "val": 40}
    assert set(info["data"]) == {str(tiny_run / f"prompts/{s}.jsonl") for s in ("train", "val")}


def test_seed_decides(tiny_run: Path, tmp_path: Path) -> None:
    first = labelled(tiny_run, tmp_path / "a")
    assert labelled(tiny_run, tmp_path / "b") == first
    other = labelled(tiny_run, tmp_path / "c", seed=2)
    assert [r["prompt"] for r in other] == [r["prompt"] for r in first]
    assert [r["responses"] for r in other] != [r["responses"] for r in first]
    assert len(rows(tmp_path / "a/val.jsonl")) == 3


def test_several_comparisons_a_prompt(tiny_run: Path, tmp_path: Path) -> None:
    """Of responses of their own; one demonstration a prompt, and one validation comparison."""
    found = labelled(tiny_run, tmp_path, per_prompt=2, num_samples=3)
    assert [r["id"] for r in found[::2]] == [r["id"] for r in found[1::2]]
    assert len({r["id"] for r in found}) == 6 and len(found) == 12
    assert all(len(r["responses"]) == 3 for r in found)
    assert all(a["responses"] != b["responses"] for a, b in zip(found[::2], found[1::2], strict=True))
    chosen = [r["completion"] for r in rows(tmp_path / "demonstrations.train.jsonl")]
    assert chosen == [r["responses"][r["best"]] for r in found[::2]]
    assert len(rows(tmp_path / "val.jsonl")) == 3


def test_a_batch_is_as_large_whatever_a_prompt_has(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In responses, for that is what memory holds; a prompt is never parted."""
    asked: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        asked.append(len(args[3]) * args[5])
        return answer(*args, **options)

    monkeypatch.setattr(labelers, "answer", counted)
    for each, expected in ((1, [16, 8]), (2, [16] * 3), (3, [12] * 6), (5, [20] * 6)):
        asked.clear()
        labelled(tiny_run, tmp_path / str(each), per_prompt=each)
        assert asked[:-1] == expected  # then the validation prompts


def test_what_has_not_ended_is_drawn_anew() -> None:
    """In its own place, from a draw of another seed, as often as is allowed; what had ended stays."""
    ends = {0: ["a.", "b", "c"], 1: ["d.", "e.", "f"], 2: ["g", "h.", "i."]}
    asked: list[tuple[list[str], int]] = []

    def ask(prompts: list[str], seed: int) -> Answers:
        texts = [["z."] * 3 if p == "ended" else list(ends[len(asked)]) for p in prompts]
        asked.append((prompts, seed))
        found = [[t.endswith(".") for t in three] for three in texts]
        return Answers(texts, [[[ord(t[0])] for t in three] for three in texts], found, [[1] * 3 for _ in texts])

    once = redrawn(ask, ["open", "ended"], 5, 1)
    assert once.texts == [["a.", "d.", "e."], ["z."] * 3] and once.draws == [[1, 2, 2], [1] * 3]
    assert once.tokens[0] == [[ord("a")], [ord("d")], [ord("e")]] and once.found[0] == [True] * 3
    assert [prompts for prompts, _ in asked] == [["open", "ended"], ["open"]] and asked[0][1] != asked[1][1]
    ends[1] = ["d", "e", "f."]
    asked.clear()
    assert redrawn(ask, ["open"], 5, 2).texts == [["a.", "f.", "h."]] and len(asked) == 3
    asked.clear()
    stays = redrawn(ask, ["open"], 5, 1)
    assert (stays.texts, stays.found, stays.draws) == ([["a.", "f.", "c"]], [[True, True, False]], [[1, 2, 1]])
    asked.clear()
    assert redrawn(ask, ["open"], 5, 0).texts == [["a.", "b", "c"]] and len(asked) == 1


def test_labels_of_responses_that_end(tiny_run: Path, tmp_path: Path) -> None:
    """As what people are shown in 2019: all end at a period; those that did so at once are the same."""
    first = labelled(tiny_run, tmp_path / "once")
    ended = labelled(tiny_run, tmp_path / "ended", redraws=40)
    pairs = [(a, b) for x, y in zip(first, ended, strict=True) for a, b in zip(x["responses"], y["responses"], strict=True)]
    assert all(b.endswith(".") for _, b in pairs) and any(not a.endswith(".") for a, _ in pairs)
    assert all(a == b for a, b in pairs if a.endswith("."))
    told = [json.loads((tmp_path / name / "run.json").read_text())["config"].get("redraws") for name in ("once", "ended")]
    assert told == [None, 40]  # 0 is no option that an unfinished run of before would lack


@pytest.mark.parametrize(
    ("task", "redraws", "message"),
    [(TASK, -1, "redraws: found -1, expected at least 0"),
     (Task(truncate_text=None), 3, "redraws: found 3 with task.truncate_text null, expected 0")],
)  # fmt: skip
def test_redraws_that_cannot_be(tiny_run: Path, tmp_path: Path, task: Task, redraws: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        label("stories260k", task, str(tiny_run / "prompts"), str(tmp_path), redraws=redraws)


def test_comparisons_of_equal_responses_are_left_out(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sure(*args: Any, **options: Any) -> Any:
        found = answer(*args, **options)
        return found._replace(texts=[[t[0]] * len(t) if i == 1 else t for i, t in enumerate(found.texts)])

    monkeypatch.setattr(labelers, "answer", sure)
    found = labelled(tiny_run, tmp_path)  # 4 + 2 prompts, of which each batch's second
    assert len(found) == 4 and "labels train: 2 of responses that are all equally good were left out" in capsys.readouterr().out
    assert len(list(read_comparisons(str(tmp_path / "train.jsonl")))) == 4
    assert len(rows(tmp_path / "demonstrations.train.jsonl")) == 6


def test_the_labeler_ranks_or_rates(tiny_run: Path, tmp_path: Path) -> None:
    """The same responses and demonstrations, a label of another type, held-out ones too."""
    best = labelled(tiny_run, tmp_path / "best")
    ranked = labelled(tiny_run, tmp_path / "ranked", label_type="ranked")
    rated = labelled(tiny_run, tmp_path / "rated", label_type="scalar_rating")
    for one, two, three in zip(best, ranked, rated, strict=True):
        assert one["responses"] == two["responses"] == three["responses"]
        assert two["best"] == one["best"] == two["ranks"].index(1)
        assert three["ratings"] == one["labeler_scores"] and "best" not in three
        order = sorted(range(4), key=lambda i: -one["labeler_scores"][i])
        assert [two["ranks"][i] for i in order] == sorted(two["ranks"]) and two["ranks"][order[-1]] > 1
    for name, kind in (("best", "best_of_n"), ("ranked", "ranked"), ("rated", "scalar_rating")):
        assert {label_type(c) for s in ("train", "val") for c in read_comparisons(tmp_path / name / f"{s}.jsonl")} == {kind}
    assert len({(tmp_path / n / "demonstrations.train.jsonl").read_text() for n in ("best", "ranked", "rated")}) == 1


def test_comparisons_with_an_empty_response_are_left_out(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`read_comparisons` takes none of them, so that more than 1 % would make the file useless."""

    def mute(*args: Any, **options: Any) -> Any:
        found = answer(*args, **options)
        return found._replace(texts=[["\n", *t[1:]] if i == 1 else t for i, t in enumerate(found.texts)])

    monkeypatch.setattr(labelers, "answer", mute)
    assert len(labelled(tiny_run, tmp_path)) == 4
    assert "labels train: 2 with a response without text were left out" in capsys.readouterr().out
    assert len(list(read_comparisons(str(tmp_path / "train.jsonl"), strict=True))) == 4
    assert all(row["completion"].strip() for row in rows(tmp_path / "demonstrations.train.jsonl"))


def test_a_changed_labeler_labels_nothing_that_another_began(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "of_mine.py"
    file.write_text("def longest(prompts, completions, **columns):\n    return [*map(len, completions)]\n")
    named = [code_of("of_mine:longest"), code_of(f"{file}:longest")]
    file.write_text("def longest(prompts, completions, **columns):\n    return [-len(c) for c in completions]\n")
    changed = [code_of("of_mine:longest"), code_of(f"{file}:longest")]
    assert all(now != then for now, then in zip(changed, named, strict=True))
    assert code_of("known:sentiment") == "known:sentiment"


def test_a_labeler_that_never_prefers(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bored.py").write_text("def equal(prompts, completions, **columns):\n    return [0.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"train\.part: bored:equal likes the responses of each of 6 comparisons equally"):
        labelled(tiny_run, tmp_path / "out", labeler="bored:equal")


@pytest.mark.parametrize(("per_prompt", "batches"), [(1, [4, 2]), (2, [2, 2, 2])])
def test_a_killed_run_goes_on_from_its_last_batch(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_prompt: int, batches: list[int]
) -> None:
    """The labels are those of a run that nobody killed; other options begin anew."""
    more: dict[str, Any] = {"per_prompt": per_prompt}
    whole, asked = labelled(tiny_run, tmp_path / "whole", **more), []

    def dies(*args: Any, at: int = 0, **options: Any) -> Any:
        asked.append(args[3])
        if len(asked) == at:
            raise KeyboardInterrupt
        return answer(*args, **options)

    def killed(**options: Any) -> list[dict[str, Any]]:
        asked.clear()
        monkeypatch.setattr(labelers, "answer", partial(dies, at=2))
        with pytest.raises(KeyboardInterrupt):
            labelled(tiny_run, tmp_path / "killed", **more, **options)
        with (tmp_path / "killed/train.part").open("ab") as handle:
            handle.write(b'{"rows": [')  # torn off by the kill
        asked.clear()
        monkeypatch.setattr(labelers, "answer", dies)
        return labelled(tiny_run, tmp_path / "killed", **more, **(options if options != {"seed": 2} else {}))

    assert killed() == whole
    assert [len(batch) for batch in asked] == [*batches[1:], 3]  # val
    assert not list((tmp_path / "killed").glob("*.part"))
    assert killed(seed=2) == whole
    assert [len(batch) for batch in asked] == [*batches, 3]


def test_two_processes_do_not_label_into_one_folder(tiny_run: Path, tmp_path: Path) -> None:
    with alone(tmp_path / "labels"), pytest.raises(DataError, match="labels: another process is writing there"):
        labelled(tiny_run, tmp_path / "labels")
    assert not list((tmp_path / "labels").iterdir())
    labelled(tiny_run, tmp_path / "labels")


def test_labeler_of_ones_own(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LABELER, encoding="utf-8")
    for row in labelled(tiny_run, tmp_path / "out", labeler=f"{tmp_path / 'mine.py'}:longest", num_samples=3):
        lengths = [len(r) for r in row["responses"]]
        assert len(lengths) == 3
        assert row["best"] == lengths.index(max(lengths))


def test_first_of_equals_is_chosen() -> None:
    """And the prompt's other columns reach the labeler, one value a response."""

    def reward(prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        assert columns == {"reference": [None] * 3, "id": ["x"] * 3, "genre": ["y"] * 3}
        return [float(len(c)) for c in completions]

    made = compare(reward, [Prompt("p", meta={"id": "x", "genre": "y"})], [["a", "bb", "cc"]])
    assert made == [{"prompt": "p", "responses": ["a", "bb", "cc"], "best": 1, "labeler_scores": [1.0, 2.0, 2.0], "id": "x"}]


def test_labeler_that_needs_a_reference(tiny_run: Path, tmp_path: Path) -> None:
    """ROUGE picks the answer nearest to the reference, which stays with the comparison; without one it says so at the start."""
    prompt = Prompt("p", reference="the cat sat", meta={"id": "x"})
    made = compare(RougeReward(), [prompt], [["dogs", "the cat sat down", "the mat"]])
    assert (made[0]["best"], made[0]["reference"], made[0]["id"]) == (1, "the cat sat", "x")
    with pytest.raises(DataError, match=r"train\.jsonl:1: field 'reference': not there, expected one, for known:rouge"):
        labelled(tiny_run, tmp_path / "out", labeler="known:rouge")
    assert not (tmp_path / "out").exists()


def test_labeler_sees_the_truncated_response() -> None:
    """The text ends with the first full stop at index >= 16, or is whole where there is none; ids come untruncated."""
    lm = load_lm("stories260k")
    resolved = task_tokens(TASK, lm.tokenizer)
    with run_context():
        texts, ids, found, _ = answer(lm, TASK, resolved, ["Once upon a time", "Lily"], seed=1, num_samples=8)
    assert [len(t) for t in texts] == [8, 8]
    cut = 0
    for text, row, has in zip(*(chain.from_iterable(x) for x in (texts, ids, found)), strict=True):
        assert len(row) == 24
        at = [i for i, token in enumerate(row) if token == resolved.truncate and i >= 16]
        assert has == bool(at)
        kept = row[: at[0] + 1] if at else row
        assert lm.tokenizer.encode("a" + text, add_special_tokens=False)[-1] == kept[-1]
        cut += len(kept) < 24
    assert 0 < cut < 16


def test_nothing_is_sampled_after_the_truncate_token_where_the_text_alone_is_wanted() -> None:
    lm, task = load_lm("stories260k"), Task(query_length=24, start_text=None, truncate_after=6)
    resolved = task_tokens(task, lm.tokenizer)
    fed: list[int] = []
    hook = lm.model.lm_head.register_forward_pre_hook(lambda _, given: fed.append(given[0].shape[0]))
    given = (lm, task, resolved, ["Once upon a time", "Lily"])
    with run_context():
        texts, _, found, _ = answer(*given, seed=1, num_samples=8)
        whole, fed[:] = sum(fed), []
        assert answer(*given, seed=1, num_samples=8, whole=False)[::2] == (texts, found)
    hook.remove()
    assert sum(fed) < 0.95 * whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 1}, "num_samples: found 1, expected at least 2"),
        ({"batch_size": 0, "train": 0}, "batch_size: found 0, expected at least 1\ntrain: found 0, expected at least 1"),
        ({"precision": "half"}, "precision: found 'half', expected 32, bf16 or auto"),
        ({"labeler": "known:taste"}, "no such known reward"),
    ],
)
@pytest.mark.usefixtures("no_models")
def test_bad_options(options: dict[str, Any], message: str, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        labelled(tiny_run, tmp_path / "out", **options)
    with pytest.raises(UsageError, match=r"prompts: .*train\.jsonl: no such file"):
        label("stories260k", TASK, str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
