"""Run the tests on every Python that is here, with the oldest and with the newest libraries that pyproject.toml allows.

    python .ci/matrix.py [--cuda] [TEST ...]

Oldest: each dependency at its lower bound. Newest: whatever the package index gives today. Each pair of a Python and a
set of libraries has its own environment under .matrix/. A torch that brings CUDA with it is several gigabytes: without
--cuda the version in constraints.txt stands in for it where that one comes without, and the table says so. What cannot
be had is named and skipped. The exit status is 1 when a test failed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "diffusers", "h5py")
NOT_FOR_TESTS = ("ruff", "mypy", "import-linter")
CUDA = re.compile(r"nvidia-|cuda-|triton")


def main() -> int:
    """Run every pair and print a table of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cuda", action="store_true", help="take torch builds that bring CUDA")
    parser.add_argument("tests", nargs="*", help="what pytest is given; the quick tests when nothing is named")
    args = parser.parse_args()
    rows = [(p, libraries, *run(p, libraries, args)) for p in PYTHONS for libraries in ("oldest", "newest")]
    print(f"\n{'python':8}{'libraries':11}{''.join(f'{name:15}' for name in SHOWN)}result")
    for python, libraries, versions, result in rows:
        print(f"{python:8}{libraries:11}{''.join(f'{versions.get(name, str()):15}' for name in SHOWN)}{result}")
    return int(any(result.startswith("FAILED") for *_, result in rows))


def run(python: str, libraries: str, args: argparse.Namespace) -> tuple[dict[str, str], str]:
    """Versions by name and what became of one pair."""
    interpreter = shutil.which(f"python{python}")
    if interpreter is None or subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
        return {}, f"skipped: no python{python} here"
    print(f"== Python {python}, {libraries} libraries", flush=True)
    bin = ROOT / ".matrix" / f"{python}-{libraries}" / "bin"
    if not bin.exists():
        subprocess.run([interpreter, "-m", "venv", bin.parent], check=True)
    requirements, why_not = choose(bin, libraries, cuda=args.cuda)
    if not requirements:
        return {}, f"skipped: {why_not}"
    subprocess.run([bin / "pip", "install", "-q", "--only-binary", ":all:", *requirements], check=True)
    tests = subprocess.run(
        [bin / "python", "-m", "pytest", "-q", *args.tests], cwd=ROOT, capture_output=True, text=True
    )
    (bin.parent / "tests.log").write_text(tests.stdout + tests.stderr)
    listed = subprocess.run([bin / "pip", "list", "--format", "json"], check=True, capture_output=True, text=True)
    versions = {p["name"]: p["version"] for p in json.loads(listed.stdout)}
    closing = tests.stdout.strip().splitlines()[-1].strip("= ") if tests.stdout.strip() else tests.stderr.strip()
    log = (bin.parent / "tests.log").relative_to(ROOT)
    return versions, closing if tests.returncode == 0 else f"FAILED: {closing} ({log})"


def choose(bin: Path, libraries: str, *, cuda: bool) -> tuple[list[str], str]:
    """What to install, or an empty list and why: the wanted torch, else the one of constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [lowest(r) if libraries == "oldest" else r for r in project["dependencies"]]
    wanted += [r for r in project["optional-dependencies"]["test"] if not r.startswith((*NOT_FOR_TESTS, "wanlab["))]
    wanted += project["optional-dependencies"]["notebook"]
    pinned = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    problem = ""
    for torch in (next(r for r in wanted if r.startswith("torch")), pinned[0]):
        requirements = [torch, *(r for r in wanted if not r.startswith("torch"))]
        packages, error = resolve(bin, requirements)
        heavy = [name for name in packages if CUDA.match(name)]
        if packages and (cuda or not heavy):
            return requirements, ""
        problem = error or f"{torch} brings {len(heavy)} packages of CUDA; CUDA=1 takes them"
        print(f"   {problem}", flush=True)
    return [], problem


def lowest(requirement: str) -> str:
    """`name==bound` of `name>=bound`."""
    return requirement.replace(">=", "==", 1)


def resolve(bin: Path, requirements: list[str]) -> tuple[list[str], str]:
    """Names of the packages that pip would install, nothing downloaded but metadata; or none and pip's last error."""
    report = bin.parent / "report.json"
    command = [bin / "pip", "install", "-q", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--report", report, *requirements], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return [], errors[0] if errors else done.stderr.strip()
    return [p["metadata"]["name"] for p in json.loads(report.read_text())["install"]], ""


if __name__ == "__main__":
    sys.exit(main())
