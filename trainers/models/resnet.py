"""CIFAR's ResNets."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of the paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = outputs - inputs

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Every pixel in `stride`, with channels of zeros around the others."""
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        before = self.padding // 2
        return F.pad(x, (0, 0, 0, 0, before, self.padding - before)) if self.padding else x


class CifarResNet(nn.Module):
    """The ResNet of He et al. (CVPR 2016, arXiv 1512.03385), section 4.2: depth 6n + 2.

    `width` is the number of channels of the first stage, 16 in the paper.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        blocks_per_stage = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        channels = width
        for outputs in (width, 2 * width, 4 * width):
            for _ in range(blocks_per_stage):
                blocks.append(BasicBlock(channels, outputs, stride=outputs // channels))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.blocks(out).mean(dim=(2, 3))
        logits: Tensor = self.classifier(out)
        return logits
