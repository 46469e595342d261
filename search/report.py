"""A run as one HTML page that needs nothing but itself: what it found, and whether to believe it.

The page is made of the run's own files, also while a search writes them. What people gave names to
is text in it, never markup: the template escapes everything but the figures, which matplotlib
escapes, and the page's own policy runs no script but the one that it was made with.
"""

import base64
import hashlib
import io
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from search import evidence
from search import report_tables as tables
from search.config import SearchConfig, load_config
from search.figures import Plot
from search.ledger import Trial
from search.progress import duration
from search.results import FAILED, FINISHED, STOPPED, Row
from search.run_folder import RunFolder, write_text
from search.standing import Standing, standing
from search.verdict import percent, signed_points
from spaces import Policy, load_policy
from spaces.description import contact_sheet, describe, one_of_each
from spaces.errors import UserError
from trainers.datasets import Labelled, load_splits

EXAMPLES, DRAWS = 4, 5  # rows of the contact sheet, and policies' draws in each
CSV_BYTES = 200_000  # of the data of a figure; more are a file beside the page
SHEET_SIDE, SHEET_BYTES = 1200, 400_000  # pixels and bytes of a PNG, beyond which it is a JPEG


def write_report(
    folder: RunFolder,
    images: Labelled | None = None,
    *,
    to: Path | None = None,
    working: bool | None = None,
) -> Path:
    """Writes what the run in `folder` has come to: the page, and the figures beside it, each as
    SVG, PNG and CSV. `to` is another file for the page, without figures beside it; `working` is
    whether a process works on the run, where the caller knows better than its files.

    Some of the `images` show what the best policy does. Returns where the page is. Raises
    UserError where the run cannot be read, and OSError where nothing can be written.
    """
    now = standing(folder)
    page, plots = _page(now if working is None else replace(now, working=working), images)
    if to is None:
        for plot in plots:
            plot.save(folder.figures)
    path = to or folder.report
    write_text(path, page)
    return path


def images_of(folder: RunFolder) -> tuple[Labelled | None, str]:
    """The training images of the run in `folder`; None, and why, where they are not at hand."""
    try:
        return load_splits(load_config(folder.config).data).train, ""
    except UserError as error:
        return None, str(error)


def _page(now: Standing, images: Labelled | None) -> tuple[str, list[Plot]]:
    rows = now.rows()
    searched = [
        plot
        for plot in (evidence.history(now), *evidence.fronts(now, rows), evidence.curves(now))
        if plot is not None
    ]
    believed, found = evidence.agreements(now, rows)
    matters = evidence.matters(now)
    failures = tables.failures(now)
    style, script = _part("report.css"), _part("report.js")
    verdict = _verdict(now, rows)
    best = _best(now, has_verdict=verdict is not None)
    content: dict[str, Any] = {
        "title": _title(now.config),
        "state": _state(now),
        "verdict": verdict,
        "no_verdict": _no_verdict(now),
        "best": best and _best_said(best, has_verdict=verdict is not None),
        **_sheet(best, images),
        **tables.ranking(now, rows, best),
        "searched": list(map(_embedded, searched)),
        "agreements": list(map(_embedded, believed)),
        "correlations": list(map(tables.correlation, found)),
        "validation": tables.validation(now.folder),
        "matters": list(map(_embedded, matters)),
        "too_few": evidence.too_few(now),
        "failures": failures,
        "failures_say": tables.failures_say(now) if failures else "",
        "repeat": _repeat(now),
        "style": Markup(style),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "written": _now(),
    }
    content["sections"] = _sections(content)
    return _template().render(content), [*searched, *believed, *matters]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("search", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _part(name: str) -> str:
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {
        "verdict": ("Verdict", True),
        "best": ("Best policy", content["best"]),
        "ranking": ("Ranking", True),
        "search": ("Search", content["searched"]),
        "predictors": (
            "Predictors",
            content["correlations"] or content["agreements"] or content["validation"],
        ),
        "matters": ("What mattered", content["matters"]),
        "failures": ("Failures", content["failures"]),
        "repeat": ("To repeat it", True),
    }
    return [(name, label) for name, (label, there) in names.items() if there]


def _title(config: SearchConfig) -> str:
    student = (
        config.teacher.network if config.student.network is None else config.student.network.name
    )
    return f"{student} on {config.data.name}, {config.student.quantization}"


def _state(now: Standing) -> dict[str, Any]:
    has = _counted("probe", now.ledger.of("probe"), now)
    if students := evidence.promoted(now):
        has += f", {_counted('full-length student', students, now)}"
    if now.done:
        says = f"{has}; {duration(now.ledger.seconds_worked())}."
        return {"kind": "finished", "word": "finished", "done": True, "says": says}
    ended = sum(trial.status is not None for trial in now.trials)
    stage = f"the {now.stage} stage has {ended} of {now.total} trials"
    if not now.total:
        stage = "no stage has begun"
    elif ended > now.total:  # a validation with fewer seeds than promotion had
        stage = f"the {now.stage} stage goes on"
    if now.working:
        left = now.seconds_left
        left_says = "" if left is None else f", about {duration(left)} to go"
        says = f"{has}; {stage}{left_says}. So at {_now()}; load the page again for news."
        return {"kind": "running", "word": "running", "done": False, "says": says}
    says = f"{has}; {stage}. Nothing works on it here; {_goes_on(now)}."
    return {"kind": "stopped", "word": "not finished", "done": False, "says": says}


def _counted(what: str, trials: Sequence[Trial], now: Standing) -> str:
    """`3 probes (2 finished, 1 running)`."""
    states = Counter(
        trial.status or ("running" if now.working else "broken off") for trial in trials
    )
    names = (FINISHED, STOPPED, FAILED, "running", "broken off")
    parts = ", ".join(f"{states[name]} {name}" for name in names if states[name])
    return f"{len(trials)} {what}{'s' * (len(trials) != 1)}" + (f" ({parts})" if parts else "")


def _goes_on(now: Standing) -> str:
    """What would go on with a run that nobody works on."""
    if now.stage == "validation":
        return "augury validate goes on with it"
    if _hopeless(now):
        return "to go on would not help, see the failures"
    return "augury resume goes on with it"


def _hopeless(now: Standing) -> bool:
    """Whether every probe has failed, none of them by no fault of its own."""
    probes = now.ledger.of("probe")
    return bool(probes) and all(trial.status == FAILED and not trial.lost for trial in probes)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _verdict(now: Standing, rows: Sequence[Row]) -> dict[str, Any] | None:
    found = now.folder.read_verdict()
    try:
        return None if found is None else _told(found) | {"further": tables.further(found, rows)}
    except (KeyError, TypeError, ValueError, AttributeError):
        where = now.folder.named(now.folder.verdict)
        raise UserError(f"{where}: is not a verdict that can be read") from None


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    # By the role, too: a policy of the user's may be called as a control is.
    leads = {(lead["control"], lead["role"]): lead for lead in found["differences"]}
    return {
        "sentence": found["sentence"],
        "confidence": f"{100 * next(iter(leads.values()))['confidence']:g} %" if leads else "",
        "candidates": [
            {
                "policy": candidate["policy"],
                "role": candidate["role"],
                "winner": candidate["policy_identity"] == found["winner_identity"],
                "seeds": len(candidate["seeds"]),
                "validation": _spread(candidate["validation_accuracy"]),
                "test": _spread(candidate["test_accuracy"]),
                "validation_lead": _lead(lead, "validation"),
                "test_lead": _lead(lead, "test"),
            }
            for candidate in sorted(
                found["candidates"], key=lambda c: -c["validation_accuracy"]["mean"]
            )
            for lead in (leads.get((candidate["policy"], candidate["role"])),)
        ],
    }


def _spread(figure: Mapping[str, Any]) -> str:
    return percent(figure["mean"], figure["std"])


def _lead(difference: Mapping[str, Any] | None, figure: str) -> str:
    if difference is None:
        return ""
    said = signed_points(difference[figure], None)
    interval = difference[f"{figure}_interval"]
    return (
        said if interval is None else f"{said} [{', '.join(f'{100 * b:+.1f}' for b in interval)}]"
    )


def _no_verdict(now: Standing) -> str:
    objective, best = now.config.search.objective, now.best
    if best is None:
        if _hopeless(now):
            return "There is no verdict: every probe failed."
        return "There is no verdict yet, and no probe has ended with a value."
    value = f"{best.figures[objective]:.4g}"
    return (
        f"There is no verdict yet: by {objective} {best.policy} leads the probes with {value}, "
        "which promotion has yet to compare with the controls."
    )


def _best(now: Standing, *, has_verdict: bool) -> Policy | None:
    if has_verdict:
        return load_policy(now.folder.best_policy)
    return None if now.best is None else now.best.policy


def _best_said(policy: Policy, *, has_verdict: bool) -> dict[str, Any]:
    _, *words = describe(policy)
    return {
        "heading": "The best policy" if has_verdict else "The best policy so far, by its probe",
        "name": str(policy),
        "words": words,
        "json": tables.data_url("application/json", policy.to_json().encode()),
    }


def _sheet(policy: Policy | None, images: Labelled | None) -> dict[str, Any]:
    missing = "No pictures: the images were not at hand when this page was made."
    if policy is None or images is None:
        return {"sheet": None, "no_sheet": missing}
    shown = images.images[one_of_each(images.labels, EXAMPLES)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sheet.png"
        contact_sheet(policy, shown, path, draws=DRAWS)
        content, kind = path.read_bytes(), "image/png"
        if len(content) > SHEET_BYTES:
            with Image.open(path) as picture:
                picture.thumbnail((SHEET_SIDE, SHEET_SIDE))
                smaller = io.BytesIO()
                picture.convert("RGB").save(smaller, format="JPEG", quality=85)
            content, kind = smaller.getvalue(), "image/jpeg"
    says = f"{len(shown)} training images, each as it is and then {DRAWS} times under the policy."
    return {"sheet": tables.data_url(kind, content), "sheet_says": says}


def _embedded(plot: Plot) -> dict[str, Any]:
    csv = plot.data.to_csv(index=False).encode()
    return {
        "name": plot.name,
        "title": plot.title,
        "says": plot.says,
        "svg": Markup(plot.svg()),
        "csv": tables.data_url("text/csv", csv) if len(csv) <= CSV_BYTES else None,
    }


def _repeat(now: Standing) -> dict[str, Any]:
    marker, config, where = now.folder.read_marker(), now.config, str(now.folder)
    first, seeds = config.search.seed + 1, config.promotion.seeds
    trials = now.ledger.trials.values()
    devices = sorted({str(t.places["device"]) for t in trials if "device" in t.places})
    facts = {
        "run": where,
        "made": marker.get("created"),
        "seed of the search": config.search.seed,
        "seeds of full length": f"{first} to {first + seeds - 1}" if seeds > 1 else first,
        "config hash": marker.get("config_hash"),
        "data hash": marker.get("data_hash"),
        "teacher hash": marker.get("teacher_hash"),
        "devices": ", ".join(devices) or None,
        **{f"version of {name}": found for name, found in marker.get("versions", {}).items()},
    }
    text, again = config.to_yaml(), shlex.quote(f"runs/{now.folder.name}-again")
    return {
        "command": f"augury search config.yaml --run {again}",
        "facts": [(name, value) for name, value in facts.items() if value is not None],
        "config": text,
        "config_url": tables.data_url("application/yaml", text.encode()),
    }
