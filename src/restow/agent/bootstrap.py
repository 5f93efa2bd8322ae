"""What a forked child does to become a rank: its own session, log, folder, environment and core, then the user's program.

A python script runs right here, as python itself would run it as __main__, so torch is there already. Everything else, and
python with settings that are read before the first line of a program, is an ordinary exec.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import importlib
import importlib.machinery
import io
import json
import os
import runpy
import signal
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from restow.agent.birth import Birth
from restow.agent.children import RunFiles

# Read when an interpreter or a library starts: a fork would come too late for another value.
_EARLY_PREFIXES = (
    "PYTHON", "LD_", "MALLOC_", "GLIBC_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "TORCH_", "PYTORCH_", "NPY_",
)  # fmt: skip
_NOT_EARLY = (
    "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "TORCH_NCCL_", "TORCH_HOME",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
)  # fmt: skip


class CannotStart(Exception):
    """The program cannot be started; one line says why."""


@dataclass(frozen=True, slots=True)
class Script:
    """A python program that runs in this process: what python makes of its command line."""

    argv: list[str]  # sys.argv
    path0: str  # sys.path[0]
    run: Callable[[], None]
    unbuffered: bool


def live(birth: Birth, run_files: RunFiles, report: int) -> int:
    """Become the process that `birth` describes; the exit code, if it ran here. What cannot be started is said to `report`."""
    inherited = dict(os.environ)
    try:
        settle(birth)
        script = as_script(birth, inherited)
        if script is None:
            execute(birth)
    except (CannotStart, OSError) as error:
        os.write(report, json.dumps({"error": str(error)}).encode())
        os._exit(127)
    os.close(report)
    assert script is not None
    code = run(script, birth, run_files)
    if "restow.sdk.session" in sys.modules:
        end_with_threads(code)
    return code


def end_with_threads(code: int) -> NoReturn:
    """End as python would, but for the end of the interpreter: threads of the SDK may be inside C++ (a store, a communicator),
    and whichever of them comes back while the interpreter goes would abort the process (SIGABRT after the last line)."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the script's own threads
    atexit._run_exitfuncs()
    for thing in gc.get_objects():
        if issubclass(type(thing), io.IOBase) and not thing.closed:  # isinstance would ask strangers, and some warn
            with contextlib.suppress(OSError, ValueError):  # a closed pipe, a file that is only read
                thing.flush()
    os._exit(code)


# ---------------------------------------------------------------- around the program

def settle(birth: Birth) -> None:
    """Everything that a process has before its program. Raises CannotStart."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        Path(birth.log).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(birth.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise CannotStart(f"log {birth.log}: {error.strerror}") from None
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        os.chdir(birth.cwd or "/")
    except OSError as error:
        raise CannotStart(f"working directory {birth.cwd}: {error.strerror}") from None
    if birth.cgroup:
        try:
            Path(birth.cgroup, "cgroup.procs").write_text("0")
        except OSError as error:
            raise CannotStart(f"control group {birth.cgroup}: {error.strerror}; is the lab still up?") from None
    if birth.core is not None:
        try:
            os.sched_setaffinity(0, {birth.core})
        except OSError as error:
            raise CannotStart(f"core {birth.core}: {error.strerror}") from None
    os.environ.clear()
    os.environ.update(birth.environment)


def execute(birth: Birth) -> None:
    """Replace this process by the program. Raises CannotStart."""
    name = birth.command[0]
    program = birth.python if name in ("python", "python3") else name
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs expect the default
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(program, list(birth.command), birth.environment)
    except FileNotFoundError:
        raise CannotStart(f"{name}: no such program in {birth.cwd} or on PATH") from None
    except OSError as error:
        raise CannotStart(f"{name}: {error.strerror}") from None


# ---------------------------------------------------------------- which program

def as_script(birth: Birth, inherited: Mapping[str, str]) -> Script | None:
    """The python program that can run in this process; None: it has to be executed. Raises CannotStart when there is none."""
    name, *words = birth.command
    if not is_own_python(name, birth.python) or "torch" not in sys.modules or has_early_settings(birth.environment, inherited):
        return None
    unbuffered = False
    while words and words[0] == "-u":
        unbuffered, words = True, words[1:]
    if not words:
        return None
    if words[0] == "-m" and len(words) > 1:
        module = words[1]
        return Script(["-m", *words[2:]], os.getcwd(), lambda: _run_module(module), unbuffered)
    if words[0] == "-c" and len(words) > 1:
        code = words[1]
        return Script(["-c", *words[2:]], "", lambda: _run_code(code, "<string>", None), unbuffered)
    if words[0].startswith("-"):
        return None
    return _script_file(words, birth.cwd, unbuffered)


def is_own_python(name: str, python: str) -> bool:
    return name in ("python", "python3", python)


def has_early_settings(wanted: Mapping[str, str], inherited: Mapping[str, str]) -> bool:
    """Does the program want something of its interpreter or libraries that this process did not start with?"""
    return any(
        wanted.get(name) != inherited.get(name)
        for name in {*wanted, *inherited}
        if name.startswith(_EARLY_PREFIXES) and not name.startswith(_NOT_EARLY)
    )


def _script_file(words: list[str], cwd: str, unbuffered: bool) -> Script:
    path = os.path.join(cwd, words[0])
    if os.path.isdir(path) or path.endswith((".zip", ".pyz")):
        return Script(words, path, lambda: runpy._run_module_as_main("__main__", alter_argv=False), unbuffered)  # type: ignore[attr-defined]
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise CannotStart(f"script {words[0]} in {cwd}: {error.strerror}") from None
    path = os.path.abspath(path)
    return Script(words, os.path.dirname(os.path.realpath(path)), lambda: _run_code(source, path, path), unbuffered)


def _run_module(module: str) -> None:
    runpy._run_module_as_main(module, alter_argv=True)  # type: ignore[attr-defined]  # what `python -m` itself calls


def _run_code(source: str | bytes, name: str, file: str | None) -> None:
    namespace = sys.modules["__main__"].__dict__
    if file:
        namespace.update(__file__=file, __cached__=None, __loader__=importlib.machinery.SourceFileLoader("__main__", file))
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


# ---------------------------------------------------------------- running it

def run(script: Script, birth: Birth, run_files: RunFiles) -> int:
    """Run the program as __main__; returns the exit code. What it said last is written down for whoever asks why it ended."""
    _pretend_fresh(script, birth)
    pid = os.getpid()

    def note(code: int, reason: str) -> int:
        if os.getpid() == pid:  # not a child that the script forked and that came back here
            try:
                run_files.words(pid).write_text(json.dumps({"code": code, "reason": reason[:400]}))
            except OSError as error:
                print(f"restow: last words could not be written: {error}", file=sys.stderr)
        return code

    try:
        script.run()
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return note((exit.code or 0) & 0xFF, "")
        print(exit.code, file=sys.stderr)
        return note(1, str(exit.code).strip().splitlines()[-1] if str(exit.code).strip() else "")
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        code = note(1, _last_words(error, birth))
        if isinstance(error, KeyboardInterrupt):
            _end_by_sigint()
        return code
    return note(0, "")


def _last_words(error: BaseException, birth: Birth) -> str:
    """One line on why the script ended; where it is memory, in our words, which the log gets too."""
    footprint = sys.modules.get("restow.sdk.footprint")
    line = footprint.memory_error_line(error, f"job {birth.environment.get('RESTOW_JOB', '')}") if footprint else None
    if line:
        print(f"restow: {line}", file=sys.stderr)
    return line or f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:320] + _place(error)


def _place(error: BaseException) -> str:
    """` (train.py:42)`: the innermost line that is the user's own; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = (f"{os.sep}site-packages{os.sep}", f"{os.sep}restow{os.sep}", f"{os.sep}lib{os.sep}python", "<frozen ")
    own = [frame for frame in frames if not any(part in frame.filename for part in parts)]
    return f" ({os.path.basename(own[-1].filename)}:{own[-1].lineno})" if own else ""


def _end_by_sigint() -> None:
    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _pretend_fresh(script: Script, birth: Birth) -> None:
    """Nothing that the script can ask tells it from a new interpreter, but that imports are quick."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    sys.argv = list(script.argv)
    sys.orig_argv = list(birth.command)
    added = [os.path.abspath(entry) for entry in birth.environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [script.path0, *added, *(entry for entry in sys.path if entry not in added)]
    importlib.invalidate_caches()
    sys.dont_write_bytecode = bool(birth.environment.get("PYTHONDONTWRITEBYTECODE"))
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, write_through=script.unbuffered)
    tempfile.tempdir = None
    threading.current_thread().name = "MainThread"
    _refresh_modules(sys.modules, birth.environment)


def _refresh_modules(modules: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """What imported modules took from the process that imported them."""
    if "multiprocessing.process" in modules:
        process = modules["multiprocessing.process"]
        process.ORIGINAL_DIR = os.getcwd()
        process.current_process().authkey = os.urandom(32)
    if "random" in modules:
        modules["random"].seed()
    if "numpy.random" in modules:
        modules["numpy.random"].seed()  # as a new process would: from the system's entropy
    if "torch" in modules:
        modules["torch"].default_generator.seed()  # torch too begins with entropy; forks would all have the nursery's
        wanted = environment.get("OMP_NUM_THREADS", "")
        threads = int(wanted) if wanted.isdecimal() and int(wanted) > 0 else len(os.sched_getaffinity(0))
        if threads != modules["torch"].get_num_threads():
            modules["torch"].set_num_threads(threads)
