"""One run at a time in a workdir: a second start is refused, a dead process holds nothing."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train
from configs import digits
from lambdanet.training import run_lock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from lambdanet.training import run_lock
with run_lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_start_touches_nothing(tmp_path):
    config = digits.get_config("conv")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "split": "train"}\n')
    with run_lock.hold(tmp_path):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        with pytest.raises(run_lock.WorkdirBusyError) as error:
            train.run(config, tmp_path, stream=io.StringIO())
        text = str(error.value)
        assert f"process {os.getpid()} on " in text and "since" in text and "--workdir" in text
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    with run_lock.hold(tmp_path):  # given back
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(run_lock.WorkdirBusyError, match=f"process {child.pid} on .*kill"):
        with run_lock.hold(tmp_path):
            pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    with run_lock.hold(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / run_lock.FILE_NAME).read_text()


def test_where_the_file_system_knows_no_locks_a_living_process_counts(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(run_lock._UNSUPPORTED[0], "no locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    path = tmp_path / run_lock.FILE_NAME
    host = run_lock.socket.gethostname()
    path.write_text(f'{{"pid": {os.getppid()}, "host": "{host}", "since": "today"}}')
    with pytest.raises(run_lock.WorkdirBusyError, match="since today"):
        with run_lock.hold(tmp_path):
            pass
    gone = subprocess.Popen(["true"])
    gone.wait()
    path.write_text(f'{{"pid": {gone.pid}, "host": "{host}"}}')
    with run_lock.hold(tmp_path):
        pass
    path.write_text("not json")
    with run_lock.hold(tmp_path):
        pass
