"""eval.outcomes by hand."""

import pytest

from eval.outcomes import Outcomes, by_score

A, B = ("p1", 0), ("p2", 0)


def test_the_higher_score_wins() -> None:
    table = {"zero": {A: {"s": 1.0}, B: {"s": 2.0}}, "ours": {A: {"s": 1.0}, B: {"s": 3.0}, ("p3", 0): {"s": 9.0}}}
    found = by_score(table, "s")
    assert found.of("ours", "zero") == {(A, A): 0.5, (B, B): 1.0}
    assert found.of("zero", "ours") == {(A, A): 0.5, (B, B): 0.0}
    assert [(p.prompt, p.a["s"], p.b["s"], p.outcome) for p in found.pairs("zero", "ours")] == [
        ("p1", 1.0, 1.0, 0.5), ("p2", 2.0, 3.0, 0.0)
    ]  # fmt: skip
    assert found.between("ours", B, "zero", B) == 1.0 and found.between("zero", B, "ours", B) == 0.0
    assert found.between("zero", A, "ours", B) is None


def test_verdicts_on_some_pairs() -> None:
    table = {name: {A: {}, B: {}} for name in ("a", "b", "c")}
    found = Outcomes(table, {("a", "b"): {(A, A): 0.75, (("gone", 0), A): 1.0}})
    assert [(p.prompt, p.outcome) for p in found.pairs("b", "a")] == [("p1", 0.25)]
    assert found.pairs("a", "c") == [] and found.between("c", A, "a", A) is None


def test_policies_on_other_prompts() -> None:
    with pytest.raises(ValueError, match="policies 'b' and 'a' share no"):
        by_score({"a": {A: {"s": 1.0}}, "b": {B: {"s": 1.0}}}, "s")
