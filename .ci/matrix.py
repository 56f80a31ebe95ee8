"""Run the tests on every Python that is here, with the oldest and with the newest libraries that pyproject.toml allows.

    python .ci/matrix.py [--cuda] [TEST ...]

Oldest: each dependency at its lower bound. Newest: whatever the package index gives today. Each pair of a Python and a
set of libraries has its own environment under .matrix/. A torch that brings CUDA with it is several gigabytes: without
--cuda the version in constraints.txt stands in for it, if that one comes without; else torch is left out, and only the
tests that need none are run. The table says so. The exit status is 1 when a test failed or nothing could be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "diffusers", "h5py", "numpy")
CHECKS = ("ruff", "mypy", "import-linter")
ENGINE = ("torch", "diffusers", "transformers", "accelerate")
CUDA = re.compile(r"nvidia-|cuda-|triton")
WITHOUT_TORCH = (
    "tests/test_registry.py", "tests/test_runfile.py", "tests/test_runfile_readers.py",
    "tests/test_runfile_faults.py", "tests/analysis", "tests/embedded/test_world.py",
)  # fmt: skip


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
    interpreter = find(python)
    if interpreter is None:
        return {}, f"skipped: no Python {python} here"
    print(f"== Python {python}, {libraries} libraries", flush=True)
    home = ROOT / ".matrix" / f"{python}-{libraries}"
    if not home.exists():
        subprocess.run([interpreter, "-m", "venv", home], check=True)
    try:
        requirements = choose(home, libraries, cuda=args.cuda)
        pip(home, "-q", "--only-binary", ":all:", *requirements)
    except subprocess.CalledProcessError as error:
        return {}, f"FAILED: {said(error)}"
    tests = args.tests if any(r.startswith("torch") for r in requirements) else [*WITHOUT_TORCH]
    pytest = subprocess.run(
        [home / "bin/python", "-m", "pytest", "-q", *tests], cwd=ROOT, capture_output=True, text=True
    )
    log = home / "tests.log"
    log.write_text(pytest.stdout + pytest.stderr)
    closing = (pytest.stdout.strip() or pytest.stderr.strip() or "no output").splitlines()[-1].strip("= ")
    result = closing if pytest.returncode == 0 else f"FAILED: {closing} ({log.relative_to(ROOT)})"
    return installed(home), result + (" (those that need no torch)" if tests == [*WITHOUT_TORCH] else "")


def find(python: str) -> Path | None:
    """An interpreter of this version: on the path, or among pyenv's."""
    here = shutil.which(f"python{python}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (here, *sorted(pyenv.glob(f"versions/{python}.*/bin/python"))):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return Path(candidate)
    return None


def choose(home: Path, libraries: str, *, cuda: bool) -> list[str]:
    """What to install: with the wanted torch, else with that of constraints.txt, else with none.

    Raises CalledProcessError when the bounds contradict each other.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [r.replace(">=", "==", 1) if libraries == "oldest" else r for r in project["dependencies"]]
    wanted += [r for r in [*extras["test"], *extras["notebook"]] if not r.startswith((*CHECKS, "wanlab"))]
    pinned = [r for r in (ROOT / "constraints.txt").read_text().split() if r.startswith("torch==")]
    rest = [r for r in wanted if not r.startswith("torch")]
    for torch in [*(r for r in wanted if r.startswith("torch")), *pinned]:
        heavy = [name for name in resolve(home, [torch, *rest]) if CUDA.match(name)]
        if cuda or not heavy:
            return [torch, *rest]
        print(f"   {torch} brings {len(heavy)} packages of CUDA; CUDA=1 takes them", flush=True)
    return [r for r in rest if not r.startswith(ENGINE)]


def resolve(home: Path, requirements: list[str]) -> list[str]:
    """Names of the packages that pip would install; only metadata is downloaded."""
    report = home / "report.json"
    pip(home, "-q", "--dry-run", "--ignore-installed", "--only-binary", ":all:", "--report", str(report), *requirements)
    return [p["metadata"]["name"] for p in json.loads(report.read_text())["install"]]


def pip(home: Path, *args: str) -> None:
    """`pip install` in an environment. Raises CalledProcessError, with what it said."""
    subprocess.run([home / "bin/pip", "install", *args], check=True, capture_output=True, text=True)


def said(error: subprocess.CalledProcessError) -> str:
    """pip's first error."""
    text = str(error.stderr)
    return next((line for line in text.splitlines() if line.startswith("ERROR")), text.strip()[-200:])


def installed(home: Path) -> dict[str, str]:
    """Versions by name."""
    listed = subprocess.run([home / "bin/pip", "list", "--format", "json"], check=True, capture_output=True, text=True)
    return {p["name"]: p["version"] for p in json.loads(listed.stdout)}


if __name__ == "__main__":
    sys.exit(main())
