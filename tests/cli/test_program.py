"""The program as a whole: help, exit codes, signals, and what happens to stdout, with real processes."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wanlab.cli import app, render
from wanlab.errors import WanlabError


def wanlab(*args: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "wanlab", *args], capture_output=True, text=True, **more)  # type: ignore[call-overload,no-any-return]


def script(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)


def cpu(*command: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of processor time that Python takes for a command, and how it ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def slowness() -> float:
    """How much less than usual a second of CPU does here, a busy machine's or an old one's; 1 at least."""
    return max(1.0, cpu("-c", "import typer")[0] / 0.08)


# --- help ------------------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = wanlab("--version")
    assert (done.returncode, done.stderr) == (0, "") and re.fullmatch(r"\d+\.\d+\S*\n", done.stdout)


@pytest.mark.parametrize("command", ["generate", "compare", "continuity", "report", "inspect", "methods"])
def test_h_is_help_and_cuts_no_option_at_80_columns(command: str) -> None:
    short, long = (wanlab(command, h, env={**os.environ, "COLUMNS": "80"}) for h in ("-h", "--help"))
    assert short.returncode == long.returncode == 0 and short.stdout == long.stdout
    assert "…\n" not in long.stdout and max(map(len, long.stdout.splitlines())) <= 80
    if command in ("generate", "compare"):
        assert (
            "--cfg-truncate-high-noise-steps <int>" in long.stdout
            and "--enable-improved-frame-completion" in long.stdout
        )
        assert "[default: 144x80]" in long.stdout and "debug-outputs" not in long.stdout


def test_help_says_that_a_policy_of_a_file_runs_code_and_what_a_pipe_gets() -> None:
    said = " ".join(wanlab("generate", "--help").stdout.split())
    assert "FILE.py:name:knob=value,…, which runs the code in that file" in said
    assert "in a pipe file names from generate and continuity" in said


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom wanlab.__main__ import main\nsys.argv = ['wanlab', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'numpy', 'h5py', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    assert script(code).returncode == 0
    assert min(cpu("-m", "wanlab", "--help")[0] for _ in range(3)) < 0.4 * slowness()


def test_completion_completes_commands_and_options() -> None:
    def complete(words: str) -> list[str]:
        asked = {"_WANLAB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()))}
        return wanlab(env={**os.environ, **asked}).stdout.split()

    assert "generate" in complete("wanlab ")
    # The shell is found among the parents, whoever runs the tests; a last command keeps bash from becoming the program.
    shown = subprocess.run(
        ["bash", "-c", '"$0" -m wanlab --show-completion; :', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "_WANLAB_COMPLETE=complete_bash" in shown.stdout, shown.stderr


# --- typos before torch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (("--policy", "cgf:last=5"), "did you mean cfg"),
        (("--policy", "cfg:lst=5"), "did you mean last"),
        (("--model", "tinny"), "did you mean tiny"),
        (("--model", "no/such/place"), "check --model"),
        (("--guider", "cfgzeroo"), "did you mean cfgzero"),
        (("--policy", "no/such/file.py:skip:every=2"), "cannot read no/such/file.py"),
        (("--solver", "unipcc"), "did you mean unipc"),
        (("--task", "t2v-A14"), "did you mean t2v-A14B"),
    ],
)
def test_a_typo_is_said_within_a_second_of_cpu(given: tuple[str, ...], remedy: str) -> None:
    seconds, done = cpu("-m", "wanlab", "generate", "--prompt", "a red ball", "--dry-run", *given)
    assert done.returncode == 2 and remedy in done.stderr and done.stderr.count("\n") == 1
    assert seconds < slowness()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (("compare", "--a", "cgf:last=5"), "did you mean cfg"),
        (("compare", "--model", "tinny"), "did you mean tiny"),
        (("compare", "--a", "no/such.h5", "--b", "baseline"), "give both"),
        (("compare", "--a", "cfg:last=1", "--prompt", "a", "--out", "/proc/x"), "cannot write"),
        (("continuity", "--prompt", "x", "--model", "tinny"), "did you mean tiny"),
        (("continuity", "no/such.h5"), "there is no"),
        (("calibrate", "--model", "tinny"), "did you mean tiny"),
        (("calibrate", "--out", "x.txt"), ".json"),
        (("report", "no/such"), "there is no"),
        (("inspect", "--untrusted", "no/such.h5"), "there is no"),
    ],
)
def test_every_command_says_what_is_wrong_before_it_imports_what_it_works_with(
    given: tuple[str, ...], remedy: str
) -> None:
    seconds, done = cpu("-m", "wanlab", *given)
    assert remedy in done.stderr and done.stderr.count("\n") == 1
    assert seconds < slowness()


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_swallowed_by_a_fork_hook_is_obeyed_all_the_same(number: str, code: int) -> None:
    began = time.monotonic()
    done = script(
        "import os, signal, time\n"
        "from wanlab.cli import app\n"
        "def work(args):\n"
        f"    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.{number}))\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    time.sleep(20)\n"
        "    return 0\n"
        "app._run = work\n"
        "app.main([])\n"
    )
    assert done.returncode == code and "Traceback" not in done.stderr and "goes on" in done.stderr
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_second_signal_during_the_goodbye_ends_at_once(number: str, code: int) -> None:
    done = script(
        "import os, signal, time\n"
        "from wanlab.cli import app, render\n"
        f"def again(*_): os.kill(os.getpid(), signal.{number}); time.sleep(20)\n"
        f"def work(args): os.kill(os.getpid(), signal.{number}); time.sleep(20)\n"
        "render.complain, app._run = again, work\n"
        "app.main([])\n"
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_a_signal_that_a_library_makes_another_error_of_is_a_stop() -> None:
    done = script(
        "import os, signal, time\n"
        "from wanlab.cli import app, stopping\n"
        "def work(*_, **__):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "    except BaseException: raise RuntimeError('callback failed') from None\n"
        "app.app = work\n"
        "app.main(['x'])\n"
    )
    assert done.returncode == 143 and "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 0)])
def test_a_command_may_end_well_by_ctrl_c_but_not_by_sigterm(number: str, code: int) -> None:
    done = script(
        "import os, signal, time\n"
        "from wanlab.cli import app\n"
        "def work(*_, **__):\n"
        f"    try: os.kill(os.getpid(), signal.{number}); time.sleep(20)\n"
        "    except BaseException: return 0\n"
        "app.app = work\n"
        "app.main(['x'])\n"
    )
    assert done.returncode == code and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["wanlab.cli.app", "typer.core", "wanlab.spec.run", "torch"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_an_import_leaves_no_traceback(module: str, number: int, code: int) -> None:
    done = script(
        "import os, runpy, sys\n"
        "class Signal:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Signal())\n"
        "sys.argv = ['wanlab', 'generate', '--dry-run', '--prompt', 'a ball']\n"
        "runpy.run_module('wanlab', run_name='__main__')\n"
    )
    assert done.returncode == code and "Traceback" not in done.stderr and "wanlab: " in done.stderr


def test_ctrl_c_before_anybody_obeys_signals_leaves_no_traceback() -> None:
    done = script(
        "import os, runpy, signal, sys\n"
        "class Signal:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'wanlab.cli.stopping': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Signal())\n"
        "sys.argv = ['wanlab', '--version']\n"
        "runpy.run_module('wanlab', run_name='__main__')\n"
    )
    assert (done.returncode, done.stderr) == (130, "wanlab: stopped\n")


# --- stdout ----------------------------------------------------------------------------------------------------------


def test_a_closed_stdout_is_said() -> None:
    shell = f'exec "{sys.executable}" -m wanlab methods >&-'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert done.returncode == 1 and "standard output is closed" in done.stderr and done.stderr.count("\n") == 1


def test_a_full_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wanlab", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_a_reader_that_has_enough_changes_no_exit_code() -> None:
    code = (
        "import sys\nfrom wanlab.cli import app, render\n"
        "def work(*_, **__):\n"
        "    for _ in range(100): render.write('x' * 10_000)\n"
        "    return 4\n"
        "app.app = work\napp.main(['x'])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 4


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_letters_is_no_error(encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = wanlab("methods", "--format", "human", env=env, encoding=encoding)
    assert done.returncode == 0 and done.stderr == "" and "Euler's method" in done.stdout
    refused = wanlab("methods", "уни", env=env, encoding=encoding)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


def test_force_color_colours_no_pipe_and_draws_no_bar() -> None:
    done = wanlab("methods", "nothing", env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b" not in done.stderr
    done = wanlab("methods", "--format", "human", env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b" not in done.stdout and "policy" in done.stdout
    code = "from wanlab.cli import render\nassert not render.talk().is_terminal and not render.output().is_terminal"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "FORCE_COLOR": "1"}, capture_output=True
        ).returncode
        == 0
    )


# --- errors that nobody nearer explains ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y.png"),
            "/x/y.png: No space left on device (free some space",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error (the disk or its connection fails"),
        (
            OSError(errno.EFBIG, "File too large", "r.h5"),
            "r.h5: File too large (this file system or `ulimit -f` takes no file",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "d"), "d: Permission denied (choose a place"),
        (OSError("h5py says no"), "h5py says no (check the path and the disk"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a to b: Invalid"),
        (MemoryError(), "out of memory (use fewer frames"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_a_remedy(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fails)
    with pytest.raises(SystemExit) as stop:
        app.main(["x"])
    shown = capsys.readouterr()
    assert stop.value.code == 1 and shown.err.startswith(f"wanlab: {said}") and shown.err.count("\n") == 1


def test_a_mistake_in_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(app, "app", fails)
    with pytest.raises(KeyError):
        app.main(["x"])


def test_names_of_files_that_are_no_text_leave_as_they_are(tmp_path: Path) -> None:
    code = "import os\nfrom wanlab.cli.render import *\nprepare()\nwrite(os.fsdecode(b'a\\xff.h5') + ' \\u03c3')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout == b"a\xff.h5 \\u03c3", done.stderr


def test_a_wide_table_is_not_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(render, "PIPE_WIDTH", 30)
    render.show(render.table([{f"column {k}": 123456.789 for k in range(6)}]))
    assert capsys.readouterr().out.count("123456.789") == 6


def test_wanlab_error_keeps_its_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: object, **__: object) -> None:
        raise WanlabError("it is \x1b[31mred\x1b[0m", "look\naway")

    monkeypatch.setattr(app, "app", fails)
    with pytest.raises(SystemExit) as stop:
        app.main(["x"])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "\x1b" not in said and said.count("\n") == 1
