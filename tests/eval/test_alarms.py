"""eval.alarms: what a reader is told to doubt, on reports of synthetic rows; `test_report.py` has the older alarms."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from eval.report import build_report

WORDS = [f"word{i}" for i in range(60)]
Change = Callable[[dict[str, Any]], None]


def rows(shift: dict[str, float], n: int = 120, score: str = "known", **changes: Change) -> list[dict[str, Any]]:
    """`n` prompts for each policy, whose mean score is the shift; `changes` by policy (spaces and dashes as _)."""
    out = []
    for policy, mean in shift.items():
        rng = random.Random(policy)
        for i in range(n):
            row = {"id": f"p{i}", "policy": policy, "prompt": f"prompt number {i}", "response": " ".join(rng.sample(WORDS, 12))}
            row |= {"scores": {score: rng.gauss(mean, 1.0)}, "measures": {}}
            changes.get(policy.replace("-", "_"), lambda row: None)(row)
            out.append(row)
    return out


def doubts(given: list[dict[str, Any]], **more: Any) -> dict[str, str]:
    """Kind → text, in the order of the report."""
    report = build_report(given, **{"title": "", "task": "", **more})
    return {w["kind"]: w["text"] for w in report["warnings"]}


def measured(**measures: float) -> Change:
    return lambda row: row["measures"].update(measures)


def all_of(*changes: Change) -> Change:
    def change(row: dict[str, Any]) -> None:
        for one in changes:
            one(row)

    return change


def odd(nll: float) -> Change:
    """Tokens and their log-loss under the reference."""
    return all_of(lambda row: row["scores"].update(ref_nll=nll), lambda row: row.update(n_tokens=20))


def asked(**config: Any) -> dict[str, Any]:
    """The evaluation's own record."""
    return {"provenance": [{"stage": "eval", "config": config}]}


def test_every_model_that_copies_is_named() -> None:
    copier = measured(copied=0.8)
    names = dict.fromkeys(("base", "lead-3", "reference", "random-sentence", "ours", "other"), 0.0)
    found = doubts(rows(names, base=copier, lead_3=copier, reference=copier, random_sentence=copier, ours=copier))
    assert found["copier"] == (
        "Several policies are copiers, whose sentences stand word for word in the source: base (80.0 %) and ours (80.0 %)."
    )
    one = rows({"base": 0.0, "ours": 0.0, "last": 0.0}, ours=copier)
    assert doubts(one)["copier"].startswith("ours is a copier: 80.0 %")
    by_design = asked(policies={"base": "gpt2", "ours": {"model": "lead-2"}, "last": None})
    assert "copier" not in doubts(one, **by_design)  # whatever it is called


def test_a_score_of_any_name_that_rises_while_rouge_falls() -> None:
    given = rows({"base": 0.0, "ours": 1.0}, score="reward", base=measured(rougeL=0.3), ours=measured(rougeL=0.2))
    assert "ours raises the score “reward” by" in doubts(given, judge="reward")["ROUGE falls"]
    assert "ROUGE falls" in doubts(given, judge="rougeL", compared={"judgements": [judgement(judge="reward")]})


def judgement(**more: Any) -> dict[str, Any]:
    return {"judge": "people", "a": "ours", "b": "base", "rate": 0.3, "low": 0.2, "high": 0.4, "n": 120, **more}


def test_people_against_a_score_of_any_name() -> None:
    given = rows({"base": 0.0, "ours": 1.0}, score="reward")
    won = {("ours", "base"): {((f"p{i}", 0),) * 2: 0.3 for i in range(120)}}
    for table in (judgement(), judgement(a="base", b="ours", rate=0.7, low=0.6, high=0.8)):
        found = doubts(given, judge="verdicts:v.jsonl", won=won, compared={"judgements": [table]})
        assert "people prefers base to ours (30.0 % for ours, 20.0–40.0), although the score “reward” of ours is" in (
            found["judge against reward"]
        )


def agreeing(low: float, high: float) -> dict[str, Any]:
    return {"kappa": (low + high) / 2, "kappa_low": low, "kappa_high": high, "share": 0.5, "n": 100}


def test_judges_who_hardly_agree() -> None:
    given = rows({"base": 0.0, "ours": 1.0})
    table = [{"a": "ann", "b": "bob", **agreeing(-0.1, 0.1)}, {"a": "ann", "b": "cid", **agreeing(0.0, 0.3)}]
    text = doubts(given, compared={"agreements": table})["judges disagree"]
    assert text.startswith("Judges hardly agree beyond chance: ann and bob say the same of 50.0 %, κ 0.00 (−0.10 to 0.10).")
    alpha = {"judges": ["ann", "bob", "cid"], "value": 0.05, "low": 0.0, "high": 0.15, "n": 100}
    assert "The 3 judges hardly agree beyond chance: Krippendorff's α 0.05 (0.00 to 0.15)" in (
        doubts(given, compared={"agreements": table, "alpha": alpha})["judges disagree"]
    )
    assert "judges disagree" not in doubts(given, compared={"agreements": table[1:], "alpha": {**alpha, "high": 0.3}})
    assert "judges disagree" not in doubts(given, compared={"agreements": [{"a": "x", "b": "y", "kappa_high": None}]})


def longer(row: dict[str, Any]) -> None:
    row["response"] += " " + row["response"][::-1]


def test_length_explains_wins_alone() -> None:
    assert "2.00 times the words of base's, over which it wins" in doubts(rows({"base": 0.0, "ours": 1.0}, ours=longer))["length"]
    assert "length" not in doubts(rows({"base": 0.0, "ours": -1.0}, ours=longer))
    assert "length" not in doubts(rows({"base": 0.0, "ours": 0.0}, ours=longer))
    assert "length" not in doubts(rows({"base": 0.0, "ours": 1.0}, ours=lambda row: row.update(response="word1")))
    even = judgement(judge="known", rate=0.8, low=0.7, high=0.9, length_controlled={"rate": 0.7, "low": 0.6, "high": 0.8})
    found = doubts(rows({"base": 0.0, "ours": 1.0}, ours=longer), compared={"judgements": [even | {"length_controlled": {
        **even["length_controlled"], "slope": 1.0, "longer": 1.0}}]})  # fmt: skip
    assert not [kind for kind in found if kind.startswith("length")]


def test_responses_that_are_empty() -> None:
    empty = all_of(measured(empty=1), lambda row: row.update(response=""))
    found = doubts(rows({"base": 0.0, "ours": 1.0}, ours=empty))
    assert found["empty"] == "Many responses are empty: 100.0 % of ours." and "length" not in found
    assert "empty" not in doubts(rows({"base": 0.0, "ours": 1.0}, ours=measured(empty=0.09)))
    two = doubts(rows({"base": 0.0, "ours": 1.0}, ours=empty, base=measured(empty=0.25)))
    assert two["empty"] == "Many responses are empty: 25.0 % of base and 100.0 % of ours."


def test_texts_that_rouge_does_not_read() -> None:
    def some(row: dict[str, Any]) -> None:
        row["measures"]["other_script"] = int(row["id"] < "p15")

    given = rows({"base": 0.0, "ours": 0.0}, base=some, ours=measured(other_script=0))
    n = sum(r["measures"]["other_script"] for r in given)
    assert 12 < n < 120
    assert f"in {n} of 120 texts of base, or in their references, most are others" in doubts(given)["other script"]
    assert "other script" not in doubts(rows({"base": 0.0, "ours": 0.0}, base=measured(other_script=0)))
    assert "other script" not in doubts(rows({"base": 0.0, "ours": 0.0}))  # scored before there was the measure


def test_nothing_was_judged() -> None:
    found = doubts(rows({"base": 0.0, "ours": 1.0}), judge="lm:m", won={})
    assert found["nothing judged"] == "Nothing was judged: the language model m gave no verdict on any pair."
    assert "few prompts" not in found


def test_the_perplexity_of_texts_that_no_model_wrote() -> None:
    found = doubts(rows({"base": 0.0, "reference": 0.0, "ours": 0.0}, base=odd(20.0), reference=odd(60.0), ours=odd(20.0)))
    assert "perplexity" not in found
    assert "perplexity" in doubts(rows({"base": 0.0, "ours": 0.0}, base=odd(20.0), ours=odd(60.0)))


def test_the_worst_is_told_first() -> None:
    bad, fine = all_of(measured(copied=0.8, empty=1, rougeL=0.1), longer, odd(60.0)), all_of(measured(rougeL=0.3), odd(20.0))
    few = rows({"base": 0.0, "ours": 1.5}, 60, "reward", base=fine, ours=bad)
    more = {"guard": {"kind": "none"}, "compared": {"agreements": [{"a": "ann", "b": "bob", **agreeing(-0.1, 0.1)}]}}
    found = list(doubts(few, judge="reward", **more))
    assert found[:5] == ["ROUGE falls", "judges disagree", "unguarded", "copier", "empty"]
    assert found[5:] == ["judge likes length", "length", "few prompts", "perplexity"]


RUN: dict[str, Any] = {"stage": "ppo", "config": {"model": {"init_args": {"reward": "run/reward", "output": "run/ppo"}}}}
BEST = {"model": "gpt2", "best_of": 4, "reward": "run/reward"}


@pytest.mark.parametrize(
    ("config", "run", "text"),
    [
        ({"learned_reward": "run/reward", "policies": {"ours": "./run/ppo"}}, RUN, "the reward that ours was trained on"),
        ({"learned_reward": "run/reward", "policies": {"ours": BEST, "base": BEST}}, RUN, "base and ours were picked by"),
        ({"learned_reward": "run/reward", "policies": {"ours": "gpt2"}}, RUN, None),
        ({"learned_reward": "other/reward", "policies": {"ours": "run/ppo"}}, RUN, None),
        ({"policies": {"ours": "samples.jsonl"}}, {"stage": "sft", "config": {}}, "by its name, the policies were trained on"),
    ],
)
def test_the_judge_is_what_was_optimised(config: dict[str, Any], run: dict[str, Any], text: str | None) -> None:
    given = rows({"base": 0.0, "ours": 1.0}, score="learned")
    more = {"provenance": [run, {"stage": "eval", "config": config}]}
    found = doubts(given, judge="learned", **more).get("judge is the reward")
    assert found is None if text is None else text in str(found).replace("ours and base", "base and ours")


def test_a_known_reward_that_judges_what_it_picked() -> None:
    given = rows({"base": 0.0, "ours": 1.0}, score="known")
    config = {"known_reward": "known:sentiment", "policies": {"ours": {**BEST, "reward": "known:sentiment"}}}
    found = doubts(given, judge="known", provenance=[{"stage": "eval", "config": config}])
    assert "ours was picked by" in found["judge is the reward"]
    config["known_reward"] = "known:descriptiveness"
    assert "judge is the reward" not in doubts(given, judge="known", provenance=[{"stage": "eval", "config": config}])


def test_a_reward_directory_that_judges_what_it_trained() -> None:
    summed = {"stage": "ppo", "config": {"model": {"init_args": {"reward": [{"reward": "run/reward"}], "output": "run/ppo"}}}}
    more = {"provenance": [summed, {"stage": "eval", "config": {"policies": {"ours": "run/ppo"}}}]}
    given = rows({"base": 0.0, "ours": 1.0})
    won = {("ours", "base"): {((f"p{i}", 0),) * 2: 1.0 for i in range(120)}}
    assert "ours was trained on" in doubts(given, judge="reward:run/reward", won=won, **more)["judge is the reward"]
    assert "judge is the reward" not in doubts(given, judge="reward:run/gold", won=won, **more)
