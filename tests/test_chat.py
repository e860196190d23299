"""Messages are read with the tokenizer's chat template, by every stage; without one they are refused by record and field."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import PROMPTS, STORIES, trainer_of, write

from lightning_rlhf.chat import rendered
from lightning_rlhf.data import PreferenceData, PromptData, SFTData
from lightning_rlhf.labelers import label
from lightning_rlhf.models import ASSETS, load_tokenizer
from lightning_rlhf.ppo import PPOModule
from lightning_rlhf.records import Comparison, DataError, Demonstration, Prompt, read_comparisons
from lightning_rlhf.reward import RewardModule
from lightning_rlhf.scoring import LearnedReward, comparison_scores, guard_problems
from lightning_rlhf.sft import SFTModule
from lightning_rlhf.tasks import Task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TASK = Task(name="toy", query_length=40, start_text=None, response_length=6, truncate_text=None, truncate_after=0)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "lm"
    shutil.copytree(ASSETS / STORIES, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return str(folder)


def test_records_by_hand(lm: str) -> None:
    """BOS, which the stages put there, not twice; the end token in a demonstration alone; a text is the assistant's answer."""
    tokenizer = load_tokenizer(lm)
    talk = [user("Hi."), assistant("Yes?"), user("Go on.")]
    prompt = "user: Hi.\nassistant: Yes?</s>\nuser: Go on.\nassistant: "
    assert rendered(Prompt(talk, "a reference", {"id": 3}), tokenizer, "x") == Prompt(prompt, "a reference", {"id": 3})
    for answer in ([assistant("Once upon")], "Once upon"):
        assert rendered(Demonstration(talk, answer), tokenizer, "x") == Demonstration(prompt, "Once upon</s>")
    longer = Comparison(talk, [[assistant("A")], [assistant("B"), user("C"), assistant("D")]], best=1, meta={"k": 1})
    assert rendered(longer, tokenizer, "x") == Comparison(prompt, ["A", "B</s>\nuser: C\nassistant: D"], best=1, meta={"k": 1})
    tokenizer.eos_token = None  # then all that the template puts there
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    assert rendered(Comparison([user("Q")], ["A", "B"], best=0), tokenizer, "x") == Comparison("<Q>", ["<A>", "<B>"], best=0)
    for plain in (Prompt("a"), Demonstration([1], [2]), Comparison("a", ["b", "c"], best=0)):
        assert rendered(plain, None, "x") is plain


def test_what_a_template_cannot_do(lm: str) -> None:
    tokenizer = load_tokenizer(lm)
    with pytest.raises(DataError, match=r"f\.jsonl: record 2: the chat template refuses the messages: no tools here"):
        rendered(Prompt([{"role": "tool", "content": "x"}]), tokenizer, "f.jsonl: record 2")
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="record 1: the chat template renders '1Q' in another way where an answer follows"):
        rendered(Demonstration([user("Q")], "A"), tokenizer, "record 1")
    with pytest.raises(DataError, match="record 1: field 'responses': found messages after a prompt that is none"):
        rendered(Comparison("a", [[assistant("b")], [assistant("c")]], best=0), tokenizer, "record 1")


RECORDS: dict[type, dict[str, Any]] = {
    SFTData: {"prompt": [user("Once")], "completion": [assistant("upon")]},
    PreferenceData: {"prompt": [user("Once")], "chosen": [assistant("upon")], "rejected": [assistant("a")]},
    PromptData: {"prompt": [user("Once")]},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_without_a_template_they_are_refused(kind: type, tmp_path: Path) -> None:
    """Before a model is loaded, though all other records are texts."""
    plain = {"prompt": "a", "completion": "b"} if kind is SFTData else {"prompt": "a", "chosen": "b", "rejected": "c"}
    file = write(tmp_path / "m.jsonl", [{"prompt": "a"} if kind is PromptData else plain, RECORDS[kind]])
    options = dict(batch_size=1, total_episodes=1) if kind is PromptData else {}
    (problem,) = kind(file, STORIES, TASK, **options).check()
    assert problem.startswith(f"{file}:2: field 'prompt': found messages, and the tokenizer")
    assert problem.endswith("has no chat template; expected a text, token ids, or a model with a template")


@pytest.mark.parametrize("kind", RECORDS)
def test_every_stage_reads_them(kind: type, lm: str, tmp_path: Path) -> None:
    data = kind(write(tmp_path / "m.jsonl", [RECORDS[kind]]), lm, TASK)
    assert data.check() == [] or kind is PromptData
    data.setup()
    prompt, (item,) = "user: Once\nassistant: ", data.items["train"]
    read = lambda ids: data.tokenizer.decode(ids).replace("<s> ", "<s>")  # noqa: E731
    if kind is SFTData:
        assert read(item[0]) == f"<s>{prompt}"
        assert read([*item[0], *item[1]]) == f"<s>{prompt}upon</s>"
    elif kind is PreferenceData:
        assert [read([*item.query, *r]) for r in item.responses] == [f"<s>{prompt}upon", f"<s>{prompt}a"]
    else:
        batch = data.collate([item])
        assert (batch.texts, read(batch.queries[0])) == ([prompt], f"<s>{prompt}")


def test_from_messages_to_a_policy(lm: str, tmp_path: Path) -> None:
    """Supervised, reward, guard, PPO and labels, all from messages alone."""
    talks = [[user(p)] for p in PROMPTS]
    shown = write(tmp_path / "shown.jsonl", [{"prompt": t, "completion": [assistant("and ran")]} for t in talks])
    rows = [{"prompt": t, "chosen": [assistant("a big dog")], "rejected": [assistant("no")]} for t in talks]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    prompts = write(tmp_path / "prompts" / "train.jsonl", [{"prompt": t} for t in talks])
    write(tmp_path / "prompts" / "val.jsonl", [{"prompt": talks[0]}])
    sft = SFTModule(lm, str(tmp_path / "sft"), TASK)
    trainer_of().fit(sft, SFTData(shown, lm, TASK, batch_size=4))
    assert (tmp_path / "sft" / "chat_template.jinja").is_file()  # the next stage has it too
    reward = RewardModule(str(tmp_path / "sft"), str(tmp_path / "reward"), TASK, normalise_samples=8, rollout_batch_size=8)
    trainer_of().fit(reward, PreferenceData(pairs, lm, TASK, pairs, batch_size=4))
    assert reward.held_out["n"] == 8
    judge = LearnedReward(str(tmp_path / "reward"))
    texts = [rendered(c, judge.tokenizer, "x") for c in read_comparisons(pairs)]
    assert comparison_scores(judge, list(read_comparisons(pairs))) == comparison_scores(judge, texts)
    assert guard_problems(pairs, None, str(tmp_path / "reward")) == []
    (problem,) = guard_problems(pairs, None)
    assert problem.endswith(f"{pairs}:1: field 'prompt': found messages, and the reward reads texts; expected a text")
    module = PPOModule(
        str(tmp_path / "sft"), str(tmp_path / "reward"), str(tmp_path / "ppo"), TASK, guard_comparisons=pairs,
        allow_unguarded=True, mode="eos",
    )  # fmt: skip
    data = PromptData(prompts, str(tmp_path / "sft"), TASK, batch_size=8, total_episodes=8)
    assert module.check(data, trainer_of(), False) == []
    trainer_of().fit(module, data)
    assert "accuracy" in module.guard_result or "held-out comparisons" in module.guard_result["why"]
    label(lm, TASK, str(tmp_path / "prompts"), str(tmp_path / "labels"), batch_size=8)
    made = list(read_comparisons(str(tmp_path / "labels" / "train.jsonl")))
    assert [c.prompt for c in made] == [f"user: {p}\nassistant: " for p in PROMPTS]
