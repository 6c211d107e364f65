"""The front page: every command and every line of Python on it runs here, in the page's order.

A command that is neither run nor named in ELSEWHERE fails, so that none slips in untried.
"""

import contextlib
import re
import shlex
import signal
import sys
import time
import traceback
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.captures import ROOT, capture, write_capture
from helpers.commands import LAUNCHER, ON_CPU, Done, Typed, command, free_port
from PIL import Image
from torch.distributed import run as torchrun

from depthdist.commands.main import COMMANDS
from depthdist.commands.study_plans import STUDIES

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTERS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("depthdist", "ds_configs", "launch", "tests", "tools")
    for path in (ROOT / folder).rglob("*.md")
    if "foundation" not in path.parts  # a model card
)
PROGRAMS = re.findall(
    r"\w+",
    "bash cd conda curl deepspeed depthdist docker eval git hf pip python sbatch sh srun source"
    " tensorboard torchrun uv wget",
)

TINY = ["--model", "tiny", "--epochs", "1", "--pictures", "0"]
SMALL = ["--size", "28x42"]
QUICKER = {
    "depthdist train": [*TINY, *SMALL],
    "depthdist shard": SMALL,
    "depthdist evaluate": ["--no-details"],
    "depthdist export": ["--forms", "model,adapter"],  # ONNX: tests/inference/test_export.py
    "deepspeed launch/train.py": TINY,
    "sbatch": [*TINY, "--dry-run"],
    "torchrun": [*TINY, "--dry-run"],
}


class Elsewhere(NamedTuple):
    """Why a command does not run here, and what another test has of it."""

    reason: str
    test: str
    holds: str


ELSEWHERE = {
    "depthdist demo": Elsewhere(
        "is run from the wheel already", "tests/test_anywhere.py", '"demo", *quick'
    ),
    "depthdist detail": Elsewhere(
        "its crops are larger than these captures", "tests/training/test_detail.py", '"detail", run'
    ),
    "depthdist relief": Elsewhere(
        "needs captures with their exact depth",
        "tests/commands/test_relief.py",
        '"relief", "--run"',
    ),
    "pip install .": Elsewhere(
        "a wheel is built and installed there", "tests/test_anywhere.py", '"install", *alone, wheel'
    ),
    'eval "$(register': Elsewhere(
        "is typed in a shell there", "tests/commands/test_main.py", "register-python-argcomplete"
    ),
    "hf upload": Elsewhere("publishes", "tests/inference/test_export.py", "model/README.md"),
    "--log-to": Elsewhere(
        "needs packages and accounts", "tests/runs/test_log_services.py", "wandb"
    ),
    "tensorboard --logdir": Elsewhere(
        "its files are read there", "tests/runs/test_tracker.py", "EventAccumulator"
    ),
}


class Piece(NamedTuple):
    """Something on the page that can be wrong: a command, a block of Python, or a flag."""

    kind: str
    text: str


def pieces_of(page: str) -> list[Piece]:
    """What the page shows as code, each once, in its order."""
    found: dict[Piece, None] = {}
    for paragraph in re.split(r"\n\s*\n", page):
        lines = paragraph.splitlines()
        if all(line.startswith("    ") for line in lines):
            block = "\n".join(line[4:] for line in lines)
            if block.split()[0] not in PROGRAMS:
                found[Piece("python", block)] = None
                continue
            codes = [re.sub(r"\s+#.*", "", line) for line in block.splitlines()]
        else:
            codes = re.findall(r"`([^`]+)`", " ".join(lines))
            codes = [code for code in codes if is_command(code) or code.startswith("--")]
        for code in codes:
            for line in code.split(" && "):
                kind = "flag" if line.startswith("--") else "command"
                found[Piece(kind, line.strip())] = None
    return list(found)


def is_command(code: str) -> bool:
    return code.split()[0] in PROGRAMS and len(code.split()) > 1


PIECES = pieces_of(PAGE)
COMMAND_LINES = [text for kind, text in PIECES if kind == "command"]
PYTHON = [text for kind, text in PIECES if kind == "python"]
FLAGS = [text for kind, text in PIECES if kind == "flag"]


def known(line: str, table: dict):
    """The entry of `table` for the beginning of a line."""
    return next((table[key] for key in table if line.startswith(key)), None)


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


# ------------------------------------------------------------------------------ how they are run


def in_this_process(words: list[str]) -> Done:
    return command("depthdist/__main__.py", *words)


def typed(*words: str) -> Typed:
    """A process in the folder where we are."""
    return Typed("env", "-C", Path.cwd(), *words, PYTHONPATH=ROOT)


def run_line(line: str, begun: set[str]) -> Done:
    """Run a line of the page with QUICKER's words behind it.

    The first training of the page is run by its launcher, as `begun` remembers; the same run later
    on the page goes on in this process, and of another one there is a dry run.
    """
    words = [*shlex.split(line), *(known(line, QUICKER) or [])]
    match words:
        case ["depthdist", _, "--help", *_]:
            return in_this_process(words[1:3])
        case ["depthdist", "train", *rest]:
            # as a rank, which says whether the run may go on so
            if "--run" in words and Path(value(words, "--run")).exists():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("RANK", "0")
                    return in_this_process(words[1:])
            if "train" in begun:
                return in_this_process([*words[1:], "--dry-run"])
            begun.add("train")
            return typed(sys.executable, "-m", "depthdist", "train", *rest).done()
        case ["depthdist", "serve", *rest]:
            return serve(rest)
        case ["depthdist", "study", *rest]:
            done = in_this_process(["study", *rest, "--train-subset", "99"])
            assert done.errors[0].startswith("--train-subset has 99: the training side has ")
            return Done(0, done.out, done.err)  # it read the captures, and stopped before training
        case ["depthdist", *rest]:
            return in_this_process(rest)
        case ["deepspeed", *rest]:
            return typed(LAUNCHER, "--num_gpus", "1", "--master_port", free_port(), *rest).done()
        case ["torchrun", *rest]:  # its processes: tests/distributed/test_process_group.py
            found = torchrun.parse_args(rest)
            assert found.module and found.training_script == "depthdist"
            return in_this_process(found.training_script_args)
        case ["sbatch", *rest]:  # the script: tests/distributed/test_process_group.py
            at = rest.index("launch/slurm.sbatch")
            return command("launch/train.py", *rest[at + 1 :])
        case ["bash", path]:
            return typed("bash", "-n", ROOT / path).done()
    raise AssertionError(f"`{line}` is on the front page, and neither run here nor in ELSEWHERE")


def serve(words: list[str]) -> Done:
    """Start the page, ask for it once, and end it by Ctrl-C."""
    port = free_port()
    server = typed(sys.executable, "-m", "depthdist", "serve", *words, "--port", port)
    page, end = b"", time.monotonic() + 120
    while not page and server.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).read()
        time.sleep(0.1)
    server.process.send_signal(signal.SIGINT)
    done = server.done(60)
    assert b"<html" in page and "stopped by Ctrl-C" in done.err, done
    return Done(0, done.out, done.err)


def promised(line: str) -> list[str]:
    """Patterns of the files that must be there once the page's commands were run."""
    words = shlex.split(line)
    match words:
        case ["depthdist", "shard", _, out, *_]:
            return [f"{out}/index.json", f"{out}/**/*.tar"]
        case ["depthdist", "report", "data", raw, *_]:
            return [f"{raw}-report.html"]
        case ["depthdist", "report", "run", run, *_]:
            return [f"{run}/report.html"]
        case ["depthdist", "evaluate", *_]:
            return [f"{value(words, '--run')}/evaluation.json"]
        case ["depthdist", "predict", *_]:
            return [f"{value(words, '--out')}/**/*_figure.png"]
        case ["depthdist", "export", _, out, *_]:
            return [f"{out}/model/config.json", f"{out}/adapter/adapter_config.json"]
        case ["deepspeed", *_]:
            return [f"{value(words, '--run')}/best/depthdist.json"]
        case ["hf", "upload", _, folder]:
            return [f"{folder}/config.json", f"{folder}/README.md"]
        case ["tensorboard", "--logdir", folder]:
            return [f"{folder}/*/tensorboard/events.*"]
    return []


class Tried(NamedTuple):
    """The folder where all of it was run, how each ended, and the names that Python left."""

    folder: Path
    done: dict[str, Done]
    names: dict[str, object]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Run the page from top to bottom where `captures` and `a.png` are, and the clone's folders."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("launch", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    for i in range(8):  # five of one day, three of another
        stem = f"21-12-0{3 + i // 5}-10-{i:02d}-00_Zivid_acquisition"
        for raw in ("captures", f"parts/{'val' if i >= 5 else 'train'}"):
            rgb = folder / raw / f"images/{stem}_color.png"
            write_capture(rgb, folder / raw / f"depth/{stem}_rawDepth.npy", i, (30, 42))
    Image.fromarray(capture(7, (30, 42))[0]).save(folder / "a.png")
    (folder / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    done, names, begun = {}, {}, set()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(folder / "home"))
        for name, to in ON_CPU.items():
            patch.setenv(name, to)
        for kind, text in PIECES:
            try:
                if kind == "python":
                    exec(text, names)
                    done[text] = Done(0, "", "")
                elif known(text, ELSEWHERE):
                    continue
                elif kind == "command":
                    done[text] = run_line(text, begun)
                elif " " in text:  # with a value
                    raw = "parts" if text == "--split folder" else "captures"
                    words = ["train", raw, *text.split(), *TINY, *SMALL, "--dry-run"]
                    done[text] = in_this_process(words)
            except (Exception, SystemExit):
                done[text] = Done(1, "", traceback.format_exc())
        yield Tried(folder, done, names)


# ------------------------------------------------------------------------------------ the tests


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_of_the_page_ends_well_and_makes_what_it_promises(line, tried):
    if not known(line, ELSEWHERE):
        done = tried.done[line]
        assert done.code == 0 and "Traceback" not in done.err, done
    for pattern in promised(line):
        assert list(tried.folder.glob(pattern)), f"no {pattern}"


@pytest.mark.parametrize("key", ELSEWHERE)
def test_what_runs_elsewhere_is_on_the_page_and_in_that_test(key):
    assert any(text.startswith(key) for _, text in PIECES)
    assert ELSEWHERE[key].holds in (ROOT / ELSEWHERE[key].test).read_text(encoding="utf-8")


def test_the_first_training_of_the_page_leaves_a_best_adapter(tried):
    line = next(line for line in COMMAND_LINES if line.startswith("depthdist train captures"))
    run = tried.folder / value(shlex.split(line), "--run")
    assert (run / "best/depthdist.json").is_file()
    assert "best adapter, epoch 1" in tried.done[line].out + tried.done[line].err


def test_every_capture_has_a_prediction(tried):
    lines = [line for line in COMMAND_LINES if line.startswith("depthdist predict")]
    for line in lines:
        out = tried.folder / value(shlex.split(line), "--out")
        assert len(list(out.rglob("*_figure.png"))) == 8, line
    assert len(lines) == 2


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_of_the_page_runs(block, tried):
    assert tried.done[block].code == 0, tried.done[block].err
    result = tried.names["result"]
    assert result.depth_mm.shape == (30, 42) and result.depth_mm.dtype == "float32"
    for name in re.findall(r'\.save\("([^"]+)"\)', block):
        assert (tried.folder / name).stat().st_size > 0


@pytest.fixture(scope="module")
def known_flags():
    """Every flag that some command's --help lists."""
    words = [[word] for word in COMMANDS if word not in ("report", "study")]
    words += [["report", "run"], ["report", "data"], ["study", next(iter(STUDIES))]]
    helps = [in_this_process([*word, "--help"]).out for word in words]
    return set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", "\n".join(helps)))


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_of_the_page_is_one_of_a_command_and_takes_that_value(flag, tried, known_flags):
    assert flag.split()[0] in known_flags
    if flag in tried.done:
        assert tried.done[flag].code == 0, tried.done[flag]


def test_no_other_flag_is_on_the_page(known_flags):
    others = " ".join(line for line in COMMAND_LINES if not line.startswith("depthdist"))
    named, of_others = (set(re.findall(r"--[a-z][\w-]*", text)) for text in (PAGE, others))
    assert named - known_flags <= of_others


def test_all_code_on_the_page_is_indented_or_in_single_backticks():
    assert "```" not in PAGE and "~~~" not in PAGE and "\t" not in PAGE
    assert PAGE.count("`") % 2 == 0
    assert PYTHON and FLAGS and {"depthdist", "deepspeed"} <= {s.split()[0] for s in COMMAND_LINES}


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 190 and len(PAGE.split()) <= 1600


# ------------------------------------------------------------------------------- links and files


def prose(text: str) -> str:
    """The text without its code, in which brackets are no links and # is no heading."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The names under which GitHub reaches the headings."""
    names: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(other == name for other in names)
        names.append(f"{name}-{again}" if again else name)
    return {*names, *re.findall(r'<a (?:id|name)="([^"]+)"', text)}


@pytest.mark.parametrize("page", ["README.md", *CHAPTERS])
def test_every_link_of_a_page_leads_to_a_file_and_heading_of_the_repository(page):
    path = ROOT / page
    text = prose(path.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        other = path.parent / target if target else path
        assert other.exists(), f"{page} has a link to {target}"
        if anchor:
            found = anchors(other.read_text(encoding="utf-8"))
            assert anchor in found, f"{page} has a link to {target}#{anchor}"


def test_every_file_that_the_page_names_is_in_the_repository():
    named = re.findall(r"\b(?:depthdist|ds_configs|launch|tests|tools)/[\w/-]+\.\w+", PAGE)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE))
def test_an_image_of_the_page_can_be_shown(name):
    with Image.open(ROOT / name) as image:
        image.load()
        assert min(image.size) >= 100
