"""The text that the demo learns: English that every Python installation already has, so that nothing is downloaded.

First choice is the Python language reference as CPython ships it for `help("topics")`; some distributions leave it
out, and then the docstrings of the standard library stand in. Both repeat themselves (a section of the reference is
part of several topics, docstrings are copied between classes), so each paragraph is kept once: otherwise the held-out
text would have been seen in training.
"""

from __future__ import annotations

import ast
import platform
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path

ENOUGH = 50_000  # characters; less than this is not worth training on
MOST_DOCSTRINGS = 500_000
_TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "•": "*"})


@dataclass
class Corpus:
    """A text, and where it comes from."""

    source: str
    licence: str
    text: str


def load() -> Corpus:
    """The language reference, or the docstrings where it is missing.

    Raises:
        RuntimeError: this Python has neither.
    """
    for read in (language_reference, docstrings):
        corpus = read()
        if corpus is not None and len(corpus.text) >= ENOUGH:
            return corpus
    raise RuntimeError("demo: this Python ships neither pydoc_data.topics nor the sources of its standard library")


def language_reference() -> Corpus | None:
    """The topics of the Python language reference, or None where the distribution leaves them out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return None
    source = f"Python language reference, as shipped with CPython {platform.python_version()} (pydoc_data.topics)"
    text = clean(topic for _, topic in sorted(topics.items()))
    return Corpus(source, "(c) Python Software Foundation, PSF License Version 2", text)


def docstrings() -> Corpus | None:
    """The docstrings of the standard library, parsed from its sources: importing every module would run it."""
    found, size = [], 0
    folder = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file() and size < MOST_DOCSTRINGS:
                texts = _docstrings_of(path)
                found += texts
                size += sum(map(len, texts))
    if not found:
        return None
    version = platform.python_version()
    source = f"docstrings of the standard library of CPython {version} (this Python has no pydoc_data.topics)"
    return Corpus(source, "(c) Python Software Foundation, PSF License Version 2", clean(found))


def _docstrings_of(path: Path) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old escapes in somebody else's source
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            return []
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [text for text in texts if text]


def clean(parts) -> str:
    """Printable ASCII, one newline style, and every paragraph once, in the order of its first appearance."""
    text = "\n\n".join(parts).translate(_TYPOGRAPHY).replace("\t", "    ")
    text = "".join(c if c == "\n" or " " <= c <= "~" else "?" for c in text)
    return "\n\n".join(dict.fromkeys(p.strip("\n") for p in text.split("\n\n") if p.strip()))
