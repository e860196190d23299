"""eval.baselines, eval.sample and eval.score: what stands under `policies:`, resumed, refused and scored."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import eval.sample
import eval.score
from eval.__main__ import STEPS, main, parse
from eval.baselines import Policy, few_shot, text_of
from eval.copying import sentences
from eval.frontier import best_of_n_kl
from lightning_rlhf.files import DataError, write_jsonl
from lightning_rlhf.labelers import Answers
from lightning_rlhf.models import load_lm, load_tokenizer, save_policy
from lightning_rlhf.records import Prompt
from lightning_rlhf.tasks import Task, task_tokens
from lightning_rlhf.tokens import encode, encode_continuation

ROOT = Path(__file__).resolve().parent.parent.parent
POSTS = [
    {"id": f"p{i}", "prompt": f"Once there was a cat. It had {i} red balls.", "reference": f"A cat with {i} balls.",
     "story": f"The cat sat down. It saw ball number {i}. It ran away fast.", "weight": i, "other": " Said by another."}
    for i in range(6)
]  # fmt: skip
TASK = ("--task.response_length", "12", "--task.truncate_after", "4", "--task.query_suffix", " So:")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "prompts.jsonl", POSTS)
    return tmp_path / "prompts.jsonl"


def words(step: str, prompts: Path, policies: dict[str, Any], *more: str) -> list[str]:
    given = [f"--policies={json.dumps(policies)}", "--prompts", str(prompts), "--output", str(prompts.parent / "out")]
    return [step, *given, "--batch_size", "4", *TASK, *more]


def rows(prompts: Path, name: str, folder: str = "samples") -> list[dict[str, Any]]:
    file = prompts.parent / "out" / folder / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ----------------------------------------------------------------------------------------------------- texts, no model


def test_texts_from_the_prompts_file(prompts: Path, no_models: None) -> None:
    given = ("lead-1", "lead-2", "lead-9", "random-sentence", "reference", "column:other")
    main(words("sample", prompts, {m: m for m in given}, "--source_column", "story"))
    told = {m: [r["response"] for r in rows(prompts, eval.sample.slug(m))] for m in given}
    assert told["lead-1"] == [" The cat sat down."] * 6
    assert told["lead-2"][3] == " The cat sat down. It saw ball number 3."
    assert told["lead-9"][3] == " " + POSTS[3]["story"]  # type: ignore[operator]
    assert told["reference"] == [p["reference"] for p in POSTS]
    assert told["column:other"] == [" Said by another."] * 6
    assert all(t[1:] in sentences(str(p["story"])) for t, p in zip(told["random-sentence"], POSTS, strict=True))
    assert len({t.split()[1] for t in told["random-sentence"]}) > 1
    assert all("reference" not in r for r in rows(prompts, "reference"))  # ROUGE against itself would say nothing
    assert rows(prompts, "lead-1")[2]["reference"] == "A cat with 2 balls."


def test_a_sentence_is_drawn_by_seed_and_id_alone() -> None:
    record = Prompt("x")
    source = "One. Two. Three. Four. Five."
    drawn = [text_of("random-sentence", f"p{i}", record, source, "f", seed=1) for i in range(50)]
    assert drawn == [text_of("random-sentence", f"p{i}", record, source, "f", seed=1) for i in range(50)]
    assert drawn != [text_of("random-sentence", f"p{i}", record, source, "f", seed=2) for i in range(50)]
    assert set(drawn) == {" One.", " Two.", " Three.", " Four.", " Five."}
    assert text_of("lead-3", "p", record, " \n ", "f", seed=1) == ""


def test_of_several_references_the_first_answers_and_the_others_measure(prompts: Path) -> None:
    write_jsonl(prompts, [{"id": i, "prompt": "A cat.", "reference": ["One cat.", "A cat."]} for i in "ab"])
    main(words("score", prompts, {"reference": "reference"}))
    row = rows(prompts, "reference", "scores")[0]
    assert (row["response"], row["reference"]) == ("One cat.", ["A cat."])
    assert row["measures"]["rouge1"] == 0.5


def test_a_folder_of_samples_is_enough(tmp_path: Path, no_models: None, capsys: pytest.CaptureFixture[str]) -> None:
    """No prompts, no model, no config: every policy of every file is scored; what the files say beside is kept."""
    (tmp_path / "given").mkdir()
    huge = "word " * 200_000
    texts = {"empty": "", "blank": " \n", "rtl": "مرحبا <script>alert(1)</script>", "huge": huge}
    for n, (policy, text) in enumerate(texts.items()):
        sample = {"id": "1", "policy": policy, "prompt": "A word of text.", "response": text, "reference": "A word."}
        write_jsonl(tmp_path / f"given/{n}.jsonl", [{**sample, "scores": {"votes": n}, "worker": "w"}])
    main(["score", "--samples", str(tmp_path / "given"), "--output", str(tmp_path / "out")])
    got = {r["policy"]: r for r in map(json.loads, (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8").splitlines())}
    assert {p: r["response"] for p, r in got.items()} == texts
    assert [r["scores"]["votes"] for r in got.values()] == [0, 1, 2, 3]
    assert all(r["worker"] == "w" for r in got.values())
    assert {p: r["measures"]["empty"] for p, r in got.items()} == {"empty": 1, "blank": 1, "rtl": 0, "huge": 0}
    assert got["huge"]["measures"]["words"] == 200_000
    summary = json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))
    assert summary["empty"]["means"]["empty"]["mean"] == 1.0
    assert "100.0 %" in capsys.readouterr().out  # the table counts them
    votes = tmp_path / "votes.jsonl"  # people's verdicts alone judge it too, without any reward
    write_jsonl(votes, [{"id": "1", "policy_a": "rtl", "policy_b": "huge", "winner": "a", "judge": "ann"}])
    main(["compare", "--samples", str(tmp_path / "given"), "--output", str(tmp_path / "out"), "--judges", f"[verdicts:{votes}]"])
    (judgement,) = json.loads((tmp_path / "out/compare.json").read_text(encoding="utf-8"))["judgements"]
    assert (judgement["a"], judgement["b"], judgement["n"]) in (("rtl", "huge", 1), ("huge", "rtl", 1))


def sample(policy: str = "theirs", **fields: Any) -> dict[str, Any]:
    return {"id": "p0", "policy": policy, "prompt": POSTS[0]["prompt"], "response": "A cat.", **fields}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([sample(), sample()], "'p0' with policy 'theirs' and index 0, as at"),
        ([sample(prompt="Another text.")], "field 'prompt': found another text than in"),
        ([sample(id="q7")], "none of its ids is in .*; is it of another set of prompts"),
        ([sample("a"), sample("b")], "found the policies ['a', 'b'], expected 'mine' or a single one"),
        ([sample(response=[1, 2])], "field 'response': found token ids or messages, expected a text"),
        ([{"id": "p0", "policy": "x", "prompt": "y"}], "field 'response': found only id, policy, prompt"),
        ([], "found an empty file"),
    ],
)
def test_samples_that_cannot_be_used(
    given: list[dict[str, Any]], message: str, prompts: Path, refused: Callable[..., str], no_models: None
) -> None:
    write_jsonl(prompts.parent / "theirs.jsonl", given)
    error = refused(
        words("sample", prompts, {"zero-shot": "stories260k", "mine": str(prompts.parent / "theirs.jsonl")}), main=main
    )
    assert re.search(message, error) or message in error
    assert not (prompts.parent / "out/samples/zero-shot.jsonl").exists()


def test_samples_of_some_prompts_are_used_and_the_rest_is_told(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [sample(), sample(index=1, response="Two."), sample(id="p5", prompt=POSTS[5]["prompt"]), sample(id="other")]
    write_jsonl(prompts.parent / "theirs.jsonl", more)
    main(words("sample", prompts, {"mine": str(prompts.parent / "theirs.jsonl")}))
    assert "policies.mine: 4 of 6 prompts have no sample, 1 samples have no prompt" in capsys.readouterr().err
    got = rows(prompts, "mine")
    assert [(r["id"], r["index"], r["policy"], r["reference"]) for r in got] == [
        ("p0", 0, "mine", "A cat with 0 balls."),
        ("p0", 1, "mine", "A cat with 0 balls."),
        ("p5", 0, "mine", "A cat with 5 balls."),
    ]


def test_samples_alone_must_agree_on_their_prompts(tmp_path: Path, refused: Callable[..., str]) -> None:
    write_jsonl(tmp_path / "s.jsonl", [sample("a"), sample("b", prompt="Another.")])
    error = refused(["score", "--samples", str(tmp_path / "s.jsonl"), "--output", str(tmp_path / "out")], main=main)
    assert "id 'p0': found another prompt with policy 'b'" in error


# -------------------------------------------------------------------------------------------------- models, and resume


def test_an_interrupted_policy_goes_on_and_ends_the_same(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = words("sample", prompts, {"zero-shot": "stories260k"})
    main(command)
    whole = (prompts.parent / "out/samples/zero-shot.jsonl").read_bytes()
    shutil.rmtree(prompts.parent / "out")
    real, calls = eval.sample.answer, []

    def dies(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr("eval.sample.answer", dies)
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 130
    part = prompts.parent / "out/samples/zero-shot.part"
    assert len(part.read_text(encoding="utf-8").splitlines()) == 1 + 4  # the key and one batch
    main(command)
    assert len(calls) == 3  # the second batch alone was asked for again
    assert (prompts.parent / "out/samples/zero-shot.jsonl").read_bytes() == whole
    assert not part.exists()
    part.write_bytes(b'{"another": "key"}\n{"id": "p0"}\n')  # of other options: not used
    main([*command, "--seed", "2"])
    assert len(calls) == 5
    assert len(rows(prompts, "zero-shot")) == 6


def test_kl_of_a_policy_whose_export_added_a_pad_token(prompts: Path, tmp_path: Path) -> None:
    """Its start pads with EOS, so that the two tokenizers differ by that token; the KL is there all the same."""
    lm = load_lm("stories260k")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    for part in (lm.model, lm.tokenizer):
        part.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        lm.model.model.norm.weight.mul_(1.1)
    save_policy(tmp_path / "policy", lm.model, lm.tokenizer)
    assert len(load_tokenizer(str(tmp_path / "policy"))) == len(load_tokenizer(str(tmp_path / "start"))) + 1
    policies = {"moved": str(tmp_path / "policy")}
    main(words("sample", prompts, policies))
    main(words("score", prompts, policies, "--reference", str(tmp_path / "start")))
    kl = [r["scores"]["kl"] for r in rows(prompts, "moved", "scores")]
    assert all(k != 0 for k in kl) and len(kl) == 6


def test_a_checkpoint_answers_as_the_export_of_its_step(
    prompts: Path, tiny_run: Path, tmp_path: Path, command: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    from lightning_rlhf.cli import main as train

    (tmp_path / "run").mkdir()
    (tmp_path / "run/labels").symlink_to(tiny_run / "labels")
    train(command("sft", tmp_path / "run", "--model.lora.r", "2", "--trainer.limit_val_batches", "0"))
    checkpoint, found = tmp_path / "run/checkpoints/sft.ckpt", []
    for model in (tmp_path / "run/sft", checkpoint):
        command_of = [words(step, prompts, {"x": str(model)}, "--reference", "stories260k") for step in ("sample", "score")]
        for words_of in command_of:
            main(words_of)
        found.append((prompts.parent / "out/scores.jsonl").read_bytes())
    assert found[0] == found[1]
    assert all(r["scores"]["kl"] != 0 for r in rows(prompts, "x", "scores"))
    at = (prompts.parent / "out/samples/x.jsonl").stat().st_mtime_ns
    main(command_of[0])
    assert (prompts.parent / "out/samples/x.jsonl").stat().st_mtime_ns == at  # kept
    train(command("sft", tmp_path / "run", "--model.lora.r", "4", "--data.val", "null", "--model.overwrite", "true"))
    error = refused([*command_of[1], "--batch_size", "3"], main=main)  # the run went on meanwhile
    assert f"samples/x.jsonl: made with other weights than {checkpoint} has now; run `python -m eval sample` again" in error
    given = {"half": tmp_path / "half.ckpt", "reward": tiny_run / "checkpoints/reward.ckpt"}
    given["half"].write_bytes(checkpoint.read_bytes()[:-1000])
    error = refused(words("sample", prompts, {k: str(v) for k, v in given.items()}, "--reference", str(prompts)), main=main)
    expected = "expected a directory, a .gguf file or a checkpoint of the stage sft or ppo"
    assert f"model '{given['half']}': found a file that is no whole checkpoint, {expected}" in error
    assert f"model '{given['reward']}': found a checkpoint of the stage 'reward', {expected}" in error
    assert f"model '{prompts}': found a file that is no whole checkpoint, {expected}" in error


def test_responses_that_do_not_end_are_drawn_anew(prompts: Path) -> None:
    """Each that is kept ends; the share that did not at once stays a figure of the policy."""
    for options in ((), ("--redraws", "60")):
        main(words("sample", prompts, {"tiny": "stories260k"}, *options))
        drawn = rows(prompts, "tiny")
        assert all(r["found"] and r["response"].endswith(".") for r in drawn) == bool(options)
    main(words("score", prompts, {"tiny": "stories260k"}, "--redraws", "60", "--known_reward", "known:sentiment"))
    assert rows(prompts, "tiny") == drawn and any(r.get("draws", 1) > 1 for r in drawn)
    scores = [json.loads(line) for line in (prompts.parent / "out/scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [s["measures"]["no_stop"] for s in scores] == [int(r.get("draws", 1) > 1) for r in drawn]


def test_best_of_n_keeps_the_first_best_and_says_its_kl(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "vowels.py").write_text(
        "def count(prompts, completions, reference, weight, **columns):\n"
        "    assert len(reference) == len(weight) == len(completions)\n"
        "    return [float(sum(c in 'ae' for c in text)) for text in completions]\n"
    )
    reward = f"{tmp_path}/vowels.py:count"
    policies = {"one": "stories260k", "four": {"model": "stories260k", "best_of": 4, "reward": reward}}
    main(words("sample", prompts, policies))
    main(words("score", prompts, policies, "--reference", "stories260k", "--known_reward", reward))
    four, one = rows(prompts, "four", "scores"), rows(prompts, "one", "scores")
    assert sum(r["scores"]["known"] for r in four) > sum(r["scores"]["known"] for r in one)
    # log 4 − 3/4; the sampled policy is the reference itself
    assert all(r["best_of"] == 4 and r["best_of_kl"] == r["scores"]["kl"] == math.log(4) - 0.75 for r in four)
    assert all(r["scores"]["kl"] == 0.0 for r in one)


def test_best_of_n_is_the_best_of_what_was_sampled(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [[" aa", " b", " aaa", " aaa ", " "]] * 6
    monkeypatch.setattr("eval.sample.answer", lambda lm, task, resolved, texts, seed, n, redraws: Answers(
        told[: len(texts)], [[[k + 1] for k in range(5)]] * len(texts), [[k == 2 for k in range(5)]] * len(texts),
        [[1] * 5] * len(texts)))  # fmt: skip
    monkeypatch.setattr(
        "eval.sample.load_reward", lambda name: lambda prompts, completions, **c: [len(t.strip()) for t in completions]
    )
    main(words("sample", prompts, {"five": {"model": "stories260k", "best_of": 5, "reward": "known:sentiment"}}))
    assert [(r["response"], r["response_tokens"], r["found"]) for r in rows(prompts, "five")] == [(" aaa", [3], True)] * 6


def test_best_of_n_kl_by_integration() -> None:
    """The best of n has density n u^(n−1) in the rank u: KL = ∫ n u^(n−1) log(n u^(n−1)) du."""
    u = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    for n in (1, 4, 16, 64):
        density = n * u ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx(float((density * density.log()).nan_to_num().mean()), abs=1e-4)


def test_few_shot_prompt(tmp_path: Path) -> None:
    file = tmp_path / "demonstrations.jsonl"
    write_jsonl(file, [{"prompt": f"Post {i}.", "completion": f"  sum {i} "} for i in range(9)])
    task = Task(query_prefix="Text: ", query_suffix="\nTL;DR:")
    got = few_shot(task, str(file), 2, {"Post 0.", "Post 1."}, seed=1)
    shown = re.fullmatch(r"Text: Post (\d)\.\nTL;DR: sum (\d)\n\nText: Post (\d)\.\nTL;DR: sum (\d)\n\nText: ", got.query_prefix)
    assert shown
    assert shown[1] == shown[2] != shown[3] == shown[4]
    assert not {shown[1], shown[3]} & {"0", "1"}  # held out
    assert got == few_shot(task, str(file), 2, {"Post 0.", "Post 1."}, seed=1)
    assert len({few_shot(task, str(file), 2, set(), seed=s).query_prefix for s in range(8)}) > 4
    with pytest.raises(DataError, match="found 1 demonstrations whose prompts are not held out, expected at least shots = 2"):
        few_shot(task, str(file), 2, {f"Post {i}." for i in range(8)}, seed=1)
    write_jsonl(file, [{"prompt": [1], "completion": [2]}])
    with pytest.raises(DataError, match="found token ids or messages, expected texts"):
        few_shot(task, str(file), 1, set(), seed=1)


def test_few_shot_kl_is_from_the_zero_shot_reference(prompts: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"A dog {i}.", "completion": "Big dog."} for i in range(3)])
    policies = {"few": {"model": "stories260k", "demonstrations": str(tmp_path / "d.jsonl"), "shots": 2}}
    main(words("sample", prompts, policies))
    main(words("score", prompts, policies, "--reference", "stories260k"))
    assert all(r["scores"]["kl"] != 0 for r in rows(prompts, "few", "scores"))
    with pytest.raises(SystemExit):
        main(words("sample", prompts, {"few": {**policies["few"], "shots": 4}}))


def test_prompt_longer_than_the_model_reads(prompts: Path, refused: Callable[..., str]) -> None:
    write_jsonl(prompts, [{"id": "long", "prompt": "a cat " * 400}])
    error = refused(words("sample", prompts, {"zero-shot": "stories260k"}), main=main)
    assert re.search(r"policies.zero-shot: stories260k reads 512 tokens; found \d+ with the prompt of id 'long'", error)


# -------------------------------------------------------------------------------------------------------------- scores


def test_texts_under_the_reference_one_by_one(prompts: Path) -> None:
    """−Σ log p of each text after prompt and suffix, by an unpadded forward of its own; no KL for what was not sampled."""
    write_jsonl(prompts, [{**p, "other": " A cat" * (1 + 3 * i % 5)} for i, p in enumerate(POSTS)])  # of many lengths
    main(words("score", prompts, {"ref": "column:other", "lead": "lead-2"}, "--reference", "stories260k", "--precision", "32"))
    lm, task = load_lm("stories260k"), Task(query_suffix=" So:")
    resolved = task_tokens(task, lm.tokenizer)
    for r in rows(prompts, "ref", "scores") + rows(prompts, "lead", "scores"):
        query = [*resolved.prefix, *encode(lm.tokenizer, r["prompt"]), *resolved.suffix]
        said = encode_continuation(lm.tokenizer, r["response"])
        with torch.no_grad():
            logits = lm.model(torch.tensor([query + said])).logits[0, len(query) - 1 : -1]
        nll = -logits.log_softmax(-1)[range(len(said)), said].sum().item()
        assert r["scores"]["ref_nll"] == pytest.approx(nll, rel=1e-4)
        assert r["n_tokens"] == r["measures"]["tokens"] == len(said)
        assert r["measures"]["perplexity"] == pytest.approx(math.exp(nll / len(said)), rel=1e-4)
        assert "kl" not in r["scores"]


@pytest.fixture
def scored(prompts: Path, tmp_path: Path) -> list[str]:
    """A score command with every kind of batch: texts, a reward, the reference, the policy itself (asked otherwise)."""
    (tmp_path / "rewards.py").write_text("def score(prompts, completions, **more):\n    return [len(c) / 7 for c in completions]")
    write_jsonl(tmp_path / "d.jsonl", [{"prompt": f"A dog {i}.", "completion": "Big dog."} for i in range(3)])
    policies = {"few": {"model": "stories260k", "demonstrations": str(tmp_path / "d.jsonl"), "shots": 2}, "other": "column:other"}
    main(words("sample", prompts, policies))
    return words("score", prompts, policies, "--reference", "stories260k", "--known_reward", f"{tmp_path}/rewards.py:score")


def dying(monkeypatch: pytest.MonkeyPatch, at: int = 10**9) -> list[str]:
    """What was computed of scores, a batch an entry; the `at`-th is not, and stops the run."""
    done: list[str] = []
    monkeypatch.undo()
    monkeypatch.setattr(eval.score, "CHUNK", 4)
    for name in ("measure", "reward_values", "hidden_states"):
        real = getattr(eval.score, name)

        def called(*args: Any, name: str = name, real: Any = real) -> Any:
            if len(done) + 1 == at:
                raise KeyboardInterrupt
            done.append(name)
            return real(*args)

        monkeypatch.setattr(eval.score, name, called)
    return done


def test_interrupted_scores_go_on_and_end_the_same(prompts: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in any batch, that batch alone is scored again; the files are those of a run that was not killed."""
    out, files = prompts.parent / "out", ("scores/few.jsonl", "scores/other.jsonl", "scores.jsonl", "summary.json")
    whole = dying(monkeypatch)
    main(scored)
    assert whole == ["measure"] * 2 + ["reward_values"] * 2 + ["hidden_states"] * 4 + (
        ["measure"] * 2 + ["reward_values"] * 2 + ["hidden_states"] * 2
    )
    expected = [(out / file).read_bytes() for file in files]
    for at in range(1, len(whole) + 1):
        shutil.rmtree(out / "scores")
        before = dying(monkeypatch, at)
        with pytest.raises(SystemExit) as stopped:
            main(scored)
        assert stopped.value.code == 130
        after = dying(monkeypatch)
        main(scored)
        assert before + after == whole
        assert [(out / file).read_bytes() for file in files] == expected
        assert not list(out.glob("scores/*.part"))


@pytest.mark.parametrize("flags", [("--batch_size", "3"), ("--known_reward", "known:sentiment"), ("--task.query_suffix", " Oh:")])
def test_scores_of_other_options_are_not_taken(
    prompts: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """Neither what an interrupted run left nor, but for the batch size, what a whole one did."""
    out = prompts.parent / "out"
    dying(monkeypatch, 8)
    with pytest.raises(SystemExit):
        main(scored)
    assert (out / "scores/few.part").is_file()
    done = dying(monkeypatch)
    main([*scored, *flags])
    mine = (out / "scores.jsonl").read_bytes()
    assert len(done) >= 14
    shutil.rmtree(out / "scores")
    main([*scored, *flags])
    assert (out / "scores.jsonl").read_bytes() == mine
    done = dying(monkeypatch)
    main(scored)
    assert len(done) == (0 if "--batch_size" in flags else 14)


def test_a_text_too_long_for_models_is_cut_and_counted(prompts: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Path) -> None:
    for module in (eval.sample, eval.score):
        monkeypatch.setattr(module, "MOST_TOKENS", 20)
    write_jsonl(prompts, [{**POSTS[0], "other": " a cat" * 1000}, {**POSTS[1], "other": ""}])
    main(
        words("score", prompts, {"o": "column:other"}, "--reference", "stories260k", "--learned_reward", str(tiny_run / "reward"))
    )
    long, empty = rows(prompts, "o", "scores")
    assert (long["measures"]["cut"], long["n_tokens"], long["measures"]["words"]) == (1, 20, 2000)
    assert long["measures"]["tokens"] > 1000
    assert (empty["measures"]["cut"], empty["n_tokens"], empty["scores"]["ref_nll"]) == (0, 0, 0.0)
    assert empty["measures"]["perplexity"] is None


def test_columns_reach_rewards(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "def score(prompts, completions, weight, reference, **more):\n    return [2.0 * w for w in weight]\n"
    )
    command = words("score", prompts, {"reference": "reference"}, "--known_reward", f"{tmp_path}/heavy.py:score")
    main(command)
    assert [r["scores"]["known"] for r in rows(prompts, "reference", "scores")] == [0, 2, 4, 6, 8, 10]
    write_jsonl(prompts, [{**p, "weight": 1} for p in POSTS])  # the same samples, but another column
    main(command)
    assert [r["scores"]["known"] for r in rows(prompts, "reference", "scores")] == [2] * 6


def test_other_task(prompts: Path, tiny_run: Path, refused: Callable[..., str]) -> None:
    command = words(
        "score", prompts, {"reference": "reference"}, "--task.name", "tldr", "--learned_reward", str(tiny_run / "reward")
    )
    error = refused(command, main=main)
    assert "learned_reward: " in error
    assert "made for task 'sentiment', this run's task is 'tldr'; pass --allow_other_task true" in error
    main([*command, "--allow_other_task", "true"])
    assert all("learned" in r["scores"] for r in rows(prompts, "reference", "scores"))


def test_scores_want_samples_of_these_prompts(prompts: Path, refused: Callable[..., str]) -> None:
    policies = {"zero-shot": "stories260k"}
    assert "no samples of policy 'zero-shot'; run `python -m eval sample` first" in refused(
        words("score", prompts, policies), main=main
    )
    main(words("sample", prompts, policies))
    write_jsonl(prompts, [{**p, "prompt": "New."} for p in POSTS])
    assert "answers to other prompts than" in refused(words("score", prompts, policies), main=main)


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"model": "lead-3", "best_of": 4, "reward": "known:sentiment"}, "policies.x: found reward beside 'lead-3'"),
        ({"model": "stories260k", "best_of": 4}, "policies.x: found best_of 4 and reward None, expected both or neither"),
        ({"model": "stories260k", "reward": "known:sentiment"}, "found best_of 1 and reward 'known:sentiment'"),
        ({"model": "stories260k", "shots": 0}, "policies.x: found best_of 1, shots 0, expected at least 1"),
        ({"model": "m", "server": "localhost:80"}, "policies.x.server: found 'localhost:80', expected a URL"),
        (
            {"model": "m", "server": "http://x", "key_env": "NO_SUCH_KEY_"},
            "policies.x.key_env: the environment has no NO_SUCH_KEY_",
        ),
        ({"model": "stories260k", "best_of": 2, "reward": "known:nothing"}, "no such known reward"),
        ("nowhere/at/all", "model 'nowhere/at/all': no such directory or file"),
        ("nowhere.jsonl", "nowhere.jsonl:1: found no such file"),
        ("column:nothing", "field 'nothing': found nothing, expected a text for the policy 'column:nothing'"),
        ("column:weight", "field 'weight': found int, expected a text"),
    ],
)
def test_policies_that_cannot_be(policy: Any, message: str, prompts: Path, refused: Callable[..., str], no_models: None) -> None:
    assert message in refused(words("sample", prompts, {"zero-shot": "stories260k", "x": policy}), main=main)


def test_all_problems_in_one_message(prompts: Path, refused: Callable[..., str], no_models: None) -> None:
    policies = {"x": "nowhere/at/all", "y": {"model": "stories260k", "best_of": 4}}
    error = refused(words("sample", prompts, policies, "--second_draw", "nobody", "--reference", "nowhere/else"), main=main)
    for part in ("nowhere/at/all", "policies.y", "second_draw: found 'nobody'", "nowhere/else"):
        assert part in error


@pytest.mark.parametrize(
    ("records", "flags", "message"),
    [
        ([{"prompt": [1, 2]}], (), "field 'prompt': found token ids or messages, expected a text"),
        (
            [{"prompt": "a", "reference": [{"role": "user", "content": "x"}]}],
            (),
            "field 'reference': found token ids or messages",
        ),
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], (), "field 'id': '1' stands twice"),
        ([{"prompt": "a"}], ("--source_column", "post"), "id '0': field 'post': found nothing, expected a text"),
    ],
)
def test_prompts_that_cannot_be_used(
    records: list[dict[str, Any]], flags: tuple[str, ...], message: str, prompts: Path, refused: Callable[..., str]
) -> None:
    write_jsonl(prompts, records)
    assert message in refused(words("score", prompts, {"lead": "lead-1"}, *flags), main=main)


def test_nothing_to_evaluate(prompts: Path, refused: Callable[..., str]) -> None:
    assert "policies: found none" in refused(words("sample", prompts, {"x": None}), main=main)
    error = refused(["sample", "--output", str(prompts.parent), '--policies={"a": "lead-1"}'], main=main)
    assert "prompts: found null, expected a file of prompts, or samples" in error


def test_names_that_differ_in_case_or_punctuation_have_files_of_their_own(prompts: Path) -> None:
    main(words("sample", prompts, {"lead 1": "lead-1", "Lead-1": "lead-2", "x" * 300: "lead-3"}))
    files = sorted(f.name for f in (prompts.parent / "out/samples").glob("*.jsonl"))
    assert len(files) == 3 and len([f for f in files if f.startswith("lead-1-")]) == 2


@pytest.mark.parametrize(("option", "value"), [("limit", "0"), ("batch_size", "0"), ("precision", "17"), ("n_samples", "-1")])
def test_options_out_of_range(prompts: Path, refused: Callable[..., str], option: str, value: str) -> None:
    error = refused([*words("sample", prompts, {"lead-1": "lead-1"}), f"--{option}", value], main=main)
    assert f"{option}: found " in error


# ------------------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("step", STEPS)
def test_help_says_what_a_step_does(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([step, "--help"])
    assert stopped.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert STEPS[step].split(":")[0] in told
    for option in ("--policies", "--samples", "--source_column", "--allow_other_task", "lead-N", "column:NAME"):
        assert option in told


def test_bare_command_lists_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    told = capsys.readouterr().out
    assert all(f"{step:8} {what}" in told for step, what in STEPS.items())


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*/eval.yaml")), ids=lambda f: f.parent.name)
def test_each_config_can_be_judged(file: Path) -> None:
    options = vars(parse(["report", "-c", str(file)]))
    assert options["judge"] is None and options["known_reward"]  # by which pairs are then won
    assert {"zero-shot", "supervised", "rlhf"} <= options["policies"].keys()
    if file.parent.name in ("tldr", "cnndm"):
        assert {"lead-1", "lead-2", "lead-3", "reference", "random-sentence"} <= options["policies"].keys()


def test_the_baselines_overlay() -> None:
    files = ("-c", str(ROOT / "configs/tldr/eval.yaml"), "-c", str(ROOT / "runs/tldr_baselines.yaml"))
    options = vars(parse(["sample", *files, "--run_dir", "somewhere", "--policies.supervised", "a/b"]))
    assert options["policies"]["few-shot"] == Policy("smollm2", demonstrations="somewhere/demonstrations.jsonl", shots=2)
    assert options["policies"]["supervised"] == "a/b"
    assert options["prompts"] == "somewhere/prompts.jsonl"
    assert options["task"].name == "tldr"


def test_unknown_policy_option_is_refused(refused: Callable[..., str]) -> None:
    error = refused(["sample", "--output", "x", '--policies={"a": {"model": "m", "shotz": 1}}'], main=main)
    assert "shotz" in error


def test_prompts_that_are_left_out_are_told(tmp_path: Path) -> None:
    rows = [{"id": i, "prompt": "" if i == 3 else f"Once upon a time {i}"} for i in range(150)]
    write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.warns(UserWarning, match=r"p\.jsonl: of 150 records were left out: 1 empty prompt \(at 4\)"):
        assert len(eval.sample.held_out(str(tmp_path / "p.jsonl"), None, None).records) == 149
