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
        "lambdanet.drawing",
        "lambdanet.config",
    ],
    "lambdanet/ops": [
        "lambdanet.attention",
        "lambdanet.layers",
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.drawing",
    ],
    "lambdanet/drawing": [
        "lambdanet.tasks",
        "lambdanet.attention",
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.interop",
        "lambdanet.analysis",
        "lambdanet.layers",
        "lambdanet.ops",
        "lambdanet.config",
    ],
    "lambdanet/experimental": ["lambdanet"],
    "lambdanet/layers": [
        "lambdanet.attention",
        "lambdanet.data",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.drawing",
    ],
    "lambdanet/data": [
        "lambdanet.tasks",
        "lambdanet.attention",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "lambdanet/tasks": ["lambdanet.attention", "lambdanet.training", "lambdanet.interop"],
    "lambdanet/training": [
        "lambdanet.tasks",
        "lambdanet.attention",
        "lambdanet.analysis",
        "lambdanet.drawing",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "lambdanet/interop": [
        "lambdanet.tasks",
        "lambdanet.attention",
        "lambdanet.training",
        "lambdanet.analysis",
        "lambdanet.drawing",
        "lambdanet.layers",
        "lambdanet.ops",
    ],
    "models": ["models", "configs", "train", "eval", "benchmarks", "lambdanet.models"],
}


def imported_modules(path: Path, *, late: bool = True) -> set[str]:
    """Returns the absolute names of all modules that a file imports: anywhere in it, or without
    `late` outside functions."""
    names, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
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
        for name in imported_modules(path)
        for forbidden in FORBIDDEN[package]
        if name == forbidden or name.startswith(forbidden + ".")
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_experimental_is_imported_inside_functions_alone():
    files = [path for room in ("lambdanet", "models") for path in (ROOT / room).rglob("*.py")]
    users = {}
    for late in (False, True):
        names = {path: imported_modules(path, late=late) for path in files}
        users[late] = [p for p in files if any("lambdanet.experimental" in n for n in names[p])]
    assert users == {False: [], True: [ROOT / "lambdanet/ops/position_lambda.py"]}


def test_no_tensorflow_and_no_torch_at_import():
    for path in [
        *ROOT.glob("*.py"),
        *(ROOT / "lambdanet").rglob("*.py"),
        *(ROOT / "models").rglob("*.py"),
    ]:
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & {"tensorflow", "torch", "clu"}, path
