"""What can stand under `policies:`: a model, a server, anyone's samples, and the baselines that a policy must beat.

    policies:
      reference: reference              # the prompts' own reference
      lead-3: lead-3                    # the first three sentences of the source
      random-sentence: random-sentence  # one sentence of the source, by the seed
      ppo 1.3b: column:ppo_1.3b         # a column of the prompts' file
      theirs: other/samples.jsonl       # samples of anyone's, or a folder of them
      zero-shot: smollm2                # a model, with the task's own prompt (Ziegler et al. 2019)
      rlhf at 20: out/20.ckpt           # a checkpoint of the stage sft or ppo; a copy, because a run replaces its own
      few-shot: {model: smollm2, demonstrations: demonstrations.jsonl, shots: 3}
      best-of-16: {model: smollm2, best_of: 16, reward: out/run/reward}
      api: {server: "http://localhost:8000/v1", model: name, key_env: OPENAI_API_KEY}

No model is loaded here.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.copying import sentences
from eval.server import Server
from lightning_rlhf.files import DataError, bad, kind_of
from lightning_rlhf.models import find_policy
from lightning_rlhf.records import Demonstration, Prompt, read_demonstrations
from lightning_rlhf.scoring import find_reward
from lightning_rlhf.tasks import Task, UsageError

LEAD = re.compile(r"lead-([1-9][0-9]*)")
RECORDS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Policy:
    """One of the texts' makers; a plain string in a config is its `model`.

    Args:
        model: Embedded name, directory, GGUF file, Hub id or checkpoint of the stage sft or ppo; or `reference`, `lead-N`,
            `random-sentence`, `column:NAME`; or a file or folder of samples; or, with `server`, that server's name for it.
        server: URL of an OpenAI-compatible completion server, up to and with `/v1`; null: none.
        key_env: Environment variable that holds the server's key; null: it wants none.
        demonstrations: JSON lines of demonstrations that stand before each prompt (few-shot); null: none.
        shots: So many of them, drawn by the seed, the same for all prompts.
        best_of: Sample so many and keep the one that `reward` scores highest.
        reward: Reward directory, `known:NAME` or `module:function`; null: none.
    """

    model: str
    server: str | None = None
    key_env: str | None = None
    demonstrations: str | None = None
    shots: int = 3
    best_of: int = 1
    reward: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether its texts are made from the prompts' file alone."""
        named = self.model in ("reference", "random-sentence") or self.model.startswith("column:")
        return self.server is None and (named or bool(LEAD.fullmatch(self.model)))

    @property
    def is_samples(self) -> bool:
        """Whether its texts are on disk: a file of records, or a folder of them that is no model's."""
        path = Path(self.model)
        no_model = path.is_dir() and not any((path / f).is_file() for f in ("config.json", "adapter_config.json"))
        folder = no_model and any(kind_of(f.name) in RECORDS for f in path.iterdir())
        return self.server is None and not self.is_text and (kind_of(self.model) in RECORDS or folder)

    @property
    def is_local(self) -> bool:
        """Whether it is a model that is loaded here."""
        return self.server is None and not self.is_text and not self.is_samples

    def api(self, timeout: float) -> Server:
        """The server, with its key; `timeout`: seconds a try."""
        assert self.server is not None
        return Server(self.server, self.model, os.environ.get(self.key_env) if self.key_env else None, timeout)


def as_policies(given: Mapping[str, str | Policy | None]) -> dict[str, Policy]:
    """The policies of a config; one that is null is left out."""
    return {name: p if isinstance(p, Policy) else Policy(p) for name, p in given.items() if p is not None}


def policy_problems(policies: Mapping[str, Policy], task: str, allow_other_task: bool) -> list[str]:
    """Everything that is wrong with policies and can be told without loading a model, in words."""
    found = []
    for name, policy in policies.items():
        at = f"policies.{name}"
        given = [k for k in ("demonstrations", "reward", "key_env") if getattr(policy, k) is not None]
        if (policy.is_text or policy.is_samples) and (given or policy.best_of != 1):
            found.append(f"{at}: found {', '.join(given) or 'best_of'} beside {policy.model!r}, expected a model or a server")
        if policy.best_of < 1 or policy.shots < 1:
            found.append(f"{at}: found best_of {policy.best_of}, shots {policy.shots}, expected at least 1")
        if (policy.best_of > 1) != (policy.reward is not None):
            found.append(f"{at}: found best_of {policy.best_of} and reward {policy.reward!r}, expected both or neither")
        if policy.server is not None and not policy.server.startswith(("http://", "https://")):
            found.append(f"{at}.server: found {policy.server!r}, expected a URL that begins with http:// or https://")
        if policy.key_env is not None and not os.environ.get(policy.key_env):
            found.append(f"{at}.key_env: the environment has no {policy.key_env}")
        try:
            if policy.is_local:
                find_policy(policy.model)
            if policy.reward is not None:
                find_reward(policy.reward, task, allow_other_task, f"{at}.reward", "--allow_other_task")
        except UsageError as error:
            found.append(str(error))
    return found


def text_of(model: str, id_: str, record: Prompt, source: str, where: str, seed: int) -> str:
    """What a baseline that needs no model answers to one prompt.

    Sentences begin with a space, as what a model writes after a prompt does; a column stands as it is in the file.

    Args:
        model: `reference`, `column:NAME`, `lead-N` or `random-sentence`.
        id_, record: The prompt.
        source: The text that sentences are taken from; without a sentence the answer is empty.
        where: The prompts' file, for messages.
        seed: Of the random sentence; with the prompt's id it decides, whatever the other prompts are.

    Raises:
        DataError: The prompt has no such column, or no text in it.
    """
    if model == "reference" or model.startswith("column:"):
        name = model.removeprefix("column:")
        value: Any = record.reference if name == "reference" else record.meta.get(name)
        if name == "reference" and isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, str):
            found = "nothing" if value is None else type(value).__name__
            raise bad(f"{where}: id {id_!r}", name, found, f"a text for the policy {model!r} (null leaves a policy out)")
        return value
    told = sentences(source)
    if not told:
        return ""
    lead = LEAD.fullmatch(model)
    return " " + (" ".join(told[: int(lead[1])]) if lead else random.Random(f"{seed} {id_}").choice(told))


def few_shot(task: Task, path: str, shots: int, held_out: Collection[Any], seed: int) -> Task:
    """The task with demonstrations before each prompt, each in the form that the prompt itself has.

    Args:
        task: Its affixes frame prompt and completion.
        path: JSON lines of demonstrations; those whose prompt is held out are not used.
        shots: How many.
        held_out: The prompts that will be answered.
        seed: Of the choice.

    Raises:
        DataError: Too few demonstrations, or one that is no text.
    """
    found: list[Demonstration] = list(read_demonstrations(path))
    if not all(isinstance(text, str) for d in found for text in (d.prompt, d.completion)):
        raise DataError(f"{path}: found token ids or messages, expected texts")
    usable = [d for d in found if d.prompt not in held_out]
    if len(usable) < shots:
        raise bad(path, None, f"{len(usable)} demonstrations whose prompts are not held out", f"at least shots = {shots}")
    chosen = random.Random(seed).sample(usable, shots)
    shown = [f"{task.query_prefix}{d.prompt}{task.query_suffix} {str(d.completion).strip()}\n\n" for d in chosen]
    return replace(task, query_prefix="".join(shown) + task.query_prefix)
