"""eval.browser: its marks by hand, and the whole report opened in headless Chromium.

The tests in Chromium need playwright (a dev extra) and a Chromium or Chrome of the system; without them they are skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eval import browser
from eval.calibration import calibrate, ensemble
from eval.evidence import tabulate
from eval.outcomes import by_score
from eval.report import build_report, write_report

EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>"
OTHER = EVIL.replace("ran", "run")  # no five words in a row of the other, so that it is not marked as copied
SLOW_MS = 180_000  # a busy machine's browser takes its time; nothing here waits so long otherwise
LONG = ("1b-deduped__sft", "1b-deduped__ppo", "1b-deduped__reward", "2.8b-deduped__ppo", "6.9b-deduped__ppo_left_padding")
OVERLAPS = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
  const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  return texts.flatMap(([t, a], i) => texts.slice(i + 1).filter(([, b]) => meet(a, b)).map(([u]) => `${t} × ${u}`));
})"""
SCHEMES = {"light": 1280, "dark": 390}  # colour scheme → width of the window


# ---- marks and choice ----


def spans(source: str, text: str, n: int = 3) -> list[tuple[str, str]]:
    return [(text[a:b], source[c:d]) for (a, b), (c, d) in browser.copied_spans(source, text, n)]


def test_copied_spans_by_hand() -> None:
    source = "The cat sat on the mat. A dog -- an old one -- saw the cat sit."
    assert spans(source, "Then the CAT sat on, and a dog, an old one, slept.") == [
        ("the CAT sat on", "The cat sat on"), ("a dog, an old one", "A dog -- an old one")
    ]  # fmt: skip
    assert spans(source, "the cat sit") == [("the cat sit", "the cat sit")]
    assert spans(source, "cat sat") == []
    assert spans("a b c x a b c d", "a b c d") == [("a b c d", "a b c d")]  # the longest place, not the first
    assert spans("שלום עולם טוב מאד", "אמר: שלום עולם טוב!") == [("שלום עולם טוב", "שלום עולם טוב")]
    assert browser.copied_spans("", "a b c", 3) == []


def test_repetitive_text_takes_no_time() -> None:
    assert len(browser.copied_spans("a " * 10_000, "a " * 2_000)) == 1


def test_marked_escapes_and_joins() -> None:
    assert browser.marked("a <b> c", [(2, 5)]) == "a <mark>&lt;b&gt;</mark> c"
    assert browser.marked("abcdef", [(3, 5), (0, 2), (1, 4)]) == "<mark>ab</mark><mark>cd</mark><mark>e</mark>f"
    assert browser.marked("ab", [], 1_234_567) == 'ab<span class="dim"> … and 1,234,567 more characters</span>'


def test_apart_counts_pairs_that_are_ordered_differently() -> None:
    scores = {"a": {"learned": 3.0}, "b": {"learned": 2.0}, "c": {"learned": 4.0}}
    won = {("b", "a"): 1.0, ("c", "a"): 1.0, ("c", "b"): 1.0}
    assert browser.apart(scores, won, "known") == pytest.approx(1 / 3)  # b against a alone
    assert browser.apart(scores, won, "learned") == 0.0  # not with itself
    assert browser.apart({"a": {}, "b": {}}, {("b", "a"): 1.0}, "known") == 0.0
    assert browser.apart({"a": {"rougeL": 1.0}, "b": {"rougeL": 0.0}}, {("b", "a"): 1.0}, "known") == 1.0
    assert browser.apart(scores, {}, "verdicts:x") == 0.0


def test_a_longer_draw_starts_with_the_shorter() -> None:
    rows = report_rows(30)
    table = {name: [r for r in rows if r["policy"] == name] for name in ("zero-shot", "rlhf")}
    won = by_score(tabulate(table), "known")
    ids = [[s["id"] for s in browser.choose(table, won, "known", n, seed=3)] for n in (5, 30)]
    assert ids[1][:5] == ids[0]
    assert sorted(ids[1]) == sorted({r["id"] for r in rows})
    turned = {name: rows[::-1] for name, rows in table.items()}
    assert [s["id"] for s in browser.choose(turned, won, "known", 5, seed=3)] == ids[0]
    assert [s["id"] for s in browser.choose(table, won, "known", 30, 3, hide=ids[0][:2])][:3] != ids[0][:3]
    assert {s["id"] for s in browser.choose(table, won, "known", 30, 3, hide=ids[0][:2])} == set(ids[1]) - set(ids[0][:2])
    found = browser.choose(table, won, "known", 30, 3)
    assert {s["won"] for s in found} == {"won", "lost"}
    assert all(s["pick"] == ("rlhf" if s["won"] == "won" else "zero-shot") for s in found)


def test_a_policy_that_is_the_reference_has_no_second_card() -> None:
    rows = [{**row, "policy": "reference", "response": row["reference"]} for row in report_rows(3) if row["policy"] == "rlhf"]
    plain, both = (build_report(r, title="A", task="", n_samples=3) for r in (report_rows(3), report_rows(3) + rows))
    assert browser.render(plain).count('class="card reference"') == 3
    assert browser.render(both).count('class="card reference"') == 0
    assert "ROUGE-L 20.0" in browser.render(plain)  # in per cent, as in the tables


# ---- in Chromium ----


def report_rows(n: int) -> list[dict[str, Any]]:
    """n prompts for two policies; prompt 7 is hostile, prompt 3 holds the word xylophone."""
    rows = []
    for policy in ("zero-shot", "rlhf"):
        for i in range(n):
            known = (i * 7 % 11) - 5.0 if policy == "rlhf" else 0.5
            text = f"answer {i} of {policy}: the quick brown fox jumps over it"
            row = {"id": f"p{i:02d}", "index": 0, "policy": policy, "prompt": f"prompt {i}. The quick brown fox jumps high.",
                   "response": text, "reference": "a human text", "found": i % 5 > 0, "n_tokens": 9,
                   "scores": {"known": known, "learned": known * (-1 if i % 4 == 0 else 1), "kl": 3.0 * (policy == "rlhf")},
                   "measures": {"rougeL": (i % 10) / 10, "copied": None, "words": 9}}  # fmt: skip
            if i == 3:
                row["response"] += " xylophone"
            if i == 7:
                copied = "The quick brown fox jumps"
                row["prompt"] = f"{EVIL} {copied} {EVIL} \u202e אבג " + "x" * 1_000_000
                row["response"] = f"{OTHER} {copied} {OTHER} שלום עולם " + "y " * 500_000
            rows.append(row)
    return rows


def hostile_report() -> dict[str, Any]:
    """All sections, with markup wherever data go."""
    scores = [[0.1 * (i % 13), 0.5] for i in range(200)]
    choices = [i % 3 % 2 for i in range(200)]
    found = calibrate(scores, choices, [[5, 6 + i % 3] for i in range(200)], [f"{EVIL}{i % 2}" for i in range(200)])
    curve = [[i, float(i)] for i in range(40)]
    columns = {"objective/kl": curve, "objective/score": curve, "objective/gold": [[i, -abs(i - 9.0)] for i in range(40)]}
    rows = report_rows(60)
    for row in rows:
        row["scores"][EVIL] = 1.0
        row["measures"][EVIL + "2"] = 1.0
        if row["policy"] == "zero-shot":
            row["policy"] = EVIL
    verdict = {"judge": EVIL, "a": EVIL, "b": "rlhf", "rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    ranking = [{"policy": EVIL, "strength": 0.1, "low": -0.1, "high": 0.3}]
    judges = [{"judge": EVIL, "ranking": ranking}]
    compared = {"judgements": [verdict], "agreements": [{"a": EVIL, "b": EVIL, "n": 3}], "judges": judges}
    return build_report(
        rows, title=EVIL, task=EVIL, order=[EVIL, "rlhf"], curves={EVIL: columns, "ppo": columns}, calibration=asdict(found),
        runs={EVIL: columns, "ppo": columns},
        ensemble=asdict(ensemble([scores, scores], choices)), compared=compared,
        reward_model={EVIL: EVIL}, guard={EVIL: EVIL}, provenance=[{"stage": EVIL, "command": EVIL, "config": {EVIL: EVIL}}],
        command=EVIL, methods={EVIL: EVIL}, n_samples=10,
    )  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = build_report(report_rows(60), title="A title", task="tldr", n_samples=10)
    return write_report(report, tmp_path_factory.mktemp("plain"))["html"]


@pytest.fixture(params=list(SCHEMES))
def page(chromium: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A new page; what it says on the console, its errors and its requests are in `.told`."""
    scheme = request.param
    context = chromium.new_context(viewport={"width": SCHEMES[scheme], "height": 900}, color_scheme=scheme)
    context.set_default_timeout(SLOW_MS)
    opened = context.new_page()
    opened.told = []
    opened.on("console", lambda message: opened.told.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: opened.told.append(f"error: {error}"))
    opened.on("request", lambda request: opened.told.append(f"request: {request.url}"))
    yield opened
    context.close()


def shown(page: Any) -> list[str]:
    """Ids of the prompts that can be seen, in order."""
    return page.eval_on_selector_all("article.sample:not([hidden]) h3", "nodes => nodes.map(n => n.textContent)")


def test_nothing_runs_and_nothing_is_asked_for(page: Any, tmp_path: Path) -> None:
    path = write_report(hostile_report(), tmp_path)["html"]
    page.goto(path.as_uri())
    page.select_option("#show", "all")
    while page.is_visible("#more"):
        page.click("#more")  # every sample is laid out
    assert len(shown(page)) == 60
    assert not page.query_selector_all("[onerror], [onload]")
    assert page.told == [f"request: {path.as_uri()}"]
    assert page.evaluate("[window.ran, window.run]") == [None, None]
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert "more characters" in page.locator("article.sample", has_text="p07").first.inner_text()
    # And if markup got in after all, the page's policy would stop it:
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 4\">')")
    page.evaluate("{const s = document.createElement('script'); s.textContent = 'window.ran = 5'; document.body.append(s)}")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in line for line in page.told)


def test_page_fits_its_window(page: Any, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.is_visible("#find")
    for name in ("find", "show", "sort", "whose", "more"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["height"] >= 36
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"]
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(20, 23, 26)") == dark


def test_long_names_fit_and_overlap_nothing(page: Any, tmp_path: Path) -> None:
    names = ["random-sentence", "lead-1", "reference", *(f"vwxyzjn/EleutherAI_pythia-{n}__tldr" for n in LONG)]
    rows = [
        {**row, "policy": name, "scores": {"known": row["scores"]["known"] + k * i % 3}}
        for k, name in enumerate(names)
        for i, row in enumerate(report_rows(30)[:30])
        if i != 7
    ]
    page.goto(write_report(build_report(rows, title="A title", task=""), tmp_path)["html"].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OVERLAPS) == []
    assert page.eval_on_selector_all("th, td", "cells => cells.filter(c => c.scrollWidth > c.clientWidth + 1).length") == 0
    assert page.locator(f'.matrix th[title="{names[-1]}"]').count() == 2
    if page.viewport_size["width"] == 1280:
        assert page.locator(".scroll:has(.matrix)").evaluate("box => box.scrollWidth <= box.clientWidth")


def test_runs_of_long_names_overlap_nothing(page: Any, tmp_path: Path) -> None:
    rows = [{**row, "index": k} for row in report_rows(7) if row["policy"] == "zero-shot" for k in range(8)]
    for row in rows:
        row["scores"] = {"known": row["index"] / 9, "learned": row["index"] / 4, "kl": 0.0}
    rows += [row for row in report_rows(7) if row["policy"] == "rlhf"]
    runs = {}
    for name, turn in zip(LONG, (3, 9, 15, 24, 36), strict=True):
        kl = [[i, i * 0.7] for i in range(40)]
        gold = [[i, -abs(i - turn) / 9] for i in range(40)]
        runs[name] = {"objective/kl": kl, "objective/score": [[i, i**0.5 / 3] for i in range(40)], "objective/gold": gold}
    for report in (build_report(rows, title="A", task="", runs=given) for given in (runs, {LONG[2]: runs[LONG[2]]})):
        page.goto(write_report(report, tmp_path)["html"].as_uri())
        assert page.locator("svg", has_text="over-optimisation begins").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate(OVERLAPS) == []
        edges = "nodes => nodes.map(n => n.getBoundingClientRect()).flatMap(box => [box.left, box.right])"
        ends = page.eval_on_selector_all("svg text", edges)
        assert min(ends) >= 0 and max(ends) <= page.viewport_size["width"]


def test_filter_sort_and_more(page: Any, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    first = shown(page)
    assert len(first) == 10
    assert page.inner_text("#count") == "10 shown of 60"
    page.click("#more")
    assert shown(page)[:10] == first
    assert len(shown(page)) == 20

    page.fill("#find", "XYLOphone")
    assert shown(page) == ["p03"]
    assert page.inner_text("#count") == "1 shown of 1 found of 60"
    assert not page.is_visible("#more")
    page.fill("#find", "nowhere to be found")
    assert shown(page) == []
    page.fill("#find", "")

    score = {f"p{i:02d}": (i * 7 % 11) - 5 for i in range(60)}
    page.select_option("#sort", "known down")
    assert [score[key] for key in shown(page)] == sorted(score.values(), reverse=True)[:10]
    page.select_option("#sort", "known up")
    assert [score[key] for key in shown(page)] == sorted(score.values())[:10]
    page.select_option("#whose", "zero-shot")  # whose scores are all the same: the order drawn
    assert shown(page) == first
    page.select_option("#sort", "rougeL down")
    assert {int(key[1:]) % 10 for key in shown(page)} == {9, 8}
    page.select_option("#sort", "apart down")
    assert page.is_disabled("#whose")
    assert {int(key[1:]) % 4 for key in shown(page)} == {0}  # where the learned reward has the other sign
    page.select_option("#sort", "chance down")
    assert shown(page) == first

    page.select_option("#show", "apart")
    assert page.inner_text("#count") == "10 shown of 15 found of 60"  # every fourth
    page.select_option("#show", "won")
    assert all(score[key] > 0.5 for key in shown(page))
    page.select_option("#show", "lost")
    assert all(score[key] < 0.5 for key in shown(page))
    assert page.told == [f"request: {page_file.as_uri()}"]


def test_marks_and_print(page: Any, page_file: Path) -> None:
    page.goto(page_file.as_uri())
    page.fill("#find", "over it")  # in all but the hostile one
    marks = page.eval_on_selector_all("article.sample:not([hidden]) .text mark", "nodes => nodes.map(n => n.textContent)")
    assert set(marks) == {"the quick brown fox jumps"}
    in_source = page.eval_on_selector_all("article.sample:not([hidden]) .prompt mark", "nodes => nodes.map(n => n.textContent)")
    assert set(in_source) == {"The quick brown fox jumps"}
    page.emulate_media(media="print")
    assert not page.is_visible("#sample-tools")
    assert not page.is_visible("#more")
    assert len(shown(page)) == 10
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_without_script_the_first_samples_stand_there(chromium: Any, page_file: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("article.sample:not([hidden])").count() == 10
    assert not page.is_visible("#sample-tools")
    text = page_file.read_text("utf-8")
    assert re.search(r'<div id="sample-tools"[^>]* hidden>', text)
    context.close()
