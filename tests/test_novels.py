"""The shipped excerpts, and the rules that cut them."""

import collections
import gzip
import importlib.util
import json
import types
from pathlib import Path

import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "lightning_rlhf/assets/novels"


@pytest.fixture(scope="module")
def records() -> list[dict[str, str]]:
    with gzip.open(FOLDER / "excerpts.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def cut() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("cut_novels", ROOT / "scripts/cut_novels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_count_spread_and_size(records: list[dict[str, str]]) -> None:
    assert len(records) >= 2_600
    assert len({record["text"] for record in records}) == len(records)
    assert all(record.keys() == {"text", "source"} for record in records)
    sources = collections.Counter(record["source"] for record in records)
    assert len(sources) == 33
    assert max(sources.values()) == 84
    assert sum(count == 84 for count in sources.values()) >= 31  # two short novels give fewer
    assert sum(len(record["text"]) for record in records) < 1_150_000
    assert (FOLDER / "excerpts.jsonl.gz").stat().st_size < 450_000
    assert f"{len(records):,} passages" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_every_passage_is_prose(records: list[dict[str, str]]) -> None:
    for record in records:
        text = record["text"]
        assert 320 <= len(text) <= 460, text
        assert text.count(".") >= 2, text
        assert text.isascii(), text  # so quotes are straight
        assert text.isprintable(), text  # one line
        assert text == " ".join(text.split()), text
        assert text.lstrip("\"'")[0].isupper(), text
        assert text[-1] in ".!?\"'", text
        assert "CHAPTER" not in text, text


def test_the_bytes_do_not_depend_on_the_time() -> None:
    assert (FOLDER / "excerpts.jsonl.gz").read_bytes()[4:8] == bytes(4)  # mtime in the gzip header


def test_distinct_queries_for_the_smallest_model(records: list[dict[str, str]]) -> None:
    """At least 2,500 distinct queries of up to 64 tokens, cut between full stops as in 2019."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "lightning_rlhf/assets/stories260k")
    stop = tokenizer("a.").input_ids[-1]
    queries = set()
    for ids in tokenizer([record["text"] for record in records], add_special_tokens=False).input_ids:
        after = ids[ids.index(stop) + 1 :][:64]
        if stop in after:
            queries.add(tuple(after[: len(after) - after[::-1].index(stop)]))
    assert len(queries) >= 2_500


def test_paragraphs_of_each_layout(cut: types.ModuleType) -> None:
    blank = "One line\nand a lazy-\nsick man.  Then more.\n\nAnother ‘one’.\n"
    assert cut.paragraphs(blank) == ["One line and a lazy-sick man. Then more.", "Another 'one'."]
    long = "A" * 300 + ".\n" + "B" * 300 + ".\n"
    assert [paragraph[0] for paragraph in cut.paragraphs(long)] == ["A", "B"]
    # No blank line: a short last line ends the paragraph.
    wrapped = ("x" * 69 + " \n") * 20 + "the end.\n" + ("y" * 69 + "\n") * 20
    assert [paragraph[0] for paragraph in cut.paragraphs(wrapped)] == ["x", "y"]


def test_sentences_keep_titles_and_initials(cut: types.ModuleType) -> None:
    text = 'Mr. Brown met J. S. Bach. "Good day!" "So it is." He left.'
    assert cut.sentences(text) == ["Mr. Brown met J. S. Bach.", '"Good day!"', '"So it is."', "He left."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He came. She left. They met.", True),
        ("He came. She left the house and met them", False),  # no end
        ("He came, and she left.", False),  # one full stop
        ("He came. " + "Then " + "on and " * 30 + "on.", False),  # the second too far off
        ("CHAPTER I. He came. She left.", False),
        ("He came in 1839. She left. They met.", False),
        ("he came. She left. They met.", False),
        ("He came  in. She left. They met.", False),
        ('"He came. She left. They met.', False),  # a quote that is never closed
        ("He came to the café. She left. They met.", False),
    ],
)
def test_usable(cut: types.ModuleType, text: str, expected: bool) -> None:
    assert cut.usable(text) is expected


def test_spread(cut: types.ModuleType) -> None:
    near, far = "A. " + "b" * 37 + ". C.", "A. B. C."  # gaps 39 and 3
    assert (cut.gap(near), cut.gap(far)) == (39, 3)
    assert cut.spread([far, near, near + " D.", far + " E."], 2) == [near, near + " D."]
    assert cut.spread([near, far], 5) == [near, far]
    assert cut.gap("Only one.") == float("inf")


def test_an_empty_folder_is_refused(
    cut: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["cut_novels.py", str(tmp_path)])
    with pytest.raises(ValueError, match=r"found no \*\.txt\.gz, expected novels"):
        cut.main()


def test_the_same_novels_give_the_same_bytes(
    cut: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = "The morning was cold and clear. He rose. " + "The road was long and nobody spoke of it. " * 7
    text = "CHAPTER I\n\n" + "\n\n".join(f"{name} saw it all. {story}" for name in ("Anna", "Ben", "Clara"))
    (tmp_path / "Author_Title_1900.txt.gz").write_bytes(gzip.compress(text.encode()))
    written = []
    for output in ("first", "second"):
        monkeypatch.setattr("sys.argv", ["cut_novels.py", str(tmp_path), "--output", str(tmp_path / output)])
        cut.main()
        written.append((tmp_path / output / "excerpts.jsonl.gz").read_bytes())
    assert written[0] == written[1]
    rows = [json.loads(line) for line in gzip.decompress(written[0]).splitlines()]
    assert [row["text"].split()[0] for row in rows] == ["Anna", "Ben", "Clara"]
    assert {row["source"] for row in rows} == {"Author_Title_1900"}
