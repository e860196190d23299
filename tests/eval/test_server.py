"""eval.server, and policies that are servers: against a local server that stands for a remote one, and dies or misbehaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import pytest

import eval.server
from eval.__main__ import main
from eval.server import Completion, NoAnswer, Server, post_json
from lightning_rlhf.files import write_jsonl
from lightning_rlhf.tasks import UsageError

Reply = tuple[int, Any] | None  # status and JSON (or raw bytes); None hangs up without a word


class Stub:
    """What was asked so far, and where."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.bytes_at_a_time, self.pause = 1 << 20, 0.0


def texts(body: dict[str, Any], finish: str = "length") -> Reply:
    """An answer that tells the prompt's last word and the seed back."""
    said = f" about {body['prompt'].split()[-2]}. number {body['seed'] % 1000}"
    return 200, {"choices": [{"text": f"{said} choice {i}", "finish_reason": finish} for i in range(body["n"])]}


@contextmanager
def serve(reply: Callable[[dict[str, Any]], Reply]) -> Iterator[Stub]:
    """A server on a free port; `reply` gets each request's body, one at a time."""
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stub.asked.append(body)
                stub.headers.append(dict(self.headers))
                stub.paths.append(self.path)
                told = reply(body)
            if told is None:
                self.close_connection = True
                return
            data = told[1] if isinstance(told[1], bytes) else json.dumps(told[1]).encode()
            self.send_response(told[0])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client had waited long enough
                for at in range(0, len(data), stub.bytes_at_a_time):
                    self.wfile.write(data[at : at + stub.bytes_at_a_time])
                    Event().wait(stub.pause)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing is waited for; what would have been is told."""
    waited: list[float] = []
    monkeypatch.setattr("eval.server.time.sleep", waited.append)
    return waited


# ------------------------------------------------------------------------------------------------------------ the client


def test_what_is_asked_and_what_comes_back() -> None:
    with serve(lambda body: texts(body, "stop")) as stub:
        got = Server(stub.url + "/", "m1", "secret").complete("A cat. TL;DR:", 7, 0.5, seed=3, n=2)
    assert got == [Completion(" about cat.. number 3 choice 0", True), Completion(" about cat.. number 3 choice 1", True)]
    assert stub.asked == [{"model": "m1", "prompt": "A cat. TL;DR:", "max_tokens": 7, "temperature": 0.5, "n": 2, "seed": 3}]
    assert stub.paths == ["/v1/completions"]
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(Server(stub.url, "m1", "secret"))


def test_no_key_no_header() -> None:
    with serve(texts) as stub:
        Server(stub.url, "m1").complete("a b", 7, 0.5, seed=3)
    assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize("trouble", [(503, {"error": "busy"}), (429, {}), (408, {}), (200, b'{"half'), None])
def test_what_may_pass_is_tried_again(trouble: Reply, waits: list[float]) -> None:
    replies = iter([trouble, trouble])
    with serve(lambda body: next(replies, (200, {"ok": 1}))) as stub:
        assert post_json(stub.url, {"a": 1}) == {"ok": 1}
    assert len(stub.asked) == 3
    assert waits == [1.0, 2.0]


def test_tries_and_waits_are_bounded(waits: list[float]) -> None:
    with (
        serve(lambda body: (500, {"error": "broken"})) as stub,
        pytest.raises(UsageError, match="in 6 tries; the last: status 500"),
    ):
        post_json(stub.url, {})
    assert len(stub.asked) == 6
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    with pytest.raises(UsageError, match=r"no answer in 6 tries; the last: URLError: .*refused"):
        post_json(stub.url, {})  # it is gone now
    with serve(lambda body: (200, {"late": Event().wait(0.3)})) as stub, pytest.raises(NoAnswer, match="imed ?out"):
        post_json(stub.url, {}, waits=(), timeout=0.05)
    with serve(lambda body: (200, {"text": "x" * 100})) as stub:
        stub.bytes_at_a_time, stub.pause = 1, 0.03  # never so long without a byte that a socket times out
        with pytest.raises(NoAnswer, match="the answer did not end in time"):
            post_json(stub.url, {}, waits=(), timeout=0.3)


def test_the_server_says_how_long_to_wait_but_not_for_ever(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    import email.message
    import urllib.error

    def busy(*args: Any, **kwargs: Any) -> None:
        headers = email.message.Message()
        headers["Retry-After"] = str([30, 10_000][len(waits) % 2])
        raise urllib.error.HTTPError("u", 429, "busy", headers, None)

    monkeypatch.setattr("eval.server.urllib.request.urlopen", busy)
    with pytest.raises(UsageError, match="status 429: busy"):
        post_json("http://x", {})
    assert waits == [30.0, 60.0, 30.0, 60.0, 30.0]


def test_what_will_not_pass_is_told_at_once(waits: list[float]) -> None:
    with (
        serve(lambda body: (401, {"error": "no such key"})) as stub,
        pytest.raises(UsageError, match="status 401: .*no such key"),
    ):
        post_json(stub.url, {}, "secret")
    assert not waits


@pytest.mark.parametrize(
    "answer", [{}, [], {"choices": []}, {"choices": "x"}, {"choices": [{"text": None}]}, {"choices": ["a"]}, None]
)
def test_an_answer_that_makes_no_sense(answer: Any, waits: list[float]) -> None:
    with (
        serve(lambda body: (200, answer)) as stub,
        pytest.raises(UsageError, match="expected `choices`, a list of 1 with a `text`"),
    ):
        Server(stub.url, "m").complete("a b", 5, 1.0, seed=1)
    assert not waits


# ------------------------------------------------------------------------------------------------------------ the policy


def words(tmp_path: Path, url: str, *more: str) -> list[str]:
    """A sample command on 20 prompts."""
    file = tmp_path / "prompts.jsonl"
    if not file.is_file():
        write_jsonl(file, [{"id": f"p{i}", "prompt": f"Tell of thing{i}.", "reference": f"Thing {i}."} for i in range(20)])
    policy = json.dumps({"model": "m1", "server": url})
    task = ("--task.query_suffix", " TL;DR:", "--task.response_length", "24", "--task.truncate_after", "4")
    return [
        "sample",
        "--lm",
        "stories260k",
        *task,
        "--prompts",
        str(file),
        "--output",
        str(tmp_path / "out"),
        f"--policies.api={policy}",
        *more,
    ]


def read(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out/samples/api.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_server_that_dies_half_way(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it said is lost or asked for again, and the end is as if it had not died."""
    monkeypatch.setattr("eval.server.WAITS", (0.0,))
    with serve(lambda body: texts(body) if len(stub.asked) <= 9 else None) as stub:
        with pytest.raises(SystemExit) as stopped:
            main(words(tmp_path, stub.url))
        told = [line for line in (tmp_path / "out/samples/api.part").read_text(encoding="utf-8").splitlines()[1:]]
        url = stub.url
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "policies.api: http://127.0.0.1" in error
    assert "9 of 20 answers are in" in error
    assert len(told) == 9
    with (tmp_path / "out/samples/api.part").open("ab") as handle:
        handle.write(b'{"id": "p19", "torn')  # as a power cut leaves it
    monkeypatch.setattr("eval.server.urllib.request.urlopen", _to(stub, url))
    with serve(texts) as second:
        stub.url = second.url
        main(words(tmp_path, url))
    assert len(second.asked) == 11
    asked_again = {f"p{b['prompt'].split()[2][5:-1]}" for b in second.asked}
    assert {json.loads(line)["id"] for line in told} | asked_again == {f"p{i}" for i in range(20)}
    resumed = read(tmp_path)
    assert not (tmp_path / "out/samples/api.part").exists()
    (tmp_path / "again").mkdir()
    with serve(texts) as third:
        stub.url = third.url
        main(words(tmp_path / "again", url))
    assert read(tmp_path / "again") == resumed
    assert [r["id"] for r in resumed] == [f"p{i}" for i in range(20)]


def _to(stub: Stub, url: str) -> Any:
    """`urlopen` that finds the server which has taken the place of the one at `url`."""
    real = eval.server.urllib.request.urlopen

    def opened(request: Any, **kwargs: Any) -> Any:
        request.full_url = request.full_url.replace(url, stub.url)
        return real(request, **kwargs)

    return opened


def test_the_time_out_is_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a policy's server and of a judge's; another one changes nothing of what was answered."""
    monkeypatch.setattr("eval.server.WAITS", ())
    free = Event()

    def hangs(body: dict[str, Any]) -> Reply:
        if len(stub.asked) > 3 and not free.is_set():
            free.wait(20)
            return None
        return texts(body) if "prompt" in body else (200, {"choices": [{"message": {"content": "A"}}]})

    with serve(hangs) as stub:
        command = words(tmp_path, stub.url, "--limit", "4")
        began = time.monotonic()
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--server_timeout", "0.3"])
        assert time.monotonic() - began < 15 and stopped.value.code == 2
        error = capsys.readouterr().err
        assert "no answer in 1 tries; the last: " in error and "timed out" in error
        assert "3 of 4 answers are in" in error
        free.set()
        del stub.asked[:]
        main([*command, "--server_timeout", "60"])  # what was answered by then is not asked again
        assert len(stub.asked) == 1
        main([*command, "--server_timeout", "50.5"])
        assert len(stub.asked) == 1
        more = ("--policies.api=null", "--policies={a: reference, b: lead-1}", f"--judges=['server:m@{stub.url}']")
        main(["score", *command[1:], *more])
        del stub.asked[:]
        free.clear()
        monkeypatch.setattr("eval.remote.RemoteModel.__init__.__defaults__", (1, 300.0, 0.0, 1, 1))
        with pytest.raises(SystemExit):
            main(["compare", *command[1:], *more, "--server_timeout", "0.3"])
        assert "1 questions in a row got no answer" in (error := capsys.readouterr().err) and "timed out" in error
        free.set()
        main(["compare", *command[1:], *more])
    asked = [b["messages"][0]["content"] for b in stub.asked]
    assert len(asked) == len(set(asked)) + 1 == 9  # the one that got no answer alone was asked again


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_a_time_out_that_cannot_be(tmp_path: Path, refused: Callable[..., str], seconds: str) -> None:
    for step in ("sample", "compare"):
        error = refused([step, *words(tmp_path, "http://localhost:9/v1", "--server_timeout", seconds)[1:]], main=main)
        assert f"server_timeout: found {float(seconds):g}, expected " in error
        assert seconds in ("nan", "inf") or error.rstrip().endswith("expected seconds above 0, a day (86400) at most")


def test_rows_of_a_server(tmp_path: Path) -> None:
    """Cut by the task's rule in the tokens of --lm; a text that ends by itself has stopped."""

    def reply(body: dict[str, Any]) -> Reply:
        number = int(body["prompt"].split()[2][5:-1])
        text, finish = [(" One two three four. Five six.", "length"), (" No end here", "length"), (" All said", "stop")][
            number % 3
        ]
        return 200, {"choices": [{"text": text, "finish_reason": finish}]}

    with serve(reply) as stub:
        main(words(tmp_path, stub.url, "--limit", "3"))
    rows = read(tmp_path)
    assert [(r["response"], r["found"]) for r in rows] == [
        (" One two three four.", True),
        (" No end here", False),
        (" All said", True),
    ]
    assert all("response_tokens" not in r and r["policy"] == "api" for r in rows)
    assert rows[1]["reference"] == "Thing 1."
    assert {b["prompt"] for b in stub.asked} == {f"Tell of thing{i}. TL;DR:" for i in range(3)}
    assert len({b["seed"] for b in stub.asked}) == 3
    assert stub.asked[0]["max_tokens"] == 24


def test_best_of_n_of_a_server(tmp_path: Path) -> None:
    module = tmp_path / "longest.py"
    module.write_text("def score(prompts, completions, **columns):\n    return [float('choice 1' in c) for c in completions]\n")
    with serve(texts) as stub:
        policy = json.dumps({"model": "m", "server": stub.url, "best_of": 3, "reward": f"{module}:score"})
        main(words(tmp_path, stub.url, "--limit", "2", f"--policies.api={policy}", "--task.truncate_text", "null"))
    assert all(r["response"].endswith("choice 1") and r["best_of"] == 3 for r in read(tmp_path))
    assert [b["n"] for b in stub.asked] == [3, 3]


def test_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with serve(texts) as stub:
        policy = json.dumps({"model": "m", "server": stub.url, "key_env": "SOME_KEY"})
        main(words(tmp_path, stub.url, "--limit", "2", f"--policies.api={policy}"))
    assert {h["Authorization"] for h in stub.headers} == {"Bearer secret"}
    written = "".join(f.read_text(encoding="utf-8") for f in (tmp_path / "out").rglob("*") if f.is_file())
    assert "secret" not in written + str(capsys.readouterr())
