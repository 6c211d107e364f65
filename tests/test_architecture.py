"""Where each package stands: imports point downwards, and importing a module changes nothing."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "depthdist"
FLOORS = [  # lowest first; packages of one floor do not import each other
    {"core", "geometry"},
    {"captures", "synthetic", "distributed", "losses", "models"},
    {"shards"},
    {"data"},
    {"runs"},
    {"evaluation"},
    {"training", "inference", "reports"},
    {"commands"},
    {"__main__"},
]
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, nodes=None) -> set[str]:
    """Our modules that a module imports, wherever in its source or in those nodes of it."""
    found = set()
    for node in nodes or ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {other for other in found if other in PATHS and other not in (name, "depthdist")}


def package_of(name: str) -> str:
    return name.split(".")[1]


ACCELERATOR = "depthdist.distributed.accelerator"
MODULES = [name for name in PATHS if name != "depthdist"]


def test_every_package_has_a_floor():
    assert {package_of(name) for name in MODULES} == FLOOR.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_to_lower_floors(name):
    mine = package_of(name)
    for other in imports_of(name):
        theirs = package_of(other)
        assert theirs == mine or FLOOR[theirs] < FLOOR[mine], f"{name} imports {other}"


def test_within_a_package_imports_point_one_way():
    graph = {}
    for name in MODULES:  # what a function imports when it is called may stand above it
        top = [
            n for n in ast.parse(PATHS[name].read_text()).body if not isinstance(n, ast.FunctionDef)
        ]
        graph[name] = imports_of(name, top)
    assert list(
        TopologicalSorter(graph).static_order()
    )  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", MODULES)
def test_no_module_of_ours_is_found_through_sys_modules(name):
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Attribute) and node.attr == "modules":
            assert not (isinstance(node.value, ast.Name) and node.value.id == "sys"), name


IMPORT_ALL = """
import glob, importlib, json, logging, os, signal, sys, warnings
import torch, numpy, PIL.Image, transformers, peft, deepspeed, webdataset, fsspec, aiohttp.web

def switches():
    return {
        "environment": dict(os.environ),
        "warnings": [str(one) for one in warnings.filters],
        "PIL's handlers": len(logging.getLogger("PIL").handlers),
        "DeepSpeed's level": logging.getLogger("DeepSpeed").level,
        "TF32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "signals": [str(signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGINT)],
        "path": list(sys.path),
        "kernels": sorted(glob.glob(sys.argv[1] + "/**/*.nb?", recursive=True)),
    }

for name in sys.argv[2:]:
    before = switches()
    importlib.import_module(name)
    after = switches()
    changed = [key for key in before if before[key] != after[key]]
    if changed:
        print(name, "changes", changed)
"""


def test_importing_a_module_changes_no_variable_file_or_switch():
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(PACKAGE), *MODULES],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


HEAVY = {
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "scipy",
    "matplotlib",
    "skimage",
    "tqdm",
    "numba",
}
DEPTHDIST = "depthdist/__main__.py"
COMMANDS = {
    ("launch/train.py",): ["--data", "nowhere", "--deepspeed", "ds_configs/fp32.json"],
    (DEPTHDIST, "train"): ["nowhere"],
    (DEPTHDIST, "detail"): ["nowhere"],
    (DEPTHDIST, "shard"): ["nowhere", "out"],
    (DEPTHDIST, "evaluate"): ["--run", "nowhere"],
    (DEPTHDIST, "predict"): ["nowhere", "--run", "nowhere"],
    (DEPTHDIST, "serve"): ["nowhere"],
    (DEPTHDIST, "export"): ["--run", "nowhere"],
    (DEPTHDIST, "report", "run"): ["nowhere"],
    (DEPTHDIST, "study", "recipes"): ["nowhere"],
    (DEPTHDIST, "demo"): ["--pairs", "0"],
    (DEPTHDIST, "relief"): ["--run", "nowhere"],
}
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
loaded = sorted({name.partition(".")[0] for name in sys.modules} & set(%r))
print("CODE", code, "LOADED", *loaded)
"""


@pytest.mark.parametrize("words", ["help", "a wrong flag", "a wrong value"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_settings_are_answered_before_heavy_libraries_are_imported(command, words):
    given = {"help": ["--help"], "a wrong flag": ["--no-such-flag"]}.get(words, COMMANDS[command])
    done = subprocess.run(
        [sys.executable, "-c", RUN % HEAVY, *command, *given],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[:3] == ["CODE", "0" if words == "help" else "2", "LOADED"], done
    assert last[3:] == [], done


@pytest.mark.parametrize("name", [name for name in MODULES if name != ACCELERATOR])
def test_deepspeed_is_imported_in_one_place_that_names_the_device_first(name):
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(other.split(".")[0] == "deepspeed" for other in names), name


def test_deepspeed_is_loaded_without_a_warning_on_a_machine_without_a_gpu():
    code = f"import {ACCELERATOR} as a; print(a.accelerator().device_name())"
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PACKAGE.parent)}
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("cpu\n", 0), done
