"""What the site of `make docs` has beside the pages of docs/: those of the repository's top level,
and the files of the repository that pages link to, as text.

Links are written for the repository's view: `../lambdanet/attention/se.py` from a page in docs/. In
the site a file outside docs/ is source/<its path>.txt.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages of the top level, and what they are called in the site."""
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")
"""The path of a relative link, without its anchor."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the top level and the files that any page links to."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    linked = set()
    for file in files.documentation_pages():
        for path in LINK.findall(Path(file.abs_src_path).read_text()):
            target = _target(path, file.src_uri)
            if not target.startswith("docs/") and target not in TOP:
                linked.add(target)
    for target in sorted(linked):
        if (ROOT / target).is_file():  # what is not there is left to the check of links
            text = (ROOT / target).read_text()
            files.append(File.generated(config, f"source/{target}.txt", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts a page's links where the site has what they lead to."""

    def in_site(match: re.Match) -> str:
        target = _target(match[1], page.file.src_uri)
        place = TOP.get(target) or target.removeprefix("docs/")
        if place == target:
            place = f"source/{target}.txt"
        return os.path.relpath(place, os.path.dirname(page.file.src_uri) or ".")

    return LINK.sub(in_site, markdown)


def _target(path: str, page: str) -> str:
    """The path in the repository that a link of a page leads to."""
    folder = "" if page in TOP.values() else os.path.dirname(f"docs/{page}")
    return os.path.normpath(os.path.join(folder, path))
