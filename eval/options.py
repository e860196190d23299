"""The options of every step: one config serves them all."""

from __future__ import annotations

from dataclasses import dataclass

from eval.baselines import Policy
from eval.server import TIMEOUT
from lightning_rlhf.tasks import Task


@dataclass(frozen=True)
class Options:
    """Policies on held-out prompts.

    Args:
        run_dir: Folder of the whole run; its stages' run.json files are the report's provenance.
        lm: The language model; configs refer to it as ${lm}.
        task: The task.
        output: Folder of samples, scores and report.
        prompts: JSON lines of held-out prompts, `{id?, prompt, reference?, …}`; null: those of `samples`.
        policies: Name in the report → embedded name, directory, GGUF file, checkpoint of sft or ppo, Hub id, file or folder of
            samples, `reference`, `lead-N`, `random-sentence` or `column:NAME`; or a block with `model` and `server`,
            `demonstrations` or `best_of`; null: left out.
        samples: File or folder of samples {id, prompt, response, policy?, reference?, …}; each policy in it (without one, the
            file's name) is evaluated beside `policies`; null: none.
        source_column: Column of the prompts' file with the text that responses are about; null: the prompt.
        reference: Model that KL and perplexity are taken under; null: neither.
        learned_reward: Reward directory; null: no learned score.
        known_reward: `known:NAME` or `module:function`; null: no known score.
        allow_other_task: Use rewards that were made for another task all the same.
        use_stemmer: ROUGE compares the Porter stems of words.
        judge: Who decides the pairs in the report: a score or measure (known, learned, one that the samples have, rouge1, rouge2,
            rougeL, …), or a judge of `judges`' kinds; null: the known reward, else the learned one, else the samples' own score,
            else rougeL.
        judges: Judges of the compare step: a score's or measure's name, verdicts:FILE, reward:DIR (a reward directory of the
            reward stage), lm:NAME, server:MODEL@URL; null: `judge` alone.
        baselines: Policies that the others are compared with, and whose win rates the report shows first; null: each with each.
        differences: Of a win rate from ½, such as 0.03: the prompts that telling it would need (80 % power); beside 0.05, 0.1.
        main_policy: Policy that the report's headline, warnings and plots are about; null: rlhf, or the last one.
        comparisons: Held-out comparisons on which the learned reward is checked beside the labeler; null: not checked.
        ensemble: Further reward directories, of other seeds: what they and `learned_reward` say of `comparisons` together.
        logs: Folder of the stages' metrics.csv files, for learning curves; null: none.
        more_logs: Name in the report → the logs folder of another run, whose PPO stands beside this one's on the frontier.
        second_draw: Policy that is sampled a second time, as a check that it ties with itself; null: none.
        limit: Use so many prompts; null: all.
        n_samples: Prompts of the browser that are shown at first.
        n_browse: Prompts that the report's browser holds.
        hide: Ids of prompts that it leaves out, such as what may not be published; every figure is of all prompts.
        redraws: Times that a response whose end is not there (`task.truncate_text`) is drawn anew, of every policy that is
            sampled (2019, for what people are shown: until it is); 0: never.
        batch_size: Prompts at a time; questions, of a local judge.
        server_timeout: Seconds that a server, of a policy or a judge, may take to answer before it is asked again.
        precision: `32`, `bf16`, or `auto`: bf16 where the hardware is fast at it.
        seed: Of the sampling.
    """

    run_dir: str
    lm: str
    task: Task
    output: str
    prompts: str | None = None
    policies: dict[str, str | Policy | None] | None = None
    samples: str | None = None
    source_column: str | None = None
    reference: str | None = None
    learned_reward: str | None = None
    known_reward: str | None = None
    allow_other_task: bool = False
    use_stemmer: bool = True
    judge: str | None = None
    judges: list[str] | None = None
    baselines: list[str] | None = None
    differences: list[float] | None = None
    main_policy: str | None = None
    comparisons: str | None = None
    ensemble: list[str] | None = None
    logs: str | None = None
    more_logs: dict[str, str] | None = None
    second_draw: str | None = None
    limit: int | None = None
    n_samples: int = 10
    n_browse: int = 500
    hide: list[str] | None = None
    redraws: int = 0
    batch_size: int = 64
    server_timeout: float = TIMEOUT
    precision: str = "auto"
    seed: int = 1
