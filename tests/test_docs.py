"""What the documentation shows: its code runs, its commands and files exist, examples work."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

SOURCE = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/semantics.md",
    "docs/kernels.md",
    "docs/cuda.md",
    "docs/attention.md",
    "docs/decoder.md",
    "docs/diagnostics.md",
    "CONTRIBUTING.md",
    "bench/README.md",
]
EXAMPLES = sorted(SOURCE.glob("examples/*.py"))
PACKAGE = Path(fastrnn.__file__).parent
WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())
PAGES_WITH_CODE = [
    "README.md",
    "docs/semantics.md",
    "docs/kernels.md",
    "docs/attention.md",
    "docs/decoder.md",
    "docs/diagnostics.md",
]
PAGES_WITH_COMMANDS = ["README.md", "CONTRIBUTING.md", "bench/README.md"]
TORCH_FREE_PAGES = {"docs/kernels.md"}

pytestmark = pytest.mark.skipif(not (SOURCE / "README.md").is_file(), reason="no source tree beside the tests")


def page(name: str) -> str:
    return (SOURCE / name).read_text()


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", PAGES_WITH_CODE)
def test_code_blocks_run_in_order(name, tmp_path):
    if name not in TORCH_FREE_PAGES:
        pytest.importorskip("torch")
    path = tmp_path / f"{Path(name).stem}.py"
    path.write_text("\n".join(python_blocks(name)))  # a process of its own: some blocks change settings
    result = run(str(path))
    assert result.returncode == 0, result.stderr


def test_no_page_is_left_out():
    assert [name for name in PAGES if python_blocks(name)] == PAGES_WITH_CODE
    assert [name for name in PAGES if "python -m fastrnn" in page(name)] == PAGES_WITH_COMMANDS
    assert {str(path.relative_to(SOURCE)) for path in SOURCE.glob("docs/*.md")} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    folder = (SOURCE / name).parent
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", page(name)) if not t.startswith("http")]
    assert [t for t in targets if not (folder / t).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    """Paths in backquotes that begin with a folder of the repository; <words> and * stand for anything."""
    named = re.findall(r"`((?:csrc|python|tests|bench|docs|examples)/[^` ]*)`", page(name))
    assert [p for p in named if not any(SOURCE.glob(re.sub(r"<\w+>", "*", p).rstrip("/")))] == []


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z]+)(?: [a-z]+)*:(?!=)", page("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z]+)", page(name), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("name", PAGES_WITH_COMMANDS)
def test_options_of_commands_exist(name):
    """Every `python -m fastrnn <command> --option` that a page shows."""
    for command, rest in re.findall(r"python -m fastrnn (\w+)([^`\n#]*)", page(name)):
        shown = run("-m", "fastrnn", *([command, "--help"] if command != "info" else ["--help"]))
        assert shown.returncode == 0, shown.stderr
        assert command in shown.stdout
        options = re.findall(r"--[\w-]+", rest)
        assert [o for o in options if o not in shown.stdout] == [], command


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    """Examples end with assertions about what they have printed."""
    pytest.importorskip("torch")
    options = ()
    if path.stem == "transduction":  # a training: here a few steps of it
        pytest.importorskip("babel")
        picture = tmp_path / "alignment.png"
        options = ("--steps=3", "--batch=8", "--hidden=16", "--held-out=10", f"--picture={picture}")
    result = run(str(path), *options)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 3
    assert not options or picture.read_bytes().startswith(b"\x89PNG")
    assert "assert" in path.read_text()


def test_examples_are_short():
    assert len(EXAMPLES) == 6
    lines = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES}
    assert lines.pop("transduction.py") < 200  # the one that trains a model
    assert max(lines.values()) <= 60


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_docstring_examples(path):
    if re.search(r"^import torch|^from torch", path.read_text(), re.MULTILINE):
        pytest.importorskip("torch")
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    module = importlib.import_module(name.removesuffix(".__init__"))
    names = {"torch": sys.modules["torch"]} if "torch" in sys.modules else {}
    found = doctest.testmod(module, globs=names | vars(module))
    assert found.attempted > 0
    assert found.failed == 0


def test_public_modules_have_examples():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in WITH_EXAMPLES}
    assert {"functional", "nn", "numpy", "ops", "reference", "_convert"} <= names
