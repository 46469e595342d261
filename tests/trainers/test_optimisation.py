"""Optimisers and schedules against torch's own, and every option of a recipe at its work."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from trainers.optimisation import SGD, Adam, AdamW, Constant, Cosine, Step, TrainingRecipe
from trainers.parallel import Part
from trainers.training import Training

STEPS = 40
INPUTS = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).softmax(dim=1)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def trained(steps: int = 3, **recipe: object) -> tuple[Training, list[float]]:
    """A small network without batch norm after some steps on one batch, and their losses."""
    model = network()
    groups = [{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.01}]
    training = Training(model, groups, TrainingRecipe(**recipe), STEPS)
    losses = []

    def loss_of(part: Part) -> torch.Tensor:
        with training.autocast():
            logits = training.run(training.placed(INPUTS[part.rows]))
        loss = F.cross_entropy(logits.float(), TARGETS[part.rows])
        losses.append(float(loss.detach()))
        return loss

    for _ in range(steps):
        training.step(len(INPUTS), loss_of)
    return training, losses


def by_hand(optimizer: type[torch.optim.Optimizer], **settings: object) -> list[nn.Module]:
    """The network after each of three steps with torch's plain loop, rates along a cosine."""
    model, states = network(), []
    opt = optimizer(model.parameters(), lr=0.01, weight_decay=0.01, **settings)
    schedule = lr_scheduler.CosineAnnealingLR(opt, STEPS)
    for _ in range(3):
        opt.zero_grad()
        F.cross_entropy(model(INPUTS), TARGETS).backward()
        opt.step()
        schedule.step()
        states.append(copy.deepcopy(model))
    return states


def assert_close(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("optimizer", "kind", "settings"),
    [
        (Adam(), torch.optim.Adam, {}),
        (AdamW(), torch.optim.AdamW, {}),
        (SGD(), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        (SGD(momentum=0.5, nesterov=False), torch.optim.SGD, {"momentum": 0.5}),
        (SGD(momentum=0.0, nesterov=False), torch.optim.SGD, {}),
    ],
    ids=str,
)
def test_an_optimiser_is_torchs_in_a_loop_written_out(optimizer, kind, settings):
    training, losses = trained(optimizer=optimizer)
    assert_close(training.network, by_hand(kind, **settings)[-1])
    assert losses[-1] < losses[0]
    assert training.optimizer.defaults["fused"]


def rates(schedule: object, *, of: object = None, steps: int = STEPS) -> list[float]:
    """Of a schedule of ours, or of one of torch's."""
    if of is None:
        return [schedule.factor(step, steps) for step in range(steps)]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs, found = of(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    return found


def test_schedules_are_torchs():
    cosine = rates(None, of=lambda opt: lr_scheduler.CosineAnnealingLR(opt, STEPS))
    assert rates(Cosine()) == pytest.approx(cosine, abs=1e-12)
    step = rates(None, of=lambda opt: lr_scheduler.MultiStepLR(opt, [10, 30], 0.2))
    assert rates(Step(at=(0.25, 0.75), drop=0.2)) == pytest.approx(step, abs=1e-12)
    assert rates(Constant()) == [1.0] * STEPS


@pytest.mark.parametrize("schedule", [Cosine(), Step(), Constant()], ids=lambda s: s.name)
def test_a_warm_up_is_a_fraction_of_the_run_and_the_shape_follows_whole(schedule):
    warm = schedule.model_copy(update={"warmup": 0.2})
    found = rates(warm, steps=50)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10:] == pytest.approx(rates(schedule, steps=40))
    assert rates(warm, steps=1) == [1.0]  # a run too short to warm up


def test_a_batch_in_parts_moves_the_weights_as_a_whole_does():
    whole, losses = trained()
    parted, of_parts = trained(accumulate=3)
    assert_close(whole.network, parted.network)
    assert len(of_parts) == 3 * len(losses)


def test_the_average_is_of_all_states_and_what_comes_out():
    training, _ = trained(optimizer=SGD(), ema_decay=0.75)
    first, second, third = by_hand(torch.optim.SGD, momentum=0.9, nesterov=True)
    assert_close(training.network, third)
    for name, tensor in training.outcome.state_dict().items():
        a, b, c = (model.state_dict()[name] for model in (first, second, third))
        torch.testing.assert_close(tensor, 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c)
    plain, _ = trained()
    assert plain.outcome is plain.network
    assert not any(parameter.requires_grad for parameter in training.outcome.parameters())


def test_statistics_of_batch_norm_are_averaged_with_the_weights_that_made_them():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    group = {"params": list(model.parameters()), "lr": 0.1}
    training = Training(model, [group], TrainingRecipe(ema_decay=0.5), 2)
    means = []
    for _ in range(2):
        training.step(7, lambda part: training.run(INPUTS[part.rows]).square().mean())
        means.append(model[1].running_mean.clone())
    assert torch.equal(training.outcome[1].running_mean, (means[0] + means[1]) / 2)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_convolutions_compute_in_the_precision_asked_for_and_weights_stay_in_full(precision):
    seen = set()
    full, _ = trained()
    with nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.add((type(module).__name__, out.dtype))
    ):
        training, losses = trained(precision=precision)
    assert ("Conv2d", getattr(torch, precision)) in seen
    assert {parameter.dtype for parameter in training.network.parameters()} == {torch.float32}
    assert losses[-1] < losses[0]
    assert_close(training.network, full.network, 0.05)
    assert training.scaler.is_enabled() == (precision == "float16")


def test_a_gradient_that_overflows_16_bits_moves_nothing_and_lowers_the_scale():
    training, _ = trained(steps=0, precision="float16", optimizer=SGD())
    before = copy.deepcopy(training.network)
    training.step(7, lambda part: training.run(INPUTS[part.rows]).sum() * math.inf)
    assert_close(training.network, before, 0.0)
    assert training.scaler.get_scale() == 2.0**15


def test_channels_last_is_an_order_of_memory_and_not_a_result():
    plain, _ = trained()
    last, _ = trained(channels_last=True)
    assert last.network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert last.placed(INPUTS).is_contiguous(memory_format=torch.channels_last)
    assert_close(plain.network, last.network)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"optimizer": {"name": "sgd", "momentum": 0.0}}, "set nesterov to false"),
        ({"optimizer": {"momentum": 0.9}}, "momentum"),
        ({"schedule": {"name": "step", "at": []}}, "at least 1 item"),
        ({"schedule": {"warmup": 1.0}}, "less than 1"),
        ({"ema_decay": 1.0}, "less than 1"),
        ({"accumulate": 0}, "greater than or equal to 1"),
    ],
)
def test_values_without_meaning_are_refused(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TrainingRecipe(**wrong)


def test_a_text_is_short_for_a_name():
    short = TrainingRecipe(optimizer="sgd", schedule="step")
    assert short == TrainingRecipe(optimizer=SGD(), schedule=Step())
    assert TrainingRecipe.model_validate(short.model_dump(mode="json")) == short
