"""A thousand wrong configs; started by `make chaos`. CHAOS_CONFIGS says how many."""

import os

import wrong_configs

COUNT = int(os.environ.get("CHAOS_CONFIGS", "1000"))


def test_wrong_configs(tmp_path, monkeypatch):
    cases = wrong_configs.make_cases(COUNT, seed=1)
    found = {
        repr(case)[:300]: wrong_configs.verdict(case, tmp_path, str(tmp_path / "data"), monkeypatch)
        for case in cases
    }
    wrong = {case: what for case, what in found.items() if what}
    print(f"\n{len(found) - len(wrong)} of {len(found)} wrong configs answered by a clear error")
    assert not wrong, "\n".join(f"{case}\n    {what}" for case, what in wrong.items())
