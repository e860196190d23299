"""A local causal LM that is asked which of two responses is better: one prefill for what a batch of questions has in common."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from lightning_rlhf import tokens
from lightning_rlhf.logprobs import logits_of
from lightning_rlhf.models import device_of, fingerprint, load_on_device, run_context
from lightning_rlhf.tasks import UsageError
from lightning_rlhf.trunks import hidden_states

WORTH = 32  # tokens in common that are read apart from the rest


class LocalModel:
    """A causal LM's answer: of "A" and "B" the one that it gives the larger probability ("TIE" where they are equal).

    The question goes through the tokenizer's chat template where there is one. A question that is longer than the model's context
    has no answer. Questions that follow one another are read together, `batch_size` at most, those about one prompt in one batch;
    what all of a batch begin with, prompt and all, is read once.
    """

    def __init__(self, name: str, batch_size: int = 8, precision: str = "32") -> None:
        self.batch_size, self.precision, self.lm = batch_size, precision, load_on_device(name)
        self.identity = f"lm {fingerprint(name)} {precision}"
        self.seconds: dict[str, float] = {}
        tokenizer = self.lm.tokenizer
        self.chat = bool(getattr(tokenizer, "chat_template", None))
        self.head = [] if self.chat else tokens.bos_ids(tokenizer)
        a, b = (tokens.encode_continuation(tokenizer, text if self.chat else f" {text}") for text in "AB")
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if shared is None:
            raise UsageError(f"judge lm:{name}: its tokenizer gives A {a} and B {b}, expected ids that differ")
        self.shared, self.first = a[:shared], (a[shared], b[shared])

    def __call__(self, questions: Sequence[str]) -> Iterator[str | None]:
        """As `eval.judges.Answers`."""
        longest = getattr(self.lm.model.config, "max_position_embeddings", math.inf)
        rows = [self._encode(q) for q in questions]
        first = 0
        while first < len(rows):
            began, count = time.perf_counter(), self._together(rows[first : first + self.batch_size])
            batch = rows[first : first + count]
            fit = [r for r in batch if len(r) <= longest]
            given = iter(self._logits(fit)[:, list(self.first)].tolist() if fit else ())
            took = round((time.perf_counter() - began) / count, 3)
            self.seconds.update(dict.fromkeys(questions[first : first + count], took))
            first += count
            for row in batch:
                if len(row) > longest:
                    yield None
                    continue
                a, b = next(given)
                yield "A" if a > b else "B" if b > a else "TIE"

    def _together(self, rows: Sequence[Sequence[int]]) -> int:
        """How many of the first rows are about one prompt; all where the first two are not."""
        alike = [len(_common([rows[0], row])) >= len(rows[0]) / 2 for row in rows]
        return alike.index(False) if len(alike) > 1 and alike[1] and False in alike else len(rows)

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The next token's logits after each row: n rows of ids → (n, V) float32."""
        model, common = self.lm.model, _common([row[:-1] for row in rows])  # each row has a last token of its own
        device = device_of(model)
        with run_context(self.precision, model):
            cache: Any = None
            if len(rows) > 1 and len(common) >= WORTH:
                cache = model.base_model(input_ids=torch.tensor([common], device=device), use_cache=True).get("past_key_values")
            if not hasattr(cache, "batch_repeat_interleave"):  # a model without a cache, or with one of its own
                ids, mask = (x.to(device) for x in tokens.pad_batch(rows, self.lm.pad_id, "left"))
                return logits_of(model, hidden_states(model, ids, mask)[:, -1]).float()
            cache.batch_repeat_interleave(len(rows))
            rest = [row[len(common) :] for row in rows]
            ids, mask = (x.to(device) for x in tokens.pad_batch(rest, self.lm.pad_id, "right"))
            whole = torch.cat([mask.new_ones((len(rows), len(common))), mask], 1)
            places = torch.arange(len(common), whole.shape[1], device=device).expand(len(rows), -1)
            out = model.base_model(input_ids=ids, attention_mask=whole.long(), position_ids=places, past_key_values=cache)
            last = out.last_hidden_state[torch.arange(len(rows), device=device), mask.sum(1) - 1]
            return logits_of(model, last).float()

    def _encode(self, question: str) -> list[int]:
        """Token ids up to where the answer's first letter stands."""
        text = f"{question}\n\nBetter response:"
        if self.chat:
            messages = [{"role": "user", "content": question}]
            text = self.lm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return [*self.head, *tokens.encode(self.lm.tokenizer, text), *self.shared]


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))]
