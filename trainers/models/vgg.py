"""VGG with batch normalisation for small images, as the distillation literature has it."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Convolutions of each of the five stages. Names count the paper's three linear layers, of which
# the networks for small images keep one.
STAGES = {8: (1, 1, 1, 1, 1), 13: (2, 2, 2, 2, 2)}
LARGE = 64  # pixels from which the fourth stage is pooled, too


class CifarVGG(nn.Module):
    """The VGG of Simonyan and Zisserman (ICLR 2015, arXiv 1409.1556) without its hidden linear
    layers, for images from 16 pixels on, as in Tian et al. (ICLR 2020, arXiv 1910.10699).

    `width` is the number of channels of the first stage, 64 in the papers.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        self.stages = nn.ModuleList(
            _stage(inputs, outputs, convolutions)
            for (inputs, outputs), convolutions in zip(
                pairwise((3, *channels)), STAGES[depth], strict=True
            )
        )
        self.classifier = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        pooled_stages = 4 if min(x.shape[-2:]) >= LARGE else 3
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < pooled_stages:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers)
