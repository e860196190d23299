"""The labelling page: what is asked, what a click writes, what is kept; over HTTP, in Chromium, and through `labels`."""

from __future__ import annotations

import json
import shlex
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eval.judges import read_verdicts
from lightning_rlhf import labeling
from lightning_rlhf.cli import main, parse_function
from lightning_rlhf.files import DataError, whole_lines
from lightning_rlhf.labelers import answers_of_people, as_labelled, label
from lightning_rlhf.labeling import Item, Labels, LabelServer, chosen, items_of_responses, items_of_samples
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
    assert labels.next("anna") is labels.next("anna") is labels.items[0]


def test_two_labelers_do_not_label_the_same(tmp_path: Path) -> None:
    labels = Labels(four(2), tmp_path / "l.jsonl")
    assert labels.next("anna", 0) is labels.items[0]
    assert labels.next("ben", 0) is labels.items[1]
    assert labels.next("cleo", 0) is None
    assert labels.next("cleo", labeling.LENT + 1) is labels.items[0]  # whoever went away does not block


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
    for _ in range(2):
        labels.next("anna")
        labels.put_off("anna")
    seen = []
    while (item := labels.next("anna")) is not None:
        seen.append(item.key[0])
        labels.add("anna", [0], 1)
    assert seen == ["i2", "i0", "i1"]


def test_the_last_label_can_be_taken_back(tmp_path: Path) -> None:
    labels = Labels(four(3), tmp_path / "l.jsonl")
    assert not labels.undo("anna")
    for labeler in ("anna", "ben"):
        labels.next(labeler)
        labels.add(labeler, [0], 1)
    labels.next("anna")
    assert labels.undo("anna")
    assert [r["labeler"] for r in rows(tmp_path / "l.jsonl")] == ["ben"]
    assert labels.next("anna") is labels.items[0]
    labels.add("anna", [3], 1)
    assert [r["labeler"] for r in rows(tmp_path / "l.jsonl")] == ["ben", "anna"]


# ---- the file ----


def test_a_further_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "l.jsonl"
    labels = Labels(four(3), file)
    labels.next("anna")
    done = labels.add("anna", [1], 1)
    other = {**done, "id": "of another file"}
    file.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in (other, done)) + b'{"id": "i')
    with pytest.warns(UserWarning, match="half a line at the end .9 bytes. was taken off"):
        again = Labels(four(3), file)
    assert "1 of its labels are of other items, and stay there" in capsys.readouterr().out
    assert (again.done, again.wanted) == (1, 3)
    assert again.next("anna") is again.items[1]
    assert again.undo("anna")
    assert rows(file) == [other]


def test_labels_of_another_type_are_refused(tmp_path: Path) -> None:
    labels = Labels(four(), tmp_path / "l.jsonl")
    labels.next("anna")
    labels.add("anna", [1], 1)
    with pytest.raises(DataError, match="l.jsonl:1: field 'ranks': found .*, expected labels of the same type as are given now"):
        Labels(four(), tmp_path / "l.jsonl", "ranked")
    items = items_of_samples(str(samples(tmp_path / "s.jsonl")), None, None)
    with pytest.raises(DataError, match="l.jsonl:1: field 'winner'"):
        Labels(items, tmp_path / "l.jsonl")
    write(tmp_path / "n.jsonl", [{"id": "i0", "best": 0}])
    with pytest.raises(DataError, match="n.jsonl:1: field 'labeler': found null, expected a name"):
        Labels(four(), tmp_path / "n.jsonl")


def test_half_a_line_is_taken_off(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    assert whole_lines(file) == 0
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    with pytest.warns(UserWarning, match="half a line at the end .4 bytes. was taken off"):
        assert whole_lines(file) == 2
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
            "done": 0, "wanted": 1, "mine": 0, "prompt": "ask 0", "type": "pair",
        }  # fmt: skip
        assert sorted(told["responses"]) == ["rlhf says 0", "zero says 0"]
        assert post(server, "label", labeler="anna", picks=[5], seconds=1)[0] == 400
        assert post(server, "label", labeler="anna", picks="0", seconds=1)[1]["error"].startswith("found ")
        assert "labeler: found" in post(server, "next", labeler=" ")[1]["error"]
        assert "expected /next" in post(server, "nothing", labeler="anna")[1]["error"]
        assert post(server, "next", labeler="x" * (1 << 16))[0] == 400
        status, told = post(server, "label", labeler="anna", picks=[0], seconds=2.5)
        assert (status, told) == (200, {"done": 1, "wanted": 1, "mine": 1})
    assert [v.seconds for v in read_verdicts(tmp_path / "v.jsonl")] == [2.5]


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

    monkeypatch.setattr(labeling, "append_jsonl", full)
    with serving(Labels(four(), tmp_path / "l.jsonl")) as server:
        post(server, "next", labeler="anna")
        status, told = post(server, "label", labeler="anna", picks=[0], seconds=1)
        assert (status, "No space left" in told["error"]) == (500, True)
        monkeypatch.undo()
        assert post(server, "label", labeler="anna", picks=[0], seconds=1)[1]["done"] == 1  # the same item still stands there


# ---- in Chromium ----


def open_page(chromium: Any, server: LabelServer, **context: Any) -> Any:
    page = chromium.new_context(**context).new_page()
    page.told = []
    page.on("console", lambda message: page.told.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: page.told.append(f"error: {error}"))
    page.on("request", lambda request: page.told.append(request.url.split("/")[2]))
    page.goto(server.url)
    return page


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
        page.click("article:nth-of-type(2) button")
        page.wait_for_selector("#count:text-is('1 of 4 labels')")
        (row,) = rows(file)
        assert row["winner"] == "b"
        assert texts[1].startswith(f"{row['policy_b']} {row['id'][1:]} ")
        for number, key in ((2, "1"), (3, "0"), (2, "z"), (3, "2"), (4, "0")):
            page.keyboard.press(key)
            page.wait_for_selector(f"#count:text-is('{number} of 4 labels')")
        assert [r["winner"] for r in rows(file)] == ["b", "a", "b", "tie"]
        assert page.inner_text("#end") == "There is nothing left for you to label. Thank you."
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("window.ran") is None
        assert {t for t in page.told if not t.startswith("127.0.0.1")} == set()
        page.click("#finish")
        page.wait_for_selector("text=You can close this page")


def test_ranks_are_given_in_turn(chromium: Any, tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    with serving(Labels(four(2), file, "ranked"), "anna") as server:
        page = open_page(chromium, server)
        page.wait_for_selector("article")
        for key in ("4", "1", "1", "2"):  # the second 1 takes the rank off again
            page.keyboard.press(key)
        assert [b.split()[0] for b in page.locator("article button").all_inner_texts()] == ["Next", "Rank", "Next", "Rank"]
        page.keyboard.press("Enter")
        page.wait_for_selector("#count:text-is('1 of 2 labels')")
        (row,) = rows(file)
        assert [row["ranks"][i] for i in row["shown"]] == [3, 2, 3, 1]
        page.keyboard.press("s")  # the only one that is left comes again
        page.wait_for_timeout(100)
        assert page.locator("article").count() == 4


# ---- the command ----


@pytest.mark.parametrize(("flags", "message"), [
    ((), "responses, samples: found None and None, expected one of the two"),
    (("--responses", "r", "--votes", "0", "--limit", "0"), "votes: found 0, expected at least 1\nlimit: found 0"),
    (("--responses", "r", "--baselines", '["zero"]'), "baselines: found ['zero'], expected it with samples alone"),
    (("--samples", "s", "--label_type", "ranked"), "label_type: found True, expected it with responses alone"),
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


def _label_all(server: LabelServer) -> None:
    while "prompt" in server.answer("next", {"labeler": "anna"}):
        server.answer("label", {"labeler": "anna", "picks": [0], "seconds": 1})


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
    assert all(r["ranks"] == told[r["id"]]["ranks"] and r["labeler"] == "anna" for r in train)
    assert all(r["best"] == told[r["id"]]["ranks"].index(1) and "ranks" not in r for r in val)
    chosen_first = {r["prompt"]: r["responses"][r["ranks"].index(1)] for r in train}
    demonstrations = {d["prompt"]: d["completion"] for d in rows(output / "demonstrations.train.jsonl")}
    assert len(demonstrations) == 6
    assert chosen_first.items() <= demonstrations.items()
    assert not list(output.glob("*.part"))


def test_answers_of_people(tmp_path: Path) -> None:
    asked = [{"id": "a", "prompt": "p", "responses": ["x", "y"]}, {"id": "b", "prompt": "p", "responses": ["x", "x"]}]
    answers = lambda *given: answers_of_people(tmp_path / "q.jsonl", write(tmp_path / "a.jsonl", list(given)), asked)  # noqa: E731
    found = answers({"id": "a", "best": 0}, {"id": "z", "best": 9}, {"id": "a", "best": 1, "labeler": "ben", "shown": [1, 0]})
    assert found == [{**asked[0], "best": 1, "labeler": "ben"}, {**asked[1], "best": 0}]  # the last one; equal ones need none
    with pytest.raises(DataError, match="a.jsonl:1: field 'responses': found .*, expected those that were asked about"):
        answers({"id": "a", "best": 0, "responses": ["x", "z"]})
    for wrong in ([1], [2, 3], [1, 0], "1"):
        with pytest.raises(DataError, match="a.jsonl:1: field 'ranks': found .*, expected 2 integers from 1, the best, to 2"):
            answers({"id": "a", "ranks": wrong})
    with pytest.raises(DataError, match="the answer to a: field 'ranks': found only best, expected ranks"):
        as_labelled(answers({"id": "a", "best": 0})[0], "ranked")


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
