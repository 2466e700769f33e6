"""The package's shape: who may import whom, what stays light, how long things get, and that tests stay offline."""

import ast
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hf_kd

PACKAGE = Path(hf_kd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

BASE = {"functional", "registry"}
MAY_IMPORT = {  # room -> the rooms it may import directly; what those may import comes along
    "functional": set(),
    "registry": set(),
    "temperatures": BASE,
    "memory": set(),
    "losses": {"temperatures", "memory"},
    "testing": {"losses"},
    "batches": BASE,
    "objective": {"losses", "batches", "memory"},
    "methods": {"objective"},
    "inputs": BASE,
    "mixing": {"inputs"},
    "heads": BASE,
    "label_map": BASE,
    "sanity": {"label_map"},
    "search_space": BASE,
    "quantization": {"adapters"},
    "teacher": {"inputs", "label_map", "adapters", "quantization"},
    "students": {"teacher"},
    "adapters": {"heads", "inputs"},
    "seeding": set(),
    "teacher_cache": {"inputs", "mixing", "seeding"},
    "training_args": {"methods"},
    "adapter_files": set(),
    "model_card": {"methods", "adapter_files"},
    "publish": {"model_card", "report", "teacher", "adapters", "adapter_files", "teacher_cache", "test_rows"},
    "trainer": {
        "methods",
        "inputs",
        "heads",
        "adapters",
        "teacher",
        "sanity",
        "teacher_cache",
        "seeding",
        "training_args",
        "publish",
        "mixing",
        "search_space",
    },
    "metrics": BASE,
    "data": {"inputs", "metrics", "mixing", "memory", "seeding"},
    "teacher_logits": {"teacher", "data"},
    "models": BASE,
    "registration": set(),
    "test_rows": BASE,
    "statistics_of_runs": {"test_rows"},
    "report": {"statistics_of_runs"},
    "experiment": {
        "trainer",
        "students",
        "adapters",
        "teacher_logits",
        "data",
        "models",
        "metrics",
        "report",
        "test_rows",
    },
    "compare": {"experiment", "statistics_of_runs"},
    "tune": {"experiment"},
    "bench": {"experiment"},
    "demo": {"experiment"},
    "cli": {"compare", "tune", "bench", "demo"},
    "__main__": {"cli"},
    "__init__": set(),  # replaced below: the public names come from everywhere
}
TORCH_ONLY = (
    "functional",
    "memory",
    "registry",
    "temperatures",
    "losses",
    "batches",
    "objective",
    "methods",
    "testing",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 450, 60


def allowed(room):
    """Transitive closure of `MAY_IMPORT`."""
    if room == "__init__":
        return set(MAY_IMPORT)
    reached, queue = {room}, [room]
    while queue:
        for other in MAY_IMPORT[queue.pop()] - reached:
            reached.add(other)
            queue.append(other)
    return reached


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """`(absolute module, imported name or None)` of every import in the file, those inside functions too."""
    package = ["hf_kd", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def imported_rooms(path):
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] != "hf_kd":
            continue
        if len(parts) > 1:
            yield parts[1]
        elif name in MAY_IMPORT:
            yield name
        elif name != "__version__":
            yield f"hf_kd.{name}"  # a public name through the front door: its room is hidden


def identify(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_imports_follow_the_direction_of_the_rooms(path):
    """One import against the direction, and the losses need `transformers` or the trainer a command line."""
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room!r} is a new room: say in MAY_IMPORT what it may import"
    wrong = set(imported_rooms(path)) - allowed(room)
    assert not wrong, f"{room} may not import {sorted(wrong)}"


def test_imports_are_really_found():
    """A walker that finds nothing passes everything."""
    tempered = PACKAGE / "losses" / "tempered.py"
    assert set(imported_rooms(tempered)) == {"functional", "registry", "temperatures", "losses"}
    assert {"torch", "typing", "collections.abc"} <= {module for module, _ in imports(tempered)}
    lazy = PACKAGE / "training_args.py"
    assert "methods" in set(imported_rooms(lazy)), "an import inside a function counts too"


def test_rooms_do_not_form_a_circle():
    for room, direct in MAY_IMPORT.items():
        assert all(room not in allowed(other) for other in direct), room


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in TORCH_ONLY], ids=identify)
def test_heart_imports_torch_alone(path):
    """The maths is to be used without the Trainer, and read without it."""
    roots = {module.split(".")[0] for module, _ in imports(path)}
    assert roots <= {"torch", "hf_kd", *sys.stdlib_module_names}


def test_heart_works_with_everything_else_blocked():
    """Someone with torch alone can use the losses: checked in a fresh process, because here all is imported."""
    code = """
import importlib.abc, sys
BLOCKED = {"transformers", "datasets", "accelerate", "evaluate", "peft", "sklearn", "matplotlib", "torchvision",
           "tokenizers", "safetensors", "huggingface_hub", "pydantic", "omegaconf", "typer"}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import torch
import hf_kd.losses, hf_kd.methods, hf_kd.objective, hf_kd.testing
from hf_kd import build_objective
z = torch.tensor([[1.0, 0.0]])
assert build_objective("dtkd")(z, -z, torch.tensor([0])).loss.isfinite()
try:
    import transformers
except ImportError:
    print("blocked")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["blocked"]


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_all_names_exist(path):
    """A name in `__all__` that does not exist breaks `from module import *` and the documentation."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    if parts[-1] == "__main__":
        return
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name), name


def test_public_names_are_documented_and_listed():
    assert sorted(hf_kd.__all__) == sorted(hf_kd._HOMES)
    assert set(hf_kd.__all__) <= set(dir(hf_kd))
    for name in hf_kd.__all__:
        value = getattr(hf_kd, name)
        assert isinstance(value, dict) or value.__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        hf_kd.no_such_name  # noqa: B018  (the access is the test)


def code_lines(function):
    """Lines of a function without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_files_and_functions_stay_readable(path):
    """A room past these sizes wants splitting."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {f.name: code_lines(f) for f in functions if code_lines(f) > MAX_FUNCTION_LINES}
    assert not long


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) != "cli"], ids=identify)
def test_only_the_command_line_prints(path):
    """A library that prints cannot be silenced, and prints once per process under `torchrun`."""
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]


# --- offline ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:A test tried to use socket:UserWarning")
def test_outside_connections_are_refused():
    """A test that downloads passes at home and fails elsewhere. 192.0.2.1 is reserved for documentation."""
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_loopback_connections_work():
    """Two-process training rendezvouses over it."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
        server.accept()[0] as connection,
    ):
        client.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_hub_is_offline_and_caches_are_scratch():
    """Set before the libraries are imported: they read these once."""
    import datasets
    import huggingface_hub.constants

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert datasets.config.HF_DATASETS_OFFLINE
    for cache in (huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE):
        assert Path(cache).is_relative_to(os.environ["HF_HOME"])
