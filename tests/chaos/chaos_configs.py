"""A thousand wrong configs; started by `make chaos`. CHAOS_CONFIGS says how many."""

import os
import resource

import wrong_configs

from lambdanet import data

COUNT = int(os.environ.get("CHAOS_CONFIGS", "1000"))


def test_wrong_configs(tmp_path, monkeypatch):
    folder = str(tmp_path / "data")
    for recipe in ("digits", "cued_digits"):  # preparing is no part of what is timed
        section = wrong_configs.RECIPES[recipe]().data
        section.data_dir = folder
        data.prepare_embedded(section)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        f"{number}: {case!r}"[:300]: wrong_configs.verdict(
            case, tmp_path / "run", folder, monkeypatch
        )
        for number, case in enumerate(wrong_configs.make_cases(COUNT, seed=1))
    }
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    wrong = {case: what for case, what in found.items() if what}
    print(f"\n{len(found) - len(wrong)} of {len(found)} wrong configs answered by a clear error")
    print(f"the largest of them took {grown:.2f} GiB more than the first")
    assert not wrong, "\n".join(f"{case}\n    {what}" for case, what in wrong.items())
    assert grown < 2
