"""eval.report on synthetic rows: numbers, warnings, escaping, same bytes."""

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.plots import line_chart, ticks
from eval.report import build_report, read_curves, render_html, render_markdown, write_report
from eval.text import interval, p_text, signed
from eval.winrate import mean_interval, paired_outcomes, win_rate

SECOND = "zero-shot (second draw)"
WORDS = [f"word{i}" for i in range(60)]


def make_rows(
    n: int = 120, policies: tuple[str, ...] = ("rlhf", "zero-shot", "supervised"), **changes: Any
) -> list[dict]:
    """`n` prompts for each policy; `changes` maps a policy's name (spaces as _) to functions of a row."""
    rows = []
    for policy in policies:
        rng = random.Random(policy)
        shift = {"rlhf": 1.0, "supervised": 0.4}.get(policy, 0.0)
        for i in range(n):
            score = rng.gauss(shift, 1.0)
            row = {
                "id": f"p{i}",
                "index": 0,
                "policy": policy,
                "prompt": f"prompt number {i} says",
                "response": " ".join(rng.sample(WORDS, 12)),
                "n_tokens": 24,
                "found": rng.random() > 0.1,
                "scores": {
                    "known": score,
                    "learned": score * 0.9,
                    "kl": 4 * shift + rng.random(),
                    "ref_nll": 60.0,
                },
            }
            changes.get(policy.replace("-", "_"), lambda row: None)(row)
            rows.append(row)
    return rows


def build(rows: list[dict] | None = None, **more: Any) -> dict[str, Any]:
    return build_report(
        make_rows() if rows is None else rows, **{"title": "A title", "task": "sentiment", **more}
    )


FULL = {
    "curves": {
        "ppo": {"objective/score": [[0, -0.5], [1, None], [2, 1.25]], "objective/kl": [[0, 0.0], [2, 5.5]]},
        "sft": {"train/loss": [[0, 3.5], [1, 3.25]], "val/loss": [[1, 3.125]]},
    },
    "reward_model": {"accuracy": 0.4375, "low": 0.4, "high": 0.475, "n": 640, "chance": 0.25, "gain": 1.8125},
    "guard": {"kind": "comparisons", "accuracy": 0.4375},
    "provenance": [
        {"stage": "ppo", "command": "lightning-rlhf fit", "seed": 7, "commit": "abc123", "seconds": 3723.0,
         "peak_memory_mb": 2048.5, "versions": {"torch": "2.13"}, "data": {"prompts.jsonl": "00ff"},
         "config": {"model": {"kl_target": 6.0}}}
    ],
    "command": "python -m eval report",
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and what is left open."""

    VOID = frozenset({"meta", "br", "line", "circle", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_numbers_are_those_of_the_functions() -> None:
    rows = make_rows()
    report = build(rows)
    assert [p["name"] for p in report["policies"]] == ["zero-shot", "supervised", "rlhf"]
    rlhf = [r["scores"] for r in rows if r["policy"] == "rlhf"]
    zero = [r["scores"] for r in rows if r["policy"] == "zero-shot"]
    own = mean_interval([s["known"] for s in rlhf])
    assert report["policies"][2]["scores"]["known"] == pytest.approx(vars(own), abs=1e-12)
    beat = win_rate(paired_outcomes([s["known"] for s in rlhf], [s["known"] for s in zero]))
    first = next(c for c in report["comparisons"] if (c["a"], c["b"]) == ("rlhf", "zero-shot"))
    assert {k: first[k] for k in vars(beat)} == pytest.approx(vars(beat), abs=1e-12)
    # 60 nats over 24 tokens each: exp(2.5).
    assert report["policies"][0]["perplexity"] == pytest.approx(math.exp(2.5), abs=1e-12)
    assert (
        report["policies"][0]["missing"]
        == sum(not r["found"] for r in rows if r["policy"] == "zero-shot") / 120
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_holm_by_hand() -> None:
    report = build()
    ps = sorted((c["p_value"], c["p_holm"]) for c in report["comparisons"])
    # three tests: 3 p₁, then max(that, 2 p₂), then max(that, p₃), each at most 1.
    expected = [min(1, 3 * ps[0][0])]
    expected.append(max(expected[0], min(1, 2 * ps[1][0])))
    expected.append(max(expected[1], ps[2][0]))
    assert [p for _, p in ps] == pytest.approx(expected, abs=1e-15)


def test_pairs_share_id_and_index() -> None:
    rows = [{**row, "index": k} for k in (0, 1) for row in make_rows(30)]
    comparison = build(rows)["comparisons"][0]
    assert (comparison["n"], comparison["prompts"], comparison["unpaired"]) == (60, 30, 0)


def test_same_inputs_same_bytes_in_any_folder(tmp_path: Path) -> None:
    first = write_report(build(**FULL), tmp_path / "a")
    second = write_report(build(**FULL), tmp_path / "b" / "c")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["report.html", "report.json", "report.md"]
    for kind in ("html", "json", "md"):
        assert first[kind].read_bytes() == second[kind].read_bytes()
    assert render_html(json.loads(first["json"].read_text("utf-8"))) == first["html"].read_text("utf-8")


def test_page_is_whole_and_asks_for_nothing() -> None:
    text = render_html(build(**FULL))
    page = Page(text)
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(tags)
    assert not [a for _, a in page.tags if {"src", "href", "srcset"} & set(a)]
    assert not re.search(r"url\(|@import|https?://", text)
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")
    svgs = [a for tag, a in page.tags if tag == "svg"]
    assert len(svgs) == 6  # forest, scatter, accuracy, three curves
    assert all(a["role"] == "img" and a["aria-label"] for a in svgs)
    assert text.count("<title>") == 1 + len(svgs)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_number_is_shown() -> None:
    report = build(**FULL)
    text, short = render_html(report), render_markdown(report)
    for policy in report["policies"]:
        for summary in policy["scores"].values():
            assert signed(summary["mean"]) in text
            assert interval(summary) in text
            assert interval(summary) in short
        for value in (policy["distinct"]["1"], policy["distinct"]["3"], policy["distinct_2_within"]["mean"]):
            assert signed(value, 3) in text
        assert signed(policy["perplexity"], 1) in text
    for c in report["comparisons"]:
        for shown in (
            f"{100 * c['rate']:.1f}",
            f"{100 * c['low']:.1f}–{100 * c['high']:.1f}",
            p_text(c["p_holm"]),
        ):
            assert shown.replace("<", "&lt;") in text
            assert shown in short
    for shown in (
        "accuracy 43.8 %",
        "chance 25.0 %",
        "1.812",
        "1 h 02 min",
        "2,048 MB",
        "abc123",
        "kl_target",
        "00ff",
    ):
        assert shown in text, shown
    assert report["headline"] in short


def test_markup_in_data_is_text() -> None:
    evil = "<script>alert(1)</script>&\"'"

    def spoil(row: dict) -> None:
        row.update(prompt=evil, response=evil, id=evil + row["id"])

    rows = make_rows(policies=("zero-shot", "rlhf"), zero_shot=spoil, rlhf=spoil)
    for row in rows:
        row["policy"] += evil
        row["scores"] = {**row["scores"], evil: 1.0}
    more = {
        "curves": {evil: {evil: [[0, 1], [1, 2]], f"train/{evil}": [[0, 1]], f"val/{evil}": [[0, 1]]}},
        "reward_model": {"accuracy": 0.5, evil: evil},
        "guard": {evil: evil},
        "provenance": [
            dict.fromkeys(("stage", "command", "seed", "commit", "data", "versions", "config"), evil)
        ],
        "methods": {evil: evil},
    }
    text = render_html(build(rows, title=evil, task=evil, command=evil, **more))
    assert "<script" not in text
    assert Page(text).open == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;" in text


def test_samples_are_chosen_by_seed() -> None:
    samples = build(n_samples=5, seed=1)["samples"]
    assert len(samples) == 5
    assert all([r["policy"] for r in s["responses"]] == ["zero-shot", "supervised", "rlhf"] for s in samples)
    assert samples == build(n_samples=5, seed=1)["samples"]
    assert samples != build(n_samples=5, seed=2)["samples"]
    assert len(build(make_rows(3), n_samples=10)["samples"]) == 3


@pytest.mark.parametrize(
    ("shift", "words"),
    [(1.0, "the rlhf policy beat zero-shot in"), (-3.0, "the rlhf policy lost to zero-shot: it won"),
     (None, "could not be told apart from zero-shot: it won 50.0 % of pairs")],
)  # fmt: skip
def test_headline(shift: float | None, words: str) -> None:
    rows = make_rows(policies=("zero-shot", "rlhf"))
    for base, row in zip(rows[:120], rows[120:], strict=True):
        row["scores"]["known"] = base["scores"]["known"] if shift is None else row["scores"]["known"] + shift
    text = build(rows)["headline"]
    assert text.startswith("On 120 held-out prompts")
    assert words in text
    assert "judged by the known reward" in text
    assert "nats from the reference." in text


def test_headline_of_one_policy() -> None:
    report = build(make_rows(policies=("rlhf",)), judge="learned")
    assert "the rlhf policy scored" in report["headline"]
    assert report["comparisons"] == []
    assert Page(render_html(report)).open == []


def kinds(report: dict[str, Any]) -> set[str | None]:
    return {warning["kind"] for warning in report["warnings"]}


def scored(**changes: float):
    """A change that adds to a row's scores."""
    return lambda row: row["scores"].update({k: row["scores"][k] + v for k, v in changes.items()})


def test_no_warning_without_cause() -> None:
    report = build(**FULL)
    assert report["warnings"] == []
    assert "No warning" in render_html(report)


@pytest.mark.parametrize(
    ("kind", "words", "change"),
    [
        ("large KL", "nats from the reference (more than 10)", scored(kl=9.0)),
        ("negative KL", "has a negative mean KL (−", scored(kl=-9.0)),
        ("over-optimised", "while the known score falls by", scored(known=-3.0)),
        ("penalised", "Most responses of rlhf were penalised: 100.0 %", lambda row: row.update(found=False)),
        (
            "repeats",
            "rlhf repeats itself",
            lambda row: row.update(response=row["response"][:30] + " a a a a a a a a"),
        ),
        ("perplexity", "times the perplexity of zero-shot's", scored(ref_nll=30.0)),
        (
            "length",
            "2.00 times the words",
            lambda row: row.update(response=row["response"] + " " + row["response"][::-1]),
        ),
        ("length", "times the words", lambda row: row.update(response=row["response"][:30])),
    ],
)
def test_each_policy_warning(kind: str, words: str, change: Any) -> None:
    report = build(make_rows(rlhf=change))
    found = [w for w in report["warnings"] if w["kind"] == kind]
    assert len(found) == 1
    assert found[0]["policy"] == "rlhf"
    assert words in found[0]["text"]
    assert "Before you rely on this" in render_html(report)
    assert found[0]["text"] in render_markdown(report)


def test_warning_of_collapse_alone() -> None:
    def same(row: dict) -> None:
        row["response"] = " ".join(
            WORDS[:12]
        )  # nothing repeats inside a response, every response is the same

    assert kinds(build(make_rows(rlhf=same))) == {"collapse"}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (
            "reward model at chance",
            {"reward_model": {"accuracy": 0.27, "low": 0.24, "high": 0.3, "chance": 0.25}},
        ),
        ("unguarded", {"guard": {"kind": "none"}}),
        ("guard overridden", {"guard": {"kind": "overridden", "why": "it agrees with 0.2"}}),
        ("guard", {"guard": {"ratio is one": False}}),
        ("guard", {"guard": {"ratio is one": {"ok": False, "text": "1.2"}}}),
    ],
)
def test_warnings_about_training(kind: str, more: dict[str, Any]) -> None:
    assert kinds(build(**more)) == {kind}


def test_warning_of_few_prompts() -> None:
    assert "few prompts" in kinds(build(make_rows(99)))
    assert "few prompts" not in kinds(build(make_rows(100)))


def test_warning_of_a_control_that_is_not_even() -> None:
    names = ("zero-shot", SECOND, "rlhf")
    fair, biased = make_rows(policies=names), make_rows(policies=names)
    for row in biased:
        row["scores"]["known"] += 2.0 * (row["policy"] == SECOND)
    assert "control not even" not in kinds(build(fair))
    assert "control not even" in kinds(build(biased))


def test_warning_of_other_prompts() -> None:
    rows = make_rows(policies=("zero-shot", "rlhf"))
    assert kinds(build(rows[:-5])) == {"prompts differ"}


def test_missing_scores_are_dashes() -> None:
    rows = make_rows()
    for row in rows:
        row["scores"] = {"known": row["scores"]["known"]}
        del row["n_tokens"], row["found"], row["index"]
    report = build(rows)
    assert report["policies"][0]["perplexity"] is None
    assert report["policies"][0]["tokens"] is None
    assert "—" in render_html(report)
    assert " nats" not in report["headline"]


def test_single_row_has_no_interval() -> None:
    report = build(make_rows(1))
    assert report["policies"][0]["scores"]["known"]["low"] is None
    json.dumps(report, allow_nan=False)
    assert Page(render_html(report)).open == []


def broken(**fields: Any) -> list[dict]:
    rows = make_rows(3)
    rows[1] = {**rows[1], **fields}
    return rows


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([], {}, "rows is empty"),
        ([{"id": 1, "policy": "a", "prompt": "p", "response": "r"}], {}, "row 0: no field scores"),
        (broken(id="p0"), {}, "row 1: id 'p0', policy 'rlhf', index 0 occurs twice"),
        (broken(scores={"learned": 1.0}), {}, "row 1: no score 'known' to judge by, found learned"),
        (broken(scores={"known": math.nan}), {}, "row 1: score 'known' is nan, expected a finite number"),
        (broken(scores={"known": 1.0}), {}, r"row 1: scores \['known'\], expected \['kl', 'known'"),
        (make_rows(3), {"order": ["rlhf", "zero-shot"]}, "order is .* expected each of"),
        (
            make_rows(3, ("rlhf",)) + [{**r, "id": "other"} for r in make_rows(1, ("zero-shot",))],
            {},
            "share no",
        ),
    ],
)
def test_errors(rows: list[dict], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(rows, **more)


def test_all_problems_in_one_error() -> None:
    rows = [{**row, "scores": {"known": math.inf}} for row in make_rows(10)]
    with pytest.raises(ValueError, match=r"row 0: (.|\n)*row 19: (.|\n)*and 10 more"):
        build(rows)


def test_order_is_kept() -> None:
    report = build(order=["supervised", "rlhf", "zero-shot"])
    assert (report["baseline"], report["main"]) == ("supervised", "zero-shot")


def test_read_curves(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,10,1.5,\n0,20,nan,\n0,20,,1.25\n,,9,9\n")
    assert read_curves(path) == {
        "epoch": [[10.0, 0.0], [20.0, 0.0], [20.0, 0.0]],
        "train/loss": [[10.0, 1.5], [20.0, None]],
        "val/loss": [[20.0, 1.25]],
    }
    assert read_curves(str(path), x="epoch")["val/loss"] == [[0.0, 1.25]]
    with pytest.raises(ValueError, match=r"no column 'steps', found epoch, step"):
        read_curves(path, x="steps")
    path.write_text("step,loss\n1,2\n2,oops\n")
    with pytest.raises(
        ValueError, match=r"metrics.csv:3: column 'loss': found 'oops' at step '2', expected numbers"
    ):
        read_curves(path)


def test_ticks() -> None:
    assert ticks(0, 8) == [0, 2, 4, 6, 8]
    assert ticks(-0.6, 1.9) == [-1, 0, 1, 2]
    assert ticks(3, 3)[0] < 3 < ticks(3, 3)[-1]


def test_line_chart_edges() -> None:
    assert "has no value" in line_chart([("a", [[0, None]])], "t")
    gap = line_chart([("a", [[0, 1.0], [1, None], [2, 2.0], [3, 1.0]])], "t")
    assert re.search(r'd="M[\d. ]+M[\d. ]+L[\d. ]+"', gap)  # the pen is lifted over the missing value
    many = line_chart([("a", [[i, float(i % 7)] for i in range(10_001)])], "t")
    assert many.count("L") < 402
    assert "from 0.00 to 4.00" in many  # the last of 10,001 points is kept: 10,000 mod 7 = 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.651, "−0.65"), (-0.001, "0.00"), (None, "—"), (1234.5, "1,234"), (123.45, "123.5")],
)
def test_signed(value: float | None, text: str) -> None:
    assert signed(value) == text
