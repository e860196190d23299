"""eval.local: the answers of a local model are those of its own logits, however questions are put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval.judges import QUESTION, AskedJudge
from eval.local import LocalModel
from lightning_rlhf.tasks import UsageError


def row(i: int, policy: str, response: str = "a text") -> dict[str, Any]:
    return {"id": str(i), "index": 0, "policy": policy, "prompt": f"prompt {i}", "response": response, "scores": {}}

@pytest.fixture(scope="module")
def local() -> LocalModel:
    return LocalModel("stories260k", batch_size=2)


def test_local_model_against_its_own_logits(local: LocalModel) -> None:
    import torch

    others = ("x", "a much longer cat " * 4, "there was a dog")
    questions = [QUESTION.format(prompt="Once", a="there was a dog", b=b) for b in others]
    got = list(local(questions))
    tokenizer = local.lm.tokenizer
    for question, answer in zip(questions, got, strict=True):
        text = f"{question}\n\nBetter response:"
        # each candidate is written out, tokenised and scored whole, without padding
        scores = []
        for letter in "AB":
            ids = torch.tensor([tokenizer.encode(f"{text} {letter}")])
            with torch.no_grad():
                logp = local.lm.model(input_ids=ids).logits.log_softmax(-1)
            scores.append(float(logp[0, -2, ids[0, -1]]))
        assert answer == ("A" if scores[0] > scores[1] else "B")


def test_local_model_in_a_batch(local: LocalModel) -> None:
    questions = ["Is it?", "Who was it, and when, and where did she go?", "?"]
    assert list(local(questions)) == [next(local([q])) for q in questions]


def test_a_question_longer_than_the_context(local: LocalModel, tmp_path: Path) -> None:
    a, b = [row(0, "x", "word " * 3000), row(1, "x", "a dog")], [row(0, "y"), row(1, "y")]
    got = AskedJudge("l", local, tmp_path / "l.jsonl")(a, b)
    assert [v.winner == "failed" for v in got] == [True, True, False, False]


def test_local_model_with_a_chat_template(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    monkeypatch.setattr(local.lm.tokenizer, "chat_template", template, raising=False)
    monkeypatch.setattr(local, "chat", True)
    monkeypatch.setattr(local, "head", [])
    text = local.lm.tokenizer.decode(local._encode("Which one?"))
    assert text.strip() == "<user>Which one?<assistant>"


def test_letters_that_are_the_same_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_rlhf.tokens.encode_continuation", lambda tokenizer, text: [3])
    with pytest.raises(UsageError, match=r"its tokenizer gives A \[3\] and B \[3\], expected ids that differ"):
        LocalModel("stories260k")


def test_what_questions_have_in_common_is_read_once(local: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits as each question alone, for fewer tokens."""
    import torch

    monkeypatch.setattr(local, "batch_size", 8)
    story = "Once there was a little dog. " * 20
    pairs = (("x", "the dog ran"), ("the dog ran", "x"), ("it sat", "a"))
    questions = [QUESTION.format(prompt=story, a=a, b=b) for a, b in pairs]
    rows = [local._encode(q) for q in questions]
    read: list[int] = []
    hook = local.lm.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    together = local._logits(rows)
    hook.remove()
    assert len(read) == 2 and sum(read) < 0.6 * sum(map(len, rows))
    torch.testing.assert_close(together, torch.cat([local._logits([r]) for r in rows]), rtol=1e-4, atol=1e-4)
    other = QUESTION.format(prompt="Another. " * 30, a="x", b="y")
    assert local._together([*rows, local._encode(other)]) == 3
    assert list(local([*questions, other])) == [next(local([q])) for q in (*questions, other)]


def test_pairs_of_one_prompt_are_asked_together(tmp_path: Path) -> None:
    """All policies' pairs, before the first verdict; equal texts are asked about once, and judged twice."""

    class Model:
        identity, seconds = "m", {}  # type: ignore[var-annotated]
        asked: list[str] = []  # noqa: RUF012

        def __call__(self, questions: Any) -> Any:
            self.asked += questions
            return iter(["A"] * len(questions))

    judge, model = AskedJudge("m", Model(), tmp_path / "m.jsonl"), Model  # type: ignore[arg-type]
    x, y, z = ([row(i, policy) for i in range(2)] for policy in "xyz")
    judge.prepare([*zip(x, y, strict=True), *zip(x, z, strict=True)])
    assert [("prompt 0" in q) for q in model.asked] == [True, False]  # one text: both orders are one question
    assert [v.winner for v in judge(x, y) + judge(x, z)] == ["a"] * 8 and len(model.asked) == 2
