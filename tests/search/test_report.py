"""The report of a run: what it says and draws, and that names are no markup in it.

test_search.py has that of a real run, test_report_page.py shows one in a browser.
"""

import base64
import json
import re
import shutil
import xml.etree.ElementTree as ET

import pandas as pd
import pytest

from search import evidence, load_run
from search.config import SearchConfig, load_config
from search.console import print_result
from search.importance import effects, shares
from search.ledger import Trial, opened
from search.predictors import OUTCOMES
from search.report import images_of, write_report
from search.results import FullLength
from search.run_folder import RunFolder
from search.stages import SearchResult
from search.standing import standing
from search.verdict import Candidate, decide
from spaces import UserError, scheme
from spaces.policy import policy_from_json

FIVE_MB = 5_000_000


@pytest.fixture(scope="module")
def page(told_run):
    return write_report(told_run).read_text()


def test_every_figure_is_there_as_files_with_its_data(told_run, page):
    names = {path.stem for path in told_run.figures.iterdir()}
    assert len(names) == page.count("<svg") == 8
    for name in names:
        ET.parse(told_run.figures / f"{name}.svg")
        assert (told_run.figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    front = pd.read_csv(told_run.figures / "front_validation_loss.csv")
    assert len(front) == 27 and 0 < front.front.sum() < 27
    ahead = front[front.front].sort_values("score")
    assert ahead.validation_loss.is_monotonic_decreasing


def test_the_page_needs_nothing_but_itself(page):
    assert len(page.encode()) < FIVE_MB
    assert not re.findall(r"(?:https?:)?//[\w.]+", page)
    assert set(re.findall(r'(?:src|href)="(\w+:|#)', page)) == {"#", "data:"}
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_names_and_reasons_are_text(page):
    assert page.count("<script>") == 1
    assert "&lt;script&gt;document.title" in page


def test_a_policy_of_the_ranking_is_there_as_a_file(told_run, page):
    first = standing(told_run).rows()[0]
    (link,) = re.findall(
        rf'href="data:application/json;base64,([^"]+)" download="policy-{first.policy.identity}',
        page,
    )
    assert policy_from_json(base64.b64decode(link).decode()).identity == first.policy.identity


def test_what_is_not_concluded_has_no_verdict(page):
    assert "There is no verdict yet" in page and "not finished" in page
    assert "the images were not at hand" in page


def test_a_ranking_is_drawn_as_what_it_is(told_run):
    """Score and probe accuracy were told with a correlation of one."""
    now = standing(told_run)
    plots, found = evidence.agreements(now, now.rows())
    assert found[0].policies == 27 and found[0].found is not None
    assert found[0].found.spearman == pytest.approx(1)
    assert "Spearman +1.00" in plots[0].says
    final = next(f for f in found if f.outcome == "final test accuracy")
    assert final.policies >= 4  # a policy that was probed twice counts twice


def test_importance_finds_what_the_objective_hangs_on(told_run):
    now = standing(told_run)
    for trial in now.ledger.of("probe"):
        mixed = 0.0 if trial.policy.mixing is None else 1.0
        for figures in trial.epochs.values():
            figures["score"] = mixed + 0.01 * figures["score"]
    first, *_ = shares(now.config, now.ledger)
    assert first.parameter == "mixing" and first.share > 0.5
    by_name = {e.operation: e for e in effects(now.config, now.ledger)}
    assert by_name["cutmix"].difference > 0.3 and by_name["cutmix"].interval[0] > 0


def test_failures_are_counted_by_reason(page):
    (row,) = re.findall(r"in step 7</th><td class=\"n\">(\d+)", page)
    assert int(row) == 5


def test_a_page_elsewhere_leaves_the_run_alone(told_run, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in told_run.path.rglob("*")}
    write_report(told_run, images_of(told_run)[0], to=tmp_path / "page.html")
    assert "data:image/" in (tmp_path / "page.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in told_run.path.rglob("*")}


def test_nothing_to_show_is_a_page_too(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(SearchConfig().to_yaml(), {})
    assert "no probe has ended" in write_report(folder).read_text()
    with pytest.raises(UserError, match="no probe has ended"):
        load_run(folder.path).plot_history()
    for broken in ("{", "{}", '{"sentence": "It is."}'):
        folder.verdict.write_text(broken)
        with pytest.raises(UserError, match="not a verdict"):
            write_report(folder)


def test_a_run_of_failures_says_that_going_on_would_not_help(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(load_config(overrides=["student.network=vgg8"]).to_yaml(), {})
    with opened(folder.ledger) as ledger:
        ledger.sitting({"augury": "1"})
        ledger.begin_stage("probe", 20)
        ledger.ended(ledger.began(Trial("00000", "probe", scheme("none"), 0)), "failed", "broken")
        ledger.began(Trial("00001", "probe", scheme("cutmix"), 0))
    assert "2 probes (1 failed, 1 broken off)" in write_report(folder).read_text()
    with opened(folder.ledger) as ledger:
        ledger.ended(ledger.trials["00001"], "failed", "broken")
    page = write_report(folder).read_text()
    assert "<h1>vgg8 on digits" in page
    assert "every probe failed" in page and "to go on would not help" in page


def test_a_policy_with_more_than_the_winner_that_was_not_judged_is_told_of(told_run, tmp_path):
    """As after a validation, whose students are no part of the verdict."""
    run = RunFolder(shutil.copytree(told_run.path, tmp_path / "run"))
    rows = [row for row in standing(run).rows() if row.full_length]
    others = len({row.policy.identity for row in rows}) - 1
    for accuracy, sentence in ((0.85, f"Of {others} more policies of full length"), (0.95, "")):
        runs = (FullLength(1, accuracy, 0.5, 0.5), FullLength(2, accuracy, 0.5, 0.5))
        verdict = decide([Candidate(rows[0].policy, "candidate", runs)])
        run.verdict.write_text(json.dumps(verdict.as_dict()))
        verdict.winner.policy.save(run.best_policy)
        page = write_report(run, to=tmp_path / "page.html").read_text()
        assert sentence in page and ("more policies of full length" in page) == bool(sentence)


def test_a_path_is_no_markup_on_a_terminal(tmp_path, capsys):
    run = RunFolder(tmp_path / "[run]")
    verdict = decide([Candidate(scheme("none"), "none", (FullLength(1, 0.9, 0.5, 0.9),))])
    print_result(SearchResult(run, [], verdict.candidates, verdict), SearchConfig())
    assert capsys.readouterr().out.rstrip().endswith(str(run.best_policy))


def test_what_a_validation_found_is_on_the_page(told_run, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(told_run.path, run.path)
    outcome = {"spearman": 0.5, "spearman_interval": [-0.125, 1.0]}
    found = {
        "recommendation": {"sentence": "Trust <b>nothing</b>."},
        "predictions": [{"figure": "kd_gap", "probe_epochs": 2, **dict.fromkeys(OUTCOMES, outcome)}]
        * 17,
        "policies": [{}] * 7,
    }
    run.validation.write_text(json.dumps(found))
    page = write_report(run, to=tmp_path / "page.html").read_text()
    assert "Trust &lt;b&gt;nothing&lt;/b&gt;." in page and "of 7 policies" in page
    assert page.count("+0.50 [-0.12, +1.00]") == 3 * 15 and "2 more are in" in page
    run.validation.write_text("[]")
    with pytest.raises(UserError, match="not a validation"):
        write_report(run, to=tmp_path / "page.html")
