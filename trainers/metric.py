"""Contextual mutual information and centroid divergence: how augmentation suits distillation.

Kur and Zhao, Data-Augmented Quantization-Aware Knowledge Distillation (arXiv 2509.03850), rank
augmentations by D - CMI on augmented training images, lower is better. With P_x = softmax(f(x)),
label distributions t(x), natural logarithms and class centroids

    Q_y  = sum_x t_y(x) P_x / sum_x t_y(x)
    CMI  = mean_x KL(P_x || sum_y t_y(x) Q_y)         Ye et al., ICLR 2024 (arXiv 2401.08732)
    D    = mean_y -log Q_y[y]

With hard labels the mixture of centroids is the centroid of the label. Everything comes from the
same draw of the augmentation and from log_softmax, and is summed in float64.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Targets = Int64[Tensor, " n"] | Float[Tensor, "n k"]


class ContextualInformation(NamedTuple):
    """What one pass over N images tells of a model; nats, except for `accuracy`."""

    score: float  # centroid_divergence - cmi, lower is better
    cmi: float  # contextual mutual information, >= 0
    centroid_divergence: float  # D, >= 0
    entropy: float  # mean of H(P_x)
    cross_entropy: float  # mean of -sum_y t_y log P_x[y]
    accuracy: float  # fraction of hard labels hit; NaN where a label is soft
    empty_classes: tuple[int, ...]  # classes without any weight, left out of D


def contextual_mutual_information(
    logits: Float[Tensor, "n k"], targets: Targets
) -> ContextualInformation:
    """The metric of N logits (N, K) and labels: int64 (N,), or distributions (N, K).

    Raises ValueError without images, with logits that are not finite, and where no class has any
    weight. A class without weight is named in the result.
    """
    return _from_log_probs(torch.log_softmax(_wide(logits), dim=1), targets)


def _from_log_probs(log_probs: Float[Tensor, "n k"], targets: Targets) -> ContextualInformation:
    if len(log_probs) == 0:
        raise ValueError("the metric needs at least one image")
    if not bool(torch.isfinite(log_probs).all()):
        raise ValueError("the metric needs finite logits")
    log_p = log_probs.to(torch.float64)
    p, k = log_p.exp(), log_p.shape[1]
    hard = targets.ndim == 1
    t = torch.nn.functional.one_hot(targets, k).to(p) if hard else targets.to(p)
    weight = t.sum(dim=0)
    held = weight > 0
    if not bool(held.any()):
        raise ValueError("every class is empty: the targets hold no weight")
    centroids = (t.T @ p) / weight.clamp_min(torch.finfo(p.dtype).tiny).unsqueeze(1)
    # An entry of the mixture can underflow only where P does too: there the product is 0.
    mixture = (t @ centroids).clamp_min(torch.finfo(p.dtype).tiny)
    cmi = (torch.special.xlogy(p, p) - torch.special.xlogy(p, mixture)).sum(dim=1).mean()
    divergence = _negative_log_diagonal(log_p, t, weight)[held].mean()
    is_hard = hard or bool((t.amax(dim=1) == 1).all())
    hits = p.argmax(dim=1) == t.argmax(dim=1)
    return ContextualInformation(
        score=float(divergence - cmi),
        cmi=float(cmi.clamp_min(0)),
        centroid_divergence=float(divergence),
        entropy=float(-torch.special.xlogy(p, p).sum(dim=1).mean()),
        cross_entropy=float(-(t * log_p).sum(dim=1).mean()),
        accuracy=float(hits.double().mean()) if is_hard else float("nan"),
        empty_classes=tuple(torch.nonzero(~held).flatten().tolist()),
    )


def _negative_log_diagonal(log_p: Tensor, t: Tensor, weight: Tensor) -> Float[Tensor, " k"]:
    """-log Q_y[y] by logsumexp, so that a centroid below the smallest float stays finite."""
    return torch.log(weight) - torch.logsumexp(log_p + torch.log(t), dim=0)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.to(torch.float32)


class ContextualMutualInformation(Metric):
    """`contextual_mutual_information` over batches; exact in one pass, whatever their sizes.

    It keeps every log-probability vector, N x K x 4 bytes (8 for float64 logits), because soft
    labels need all centroids before any divergence. `compute` warns of empty classes.

    >>> import torch
    >>> metric = ContextualMutualInformation()
    >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
    >>> round(metric.compute().centroid_divergence, 4)
    0.1269
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    log_probs: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("log_probs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, logits: Float[Tensor, "n k"], targets: Targets) -> None:
        """Takes one batch; all batches must have the same kind of targets."""
        self.log_probs.append(torch.log_softmax(_wide(logits.detach()), dim=1))
        self.targets.append(targets.detach())

    def compute(self) -> ContextualInformation:
        """The figures of all batches so far; raises ValueError as the function does."""
        if not self.log_probs:
            raise ValueError("the metric needs at least one image")
        result = _from_log_probs(dim_zero_cat(self.log_probs), dim_zero_cat(self.targets))
        if result.empty_classes:
            empty = ", ".join(map(str, result.empty_classes))
            warnings.warn(f"no image of class {empty}: left out of the metric", stacklevel=2)
        return result


def teacher_stddev(probabilities: Sequence[Float[Tensor, "_ k"]], window: int = 5) -> float:
    """T.stddev of Wang et al., NeurIPS 2022 (arXiv 2012.02909); lower is better there.

    `probabilities` are batches in the order of training. Each window of `window` batches gives its
    mean probability vector; the unbiased standard deviation over windows per class is averaged
    over classes. A last window that is not full is left out; NaN with fewer than two windows.
    """
    windows = [
        torch.cat(list(probabilities[start : start + window])).double().mean(dim=0)
        for start in range(0, len(probabilities) - window + 1, window)
    ]
    if len(windows) < 2:
        return float("nan")
    return float(torch.stack(windows).std(dim=0, correction=1).mean())


class TeacherStddev(Metric):
    """`teacher_stddev` over batches of logits."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    probabilities: list[Tensor]

    def __init__(self, window: int = 5) -> None:
        super().__init__()
        self.window = window
        self.add_state("probabilities", default=[], dist_reduce_fx=None)

    def update(self, logits: Float[Tensor, "n k"]) -> None:
        """Takes the logits of one batch."""
        self.probabilities.append(torch.softmax(_wide(logits.detach()), dim=1))

    def compute(self) -> float:
        """The figure of all batches so far."""
        return teacher_stddev(self.probabilities, self.window)
