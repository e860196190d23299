"""Cleaning of posts and articles before a query is cut, by the rules of 2019 (arXiv 1909.08593, its published data code).

A deviation: the Hub's articles are one line each, of which the by-line's rule would leave nothing and the stamp's could take
all: there the by-line is `By . NAME .`, and a stamp ends with its first year. Encoding is fixed by `ftfy`, as in 2019.
"""

from __future__ import annotations

import re

_AGENCY = re.compile(r"\(CNN\) +--")
_UPDATED = re.compile(r"UPDATED:\s+\d\d:\d\d.*20\d\d")  # the year is the last one on the stamp's line
_JOINED_BY = re.compile(r"\ABy \. .{1,100}? \. (?=[A-Z])")
_JOINED_UPDATED = re.compile(r"UPDATED:[\s.]+\d\d:\d\d.{0,40}?20\d\d(?: \.)?")
_AND_LINE = re.compile(r"\Aand \w+\n")


def fix_encoding(text: str) -> str:
    """Undo wrong decoding ("donâ€™t"); line ends, quotes and composed characters in one form."""
    from ftfy import fix_text  # where it is needed: its tables take a while

    return str(fix_text(text))


def clean_tldr(text: str) -> str:
    """A Reddit post or its summary: encoding, three or more newlines to two, no space at the ends."""
    return re.sub(r"\n{3,}", "\n\n", fix_encoding(text)).strip()


def clean_cnndm(text: str) -> str:
    """A CNN or Daily Mail article, with or without its `@highlight` sections, which go."""
    one_line = "\n" not in text.strip()
    if one_line:
        text = _JOINED_BY.sub("", text)
    elif text.startswith("By"):  # a by-line: the word and the name, a line each
        text = "\n".join(text.split("\n")[2:])
    text = _AGENCY.split(text)[-1]
    at = text.rfind("(CNN)", 0, 100)
    text = text[at + len("(CNN)") :] if at >= 0 else text
    text = (_JOINED_UPDATED if one_line else _UPDATED).split(text)[-1]
    text = _AND_LINE.sub("", text).replace("‘", "'").replace("’", "'")
    return re.sub(r"\n{3,}", "\n\n", fix_encoding(text.strip())).split("@highlight")[0].strip()
