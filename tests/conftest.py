"""What all tests share: quiet, repeatable libraries and the paths of the repository."""

import os
from pathlib import Path

# Before Ray is imported anywhere: no token file in the home folder, no calls home.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return Path(__file__).parent / "fixtures"
