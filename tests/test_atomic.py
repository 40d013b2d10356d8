"""Files appear whole or not at all."""

import os
import stat

import pytest

from lambdanet.atomic import write_file


def test_text_bytes_and_functions_are_written_with_the_usual_mode(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    for content, wanted in (("é", "é".encode()), (b"\0", b"\0")):
        path = write_file(tmp_path / "a", content)
        assert path.read_bytes() == wanted
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask

    def write(name):
        with open(name, "w") as file:
            file.write("function")

    assert write_file(tmp_path / "a", write).read_text() == "function"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    write_file(tmp_path / "a", "old")

    def fail(name):
        with open(name, "w") as file:
            file.write("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", fail)
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the directory .*gone does not exist"):
        write_file(tmp_path / "gone" / "a", "x")
