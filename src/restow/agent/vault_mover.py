"""The two processes by which what a vault holds of a job moves to another node, forked by the nurseries of both.

The giver maps the files, checks them and serves their bytes as they are, on a fill port (sdk/transport.py). The taker fetches what
its node does not have yet straight into files of its own vault and checks each. A file is a state only when its `.json` is there,
which comes last, so whoever is killed leaves nothing that could be taken for one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from restow import vault
from restow.errors import Refused, RestowError

LIFE_S = 3600  # of a giver, and the longest that a taker waits for its checking: as long as the core does (CoreConfig.move_vault_s)
PIECE_BYTES = 16 << 20  # asked for at once: an eighth of a second at 1 Gbit/s, against two round trips
PIECE_S = 120.0  # for one; a link of less than 1.1 Mbit/s is taken for broken
ARRIVED = "arrived"  # in the folder that a taker has filled: what it did


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """Which states move, for either end."""

    job: str
    generation: int
    step: int
    names: tuple[str, ...]
    memory: str  # the node's folder for them in shared memory, and the one on disk
    disk: str
    host: str  # where the giver serves
    port: int = 0  # for the taker
    attempt: int
    secret: str

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"names": list(self.names)}

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Orders:
        return cls(**{**wire, "names": tuple(wire["names"])})


# ---------------------------------------------------------------- the giver


def give(orders: Orders, words: Path, report: int) -> int:
    """Serve until ended. Says {"port"} to `report` at once, and in `words` why it ends, where the states are not whole."""
    _begin()
    from restow.sdk.transport import FillServer

    try:
        server = FillServer(orders.host, bytes.fromhex(orders.secret))
    except RestowError as error:
        os.write(report, json.dumps({"error": str(error)}).encode())
        os._exit(1)
    os.write(report, json.dumps({"port": server.port}).encode())
    os.close(report)
    try:
        manifests, published = load(orders)
    except RestowError as error:
        _fail(error, words)
    server.publish(pieces_of(published), json.dumps(manifests).encode())
    print(f"vault: giving {orders.job} away at port {server.port}", file=sys.stderr, flush=True)
    signal.alarm(LIFE_S)
    while True:
        signal.pause()


def load(orders: Orders) -> tuple[dict[str, Any], dict[str, Any]]:
    """Name → manifest, and name → bytes (uint8), all from one folder. Raises Refused where neither has them unharmed."""
    refusals = []
    for folder in (Path(orders.memory), Path(orders.disk)):
        try:
            found = {name: _load(orders, folder, name) for name in orders.names if folder.is_dir()}
        except Refused as error:
            refusals.append(str(error))
        else:
            if found:
                return {name: about for name, (about, _) in found.items()}, {name: flat for name, (_, flat) in found.items()}
    raise Refused("; ".join(refusals) or f"the state of generation {orders.generation} is not in this vault any more")


def pieces_of(states: Mapping[str, Any]) -> dict[str, Any]:
    """What a taker asks for: `NAME/OFFSET` → so many of its bytes."""
    return {
        f"{name}/{at}": flat[at : at + PIECE_BYTES] for name, flat in states.items() for at in range(0, len(flat), PIECE_BYTES)
    }


def _load(orders: Orders, folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    from restow.sdk.vault import map_state

    manifest, flat = map_state(folder, name)
    _check(manifest, orders.step, str(folder))
    return asdict(manifest), flat


def _check(manifest: vault.Manifest, step: int, where: str) -> None:
    if manifest.step != step:
        raise Refused(f"a state in {where} is of step {manifest.step}, not of step {step}")


# ---------------------------------------------------------------- the taker


def take(orders: Orders, words: Path, report: int) -> int:
    """Fetch them; the exit code is 0 if that went well, and `arrived` in the folder says what was done."""
    _begin()
    os.close(report)
    os.nice(10)  # training first
    try:
        fetch(orders)
    except (RestowError, OSError, RuntimeError) as error:
        _fail(error, words)
    words.write_text(json.dumps({"code": 0, "reason": ""}))
    sys.stderr.flush()
    os._exit(0)


def fetch(orders: Orders) -> Path:
    """Everything that this node does not have yet; returns the folder in which it has all. Raises RestowError, OSError."""
    from restow.sdk.transport import FillClient

    began_s = time.monotonic()
    client = FillClient(orders.host, orders.port, bytes.fromhex(orders.secret))
    manifests = _read_manifests(orders, client.fetch_private(LIFE_S))
    folders = _choose(orders, sum(manifest.bytes for manifest in manifests.values()))
    while True:
        folder = folders.pop(0)
        try:
            fetched = _fill(orders, manifests, folder, client)
            break
        except OSError:
            if not folders:
                raise
    client.close()
    done = {"attempt": orders.attempt, "bytes": fetched, "copy_s": time.monotonic() - began_s}
    draft = folder / f"{ARRIVED}.draft"
    draft.write_text(json.dumps(done))
    draft.replace(folder / ARRIVED)
    for path in (*folder.iterdir(), folder):
        vault.sync(path)
    return folder


def _read_manifests(orders: Orders, raw: bytes) -> dict[str, vault.Manifest]:
    where = f"{orders.host}:{orders.port}"
    try:
        manifests = {name: vault.manifest_of(said, where) for name, said in json.loads(raw).items()}
        chosen = {name: manifests[name] for name in orders.names}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(f"{where} gives out something else than is wanted: {error!r}") from None
    for manifest in chosen.values():
        _check(manifest, orders.step, where)
        if (manifest.job, manifest.generation) != (orders.job, orders.generation):
            raise Refused(f"{where} gives out {manifest.job} of generation {manifest.generation}")
    return chosen


def _choose(orders: Orders, size: int) -> list[Path]:
    """Where to put them, best first. The folder that is filled has what the node had of this state before, too."""
    memory, disk = Path(orders.memory), Path(orders.disk)
    if vault.names_in(disk) - vault.names_in(memory):
        return [disk]
    root = memory
    while not root.exists():
        root = root.parent
    usage = shutil.disk_usage(root)
    return [memory, disk] if usage.free - size >= vault.FREE_PART_MIN * usage.total else [disk]


def _fill(orders: Orders, manifests: dict[str, vault.Manifest], folder: Path, client: Any) -> int:
    """The bytes that had to be fetched. Raises OSError where there is no room in this folder."""
    import torch

    memory, fetched = Path(orders.memory), 0
    if folder != memory and memory.is_dir():
        vault.copy_whole(memory, folder)

    def into(name: str) -> Callable[[Any], None]:
        def fill(room: Any) -> None:
            for piece, view in pieces_of({name: torch.frombuffer(room, dtype=torch.uint8)}).items():
                client.fill({piece: view}, PIECE_S)

        return fill

    for name, manifest in manifests.items():
        with suppress(Refused):
            if vault.map_bytes(folder, name)[0].step == orders.step:
                continue
        vault.receive(folder, name, manifest, into(name))
        fetched += manifest.bytes
    return fetched


# ---------------------------------------------------------------- both


def _begin() -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fail(error: Exception, words: Path) -> None:
    reason = str(getattr(error, "strerror", None) or error).splitlines()[0][:200]
    words.write_text(json.dumps({"code": 1, "reason": reason}))
    print(f"vault: {reason}", file=sys.stderr, flush=True)
    os._exit(1)
