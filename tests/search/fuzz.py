"""Fuzz the readers of people's files, led by the lines that each input reaches (atheris).

    pip install atheris
    python tests/search/fuzz.py 300                  # seconds for each reader
    python tests/search/fuzz.py 600 "external tar"   # one of them

Finds are printed once each and kept in FINDS/READER-NUMBER; an input that hangs for a minute or
takes 3 GB ends its reader. What is searched: tests/helpers/searched_readers.py.
"""

import os
import resource
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
FINDS = Path(os.environ.get("FINDS", tempfile.gettempdir())) / "finds"


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one reader; ends the process."""
    with atheris.instrument_imports(include=["depthdist", "PIL", "tarfile", "numpy.lib"]):
        import tarfile  # noqa: F401

        from helpers.damage import damaged_json
        from helpers.scratch import Scratch
        from helpers.searched_readers import READERS
    from hypothesis import given, settings

    reader = READERS[name]
    folder = tempfile.TemporaryDirectory()
    scratch = Scratch(Path(folder.name))
    seeds = reader.seeds(scratch)
    corpus = scratch.fresh("corpus")
    known: set[tuple[str, ...]] = set()

    def check(content: bytes) -> None:
        try:
            reader.read(scratch, content)
        except reader.error:
            return
        except Exception as err:
            frames = traceback.extract_tb(err.__traceback__)
            place = [
                f"{Path(f.filename).name}:{f.name}" for f in frames if "depthdist/" in f.filename
            ]
            find = (type(err).__name__, *(place or ["tests"])[-1:])
            if find not in known:
                known.add(find)
                FINDS.mkdir(parents=True, exist_ok=True)
                path = FINDS / f"{name.replace(' ', '_')}-{len(known)}"
                path.write_bytes(content)
                print(f"FIND {name}: {find}: {str(err)[:150]!r} {path}", flush=True)

    if reader.is_json:
        given_json = settings(database=None, deadline=None)(given(damaged_json(seeds))(check))
        target = given_json.hypothesis.fuzz_one_input
    else:
        target = check
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
    longest = max(200_000, *map(len, seeds)) if len(seeds) > 1 else max(200_000, len(seeds[0]))
    options = [
        f"-max_total_time={seconds}", f"-max_len={longest}", "-timeout=60", "-rss_limit_mb=3000",
        f"-artifact_prefix={FINDS}/{name.replace(' ', '_')}-", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    os.chdir(scratch.fresh("here"))
    atheris.Setup([sys.argv[0], *options], target)
    atheris.Fuzz()


def main() -> None:
    """Fuzz readers one after another, each in a process of its own."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if len(sys.argv) == 4 and sys.argv[1] == "--one":
        return fuzz(sys.argv[2], int(sys.argv[3]))
    from helpers.searched_readers import READERS

    FINDS.mkdir(parents=True, exist_ok=True)
    seconds = int(sys.argv[1])
    for name in sys.argv[2:] or READERS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = done.stdout.splitlines()
        for line in lines:
            if line.startswith(("FIND", "stat::number", "stat::peak", "==")) or "ERROR" in line:
                print(line if "FIND" in line else f"{name}: {line}", flush=True)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"{name}: CPU so far {used.ru_utime + used.ru_stime:.0f} s", flush=True)


if __name__ == "__main__":
    main()
