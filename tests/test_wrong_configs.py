"""A few of the wrong configs that `make chaos` tries by the thousand."""

import pytest
import wrong_configs

from lambdanet.data import cued_digits


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where sets are prepared, that of cued digits with a tenth of its pictures."""
    with pytest.MonkeyPatch.context() as patch:
        splits = {split: count // 10 for split, count in cued_digits.SPLITS.items()}
        patch.setattr(cued_digits, "SPLITS", splits)
        yield str(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "case", wrong_configs.make_cases(42), ids=lambda case: "+".join(case.overrides)[:60]
)
def test_a_wrong_config_is_answered_before_device_work(case, tmp_path, data_dir, monkeypatch):
    assert not wrong_configs.verdict(case, tmp_path, data_dir, monkeypatch), case
