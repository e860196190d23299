"""eval.compare: the table, what is left out, position, agreement, and what is refused."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main
from eval.compare import agreement, by_policy, compare, outcomes, policy_pairs, position
from eval.judges import FileJudge, Judge, ScoreJudge, Verdict, load_judge, verdict
from eval.winrate import bradley_terry, length_controlled, paired_outcomes, win_rate
from lightning_rlhf.files import DataError
from lightning_rlhf.tasks import UsageError

POLICIES = ["zero", "sup", "rlhf"]


def made(n: int = 30, samples: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {"id": str(i), "index": k, "policy": p, "prompt": f"prompt {i}", "response": "x" * rng.randint(5, 40 + 20 * q),
         "scores": {"known": round(rng.gauss(q, 1), 1), "learned": rng.gauss(q, 1)}}
        for i in range(n) for k in range(samples) for q, p in enumerate(POLICIES)
    ]  # fmt: skip


def run(rows: list[dict[str, Any]], folder: Path, *names: str, **options: Any) -> tuple[dict[str, Any], str]:
    judges: dict[str, Judge] = {name: load_judge(name, folder) for name in names}
    text = compare(rows, POLICIES, judges, folder, **options).text
    return json.loads((folder / "compare.json").read_text()), text


def test_table_against_the_statistics(tmp_path: Path) -> None:
    rows = made()
    found, text = run(rows, tmp_path, "known", baselines=["zero", "sup"], differences=[0.02])
    (judge,) = found["judges"]
    assert [(r["a"], r["b"]) for r in found["judgements"]] == [("sup", "zero"), ("rlhf", "zero"), ("rlhf", "sup")]
    of = {p: [r for r in rows if r["policy"] == p] for p in POLICIES}
    games, prompts = [], []
    for r in found["judgements"]:
        assert r["judge"] == "known"
        a, b = of[r["a"]], of[r["b"]]
        ids = [x["id"] for x in a]
        won = paired_outcomes([x["scores"]["known"] for x in a], [x["scores"]["known"] for x in b])
        own = win_rate(won, ids)
        assert (r["rate"], r["low"], r["high"], r["n"], r["p_value"]) == (own.rate, own.low, own.high, 60, own.p_value)
        assert (r["prompts"], r["unparsable"], r["failed"]) == (30, 0, 0)
        lengths = [len(x["response"]) - len(y["response"]) for x, y in zip(a, b, strict=True)]
        assert r["length_controlled"]["rate"] == length_controlled(won, lengths, ids).rate
        assert r["p_holm"] >= r["p_value"]
        assert r["needed"]["0.05"] > r["needed"]["0.1"] > 100
        needed = r["needed"]
        assert needed["0.02"] > needed["0.05"]
        assert f"prompts to tell 52 %: {needed['0.02']}, 55 %: {needed['0.05']}, 60 %: {needed['0.1']}" in text
        games += [(r["a"], r["b"], x) for x in won]
        prompts += ids
    own_ranking = bradley_terry(games, prompts)
    assert [(s["policy"], s["strength"]) for s in judge["ranking"]] == [(s.policy, s.strength) for s in own_ranking]
    assert (judge["position"], judge["verdicts"]) == (None, 180)
    assert (found["agreements"], found["alpha"]) == ([], None)
    assert "rlhf over zero" in text
    assert "log-odds" in text


def test_the_same_bytes(tmp_path: Path) -> None:
    run(made(), tmp_path / "a", "known", "learned")
    run(made(), tmp_path / "b", "known", "learned")
    assert (tmp_path / "a" / "compare.json").read_bytes() == (tmp_path / "b" / "compare.json").read_bytes()


def test_pairs() -> None:
    assert policy_pairs(POLICIES, None) == [("sup", "zero"), ("rlhf", "zero"), ("rlhf", "sup")]
    assert policy_pairs(POLICIES, ["sup"]) == [("zero", "sup"), ("rlhf", "sup")]
    assert policy_pairs(["zero"], None) == []
    with pytest.raises(UsageError, match=r"baselines: found 'nobody', expected some of the policies \['zero', 'sup', 'rlhf'\]"):
        policy_pairs(POLICIES, ["nobody"])


def v(winner: str, judge: str = "j", i: int = 0, swap: bool = False, a: str = "x", b: str = "y") -> Verdict:
    first, second = (b, a) if swap else (a, b)
    return Verdict(str(i), first, 0, second, 0, winner, judge)


def test_outcomes_are_means_of_both_orders() -> None:
    given = [v("a"), v("b", swap=True), v("a", i=1), v("a", i=1, swap=True), v("tie", i=2), v("b", i=2, swap=True)]
    found, missing = outcomes(given, "x")
    assert list(found.values()) == [1, 0.5, 0.75]
    assert list(outcomes(given, "y")[0].values()) == [0, 0.5, 0.25]
    assert missing == {"unparsable": 0, "failed": 0}


def test_pairs_with_a_missing_verdict_are_left_out_and_counted() -> None:
    given = [v("a"), v("unparsable", swap=True), v("failed", i=1), v("failed", i=1, swap=True)]
    given += [v("a", i=2), v("b", i=2, swap=True)]
    found, missing = outcomes(given, "x")
    assert [pair[0][0] for pair in found] == ["2"]
    assert missing == {"unparsable": 1, "failed": 1}


class Scripted:
    """A judge that says what it is told, in both orders."""

    def __init__(self, says: Callable[[dict[str, Any], dict[str, Any]], str], name: str = "scripted") -> None:
        self.says, self.name = says, name

    def check(self, rows: Any) -> None: ...
    def prepare(self, pairs: Any) -> None: ...

    def __call__(self, a: Any, b: Any) -> list[Verdict]:
        return [verdict(x, y, self.says(x, y), self.name) for p, q in zip(a, b, strict=True) for x, y in ((p, q), (q, p))]


def test_a_judge_of_the_first_place(tmp_path: Path) -> None:
    text = compare(made(), POLICIES, {"s": Scripted(lambda x, y: "a")}, tmp_path).text
    found = json.loads((tmp_path / "compare.json").read_text())
    assert {r["rate"] for r in found["judgements"]} == {0.5}
    assert {r["position_bias"]["rate"] for r in found["judgements"]} == {1}
    place = found["judges"][0]["position"]
    assert (place["first"]["rate"], place["consistent"]["rate"]) == (1, 0)
    assert place["first"]["low"] > 0.8
    assert place["consistent"]["high"] < 0.2
    assert "shown first wins 1.000" in text


def test_a_judge_of_nothing(tmp_path: Path) -> None:
    text = compare(made(), POLICIES, {"s": Scripted(lambda x, y: "unparsable")}, tmp_path).text
    found = json.loads((tmp_path / "compare.json").read_text())
    judge = found["judges"][0]
    assert found["judgements"] == []
    assert [p["unparsable"] for p in judge["not_judged"]] == [60] * 3
    assert (judge["ranking"], judge["position"], judge["unparsable"]) == (None, None, 360)
    assert "of which 360 unparsable and 0 without an answer" in text
    assert "no verdict" in text


def test_position_by_hand() -> None:
    # both orders: x both times; first both times; tie and first. One order only, and an unparsable one, do not count.
    given = [v("a"), v("b", swap=True), v("a", i=1), v("a", i=1, swap=True), v("tie", i=2), v("a", i=2, swap=True)]
    given += [v("b", i=3), v("a", i=4), v("unparsable", i=4, swap=True)]
    got = position(given)
    assert got is not None
    assert got["first"]["rate"] == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert (got["consistent"]["rate"], got["consistent"]["n"]) == (pytest.approx(1 / 3), 3)
    assert position(given[-3:]) is None


def test_agreement_by_hand() -> None:
    # ann and bob on four pairs: a a, a b, b b, tie tie; κ: p_o = 3/4, p_e = (2 · 1 + 1 · 2 + 1 · 1)/16 = 5/16; bob saw the
    # first one swapped. cy judged one of them, and a pair that nobody else saw.
    ann = [v("a", "ann", 0), v("a", "ann", 1), v("b", "ann", 2), v("tie", "ann", 3)]
    bob = [v("b", "bob", 0, swap=True), v("b", "bob", 1), v("b", "bob", 2), v("tie", "bob", 3)]
    table, alpha = agreement([*ann, *bob, v("a", "cy", 0), v("a", "cy", 9)])
    assert alpha is not None
    assert (alpha["judges"], alpha["n"]) == (["ann", "bob", "cy"], 4)
    of = {(k["a"], k["b"]): k for k in table}
    assert of["ann", "bob"]["kappa"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16))
    assert (of["ann", "bob"]["n"], of["ann", "bob"]["share"]) == (4, 0.75)
    # both together: 3 a, 3 b, 2 ties of 8; D_o = 2/8, D_e = (64 − 9 − 9 − 4)/56 = 42/56
    assert of["ann", "bob"]["alpha"] == pytest.approx(1 - (2 / 8) / (42 / 56))
    assert of["ann", "cy"]["n"] == 1
    assert agreement(ann) == ([], None)


def test_a_bad_order_is_a_tie_to_the_agreement() -> None:
    lm = [v("a", "lm", 0), v("a", "lm", 0, swap=True), v("a", "lm", 1), v("b", "lm", 1, swap=True)]
    table, _ = agreement([*lm, v("tie", "ann", 0), v("a", "ann", 1)])
    assert table[0]["kappa"] == 1


def test_people_and_scores_together(tmp_path: Path) -> None:
    rows = made(20, 1)
    score = {(r["id"], r["policy"]): r["scores"]["known"] for r in rows}
    records = [
        {"id": str(i), "policy_a": "rlhf", "policy_b": "zero", "judge": who,
         "winner": "a" if score[str(i), "rlhf"] > score[str(i), "zero"] or (who == "bob" and i % 3 == 0) else "b"}
        for i in range(20) for who in ("ann", "bob")
    ]  # fmt: skip
    records.append({"id": "0", "policy_a": "sup", "policy_b": "zero", "winner": "a", "judge": "ann"})
    file = tmp_path / "people.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    found, text = run(rows, tmp_path, f"verdicts:{file}", "known", baselines=["sup"])
    assert found["judges"][0]["unused"] == 40
    assert "40 more in the file are on prompts or pairs of policies that are not in this table" in text
    found, text = run(rows, tmp_path, f"verdicts:{file}", "known", baselines=["zero"])
    people = {r["a"]: r for r in found["judgements"] if r["judge"] != "known"}
    assert (people["rlhf"]["n"], people["sup"]["n"]) == (20, 1)
    assert found["judges"][0]["unused"] == 0
    assert found["alpha"]["judges"] == ["ann", "bob", "known"]
    counted = {(k["a"], k["b"]): k["n"] for k in found["agreements"]}
    assert counted == {("ann", "bob"): 20, ("ann", "known"): 21, ("bob", "known"): 20}
    assert "agreement of all judges: alpha" in text


def test_scores_rank_by_all_pairs_and_verdicts_by_those_judged(tmp_path: Path) -> None:
    rows = made()
    whole, _ = run(rows, tmp_path, "known")
    part, _ = run(rows, tmp_path, "known", baselines=["zero"])
    assert (len(part["judgements"]), part["judges"][0]["ranked"]) == (2, 3)
    assert part["judges"][0]["ranking"] == [
        {**s, **{k: pytest.approx(s[k], abs=1e-6) for k in ("strength", "low", "high")}} for s in whole["judges"][0]["ranking"]
    ]
    votes = [{"id": rows[0]["id"], "policy_a": p, "policy_b": "zero", "winner": "a", "judge": "me"} for p in ("sup", "rlhf")]
    file = tmp_path / "v.jsonl"
    file.write_text("".join(json.dumps(v) + "\n" for v in votes))
    people, _ = run(rows, tmp_path, f"verdicts:{file}", baselines=["zero"])
    assert people["judges"][0]["ranked"] == 2


def test_policies_that_never_met_have_no_ranking(tmp_path: Path) -> None:
    four = ["a", "b", "c", "d"]
    rows = [{"id": "0", "index": 0, "policy": p, "prompt": "p", "response": p, "scores": {}} for p in four]
    file = tmp_path / "v.jsonl"
    pairs = [("a", "b"), ("c", "d")]
    file.write_text(
        "".join(json.dumps({"id": "0", "policy_a": x, "policy_b": y, "winner": "a", "judge": "j"}) + "\n" for x, y in pairs)
    )
    text = compare(rows, four, {"people": FileJudge(str(file))}, tmp_path).text
    assert "no ranking: no game between ['b', 'a'] and ['d', 'c']" in text


def test_samples_of_one_index_only_are_paired(tmp_path: Path) -> None:
    rows = [r for r in made(10, 2) if not (r["policy"] == "zero" and r["index"] == 1)]
    found, _ = run(rows, tmp_path, "known")
    assert {(r["a"], r["b"]): r["n"] for r in found["judgements"]} == {
        ("sup", "zero"): 10,
        ("rlhf", "zero"): 10,
        ("rlhf", "sup"): 20,
    }


def change(rows: list[dict[str, Any]], at: int, **new: Any) -> list[dict[str, Any]]:
    rows[at] = {**rows[at], **new}
    return rows


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([r for r in made() if r["policy"] != "sup"], UsageError,
         r"policy 'sup': no samples, found those of \['zero', 'rlhf'\]"),
        ([r for r in made() if (r["policy"], r["id"]) != ("rlhf", "7")], DataError,
         "policy 'rlhf': no sample to 1 of 30 prompts .the first is id '7'., expected the same prompts for every policy"),
        (change(made(), 4, prompt="another"), DataError,
         "sample '0' of policy 'sup': field 'prompt': found another text than other policies have at that id"),
        ([*made(), made()[0]], DataError, "sample '0' of policy 'zero': field 'index': found 0 twice"),
        (change(made(), 5, scores={"known": math.nan}), DataError,
         "sample '0' of policy 'rlhf': field 'scores.known': found NaN"),
        (change(made(), 5, scores={"other": 1.0}), DataError, "found only other, expected the score 'known'"),
    ],
)  # fmt: skip
def test_refused(rows: list[dict[str, Any]], error: type[Exception], message: str, tmp_path: Path) -> None:
    def asked(x: Any, y: Any) -> str:
        raise AssertionError("asked before all was checked")

    with pytest.raises(error, match=message):
        compare(rows, POLICIES, {"s": Scripted(asked), "known": ScoreJudge("known")}, tmp_path)
    assert not (tmp_path / "compare.json").exists()


def test_other_policies_are_not_looked_at() -> None:
    rows = [*made(), {"id": "0", "index": 0, "policy": "other", "prompt": "else", "response": "", "scores": {}}]
    assert set(by_policy(rows, POLICIES)) == set(POLICIES)


CONFIG = ["--config", str(Path(__file__).parents[2] / "configs" / "sentiment" / "eval.yaml"), "--lm", "stories260k"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--judges+", "gpt:4"], "judge 'gpt:4': no kind 'gpt'"),
        (["--judges+", "learned", "--learned_reward", "null"], "judges: found 'learned', expected its reward to be given"),
        (["--baselines+", "nobody"], "baselines: found 'nobody'"),
    ],
)
def test_options_are_checked_first(options: list[str], message: str, refused: Callable[..., str], no_models: None) -> None:
    only = ["--policies", "{zero-shot: stories260k}", "--second_draw", "null", "--learned_reward", "null"]
    assert message in refused(["sample", *CONFIG, *only, *options], main)


def test_people_of_two_files_who_are_called_alike_are_two(tmp_path: Path) -> None:
    rows = made(20, samples=1)
    names = list(dict.fromkeys(r["policy"] for r in rows))[:2]
    files = []
    for number, winner in enumerate("ab"):
        path = tmp_path / f"v{number}.jsonl"
        pair = dict(policy_a=names[0], policy_b=names[1], winner=winner, judge="1")
        votes = [dict(id=r["id"], **pair) for r in rows if r["policy"] == names[0]]
        path.write_text("".join(json.dumps(vote) + "\n" for vote in votes))
        files.append(f"verdicts:{path}")
    compare(rows, names, {f: load_judge(f, tmp_path / "verdicts", 8, "32") for f in files}, tmp_path / "out")
    (found,) = json.loads((tmp_path / "out/compare.json").read_text())["agreements"]
    assert found["share"] == 0.0 and found["n"] == 20
