"""What a teacher is worth before a search trusts it: accuracy, calibration, information."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from spaces.errors import UserError
from trainers.contexts import one_thread
from trainers.datasets import ImageSplits, Labelled
from trainers.metric import ContextualInformation, contextual_mutual_information
from trainers.teacher import logits_of

# Of log K, the most that CMI can be; a rule of thumb from one data set. On 400 to 900 digits, 30
# epochs, teachers with CutMix or MixUp had 1.9 to 2.8 %, with mild affine augmentation alone 1.3 %,
# without any 0.2 and 0.6 %; it is with the last kind that the score was seen to rank badly.
SATURATED = 0.01
# Of the way from always naming the commonest class to naming all rightly.
IGNORANT = 0.1


@dataclass(frozen=True)
class PartCheck:
    """One part of the data, plain images."""

    images: int
    accuracy: float  # fraction right
    calibration_error: float  # expected calibration error, 15 bins, 0..1
    cross_entropy: float  # nats


@dataclass(frozen=True)
class TeacherCheck:
    """What `check_teacher` found; `warnings` are sentences, none where nothing is wrong."""

    training: PartCheck
    validation: PartCheck
    test: PartCheck
    cmi: float  # nats, of the plain training images, as is the next
    centroid_divergence: float
    warnings: tuple[str, ...]


@one_thread()
@torch.no_grad()
def check_teacher(teacher: nn.Module, splits: ImageSplits) -> TeacherCheck:
    """Judges `teacher` on plain images; raises UserError where its logits are not finite."""
    training, information = _check(teacher, splits, splits.train)
    validation, _ = _check(teacher, splits, splits.validation)
    test, _ = _check(teacher, splits, splits.test)
    return TeacherCheck(
        training=training,
        validation=validation,
        test=test,
        cmi=information.cmi,
        centroid_divergence=information.centroid_divergence,
        warnings=tuple(_warnings(information, validation.accuracy, splits)),
    )


def _check(
    teacher: nn.Module, splits: ImageSplits, part: Labelled
) -> tuple[PartCheck, ContextualInformation]:
    """The expected calibration error is that of Guo et al., ICML 2017 (arXiv 1706.04599)."""
    logits = logits_of(teacher, splits, part)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(
            "the teacher's logits are not finite: its weights are broken, or too large for float32"
        )
    information = contextual_mutual_information(logits, part.labels)
    error = multiclass_calibration_error(
        torch.softmax(logits.float(), dim=1), part.labels, splits.num_classes, n_bins=15
    )
    check = PartCheck(
        images=len(part.labels),
        accuracy=information.accuracy,
        calibration_error=float(error),
        cross_entropy=information.cross_entropy,
    )
    return check, information


def _warnings(
    information: ContextualInformation, accuracy: float, splits: ImageSplits
) -> list[str]:
    """Why the score will rank policies poorly with this teacher, in the user's words."""
    found = []
    commonest = float(splits.validation.labels.bincount().max()) / len(splits.validation.labels)
    if accuracy < commonest + IGNORANT * (1 - commonest):
        found.append(
            f"It names {accuracy:.1%} of the validation images rightly, hardly more than the "
            f"{commonest:.1%} of always naming the commonest class: students and scores will copy "
            "noise. Were its weights trained on these classes, in this order, on images normalised "
            "like these (data.normalisation)?"
        )
    most = math.log(splits.num_classes)
    if information.cmi < SATURATED * most:
        found.append(
            f"Its CMI on plain training images is {information.cmi:.4f} nats, below "
            f"{SATURATED * most:.4f}: the images of a class look all alike to it, as to a teacher "
            "trained without CutMix, and the score will rank policies poorly. Train it with CutMix "
            "(augury teacher train does), or steer by another figure: search.objective=kd_gap."
        )
    return found
