"""The labelling page: what is asked, what a click writes, what is kept; over HTTP, in Chromium, and through `labels`."""

from __future__ import annotations

import json
import resource
import shlex
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eval.__main__ import main as eval_main
from eval.judges import read_verdicts
from lightning_rlhf import label_items, labeling
from lightning_rlhf.cli import main, parse_function
from lightning_rlhf.files import DataError, append_jsonl, whole_lines
from lightning_rlhf.label_items import Elsewhere, Item, Labels, chosen, items_of_responses, items_of_samples
from lightning_rlhf.labelers import label
from lightning_rlhf.labeling import LabelServer
from lightning_rlhf.people import answers_of_people, with_best
from lightning_rlhf.records import read_comparisons
from lightning_rlhf.tasks import Task, UsageError

EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def four(n: int = 3) -> list[Item]:
    """n items of four responses each, `r0` … `r3`."""
    told = [{"id": f"i{k}", "prompt": f"p{k}", "responses": [f"r{j}" for j in range(4)]} for k in range(n)]
    return [Item((r["id"],), r["prompt"], tuple(r["responses"]), r) for r in told]


def samples(file: Path, n: int = 3, policies: tuple[str, ...] = ("zero", "sft", "rlhf")) -> Path:
    asked = [(p, k) for p in policies for k in range(n)]
    return write(file, [dict(id=f"q{k}", policy=p, prompt=f"ask {k}", response=f"{p} says {k}") for p, k in asked])


# ---- what is asked ----


def test_items_of_responses(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}]
    file = write(tmp_path / "r.jsonl", [
        {"prompt": "p", "responses": ["a", "b"], "best": 1, "reference": "secret"},
        {"id": 7, "prompt": talk, "responses": ["c", "d"]},
    ])  # fmt: skip
    one, two = items_of_responses(str(file))
    assert one.record == {"id": "0", "prompt": "p", "responses": ["a", "b"]}
    assert (two.key, two.prompt, two.responses) == (("7",), talk, ("c", "d"))


@pytest.mark.parametrize(("row", "message"), [
    ({"prompt": "p"}, "r.jsonl:2: found \"prompt\", expected the fields prompt and responses"),
    ({"prompt": "p", "responses": ["a"]}, "r.jsonl:2: field 'responses': found ..a.., expected a list of two or more"),
    ({"prompt": "p", "responses": ["a", 3]}, "r.jsonl:2: field 'responses': found 3, expected a string"),
    ({"prompt": [5, 6], "responses": ["a", "b"]}, "r.jsonl:2: field 'prompt': found .5, 6., expected a text or messages"),
    ({"id": "0", "prompt": "p", "responses": ["a", "b"]}, "r.jsonl:2: field 'id': found '0' a second time, expected each id"),
])  # fmt: skip
def test_responses_that_cannot_be_asked_about(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "r.jsonl", [{"prompt": "p", "responses": ["a", "b"]}, row])
    with pytest.raises(DataError, match=message):
        items_of_responses(str(file))


def test_items_of_samples(tmp_path: Path) -> None:
    file = str(samples(tmp_path / "s.jsonl"))
    pairs = lambda items: {tuple(sorted(p for p, _ in item.names)) for item in items}  # noqa: E731
    everyone = items_of_samples(file, None, None)
    assert len(everyone) == 9
    assert pairs(everyone) == {("sft", "zero"), ("rlhf", "zero"), ("rlhf", "sft")}
    assert pairs(items_of_samples(file, None, ["zero"])) == {("sft", "zero"), ("rlhf", "zero")}
    assert pairs(items_of_samples(file, ["rlhf"], ["zero"])) == {("rlhf", "zero")}
    assert everyone[0].record == {"id": "q0"}  # nothing else of the sample reaches the label


def test_samples_that_cannot_be_compared(tmp_path: Path) -> None:
    file = samples(tmp_path / "s.jsonl")
    with pytest.raises(UsageError, match=r"baselines: found \['zeros'\], expected policies of .*: \['rlhf', 'sft', 'zero'\]"):
        items_of_samples(str(file), None, ["zeros"])
    with pytest.raises(UsageError, match=r"found the policies \['zero'\], expected two that answer the same prompts"):
        items_of_samples(str(samples(tmp_path / "one.jsonl", policies=("zero",))), None, None)
    other = rows(file)
    other[3]["prompt"] = "another"
    with pytest.raises(DataError, match="field 'prompt': found another one of 'sft' than of 'zero' for id 'q0', expected"):
        items_of_samples(str(write(tmp_path / "other.jsonl", other)), None, None)


def test_chosen_items_are_of_some_prompts_and_have_a_choice(tmp_path: Path) -> None:
    items = items_of_samples(str(samples(tmp_path / "s.jsonl", 20)), None, None)
    same = Item(("same",), "p", ("a", "a"), {})
    found = chosen([same, *items], 5, seed=1)
    assert len({i.key[0] for i in found}) == 5
    assert len(found) == 15
    assert found != [i for i in items if i in found]  # in another order
    assert found == chosen([same, *items], 5, seed=1)
    assert {i.key for i in found} < {i.key for i in chosen([same, *items], 9, seed=1)}  # more prompts keep those that were asked
    assert same not in chosen([same, *items], None, seed=1)


# ---- what a label is ----


def test_a_place_on_the_page_is_the_response_that_was_shown_there(tmp_path: Path) -> None:
    labels = Labels(four(20), tmp_path / "l.jsonl")
    orders = set()
    for _ in range(20):
        shown = labels.page("anna")["responses"]
        row = labels.add("anna", [2], 1.26)
        assert row["responses"] == ["r0", "r1", "r2", "r3"]  # as they were given
        assert row["responses"][row["best"]] == shown[2]
        assert [row["responses"][i] for i in row["shown"]] == shown
        assert (row["labeler"], row["seconds"]) == ("anna", 1.3)
        orders.add(tuple(row["shown"]))
    assert len(orders) > 5
    assert rows(tmp_path / "l.jsonl") == [row for _, _, row in labels.given]
    assert [c.best for c in read_comparisons(tmp_path / "l.jsonl")] == [r["best"] for r in rows(tmp_path / "l.jsonl")]


def test_labelers_see_orders_of_their_own() -> None:
    labels = Labels(four(8), Path("none"))
    assert [labels.shown("anna", i) for i in labels.items] != [labels.shown("ben", i) for i in labels.items]
    assert [labels.shown("anna", i) for i in labels.items] == [labels.shown("anna", i) for i in labels.items]


def test_ranks_of_picks(tmp_path: Path) -> None:
    labels = Labels(four(4), tmp_path / "l.jsonl", "ranked")
    for picks, told in (([3, 0, 1, 2], {3: 1, 0: 2, 1: 3, 2: 4}), ([3, 0, 1], {3: 1, 0: 2, 1: 3, 2: 4}),
                        ([1], {1: 1, 0: 2, 2: 2, 3: 2}), ([], {0: 1, 1: 1, 2: 1, 3: 1})):  # fmt: skip
        labels.next("anna")
        row = labels.add("anna", picks, 1)
        assert {place: row["ranks"][row["shown"][place]] for place in range(4)} == told
        assert "best" not in row


def test_a_verdict_names_first_what_stood_first(tmp_path: Path) -> None:
    items = items_of_samples(str(samples(tmp_path / "s.jsonl", 12)), None, ["zero"])
    labels = Labels(items, tmp_path / "v.jsonl")
    first = set()
    for number in range(len(items)):
        shown = labels.page("anna")["responses"]
        row = labels.add("anna", [[0], [1], []][number % 3], 2.0)
        assert row["policy_a"] == shown[0].split()[0]
        assert row["policy_b"] == shown[1].split()[0]
        first.add(row["policy_a"])
    assert first == {"zero", "sft", "rlhf"}  # no policy stands first always
    assert [v.winner for v in read_verdicts(tmp_path / "v.jsonl")] == ["a", "b", "tie"] * 8
    assert {v.judge for v in read_verdicts(tmp_path / "v.jsonl")} == {"anna"}


@pytest.mark.parametrize(("type_", "picks"), [
    ("best_of_n", []), ("best_of_n", [0, 1]), ("best_of_n", [4]), ("best_of_n", [True]), ("ranked", [0, 0]), ("ranked", ["1"]),
])  # fmt: skip
def test_picks_that_are_no_label(tmp_path: Path, type_: str, picks: list[Any]) -> None:
    labels = Labels(four(), tmp_path / "l.jsonl", type_)
    labels.next("anna")
    with pytest.raises(ValueError, match="found the places .*, expected . to . different ones of 0 to 3"):
        labels.add("anna", picks, 1)
    assert not (tmp_path / "l.jsonl").exists()
    with pytest.raises(ValueError, match="no response was shown"):
        labels.add("ben", [0], 1)


# ---- who sees what ----


def test_what_was_shown_stays_until_it_is_labelled() -> None:
    labels = Labels(four(), Path("none"))
    assert labels.next("anna") is labels.next("anna") in labels.items


def test_labelers_see_the_items_in_orders_of_their_own(tmp_path: Path) -> None:
    labels = Labels(four(6), tmp_path / "l.jsonl", votes=2)
    seen: dict[str, list[Any]] = {"anna": [], "ben": []}
    for labeler, keys in seen.items():
        while (item := labels.next(labeler)) is not None:
            keys.append(item.key)
            labels.add(labeler, [0], 1)
    assert sorted(seen["anna"]) == sorted(seen["ben"]) == sorted(i.key for i in labels.items)
    assert seen["anna"] != seen["ben"]


def test_two_labelers_do_not_label_the_same(tmp_path: Path) -> None:
    labels = Labels(four(2), tmp_path / "l.jsonl")
    first, second = labels.next("anna", 0), labels.next("ben", 0)
    assert first is not second
    assert labels.next("cleo", 0) is None
    later = labels.next("cleo", label_items.LENT + 1)  # whoever went away does not block
    assert later in (first, second)
    labels.expect("cleo", labels.number[later.key])  # type: ignore[union-attr]
    labels.add("cleo", [0], 1)
    for labeler, item in (("anna", first), ("ben", second)):
        if item is later:
            with pytest.raises(Elsewhere, match="this was labelled or changed elsewhere"):
                labels.expect(labeler, labels.number[item.key])  # type: ignore[union-attr]


def test_votes_are_of_different_labelers(tmp_path: Path) -> None:
    labels = Labels(four(1), tmp_path / "l.jsonl", votes=2)
    for labeler in ("anna", "ben"):
        assert labels.next(labeler) is labels.items[0]
        labels.add(labeler, [0], 1)
        assert labels.next(labeler) is None
    assert labels.next("cleo") is None
    assert (labels.done, labels.wanted) == (2, 2)


def test_put_off_items_come_last(tmp_path: Path) -> None:
    labels = Labels(four(3), tmp_path / "l.jsonl")
    put_off = []
    for _ in range(2):
        put_off.append(labels.next("anna").key[0])  # type: ignore[union-attr]
        labels.put_off("anna")
    seen = []
    while (item := labels.next("anna")) is not None:
        seen.append(item.key[0])
        labels.add("anna", [0], 1)
    assert len(set(seen)) == 3
    assert seen[1:] == put_off


def test_the_last_label_can_be_taken_back(tmp_path: Path) -> None:
    labels = Labels(four(3), tmp_path / "l.jsonl")
    labels.undo("anna")  # nothing
    first = labels.next("anna")
    for labeler in ("anna", "ben"):
        labels.next(labeler)
        labels.add(labeler, [0], 1)
    labels.next("anna")
    labels.undo("anna")
    assert [r["labeler"] for r in rows(tmp_path / "l.jsonl")] == ["ben"]
    assert labels.next("anna") is first
    labels.add("anna", [3], 1)
    assert [r["labeler"] for r in rows(tmp_path / "l.jsonl")] == ["ben", "anna"]


def test_an_undo_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels(four(2), tmp_path / "l.jsonl")
    labels.next("anna")
    labels.add("anna", [0], 1)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(label_items, "write_jsonl", full)
    with pytest.raises(OSError, match="No space"):
        labels.undo("anna")
    assert (labels.done, len(rows(tmp_path / "l.jsonl"))) == (1, 1)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    file = write(tmp_path / "l.jsonl", [{"a": 1}])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        with pytest.raises(OSError, match="File too large"):
            append_jsonl(file, [{"b": "x" * 100}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert rows(file) == [{"a": 1}]


# ---- the file ----


def test_a_further_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "l.jsonl"
    labels = Labels(four(3), file)
    labels.next("anna")
    done = labels.add("anna", [1], 1)
    other = {**done, "id": "of another file"}
    another = {**done, "responses": ["s0", "s1", "s2", "s3"]}  # of another run, by the same id
    file.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in (other, another, done)) + b'{"id": "i')
    with pytest.warns(UserWarning, match="half a line at the end .9 bytes. was taken off"):
        again = Labels(four(3), file)
    assert "2 of its labels are of other items, and stay there" in capsys.readouterr().out
    assert (again.done, again.wanted) == (1, 3)
    assert again.next("anna").key != (done["id"],)  # type: ignore[union-attr]
    again.undo("anna")
    assert rows(file) == [other, another]


def test_labels_of_another_type_are_refused(tmp_path: Path) -> None:
    labels = Labels(four(), tmp_path / "l.jsonl")
    labels.next("anna")
    labels.add("anna", [1], 1)
    with pytest.raises(DataError, match="l.jsonl:1: field 'ranks': found .*, expected labels of the same type as are given now"):
        Labels(four(), tmp_path / "l.jsonl", "ranked")
    items = items_of_samples(str(samples(tmp_path / "s.jsonl")), None, None)
    with pytest.raises(DataError, match="l.jsonl:1: field 'winner'"):
        Labels(items, tmp_path / "l.jsonl")
    write(tmp_path / "n.jsonl", [{"id": "i0", "best": 0, "labeler": 3}])
    with pytest.raises(DataError, match="n.jsonl:1: field 'labeler': found 3, expected a name"):
        Labels(four(), tmp_path / "n.jsonl")
    (tmp_path / "hand.jsonl").write_text('{"id": "i0", "best": 0}', encoding="utf-8")  # by hand: no name, no line end
    assert Labels(four(), tmp_path / "hand.jsonl").done == 1


def test_half_a_line_is_taken_off(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    assert whole_lines(file) == 0
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    with pytest.warns(UserWarning, match="half a line at the end .4 bytes. was taken off"):
        assert whole_lines(file) == 2
    assert file.read_bytes() == b'{"a": 1}\n{"a": 2}\n'
    file.write_bytes(b'{"a": 1}\n{"a": 2}')
    assert whole_lines(file) == 2  # whole, without its end
    assert file.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


# ---- the server ----


@contextmanager
def serving(labels: Labels, labeler: str | None = None, question: str = "Which is better?") -> Iterator[LabelServer]:
    server = LabelServer(("127.0.0.1", 0), labels, question, labeler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def post(server: LabelServer, action: str, key: str | None = None, **body: Any) -> tuple[int, dict[str, Any]]:
    address = server.url.split("/?")[0]
    headers = {"X-Key": server.token if key is None else key, "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/{action}", json.dumps(body).encode(), headers)) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_requests(tmp_path: Path) -> None:
    items = items_of_samples(str(samples(tmp_path / "s.jsonl", 1, ("zero", "rlhf"))), None, None)
    with serving(Labels(items, tmp_path / "v.jsonl")) as server:
        status, told = post(server, "next", labeler="anna")
        assert status == 200
        assert {k: v for k, v in told.items() if k != "responses"} == {
            "done": 0, "wanted": 1, "mine": 0, "item": 0, "prompt": "ask 0", "type": "pair",
        }  # fmt: skip
        assert sorted(told["responses"]) == ["rlhf says 0", "zero says 0"]
        assert post(server, "label", labeler="anna", item=0, picks=[5], seconds=1)[0] == 400
        assert post(server, "label", labeler="anna", item=0, picks="0", seconds=1)[1]["error"].startswith("found ")
        assert post(server, "label", labeler="anna", item=0, picks=[0], seconds=-1)[1]["error"].startswith("found ")
        for name in (" ", "a\nb", "x" * 81, None):
            assert "the name: found" in post(server, "next", labeler=name)[1]["error"]
        assert post(server, "next", labeler="نیلو‌فر")[0] == 200  # with a joiner, as names have
        assert "expected /next" in post(server, "nothing", labeler="anna")[1]["error"]
        assert post(server, "next", labeler="x" * (1 << 16))[0] == 400
        post(server, "next", labeler="anna")
        status, told = post(server, "label", labeler="anna", item=0, picks=[0], seconds=2.5)
        assert (status, told) == (200, {"done": 1, "wanted": 1, "mine": 1})
    assert [v.seconds for v in read_verdicts(tmp_path / "v.jsonl")] == [2.5]


def test_what_another_tab_labelled_is_not_labelled_again(tmp_path: Path) -> None:
    with serving(Labels(four(3), tmp_path / "l.jsonl")) as server:
        shown = post(server, "next", labeler="anna")[1]["item"]  # in two tabs
        after = post(server, "label", labeler="anna", item=shown, picks=[0], seconds=1)[1]
        for action in ("label", "later", "undo"):
            told = post(server, action, labeler="anna", item=shown, picks=[1], seconds=1)[1]
            assert "labelled" in told["error"]
            assert (told["item"], told["done"]) == (after["item"], 1)
        assert post(server, "undo", labeler="anna", item=after["item"])[1]["item"] == shown
    assert rows(tmp_path / "l.jsonl") == []


def test_nobody_labels_without_the_key(tmp_path: Path) -> None:
    with serving(Labels(four(), tmp_path / "l.jsonl")) as server:
        assert post(server, "next", key="", labeler="anna")[0] == 403
        assert post(server, "label", key="wrong", labeler="anna", picks=[0], seconds=1)[0] == 403
        for address in (server.url[:-1], server.url.split("?")[0], server.url.replace("/?", "/etc/passwd?")):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(address)
        with urllib.request.urlopen(server.url) as reply:
            assert b"Which is better?" in reply.read()
    assert not (tmp_path / "l.jsonl").exists()


def test_a_label_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(label_items, "append_jsonl", full)
    with serving(Labels(four(), tmp_path / "l.jsonl")) as server:
        shown = post(server, "next", labeler="anna")[1]["item"]
        status, told = post(server, "label", labeler="anna", item=shown, picks=[0], seconds=1)
        assert (status, "nothing was written: [Errno 28] No space left" in told["error"]) == (400, True)
        monkeypatch.undo()
        assert post(server, "label", labeler="anna", item=shown, picks=[0], seconds=1)[1]["done"] == 1  # it still stands there


# ---- in Chromium ----


def open_page(chromium: Any, server: LabelServer, **context: Any) -> Any:
    page = chromium.new_context(**context).new_page()
    page.told = []
    page.on("console", lambda message: page.told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.told.append(f"error: {error}"))
    page.on("request", lambda request: page.told.append(request.url.split("/")[2]))
    page.goto(server.url)
    return page


def ready(page: Any) -> None:
    """Wait until what is shown stood there for long enough that the page takes a choice."""
    page.wait_for_selector("body[aria-busy=false]")


def test_pairs_are_labelled_by_mouse_and_keys(chromium: Any, tmp_path: Path) -> None:
    asked = [(p, k) for p in ("zero", "rlhf") for k in range(4)]
    told = [dict(id=f"q{k}", policy=p, prompt=f"{EVIL} {k}", response=f"{p} {k} {EVIL}") for p, k in asked]
    items = items_of_samples(str(write(tmp_path / "s.jsonl", told)), None, None)
    file = tmp_path / "v.jsonl"
    with serving(Labels(items, file), question=f"Kinder? {EVIL}") as server:
        page = open_page(chromium, server, viewport={"width": 390, "height": 800})
        page.fill("#name", "anna")
        page.click("text=Begin")
        page.wait_for_selector("article")
        assert "zero" not in page.inner_text("header")
        texts = page.eval_on_selector_all("article .text", "nodes => nodes.map(n => n.innerText)")
        assert page.inner_text("#question") == f"Kinder? {EVIL}"
        ready(page)
        page.dblclick("article:nth-of-type(2) button")  # the second click is not of the next item
        page.wait_for_selector("#count:text-is('1 of 4 labels')")
        (row,) = rows(file)
        assert row["winner"] == "b"
        assert texts[1].startswith(f"{row['policy_b']} {row['id'][1:]} ")
        for number, key in ((2, "1"), (3, "0"), (2, "z"), (3, "2"), (4, "0")):
            ready(page)
            page.keyboard.press(key)
            page.keyboard.press(key)
            page.wait_for_selector(f"#count:text-is('{number} of 4 labels')")
        assert [r["winner"] for r in rows(file)] == ["b", "a", "b", "tie"]
        assert page.inner_text("#end") == "All is labelled. Thank you."
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("window.ran") is None
        assert {t for t in page.told if not t.startswith("127.0.0.1")} == set()
        ready(page)
        page.click("#finish")
        page.wait_for_selector("text=You can close this page")


def test_ranks_are_given_in_turn(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    with serving(Labels(four(2), file, "ranked"), "anna") as server:
        page = open_page(chromium, server)
        page.wait_for_selector("article")
        ready(page)
        page.keyboard.press("Enter")  # nothing is picked
        page.click("article:nth-of-type(4) button")  # which has the focus then
        for key in ("1", "1", "2"):  # the second 1 takes the rank off again
            page.keyboard.press(key)
        assert [b.split()[0] for b in page.locator("article button").all_inner_texts()] == ["Next", "Rank", "Next", "Rank"]
        page.keyboard.press("Enter")
        page.wait_for_selector("#count:text-is('1 of 2 labels')")
        (row,) = rows(file)
        assert [row["ranks"][i] for i in row["shown"]] == [3, 2, 3, 1]
        ready(page)
        page.keyboard.press("s")  # the only one that is left comes again
        ready(page)
        assert page.locator("article").count() == 4
        page.click("text=All are equal")
        page.wait_for_selector("#count:text-is('2 of 2 labels')")
        assert rows(file)[1]["ranks"] == [1, 1, 1, 1]


def test_a_page_of_a_command_that_ended_says_so(chromium: Any, tmp_path: Path) -> None:
    with serving(Labels(four(2), tmp_path / "l.jsonl"), "anna") as server:
        page = open_page(chromium, server)
        page.wait_for_selector("article")
        ready(page)
        server.token = "another"  # as after a start on the same port
        page.keyboard.press("1")
        page.wait_for_selector("#problem:text-is('The command was started again: open its new address.')")
        ready(page)
    page.keyboard.press("1")
    page.wait_for_selector("#problem:has-text('No answer.')")
    assert not (tmp_path / "l.jsonl").exists()


# ---- the command ----


@pytest.mark.parametrize(("flags", "message"), [
    ((), "responses, samples: found None and None, expected one of the two"),
    (("--responses", "r", "--votes", "0", "--limit", "0"), "votes: found 0, expected at least 1\nlimit: found 0"),
    (("--responses", "r", "--baselines", '["zero"]'), "baselines: found ['zero'], expected it with samples alone"),
    (("--samples", "s", "--label_type", "ranked"), "label_type: found ranked, expected it with responses alone"),
    (("--responses", "r", "--labeler", "x" * 81), "expected 1 to 80 characters"),
    (("--responses", "r", "--output", ""), "output: found '', expected a file of JSON lines, not zipped"),
    (("--responses", "r", "--output", "l.jsonl.gz"), "output: found 'l.jsonl.gz', expected a file of JSON lines, not zipped"),
    (("--responses", "l.jsonl", "--output", "l.jsonl"), "output: found 'l.jsonl', which is the file of responses"),
    (("--responses", "r", "--output", "/proc/nope/l.jsonl"), "output: /proc/nope: cannot be made"),
    (("--responses", "r", "--host", "no such host"), "r:1: found no such file"),
    (("--responses", "none.jsonl"), "none.jsonl:1: found no such file"),
])  # fmt: skip
def test_options_that_are_refused(refused: Callable[..., str], tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refused(["label", "--output", str(tmp_path / "l.jsonl"), *flags])


def test_nothing_to_choose_and_a_port_that_is_taken(refused: Callable[..., str], tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", [{"prompt": "p", "responses": ["a", "a"]}])
    words = ["label", "--output", str(tmp_path / "l.jsonl"), "--responses"]
    assert "the responses to each prompt are all alike, expected some to choose from" in refused([*words, str(same)])
    good = write(tmp_path / "r.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
    with serving(Labels(four(), tmp_path / "o.jsonl")) as server:
        message = refused([*words, str(good), "--port", str(server.server_address[1])])
        assert "host, port: cannot listen at 127.0.0.1:" in message


def test_the_command_serves_until_it_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[LabelServer] = []
    monkeypatch.setattr(labeling.LabelServer, "serve_forever", lambda self: (made.append(self), _label_all(self)))
    good = write(tmp_path / "r.jsonl", [{"prompt": f"p{k}", "responses": ["a", "b"]} for k in range(3)])
    words = ["label", "--responses", str(good), "--output", str(tmp_path / "new/l.jsonl"), "--labeler", "anna"]
    main(words)
    out = capsys.readouterr().out
    assert f"Label at {made[0].url}" in out
    assert "3 of 3 labels, 3 of them new" in out
    main(words)
    assert "3 of 3 labels, 0 of them new" in capsys.readouterr().out


def test_ctrl_c_is_told_where_labels_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(server: LabelServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(labeling.LabelServer, "serve_forever", interrupt)
    good = write(tmp_path / "r.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
    with pytest.raises(SystemExit) as stopped:
        main(["label", "--responses", str(good), "--output", str(tmp_path / "l.jsonl"), "--host", "::1"])
    assert stopped.value.code == 130


def test_the_address_of_every_host(tmp_path: Path) -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", socket.gethostname())):
        server = LabelServer((host, 0), Labels(four(), tmp_path / "l.jsonl"), "?", None)
        assert server.url == f"http://{shown}:{server.server_address[1]}/?key={server.token}"
        server.server_close()


def _label_all(server: LabelServer) -> None:
    while "prompt" in (shown := server.answer("next", {"labeler": "anna"})):
        server.answer("label", {"labeler": "anna", "item": shown["item"], "picks": [0], "seconds": 1})


def test_a_folder_that_the_sample_step_made(tiny_run: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"id": i, "prompt": "Once. Twice. Thrice."} for i in range(3)])
    policies = json.dumps({"one": "lead-1", "two": "lead-2", "supervised": None, "zero-shot": None, "rlhf": None})
    configs = Path(__file__).resolve().parent.parent / "configs/sentiment"
    words = [w for f in ("eval.yaml", "stories260k/eval.yaml") for w in ("--config", str(configs / f))]
    words += ["--run_dir", str(tmp_path), "--output", str(tmp_path / "out"), "--prompts", str(prompts), "--policies", policies]
    nothing = [w for name in ("second_draw", "comparisons", "reference", "learned_reward") for w in (f"--{name}", "null")]
    eval_main(["sample", *words, *nothing])
    assert len(items_of_samples(str(tmp_path / "out/samples"), None, None)) == 3


# ---- labels that people give, in the pipeline ----


def test_labels_wait_for_people_and_then_go_on(tiny_run: Path, tmp_path: Path) -> None:
    output, answers = tmp_path / "labels", tmp_path / "answers.jsonl"
    task = Task(query_length=24, start_text=None)

    def collect(label_type: Any = "ranked") -> None:
        label("stories260k", task, str(tiny_run / "prompts"), str(output), f"file:{answers}", train=6, val=3, batch_size=4,
              label_type=label_type, precision="32")  # fmt: skip

    with pytest.raises(UsageError, match="9 of 9 comparisons wait for an answer in .*: run `lightning-rlhf label --responses"):
        collect()
    requests = rows(output / "requests.jsonl")
    assert [r["id"] for r in requests] == [f"{s}-{i:06d}" for s, n in (("train", 6), ("val", 3)) for i in range(n)]
    assert all(len(set(r["responses"])) > 1 and not {"best", "labeler_scores"} & set(r) for r in requests)
    labels = Labels(chosen(items_of_responses(str(output / "requests.jsonl")), None, 1), answers, "ranked")
    for number in range(9):
        labels.next("anna")
        labels.add("anna", [] if number == 8 else [2, 1], 1)
    told = {r["id"]: r for r in rows(answers)}
    collect()
    train, val = (rows(output / f"{s}.jsonl") for s in ("train", "val"))
    tied = rows(answers)[-1]["id"]
    assert {r["id"] for r in train + val} == {r["id"] for r in requests} - {tied}  # which prefers nothing
    assert all(r["ranks"] == told[r["id"]]["ranks"] and r["labeler"] == "anna" for r in train + val)
    demonstrations = [(d["prompt"], d["completion"]) for d in rows(output / "demonstrations.train.jsonl")]
    assert demonstrations == [(r["prompt"], r["responses"][r["ranks"].index(1)]) for r in train]
    assert str(answers) in json.loads((output / "run.json").read_text(encoding="utf-8"))["data"]
    assert not list(output.glob("*.part"))


def test_answers_of_people(tmp_path: Path) -> None:
    asked = [{"id": "a", "prompt": "p", "responses": ["x", "y"]}, {"id": "b", "prompt": "p", "responses": ["x", "x"]}]
    def answers(*given: dict[str, Any], label_type: str = "best_of_n") -> list[dict[str, Any]]:
        return answers_of_people(tmp_path / "q.jsonl", write(tmp_path / "a.jsonl", list(given)), asked, label_type)

    found = answers({"id": "a", "best": 0}, {"id": "z", "best": 9}, {"id": "a", "best": 1, "labeler": "ben", "shown": [1, 0]})
    assert found == [{**asked[0], "best": 1, "labeler": "ben"}, {**asked[1], "best": 0}]  # the last one; equal ones need none
    with pytest.raises(UsageError, match="1 of 1 comparisons wait for .*; 1 of its answers are about other responses: run"):
        answers({"id": "a", "best": 0, "responses": ["x", "z"]})
    write(tmp_path / "q.jsonl", [{**asked[0], "responses": ["x", "before"]}])  # what people saw, under other options
    with pytest.raises(UsageError, match=r"a.jsonl:1: found an answer without responses, and .*q.jsonl asked a about other ones"):
        answers({"id": "a", "best": 0})
    assert answers({"id": "a", "best": 0, "responses": ["x", "y"]})[0]["best"] == 0
    ranked = answers({"id": "a", "ranks": [2, 1], "responses": ["x", "y"]})
    assert ranked[0]["ranks"] == [2, 1] and with_best(ranked[0])["best"] == 1  # as `labels --label_type best_of_n` writes it
    with pytest.raises(UsageError, match="--output .*a.jsonl --label_type ranked`, then the same command again"):
        answers({"id": "z", "best": 0}, label_type="ranked")
    for wrong in ([1], [2, 3], [1, 0], "1"):
        with pytest.raises(DataError, match="a.jsonl:1: field 'ranks': found .*, expected 2 integers from 1, the best, to 2"):
            answers({"id": "a", "ranks": wrong})
    with pytest.raises(DataError, match="field 'best': found 0, expected ranks: label with --label_type ranked into another"):
        answers({"id": "a", "best": 0}, label_type="ranked")


def test_the_best_of_several_at_the_first_rank_is_drawn() -> None:
    drawn = [with_best({"id": f"i{k}", "ranks": [1, 1, 1, 4]})["best"] for k in range(60)]
    assert {k: drawn.count(k) > 8 for k in range(4)} == {0: True, 1: True, 2: True, 3: False}
    assert with_best({"id": "a", "ranks": [1, 1]}) == {"id": "a", "ranks": [1, 1]}


def test_token_ids_are_nothing_that_people_read(tiny_run: Path, tmp_path: Path, no_models: None) -> None:
    for split in ("train", "val"):
        write(tmp_path / f"{split}.jsonl", [{"prompt": [5, 6, 7]}])
    with pytest.raises(DataError, match="train.jsonl:1: field 'prompt': found token ids, expected a text or messages"):
        label("stories260k", Task(), str(tmp_path), str(tmp_path / "o"), f"file:{tmp_path / 'a.jsonl'}")
    for wrong in ("file:", f"file:{tmp_path}"):
        with pytest.raises(UsageError, match="labeler: found 'file:.*', expected file:PATH, a file of answers that"):
            label("stories260k", Task(), str(tmp_path), str(tmp_path / "o"), wrong)


def test_people_rate_nothing(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label_type: found scalar_rating with labeler file:x, expected best_of_n or ranked"):
        label("stories260k", Task(), str(tiny_run / "prompts"), str(tmp_path), "file:x", label_type="scalar_rating")


def test_the_readmes_commands_parse() -> None:
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    words = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("lightning-rlhf label")]
    found = [parse_function(w[0], w[1:]) for w in words if w[0] == "label" or "--labeler" in w]
    assert [sorted(k for k in ("samples", "responses", "labeler") if options.get(k)) for options in found] == [
        ["samples"], ["labeler"], ["responses"],
    ]  # fmt: skip
    assert found[1]["output"] == str(Path(found[2]["responses"]).parent)
    assert found[1]["labeler"] == f"file:{found[2]['output']}"
