"""The nursery: imports torch once, then forks a warm process for each rank, twin and store in some milliseconds.

One thread, so that forking is safe. It reaps its children, keeps how they ended until an agent has taken it, and ends what
was told to end even when that agent dies. JSON lines on `nursery.sock`; requests {"id", "do", ...}, answers {"id", "value"} or
{"id", "error"}, and unasked {"exited": child}. Knows nothing of jobs: labels are the agent's.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import heapq
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from restow.agent import bootstrap, checkpoint_writer, pulse, store, vault_keeper, vault_mover
from restow.agent.birth import Birth
from restow.agent.children import Child, RunFiles, is_alive, kill_remains, read_stat, signal_group
from restow.agent.devices import find_devices
from restow.agent.folders import Folders
from restow.agent.probe import measure_local

WARM_MODULES = (
    "numpy", "torch", "torch.distributed", "torch.optim", "torch.optim.lr_scheduler", "torch.nn.parallel",
    "torch.utils.data", "torch.utils.data.distributed", "restow",
    "torch._dynamo",  # the first optimizer imports it: 1.5 to 4 s of every cold start
)  # fmt: skip
IDLE_S = 600.0
_PR_SET_CHILD_SUBREAPER = 36


class Newborn(BaseException):
    """Unwinds a forked child to the top, where it becomes what it was born for."""

    def __init__(self, live: Callable[[], int]):
        self.live = live


class Quit(Exception):
    """The nursery was told to end."""


class Client:
    """An agent's connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self.unread = b""

    def send(self, message: dict[str, Any]) -> None:
        """Waits at most 5 s for a reader that is behind; then it is gone, and will ask again."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            with suppress(OSError):  # closed already
                self.connection.shutdown(socket.SHUT_RDWR)


class Nursery:
    def __init__(self, folders: Folders, pulse_pid: int, beat: Callable[[], NoReturn]):
        self._pulse, self._beat = pulse_pid, beat  # the process that is this node's pulse, and what it does
        self.run_files = RunFiles(folders.run)
        self.children: dict[int, Child] = {}
        self._clients: list[Client] = []
        self._unborn: dict[int, Callable[[], None]] = {}  # pid → reads the rest of its report and answers
        self._kills: list[tuple[float, int]] = []  # (when, pid): SIGKILL to what was told to end
        self._used = time.monotonic()
        self._selector = selectors.DefaultSelector()
        folders.nursery_socket.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(folders.nursery_socket))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._reap)
        for child in self.run_files.read():
            self._adopt(child)

    # ------------------------------------------------------------ the loop

    def serve(self) -> None:
        """Until told to quit. Raises Newborn in a forked child."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            while True:
                for key, _ in self._selector.select(self._kill_late() or IDLE_S):
                    key.data()
                self._quit_if_forgotten()
        except Quit:
            return

    def _quit_if_forgotten(self) -> None:
        """Nobody to serve and nobody to watch, for long. How children ended stays in the run folder."""
        if self._clients or any(child.code is None for child in self.children.values()):
            self._used = time.monotonic()
        elif time.monotonic() - self._used > IDLE_S:
            raise Quit

    def _kill_late(self) -> float | None:
        """SIGKILL to those whose grace is over; seconds until the next one's is."""
        while self._kills:
            when, pid = self._kills[0]
            if when > time.monotonic():
                return when - time.monotonic()
            heapq.heappop(self._kills)
            child = self.children.get(pid)
            if child and child.code is None:
                if child.is_own or is_alive(child.pid, child.started):
                    kill_remains(child)
        return None

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(5.0)
        client = Client(connection)
        self._clients.append(client)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(client))

    def _read(self, client: Client) -> None:
        try:
            piece = client.connection.recv(1 << 20)
        except OSError:
            piece = b""
        if not piece:
            self._selector.unregister(client.connection)
            self._clients.remove(client)
            client.connection.close()
            return
        *lines, client.unread = (client.unread + piece).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
                number = request["id"]
            except (ValueError, KeyError, TypeError):
                print(f"not a request: {line[:80]!r}", file=sys.stderr, flush=True)
                continue
            try:
                value = self._answer(client, request)
            except (OSError, KeyError, TypeError, ValueError) as error:
                client.send({"id": number, "error": str(error)})
            else:
                if value is not _LATER:
                    client.send({"id": number, "value": value})

    def _answer(self, client: Client, request: dict[str, Any]) -> Any:
        match request["do"]:
            case "start":
                birth = Birth.from_wire(request["birth"])
                return self._fork(client, request["id"], birth.label, lambda report: bootstrap.live(birth, self.run_files, report))
            case "store":
                address = request["address"]
                return self._fork(
                    client, request["id"], request["label"], lambda report: store.keep(address, self.run_files.folder, report)
                )
            case "vault":
                orders = vault_keeper.Orders.from_wire(request["orders"])
                return self._fork(client, request["id"], request["label"], lambda report: vault_keeper.keep(orders, report))
            case "give" | "take" as what:
                moving, move = vault_mover.Orders.from_wire(request["orders"]), getattr(vault_mover, what)
                return self._fork(
                    client, request["id"], request["label"], lambda report: move(moving, self.run_files.words(os.getpid()), report)
                )
            case "checkpoint":
                wanted = checkpoint_writer.Orders.from_wire(request["orders"])

                def write(report: int) -> int:
                    return checkpoint_writer.work(wanted, self.run_files.words(os.getpid()), report)

                return self._fork(client, request["id"], request["label"], write)
            case "list":
                return [child.to_wire() for child in self.children.values() if child.pid not in self._unborn]
            case "label":
                if child := self.children.get(request["pid"]):
                    child.label = request["label"]
                    self.run_files.write(child)
            case "end":
                self._end(request["pid"], float(request["grace_s"]))
            case "taken":
                child = self.children.get(request["pid"])
                if child and child.code is not None:
                    del self.children[child.pid]
                    self.run_files.remove(child.pid)
            case "quit":
                for child in self.children.values():
                    if child.code is None:
                        kill_remains(child)
                client.send({"id": request["id"], "value": True})
                raise Quit
        return True

    def _end(self, pid: int, grace_s: float) -> None:
        child = self.children.get(pid)
        if child is None or child.code is not None:
            return
        if grace_s > 0:
            signal_group(child, signal.SIGTERM)
            signal_group(child, signal.SIGCONT)  # a stopped process would not see it
        heapq.heappush(self._kills, (time.monotonic() + grace_s, pid))

    # ------------------------------------------------------------ births

    def _fork(self, client: Client, number: int, label: dict[str, Any], live: Callable[[int], int]) -> Any:
        """Fork a child that will `live(report)`. Answered when it closes `report`: with what it wrote, or else {}."""
        reader, report = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reader)
            os.close(report)
            raise
        if pid == 0:
            os.close(reader)
            raise Newborn(lambda: live(report))
        os.close(report)
        stat = read_stat(pid)
        assert stat, "a child that we have not reaped is in /proc"
        child = Child(pid, stat.started, label)
        try:
            self.run_files.write(child)
        except OSError:
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            raise
        self.children[pid] = child
        pieces: list[bytes] = []

        def hear() -> None:
            piece = os.read(reader, 65536)
            if piece:
                pieces.append(piece)
                return
            self._selector.unregister(reader)
            os.close(reader)
            del self._unborn[pid]
            said = json.loads(b"".join(pieces) or b"{}")
            if "error" in said:
                self.children.pop(pid)
                self.run_files.remove(pid)
                client.send({"id": number, "error": said["error"]})
            else:
                client.send({"id": number, "value": {"pid": pid, **said}})

        def hear_out() -> None:
            while pid in self._unborn:
                hear()

        self._unborn[pid] = hear_out
        self._selector.register(reader, selectors.EVENT_READ, hear)
        return _LATER

    def _adopt(self, child: Child) -> None:
        """Watch a child of an earlier nursery."""
        self.children[child.pid] = child
        if child.code is not None:
            return
        try:
            descriptor = os.pidfd_open(child.pid)
        except ProcessLookupError:
            self._gone(child, None)
            return

        def ended() -> None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            self._gone(child, None)

        self._selector.register(descriptor, selectors.EVENT_READ, ended)
        if not is_alive(child.pid, child.started):
            ended()

    # ------------------------------------------------------------ deaths

    def _reap(self) -> None:
        while True:
            try:
                if not self._woken.recv(4096):
                    break
            except BlockingIOError:
                break
        while True:
            try:
                status = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if status is None:
                return
            pid = status.si_pid
            if pid in self._unborn:
                self._unborn[pid]()
            child = self.children.get(pid)
            if child:  # not reaped yet, so its number still names its group
                kill_remains(child)
            os.waitpid(pid, 0)
            if pid == self._pulse:
                self._pulse = os.fork()
                if self._pulse == 0:
                    raise Newborn(self._beat)
            if child and child.is_own:
                self._gone(child, status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)

    def _gone(self, child: Child, code: int | None) -> None:
        if code is None:
            stat = read_stat(child.pid)
            if stat is None or stat.started == child.started:  # else its number, and so its group, are somebody else's
                kill_remains(child)
        self.run_files.note_exit(child, code)
        for client in self._clients:
            client.send({"exited": child.to_wire()})

    def abandon(self) -> None:
        """In a forked child: let go of everything that is the nursery's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        bare = [key.fd for key in self._selector.get_map().values() if isinstance(key.fileobj, int)]
        self._selector.close()  # nothing is unregistered: the parent's epoll is this very one
        for descriptor in bare:
            os.close(descriptor)
        for end in (self._listener, self._woken, self._waker, *(client.connection for client in self._clients)):
            end.close()


_LATER = object()


def warm_up() -> None:
    """Import what scripts import. What cannot be imported is said in the log; it will fail in the script as it would anyway."""
    for name in WARM_MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"not warmed: {name}: {error}", file=sys.stderr, flush=True)
    try:
        sdk = importlib.import_module("restow.sdk")
        for module in pkgutil.iter_modules(sdk.__path__, "restow.sdk."):
            importlib.import_module(module.name)
    except ImportError as error:
        print(f"not warmed: restow.sdk: {error}", file=sys.stderr, flush=True)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"imports left {threads} threads; forking would not be safe")
    gc.collect()
    gc.freeze()  # what is shared with children is not touched by their collector


def main(node: str, shm: str, address: str, warm: str) -> None:
    """`python -c` with these as arguments. Prints `ready` and the local rate (bytes per second) on stdout
    when it serves; stderr is its log."""
    if os.fork():
        os._exit(0)
    os.setsid()
    folders = Folders(node=Path(node), shm=Path(shm))
    lock = os.open(folders.nursery_pid, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another nursery lives here", flush=True)
        return
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what ranks leave behind becomes ours, to be ended

    def beat() -> NoReturn:
        pulse.keep(folders, address)

    pulse_pid = os.fork()  # before everything big is imported
    if pulse_pid == 0:
        os.close(lock)
        beat()
    try:
        rate = 0.0
        if warm == "warm":
            warm_up()
            file = os.environ.get("RESTOW_DEVICES")
            rate = measure_local(list(find_devices(Path(file) if file else None).values()), folders.node)
        nursery = Nursery(folders, pulse_pid, beat)
    except Exception:  # raised again below: the agent that waits for `ready` shall read the reason
        traceback.print_exc()
        print(traceback.format_exc().strip().splitlines()[-1], flush=True)
        raise
    print(f"ready {rate}", flush=True)
    os.dup2(2, 1)
    work = None
    try:
        nursery.serve()
    except Newborn as newborn:
        work = newborn.live
    if work is None:
        folders.nursery_socket.unlink(missing_ok=True)
        return
    nursery.abandon()
    os.close(lock)
    del nursery, lock
    sys.exit(work())
