"""What a stage needs of memory, told before any weight is read: bytes by role and by phase.

The stage's own functions are run without data: parameters are built from the models' configs as fake tensors, which have a
shape and no content, and a dispatch mode counts the bytes of every storage that lives (`Meter`). Token ids and masks are
real, so that lengths, masks and packing are those of the longest prompts of the data. What PyTorch does not see is added in
closed form: the process itself, the files that a load maps, the buffer of a checkpoint, the copy of an export.

1. It is an estimate: within 25 % of the peak resident memory on a CPU (`benchmarks/estimate.py`). The allocator's rounding,
   threads' buffers and a reward function of your own are not in it. For a GPU the count is of the GPU's memory: what a load, a
   checkpoint and an export take stands in the host's.
2. Networks that may share frozen blocks are taken to share them: whether they are bit-equal is in the weights. A reward that
   trained all its weights shares none.
3. Under a sharding strategy (FSDP2) weights, gradients and the optimizer's state are those of one of so many devices, and the
   policy is whole while it samples: arithmetic on the roles, not a count.

    lightning-rlhf estimate -c configs/sentiment/ppo.yaml -c configs/sentiment/smollm2/ppo.yaml
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from . import generation, logprobs, memory, models, ppo, ppo_networks, scoring
from .data import Judged, PreferenceData, PromptData, policy_prompt
from .files import is_there
from .generation import Drawn
from .machine import available_memory, resident
from .meter import Meter, storage_bytes, tensors_of
from .models import config_of, is_reward, load_lm
from .objective import penalised
from .ppo import PPOModule
from .records import Prompt
from .reward import RewardModule
from .scalar import ScalarModel, load_scalar
from .scoring import LearnedReward, is_learned
from .sft import SFTModule
from .sharding import is_sharding
from .stage import StageModule
from .stage_data import StageData

ADD, DRAW, SAMPLE = memory.SharedWeights.add, generation.draw, generation.sample_with
SAMPLE_SIGNATURE = inspect.signature(SAMPLE)
ROLES = ("policy", "value", "reference", "reward", "gradients", "optimizer", "activations", "cache", "buffers", "process")
NETWORKS = ("policy", "value", "reference", "reward")
PHASES = ("load", "rollout", "scoring", "update", "checkpoint", "export")
STEPS = 2  # of sampling that are run; the cache of those left out is added
MB = 2**20
CONTEXT = 500 * MB  # of a process on a GPU
RUNTIME = 60 * MB  # threads, matrix libraries' buffers, the Trainer: what a process grows by before it trains anything
ROOM = 0.95  # of the available memory that a run may take by its estimate
ALLOW = "--allow_out_of_memory"


# ------------------------------------------------------------------------------------------------------------ result


@dataclass
class Estimate:
    """Bytes at the highest point of each phase, by role. `phases` has the phases that the stage goes through."""

    stage: str
    phases: dict[str, dict[str, int]]
    device: str  # cpu or cuda
    devices: int  # processes of one machine, that need as much each
    available: int  # bytes there are on the device
    notes: list[str] = field(default_factory=list)

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """Where most is needed."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes needed on one machine (CPU: all its processes) or card."""
        return self.total(self.peak_phase) * (self.devices if self.device == "cpu" else 1)

    @property
    def fits(self) -> bool:
        """Whether that is there, with a little room."""
        return self.peak <= ROOM * self.available

    def table(self) -> str:
        """MB by role (rows) and phase (columns)."""
        names = [p for p in PHASES if p in self.phases]
        head = f"{'MB':<12}" + "".join(f"{p:>12}" for p in names)
        rows = [head] + [f"{r:<12}" + "".join(f"{self.phases[p].get(r, 0) / MB:>12,.1f}" for p in names) for r in ROLES]
        rows.append(f"{'total':<12}" + "".join(f"{self.total(p) / MB:>12,.1f}" for p in names))
        many = f" ({self.devices} processes)" if self.devices > 1 else ""
        found, there = _mb(self.peak), _mb(self.available)
        rows.append(f"peak: {found} in {self.peak_phase}{many}; there are {there} ({self.device})")
        return "\n".join([*rows, *(f"note: {n}" for n in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data, in bytes."""
        more = {"peak": self.peak, "peak_phase": self.peak_phase, "fits": self.fits}
        return {**vars(self), "totals": {p: self.total(p) for p in self.phases}, **more}

    def refusal(self) -> str:
        """Why the run is refused, and what to change, the largest part first."""
        phase = self.phases[self.peak_phase]
        trained = phase.get("gradients", 0) + phase.get("optimizer", 0)
        frozen = sum(phase.get(r, 0) for r in NETWORKS)
        smaller = "model.micro_batch_size" if self.stage == "ppo" else "data.batch_size"
        if self.peak_phase == "rollout":
            smaller = "data.batch_size" if self.stage == "ppo" else "model.rollout_batch_size"
        passing = phase.get("activations", 0) + phase.get("cache", 0)
        again = ", model.gradient_checkpointing" if self.peak_phase == "update" else ""
        networks = {"ppo": "networks that share a trunk (model.value shared, model.lora), model.frozen_dtype bfloat16",
                    "reward": "model.num_hidden_layers"}.get(self.stage, "")  # fmt: skip
        advice = [
            (passing, "activations and cache", f"a smaller {smaller}, a shorter task.query_length or task.response_length, "
             f"trainer.precision bf16-mixed{again}"),
            (trained, "gradients and optimizer", "train less (model.trainable_layers or model.lora, where neither is on)"),
            (frozen, "weights", ", ".join(filter(None, ("a smaller lm", networks)))),
            (phase.get("buffers", 0), "files and copies", "a smaller lm, or train less of it"),
            (phase.get("process", 0), "the process itself", "a larger machine" if self.devices < 2 else "fewer trainer.devices"),
        ]  # fmt: skip
        advice = [one for one in sorted(advice, reverse=True) if one[0] > 0.05 * self.total(self.peak_phase)]
        parts = "; ".join(f"{what} {_mb(size)}: {change}" for size, what, change in advice)
        return (
            f"memory: found {_mb(self.available)} available ({self.device}), this run is estimated to need {_mb(self.peak)} in "
            f"{self.peak_phase}; what takes most: {parts} (`lightning-rlhf estimate` shows all; {ALLOW} true starts all the same)"
        )


def _mb(size: float) -> str:
    """Bytes in words."""
    return f"{size / MB:,.0f} MB"


# --------------------------------------------------------------------------------------------------------- a stage's run


class _NoReward:
    """Stands in for a reward function, which may load what it likes."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Numbers."""
        return [float(i % 2) for i in range(len(completions))]


class StageRun:
    """A stage's phases under the meter.

    Args:
        module, data, trainer: As `fit` would have them, before it loads anything.
    """

    def __init__(self, module: StageModule, data: StageData, trainer: Any) -> None:
        self.module, self.data, self.trainer = module, data, trainer
        self.notes: list[str] = []
        self.optimizer: Any = None
        self.cache_bytes = 0
        self.alike = False  # whether the network that is looked at may have the policy's frozen weights
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.meter = Meter(self.by_role)
        self.ranks = max(1, int(trainer.world_size))

    # what is told apart

    def by_role(self) -> dict[str, int]:
        """Bytes of parameters, gradients, optimizer state and cache that there are now."""
        seen: set[int] = set()
        found = {role: storage_bytes(tensors_of(parts), seen) for role, parts in self.networks().items()}
        found["policy"] = found.get("policy", 0) + storage_bytes(tensors_of([self.module]), seen)
        found["gradients"] = storage_bytes(p.grad for p in self.module.parameters())
        state = self.optimizer.state.values() if self.optimizer is not None else ()
        found["optimizer"] = storage_bytes(v for s in state for v in s.values() if isinstance(v, Tensor))
        found["cache"] = self.cache_bytes
        return found

    def networks(self) -> dict[str, list[Any]]:
        """The networks of each role that there are by now; one that has several roles counts for the first."""
        m = self.module
        if isinstance(m, RewardModule):
            return {"reward": [getattr(m, "scalar", None)], "policy": [lm.model for lm in getattr(m, "_reference", [])]}
        names = {
            "policy": ["policy"], "value": ["value_trunk", "value_head"], "reference": ["reference"],
            "reward": ["reward", "more_rewards", "held_out"],
        }  # fmt: skip
        return {role: [getattr(m, name, None) for name in some] for role, some in names.items()}

    @property
    def on_gpu(self) -> bool:
        """Whether the run's device is one."""
        return bool(self.trainer.strategy.root_device.type == "cuda")

    # what is put in place of what

    def patches(self) -> list[tuple[Any, str, Any]]:
        """(owner, name, what stands there meanwhile)."""
        found: list[tuple[Any, str, Any]] = [
            (generation, "draw", self._draw), (generation, "sample_with", self._sample), (ppo, "sample_with", self._sample),
            (ppo_networks, "load_reward", self._load_reward),
            (scoring, "load_scalar", self._load_scalar), (ppo_networks, "load_scalar", self._load_scalar),
            (models, "_check_head", lambda model, name: None),
            (models, "merge_start", lambda model, directory: model),  # as large, merged
            # what first runs under the meter would never be compiled
            (ppo_networks, "compiled", lambda network, on: nullcontext()),
            (logprobs, "compile_once", lambda function, dynamic: function),
        ]  # fmt: skip
        if self.on_gpu:
            rows_at_once = scoring.rows_at_once
            found.append((logprobs, "_rows_of_logits", lambda head: logprobs.rows_of_logits("cuda", head.weight.shape[0])))
            found.append((scoring, "rows_at_once", lambda device, *rest: rows_at_once("cuda", *rest)))
        add = lambda shared, model, adapter=None: self._add(shared, model, adapter)  # noqa: E731
        found += [(memory.SharedWeights, "add", add), (memory, "_equal", self._equal)]
        found.append((nn.Module, "to", lambda module, *args, **kwargs: module))  # fake parameters have no other place
        autos = (AutoModelForCausalLM, AutoModelForSequenceClassification)
        return found + [(auto, "from_pretrained", self._loader(auto)) for auto in autos]

    def _loader(self, auto: Any) -> Callable[..., Any]:
        """`from_pretrained` that builds a model from its config; the file's pages count while it is read."""

        def load(name: Any, *args: Any, gguf_file: str | None = None, dtype: Any = torch.float32, **kwargs: Any) -> Any:
            labels = {"num_labels": 1} if auto is AutoModelForSequenceClassification else {}
            config = AutoConfig.from_pretrained(name, **labels, **({"gguf_file": gguf_file} if gguf_file else {}))
            half = str(self.trainer.precision) == "bf16-true"
            model = auto.from_config(config, dtype=torch.bfloat16 if half else dtype).eval()
            with self.meter.during("load", buffers=storage_bytes(model.parameters())):
                return model

        return load

    def _add(self, shared: memory.SharedWeights, model: Any, adapter: Path | None = None) -> None:
        """As it is, once it is known whether the network may have the policy's frozen weights."""
        module: Any = self.module
        start = adapter and adapter.parent
        if start is None and model is getattr(module, "value_trunk", None) and is_reward(module.value_init or ""):
            start = Path(module.value_init)
        trained_whole = False
        if start is not None and is_reward(start):  # else it is not there yet, or no reward
            made = json.loads((start / "reward.json").read_text(encoding="utf-8"))
            trained_whole = made.get("trainable_layers") is None and not (adapter and adapter.is_dir())
        self.alike = (module.trainable_layers is not None or module.lora is not None) and not trained_whole
        self.alike = self.alike and not is_sharding(self.trainer.strategy)  # each network by itself
        ADD(shared, model, adapter)

    def _equal(self, one: Tensor, other: Tensor) -> bool:
        """Frozen weights of one shape are taken as equal where whole blocks are frozen, unless a reward trained them all."""
        return self.alike and one.shape == other.shape

    def _load_reward(self, name: str) -> Any:
        """A learned reward, fake; a function is not called."""
        if is_learned(name):
            return LearnedReward(name)
        self.notes.append(f"the reward function {name} was not called: what it takes is not counted")
        return _NoReward()

    def _load_scalar(self, directory: Any) -> Any:
        """A reward directory, fake; one that is not there yet is taken to have the policy's shape."""
        if is_reward(directory):
            return load_scalar(directory)
        self.notes.append(f"{directory} is not there yet: taken to have the shape of {self.module.policy_name}")  # type: ignore[attr-defined]
        lm = load_lm(self.module.policy_name)  # type: ignore[attr-defined, arg-type]
        width = lm.model.get_input_embeddings().weight.shape[1]
        return ScalarModel(lm.model.base_model, width, std=0.0), lm.tokenizer, {}

    def _draw(self, probabilities: Tensor, uniform: Tensor) -> Tensor:
        """The real one's memory, and a token that ends nothing."""
        DRAW(probabilities, uniform)
        return torch.full((len(probabilities), 1), self.filler)

    def _sample(self, *args: Any, **kwargs: Any) -> Drawn:
        """A few steps of the real one; the cache of those left out is added. What comes after it is scoring."""
        given = SAMPLE_SIGNATURE.bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        length, rows = options["length"], len(options["tokens"]) * options["num_samples"]
        token_bytes = rows * cache_bytes(options["model"].config, 2 if torch.is_autocast_enabled("cpu") else 4)
        options.update(length=min(length, STEPS), stop=(), compiled=False)  # a function traced here would never be compiled again
        with self.meter.during("rollout", cache=token_bytes * (length - options["length"])):
            self.cache_bytes = token_bytes * (options["tokens"].shape[1] + options["length"])
            drawn = SAMPLE(*given.args, **given.kwargs)
            self.cache_bytes = 0
        more = length - options["length"]
        tokens = torch.cat([drawn.tokens, drawn.tokens.new_full((rows, more), self.filler)], 1)
        drawn_logprobs = torch.cat([drawn.logprobs, drawn.logprobs.new_zeros((rows, more))], 1)
        inputs = None if drawn.inputs is None else torch.cat([drawn.inputs, drawn.inputs[:, :1].expand(-1, more, -1)], 1)
        return Drawn(tokens, drawn_logprobs, inputs)

    # the batch

    def batch(self) -> Any:
        """One rank's share of a batch of the longest records; without a file, of records as long as the task allows."""
        data: Any = self.data
        task = self.module.task
        missing = [path for split, path in data.files.items() if path and split.startswith("train") and not is_there(path)]
        resolved = data.prepare_tokens()
        special = {*data.tokenizer.all_special_ids, resolved.truncate}
        self.filler = next(i for i in range(len(data.tokenizer)) if i not in special)
        if missing:
            self.notes.append(f"{', '.join(missing)}: not there yet, prompts of task.query_length are assumed")
            query, response = [self.filler] * task.query_length, [self.filler] * task.response_length
            made = {
                PromptData: (Prompt("", None, {}), query), PreferenceData: Judged(query, [response] * 4, best=0),
            }.get(type(data), (policy_prompt(query, resolved), response))  # fmt: skip
            data.items = {"train": [made] * data.batch_size, "val": []}
        else:
            data.setup()
        items = sorted(data.items["train"], key=_length, reverse=True)
        rows = max(1, data.batch_size // self.ranks)
        if isinstance(data, PromptData):
            items = (items * -(-rows // len(items)))[:rows]
        return data.collate(items[:rows])

    # the phases

    def run(self) -> Estimate:
        """Go through them."""
        process, available = resident() + RUNTIME, available_memory() + resident()
        batch = self.batch()
        with ExitStack() as stack:
            for owner, name, value in self.patches():
                stack.enter_context(patch.object(owner, name, value))
            with self.fake, self.meter:
                self.module.configure_model()
            self._attach()
            with self.meter:
                phases = {PPOModule: self._ppo, RewardModule: self._reward, SFTModule: self._sft}
                next(go for kind, go in phases.items() if isinstance(self.module, kind))(batch)
                self._after()
        device, phases_there = self.trainer.strategy.root_device.type, list(PHASES)
        if self.on_gpu:
            self.notes.append(f"the GPU's context is taken as {_mb(CONTEXT)}")
            process, available = CONTEXT, torch.cuda.get_device_properties(0).total_memory
            phases_there = [p for p in PHASES if p not in ("load", "checkpoint", "export")]
        found = {p: {**self.meter.roles[p], "process": process} for p in phases_there if p in self.meter.roles}
        if is_sharding(self.trainer.strategy):
            self.notes.append(f"weights, gradients and optimizer are divided by the {self.ranks} devices (ModelParallelStrategy)")
            found = {phase: divided(roles, self.ranks, gathered=phase == "rollout") for phase, roles in found.items()}
        here = max(1, int(self.trainer.num_devices))
        return Estimate(self.module.stage, found, device, here, available, list(dict.fromkeys(self.notes)))

    def _attach(self) -> None:
        """As much of a Trainer as the phases touch."""
        m: Any = self.module
        m._trainer = SimpleNamespace(world_size=1, global_rank=0, datamodule=self.data)
        self.optimizer = m.optimizer(p for p in m.parameters() if p.requires_grad)
        m.optimizers = lambda: self.optimizer
        m.manual_backward = lambda loss: loss.backward()

    def _autocast(self) -> Any:
        """What a training step runs under."""
        half = "mixed" in str(self.trainer.precision)
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    def _ppo(self, batch: Any) -> None:
        """An iteration whose minibatch is one micro-batch."""
        m: Any = self.module
        with self._autocast():
            with self.meter.during("scoring"):
                rollout = m.rollout(batch, seed=1)
            with self.meter.during("update"):
                rows = max(1, len(rollout.scores) // m.num_mini_batches)
                micro = m.micro_batch_size or rows
                rewards = penalised(rollout.scores, rollout.logprobs - rollout.ref_logprobs, rollout.real, kl_coef=0.1)
                advantages, returns = m.advantages(rewards, rollout.values, rollout.real)
                m.step(rollout, advantages, returns, torch.arange(min(rows, micro)))
        del rollout, rewards, advantages, returns
        self._later_steps("rollout", "scoring", gradients=("update",) if rows > micro else ())

    def _reward(self, batch: Any) -> None:
        """Normalisation over the reference's samples, without mixed precision, and a step."""
        m: Any = self.module
        if m.normalise_by == "reference_policy":
            m.normalise_samples = m.rollout_batch_size  # one batch of them takes as much as many
            with torch.no_grad(), self.meter.during("scoring"):
                m.reference_samples = m.sample_reference()
                m.normalise("before training")
        m._reference.clear()
        self._step(lambda: m.loss(batch)[0])
        if m.normalise_by == "reference_policy":
            self._later_steps("scoring")

    def _sft(self, batch: Any) -> None:
        """A step."""
        m: Any = self.module
        self._step(lambda: m.loss(batch)[0])

    def _step(self, loss: Callable[[], Tensor]) -> None:
        """As Lightning does it."""
        with self.meter.during("update"):
            with self._autocast():
                found = loss()
            found.backward()
            self.optimizer.step()
        del found
        self._later_steps()

    def _later_steps(self, *phases: str, gradients: Sequence[str] = ()) -> None:
        """The first step makes the optimizer's state: later ones, and these phases, stand beside it and the last gradients."""
        now, roles = self.by_role(), self.meter.roles
        for phase in {*phases, "update"} & set(roles):
            roles[phase]["optimizer"] = now["optimizer"]
        for phase in {*phases, *gradients} & set(roles):
            roles[phase]["gradients"] = now["gradients"]

    def _after(self) -> None:
        """A checkpoint is first written into memory; an export copies the network, and its file's bytes."""
        m: Any = self.module
        now = self.by_role()
        trained = storage_bytes(p for p in m.parameters() if p.requires_grad)
        network = m.scalar.trunk if isinstance(m, RewardModule) else m.policy
        size = storage_bytes(tensors_of([network]))
        with self.meter.during("checkpoint", buffers=int(1.125 * (trained + now["optimizer"]))):  # a buffer that grows has spare
            pass
        with self.meter.during("export", buffers=2 * size):
            pass


def divided(roles: dict[str, int], devices: int, gathered: bool) -> dict[str, int]:
    """Bytes by role on one of the devices that networks are sharded over; `gathered`: the policy stands whole besides."""
    each = {role: -(-size // devices) if role in (*NETWORKS, "gradients", "optimizer") else size for role, size in roles.items()}
    each["policy"] = each.get("policy", 0) + (roles.get("policy", 0) if gathered and devices > 1 else 0)
    return each


def cache_bytes(config: Any, element: int) -> int:
    """Bytes of the keys and values of one token in all layers."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width * element


def _length(item: Any) -> int:
    """Tokens of a record."""
    if isinstance(item, Judged):
        return len(item.query) + sum(map(len, item.responses))
    return len(item[1]) + (len(item[0]) if isinstance(item[0], list) else 0)


def estimate(module: StageModule, data: StageData, trainer: Any) -> Estimate:
    """What a stage needs of memory. The module is used up: its networks are fake afterwards.

    Args:
        module, data, trainer: As `fit` would have them, before it loads anything.

    Raises:
        UsageError: A model is not there.
    """
    with torch.random.fork_rng(devices=[]):
        return StageRun(module, data, trainer).run()


def bound(module: StageModule, data: StageData) -> int:
    """A generous bound of a stage's bytes, in a moment: what is far below the memory there is needs no count.

    Every network whole and trained, float32; every activation of the largest of them kept, for as many tokens as texts have
    characters.
    """
    m: Any = module
    names = [m.policy_name, *(getattr(m, option, None) for option in ("reference_name", "value_init"))]
    rewards = [*(part.reward for part in getattr(m, "parts", [])), getattr(m, "held_out_reward", None) or "known:"]
    names += [reward for reward in rewards if is_learned(reward)]
    if any(str(name).endswith(".gguf") for name in names):
        return sys.maxsize  # its file would have to be read
    configs = [config_of(name) for name in filter(None, names)]
    weights = token = heads = 0
    for c in configs:
        width, layers = c.hidden_size, c.num_hidden_layers
        inner = 3 * (getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * width)
        weights += layers * width * (4 * width + inner) + 2 * c.vocab_size * width
        token = max(token, layers * (16 * width + 2 * inner) + 8 * c.vocab_size)
        heads = max(heads, layers * getattr(c, "num_attention_heads", 1) * 3)
    task, responses = m.task, 4 if isinstance(m, RewardModule) else 1
    length = task.query_length + responses * max(task.response_length, _longest(data)) + 32
    rows = max(data.batch_size, getattr(m, "rollout_batch_size", 0))
    return 4 * (7 * weights + rows * length * (token + heads * length)) + 2**30


def _longest(data: StageData) -> int:
    """Characters (or ids) of the longest response in the records that were read."""
    longest = 0
    for _, record in data.records.get("train", []):
        texts = getattr(record, "responses", None) or [getattr(record, "completion", "")]
        longest = max(longest, *(len(t) for t in texts))
    return longest


def memory_problem(module: StageModule, data: StageData, trainer: Any) -> str | None:
    """Why a run cannot fit into memory, in words; None where it can. Nothing of the run's own is touched."""
    cuda = trainer.strategy.root_device.type == "cuda"
    there = torch.cuda.get_device_properties(0).total_memory if cuda else available_memory()
    if bound(module, data) * (1 if cuda else max(1, trainer.num_devices)) < there / 2:
        return None
    try:
        found = estimate(copy.deepcopy(module), copy.copy(data), trainer)
    except Exception as error:  # a model that cannot be run without content must not be kept from running
        rank_zero_warn(f"memory could not be estimated ({type(error).__name__}: {str(error).splitlines()[:1]}); the run starts")
        return None
    return None if found.fits else found.refusal()
