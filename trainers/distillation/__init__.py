"""The losses between student and teacher: on logits, on features, and any sum of them."""

from trainers.distillation.attention import AttentionTransfer
from trainers.distillation.contrastive import ContrastiveRepresentation
from trainers.distillation.correlation import CorrelationCongruence
from trainers.distillation.distiller import Distiller
from trainers.distillation.feature_loss import (
    FEATURE_LOSSES,
    DistillationBatch,
    FeatureLoss,
    feature_loss,
)
from trainers.distillation.hints import FitNet
from trainers.distillation.layers import Answer, Tap, watched
from trainers.distillation.loss import KD, KD_CE, SQAKD, DistillationLoss, kd_loss
from trainers.distillation.relational import RelationalKnowledge
from trainers.distillation.selectivity import NeuronSelectivity
from trainers.distillation.similarity import SimilarityPreserving
from trainers.distillation.variational import VariationalInformation

__all__ = [
    "FEATURE_LOSSES",
    "KD",
    "KD_CE",
    "SQAKD",
    "Answer",
    "AttentionTransfer",
    "ContrastiveRepresentation",
    "CorrelationCongruence",
    "DistillationBatch",
    "DistillationLoss",
    "Distiller",
    "FeatureLoss",
    "FitNet",
    "NeuronSelectivity",
    "RelationalKnowledge",
    "SimilarityPreserving",
    "Tap",
    "VariationalInformation",
    "feature_loss",
    "kd_loss",
    "watched",
]
