"""Sources of weights: files, folders, workdirs, and repositories of a hub on this machine."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_helpers import serve, use

from lambdanet.interop import files, sources
from lambdanet.interop.reading import WeightsFileError
from lambdanet.training import checkpoint

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def weights(tmp_path):
    """A weights file, by its name."""

    def make(name="model.safetensors", folder="made"):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        files.save_safetensors(path, {"fc.weight": np.ones((2, 3), np.float32)})
        return path

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        yield hub


def refused(source, *texts):
    with pytest.raises((WeightsFileError, FileNotFoundError)) as caught:
        sources.resolve(source)
    said = str(caught.value)
    for text in texts:
        assert text in said, said
    return said


# ---- On the disk ---------------------------------------------------------------------------------


def test_files_and_folders(weights, tmp_path):
    path = weights("a.pth")
    assert sources.resolve(path) == sources.Source(path, False, str(path))
    assert sources.resolve(path.parent).path == path  # the only one
    (path.parent / "notes.txt").write_text("")
    assert sources.resolve(str(path.parent)).path == path
    weights("b.pth")
    refused(path.parent, "several weights files", "a.pth, b.pth", "name one")
    usual = weights("pytorch_model.bin")
    assert sources.resolve(path.parent).path == usual
    better = weights("model.safetensors")
    found = sources.resolve(path.parent)
    assert found.path == better and not found.is_run
    assert sources.resolve(found) is found
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    refused(tmp_path / "empty", "no weights file", ".safetensors", "there are: notes.txt")
    refused(tmp_path / "made" / "c.pth", "no weights file", "there are: a.pth, b.pth")
    for name in (".secret.pth", "notes.txt"):
        (tmp_path / "made" / name).write_text("")
    for name in ("run/checkpoints", "pictures"):
        (tmp_path / "made" / name).mkdir(parents=True)
    said = "there are: a.pth, b.pth, model.safetensors, pytorch_model.bin, run"
    with pytest.raises(FileNotFoundError) as error:
        sources.resolve(tmp_path / "made" / "c.pth")
    assert str(error.value).endswith(said)
    with pytest.raises(FileNotFoundError, match="there are: no weights files and no runs$"):
        sources.resolve(tmp_path / "empty" / "c.pth")
    refused("x" * 5000, "no such file")


@pytest.mark.parametrize("kind", [str, Path])
def test_addresses_are_not_paths(kind):
    for given in ("https://a.org/net.pth", "HTTP://a.org/net.pth", "s3://bucket/net.pth"):
        refused(kind(given), "is an address", "hf:OWNER/NAME", "Download it and name the file")


def test_the_home_is_known_behind_an_equals_sign(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = weights()
    assert sources.resolve("~/made/model.safetensors") == sources.Source(path, False, str(path))
    assert sources.resolve("~/made").path == path


def test_a_workdir_is_a_run(tmp_path):
    (tmp_path / checkpoint.FOLDER).mkdir()
    assert sources.resolve(tmp_path) == sources.Source(tmp_path, True, str(tmp_path))


# ---- On the hub ----------------------------------------------------------------------------------


def test_repositories_are_fetched_once(weights, hub, monkeypatch, tmp_path):
    first, second = weights(folder="one"), weights("net.pth", folder="two")
    second.write_bytes(second.read_bytes() + b" ")  # one file would be fetched for both
    hub.add("me/net", first, second, first.parent / "README.md")
    (first.parent / "README.md").write_text("no weights")
    found = sources.resolve("hf:me/net")
    assert found.path.read_bytes() == first.read_bytes() and str(found) == "hf:me/net"
    assert not found.is_run and found.path.is_relative_to(tmp_path / "cache")
    assert sources.resolve("hf:me/net/net.pth").path.name == "net.pth"
    gets = [line for line in hub.asked if line.startswith("GET /me")]
    assert len(gets) == 2
    sources.resolve("hf:me/net"), sources.resolve("hf:me/net/net.pth")
    assert [line for line in hub.asked if line.startswith("GET /me")] == gets
    # offline, nothing is asked
    use(hub, tmp_path / "cache", monkeypatch, offline=True)
    asked = list(hub.asked)
    assert sources.resolve("hf:me/net") == found
    assert sources.resolve("hf:me/net/net.pth").path.name == "net.pth"
    assert hub.asked == asked


def test_a_revision(weights, hub):
    old, new = weights(folder="old"), weights("only.npz", folder="new")
    hub.add("me/net", old)
    hub.add("me/net", new, revision="v2")
    assert sources.resolve("hf:me/net").path.name == "model.safetensors"
    assert sources.resolve("hf:me/net@v2").path.name == "only.npz"
    refused("hf:me/net@v3", "no revision v3", "there are: main, v2")


def test_what_the_hub_has_not(weights, hub):
    one, other = weights("one.pth"), weights("other.pth")
    hub.add("me/net", one, other)
    refused("hf:me/net", "several weights files", "one.pth, other.pth")
    refused("hf:me/net/model.bin", "no file model.bin", "there are: one.pth, other.pth")
    refused("hf:me/nat", "no repository me/nat", hub.address, "--pretrained", "HF_TOKEN")
    (one.parent / "README.md").write_text("")
    hub.add("me/docs", one.parent / "README.md")
    refused("hf:me/docs", "no weights file", "there are: README.md")
    for wrong in ("hf:net", "hf:", "hf:me/net@", "hf:me/net@a b", "hf:me/-net--x"):
        refused(wrong, "hf:OWNER/NAME[@REVISION][/FILE]")


def test_a_hub_that_cannot_be_reached(weights, tmp_path, monkeypatch):
    with serve() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        hub.add("me/net", weights())
        found = sources.resolve("hf:me/net")
    assert sources.resolve("hf:me/net") == found  # of the cache
    for source in ("hf:me/other", "hf:me/net@v2", "hf:me/net/net.pth"):
        refused(source, "cannot be reached", hub.address, "not in the cache", "HF_ENDPOINT")
    use(hub, tmp_path / "cache", monkeypatch, offline=True)
    refused("hf:me/other", "HF_HUB_OFFLINE is set", "not in the cache", "unset HF_HUB_OFFLINE")


GATED = {"X-Error-Code": "GatedRepo"}
INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}
REFUSALS = [
    (401, GATED, "agree to its terms", "HF_TOKEN"),
    (403, GATED, "agree to its terms", "HF_TOKEN"),
    (401, {"X-Error-Code": "RepoNotFound"}, "or it is private", "HF_TOKEN"),
    (401, INVALID, "refuses", "unset one that is not valid"),
    (403, {}, "refuses", "a token that may read it"),
    (400, {}, "refuses"),
    (429, {}, "no more requests for now", "try later", "HF_TOKEN"),
    (500, {}, "answers with an error (status 500)", "try later"),
    (503, {}, "answers with an error (status 503)", "try later"),
]


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("status", "headers", "texts"), [(s, h, t) for s, h, *t in REFUSALS])
def test_a_hub_that_refuses(weights, hub, status, headers, texts, listed, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between tries
    if listed:  # as gated repositories are
        hub.add("me/net", weights())
    hub.refused["me/net"] = status, headers
    said = refused("hf:me/net", *texts)
    assert "cannot be reached" not in said and "check the network" not in said


@pytest.mark.parametrize("status", [429, 503])
def test_what_is_cached_is_read_while_the_hub_refuses(weights, hub, status, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add("me/net", weights())
    found = sources.resolve("hf:me/net")
    hub.refused["me/net"] = status, {}
    assert sources.resolve("hf:me/net") == found
    hub.files.clear()
    assert sources.resolve("hf:me/net") == found


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written(weights, hub, tmp_path, monkeypatch, number):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), str(tmp_path / "cache"))

    hub.add("me/net", weights())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    said = refused("hf:me/net", "cannot be written", os.strerror(number), "HF_HOME", "make room")
    assert "cannot be reached" not in said


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:me/net", "pip install 'lambdanet[hub]'", "pip install '.[hub]'")


def test_the_hubs_variables_hold(weights, tmp_path):
    """In a program of its own, as the package reads them when it is imported."""

    def run(**variables):
        code = "import sys; from lambdanet.interop.sources import resolve; print(resolve('hf:me/net').path)"  # noqa: E501
        return subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), **variables},
        ).stdout.strip()  # fmt: skip

    with serve() as hub:
        hub.add("me/net", weights())
        fetched = run(HF_ENDPOINT=hub.address)
    assert Path(fetched).is_relative_to(tmp_path / "home")
    assert run(HF_ENDPOINT=hub.address, HF_HUB_OFFLINE="1") == fetched
