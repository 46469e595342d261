"""One step of training, as a recipe asks for it: the same for teachers and students."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainers import parallel
from trainers.optimisation import ParameterGroups, TrainingRecipe


class Training:
    """Moves the parameters in `groups`, in `steps` steps, as `recipe` says.

    `network` is moved in place. `run` is what a step passes images through: the network, compiled
    where the recipe asks for it. `outcome` is the network that training is for: the moving average
    of its states where the recipe asks for one, else itself.
    """

    def __init__(
        self, network: nn.Module, groups: ParameterGroups, recipe: TrainingRecipe, steps: int
    ) -> None:
        self.network, self.recipe = network, recipe
        if recipe.channels_last:
            network.to(memory_format=torch.channels_last)
        self.run: nn.Module = network
        if recipe.compile:
            self.run = cast(nn.Module, torch.compile(network))
        self.optimizer = recipe.optimizer.over(groups)
        self.schedule = LambdaLR(self.optimizer, lambda step: recipe.schedule.factor(step, steps))
        self.device = next(network.parameters()).device
        # Gradients of 16 bits vanish below 6e-8, unless the loss is large (Micikevicius et al.,
        # ICLR 2018, arXiv 1710.03740); bfloat16 has the exponents of float32.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "float16")
        self.average: AveragedModel | None = None
        if recipe.ema_decay is not None:
            mean = get_ema_multi_avg_fn(recipe.ema_decay)
            # Statistics of batch norm belong to the weights that made them: averaged as well.
            self.average = AveragedModel(network, multi_avg_fn=mean, use_buffers=True)
            self.average.requires_grad_(False)

    @property
    def outcome(self) -> nn.Module:
        return self.network if self.average is None else self.average.module

    def step(self, count: int, loss_of: Callable[[parallel.Part], Float[Tensor, ""]]) -> None:
        """One step on a batch of `count` images; `loss_of` gives the mean over a part of them."""
        self.optimizer.zero_grad(set_to_none=True)
        for part in parallel.own_parts(count, self.recipe.accumulate):
            self.scaler.scale(loss_of(part) * part.share).backward()
        parallel.sum_gradients(self._moved())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def autocast(self) -> torch.autocast:
        """The context in which networks compute in the recipe's precision."""
        dtype = self.recipe.dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def placed(self, inputs: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """`inputs` with their channels last in memory where the recipe asks for it."""
        if not self.recipe.channels_last:
            return inputs
        return inputs.contiguous(memory_format=torch.channels_last)

    def agree(self) -> None:
        """Brings together what ranks have seen apart, at the end of an epoch."""
        parallel.agree(self.network, *([] if self.average is None else [self.average.module]))

    def state_dict(self) -> dict[str, Any]:
        """Everything that steps change, but for the network."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _moved(self) -> Iterable[nn.Parameter]:
        return (p for group in self.optimizer.param_groups for p in group["params"])
