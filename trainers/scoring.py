"""The paper's own use of the metric: rank given policies with the teacher alone."""

from dataclasses import dataclass

import torch
from torch import nn

from spaces.policy import Policy
from trainers.batches import augmented_batches
from trainers.contexts import eval_mode, one_thread
from trainers.datasets import ImageSplits
from trainers.metric import ContextualMutualInformation, TeacherStddev


@dataclass(frozen=True)
class PolicyScore:
    """What the teacher says of one policy; `score` and its parts in nats, lower is better."""

    score: float
    cmi: float
    centroid_divergence: float
    entropy: float
    teacher_stddev: float
    images: int


@one_thread()
@torch.no_grad()
def score(
    policy: Policy,
    teacher: nn.Module,
    splits: ImageSplits,
    *,
    repeats: int = 4,
    batch_size: int = 256,
    seed: int = 0,
) -> PolicyScore:
    """The metric of `policy` on every training image, `repeats` augmented views of each."""
    augment = policy.augmenter(splits.num_classes, seed)
    information, stddev, images = ContextualMutualInformation(), TeacherStddev(), 0
    with eval_mode(teacher):
        for batch, targets, _ in augmented_batches(
            splits.train,
            augment,
            batch_size=batch_size,
            repeats=repeats,
            seed=seed,
            epoch=0,
            teacher=lambda images: teacher(splits.normalise(images)),
        ):
            logits = teacher(splits.normalise(batch))
            information.update(logits, targets)
            stddev.update(logits)
            images += len(targets)
    found = information.compute()
    return PolicyScore(
        score=found.score,
        cmi=found.cmi,
        centroid_divergence=found.centroid_divergence,
        entropy=found.entropy,
        teacher_stddev=stddev.compute(),
        images=images,
    )
