"""Run the parts of the GPU check, each in processes of its own and within its seconds.

bash tests/gpu_check.sh         # see there
A part that fails or takes too long is said, and the next one begins. helpers/gpu_parts.py has them.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

PARTS = {  # most important first; the most seconds that each may take
    "environment": 40,
    "data": 60,
    "step": 110,
    "train": 150,
    "use": 60,
    "precisions": 90,
    "zero": 90,
    "stages": 90,
    "tests": 60,
    "bench": 120,
    "compiled": 120,
}
TINY = ("environment", "data", "step", "train", "use")  # what the suite runs on a CPU
LEAST_S = 20.0  # a part does not begin with less
TIMES_TINY = 8  # as long on a CPU, which other work shares


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that a part has written so far: checks and figures."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_part(name: str, seconds: float, work: Path, tiny: bool) -> list[dict[str, Any]]:
    """Run a part; return its lines, and one that says FAIL where it did not come to its end."""
    words = [sys.executable, "-m", "helpers.gpu_parts", name, str(work), *["--tiny"] * tiny]
    log = work / "logs" / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
    lines = read_lines(work / f"{name}.jsonl")
    if code is None:
        lines.append({"what": "done in time", "ok": False, "found": f"not after {seconds:.0f} s"})
    elif code:
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        lines.append({"what": "came to its end", "ok": False, "found": "".join(last)[:200]})
    return lines


def format_line(part: str, line: dict[str, Any]) -> str:
    """A line of the table."""
    verdict = {True: "PASS", False: "FAIL", None: ""}[line["ok"]]
    return f"{verdict:<5}{part:<12}{line['what']:<46}{line['found']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/gpu_check"))
    parser.add_argument("--seconds", type=float, help="for all; 540")
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    chosen = args.parts.split(",") if args.parts else list(TINY if args.tiny else PARTS)
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"--parts has {', '.join(unknown)}: expected of {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    slower = TIMES_TINY if args.tiny else 1
    seconds = args.seconds or 540 * slower
    began = time.monotonic()
    found: dict[str, Any] = {"parts": {}, "left out": [], "failed": [], "seconds": 0.0}
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        work = Path(folder)
        (work / "logs").mkdir()
        for name in chosen:
            left = seconds - (time.monotonic() - began)
            if left < LEAST_S:
                found["left out"].append(name)
                print(f"     {name:<12}left out: no time is left", flush=True)
                continue
            started = time.monotonic()
            lines = run_part(name, min(left, PARTS[name] * slower), work, args.tiny)
            took = round(time.monotonic() - started, 1)
            found["parts"][name] = {"seconds": took, "lines": lines}
            for line in lines:
                print(format_line(name, line), flush=True)
            print(f"     {name:<12}took {took:.0f} s", flush=True)
            found["failed"] = [
                f"{part}: {line['what']}"
                for part, content in found["parts"].items()
                for line in content["lines"]
                if line["ok"] is False
            ]
            found["seconds"] = round(time.monotonic() - began, 1)
            (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1))
            for log in (work / "logs").iterdir():
                (args.out / log.name).write_bytes(log.read_bytes()[-500_000:])
    print(
        f"{len(found['failed'])} failed in {found['seconds']:.0f} s: {args.out / 'gpu_check.json'}"
    )
    return bool(found["failed"] or found["left out"])


if __name__ == "__main__":
    sys.exit(main())
