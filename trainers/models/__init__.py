"""Networks: those of the papers, and the doors to torchvision, timm and the user's own."""

from trainers.models.network import (
    OWN,
    Network,
    NetworkName,
    WeightsFile,
    Width,
    build_network,
    made_of,
    network_for,
    network_from_arrays,
)
from trainers.models.resnet import CifarResNet
from trainers.models.vgg import CifarVGG
from trainers.models.weights import weights_hash

__all__ = [
    "OWN",
    "CifarResNet",
    "CifarVGG",
    "Network",
    "NetworkName",
    "WeightsFile",
    "Width",
    "build_network",
    "made_of",
    "network_for",
    "network_from_arrays",
    "weights_hash",
]
