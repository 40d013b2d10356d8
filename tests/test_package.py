"""`pip install .`: the wheel holds every package and works from an empty folder."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    library, models = (
        {
            ".".join(file.parent.relative_to(ROOT).parts)
            for file in (ROOT / folder).rglob("__init__.py")
        }
        for folder in ("lambdanet", "models")
    )
    assert listed == library | {f"lambdanet.{name}" for name in models}


def test_wheel_works_from_an_empty_folder(tmp_path):
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    source.mkdir()
    for name in ("lambdanet", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "wheel", *options, "-w", tmp_path, source],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("lambdanet-*.whl")
    subprocess.run(
        [*pip, "install", *options, "--target", site, wheel],
        check=True,
        capture_output=True,
        timeout=300,
    )
    code = (
        "import lambdanet, lambdanet.models as m, lambdanet.models.import_weights\n"
        "from flax import nnx\n"
        "model = nnx.eval_shape(lambda: m.create_model('lambda_resnet_digits', rngs=nnx.Rngs(0)))\n"
        "print(lambdanet.__file__, type(model).__name__)"
    )
    environment = {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout and "ResNet" in done.stdout
