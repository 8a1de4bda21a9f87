"""The package as a whole: what an import does, instruction sets, what is installed, what the build accepts.

Most of it runs in new processes, since an import and the choice of an instruction set happen once per process.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn
from fastrnn import _core

PACKAGE = Path(fastrnn.__file__).parent
SOURCE = Path(__file__).parents[1]
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")
X86_64 = platform.machine() in ("x86_64", "AMD64")

needs_x86_64 = pytest.mark.skipif(not X86_64, reason="only x86-64 has more than the scalar object")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and glibc's fenv_t")
plain_build = pytest.mark.skipif(SANITIZED, reason="a sanitizer's run-time library is preloaded")


# The tools of the virtual environment first, whether or not it was activated.
TOOLS_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def which(name: str) -> str | None:
    return shutil.which(name, path=TOOLS_PATH)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PATH": TOOLS_PATH} | environment
    if command[0] != sys.executable:
        env.pop("LD_PRELOAD", None)  # a sanitizer is for Python alone, not for compilers
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def python(code: str, **environment: str) -> str:
    """What `code` prints in a new interpreter in which warnings are errors."""
    result = run(sys.executable, "-W", "error", "-c", code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- import


def test_import_loads_neither_torch_nor_numpy():
    assert python("import sys, fastrnn, fastrnn._core; print({'torch', 'numpy'} & sys.modules.keys())") == "set()"


def test_torch_front_ends_say_what_is_missing():
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import fastrnn, fastrnn.numpy
for name in ("nn", "functional", "convert"):
    try:
        getattr(fastrnn, name)
    except ImportError as error:
        print(name in str(error), "pip install fastrnn[torch]" in str(error))
"""
    assert python(code).split("\n") == ["True True"] * 3


@needs_linux
def test_import_leaves_the_process_as_it_was():
    code = """
import ctypes, os, signal
libc, libm = ctypes.CDLL(None), ctypes.CDLL("libm.so.6")

def control_words():
    fenv = (ctypes.c_uint32 * 16)()
    assert libm.fegetenv(fenv) == 0
    if os.uname().machine == "x86_64":  # x87 control word; MXCSR without its sticky flags
        return fenv[0] & 0xFFFF, fenv[7] & ~0x3F
    return fenv[0]

def environment():
    entries, result = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ"), []
    while entries[len(result)]:
        result.append(entries[len(result)])
    return sorted(result)

def state():
    handlers = {s: signal.getsignal(s) for s in signal.valid_signals()}
    return len(os.listdir("/proc/self/task")), control_words(), environment(), handlers

before = state()
import fastrnn
import fastrnn._core
try:
    import fastrnn._cuda
except ModuleNotFoundError:
    pass
after = state()
names = "threads", "float control words", "environment", "signal handlers"
print([name for name, a, b in zip(names, before, after) if a != b])
"""
    assert python(code) == "[]"


# ---- instruction sets


def test_isas_are_known_and_end_with_scalar():
    names = _core.isas()
    assert names == [name for name in ("avx512", "avx2", "scalar") if name in names]
    assert names[-1] == "scalar"


@pytest.mark.parametrize("isa", _core.isas())
def test_forced_isa_is_used(isa):
    assert python("from fastrnn import _core; print(_core.isa())", FASTRNN_ISA=isa) == isa


def test_best_isa_is_the_default():
    assert python("from fastrnn import _core; print(_core.isa())", FASTRNN_ISA="") == _core.isas()[0]


def test_unknown_isa_is_an_error_at_first_use():
    code = """
from fastrnn import _core
try:
    _core.isa()
except ValueError as error:
    print(error)
"""
    message = python(code, FASTRNN_ISA="nonsense")
    assert "'nonsense'" in message
    assert ", ".join(_core.isas()) in message


@needs_x86_64
@plain_build
def test_runs_on_a_processor_without_avx():
    """Nehalem (2008) has SSE4.2: a stray AVX instruction outside the AVX objects ends the process with SIGILL."""
    qemu = which("qemu-x86_64-static") or which("qemu-x86_64")
    if qemu is None:
        pytest.skip("qemu-x86_64-static is not installed")
    code = """
import ctypes, json
import fastrnn
from fastrnn import _core
x, y = (ctypes.c_float * 3)(-1, 0, 1), (ctypes.c_float * 3)()
_core.activation("tanh", 3, ctypes.addressof(x), ctypes.addressof(y))
try:
    _core.set_isa("avx2")
except ValueError as error:
    print(json.dumps([_core.isas(), _core.isa(), list(y), str(error)]))
"""
    result = run(qemu, "-cpu", "Nehalem", sys.executable, "-c", code, FASTRNN_ISA="")
    assert result.returncode == 0, result.stderr
    isas, isa, tanh, error = json.loads(result.stdout)
    assert (isas, isa) == (["scalar"], "scalar")
    assert tanh == pytest.approx([-0.76159416, 0, 0.76159416], rel=1e-6)
    assert "'avx2'" in error
    assert "scalar" in error


def with_includes(path: Path, found: set[Path]) -> set[Path]:
    """`path` and every file of ours that it includes."""
    if path not in found:
        found.add(path)
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            with_includes((path.parent / name).resolve(), found)
    return found


@pytest.fixture(scope="session")
def isa_objects(tmp_path_factory) -> list[Path]:
    """The objects compiled per instruction set: those of the last installation if no source is newer, else new ones."""
    if not (SOURCE / "csrc").is_dir():
        pytest.skip("no source tree beside the tests")
    sources = {file for path in SOURCE.glob("csrc/cpu/isa_*.cpp") for file in with_includes(path, set())}
    newest = max(path.stat().st_mtime for path in sources)
    for build in SOURCE.glob("build/cp*"):
        objects = sorted(build.glob("CMakeFiles/isa_*.dir/**/*.o"))
        if objects and min(p.stat().st_mtime for p in objects) > newest:
            return objects
    needs_build_tools()
    build = tmp_path_factory.mktemp("isa_objects")
    configured = configure(build, "-DFASTRNN_CUDA=OFF")
    assert configured.returncode == 0, configured.stderr
    targets = ["isa_scalar", "isa_avx2", "isa_avx512"] if X86_64 else ["isa_scalar"]
    built = run("cmake", "--build", str(build), "--parallel", "2", "--target", *targets)
    assert built.returncode == 0, built.stdout + built.stderr
    return sorted(build.glob("CMakeFiles/isa_*.dir/**/*.o"))


def binutil(name: str, *arguments: str) -> str:
    if which(name) is None:
        pytest.skip(f"{name} is not installed")
    result = run(name, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_isa_objects_share_nothing(isa_objects):
    """The linker keeps one copy of a weak symbol: it could be the AVX-512 one, called on a machine without."""
    assert len(isa_objects) == (9 if X86_64 else 3)
    for path in isa_objects:
        symbols = [line.split()[-2:] for line in binutil("nm", str(path)).splitlines()]
        assert [name for kind, name in symbols if kind in "WwVvu"] == [], path
        defined = [name for kind, name in symbols if kind.isupper() and kind != "U"]
        assert defined, path
        assert all("table_" in name for name in defined), path


def test_isa_objects_run_nothing_at_load_time(isa_objects):
    for path in isa_objects:
        assert ".init_array" not in binutil("readelf", "-SW", str(path)), path
        assert ".ctors" not in binutil("readelf", "-SW", str(path)), path


@needs_x86_64
def test_isa_objects_use_their_own_registers_only(isa_objects):
    registers = {isa: set() for isa in ("scalar", "avx2", "avx512")}
    for path in isa_objects:
        isa = path.parts[-4].removeprefix("isa_").removesuffix(".dir")
        code = binutil("objdump", "-d", "--no-show-raw-insn", str(path))
        registers[isa] |= {name for name in ("ymm", "zmm") if f"%{name}" in code}
    assert registers == {"scalar": set(), "avx2": {"ymm"}, "avx512": {"ymm", "zmm"}}


# ---- what is installed


def test_version_matches_the_metadata():
    try:
        installed = importlib.metadata.version("fastrnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("used from a folder, not installed")
    assert fastrnn.__version__ == installed


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi", "_cuda.pyi"])
def test_typing_files_are_installed(name):
    assert (PACKAGE / name).is_file()


def has_module(name: str) -> bool:
    return importlib.util.find_spec(f"fastrnn.{name}") is not None


@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_stub_lists_what_the_module_has(name):
    if not has_module(name):
        pytest.skip(f"built without {name}")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    stub = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    stub |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    # Shapes of dicts exist for the type checker alone.
    classes = [node for node in classes if "TypedDict" not in {base.id for base in node.bases}]
    module = importlib.import_module(f"fastrnn.{name}")
    assert stub | {node.name for node in classes} == {n for n in vars(module) if not n.startswith("__")}
    for node in classes:
        listed = {item.name for item in node.body if isinstance(item, ast.FunctionDef)} - {"__init__"}
        listed |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        assert listed == {n for n in vars(getattr(module, node.name)) if not n.startswith("_")}, node.name


def test_stub_describes_the_cells():
    for name, cell in _core.CELLS.items():
        assert set(cell) == {"gates", "states", "reserve", "vectors", "product", "drops_candidate"}, name
        assert cell["states"] in (1, 2, 4), name


@needs_linux
@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_module_needs_only_the_system_libraries(name):
    """No torch, no OpenMP run-time, no CUDA library: those would tie the wheel to one of their versions."""
    if not has_module(name):
        pytest.skip(f"built without {name}")
    dynamic = binutil("readelf", "-dW", importlib.import_module(f"fastrnn.{name}").__file__)
    needed = {line.split("[")[1].split(".so")[0] for line in dynamic.splitlines() if "(NEEDED)" in line}
    system = {"libstdc++", "libgcc_s", "libc", "libm", "libpthread", "libdl", "librt", "ld-linux-x86-64"}
    system |= {"ld-linux-aarch64"} | ({"libasan", "libubsan"} if SANITIZED else set())
    assert needed <= system


def test_cuda_module_explains_itself():
    if not has_module("_cuda"):
        pytest.skip("built without CUDA")
    from fastrnn import _cuda

    devices = _cuda.devices()
    assert len(devices) == _cuda.device_count()
    assert (_cuda.error() == "") == (len(devices) > 0)
    assert _cuda.runtime_version() >= 11000
    assert _cuda.driver_version() >= 0
    for device in devices:
        assert device["name"]
        assert device["capability"] >= (5, 0)
        assert device["memory_bytes"] > 0
    if not devices:
        assert _cuda.error().startswith("cudaError")


# ---- what the build accepts


def needs_build_tools() -> None:
    if not (SOURCE / "CMakeLists.txt").is_file():
        pytest.skip("no source tree beside the tests")
    for tool in ("cmake", "c++"):
        if which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    if importlib.util.find_spec("pybind11") is None:
        pytest.skip("pybind11 is not installed")


def configure(build: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ("cmake", "-S", str(SOURCE), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}", *options)
    return run(*command, **environment)


@pytest.fixture
def path_without_nvcc(tmp_path) -> str:
    """PATH, but each folder that has an nvcc replaced by links to everything else in it."""
    folders = []
    for i, folder in enumerate(map(Path, TOOLS_PATH.split(os.pathsep))):
        if (folder / "nvcc").exists():
            shadow = tmp_path / f"path{i}"
            shadow.mkdir()
            for entry in folder.iterdir():
                if entry.name != "nvcc":
                    (shadow / entry.name).symlink_to(entry)
            folder = shadow
        folders.append(str(folder))
    return os.pathsep.join(folders)


def test_cuda_on_without_nvcc_is_a_clear_error(tmp_path, path_without_nvcc):
    needs_build_tools()
    result = configure(tmp_path / "b", "-DFASTRNN_CUDA=ON", PATH=path_without_nvcc, CUDACXX="", CUDA_PATH="")
    message = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "FASTRNN_CUDA is ON but no working CUDA compiler was found. Put nvcc on PATH" in message
    assert "FASTRNN_CUDA=OFF" in message


def test_cuda_auto_without_nvcc_builds_for_the_cpu_and_says_so(tmp_path, path_without_nvcc):
    needs_build_tools()
    result = configure(tmp_path / "b", PATH=path_without_nvcc, CUDACXX="", CUDA_PATH="")
    assert result.returncode == 0, result.stderr
    assert "building for the CPU alone (FASTRNN_CUDA is AUTO and no nvcc was found)" in result.stdout


def test_cuda_option_is_checked(tmp_path):
    needs_build_tools()
    result = configure(tmp_path / "b", "-DFASTRNN_CUDA=maybe")
    assert result.returncode != 0
    assert "FASTRNN_CUDA is 'maybe', expected AUTO, ON or OFF" in " ".join(result.stderr.split())


def test_no_command_lists_the_commands(capsys):
    assert importlib.import_module("fastrnn.__main__").main([]) == 2
    assert re.search("info .*\n.*bench .*\n.*demo ", capsys.readouterr().out)


@pytest.mark.parametrize("name", [None, 3])
def test_set_isa_takes_a_name(name):
    with pytest.raises(ValueError, match=f"set_isa: name is {name}, expected one of .*scalar"):
        fastrnn.set_isa(name)
