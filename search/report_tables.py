"""The tables of the report: rows and cells as its template wants them."""

import base64
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from search import evidence
from search.correlations import FEWEST
from search.evidence import Agreement
from search.failures import in_common
from search.predictors import OUTCOMES
from search.results import CONTROL, FAILED, STOPPED, Row, mean_and_std
from search.run_folder import RunFolder
from search.standing import Standing
from search.verdict import percent
from spaces import Policy
from spaces.errors import UserError

ROWS_SHOWN = 1000  # of the ranking: a page of 10,000 is no page
REASONS_SHOWN = 30
PREDICTIONS_SHOWN = 15


def ranking(now: Standing, rows: Sequence[Row], best: Policy | None) -> dict[str, Any]:
    """The ranked rows, that of the `best` policy marked, and their columns."""
    directions = now.config.search.directions
    names = list(directions)
    labels = [
        "rank",
        "policy",
        *names,
        "probe val.",
        "final val.",
        "final test",
        "seconds",
        "status",
    ]
    better = {"min": "lower", "max": "higher"}
    said = [f"{name} ({better[mode]} is better)" for name, mode in directions.items()]
    return {
        "ranked_by": " and ".join(said) + (", front by front" if len(names) > 1 else ""),
        "columns": [
            {"label": label, "numeric": label not in ("policy", "status")} for label in labels
        ],
        "rows": [
            {
                "rank": rank,
                "best": best is not None and row.policy.identity == best.identity,
                "status": row.status,
                "reason": _reason(row),
                "identity": row.policy.identity,
                "json": data_url("application/json", row.policy.to_json().encode()),
                "cells": _cells(rank, row, names),
            }
            for rank, row in enumerate(rows[:ROWS_SHOWN], start=1)
        ],
        "left_out": max(len(rows) - ROWS_SHOWN, 0),
        "statuses": sorted({row.status for row in rows[:ROWS_SHOWN]}),
    }


def _reason(row: Row) -> str:
    if row.status == STOPPED:
        return f"stopped by the scheduler after epoch {row.figures['epoch']:g}"
    return "trained to compare with, never probed" if row.status == CONTROL else row.failure or ""


def _cells(rank: int, row: Row, objectives: Sequence[str]) -> list[dict[str, Any]]:
    full = [
        mean_and_std([getattr(run, name) for run in row.full_length]) for name in evidence.FINAL
    ]
    probed = row.figures.get("validation_accuracy")
    return [
        _number(rank, str(rank)),
        {"text": str(row.policy), "heading": True, "numeric": False},
        *(_number(row.figures.get(n), f"{row.figures.get(n, math.nan):.4f}") for n in objectives),
        _number(probed, percent(probed, None)),
        *(_number(mean, percent(mean, std)) for mean, std in full),
        _number(row.seconds, f"{row.seconds:.1f}"),
        {"text": row.status, "heading": False, "numeric": False},
    ]


def _number(value: float | None, text: str) -> dict[str, Any]:
    known = value is not None and math.isfinite(value)
    found = {"text": text, "value": repr(value)} if known else {"text": "", "value": ""}
    return found | {"heading": False, "numeric": True}


def further(verdict: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A sentence on policies of full length that the verdict did not judge, if some had more than
    its winner; empty otherwise. Raises KeyError or TypeError for what is no verdict."""
    judged = {c["policy_identity"]: c["validation_accuracy"]["mean"] for c in verdict["candidates"]}
    bar = judged[verdict["winner_identity"]]
    others = {
        row.policy.identity: (row, [run.validation_accuracy for run in row.full_length])
        for row in rows
        if row.full_length and row.policy.identity not in judged
    }
    ahead = [(row, values) for row, values in others.values() if fmean(values) > bar]
    if not ahead:
        return ""
    row, values = max(ahead, key=lambda found: fmean(found[1]))
    tested = mean_and_std([run.test_accuracy for run in row.full_length])
    seeds = f"{len(values)} seed{'s' * (len(values) > 1)}"
    return (
        f"The verdict judges what promotion chose. Of {len(others)} more policies of full length, "
        f"trained for augury validate or an earlier promotion, {len(ahead)} had more: the first is "
        f"{row.policy} (validation {percent(*mean_and_std(values))}, test {percent(*tested)}, "
        f"{seeds}). The first of many has had luck."
    )


def data_url(kind: str, content: bytes) -> str:
    """`content` as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def correlation(agreement: Agreement) -> dict[str, Any]:
    """A row of the rank correlations."""
    found = agreement.found
    said = dict.fromkeys(("spearman", "kendall"), f"fewer than {FEWEST} policies")
    if found is not None:
        for name in said:
            value, (low, high) = getattr(found, name), getattr(found, f"{name}_interval")
            said[name] = (
                f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
                if math.isfinite(value)
                else "no variation"
            )
    return {
        "predictor": agreement.predictor,
        "outcome": agreement.outcome,
        "policies": agreement.policies,
        "chance": f"{agreement.chance:.2g}" if math.isfinite(agreement.chance) else "",
        **said,
    }


def validation(folder: RunFolder) -> dict[str, Any] | None:
    """What `augury validate` found, as far as it was there: the foremost predictors. Raises
    UserError for a file that tells nothing."""
    try:
        found = json.loads(folder.validation.read_text(encoding="utf-8"))
        predictions = found["predictions"]
        return {
            "sentence": str(found["recommendation"]["sentence"]),
            "policies": len(found["policies"]),
            "rows": [_predicted(prediction) for prediction in predictions[:PREDICTIONS_SHOWN]],
            "left_out": max(len(predictions) - PREDICTIONS_SHOWN, 0),
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        where = folder.named(folder.validation)
        raise UserError(f"{where}: is not a validation that can be read") from None


def _predicted(prediction: Mapping[str, Any]) -> dict[str, Any]:
    def said(outcome: str) -> str:
        value, (low, high) = (
            prediction[outcome]["spearman"],
            prediction[outcome]["spearman_interval"],
        )
        return "no variation" if value is None else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"

    return {
        "figure": prediction["figure"],
        "epochs": prediction["probe_epochs"],
        "cells": [said(outcome) for outcome in OUTCOMES],
    }


def failures(now: Standing) -> list[dict[str, Any]]:
    """By their reasons, in which numbers do not count, most frequent first."""
    by_kind = defaultdict(list)
    for trial in now.ledger.trials.values():
        if trial.status == FAILED:
            by_kind[re.sub(r"\d+", "N", trial.failure or "unknown")].append(trial)
    ordered = sorted(by_kind.values(), key=len, reverse=True)[:REASONS_SHOWN]
    return [
        {"reason": first.failure, "count": len(trials), "example": str(first.policy)}
        for trials in ordered
        for first in trials[:1]
    ]


def failures_say(now: Standing) -> str:
    """A sentence on what failures have in common; there must be one."""
    probes = now.ledger.of("probe")
    if any(trial.status == FAILED for trial in probes):
        return f"Of the probes {in_common(probes)}."
    return "Students of full length that were lost; no probe failed."
