"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685) through peft: W x + (alpha / r) B A x, W frozen, B = 0 at first.

The adapters stand inside the model, whose own forward, cache and embeddings stay as they are; switched off, the model is
the one that training started from, bit for bit, which is how PPO gets its reference without a second copy. An export has
them merged into plain weights, W + (alpha / r) B A, and keeps them beside that in peft's own format (`adapter/`).

No dropout: the first minibatch's ratio must be 1, and a resume stores no random state.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .blocks import blocks_of
from .tasks import UsageError

NAME = "default"  # peft's name of the one adapter
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters.

    Args:
        r: Rank of the adapters.
        alpha: Their output is scaled by alpha / r.
        target_modules: `all-linear`: every linear layer but the output embedding; null: peft's choice for the family; or the
            layers' names, such as [q_proj, v_proj].
        top_blocks: They are on so many of the top blocks alone; null: on all.
    """

    r: int = 16
    alpha: float = 32.0
    target_modules: str | list[str] | None = "all-linear"
    top_blocks: int | None = None


def lora_problems(lora: LoRA | None, trainable_layers: int | None) -> list[str]:
    """What is wrong with the options, in words."""
    if lora is None:
        return []
    problems = []
    if lora.r < 1:
        problems.append(f"model.lora.r: found {lora.r}, expected at least 1")
    if not lora.alpha > 0:
        problems.append(f"model.lora.alpha: found {lora.alpha}, expected above 0")
    if lora.top_blocks is not None and (lora.top_blocks < 1 or lora.target_modules is None):
        found = f"{lora.top_blocks} with model.lora.target_modules {lora.target_modules}"
        problems.append(f"model.lora.top_blocks: found {found}, expected at least 1, and names of layers or all-linear")
    if lora.target_modules == []:
        problems.append("model.lora.target_modules: found an empty list, expected names of layers, all-linear or null")
    if trainable_layers is not None:
        problems.append(
            f"model.lora, model.trainable_layers: found both, and they say different things of what trains (adapters; "
            f"{trainable_layers} whole blocks); expected one of them to be null"
        )
    return problems


def add_lora(model: Any, lora: LoRA, seed: int) -> None:
    """Put adapters on a language model or a trunk, in place: they alone train. A seed and a shape give the same A.

    Raises:
        UsageError: The model has no such layers, or they are its embeddings, whose weights may be tied, or stacked experts.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    gpt2 = any(isinstance(module, Conv1D) for module in model.modules())  # weights are (in, out)
    linear = (nn.Linear, Conv1D)
    target = lora.target_modules if lora.top_blocks is None else _in_top_blocks(model, lora, linear)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=target, lora_dropout=0.0, fan_in_fan_out=gpt2,  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise UsageError(f"model.lora.target_modules: {error}") from None
    layers = lora_layers(model)
    names = [name for name, _ in layers]
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    wrong = [f"the embedding {name!r}" for name, layer in layers if layer in embeddings]
    wrong += [f"{name!r}, no linear layer" for name, layer in layers if not isinstance(layer.get_base_layer(), linear)]
    if wrong or not names:
        found = wrong[0] if wrong else "no layer of that name"
        expected = "expected linear layers between the embeddings"
        raise UsageError(f"model.lora.target_modules: {lora.target_modules} is {found}, {expected}")
    each = [] if isinstance(lora.target_modules, str) else lora.target_modules or []
    if missing := [t for t in each if not any(_is_called(name, t) for name in names)]:
        raise UsageError(f"model.lora.target_modules: found {missing}, which no layer is called, among {list(each)}")
    for name, p in model.named_parameters():
        p.requires_grad_(".lora_" in name)
    model.eval()  # modules that are new start in training mode


def _is_called(name: str, asked: str) -> bool:
    """Whether a layer has that name, or one that ends so (`q_proj`)."""
    return f".{name}".endswith(f".{asked}")


def _in_top_blocks(model: Any, lora: LoRA, kinds: tuple[type, ...]) -> list[str]:
    """Names of the layers that `target_modules` means, of the top blocks alone."""
    blocks, most, asked = blocks_of(model), lora.top_blocks or 0, lora.target_modules
    if most > len(blocks):
        raise UsageError(f"model.lora.top_blocks: found {most}, expected at most the {len(blocks)} blocks that there are")
    within = {module for block in blocks[-most:] for module in block.modules()}
    names = [name for name, module in model.named_modules() if module in within and isinstance(module, kinds)]
    if isinstance(asked, list):
        return [name for name in names if any(_is_called(name, one) for one in asked)]
    return names if asked == "all-linear" else [name for name in names if re.fullmatch(str(asked), name)]


def lora_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """(name, layer) of every layer with adapters."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model without its adapters: their layers compute W x alone, so bit-equal to the model from before `add_lora`.

    peft's own switch also turns `requires_grad` of the adapters off and on, which a strategy that holds them must not see.
    """
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


# ------------------------------------------------------------------------------------------------------ merge and save


def merge_adapters(model: Any) -> Any:
    """Merge what peft put into a model, in place, into plain weights; returns the model.

    Embeddings that share a weight, of which an adapter changes one, have two then.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    if len(ends) == 2 and any(isinstance(module, BaseTunerLayer) for module in ends):
        given, found = (getattr(module, "base_layer", module) for module in ends)
        if given.weight is found.weight:
            found.weight = nn.Parameter(found.weight.detach().clone())
    replaced: list[str] = []
    for name, module in list(model.named_modules()):
        if any(name.startswith(f"{wrapper}.") for wrapper in replaced):
            continue
        if hasattr(module, "unload_and_optionally_merge_module"):  # a layer that was trained whole
            plain = module.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        elif isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            plain = module.get_base_layer()
        else:
            continue
        replace_module(model, name, plain)
        replaced.append(name)
    _forget_peft(model)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    if None not in ends and model.config.tie_word_embeddings:  # else a resize would tie again what is two weights now
        model.config.tie_word_embeddings = ends[0].weight is ends[1].weight
    return model


def plain_copy(model: Any) -> Any:
    """A copy for an export, in float32 on the CPU, its adapters merged. A float32 weight on the CPU is not copied but shared."""
    own = {id(p): nn.Parameter(p.detach().to("cpu", torch.float32), requires_grad=False) for p in model.parameters()}
    copied = copy.deepcopy(model, dict(own)).float().cpu()
    for name, layer in lora_layers(copied):
        plain = layer.get_base_layer()
        a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        weight = merged_weight(plain.weight, a, b, layer.scaling[NAME], layer.fan_in_fan_out)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        replace_module(copied, name, plain)
    _forget_peft(copied)
    return copied.eval()


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of that name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _forget_peft(model: Any) -> None:
    """Take off peft's marks, or `save_pretrained` would write an adapter alone."""
    if hasattr(model, "peft_config"):
        del model.peft_config
    if getattr(model, "_hf_peft_config_loaded", False):
        model._hf_peft_config_loaded = False


def save_adapter(directory: Path, trunk: Any, base: str) -> None:
    """Write a trunk's adapters, if it has any, as peft does: for `PeftModel.from_pretrained(language model, directory)`.

    Args:
        directory: Made.
        trunk: A base model (without LM head) that `add_lora` changed, itself or with its head.
        base: Name of the model that they belong on.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    layers = lora_layers(trunk)
    if not layers:
        return
    weights = {}
    for name, layer in layers:
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)[NAME].weight.detach().float().cpu().contiguous()
            weights[f"base_model.model.{trunk.base_model_prefix}.{name}.{part}.weight"] = weight
    first = layers[0][1]
    config = LoraConfig(
        r=first.r[NAME], lora_alpha=first.lora_alpha[NAME], lora_dropout=0.0, task_type="CAUSAL_LM", inference_mode=True,
        target_modules=sorted(f"{trunk.base_model_prefix}.{name}" for name, _ in layers), base_model_name_or_path=base,
        fan_in_fan_out=first.fan_in_fan_out,
    )  # fmt: skip
    directory.mkdir()
    config.save_pretrained(str(directory))
    save_file(weights, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def is_adapter(name: str) -> bool:
    """Whether a directory has an adapter, alone or beside a whole model."""
    return (Path(name) / CONFIG_FILE).is_file()


# ------------------------------------------------------------------------------------------------------------- loading


def adapter_base(directory: str) -> str | None:
    """The model that a directory's or Hub repository's adapter belongs on; itself where it holds a whole model; None: no adapter.

    Raises:
        UsageError: The adapter does not name one.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    file = find_adapter_config_file(directory)
    if file is None:
        return None
    if (Path(file).parent / "config.json").is_file():  # a whole model with an adapter on it, as transformers understands it
        return directory
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base or Path(base).resolve() == Path(directory).resolve():
        raise UsageError(f"model {directory!r}: its {CONFIG_FILE} has base_model_name_or_path {base!r}, expected a model's name")
    return str(base)


@contextmanager
def without_adapter(name: str) -> Iterator[str]:
    """A whole model with an adapter on it → a directory of the model alone.

    transformers would put the adapter on, and its weights' names into what `save_pretrained` writes later.
    """
    whole = Path(name)
    if not whole.is_dir():
        from huggingface_hub import snapshot_download

        whole = Path(snapshot_download(name))
    with tempfile.TemporaryDirectory() as folder:
        for file in whole.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(folder) / file.name).symlink_to(file.resolve())
        yield folder


def merge_start(model: Any, directory: str) -> Any:
    """Merge the adapter of a directory into the model it belongs on.

    Raises:
        UsageError: It cannot be merged, or some of its weights have no place in the model.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        model = PeftModel.from_pretrained(model, directory).base_model.model
        placed = {_bare(key) for key in get_peft_model_state_dict(model, adapter_name=NAME)}
        lost = sorted({_bare(key) for key in load_peft_weights(directory, device="cpu")} - placed)
        if lost:
            raise UsageError(
                f"model {directory!r}: {len(lost)} weights of its adapter have no place in the model, such as {lost[0]}"
            )
        return merge_adapters(model).requires_grad_(True)
    except UsageError:
        raise
    except (ValueError, AttributeError, KeyError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"model {directory!r}: its adapter cannot be merged into the model ({first})") from None


def _bare(key: str) -> str:
    """A weight's name without peft's prefix."""
    return key.removeprefix("base_model.model.")


# ----------------------------------------------------------------------------------------------- adapters on one trunk


class MergedLinear(nn.Module):
    """A linear layer W + (alpha / r) B A on another network's W, merged anew in each forward: W is in memory once.

    Bit-equal to the layer that an export merged. Only one layer's merged weight exists at a time.

    Args:
        plain: The merged layer; its W is let go.
        weight: W, another network's frozen parameter.
        lora_a, lora_b: A (r, in), B (out, r).
        scaling: alpha / r.
        transposed: W is (in, out), as GPT-2's.
    """

    def __init__(
        self, plain: nn.Module, weight: nn.Parameter, lora_a: Tensor, lora_b: Tensor, scaling: float, transposed: bool
    ) -> None:
        super().__init__()
        self.plain, self.scaling, self.transposed = plain, scaling, transposed
        self.plain.weight = weight
        self.lora_a, self.lora_b = (nn.Parameter(x, requires_grad=False) for x in (lora_a, lora_b))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = merged_weight(self.plain.weight, self.lora_a, self.lora_b, self.scaling, self.transposed)  # type: ignore[arg-type]
        return torch.func.functional_call(self.plain, {"weight": weight}, (x,))  # type: ignore[no-any-return]


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, transposed: bool) -> Tensor:
    """W + (alpha / r) B A: (out, in), or (in, out) where transposed.

    In float64, rounded once: every device gets the same bits, but for a tie in ten million.
    """
    delta = (lora_b.detach().double() @ lora_a.detach().double()).mul_(scaling)
    return (delta.T if transposed else delta).add(weight.detach()).to(weight.dtype)


def read_weights(file: Path) -> dict[str, Tensor]:
    """A file of weights; in an estimate they are read all the same, and then as fake as the others."""
    from safetensors.torch import load_file

    with _disable_current_modes():
        found = load_file(file)
    return {name: weight.clone() for name, weight in found.items()}


def read_adapter(directory: Path, prefix: str) -> dict[str, tuple[Tensor, Tensor, float, bool]]:
    """What `save_adapter` wrote: {layer's name in the trunk: (A, B, alpha / r, transposed)}; nothing where there is none."""
    if not (directory / WEIGHTS_FILE).is_file():
        return {}
    if not (directory / CONFIG_FILE).is_file():
        raise UsageError(f"{directory}: found {WEIGHTS_FILE} without {CONFIG_FILE}, expected both")
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    weights = {_bare(k).removeprefix(f"{prefix}."): v for k, v in read_weights(directory / WEIGHTS_FILE).items()}
    names = [k.removesuffix(".lora_A.weight") for k in weights if k.endswith(".lora_A.weight")]
    scaling, transposed = config["lora_alpha"] / config["r"], bool(config["fan_in_fan_out"])
    return {n: (weights[f"{n}.lora_A.weight"], weights[f"{n}.lora_B.weight"], scaling, transposed) for n in names}
