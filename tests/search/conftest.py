"""One local Ray cluster for all tests of a module that ask for it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from object_store import CREDENTIALS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two CPUs; teachers are cached in a folder of the module's own.

    Its workers can import what lies in tests/fixtures, and have the credentials of its S3 server.
    """
    patch = pytest.MonkeyPatch()
    fixtures = str(Path(__file__).parent.parent / "fixtures")
    patch.syspath_prepend(fixtures)
    patch.setenv("PYTHONPATH", fixtures, prepend=os.pathsep)
    for name, value in CREDENTIALS.items():
        patch.setenv(name, value)
    patch.setenv("AUGURY_CACHE", str(tmp_path_factory.mktemp("cache")))
    # Ray's sockets lie in its folder, and the path of a socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        context = ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield context.address_info["address"]
        ray.shutdown()
    patch.undo()
