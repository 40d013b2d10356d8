"""The dependency direction of the code base, read from the import statements."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# package -> packages of this project that it must not import
FORBIDDEN = {
    "lambdanet": ["models", "configs", "train", "eval", "benchmarks"],
    "lambdanet/attention": [
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.config",
    ],
    "lambdanet/ops": [
        "lambdanet.attention",
        "lambdanet.layers",
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.analysis",
    ],
    "lambdanet/layers": [
        "lambdanet.attention",
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.analysis",
    ],
    "lambdanet/data": [
        "lambdanet.attention",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "lambdanet/training": [
        "lambdanet.attention",
        "lambdanet.analysis",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "lambdanet/interop": [
        "lambdanet.attention",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "models": ["models", "configs", "train", "eval", "benchmarks", "lambdanet.models"],
}

# `python -m lambdanet.interop.import_weights` has its name from what it is about, but it is a
# program: like train.py and eval.py it stands above everything, and nothing imports it. What it
# imports as a module is one file of lambdanet.analysis, which reads the weights; models are
# imported when it is run, and a caller of its `main` hands them in.
PROGRAM = "lambdanet/interop/import_weights.py"


def imported_modules(path: Path, *, when_run: bool = True) -> set[str]:
    """Returns the absolute names of all modules that a file imports, wherever the statement stands.

    With `when_run=False`, without those below `if __name__ == "__main__"`.
    """
    names, tree = set(), ast.parse(path.read_text())
    if not when_run:
        tree.body = [
            node
            for node in tree.body
            if not ast.unparse(node).startswith("if __name__ == '__main__':")
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_direction(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no files in {package}"
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported_modules(path, when_run=path != ROOT / PROGRAM)
        for forbidden in FORBIDDEN[package]
        if name == forbidden or name.startswith(forbidden + ".")
        if path != ROOT / PROGRAM or not name.startswith("lambdanet.analysis.weight_import")
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_stands_above_the_program_in_interop():
    assert {"models", "lambdanet.models"} <= imported_modules(ROOT / PROGRAM) - imported_modules(
        ROOT / PROGRAM, when_run=False
    )
    for path in [
        *ROOT.glob("*.py"),
        *(ROOT / "lambdanet").rglob("*.py"),
        *(ROOT / "models").rglob("*.py"),
    ]:
        assert not {
            name
            for name in imported_modules(path)
            if name.startswith("lambdanet.interop.import_weights")
        }, path


def test_no_tensorflow_and_no_torch_at_import():
    for path in [
        *ROOT.glob("*.py"),
        *(ROOT / "lambdanet").rglob("*.py"),
        *(ROOT / "models").rglob("*.py"),
    ]:
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"tensorflow", "torch", "clu"}, path
