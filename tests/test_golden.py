"""Every golden fixture of a directory, one test per file: outputs, gradients and statistics equal
the reference's.

pytest tests/test_golden.py [--golden-dir DIR] [--golden-family GLOB]
"""

import fnmatch
from pathlib import Path

import pytest
from golden_families import FAMILIES
from golden_harness import Fixture, check


def pytest_generate_tests(metafunc):
    if "golden_file" not in metafunc.fixturenames:
        return
    folder = Path(metafunc.config.getoption("--golden-dir"))
    pattern = metafunc.config.getoption("--golden-family")
    files = sorted(folder.glob("*.npz"))
    chosen = [path for path in files if pattern == "*" or _matches(path, pattern)]
    if not chosen:  # an empty parameter list would be skipped, and skipping proves nothing
        raise pytest.UsageError(
            f"no golden fixture to test: {folder} holds {len(files)} .npz files, "
            f"--golden-family={pattern} keeps none"
        )
    metafunc.parametrize("golden_file", chosen, ids=[path.stem for path in chosen])


def _matches(path: Path, pattern: str) -> bool:
    return fnmatch.fnmatch(path.stem, pattern) or fnmatch.fnmatch(
        Fixture.load(path).family, pattern
    )


def test_golden(golden_file):
    check(Fixture.load(golden_file), FAMILIES)
