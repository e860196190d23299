"""Networks too large for one device: FSDP2 (`fully_shard`) under Lightning's `ModelParallelStrategy`.

Each network is sharded over all devices, block by block: a block's weights are gathered for its forward and its backward pass
and let go after it, its gradients are averaged and scattered. What is small and has no blocks (scalar heads, gain and bias)
stands whole on each device, and its gradients are averaged here. For sampling a network is gathered once, not at each token, so
that ranks may also take different numbers of steps there.

    lightning-rlhf fit -c configs/sentiment/ppo.yaml -c configs/hardware/fsdp2.yaml
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from .blocks import blocks_of
from .lora import replace_module
from .tasks import UsageError


def is_sharding(strategy: Any) -> bool:
    """Whether a Trainer's strategy is the one for sharded networks, and for checkpoints that are folders of their parts."""
    return isinstance(strategy, ModelParallelStrategy)


def sharding_problems(strategy: Any, devices: int) -> list[str]:
    """What of a Trainer's strategy cannot work here, in words.

    Args:
        strategy: The Trainer's.
        devices: Over all nodes.
    """
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        name = type(strategy).__name__
        return [f"trainer.strategy: found {name}, expected ModelParallelStrategy (configs/hardware/fsdp2.yaml) to shard networks"]
    if not is_sharding(strategy):
        return []
    problems = []
    found = (strategy._data_parallel_size, strategy._tensor_parallel_size)
    if found != (devices, 1):
        problems.append(
            f"trainer.strategy: found data_parallel_size {found[0]} and tensor_parallel_size {found[1]}, expected {devices} and "
            "1: networks are sharded over all devices"
        )
    return problems


# --------------------------------------------------------------------------------------------------------------- sharding


def shard(network: Any, mesh: DeviceMesh) -> None:
    """Shard a network's parameters over a mesh, in place, block by block; frozen ones too.

    Args:
        network: A language model, whose base model and head are run apart, or a trunk.
        mesh: One dimension.
    """
    try:
        blocks = blocks_of(network)
    except UsageError:  # one unit then
        blocks = []
    network.skeleton = [_skeleton(network)]  # in a list, so that it is no submodule
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    if network.base_model is not network:
        network.within = _call
        register_fsdp_forward_method(network, "within")


def _call(function: Callable[..., Any], *args: Any) -> Any:
    """What `logprobs.within` runs as a part of a sharded model's forward."""
    return function(*args)


def _skeleton(network: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes alone."""
    return copy.deepcopy(network, {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in network.parameters()})


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Weights stay gathered after the first forward pass, until the end; every rank must make one. Nothing where not sharded."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def whole(network: Any) -> nn.Module | None:
    """A sharded network as a plain one on the CPU of the first rank, None on the others; all ranks must call it."""
    first = distributed.get_rank() == 0
    parameters: dict[str, nn.Parameter] = {}
    for name, p in network.named_parameters():
        full = (p.full_tensor() if isinstance(p, DTensor) else p).detach()
        if first:
            parameters[name] = nn.Parameter(full.cpu(), p.requires_grad)
    if not first:
        return None
    (skeleton,) = network.skeleton
    return copy.deepcopy(skeleton, {id(p): parameters[name] for name, p in skeleton.named_parameters()})  # type: ignore[no-any-return]


@contextmanager
def whole_networks(stage: nn.Module) -> Iterator[None]:
    """For an export: networks that train stand whole in the stage on the first rank; all ranks must take part."""
    sharded = [
        (name, m) for name, m in stage.named_modules() if hasattr(m, "skeleton") and any(p.requires_grad for p in m.parameters())
    ]
    plain = [whole(network) for _, network in sharded]
    for (name, _), network in zip(sharded, plain, strict=True):
        if network is not None:
            replace_module(stage, name, network)
    try:
        yield
    finally:
        for name, network in sharded:
            replace_module(stage, name, network)


# --------------------------------------------------------------------------------------------------------------- gradients


def parameter_groups(parameters: Iterable[nn.Parameter]) -> list[Any]:
    """Parameters for an optimizer: sharded ones and others in groups of their own, because no operation takes a list of both."""
    every = list(parameters)
    groups = [[p for p in every if isinstance(p, DTensor)], [p for p in every if not isinstance(p, DTensor)]]
    return [{"params": group} for group in groups if group] if groups[0] else every


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean over the ranks of the gradients that `fully_shard` does not average: those of parameters that stand whole."""
    for p in parameters:
        if p.grad is not None and not isinstance(p.grad, DTensor):
            distributed.all_reduce(p.grad)
            p.grad /= distributed.get_world_size()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """2-norm of all gradients, (), the same on each rank."""
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in _kinds(parameters)]
    full = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return full[0] if len(full) == 1 else torch.stack(full).norm()


def clip_gradients(parameters: Iterable[nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale all gradients so that their norm is at most `most`, in place; `norm` is that of now."""
    for group in _kinds(parameters):
        nn.utils.clip_grads_with_norm_(group, most, norm)


def _kinds(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Sharded parameters with a gradient, and others."""
    every = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in every if isinstance(p.grad, DTensor)], [p for p in every if not isinstance(p.grad, DTensor)]]
    return [kind for kind in kinds if kind]
