"""Conversations as a model reads them: messages rendered with its tokenizer's chat template.

A prompt is rendered up to where the assistant's answer begins, an answer is what the template puts there, up to the token that
ends it. That token belongs to a demonstration, which teaches the policy to stop; a reward model never sees it, as in PPO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from .records import Comparison, DataError, Demonstration, Prompt, kind
from .tokens import bos_ids

Record = TypeVar("Record", Comparison, Demonstration, Prompt)


def texts_of(record: Comparison | Demonstration | Prompt) -> Iterator[tuple[str, Any]]:
    """(field, text) of what a record has to be read."""
    yield "prompt", record.prompt
    if isinstance(record, Demonstration):
        yield "completion", record.completion
    if isinstance(record, Comparison):
        yield from (("responses", response) for response in record.responses)


def first_in_messages(record: Comparison | Demonstration | Prompt) -> str | None:
    """The first field in messages, None where there is none."""
    return next((field for field, text in texts_of(record) if kind(text) == "messages"), None)


def need_template(tokenizer: Any, where: str) -> None:
    """Raise DataError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            f"{where}: found messages, and the tokenizer {tokenizer.name_or_path!r} has no chat template; expected a text, token "
            "ids, or a model with a template"
        )


def rendered(record: Record, tokenizer: Any, where: str) -> Record:
    """A record with texts in place of messages; one without messages as it is.

    Args:
        record: Its prompt in messages; its answers in messages, or the texts of the assistant's next one.
        tokenizer: Whose chat template is used.
        where: The record, for errors.

    Raises:
        DataError: There is no template, it refuses the messages, or it renders what stands before the answer in another way
            once there is an answer.
    """
    field = first_in_messages(record)
    if field is None:
        return record
    if field != "prompt":
        raise DataError(f"{where}: field {field!r}: found messages after a prompt that is none, expected a text or token ids")
    need_template(tokenizer, f"{where}: field 'prompt'")
    prompt = _template(tokenizer, record.prompt, where, begin_answer=True)
    end = tokenizer.eos_token or ""

    def answer(text: Any) -> str:
        """What the template puts after the prompt, and before the end token."""
        turns: list[Any] = text if kind(text) == "messages" else [{"role": "assistant", "content": text}]
        whole = _template(tokenizer, [*record.prompt, *turns], where, begin_answer=False)
        if not whole.startswith(prompt):
            raise DataError(f"{where}: the chat template renders {prompt[-40:]!r} in another way where an answer follows")
        found = whole[len(prompt) :]
        return found.rpartition(end)[0] if end and end in found else found

    told = prompt
    if bos_ids(tokenizer) and tokenizer.bos_token:  # it is put there with the ids
        told = prompt.removeprefix(tokenizer.bos_token)
    changed: dict[str, Any] = {"prompt": told}
    if isinstance(record, Demonstration):
        changed["completion"] = answer(record.completion) + end
    if isinstance(record, Comparison):
        changed["responses"] = [answer(response) for response in record.responses]
    return replace(record, **changed)


def _template(tokenizer: Any, messages: Any, where: str, begin_answer: bool) -> str:
    """Messages as one text; whatever a template raises is a DataError."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=begin_answer))
    except Exception as error:  # jinja2's, or a KeyError of the template's own
        raise DataError(f"{where}: the chat template refuses the messages: {error}") from None
