"""SIGTERM and Ctrl-C: before a run, once and twice within it; one line each, never a traceback."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lambdanet.training import signals

ROOT = Path(__file__).resolve().parents[2]
BEFORE = """
import time
from lambdanet import interrupt
interrupt.leave_quietly()
print("ready", flush=True)
time.sleep(60)
"""
WITHIN = """
import time
from lambdanet import interrupt
interrupt.leave_quietly()
from lambdanet.training import signals
class Swallowing:
    # Exceptions in __del__ are ignored, as those in JAX's callbacks are.
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
        print("slept on after", *received, flush=True)  # not reached: the second signal ends it
with signals.Received() as received:
    Swallowing()
    print("went on", flush=True)
"""


def start(program):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_before_a_run_a_signal_ends_with_one_line(number, code):
    child = start(BEFORE)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (code, "")
    assert err == f"{number.name}: ended; what is saved is whole\n"


def test_within_a_run_the_first_is_a_wish_and_the_second_ends_with_one_line():
    child = start(WITHIN)
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline().startswith("SIGINT: stops after this step and saves")
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (143, "")
    assert err == "SIGTERM: ended; what is saved is whole\n"


def test_handlers_are_put_back():
    found = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # other code of this process may have one
    before = signal.getsignal(signal.SIGTERM)
    with signals.Received() as received:
        signal.raise_signal(signal.SIGTERM)  # os.kill may reach another thread, and so come late
        assert received == ["SIGTERM"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match="second signal"):
            signal.raise_signal(signal.SIGTERM)
        received.release()
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, found)
