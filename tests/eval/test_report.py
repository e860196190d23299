"""eval.report on synthetic rows: numbers, warnings, escaping, same bytes."""

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eval.browser import SCRIPT, SCRIPT_HASH
from eval.curves import read_curves, stage_curves
from eval.methods import METHODS, as_markdown
from eval.plots import frontier_plot, gold_plot, line_chart, ticks
from eval.report import build_report, render_html, render_markdown, write_report
from eval.text import interval, judge_name, p_text, percent, short_names, signed
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


CALIBRATION: dict[str, Any] = {
    "n": 500, "accuracy": {"label": "all", "accuracy": 0.6, "low": 0.55, "high": 0.65, "n": 500, "chance": 0.5},
    "bins": [{"predicted": 0.55, "observed": 0.5, "low": 0.4, "high": 0.6, "n": 250},
             {"predicted": 0.8, "observed": 0.7, "low": 0.6, "high": 0.8, "n": 250}],
    "error": 0.075, "error_by_chance": 0.02, "temperature": {"value": 1.1, "low": 0.9, "high": 1.3},
    "tested": {"n": 250, "loss_before": 0.7, "loss_after": 0.6, "error_before": 0.08, "error_after": 0.03},
    "by_margin": [{"label": "0 to 1", "accuracy": 0.55, "low": 0.5, "high": 0.6, "n": 500}],
    "by_length": [], "by_labeler": [], "longest": {"accuracy": 0.5},
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes, scripts and what is left open."""

    VOID = frozenset({"meta", "br", "line", "circle", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)

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


def test_judges_in_words() -> None:
    assert judge_name("server:@cf/meta/llama@http://x/v1") == "the language model @cf/meta/llama"
    assert judge_name("reward:out/gold") == "the reward model gold"
    assert judge_name("lm:Qwen/X") == "the language model Qwen/X"
    assert judge_name("verdicts:a/votes.jsonl") == "the verdicts in votes.jsonl"
    assert judge_name("gold:v2") == "the score “gold:v2”" and judge_name("rougeL").startswith("ROUGE-L (F1 of")
    assert judge_name("known") == "the known reward" and "mean F1 of ROUGE-1, -2 and -L" in judge_name("known", "known:rouge")


def test_samples_that_do_not_say_whether_they_stopped() -> None:
    report = build([{k: v for k, v in r.items() if k != "found" or r["policy"] != "rlhf"} for r in make_rows()])
    assert [p["missing"] is None for p in report["policies"]] == [False, False, True]
    assert "No stop" in render_html(report) and not any(w["kind"] == "penalised" for w in report["warnings"])


def test_holm_by_hand() -> None:
    report = build()
    ps = sorted((c["p_value"], c["p_holm"]) for c in report["comparisons"])
    # three tests: 3 p₁, then max(that, 2 p₂), then max(that, p₃), each at most 1.
    expected = [min(1, 3 * ps[0][0])]
    expected.append(max(expected[0], min(1, 2 * ps[1][0])))
    expected.append(max(expected[1], ps[2][0]))
    assert [p for _, p in ps] == pytest.approx(expected, abs=1e-15)


def test_holm_is_over_the_pairs_with_a_baseline_that_was_asked_for() -> None:
    found = {(c["a"], c["b"]): c for c in build(baselines=["zero-shot"])["comparisons"]}
    assert found["rlhf", "supervised"]["p_holm"] is None
    asked = sorted((c["p_value"], c["p_holm"]) for pair, c in found.items() if "zero-shot" in pair)
    first = min(1, 2 * asked[0][0])
    assert [p for _, p in asked] == pytest.approx([first, max(first, asked[1][0])], abs=1e-15)
    assert "2 comparisons" in render_html(build(baselines=["zero-shot"]))


def test_judges_rows_have_the_direction_of_the_comparisons() -> None:
    controlled = {"rate": 0.25, "low": 0.125, "high": 0.5, "slope": 1.5, "longer": 0.75}
    row = {"judge": "x", "a": "zero-shot", "b": "rlhf", "rate": 0.25, "low": 0.125, "high": 0.5, "n": 8, "wins": 2, "losses": 6}
    report = build(compared={"judgements": [{**row, "length_controlled": controlled}]})
    turned = report["judgements"][0]
    assert {k: turned[k] for k in ("a", "b", "rate", "low", "high", "wins", "losses")} == {
        "a": "rlhf", "b": "zero-shot", "rate": 0.75, "low": 0.5, "high": 0.875, "wins": 6, "losses": 2
    }  # fmt: skip
    assert turned["length_controlled"] == {"rate": 0.75, "low": 0.5, "high": 0.875, "slope": 1.5, "longer": 0.25}
    assert "75.0 %<small>50.0–87.5</small>" in render_html(report)


def test_a_policy_that_is_the_reference_wins_by_construction() -> None:
    rows = [{**row, "reference": f"text {row['id']}"} for row in make_rows()]
    rows += [{**row, "policy": "reference", "response": row["reference"]} for row in rows if row["policy"] == "rlhf"]
    run = {"stage": "eval", "command": "x", "config": {"known_reward": "known:rouge"}}
    report = build(rows, provenance=[run])
    assert report["by_construction"] == ["reference"] and "reference it won" not in report["headline"]
    assert "mean F1 of ROUGE-1, -2 and -L" in report["headline"] and "true by construction" in render_html(report)
    assert build(rows)["by_construction"] == []  # another judge does not compare with it


def test_each_figure_is_explained() -> None:
    page = render_html(build())
    assert all(f"<dt>{name}</dt>" in page for name in METHODS)


def test_short_names_differ() -> None:
    names = ["a", "vwxyzjn/EleutherAI_1b__ppo__tldr", "vwxyzjn/EleutherAI_1b__sft__tldr", "vwxyzjn/EleutherAI_2b__ppo__tldr"]
    found = short_names(names, 20)
    assert found["a"] == "a" and len(set(found.values())) == 4 and all(len(v) <= 20 for v in found.values())
    alike = [f"{'x' * 500}{i}{'x' * 500}" for i in range(3)]
    assert len(set(short_names(alike).values())) == 3


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
    assert not {"link", "img", "iframe", "object", "form"} & set(tags)
    assert page.scripts == [SCRIPT]  # the browser's alone, and a browser runs no other:
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src '{SCRIPT_HASH}'"
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"sha256-{digest}" == SCRIPT_HASH
    assert not [a for _, a in page.tags if {"src", "href", "srcset"} & set(a)]
    assert not re.search(r"url\(|@import|https?://", text)
    assert ("html", {"lang": "en"}) in page.tags
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")
    svgs = [a for tag, a in page.tags if tag == "svg"]
    assert len(svgs) == 10  # forest, scatter, run, two lengths, agreement, accuracy, three curves
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
    page = Page(text)
    assert page.scripts == [SCRIPT]
    assert "<script" not in text.replace(f"<script>{SCRIPT}</script>", "")
    assert page.open == []
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;" in text


def test_samples_are_chosen_by_seed() -> None:
    samples = build(n_samples=5, seed=1)["samples"]
    assert len(samples) == 5
    assert all([r["policy"] for r in s["responses"]] == ["zero-shot", "supervised", "rlhf"] for s in samples)
    assert samples == build(n_samples=5, seed=1)["samples"]
    assert samples != build(n_samples=5, seed=2)["samples"]
    assert len(build(make_rows(3), n_samples=10)["samples"]) == 3
    few = build(n_samples=10, n_browse=4)
    assert (len(few["samples"]), len(few["more_samples"])) == (4, 0)


def test_the_page_of_the_metrics() -> None:
    page = Path(__file__).parent.parent.parent / "docs/metrics.md"
    assert page.read_text(encoding="utf-8") == as_markdown()


def test_a_headline_says_no_more_than_its_test() -> None:
    """Five wins and 95 ties: the interval is above one half, and the sign test has p = 2 / 2⁵."""
    rows = make_rows(100, policies=("zero-shot", "rlhf"))
    for i, (base, row) in enumerate(zip(rows[:100], rows[100:], strict=True)):
        row["scores"]["known"] = base["scores"]["known"] + (i < 5)
    text = build(rows)["headline"]
    assert "was ahead of zero-shot: it won 52.5 % of pairs, which its sign test does not confirm (p = 0.062)" in text


def test_untested_pairs_are_marked_and_the_copied_come_first() -> None:
    names = ("lead-3", "zeta", "zero-shot", "alpha")
    report = build(make_rows(policies=names), baselines=["zero-shot"])
    assert [p["name"] for p in report["policies"]] == ["zero-shot", "lead-3", "zeta", "alpha"]
    page = render_html(report)
    assert page.count(' untested"') == 6 and "with a baseline; the others, in italics, were not tested" in page
    assert " untested" not in render_html(build(make_rows(policies=names)))


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
    assert text.startswith("On 120 prompts")
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
        ("penalised", "Most responses of rlhf do not end as the task asks: 100.0 %", lambda row: row.update(found=False)),
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


def measured(**measures: float):
    return lambda row: row.update(measures=measures)


def test_headline_table_shows_measures_and_wins() -> None:
    rows = make_rows(
        rlhf=measured(rouge1=0.3512, rouge2=0.1, rougeL=0.25, copied=0.125),
        supervised=measured(rouge1=0.4, rouge2=0.2, rougeL=0.3, copied=None),
    )
    report = build(rows)
    text, short = render_html(report), render_markdown(report)
    for shown in ("ROUGE-1", "35.1", "40.0", "12.5 %"):
        assert shown in short
    for shown in ("<b>40.0</b>", "12.5 %", "Copied sentences"):
        assert shown in text
    lost = next(c for c in report["comparisons"] if (c["a"], c["b"]) == ("supervised", "zero-shot"))
    flipped = f"{100 - 100 * lost['rate']:.1f} ({100 - 100 * lost['high']:.1f}–{100 - 100 * lost['low']:.1f})"
    assert flipped in short.split("| policy | n |")[0]  # zero-shot against supervised, read off the pair the other way round
    assert report["policies"][0]["measures"] == {}
    assert report["policies"][1]["measures"]["rouge1"]["n"] == 120


def test_a_measure_can_judge() -> None:
    rows = make_rows(policies=("zero-shot", "rlhf"), rlhf=measured(rougeL=0.3), zero_shot=measured(rougeL=0.2))
    for row in rows:
        row["scores"] = {"kl": row["scores"]["kl"]}
    report = build(rows, judge="rougeL")
    assert report["comparisons"][0]["rate"] == 1.0
    assert "judged by ROUGE-L" in report["headline"]
    assert "ROUGE-L against KL" in render_html(report)
    assert build(rows[120:], judge="rougeL")["headline"].startswith("On 120 prompts the rlhf policy scored 0.30 by ROUGE-L")
    rows[3]["measures"]["rougeL"] = None
    with pytest.raises(ValueError, match="row 3: no score 'rougeL' to judge by"):
        build(rows, judge="rougeL")


def judgement(**more: Any) -> dict[str, Any]:
    return {"judge": "known", "a": "rlhf", "b": "zero-shot", "rate": 0.6, "low": 0.55, "high": 0.65, "n": 120, **more}


LENGTH = {"rate": 0.52, "low": 0.45, "high": 0.59, "slope": 1.0, "longer": 0.8}


@pytest.mark.parametrize(
    ("kind", "words", "more"),
    [
        ("order bias", "biased by order: it preferred what stood first in 70.0 % of its answers (65.0–75.0)",
         {"compared": {"judgements": [judgement(judge="lm", position_bias={"rate": 0.7, "low": 0.65, "high": 0.75})] * 2}}),
        ("judge against reward", "people prefers zero-shot to rlhf (40.0 % for rlhf, 35.0–45.0), although the learned score",
         {"compared": {"judgements": [judgement(judge="people", rate=0.4, low=0.35, high=0.45)]}}),
        ("no verdict", "lm gave no verdict in 7 of 100 answers",
         {"compared": {"judges": [{"judge": "lm", "verdicts": 100, "unparsable": 4, "failed": 3}]}}),
        ("length explains the win", "but 48.0 % (45.0–59.0) at equal length",
         {"compared": {"judgements": [judgement(length_controlled={**LENGTH, "rate": 0.48})]}}),
        ("length may explain the win", "at equal length it wins 52.0 % (45.0–59.0)",
         {"compared": {"judgements": [judgement(length_controlled=LENGTH)]}}),
        ("over-optimisation", "Over-optimisation begins in run ppo at step ",
         {"runs": {"ppo": {"objective/kl": [[i, i / 2] for i in range(40)], "objective/score": [[i, i / 9] for i in range(40)],
                           "objective/gold": [[i, -abs(i - 15) / 10] for i in range(40)]}}}),
        ("overconfident", "too sure of itself: its differences want dividing by 2.00",
         {"calibration": {**CALIBRATION, "temperature": {"value": 2.0, "low": 1.5, "high": 3.0}}}),
        ("reward model no better than length", "(60.0 % right) is not clear of picking the longest response (58.0 %)",
         {"calibration": {**CALIBRATION, "longest": {"accuracy": 0.58}}}),
    ],
)  # fmt: skip
def test_each_warning_of_judges_and_rewards(kind: str, words: str, more: dict[str, Any]) -> None:
    report = build(**more)
    assert [w["kind"] for w in report["warnings"]] == [kind]
    assert words in report["warnings"][0]["text"]
    assert Page(render_html(report)).open == []


@pytest.mark.parametrize(
    ("kind", "words", "changes"),
    [
        ("copier", "rlhf is a copier: 80.0 % of its sentences stand word for word", {"rlhf": measured(copied=0.8)}),
        ("copier", "supervised is a copier: 100.0 % of its bigrams stand in the source",
         {"supervised": lambda row: row.update(prompt=row["prompt"] + " " + row["response"])}),
        ("ROUGE falls", "over zero-shot while the ROUGE-L falls by 10.0",
         {"rlhf": measured(rougeL=0.2), "zero_shot": measured(rougeL=0.3)}),
    ],
)  # fmt: skip
def test_each_warning_of_copying_and_rouge(kind: str, words: str, changes: dict[str, Any]) -> None:
    report = build(make_rows(**changes))
    found = [w["text"] for w in report["warnings"] if w["kind"] == kind]
    assert len(found) == 1
    assert words in found[0]


def test_warning_of_a_win_by_length() -> None:
    def longer(row: dict) -> None:
        if int(row["id"][1:]) % 3:
            row["response"] += " more words here"
        row["scores"]["known"] = 5.0 if int(row["id"][1:]) % 3 else -5.0

    report = build(make_rows(policies=("zero-shot", "rlhf"), rlhf=longer))
    found = {w["kind"]: w["text"] for w in report["warnings"]}
    assert "it wins 66.7 % of all pairs, but 0.0 %" in found["length explains the win"]
    assert "where it writes no more words than zero-shot" in found["length explains the win"]
    assert "The judge prefers the longer response in 100.0 % of pairs" in found["judge likes length"]


def test_hostile_text_is_cut_and_cleaned(tmp_path: Path) -> None:
    evil = "\ud800 \x00 \x1b[31m </script><script>alert(1)</script> \u202e\u05e9\u05dc\u05d5\u05dd " + "word " * 200_000
    report = build(make_rows(1, policies=("zero-shot", "rlhf"), rlhf=lambda row: row.update(response=evil)))
    paths = write_report(report, tmp_path)
    text = paths["html"].read_text("utf-8")
    assert len(text) < 100_000
    assert f"and {len(evil.strip()) - 4_000:,} more characters" in text
    assert not re.search("[\x00\x1b\ud800]", text)
    assert Page(text).scripts == [SCRIPT]
    assert 'dir="auto"' in text


def test_markdown_brings_no_markup() -> None:
    rows = make_rows(policies=("zero-shot", "rlhf"))
    for row in rows:
        row["policy"] += "<img src=x>|"
    text = render_markdown(build(rows, title="<b>", command="`x`\ny"))
    assert "<img" not in text
    assert "<b>" not in text
    assert "&lt;img src=x&gt;\\|" in text
    assert "`'x' y`" in text


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
        (broken(measures={"rougeL": math.nan}), {}, "row 1: measure 'rougeL' is nan, expected a finite number or null"),
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


def test_curves_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    """A version goes on from the one before, and stands in place of what it does again."""
    for number, steps in ((0, (0, 1, 2, 3)), (1, (2, 3, 4)), (10, (4, 5))):
        rows = "".join(f"{step},{number}.{step}\n" for step in steps)
        (tmp_path / f"ppo/version_{number}").mkdir(parents=True)
        (tmp_path / f"ppo/version_{number}/metrics.csv").write_text("step,score\n" + rows, encoding="utf-8")
    assert stage_curves(str(tmp_path)) == {"ppo": {"score": [[0, 0.0], [1, 0.1], [2, 1.2], [3, 1.3], [4, 10.4], [5, 10.5]]}}


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
    assert ticks(0.3, 0.1 + 0.2) == ticks(0.3, 0.3) and ticks(-1e-15, 1e-15) == ticks(0, 0)


def test_line_chart_edges() -> None:
    assert "has no value" in line_chart([("a", [[0, None]])], "t")
    gap = line_chart([("a", [[0, 1.0], [1, None], [2, 2.0], [3, 1.0]])], "t")
    assert re.search(r'd="M[\d. ]+M[\d. ]+L[\d. ]+"', gap)  # the pen is lifted over the missing value
    assert gap.count("<circle") == 1  # a point alone
    assert line_chart([("a", [[3, 1.0]])], "t").count("<circle") == 1
    many = line_chart([("a", [[i, float(i % 7)] for i in range(10_001)])], "t")
    assert many.count("L") < 402
    assert "from 0.00 to 4.00" in many  # the last of 10,001 points is kept: 10,000 mod 7 = 4


# ---- the frontier ----


def a_run(name: str = "ppo", up: float = 0.0, gold: bool = True, turn: bool = True) -> dict[str, Any]:
    """Three checkpoints at √KL 0, 1 and 2, as `eval.evidence.frontier` gives a run; the line is proxy = up + √KL."""
    at = {"at": 1, "step": 10.0, "kl": 1.0, "proxy": up + 1.5, "proxy_after": up + 2.0, "gold": 5.0, "gold_after": 4.0}
    line = {"slope": 1.0, "intercept": up, "low": 0.9, "high": 1.1, "r2": 0.9, "bend": 0.0, "residuals": [0.0, 0.5, 0.0], "n": 3}
    scores = {"proxy": [up, up + 1.5, up + 2.0], "gold": [3.0, 5.0, 4.0] if gold else None}
    steps = {"name": name, "step": [0.0, 10.0, 20.0], "kl": [-0.01, 1.0, 4.0]}
    return {**steps, **scores, "line": line, "turn": at if turn else None}


BEST_OF = [{"n": 1, "kl": 0.0, "proxy": 0.0, "gold": 3.0}, {"n": 4, "kl": 0.25, "proxy": 1.0, "gold": 4.0}]


def drawn(svg: str, path: str) -> list[dict[str, float]]:
    """Coordinates of the shapes at a path, such as `g[@class='proxy']//circle`."""
    found = ElementTree.fromstring(svg).iterfind(f".//{path}")
    return [{k: float(v) for k, v in e.attrib.items() if k in ("cx", "cy", "x1", "x2", "y1", "y2", "r")} for e in found]


def place(svg: str, panel: str, value: float) -> float:
    """The height in pixels of a value in a panel, by the labels of its lowest and highest grid lines."""
    lines = drawn(svg, f"g[@class='{panel}']/line[@class='grid']")
    texts = ElementTree.fromstring(svg).iterfind(f"g[@class='{panel}']/text[@text-anchor='end']")
    marks = [float((t.text or "").replace("−", "-")) for t in texts]
    (low, a), (high, b) = sorted(zip(marks, (line["y1"] for line in lines), strict=False))[:: len(lines) - 1]
    return a + (b - a) * (value - low) / (high - low)


def test_the_panels_of_the_frontier_by_hand() -> None:
    svg = frontier_plot([a_run()], "A run", BEST_OF)
    right = 46 + 400 / 1.03  # √KL 2; the axis has 3 % beyond it
    for panel, values in (("proxy", (0.0, 1.5, 2.0)), ("gold", (3.0, 5.0, 4.0)), ("rest", (0.0, 0.5, 0.0))):
        dots = drawn(svg, f"g[@class='{panel}']/g[@class='run']/circle")
        assert [d["cx"] for d in dots] == pytest.approx([46, (46 + right) / 2, right], abs=0.06)
        assert [d["cy"] for d in dots] == pytest.approx([place(svg, panel, v) for v in values], abs=0.15)
    lines = re.findall(r'<path class="line" [^>]*d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    ends = [46, place(svg, "proxy", 0.0), right, place(svg, "proxy", 2.0)]
    assert [[float(v) for v in line] for line in lines] == [pytest.approx(ends, abs=0.15)]
    (zero,) = drawn(svg, "g[@class='rest']/line[@class='ref']")
    assert zero["y1"] == zero["y2"] == pytest.approx(place(svg, "rest", 0.0), abs=0.15)
    for panel, value in (("proxy", 1.0), ("gold", 4.0)):  # best of 4: half a √nat
        (dot,) = drawn(svg, f"g[@class='{panel}']/g[@class='best']/circle")
        assert (dot["cx"], dot["cy"]) == pytest.approx((46 + 100 / 1.03, place(svg, panel, value)), abs=0.15)
    assert not drawn(svg, "g[@class='rest']/g[@class='best']")


def test_where_over_optimisation_begins_is_named_in_the_plot() -> None:
    svg = frontier_plot([a_run()], "A run")
    (upright,) = drawn(svg, "line[@class='ref turn']")
    assert upright["x1"] == upright["x2"] == pytest.approx(46 + 200 / 1.03, abs=0.06)
    assert upright["y1"] < place(svg, "proxy", 2.0) and upright["y2"] > place(svg, "rest", -0.5)  # through all panels
    (ring,) = drawn(svg, "circle[@class='ring']")
    assert (ring["cx"], ring["cy"]) == pytest.approx((upright["x1"], place(svg, "gold", 5.0)), abs=0.15)
    assert ">over-optimisation begins, 1.0 nats<" in svg
    two = frontier_plot([a_run(), a_run("weaker", turn=False), a_run("<third>")], "Runs")
    texts = [t.text for t in ElementTree.fromstring(two).iter() if t.tag == "text"]
    assert [t for t in texts if t and "begins" in t] == [
        "ppo: over-optimisation begins, 1.0 nats", "<third>: over-optimisation begins, 1.0 nats"
    ]  # fmt: skip
    assert texts[:3] == ["ppo", "weaker", "<third>"]  # the legend
    assert "begins" not in frontier_plot([a_run(turn=False)], "A run")


def test_each_run_of_the_frontier_has_its_colour() -> None:
    svg = frontier_plot([a_run(str(i), up=i, turn=False) for i in range(6)], "Runs")
    styles = [g.attrib["style"] for g in ElementTree.fromstring(svg).iterfind(".//g[@class='proxy']/g[@class='run']")]
    assert len(set(styles)) == 6
    assert ">ppo<" not in frontier_plot([a_run()], "A run")  # one run needs no legend


def test_a_run_without_gold_or_line_has_fewer_panels() -> None:
    plain = {**a_run(gold=False, turn=False), "line": None}
    svg = frontier_plot([plain], "A run", BEST_OF)
    assert not drawn(svg, "g[@class='gold']") and not drawn(svg, "g[@class='rest']")
    assert len(drawn(svg, "g[@class='proxy']/g[@class='run']/circle")) == 3
    still = {**plain, "step": [0.0], "kl": [0.0], "proxy": [1.0]}
    assert drawn(frontier_plot([still], "A run"), "g[@class='proxy']/g[@class='run']/circle")[0]["cx"] == 46


def test_gold_against_proxy_by_hand() -> None:
    svg = gold_plot([a_run(), a_run("no gold", gold=False, turn=False)], "Gold against proxy", BEST_OF)
    (path,) = re.findall(r'<path class="line" [^>]* d="M([^"]*)"', svg)
    points = [tuple(map(float, p.split())) for p in path.split("L")]
    (left, bottom), (x, top), (right, y) = points  # in the order of training: (0, 3), (1.5, 5), (2, 4)
    assert right - left == pytest.approx(400 / 1.12, abs=0.15)  # with 6 % at either end
    assert x == pytest.approx(left + 0.75 * (right - left), abs=0.15) and y == pytest.approx((top + bottom) / 2, abs=0.15)
    dots = drawn(svg, "g[@class='run']/circle")
    assert [(d["cx"], d["cy"]) for d in dots] == points
    assert dots[-1]["r"] > dots[0]["r"] == dots[1]["r"]  # the last checkpoint is larger
    (ring,) = drawn(svg, "circle[@class='ring']")
    assert (ring["cx"], ring["cy"]) == points[1]
    (best,) = drawn(svg, "g[@class='best']/circle")
    assert (best["cx"], best["cy"]) == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.15)
    assert "best of 4" in svg


def test_the_name_of_best_of_n_hides_no_checkpoint() -> None:
    kl = [0.01 * k * k for k in range(31)]  # √KL to 3, the best of 4 at 0.5
    for lean in (0.3, 0.0, -0.3):  # checkpoints above, upon and beneath it
        run = {**a_run(gold=False, turn=False), "kl": kl, "proxy": [2 * k**0.5 + lean for k in kl], "line": None}
        svg = frontier_plot([run], "A run", BEST_OF)
        (name,) = ElementTree.fromstring(svg).iterfind(".//g[@class='best']/text")
        x, y, end = float(name.attrib["x"]), float(name.attrib["y"]), name.attrib["text-anchor"] == "end"
        left, right = (x - 60, x) if end else (x, x + 60)
        dots = drawn(svg, "g[@class='proxy']/g[@class='run']/circle")
        assert left >= 46 and not [d for d in dots if left < d["cx"] < right and y - 11 < d["cy"] < y + 3]


def logged(fall: float = 0.1, gold: bool = True) -> dict[str, list[list[float]]]:
    """A run's columns: the proxy rises with √KL, gold peaks at step 15 and falls by so much a step."""
    values = {"kl": lambda i: i / 2, "score": lambda i: i**0.5, "gold": lambda i: min(i - 15, 0) / 10 - fall * max(i - 15, 0)}
    return {f"objective/{k}": [[i, f(i)] for i in range(40)] for k, f in values.items() if gold or k != "gold"}


def sampled(n: int = 4) -> list[dict]:
    """Rows with n samples a prompt of zero-shot, the baseline."""
    rows = [{**row, "index": k} for row in make_rows(20, ("zero-shot",)) for k in range(n)]
    for row in rows:
        row["scores"] = {**row["scores"], "known": row["index"] / 10, "learned": float(row["index"])}
    return [*rows, *make_rows(20, ("rlhf",))]


def test_runs_stand_in_one_figure() -> None:
    report = build(sampled(), runs={"ppo": logged(), "weaker": logged(fall=-0.1), "long": logged(gold=False)})
    page = render_html(report)
    found = Page(page)
    labels = [a["aria-label"] or "" for tag, a in found.tags if tag == "svg"]
    (over_root,) = [t for t in labels if t.startswith("Score against √KL")]
    (against,) = [t for t in labels if t.startswith("Gold against proxy")]
    assert "ppo: KL from 0.00 to 19.50, proxy from 0.00 to 6.24, gold from −1.50 to −2.40" in over_root
    assert "over-optimisation begins at 7.5 nats" in over_root and "best of 4: proxy 3.00, gold 0.30 at 0.64 nats" in over_root
    assert "long" in over_root and "long" not in against  # no gold, no place there
    section = page[page.index('id="cost"') : page.index('id="length"')]
    for said in (
        "<b>ppo</b>: 40 checkpoints", "Over-optimisation begins at step 15, 7.5 nats", "<b>weaker</b>: 40 checkpoints",
        "Gold does not turn", "No gold score was logged", "the best of 1, 2, 4 of zero-shot by the learned score",
    ):  # fmt: skip
        assert said in section, said
    assert section.count("<svg") == 3
    assert render_html(json.loads(json.dumps(report))) == page


def test_one_run_without_gold() -> None:
    page = render_html(build(runs={"ppo": logged(gold=False)}))
    section = page[page.index('id="cost"') : page.index('id="length"')]
    assert section.count("<svg") == 2 and "Gold against" not in section and "best of" not in section
    assert "40 checkpoints of run ppo" in section and "over-optimisation cannot be told" in section


@pytest.mark.parametrize(
    ("trained", "held_out", "judge", "proxy", "gold"),
    [
        ("run/reward", "known:x", "known", True, True), ("./run/reward", None, "known", True, True),
        (None, None, "known", True, True), ("other/reward", "known:x", "known", False, False),
        ([{"reward": "run/reward", "weight": 0.5}], "known:x", "known", False, False),
        ("run/reward", "known:y", "known", True, False), ("run/reward", "known:x", "learned", True, False),
    ],
)  # fmt: skip
def test_best_of_n_stands_on_the_axes_of_the_same_scores_alone(
    trained: Any, held_out: str | None, judge: str, proxy: bool, gold: bool
) -> None:
    ppo = {"stage": "ppo", "config": {"model": {"init_args": {"reward": trained, "held_out_reward": held_out}}}}
    own = {"stage": "eval", "config": {"learned_reward": "run/reward", "known_reward": "known:x"}}
    page = render_html(build(sampled(), runs={"ppo": logged()}, provenance=[ppo, own], judge=judge))
    svg = next(s for s in re.findall(r"<svg.*?</svg>", page) if "<title>Score against √KL" in s)
    assert bool(drawn(svg, "g[@class='proxy']/g[@class='best']/circle")) == proxy
    assert bool(drawn(svg, "g[@class='gold']/g[@class='best']/circle")) == gold
    assert ("Best of n is left out" in page) == (not proxy)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.651, "−0.65"), (-0.001, "0.00"), (None, "—"), (1234.5, "1,234"), (123.45, "123.5")],
)
def test_signed(value: float | None, text: str) -> None:
    assert signed(value) == text
    assert percent(-0.125) == "−12.5 %"


def test_length_is_not_blamed_where_the_winner_writes_less() -> None:
    for less in ({"longer": 0.2}, {"slope": -1.0}):
        report = build(compared={"judgements": [judgement(length_controlled={**LENGTH, **less})]})
        assert not [w for w in report["warnings"] if "length" in w["kind"]]


def test_more_samples_of_one_policy_are_told_as_that() -> None:
    once = make_rows(policies=("zero-shot",))
    often = [{**row, "index": i} for row in make_rows(policies=("rlhf",)) for i in range(4)]
    report = build([*once, *often])
    texts = {w["kind"]: w["text"] for w in report["warnings"]}
    assert "did not answer each prompt as often: 360 responses have no partner, and are left out" in texts["prompts differ"]
    assert "collapse" not in texts  # four times as many responses have fewer different bigrams among them


def test_every_row_of_a_markdown_table_has_its_head_s_cells() -> None:
    rows = make_rows()
    for row in rows:
        row["scores"] = {}
        row["measures"] = {"rougeL": 0.5, "words": 12}
    for report in (build(), build(rows, judge="rougeL")):
        tables = [block.split("\n") for block in render_markdown(report).split("\n\n") if block.startswith("|")]
        assert tables
        for table in tables:
            assert len({line.replace(r"\|", "").count("|") for line in table if line.startswith("|")}) == 1, table[:2]
