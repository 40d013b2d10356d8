"""The documents: paragraphs on a line, links that lead somewhere, commands and Python that run."""

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import base
from lambdanet import config as configs
from lambdanet import config_flag
from lambdanet.attention import list_attention

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        ROOT / "tests" / "golden" / "README.md",
    ]
)
README = ROOT / "README.md"

# What begins a line that is no further line of the paragraph before it.
BEGINS = re.compile(r"\s*([-*+] |\d+[.)] |[|#>]|<!--|</?\w|:::|!\[)")
# What no paragraph goes on from.
STANDS_ALONE = re.compile(r"\s*([|#]|<!--|</?\w|:::)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def lines_outside_code(text: str) -> list[tuple[int, str]]:
    """Returns number and text of the lines that are no code; of code, an empty line."""
    found, fenced, indented, before = [], False, False, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            found.append((number, ""))
        else:
            indented = line.startswith("    ") and (indented or not before.strip())
            found.append((number, "" if fenced or indented else line))
        before = line
    return found


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Returns language and text of every block of code, fenced or indented."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```\w*\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?:(?<=\n\n)|^)((?: {4}.*\n+)+)", rest)
    return fenced + [("", re.sub(r"^ {4}", "", block, flags=re.MULTILINE)) for block in indented]


def broken_paragraphs(text: str) -> list[int]:
    """Returns the lines that go on with the paragraph of the line before."""
    lines = lines_outside_code(text)
    return [
        number
        for (_, before), (number, line) in zip(lines, lines[1:], strict=False)
        if line.strip()
        and before.strip()
        and not BEGINS.match(line)
        and not STANDS_ALONE.match(before)
    ]


def slugs(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = [
        line.lstrip("#").strip()
        for _, line in lines_outside_code(page.read_text())
        if line.startswith("#")
    ]
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@functools.cache
def commands() -> list[tuple[str, list[str]]]:
    """Returns page and words of every command in the documents that starts Python."""
    found = []
    for page in PAGES:
        for language, block in code_blocks(page.read_text()):
            if language not in ("", "sh", "bash", "shell", "console"):
                continue
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                line = re.sub(r"^\s*(\$ )?(\w+=\S* )*", "", line)
                if re.match(r"(\.venv/bin/)?python3? ", line):
                    words = shlex.split(line, comments=True)
                    found.append((page.relative_to(ROOT).as_posix(), words[1:]))
    return found


def test_a_paragraph_is_one_line():
    wrong = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in PAGES
        for number in broken_paragraphs(page.read_text())
    ]
    assert not wrong, "a paragraph goes on in a second line (see CONTRIBUTING.md): " + str(wrong)


def test_what_a_broken_paragraph_is():
    text = (
        "one\ntwo\n\n- a\n  b\n- c\n\n| t |\n|---|\n| u |\n\n    code\n    code\n\n```\nx\ny\n```\n"
    )
    assert broken_paragraphs(text) == [2, 5]
    assert [code for _, code in code_blocks(text)] == ["x\ny\n", "code\ncode\n\n\n"]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 160


def test_links_lead_somewhere():
    wrong = []
    for page in PAGES:
        text = "\n".join(line for _, line in lines_outside_code(page.read_text()))
        for link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            target = (page.parent / path).resolve() if path else page
            if not target.is_file():  # folders have no page in the site
                wrong.append(f"{page.relative_to(ROOT)}: {link}: no such file")
            elif anchor and anchor not in slugs(target):
                wrong.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
            elif target == page and not anchor:
                wrong.append(f"{page.relative_to(ROOT)}: {link}: leads to the page that it is on")
    assert not wrong, "\n".join(wrong)


def test_every_page_and_picture_is_linked():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in LINK.findall(page.read_text())
    }
    there = {*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/images/**/*.*")}
    assert there <= linked, sorted(str(p.relative_to(ROOT)) for p in there - linked)


def test_the_table_of_the_readme_has_every_block():
    table = README.read_text().partition("| name | kind |")[2].partition("\n\n")[0]
    named = {n for row in table.splitlines() for n in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    ports = set(list_attention("nonlocal_*"))  # named in the row of their block
    assert named == set(list_attention()) - ports


def test_the_page_of_models_has_the_counts_of_the_suite():
    tree = ast.parse((ROOT / "tests" / "models" / "test_parameter_counts.py").read_text())
    counts = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    counts[key.value] = value.value
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|", (ROOT / "docs/models.md").read_text(), re.M)
    assert len(rows) > 70
    for name, count in rows:
        assert counts.get(name, int(count.replace(",", ""))) == int(count.replace(",", "")), name
    assert len({name for name, _ in rows} & set(counts)) > 30


def options_of(module: str) -> str:
    """Returns the sources in which the options of a program are defined."""
    path = ROOT / Path(*module.split("."))
    files = [*path.parent.glob("*.py")] if path.with_suffix(".py").is_file() else []
    return "".join(f.read_text() for f in [*files, *path.glob("*.py")])


def test_commands_in_the_documents_exist():
    """Programs, modes, flags, recipes and keys are there, and values are of the right type."""
    flags = "".join(f.read_text() for f in ROOT.glob("lambdanet/*flag*.py"))
    sources = {name: (ROOT / name).read_text() + flags for name in ("train.py", "eval.py")}
    schema, checked, wrong = base.get_config(), 0, []
    for page, words in commands():
        shown = f"{page}: python {' '.join(words)}"
        if words[0] == "-m":
            program, words = words[1], words[2:]
            if program.split(".")[0] not in ("lambdanet", "models", "benchmarks"):
                continue  # pip and the like
            text = options_of(program)
        elif words[0].endswith(".py"):
            program, words = words[0], words[1:]
            if len(Path(program).stem) == 1:  # a program of the reader's
                continue
            text = sources.get(program) or (
                (ROOT / program).read_text() if (ROOT / program).is_file() else ""
            )
        else:
            continue
        checked += 1
        if not text:
            wrong.append(f"{shown}: no such program")
        keys, recipe = {}, None
        for word in words:
            name, _, value = word.partition("=")
            if name == "--config":
                recipe = value
            elif name.startswith("--config."):
                keys[name.removeprefix("--config.")] = value
            elif name.startswith("--") and not re.search(
                rf"""["'](--)?(no)?{name[2:].removeprefix("no")}["']""", text
            ):
                wrong.append(f"{shown}: {program} has no {name}")
        if program == "eval.py":
            modes = [w.partition("=")[2] for w in words if w.startswith("--mode=")]
            wrong += [f"{shown}: {m}" for m in modes if f'"{m}"' not in text and m != "MODE"]
        if recipe and not re.search(r"FILE|NAME|\$|\.\.\.", recipe):
            try:
                plain = config_flag.load_recipe(str(ROOT / recipe))
            except configs.ConfigError as error:
                wrong.append(f"{shown}: {error}")
                continue
            for key in keys:
                section, _, rest = key.partition(".")
                known = configs.to_plain(plain if section == "model" else schema).get(section)
                if known is None or (section != "model" and rest and rest not in known):
                    wrong.append(f"{shown}: no key {key}")
    assert checked > 40
    assert not wrong, "\n".join(wrong)


def test_the_python_of_the_readme_runs():
    (block,) = [code for language, code in code_blocks(README.read_text()) if language == "python"]
    assert len([line for line in block.splitlines() if line.strip()]) <= 13
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["y"].shape == (2, 14, 14, 32)
    assert [m.shape for m in names["maps"]] == [
        (1, 24, 16, 64),
        (1, 12, 8, 128),
        (1, 6, 4, 256),
        (1, 3, 2, 512),
    ]


def test_every_recipe_is_in_the_page_of_recipes():
    table = (ROOT / "docs" / "recipes.md").read_text()
    recipes = {p.name for p in ROOT.glob("configs/*.py")} - {"__init__.py", "base.py", "smoke.py"}
    assert {n for n in recipes if f"`configs/{n}`" in table} == recipes


@pytest.mark.exhaustive
def test_the_commands_of_the_readme_run(tmp_path):
    """The five commands as they stand there, on a few small pictures and for a few steps."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        for name in ("hat", "shirt", "shoes"):
            folder = tmp_path / "clothing" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (block,) = [b for _, b in code_blocks(README.read_text()) if "data.prepare" in b]
    tiny = ["--config.train.steps=3", "--config.train.batch_size=4"]
    tiny += ["--config.data.image_size=(32, 32)", "--config.model.widths=(4, 4, 8, 8)"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = [shlex.split(line) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    assert len(commands) == 5
    for program, *words in commands:
        assert program == "python"
        more = tiny if words[0] == "train.py" else []
        words = [
            re.sub(r"(?<![\w/])(train\.py|eval\.py|configs/)", rf"{ROOT}/\1", w) for w in words
        ]
        done = subprocess.run(
            [sys.executable, *words, *more], cwd=tmp_path, env=environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "clothing" / "report.md").is_file()
    assert (tmp_path / "runs" / "clothing" / "eval" / "model.stablehlo").is_file()
