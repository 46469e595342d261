"""What of a long search TPE learns from: what was best and what was last."""

from bisect import insort
from collections import deque
from collections.abc import Container, Sequence

from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

BEST = 25  # what TPE takes for good is no more (Optuna's default gamma)
LATEST = 100


class Memory(InMemoryStorage):
    """Optuna's storage for one study of one objective, whose finished trials it shows to samplers
    up to the BEST ones of all and the LATEST ones.

    TPE looks at all that it is shown for every group of parameters that it gives, and would take
    longer with every trial. What that does to a search is in experiments.md. Those who ask for
    copies, as `study.trials` does, get all.
    """

    def __init__(self, direction: StudyDirection) -> None:
        super().__init__()
        self._sign = -1 if direction == StudyDirection.MAXIMIZE else 1
        self._open: set[int] = set()  # ids of trials that are not over
        self._best: list[tuple[float, int]] = []  # value to be minimised and id, best first
        self._latest: deque[int] = deque(maxlen=LATEST)
        self._shown: list[FrozenTrial] = []  # those of both, kept since TPE asks a dozen times

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._open.add(trial_id)
        return trial_id

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        was_set = super().set_trial_state_values(trial_id, state, values)
        if state.is_finished():
            self._open.discard(trial_id)
        if state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._latest.append(trial_id)
        if state == TrialState.COMPLETE:
            insort(self._best, (self._sign * self.get_trial(trial_id).values[0], trial_id))
            del self._best[BEST:]
        if state.is_finished():
            shown = {*self._latest, *(known for _, known in self._best)}
            self._shown = [self.get_trial(known) for known in shown]
        return was_set

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,) or deepcopy:
            return super().get_all_trials(study_id, deepcopy, states)
        trials = [*self._shown, *map(self.get_trial, self._open)]
        asked_for = [trial for trial in trials if states is None or trial.state in states]
        return sorted(asked_for, key=lambda trial: trial.number)
