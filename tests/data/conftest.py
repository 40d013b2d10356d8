"""Data sets shared by the data tests: the prepared digits and a small folder of JPEGs."""

import pytest
from data_helpers import jpeg

from configs import base
from lambdanet.data import digits


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A data_dir with the prepared digits."""
    directory = tmp_path_factory.mktemp("data")
    digits.prepare(str(directory))
    return str(directory)


@pytest.fixture
def config(digits_dir):
    """The config section `data` of the digits, with shifts and flips on."""
    data = base.get_config().data
    data.data_dir = digits_dir
    data.crop, data.shift, data.flip = "shift", 1, 0.5
    return data


@pytest.fixture
def folder(tmp_path):
    """source/<class>/<n>.jpg: 10 images each of 'cat' (red) and 'dog' (blue)."""
    root = tmp_path / "source"
    for name, colour in (("cat", (250, 0, 0)), ("dog", (0, 0, 250))):
        (root / name).mkdir(parents=True)
        for i in range(10):
            (root / name / f"{i}.jpg").write_bytes(jpeg(colour))
    return root
