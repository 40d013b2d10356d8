"""XML files as trees whose elements know their lines, for messages that say where a mistake is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.parsers import expat

MAX_BYTES = 2**26


@dataclasses.dataclass
class Element:
    """An element.

    Attributes:
        tag: its name.
        line: where it begins, from 1.
        text: what stands in it, stripped, without that of its children.
        children: in order.
    """

    tag: str
    line: int
    text: str = ""
    children: list[Element] = dataclasses.field(default_factory=list)

    def all(self, tag: str) -> list[Element]:
        """Returns the children of that name."""
        return [child for child in self.children if child.tag == tag]

    def find(self, tag: str) -> Element | None:
        """Returns the first child of that name, or None."""
        return next(iter(self.all(tag)), None)

    def text_of(self, tag: str) -> str:
        """Returns the text of the first child of that name, '' if there is none."""
        child = self.find(tag)
        return "" if child is None else child.text


class _HasDoctypeError(Exception):
    """Raised while the file is read."""


def read(file: Path) -> Element:
    """Returns the outermost element of a file.

    Raises:
        ValueError: no XML, with line and column; a document type, which could define entities.
        OSError: the file cannot be read.
    """
    if file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file.stat().st_size} bytes; allowed: up to {MAX_BYTES}")
    parser = expat.ParserCreate()
    top = Element("", 0)
    open_elements = [top]

    def start(tag: str, attributes: dict) -> None:
        element = Element(tag, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        element = open_elements.pop()
        element.text = element.text.strip()

    def characters(text: str) -> None:
        open_elements[-1].text += text

    def doctype(*about: object) -> None:
        raise _HasDoctypeError

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, doctype
    parser.buffer_text = True
    try:
        parser.Parse(file.read_bytes(), True)
    except _HasDoctypeError:
        raise ValueError("it has a document type, which annotations have not") from None
    except expat.ExpatError as error:
        raise ValueError(f"cannot be read as XML ({error})") from error
    except (LookupError, ValueError) as error:  # encodings that nobody knows, or of many bytes
        raise ValueError(f"cannot be read as XML ({error}); store it as UTF-8") from error
    return top.children[0]
