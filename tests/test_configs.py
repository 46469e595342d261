"""Every config that is shipped loads, and the one of the embedded search is the embedded search."""

from pathlib import Path

import pytest

from search.config import SearchConfig, load_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_loads(path):
    assert isinstance(load_config(path), SearchConfig)


def test_digits_is_what_runs_without_a_config(repo_root):
    assert load_config(repo_root / "configs" / "digits.yaml") == SearchConfig()
