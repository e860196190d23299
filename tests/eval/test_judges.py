"""eval.judges: scores, files, and language models behind a server's double and the embedded model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.judges import (
    QUESTION,
    AskedJudge,
    FileJudge,
    ScoreJudge,
    find_judge,
    gives_verdicts,
    load_judge,
    parse_answer,
    read_verdicts,
)
from eval.remote import RemoteModel
from lightning_rlhf.files import DataError
from lightning_rlhf.models import load_lm
from lightning_rlhf.scalar import ScalarModel, save_reward
from lightning_rlhf.scoring import LearnedReward
from lightning_rlhf.tasks import UsageError

Reply = tuple[int, str] | None  # status and answer; None: no reply until the client has given up


def row(i: int, policy: str, response: str = "", **scores: float) -> dict[str, Any]:
    return {"id": str(i), "index": 0, "policy": policy, "prompt": f"prompt {i}", "response": response or policy, "scores": scores}


def rows(policy: str, n: int) -> list[dict[str, Any]]:
    return [row(i, policy, f"{policy} says {i}") for i in range(n)]


class Double:
    """A chat/completions server: `reply(question, number)` says what it answers to its n-th request."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], Reply] = lambda question, number: (200, "A")
        self.seen: list[dict[str, Any]] = []
        self.raw: str | None = None
        double, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(double.seen)
                    double.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                found = double.reply(body["messages"][0]["content"], number)
                if found is None:
                    time.sleep(0.6)
                    return
                status, text = found
                message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
                out = (double.raw if double.raw is not None else json.dumps(message) if status == 200 else text).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(out)))
                self.end_headers()
                self.wfile.write(out)

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = Double()
    yield found
    found.server.shutdown()
    found.server.server_close()


def server(double: Double, **options: Any) -> RemoteModel:
    return RemoteModel("m", double.url, **{"pause": 0.0, "timeout": 5.0, "workers": 1, **options})


def prefers(policy: str) -> Callable[[str, int], Reply]:
    """Says which letter stands for `policy`'s response."""
    return lambda question, number: (200, "A" if f"Response A:\n{policy}" in question else "B")


# ---------------------------------------------------------------------------------------------------- scores and files


def test_score_judge() -> None:
    a, b = [row(i, "x", known=s) for i, s in enumerate((1, 2, 3))], [row(i, "y", known=s) for i, s in enumerate((2, 2, 2))]
    judge = ScoreJudge("known")
    judge.check(a + b)
    assert [v.winner for v in judge(a, b)] == ["b", "tie", "a"]
    assert {(v.policy_a, v.policy_b, v.judge) for v in judge(a, b)} == {("x", "y", "known")}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, True, "1"])
def test_score_judge_refuses(value: Any) -> None:
    with pytest.raises(DataError, match=r"sample '1' of policy 'x': field 'scores.known': found .* expected a finite number"):
        ScoreJudge("known").check([row(0, "x", known=1.0), row(1, "x", known=value)])


def test_score_that_is_not_there() -> None:
    with pytest.raises(DataError, match="found only learned, expected the score 'known' to judge by"):
        ScoreJudge("known").check([row(0, "x", learned=1.0)])


RECORD = {"id": "0", "policy_a": "x", "index_a": 0, "policy_b": "y", "index_b": 0, "winner": "a", "judge": "ann"}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_file_judge(tmp_path: Path) -> None:
    other = {**RECORD, "policy_a": "y", "policy_b": "x", "winner": "tie", "seconds": 3.5}
    third = {"id": 1, "policy_a": "x", "policy_b": "z", "winner": "b", "judge": "bob"}
    judge = FileJudge(write(tmp_path / "v.jsonl", RECORD, {**RECORD, "judge": "bob"}, other, third))
    x, y, z = rows("x", 2), rows("y", 2), rows("z", 2)
    judge.check(x + y + z)
    assert [(v.judge, v.winner) for v in judge(x, y)] == [("ann", "a"), ("bob", "a"), ("ann", "tie")]
    assert judge(x, y) == judge(y, x)
    assert [v.id for v in judge(x, z)] == ["1"]
    assert judge(y, z) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"winner": "x"}, r"v.jsonl:1: field 'winner': found \"x\", expected a, b or tie"),
        ({"winner": "failed"}, "found \"failed\", expected a, b or tie"),
        ({"judge": None}, "field 'judge': found null, expected a string"),
        ({"id": 1.5}, "field 'id': found 1.5, expected a string or an integer"),
        ({"index_b": -1}, "field 'index_b': found -1, expected an integer from 0"),
        ({"index_a": True}, "field 'index_a': found true, expected an integer from 0"),
        ({"seconds": "3"}, "field 'seconds': found \"3\", expected a number"),
        ({"policy_b": "x"}, "field 'policy_b': found 'x', index 0, against itself"),
    ],
)
def test_read_verdicts_errors(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_verdicts(write(tmp_path / "v.jsonl", {**RECORD, **change}))


def test_a_verdict_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"v.jsonl:3: field 'id': found '0' judged by 'ann' as at .*v.jsonl:1, expected each"):
        read_verdicts(write(tmp_path / "v.jsonl", RECORD, {**RECORD, "judge": "bob"}, {**RECORD, "winner": "b"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_b": "w"}, r"v.jsonl:1: field 'policy': found a verdict on 'w', expected one of the policies \['x', 'y'\]"),
        ({"id": "9"}, "v.jsonl:1: field 'id': found a verdict on prompt '9', expected the id of a prompt that was sampled"),
        ({"index_b": 3}, "v.jsonl:1: field 'index': found a verdict on sample 3 of policy 'y' to prompt '0', expected a sample"),
    ],
)
def test_a_verdict_on_what_is_not_there(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    judge = FileJudge(write(tmp_path / "v.jsonl", {**RECORD, **change}))
    with pytest.raises(DataError, match=message):
        judge.check(rows("x", 2) + rows("y", 2))


@pytest.fixture(scope="module")
def reward_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reward") / "reward"
    lm = load_lm("stories260k")
    torch.manual_seed(0)
    scalar = ScalarModel(lm.model.base_model, lm.model.config.hidden_size, std=1.0)
    save_reward(folder, scalar, lm.tokenizer, {"task": "toy"})
    return str(folder)


def test_a_reward_directory_judges(reward_directory: str, tmp_path: Path) -> None:
    name = f"reward:{reward_directory}"
    assert find_judge(name) == ("reward", reward_directory) and gives_verdicts(name)
    judge = load_judge(name, tmp_path, batch_size=2)
    texts = [["A dog ran.", "The cat was sad."], ["They said no.", "Lily was happy."], ["One day.", "One day."]]
    a, b = ([row(i, p, pair[k]) for i, pair in enumerate(texts)] for k, p in enumerate("xy"))
    judge.check(a + b)
    judge.prepare(zip(a, b, strict=True))
    reward = LearnedReward(reward_directory)
    scores = [reward([f"prompt {i}"] * 2, pair) for i, pair in enumerate(texts)]
    expected = ["a" if x > y else "b" for x, y in scores[:2]]
    assert [v.winner for v in judge(a, b)] == [*expected, "tie"]
    assert {v.judge for v in judge(b, a)} == {name}
    assert [v.winner for v in judge(b, a)] == [*("ba"["ab".index(w)] for w in expected), "tie"]
    with pytest.raises(DataError, match="field 'response': found 5, expected a text"):
        judge.check([{**a[0], "response": 5}])


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "winner"),
    [("A", "a"), (" b.\n", "b"), ("(B)", "b"), ("**Tie**", "tie"), ("Response A", "a"), ("", "unparsable"), ("C", "unparsable"),
     ("A or B", "unparsable"), ("A, because it is a better one", "unparsable"), ("Both", "unparsable"), (None, "failed")],
)  # fmt: skip
def test_answers_are_parsed_strictly(text: str | None, winner: str) -> None:
    assert parse_answer(text) == winner


def test_both_orders_are_asked(double: Double, tmp_path: Path) -> None:
    double.reply = prefers("y")
    judge = AskedJudge("s", server(double, workers=4), tmp_path / "s.jsonl")
    got = judge(rows("x", 3), rows("y", 3))
    assert [(v.id, v.policy_a, v.policy_b, v.winner) for v in got] == [
        (str(i), *order) for i in range(3) for order in (("x", "y", "b"), ("y", "x", "a"))
    ]
    sent = double.seen[0]
    assert sent["path"] == "/v1/chat/completions"
    assert (sent["model"], sent["temperature"], sent["key"]) == ("m", 0, None)
    assert any(s["messages"][0]["content"] == QUESTION.format(prompt="prompt 0", a="x says 0", b="y says 0") for s in double.seen)


def test_braces_and_keys(double: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    a, b = [row(0, "x", "{a} {0}")], [row(0, "y", "%s {prompt}")]
    AskedJudge("s", server(double), tmp_path / "s.jsonl")(a, b)
    assert double.seen[0]["key"] == "Bearer secret"
    assert "{a} {0}" in double.seen[0]["messages"][0]["content"]
    assert "secret" not in (tmp_path / "s.jsonl").read_text()


def test_nonsense_is_counted_and_kept(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, number: (200, "I cannot say." if number == 1 else "A")
    judge = AskedJudge("s", server(double), tmp_path / "s.jsonl")
    assert [v.winner for v in judge(rows("x", 2), rows("y", 2))] == ["a", "unparsable", "a", "a"]
    again = AskedJudge("s", server(double), tmp_path / "s.jsonl")
    assert [v.winner for v in again(rows("x", 2), rows("y", 2))] == ["a", "unparsable", "a", "a"]
    assert len(double.seen) == 4  # at temperature 0 it would say the same again
    assert [v.winner for v in read_verdicts(tmp_path / "s.jsonl")] == ["a", "unparsable", "a", "a"]
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[1])["answer"] == "I cannot say."


def test_it_is_tried_again(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, number: (200, "B") if number == 3 else ((429, "slow down"), (503, "down"), (500, ""))[number]
    assert server(double).ask("?") == "B"
    assert len(double.seen) == 4


@pytest.mark.parametrize("raw", ["<html>", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', "[1]"])
def test_a_reply_that_is_no_completion(double: Double, raw: str) -> None:
    double.raw = raw
    judge = server(double, attempts=2)
    assert judge.ask("?") is None
    assert judge.trouble
    assert len(double.seen) == 2


def test_a_server_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(b"what?\r\n\r\n")

        threading.Thread(target=babble, daemon=True).start()
        judge = RemoteModel("m", f"http://127.0.0.1:{listener.getsockname()[1]}", attempts=2, pause=0)
        assert judge.ask("?") is None
        assert "BadStatusLine" in judge.trouble


def test_a_time_out_is_counted_and_asked_again_next_time(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, number: None if number in (1, 2) else (200, "A")
    judge = AskedJudge("s", server(double, timeout=0.2, attempts=2), tmp_path / "s.jsonl")
    assert [v.winner for v in judge(rows("x", 2), rows("y", 2))] == ["a", "failed", "a", "a"]
    assert [v.winner for v in judge(rows("x", 2), rows("y", 2))] == ["a", "a", "a", "a"]
    assert len(double.seen) == 6


def test_a_server_that_dies_half_way(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, number: (200, "A") if number < 3 else (500, "gone")
    x, y = rows("x", 5), rows("y", 5)
    judge = AskedJudge("s", server(double, attempts=2, patience=3), tmp_path / "s.jsonl")
    with pytest.raises(UsageError, match="3 questions in a row got no answer .*status 500: gone.; what was answered is kept"):
        judge(x, y)
    assert len(double.seen) == 3 + 3 * 2
    with (tmp_path / "s.jsonl").open("ab") as file:
        file.write(b'{"id": "1", "winner')  # the power failed while a line was written
    double.reply = prefers("x")
    got = AskedJudge("s", server(double), tmp_path / "s.jsonl")(x, y)
    assert [v.winner for v in got] == ["a", "a", "a", "b", "a", "b", "a", "b", "a", "b"]
    assert len(double.seen) == 9 + 7
    assert len(read_verdicts(tmp_path / "s.jsonl")) == 10


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_for_itself_is_counted(double: Double, tmp_path: Path, status: int) -> None:
    """Too long for the server's context, say: the others are judged, and a further run asks for it again."""
    double.reply = lambda question, n: (status, "context length exceeded") if "long" in question else (200, "A")
    a, b = rows("x", 6), rows("y", 6)
    a[2]["response"] = "long " * 9
    judge = AskedJudge("s", server(double), tmp_path / "v.jsonl")
    found = judge(a, b)
    assert [v.winner for v in found] == ["a"] * 4 + ["failed"] * 2 + ["a"] * 6
    assert all(v.seconds is not None and v.seconds < 30 for v in found if v.winner == "a")
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 10


def test_many_refused_questions_stop_nothing_but_a_server_that_refuses_all(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, n: (400, "too long") if "long" in question else (200, "A")
    a, b = rows("x", 6), rows("y", 6)
    for i in range(2, 6):
        a[i]["response"] = f"long {i}"
    judge = AskedJudge("s", server(double, patience=3), tmp_path / "v.jsonl")
    assert [v.winner for v in judge(a, b)] == ["a"] * 4 + ["failed"] * 8
    assert [v.winner for v in judge(a, b)] == ["a"] * 4 + ["failed"] * 8  # asked again, and again refused
    with pytest.raises(UsageError, match="3 questions in a row got no answer .*too long"):
        AskedJudge("s", server(double, patience=3), tmp_path / "none.jsonl")(a[2:], b[2:])


def test_answers_beside_a_refusal_are_kept(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, n: (401, "no such key") if "stop" in question else (200, "B")
    a, b = rows("x", 2), rows("y", 2)
    a[0]["response"] = "stop here"
    with pytest.raises(UsageError, match="status 401"):
        AskedJudge("s", server(double, workers=4), tmp_path / "v.jsonl")(a, b)
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2


def test_a_refusal_is_told_at_once(double: Double, tmp_path: Path) -> None:
    double.reply = lambda question, number: (401, "no such key")
    with pytest.raises(UsageError, match="status 401: no such key"):
        AskedJudge("s", server(double), tmp_path / "s.jsonl")(rows("x", 1), rows("y", 1))
    assert len(double.seen) == 1


def test_no_server(tmp_path: Path) -> None:
    judge = AskedJudge("s", RemoteModel("m", "http://127.0.0.1:9/v1", attempts=2, pause=0, patience=2), tmp_path / "s.jsonl")
    with pytest.raises(UsageError, match="2 questions in a row got no answer .*refused"):
        judge(rows("x", 3), rows("y", 3))


def test_other_texts_are_other_questions(double: Double, tmp_path: Path) -> None:
    judge = AskedJudge("s", server(double), tmp_path / "s.jsonl")
    judge(rows("x", 1), rows("y", 1))
    judge([row(0, "x", "new text")], rows("y", 1))
    assert len(double.seen) == 4
    AskedJudge("s", RemoteModel("other", double.url, pause=0), tmp_path / "s.jsonl")(rows("x", 1), rows("y", 1))
    assert len(double.seen) == 6


def test_the_file_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="field 'question': found null, expected a string"):
        AskedJudge("s", RemoteModel("m", "http://127.0.0.1:9"), Path(write(tmp_path / "s.jsonl", RECORD)))
    broken = write(tmp_path / "t.jsonl", {**RECORD, "question": "q", "winner": 1})
    with pytest.raises(DataError, match="field 'winner': found 1"):
        AskedJudge("s", RemoteModel("m", "http://127.0.0.1:9"), Path(broken))


def test_texts_only(tmp_path: Path) -> None:
    judge = AskedJudge("s", RemoteModel("m", "http://127.0.0.1:9"), tmp_path / "s.jsonl")
    with pytest.raises(DataError, match=r"sample '0' of policy 'x': field 'response': found \[1, 2\], expected a text"):
        judge.check([{**row(0, "x"), "response": [1, 2]}])


# -------------------------------------------------------------------------------------------------------------- by name


def test_judges_by_name(tmp_path: Path) -> None:
    assert isinstance(load_judge("rouge1", tmp_path), ScoreJudge)
    assert isinstance(load_judge("verdicts:" + write(tmp_path / "v.jsonl", RECORD), tmp_path), FileJudge)
    asked = load_judge("server:org/model:1@http://localhost:8000/v1/", tmp_path)
    assert isinstance(asked, AskedJudge)
    assert isinstance(asked.model, RemoteModel)
    assert (asked.model.model, asked.model.url, asked.model.timeout) == ("org/model:1", "http://localhost:8000/v1", 300.0)
    impatient = load_judge("server:org/model:1@http://localhost:8000/v1/", tmp_path, timeout=2.5)
    assert isinstance(impatient, AskedJudge) and isinstance(impatient.model, RemoteModel) and impatient.model.timeout == 2.5
    assert (impatient.model.identity, impatient.path) == (asked.model.identity, asked.path)
    assert asked.path == tmp_path / "server-org-model-1-http-localhost-8000-v1.jsonl"
    local = load_judge("lm:stories260k", tmp_path)
    assert isinstance(local, AskedJudge)
    assert "safetensors" in local.model.identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("verdicts:nowhere.jsonl", "judge 'verdicts:nowhere.jsonl': no such file"),
        ("server:http://localhost", "found 'http://localhost', expected MODEL@URL"),
        ("gpt:4", "no kind 'gpt', expected a score's name, verdicts:FILE, reward:DIR, lm:NAME or server:MODEL@URL"),
        ("reward:nowhere", "reward 'nowhere': no reward.json there, expected a directory that the reward stage wrote"),
        ("lm:./nowhere", "model './nowhere': no such directory or file"),
    ],
)
def test_names_that_say_nothing(name: str, message: str, no_models: None) -> None:
    with pytest.raises(UsageError, match=message):
        find_judge(name)
