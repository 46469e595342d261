"""The paper's own use of the metric: rank given policies with the teacher alone."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spaces.policy import Policy
from trainers.batches import Batch, augmented_batches
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
    """The metric of `policy` on every training image, `repeats` augmented views of each.

    As many batches at once as torch has threads, each on one of them: the result is the same for
    any number.
    """
    augment = policy.augmenter(splits.num_classes, seed)
    information, stddev, images = ContextualMutualInformation(), TeacherStddev(), 0
    with one_thread() as cores, eval_mode(teacher):
        batches = augmented_batches(
            splits.train,
            augment,
            batch_size=batch_size,
            repeats=repeats,
            seed=seed,
            epoch=0,
            teacher=lambda images: teacher(splits.normalise(images)),
        )
        for logits, targets in _answered(teacher, splits, batches, cores):
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


def _answered(
    teacher: nn.Module, splits: ImageSplits, batches: Iterable[Batch], cores: int
) -> Iterator[tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]]:
    """The teacher's logits and the targets of every batch, in their order.

    Threads with a batch each do not wait for each other, as those of one operation do.
    """

    @torch.inference_mode()  # which is a thread's own
    def answer(images: Tensor) -> Tensor:
        return teacher(splits.normalise(images))

    waiting: deque[tuple[Future[Tensor], Tensor]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for images, targets, _ in batches:
            waiting.append((pool.submit(answer, images), targets))
            if len(waiting) > cores:
                future, known = waiting.popleft()
                yield future.result(), known
        for future, known in waiting:
            yield future.result(), known
