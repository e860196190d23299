"""`python -m eval` on a stranger's folder of samples: what judges, what is refused, and the same bytes twice."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.baselines import Policy
from eval.copying import sentences
from eval.options import Options
from eval.steps import checked
from lightning_rlhf.files import write_jsonl
from lightning_rlhf.tasks import Task

POLICIES = ("human", "ppo", "zero")


def samples(**more: Callable[[int, str], Any]) -> list[dict[str, Any]]:
    """Eight prompts, three policies; `ppo` says nearly what the reference says."""
    text = {"human": "A dog and {} cats ran.", "ppo": "A dog and {} cats sat.", "zero": "Nothing of that, {}."}
    return [
        {"id": f"p{i}", "policy": p, "prompt": f"Once there were a dog and {i} cats. They ran.", "response": text[p].format(i),
         "reference": f"A dog and {i} cats ran."} | {k: f(i, p) for k, f in more.items()}
        for i in range(8) for p in POLICIES
    ]  # fmt: skip


def run(step: str, folder: Path, *more: str) -> dict[str, Any]:
    main([step, "--samples", str(folder / "s"), "--output", str(folder / "out"), *more])
    file = folder / "out" / ("report.json" if step == "report" else "compare.json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}  # type: ignore[no-any-return]


@pytest.fixture
def folder(tmp_path: Path, no_models: None) -> Path:
    write_jsonl(tmp_path / "s" / "all.jsonl", samples())
    return tmp_path


def test_samples_with_references_alone_are_judged_by_rouge(folder: Path) -> None:
    report = run("report", folder)
    assert report["judge"] == "rougeL"
    assert (report["title"], report["task"]) == ("s: 3 policies on 8 prompts", "")
    (own,) = report["provenance"]
    assert list(own["data"]) == [str(folder / "s" / "all.jsonl")]
    assert own["config"]["samples"] == str(folder / "s")
    won = {(c["a"], c["b"]): c["rate"] for c in report["comparisons"]}
    assert won["zero", "ppo"] == 0.0 and won["ppo", "human"] == 0.0


def test_the_samples_say_their_task(folder: Path) -> None:
    write_jsonl(folder / "s" / "all.jsonl", samples(task=lambda i, p: "news"))
    assert run("report", folder)["task"] == "news"


def test_the_same_samples_give_the_same_bytes(folder: Path) -> None:
    found = []
    for _ in range(2):
        run("report", folder)
        found.append([(folder / "out" / f"report.{kind}").read_bytes() for kind in ("html", "json", "md")])
    assert found[0] == found[1]
    assert json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))["seconds"] >= 0


def test_the_samples_own_score_judges(folder: Path) -> None:
    write_jsonl(folder / "s" / "all.jsonl", samples(scores=lambda i, p: {"mine": {"human": 0, "ppo": 2, "zero": 1}[p]}))
    report = run("report", folder, "--baselines=[zero, human]")
    assert report["judge"] == "mine"
    assert (report["baseline"], report["baselines"], report["main"]) == ("zero", ["zero", "human"], "ppo")
    assert "win rate vs zero, % | win rate vs human, %" in (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert run("compare", folder, "--judges=[rouge1]")["judgements"][0]["judge"] == "rouge1"
    assert run("report", folder, "--baselines=[zero]", "--main_policy=human")["main"] == "human"


def test_of_several_scores_one_must_be_named(folder: Path, refused: Callable[..., str]) -> None:
    write_jsonl(folder / "s" / "all.jsonl", samples(scores=lambda i, p: {"a": i, "b": 1.0, "kl": 9.0 if p == "zero" else 0.0}))
    asked = ["report", "--samples", str(folder / "s"), "--output", str(folder / "out")]
    assert "judge: found the scores a, b in all samples, expected one of them to be named" in refused(asked, main=main)
    assert "judge: found 'c', expected known or learned with its reward given" in refused([*asked, "--judge", "c"], main=main)
    assert not (folder / "out").exists()
    assert run("report", folder, "--judge", "a")["judge"] == "a"
    write_jsonl(folder / "s" / "all.jsonl", samples(scores=lambda i, p: {"known": i, "b": 1.0, "kl": 9.0}))
    assert run("report", folder)["judge"] == "known"


def test_a_policy_beside_samples_of_the_same_name(folder: Path) -> None:
    """Its own texts are judged, whatever the folder has under that name."""
    given = ["--prompts", str(folder / "prompts.jsonl"), "--policies={zero: lead-1}", "--known_reward", "known:sentiment"]
    write_jsonl(folder / "prompts.jsonl", [{k: r[k] for k in ("id", "prompt", "reference")} for r in samples()[::3]])
    report = run("report", folder, *given)
    assert report["n_rows"] == 24 and report["judge"] == "known"


def test_the_second_draw_is_never_the_main_policy(folder: Path) -> None:
    write_jsonl(folder / "prompts.jsonl", [{k: r[k] for k in ("id", "prompt", "reference")} for r in samples()[::3]])
    given = ["--prompts", str(folder / "prompts.jsonl"), "--output", str(folder / "out")]
    main(["report", *given, "--policies={zero: lead-1, ppo: lead-2}", "--second_draw", "zero", "--baselines=[zero]"])
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    assert [p["name"] for p in report["policies"]] == ["zero", "zero (second draw)", "ppo"]
    assert report["main"] == "ppo"


def test_a_score_of_some_samples_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = samples()
    write_jsonl(folder / "s" / "all.jsonl", [r | ({"scores": {"mine": 1.0}} if r["id"] == "p1" else {}) for r in rows])
    assert run("report", folder)["judge"] == "rougeL"
    assert "ppo: 1 of 8 samples have the score 'mine'; it is left out" in capsys.readouterr().out


def test_nothing_to_judge_by(folder: Path, refused: Callable[..., str]) -> None:
    write_jsonl(folder / "s" / "all.jsonl", [{k: v for k, v in r.items() if k != "reference"} for r in samples()])
    error = refused(["report", "--samples", str(folder / "s"), "--output", str(folder / "out")], main=main)
    assert "judge: found nothing to judge by, expected known_reward, learned_reward, a score that all samples have" in error


@pytest.mark.parametrize("empty", ["", " ", [""], [" ", ""]])
def test_an_empty_reference_judges_nothing(folder: Path, refused: Callable[..., str], empty: Any) -> None:
    write_jsonl(folder / "s" / "all.jsonl", [{**r, "reference": empty} for r in samples()])
    error = refused(["report", "--samples", str(folder / "s"), "--output", str(folder / "out")], main=main)
    assert "judge: found nothing to judge by" in error


def test_people_judge_some_of_the_prompts(folder: Path) -> None:
    """With --limit, verdicts on the other prompts are unused, not wrong."""
    votes = [
        {"id": f"p{i}", "policy_a": "ppo", "policy_b": "zero", "winner": "ab"[i % 2 and w == "y"], "judge": w}
        for i in range(8) for w in "xy"
    ]  # fmt: skip
    write_jsonl(folder / "votes.jsonl", votes)
    report = run("report", folder, "--limit", "5", f"--judges=[rougeL, 'verdicts:{folder / 'votes.jsonl'}']")
    (people,) = (j for j in report["judgements"] if j["judge"] != "rougeL")
    assert people["n"] == 5 and report["judges"][1]["unused"] == 6
    assert str(folder / "votes.jsonl") in report["provenance"][0]["data"]
    text = (folder / "out" / "report.md").read_text(encoding="utf-8")
    assert "win rate by another judge" in text and "All judges together: α" in text
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert 'aria-label="Agreement of judges"' in page
    page = re.sub("<[^>]+>", "", page)
    assert "All judges together" in page and "n to tell 60 %" in page
    assert run("compare", folder, "--limit", "3", "--judges=[rougeL]")["judgements"][0]["n"] == 3


def test_people_are_the_headline_judge(folder: Path, refused: Callable[..., str]) -> None:
    """Win rates, length, agreement and the browser are of the verdicts; the means of other measures stand beside them."""
    votes = [
        {"id": f"p{i}", "policy_a": "ppo", "policy_b": "zero", "winner": "ab"[f"{i}{w}" in ("0x", "0y", "1y")], "judge": w}
        for i in range(7) for w in "xy"
    ]  # fmt: skip
    write_jsonl(folder / "votes.jsonl", votes)
    judge = f"verdicts:{folder / 'votes.jsonl'}"
    report = run("report", folder, f"--judge={judge}", "--baselines=[zero]")
    (won,) = report["comparisons"]  # the pair that people saw, and no other
    assert (won["a"], won["b"], won["n"], won["wins"], won["ties"], won["losses"]) == ("ppo", "zero", 7, 5, 1, 1)
    assert won["rate"] == pytest.approx(5.5 / 7) and won["unjudged"] == 1
    assert "the ppo policy" in report["headline"] and "judged by the verdicts in votes.jsonl" in report["headline"]
    kinds = {w["kind"]: w["text"] for w in report["warnings"]}
    assert kinds["not judged"] == "ppo and zero have no verdict on 1 of 8 prompts: those are left out."
    assert kinds["few prompts"].startswith("Only 7 prompts")
    said = {s["id"]: (s["won"], s["pick"]) for s in [*report["samples"], *report["more_samples"]]}
    assert said == {"p0": ("lost", "zero"), "p1": ("tied", None), "p7": ("alone", None)} | {
        f"p{i}": ("won", "ppo") for i in range(2, 7)
    }
    assert {r["measure"]: r["n"] for r in report["agreement"]}["rougeL"] == 6  # without the tie
    assert report["length"][0]["bins"][0]["n"] == 7
    page = re.sub("<[^>]+>", "", (folder / "out" / "report.html").read_text(encoding="utf-8"))
    assert "Judged by the verdicts in votes.jsonl" in page
    assert str(folder / "votes.jsonl") in report["provenance"][0]["data"]
    assert "78.6 % of pairs" in report["headline"]
    nobody = run("report", folder, f"--judge={judge}", "--baselines=[human]", "--judges=[rougeL]")
    assert nobody["headline"] == "No verdict on 8 prompts compares zero with human."
    assert {w["text"] for w in nobody["warnings"] if w["kind"] == "not judged"} == {"No verdict compares zero with human."}
    error = refused(
        ["report", "--samples", str(folder / "s"), "--output", str(folder / "out"), "--judge=verdicts:none.jsonl"], main=main
    )
    assert "judge 'verdicts:none.jsonl': no such file" in error


@pytest.mark.parametrize(
    ("vote", "said"),
    [
        ({"winner": "A"}, "votes.jsonl:1: field 'winner': found \"A\", expected a, b or tie"),
        ({"policy_b": "nobody"}, "votes.jsonl:1: field 'policy': found a verdict on 'nobody', expected one of the policies"),
        ({"id": "p99"}, "votes.jsonl:1: field 'id': found a verdict on prompt 'p99'"),
    ],
)
def test_wrong_verdicts_are_told_before_anything_is_sampled(
    folder: Path, refused: Callable[..., str], vote: dict[str, str], said: str
) -> None:
    write_jsonl(folder / "votes.jsonl", [{"id": "p0", "policy_a": "ppo", "policy_b": "zero", "winner": "a", "judge": "x"} | vote])
    words = ["report", "--samples", str(folder / "s"), "--output", str(folder / "out"), "--policies", "{model: stories260k}"]
    for option in ("--judge=verdicts:{}", "--judges=[rougeL, 'verdicts:{}']"):
        assert said in refused([*words, option.format(folder / "votes.jsonl")], main=main)
    assert not (folder / "out").exists()


def test_people_who_saw_other_samples_than_the_first(folder: Path) -> None:
    """The browser shows the samples that were judged; a score with a colon in its name is a score."""
    own = [{"index": k, "scores": {"gold:v2": 1.0 * k}} for k in (0, 1)]
    rows = [{**r, **more, "response": f"{r['response']} {more['index']}"} for r in samples() for more in own]
    write_jsonl(folder / "s" / "all.jsonl", rows)
    seen = {"policy_a": "zero", "policy_b": "ppo", "index_a": 1, "index_b": 1, "winner": "b", "judge": "x"}
    write_jsonl(folder / "votes.jsonl", [{"id": f"p{i}", **seen} for i in range(8)])
    report = run("report", folder, f"--judge=verdicts:{folder / 'votes.jsonl'}", "--baselines=[zero]")
    assert {s["won"] for s in report["samples"]} == {"won"} and report["axis"] == "gold:v2"
    assert all(r["text"].endswith(" 1") for s in report["samples"] for r in s["responses"] if r["policy"] != "human")
    assert run("report", folder)["judge"] == "gold:v2"


def test_samples_that_changed_since_they_were_scored(folder: Path, refused: Callable[..., str]) -> None:
    run("score", folder)
    rows = samples()
    changes = {
        "another response than in": [rows[0] | {"response": "Another."}, *rows[1:]],
        "another reference or prompt than in": [rows[0] | {"reference": "Another."}, *rows[1:]],
        "a sample that is not there any more, but in": rows[1:],
        "a sample that is not in": [rows[0] | {"index": 1}, *rows],
    }
    for message, changed in changes.items():
        write_jsonl(folder / "s" / "all.jsonl", changed)
        error = refused(["compare", "--samples", str(folder / "s"), "--output", str(folder / "out")], main=main)
        assert "id 'p0', policy 'human', index " in error and message in error and "run `python -m eval score` again" in error
    write_jsonl(folder / "s" / "all.jsonl", [r | {"scores": {"mine": 1.0}} for r in rows])
    run("score", folder)
    write_jsonl(folder / "s" / "all.jsonl", [r | {"scores": {"mine": 2.0}} for r in rows])
    error = refused(["compare", "--samples", str(folder / "s"), "--output", str(folder / "out")], main=main)
    assert "other scores than in" in error


@pytest.mark.parametrize("kind", ["folder of csv", "json"])
def test_other_files_of_samples(folder: Path, kind: str) -> None:
    rows = samples()
    (folder / "s" / "all.jsonl").unlink()
    if kind == "json":
        (folder / "s" / "all.json").write_text(json.dumps(rows), encoding="utf-8")
    else:
        with (folder / "s" / "all.csv").open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    assert run("report", folder)["n_rows"] == 24


@pytest.mark.parametrize("text", ["החתול ישב על השטיח ואז הלך הביתה {}.", "猫坐在垫子上,然后回家了{}。"])
def test_texts_in_another_script_are_told(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """ROUGE is 0 on them, as rouge_score's is; a report says why, and so does the score step."""
    write_jsonl(folder / "s" / "all.jsonl", [
        {**r, "response": text.format(r["id"])} if r["policy"] == "ppo" else r for r in samples()
    ])  # fmt: skip
    run("score", folder)
    said = "only the letters a–z and digits, and in 8 of 8 texts of ppo, or in their references, most are others"
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if said in line]
    assert re.search(r"other_script\n(.*\n)*ppo .* 100.0 %", captured.out)
    report = run("report", folder)
    assert [w["text"] for w in report["warnings"] if w["kind"] == "other script"] == [line]
    assert line in re.sub("<[^>]+>", "", (folder / "out" / "report.html").read_text(encoding="utf-8"))


def test_accents_are_no_other_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(folder / "s" / "all.jsonl", [{**r, "response": f"{r['response']} “Déjà vu” — naïve Zoë…"} for r in samples()])
    report = run("report", folder)
    assert "letters a–z" not in str(capsys.readouterr()) and "other script" not in {w["kind"] for w in report["warnings"]}


def test_names_in_another_script(folder: Path) -> None:
    names = {"human": "人类", "ppo": "策略", "zero": "政策"}
    write_jsonl(folder / "s" / "all.jsonl", [r | {"policy": names[r["policy"]]} for r in samples()])
    assert {p["name"] for p in run("report", folder)["policies"]} == set(names.values())


@pytest.mark.parametrize("run_of", [".", "!", "。", "a!", ".\"", "…؟"])
def test_a_long_run_of_stops_is_one_sentence(run_of: str) -> None:
    """From each of them the search would go to the run's end: minutes for a collapsed policy's response."""
    text = (run_of * 200_000)[:200_000]
    assert len(sentences(text)) <= 1 + text.count("。")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--judges=[rogueL]"], "judges: found 'rogueL', expected known or learned with its reward given, a measure"),
        (["--judge=reward:nowhere"], "reward 'nowhere': no reward.json there"),
        (["--judges=['reward:nowhere']"], "reward 'nowhere': no reward.json there"),
        (["--comparisons=nofile.jsonl"], "comparisons: nofile.jsonl: no such file"),
        (["--logs=nologs"], "logs: nologs: found no {sft,reward,ppo}/version_*/metrics.csv there"),
        (["--judges=[learned]"], "judges: found 'learned', expected its reward to be given, or all samples to have that score"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    folder: Path, refused: Callable[..., str], options: list[str], said: str
) -> None:
    words = ["report", "--samples", str(folder / "s"), "--output", str(folder / "out"), "--policies", "{model: stories260k}"]
    assert said in refused([*words, *options], main=main)
    assert not (folder / "out").exists()


def test_rouge_cannot_judge_without_references(folder: Path, refused: Callable[..., str]) -> None:
    words = ["report", "--samples", str(folder / "s"), "--output", str(folder / "out"), "--policies", "{model: stories260k}"]
    rows = [{k: v for k, v in r.items() if (k, r["id"]) != ("reference", "p3")} for r in samples()]
    write_jsonl(folder / "s" / "all.jsonl", rows)
    said = "judge: found 'rougeL' and no reference for policy 'model' at 1 of 8 prompts (the first is id 'p3')"
    for option in ("--judge=rougeL", "--judges=[rougeL]"):
        assert said in refused([*words, option, "--known_reward=known:sentiment"], main=main)
    rows = [{k: v for k, v in r.items() if k != "reference"} if r["policy"] == "human" else r for r in samples()]
    write_jsonl(folder / "s" / "all.jsonl", rows)
    own = [*words[:-2], "--prompts", str(folder / "p.jsonl"), "--policies={same: reference}", "--judge=rougeL"]
    write_jsonl(folder / "p.jsonl", [{k: r[k] for k in ("id", "prompt", "reference")} for r in samples()[::3]])
    assert "no reference beside itself for policy 'same' at 8 of 8 prompts" in refused(own, main=main)
    assert not (folder / "out").exists()
    assert run("report", folder, "--prompts", str(folder / "p.jsonl"), "--judge=rougeL")["judge"] == "rougeL"


def test_samples_that_lack_prompts_of_others(folder: Path, refused: Callable[..., str]) -> None:
    words = ["report", "--samples", str(folder / "s"), "--output", str(folder / "out")]
    write_jsonl(folder / "s" / "all.jsonl", [r for r in samples() if (r["policy"], r["id"]) != ("ppo", "p5")])
    said = "found no sample to 1 of 8 prompts (the first is id 'p5'), expected the same prompts for every policy"
    assert f"policies.ppo: {folder / 's'}: {said}" in refused(words, main=main)
    assert not (folder / "out").exists()
    write_jsonl(folder / "s" / "all.jsonl", [r for r in samples() if r["id"] != "p5"])
    prompts = folder / "p.jsonl"
    write_jsonl(prompts, [{k: r[k] for k in ("id", "prompt", "reference")} for r in samples()[::3]])
    assert said in refused([*words, "--prompts", str(prompts), "--policies={model: stories260k}"], main=main)
    assert run("report", folder, "--prompts", str(prompts))["n_prompts"] == 7  # all lack it


def test_a_score_of_the_samples_is_a_judge_among_others(folder: Path) -> None:
    write_jsonl(folder / "s" / "all.jsonl", samples(scores=lambda i, p: {"learned": i + len(p), "gold:v2": 1.0 * i}))
    vote = {"policy_a": "ppo", "policy_b": "zero", "winner": "a", "judge": "x"}
    write_jsonl(folder / "votes.jsonl", [{"id": f"p{i}", **vote} for i in range(8)])
    judges = f"--judges=['verdicts:{folder / 'votes.jsonl'}', learned, 'gold:v2']"
    report = run("report", folder, judges, "--judge", "learned")
    assert {j["judge"] for j in report["judgements"]} >= {"learned", "gold:v2"}
    assert run("compare", folder, "--judges=[learned]")["judges"][0]["judge"] == "learned"


def test_what_was_read_is_in_the_record(folder: Path) -> None:
    write_jsonl(folder / "shots.jsonl", [{"prompt": "A.", "completion": "B."}] * 3)
    write_jsonl(folder / "held.jsonl", [{"prompt": "A.", "responses": ["B.", "C."], "best": 0}])
    options = Options(
        run_dir="r", lm="stories260k", task=Task(name="t"), output=str(folder / "out"), samples=str(folder / "s"),
        policies={"few": Policy("stories260k", demonstrations=str(folder / "shots.jsonl"))}, known_reward="known:sentiment",
        comparisons=str(folder / "held.jsonl"), second_draw="few", ensemble=None, logs=None,
    )  # fmt: skip
    made = checked("sample", options).info.record()
    assert {str(folder / "shots.jsonl"), str(folder / "held.jsonl")} <= made["data"].keys()
    said = {k: made["config"][k] for k in ("source_column", "comparisons", "ensemble", "logs", "second_draw")}
    assert said == {"source_column": None, "comparisons": str(folder / "held.jsonl"), "ensemble": None, "logs": None} | {
        "second_draw": "few"
    }
