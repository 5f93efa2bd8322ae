"""From what a user writes (a YAML file, or options) to a JobSpec. Every mistake names the key, the value and the line.

name: digits                     # optional; the job's id is made from it
command: python train.py --lr 1  # or a list of words; needed
workers: 2                       # default 1; 2..8: it may have fewer, each then making the batches of several
devices: 1..2                    # may have fewer devices than workers, which then take turns; default: one each
cwd: ../digits                   # default: where you submit; relative to the file
env: {OMP_NUM_THREADS: "1"}
memory: 8GB                      # peak device memory of one worker
steps: 5000                      # that it will make, as long as its script has not said so itself: short jobs may go first
deadline: 2h                     # from its submission until it should be done; default: none
tenant: vision                   # for whom it is: the policy fair gives tenants even parts
migrate: true                    # may restow move it?
share:                           # may other jobs use its devices too, in its idle time? true, false, a mode, or:
  allow: true                    #   false: never
  mode: auto                     #   auto, exclusive, interleave, time-slice, best-effort or free
  protect: false                 #   true: it goes first and must not be hurt
  max_slowdown: 0.03             #   longer steps than this part are too much
  memory: 4GB                    #   the most that a worker may take of its device
  quantum: 5                     #   seconds of a turn in time slices
  link: auto                     #   on, off: is the link passed in turns, too? auto: where it is scarcer than the devices
fill: auto                       # auto, replica, copy or shadow
max_pause_s: 60                  # the longest pause that one move may cost
stop_grace_s: 10                 # between SIGTERM and SIGKILL
checkpoint:                      # true (on demand only), a time, a number of steps, or:
  folder: checkpoints            #   relative to cwd, or a URL such as s3://bucket/runs
  every: 10min                   #   a time, or a number of steps such as 500 steps; default: on demand only
  keep: 2                        #   the newest ones; 0: all
  shared: false                  #   every node sees the folder (a URL: always)
priority: 0                      # a waiting job of a higher one lets running ones of a lower step aside (suspended)
retries: 0                       # how often it starts again after an error of its own, or a loss that nothing is left of
hang: report                     # no step for 20 usual ones and a minute: report or replace the cause, off, or:
  after: 5min                    #   so long instead
  then: report
slow: report                     # a rank much slower than its peers: report, or move it to a free device
recover: true                    # go on when workers are killed or machines lost? false: the job fails then
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from restow.errors import SpecError
from restow.job import CheckpointSpec, JobSpec, ShareSpec

_PYTHON = re.compile(r"python[\d.]*")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_EVERY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|seconds?|m|min|minutes?|h|hours?|steps?|)\s*")
_RANGE = re.compile(r"\s*(\d+)\s*(?:(?:\.\.|-)\s*(\d+)\s*)?")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", re.IGNORECASE)


def load(path: Path, *, cwd: Path, instead: Mapping[str, Any] | None = None) -> JobSpec:
    """The spec in a YAML file. `cwd` is where a job without one runs; keys of `instead` win, those under its `share` one by one.
    Raises SpecError."""
    import yaml

    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError(f"spec {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"spec {path} is not text; write YAML") from None
    try:
        tree = yaml.compose(text, yaml.SafeLoader)
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SpecError(f"spec {path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(written, dict):
        raise SpecError(f"spec {path} holds {_kind(written)}; write keys such as command: and workers:")
    lines: dict[str, int] = {}
    for key, _ in tree.value:
        if key.value in lines:
            raise SpecError(f"{path}, line {key.start_mark.line + 1}: {key.value} is given twice; see line {lines[key.value]}")
        lines[key.value] = key.start_mark.line + 1
    if isinstance(written.get("cwd"), str):
        written["cwd"] = str(path.parent / written["cwd"])
    wanted = dict(instead or {})
    if isinstance(wanted.get("share"), dict):
        beside = _share_map(written.get("share"))
        wanted["share"] = {**beside, **wanted["share"]} if isinstance(beside, dict) else beside  # a wrong one is told below
    return build(
        {**written, **wanted},
        cwd=cwd,
        where=lambda key: f"{path}, line {lines[key]}: " if key in lines else f"{path}: ",
    )


def build(written: Mapping[Any, Any], *, cwd: Path, where: Callable[[str], str] = lambda key: "") -> JobSpec:
    """The spec that these keys describe. `where(key)` begins the message of an error about that key."""
    for key in written:
        if key not in _READERS:
            close = difflib.get_close_matches(str(key), _READERS, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(_READERS)}"
            raise SpecError(f"{where(str(key))}unknown key {str(key)!r}; {hint}")
    fields: dict[str, Any] = {}
    for key, value in written.items():
        if value is not None:
            name, read = _READERS[key]
            try:
                fields[name] = read(key, value)
            except SpecError as error:
                raise SpecError(f"{where(key)}{error}") from None
    if "command" not in fields:
        raise SpecError(f"{where('')}command is missing; give the program to run, for example command: python train.py")
    if not fields["command"]:
        raise SpecError(f"{where('command')}command is empty; give the program to run, for example command: python train.py")
    for key in ("hang", "workers"):
        fields.update(fields.pop(key, {}))
    folder = Path(fields.get("cwd") or cwd)
    fields["cwd"] = str(folder if folder.is_absolute() else cwd / folder)
    kept = fields.get("checkpoint")
    if kept and kept.folder and "://" not in kept.folder:
        fields["checkpoint"] = replace(kept, folder=str(Path(fields["cwd"], kept.folder)))
    if not Path(fields["cwd"]).is_dir():
        raise SpecError(f"{where('cwd')}cwd is {fields['cwd']!r}; there is no such folder")
    program, script = fields["command"][0], script_of(fields["command"])
    if "/" in program and not (Path(fields["cwd"]) / program).is_file():
        raise SpecError(f"{where('command')}command runs {program!r}; there is no such file in {fields['cwd']}")
    if "/" in program and not os.access(Path(fields["cwd"]) / program, os.X_OK):
        raise SpecError(f"{where('command')}command runs {program!r}, which may not be executed; chmod +x it, or name what runs it")
    if script and not (Path(fields["cwd"]) / script).exists():
        raise SpecError(f"{where('command')}command runs the script {script!r}; there is no such file in {fields['cwd']}")
    try:
        return JobSpec(**fields)
    except SpecError as error:
        key = str(error).partition(" ")[0]
        raise SpecError(f"{where(key)}{error}") from None


def script_of(command: Sequence[str]) -> str:
    """The file that a python command runs; empty if it is no python command, or runs a module, a text or its input."""
    if not command or not _PYTHON.fullmatch(Path(command[0]).name):
        return ""
    words = iter(command[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if word in ("-X", "-W"):
            next(words, None)
        elif word in ("-", "--") or (not word.startswith(("-X", "-W", "--")) and set(word) & set("mc")):
            return ""
    return ""


def parse_bytes(key: str, value: Any) -> int:
    """`8GB`, `512 MiB`, `1.5G` or a number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise SpecError(f"{key} is {value!r}; write a size such as 8GB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_range(key: str, value: Any) -> tuple[int, int]:
    """`1..8`, `4` or [1, 8]."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(number) is int for number in value):
        return value[0], value[1]
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise SpecError(f"{key} is {value!r}; write a number such as 2 or a range such as 1..8")
    return int(match[1]), int(match[2] or match[1])


def _workers(key: str, value: Any) -> dict[str, int]:
    """Fields of the spec, from a number or a range."""
    low, high = parse_range(key, value)
    if low < 1 and low != high:
        raise SpecError(f"{key} is {low}..{high}; a job needs at least 1")
    return {"workers": high, "workers_min": 0 if isinstance(value, int) or low == high else low}


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write text, in quotes if need be")
    return value


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write a whole number")
    return value


def _seconds(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write a number of seconds")
    return float(value)


def _part(key: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write a part such as 0.05 for 5 %")
    return float(value)


def _choice(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write true or false")
    return value


def _words(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            return tuple(shlex.split(value))
        except ValueError as error:
            raise SpecError(f"{key} is {value!r}: {error}; write a list of words instead") from None
    if isinstance(value, list) and all(
        isinstance(word, (str, int, float)) and not isinstance(word, bool) for word in value
    ):
        return tuple(str(word) for word in value)
    raise SpecError(f"{key} is {value!r} ({_kind(value)}); write text or a list of words")


def _pairs(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write NAME: value pairs")
    for name, setting in value.items():
        if not isinstance(name, str) or "=" in name or not name:
            raise SpecError(f"{key} names the variable {name!r}; write a name without '='")
        if isinstance(setting, bool) or not isinstance(setting, (str, int, float)):
            raise SpecError(f"{key}: {name} is {setting!r} ({_kind(setting)}); write text, in quotes if need be")
    return tuple((name, str(setting)) for name, setting in value.items())


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true/false", int: "a whole number", float: "a number", list: "a list", dict: "a map"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


def _share_map(value: Any) -> Any:
    """The map that a word under `share:` stands for (true, false or a mode); anything else as it is."""
    if value is None:
        return {}
    if isinstance(value, bool):
        return {"allow": value}
    return {"mode": value} if isinstance(value, str) else value


def _share(key: str, value: Any) -> ShareSpec:
    """A map, or one word: true, false or a mode."""
    value = _share_map(value)
    if not isinstance(value, dict):
        raise SpecError(f"{key} is {value!r} ({_kind(value)}); write true, false, a mode, or {', '.join(_SHARE_READERS)} under it")
    fields: dict[str, Any] = {}
    for name, setting in value.items():
        if name not in _SHARE_READERS:
            close = difflib.get_close_matches(str(name), _SHARE_READERS, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"its keys are {', '.join(_SHARE_READERS)}"
            raise SpecError(f"{key}: unknown key {str(name)!r}; {hint}")
        field, read = _SHARE_READERS[name]
        fields[field] = read(f"{key}: {name}", setting)
    return ShareSpec(**fields)


def _switch(key: str, value: Any) -> str:
    """YAML reads on and off as true and false."""
    if not isinstance(value, (bool, str)):
        raise SpecError(f"{key} is {value!r}; choose one of auto, on, off")
    return ("on" if value else "off") if isinstance(value, bool) else value


def parse_every(key: str, value: Any) -> tuple[float, int]:
    """(seconds, steps) of `10min`, `90 s`, `2h`, `500 steps` or a number of seconds; the other one is 0."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), 0
    match = _EVERY.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise SpecError(f"{key} is {value!r}; write a time such as 10min or 90s, or a number of steps such as 500 steps")
    if match[2].startswith("step"):
        return 0.0, int(float(match[1]))
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2][:1] or "s"], 0


def _time(key: str, value: Any) -> float:
    """Seconds of `90s`, `2h` or a number of them, above 0."""
    seconds, steps = parse_every(key, value)
    if steps or not seconds > 0:
        raise SpecError(f"{key} is {value!r}; write a time above 0, for example 2h")
    return seconds


def _hang(key: str, value: Any) -> dict[str, Any]:
    """Fields of the spec, from a map or a word."""
    if value is False or value == "off":
        return {"hang_s": -1.0}
    value = value if isinstance(value, dict) else {"then": value}
    fields: dict[str, Any] = {}
    for name, setting in value.items():
        if name == "then":
            fields["on_hang"] = _text(f"{key}: then", setting)
        elif name == "after":
            fields["hang_s"], steps = parse_every(f"{key}: after", setting)
            if steps or fields["hang_s"] <= 0:
                raise SpecError(f"{key}: after is {setting!r}; write a time such as 5min")
        else:
            raise SpecError(f"{key}: unknown key {str(name)!r}; its keys are after, then")
    return fields


def _checkpoint(key: str, value: Any) -> CheckpointSpec:
    """A map, or true, or what `every` says."""
    if isinstance(value, bool):
        value = {}
    elif not isinstance(value, dict):
        value = {"every": value}
    fields: dict[str, Any] = {}
    readers = {"folder": _text, "keep": _count, "shared": _choice}
    for name, setting in value.items():
        if name == "every":
            fields["every_s"], fields["every_steps"] = parse_every(f"{key}: every", setting)
        elif name in readers:
            fields[name] = readers[name](f"{key}: {name}", setting)
        else:
            close = difflib.get_close_matches(str(name), [*readers, "every"], n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else "its keys are folder, every, keep, shared"
            raise SpecError(f"{key}: unknown key {str(name)!r}; {hint}")
    return CheckpointSpec(**fields)


_SHARE_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "allow": ("allow", _choice),
    "mode": ("mode", _text),
    "protect": ("protect", _choice),
    "max_slowdown": ("max_slowdown", _part),
    "memory": ("memory_bytes", parse_bytes),
    "quantum": ("quantum_s", _seconds),
    "link": ("link", _switch),
}

_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "name": ("name", _text),
    "command": ("command", _words),
    "workers": ("workers", _workers),
    "devices": ("devices", parse_range),
    "cwd": ("cwd", _text),
    "env": ("env", _pairs),
    "memory": ("memory_bytes", parse_bytes),
    "steps": ("steps", _count),
    "deadline": ("deadline_s", _time),
    "tenant": ("tenant", _text),
    "migrate": ("migrate", _choice),
    "fill": ("fill", _text),
    "max_pause_s": ("max_pause_s", _seconds),
    "stop_grace_s": ("stop_grace_s", _seconds),
    "recover": ("recover", _choice),
    "priority": ("priority", _count),
    "retries": ("retries", _count),
    "hang": ("hang", _hang),
    "slow": ("on_slow", _text),
    "share": ("share", _share),
    "checkpoint": ("checkpoint", _checkpoint),
}
