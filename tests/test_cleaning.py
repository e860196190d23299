"""The cleaning rules of 2019, one at a time and together, on texts made up for them."""

import pytest

from lightning_rlhf.cleaning import clean_cnndm, clean_tldr, fix_encoding


def test_tldr() -> None:
    assert clean_tldr("  \n\nOne.\n\n\n\nTwo.\n\nThree.\n\n\n ") == "One.\n\nTwo.\n\nThree."
    assert clean_tldr("a\r\nb\r\n\r\n\r\nc") == "a\nb\n\nc"
    assert clean_tldr(" \n") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("By\nJane Doe\nIt rained.", "It rained."),  # its first two lines
        ("LONDON, England (CNN)  -- It rained.", "It rained."),
        ("It rained on (CNN) stars, a (CNN) -- and stopped.", "and stopped."),
        ("(CNN)It rained.", "It rained."),
        ("Rome (CNN) It rained.", "It rained."),
        ("x" * 100 + "(CNN) It rained.", "x" * 100 + "(CNN) It rained."),  # not in the first 100 characters
        ("x" * 95 + "(CNN) It rained.", "It rained."),  # its last character is the 100th
        ("x" * 96 + "(CNN) It rained.", "x" * 96 + "(CNN) It rained."),
        ("PUBLISHED: then UPDATED:\n10:42 EST, 5 May 2012\n\nIt rained in 2012.", "It rained in 2012."),
        ("and Joe\nIt rained.", "It rained."),
        ("and Joe Doe\nIt rained.", "and Joe Doe\nIt rained."),  # one word
        ("It rained.\nand Joe\nStopped.", "It rained.\nand Joe\nStopped."),  # leading alone
        ("By . Jane Doe . It rained.", "It rained."),  # an article of the Hub is one line
        ("By . Jane Doe . PUBLISHED: . 14:11 EST, 25 October 2013 . | . UPDATED: . 15:36 EST, 25 May 2013 . In 2012 it rained.",
         "In 2012 it rained."),
        ("Byron Bay, Australia (CNN) -- It rained.", "It rained."),
        ("‘Rain’, he said.", "'Rain', he said."),
        ("One.\n\n\n\nTwo.", "One.\n\nTwo."),
        ("It rained.\n\n@highlight\n\nRain\n\n@highlight\n\nMore rain", "It rained."),
        (" It rained. ", "It rained."),
    ],
)
def test_cnndm(text: str, expected: str) -> None:
    assert clean_cnndm(text) == expected


def test_cnndm_all_at_once() -> None:
    text = "By\nJane Doe\nUPDATED:\n10:42 EST, 5 May 2012\nIt ‘rained’.\n\n\n\nA lot.\n@highlight\nRain"
    assert clean_cnndm(text) == "It 'rained'.\n\nA lot."


def test_encoding_is_fixed() -> None:
    assert fix_encoding("e\u0301\r\n") == "\u00e9\n"
    assert clean_tldr("donâ€™t go to the cafÃ© ") == "don't go to the café"
