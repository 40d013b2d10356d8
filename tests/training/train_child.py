"""Runs the real train.py in a process of its own that a signal meets at an exact batch; started by
test_resume.py.

Usage: train_child.py <kill|term|none> <batch> <train.py flags>.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Signalling:
    """Training batches that send this process a signal when batch number `at` is asked for."""

    def __init__(self, batches, action, at):
        self._batches, self._action, self._at = batches, action, at
        self.state, self.close = batches.state, batches.close

    def __next__(self):
        if self._action != "none" and self.state()["batches"] == self._at:
            if self._action == "kill":
                # The save before runs in the background; kill -9 in the middle of one is a case of
                # its own (test_checkpoint.py).
                workdir = next(a.partition("=")[2] for a in sys.argv if a.startswith("--workdir="))
                saved = Path(workdir) / "checkpoints"
                while not any(folder.name.isdigit() for folder in saved.glob("*")):
                    time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL if self._action == "kill" else signal.SIGTERM)
        return next(self._batches)


if __name__ == "__main__":
    action, at, flags = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    sys.path.insert(0, str(ROOT))
    from lambdanet import data

    original = data.train_batches
    data.train_batches = lambda *args, **options: Signalling(original(*args, **options), action, at)
    sys.argv = [str(ROOT / "train.py"), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")
