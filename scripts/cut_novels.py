"""Cut short passages out of public-domain novels: the texts that queries of the style tasks are made from.

    python scripts/cut_novels.py FOLDER [--output lightning_rlhf/assets/novels]

FOLDER holds novels as `Author_Title_Year.txt.gz`; source: computationalstylistics/100_english_novels. Writes
`excerpts.jsonl.gz`, an object `{"text", "source"}` a line, and a README. No randomness and no time stamp: the
same novels give the same bytes.

1. Lines are joined into paragraphs: at blank lines, at every line (files of one paragraph a line), or after
   short last lines (wrapped files without blank lines). Single line breaks become spaces.
2. Passages of whole sentences within one paragraph, 320 to 460 characters, in order and without overlap.
3. Those that are no running prose, or give no query, are dropped: see `usable`.
4. The same number from every novel (fewer where it has fewer), evenly spread from its first page to its last.
"""

import argparse
import gzip
import io
import itertools
import json
import math
import re
from pathlib import Path

SHORTEST, LONGEST = 320, 460  # characters of a passage
PER_NOVEL = 84  # passages; novels are visited in order of file name
NEAR = 110  # a second full stop at most this many characters after the first, so that 64 tokens contain one
WISHED = 40  # characters between the two, as far as there is a choice, so that often 32 tokens do

SENTENCE_END = re.compile(r"""(?<=[.!?])(["']*)\s+(?=["']?[A-Z])""")
TITLES = "Mr|Mrs|Ms|Dr|St|Esq|Rev|Hon|Capt|Col|Gen|Lt|Sgt|Prof|No|Vol|Mme|Mlle"
ABBREVIATION = re.compile(rf"\b(?:{TITLES}|[A-Z])\.$")
NOT_PROSE = re.compile(
    r"""[^ -~]          # only ASCII: what is not, is mostly wrongly decoded in the source
    | [_*\[\]{}|<>=^\\`\#@~/\d]
    | \s[.,;:!?](?!\.)  # traces of removed brackets and the like
    | \s\s
    | \b[A-Z]{2,}\b     # headings, shouting, Roman numerals
    | \b(?:Chapter|Book|Volume|Part)\b
    | [.,]{2,}
    """,
    re.VERBOSE,
)
QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "\u00a0": " "})

README = """\
# Excerpts from novels

`excerpts.jsonl.gz`: {count:,} passages of {shortest} to {longest} characters, {per_novel} from each of
{novels} English novels of 1839 to 1930 (fewer from the shortest), spread evenly over each book, one JSON
object `{{"text", "source"}}` a line, `source` being author, title and year. Cut by `scripts/cut_novels.py`
from [computationalstylistics/100_english_novels](https://github.com/computationalstylistics/100_english_novels).
The texts are in the public domain. Every passage is whole sentences of running prose from one paragraph, in
plain ASCII (quotes are straight, ' and "), on one line, with single spaces. They reflect the language and the
views of their time.
"""


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a novel, one string each, single spaces; headings are still among them."""
    lines = [line.strip() for line in text.translate(QUOTES).replace("\f", "\n\n").splitlines()]
    filled = sorted(len(line) for line in lines if line)
    blank = 1 - len(filled) / len(lines)
    long_lines = filled[int(0.95 * len(filled))] > 200  # one paragraph a line
    out: list[list[str]] = [[]]
    for line in lines:
        if not line:
            out.append([])
            continue
        out[-1].append(line)
        last = blank < 0.05 and len(line) < 0.85 * filled[len(filled) // 2] and line[-1] in ".!?\"'"
        if long_lines or last:
            out.append([])
    joined = []
    for part in out:
        whole = "\n".join(part)
        whole = re.sub(r"(?<=\w-)\n(?=\w)", "", whole).replace("\n", " ")  # a word broken at its hyphen
        # Double spaces elsewhere stay: they are traces of what was removed, and `usable` refuses them.
        joined.append(re.sub(r"(?<=[.!?:;,\"'])\s+", " ", whole))
    return [paragraph for paragraph in joined if paragraph]


def sentences(paragraph: str) -> list[str]:
    """Split after . ! ? (and closing quotes) before a capital, but not after titles and initials."""
    out, start = [], 0
    for match in SENTENCE_END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph[start : match.start()]):
            out.append(paragraph[start : match.end(1)])
            start = match.end()
    return [*out, paragraph[start:]]


def usable(passage: str) -> bool:
    """Whether a passage is running prose with two full stops that a query can be cut between."""
    if NOT_PROSE.search(passage) or passage.count('"') % 2 or passage[-1] not in ".!?\"'":
        return False
    if not re.match(r"[\"']?[A-Z]", passage):
        return False
    return gap(passage) <= NEAR


def gap(passage: str) -> float:
    """Characters from the first full stop before a space or the end to the second; infinite without two."""
    stops = [match.start() for match in re.finditer(r"\.(?= |$)", passage)]
    return stops[1] - stops[0] if len(stops) >= 2 else math.inf


def passages(text: str) -> list[str]:
    """All usable passages of a novel, in order, without overlap."""
    out = []
    for paragraph in paragraphs(text):
        parts, first = sentences(paragraph), 0
        while first < len(parts):
            end, passage = first, ""
            while end < len(parts) and len(passage) < SHORTEST:
                passage = f"{passage} {parts[end]}".strip()
                end += 1
            good = SHORTEST <= len(passage) <= LONGEST and usable(passage)
            if good:
                out.append(passage)
            first = end if good else first + 1
    return list(dict.fromkeys(out))


def spread(items: list[str], count: int) -> list[str]:
    """At most `count` items: of each of as many equal stretches the one whose gap is nearest to `WISHED`."""
    count = min(count, len(items))
    edges = [i * len(items) // count for i in range(count + 1)]
    return [
        min(items[start:end], key=lambda passage: abs(gap(passage) - WISHED))
        for start, end in itertools.pairwise(edges)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with novels as Author_Title_Year.txt.gz")
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--output", type=Path, default=root / "lightning_rlhf/assets/novels")
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.txt.gz"))
    if not files:
        raise ValueError(f"{args.folder}: found no *.txt.gz, expected novels")
    records = []
    for file in files:
        source = file.name.removesuffix(".txt.gz")
        found = passages(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace"))
        chosen = spread(found, PER_NOVEL)
        print(f"{source:28} {len(chosen):>4} of {len(found)}")
        records += [{"text": text, "source": source} for text in chosen]
    raw = "".join(json.dumps(record) + "\n" for record in records).encode()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream:
        stream.write(raw)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "excerpts.jsonl.gz").write_bytes(packed.getvalue())
    lengths = [len(record["text"]) for record in records]
    readme = README.format(
        count=len(records),
        shortest=min(lengths),
        longest=max(lengths),
        per_novel=PER_NOVEL,
        novels=len(files),
    )
    (args.output / "README.md").write_text(readme, encoding="utf-8")
    print(f"{len(records):,} passages, {len(raw):,} bytes, {len(packed.getvalue()):,} compressed")


if __name__ == "__main__":
    main()
