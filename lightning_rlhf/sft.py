"""Supervised fine-tuning: demonstrations → a policy directory (the supervised baseline of Ziegler et al. 2019, §3).

The loss is the mean negative log-likelihood of the response's tokens, the prompt being given; no dropout.

    lightning-rlhf fit -c configs/sentiment/sft.yaml -c configs/sentiment/stories260k/sft.yaml
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from .blocks import blocks_of, checkpointed
from .data import SFTBatch
from .logprobs import head_logprobs
from .lora import LoRA, add_lora, lora_problems
from .models import find_policy, load_lm, position_problems, save_policy
from .optim import AdamTF, linear_anneal
from .stage import StageModule, is_finite
from .tasks import Task, told
from .trunks import SplitTrunk, hidden_states


class SFTModule(StageModule):
    """Fine-tunes a causal language model on demonstrations.

    Args:
        policy: Model to start from: embedded name, directory, GGUF file, checkpoint of sft or ppo, or Hub id.
        output: Directory of the trained policy.
        task: The task (set once, at the top of the config).
        optimizer: Class and arguments of the optimizer.
        trainable_layers: Train only so many top blocks; null: all parameters.
        lora: Train low-rank adapters alone; null: the weights themselves.
        gradient_checkpointing: Keep the blocks' inputs alone for the backward pass, and run them again there.
        seed: Of the data order.
        overwrite: Replace an existing output.
    """

    def __init__(
        self,
        policy: str,
        output: str,
        task: Task,
        optimizer: OptimizerCallable = lambda p: AdamTF(p, lr=1e-4),
        trainable_layers: int | None = None,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 1,
        overwrite: bool = False,
    ) -> None:
        options = {"policy": policy, "trainable_layers": trainable_layers, "lora": lora}
        super().__init__("sft", output, task, seed, overwrite, options)
        self.policy_name, self.optimizer, self.trainable_layers = policy, optimizer, trainable_layers
        self.lora, self.gradient_checkpointing = lora, gradient_checkpointing
        self.val_loss = MeanMetric()

    def check(self, data: Any, trainer: Any, resuming: bool) -> list[str]:
        """The base's, and that the model exists."""
        problems = super().check(data, trainer, resuming) + told(find_policy, self.policy_name)
        return problems + position_problems(self.policy_name, self.task) + lora_problems(self.lora, self.trainable_layers)

    def configure_model(self) -> None:
        """Load the model, once."""
        if hasattr(self, "policy"):
            return
        lm = load_lm(self.policy_name)
        self.policy, self.tokenizer = lm.model, lm.tokenizer
        if self.gradient_checkpointing:
            blocks_of(self.policy)  # told now
        if self.trainable_layers is not None:
            SplitTrunk(self.policy, self.trainable_layers)
        if self.lora is not None:
            add_lora(self.policy, self.lora, self.seed)
        self.shard(self.policy)

    def configure_optimizers(self) -> Any:
        """The chosen optimizer, its lr annealed linearly to 0."""
        optimizer = self.optimizer(self.trained_parameters())
        schedule = linear_anneal(optimizer, int(self.trainer.estimated_stepping_batches))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def loss(self, batch: SFTBatch) -> tuple[Tensor, Tensor]:
        """(mean negative log-likelihood of the response's tokens, their number)."""
        with checkpointed(self.policy, self.gradient_checkpointing):
            hidden = hidden_states(self.policy, batch.tokens, batch.mask)[:, :-1]
        target = batch.response[:, 1:]
        logprobs, _ = head_logprobs(self.policy, hidden[target], batch.tokens[:, 1:][target])  # (n,): the response's alone
        # a rank without a share of the last batch has no token
        return -(logprobs.mean() if logprobs.numel() else logprobs.sum()), target.sum()

    def training_step(self, batch: SFTBatch, batch_idx: int) -> Tensor:
        """One step of maximum likelihood."""
        loss, tokens = self.loss(batch)
        is_finite("train/loss", loss.detach(), batch_idx)
        self.log("train/loss", loss, prog_bar=True, batch_size=int(tokens))
        return loss * self.share(int(tokens), batch_idx)

    def validation_step(self, batch: SFTBatch, batch_idx: int) -> None:
        """Held-out negative log-likelihood a token."""
        loss, tokens = self.loss(batch)
        self.val_loss.update(loss, weight=tokens)
        self.log("val/loss", self.val_loss, prog_bar=True)  # not sync_dist: that halves an odd number of tokens to an integer

    def export(self) -> dict[str, Any]:
        """The policy's directory."""
        save_policy(self.output, self.policy, self.tokenizer, base=self.policy_name)
        return {k: float(v) for k, v in self.trainer.callback_metrics.items() if torch.is_tensor(v)}
