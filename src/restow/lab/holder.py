"""The holder: one small process per lab. It makes the namespaces, keeps them open, changes links when asked, and removes
the lab when it is told to (SIGTERM) or when the process that made the lab is gone, however that ended.

    python -m restow.lab.holder <folder of the lab>      options as JSON on stdin, one line of JSON on stdout when ready
    python -m restow.lab.holder --probe                  can this user make a lab here? one line of JSON

It has one thread and no event loop: a user namespace can be entered by such a process only. Requests come over a Unix
socket in the lab's folder, one JSON line each, one connection each.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from restow.errors import RestowError, SetupError, SpecError
from restow.lab.devices import CpuDevice, choose_share, cores, find_cgroups, write_devices
from restow.lab.enter import CLONE_NEWNET, CLONE_NEWUSER, unshare
from restow.lab.shape import Shape
from restow.lab.state import LabState, identify, read_state
from restow.lab.sweep import empty

SOCKET = "holder.sock"
REQUEST_BYTES_MAX = 65536
CLIENT_TIMEOUT_S = 5.0


def become_able() -> str:
    """Get into a position from which namespaces can be made: "root" or, inside a user namespace, "user". Raises SetupError."""
    try:
        unshare(CLONE_NEWNET)
        return "root"
    except OSError as error:
        if error.errno != errno.EPERM:
            raise SetupError(f"this kernel makes no network namespace ({error.strerror})") from None
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        unshare(CLONE_NEWNET)
    except OSError as error:
        raise SetupError(
            f"this kernel lets an ordinary user make no network namespace ({error.strerror}); run as root, or allow "
            "user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        ) from None
    return "user"


def import_network() -> Any:
    try:
        from restow.lab import network
    except ImportError as error:
        raise SetupError(f"the lab needs pyroute2 ({error}); install restow[lab]") from None
    return network


def probe() -> dict[str, Any]:
    """A lab of one node, gone when this process ends: what works and what is missing."""
    groups, why = find_cgroups(f"restow-probe-{os.getpid()}")
    missing = [] if groups else [f"devices are not bounded, only pinned to a core ({why})"]
    try:
        network = import_network()
        how = become_able()
        trial = network.Network({"m1": "10.213.0.1"}, Shape(rate_bits_per_s=1e9))
        try:
            trial.set_node("m1", Shape(delay_s=0.001))
        except SetupError as error:
            missing.append(str(error))
    except (RestowError, OSError) as error:
        return {"how": "none", "missing": str(error)}
    return {"how": how, "missing": "; ".join(missing)}


class Holder:
    """The lab while it is up."""

    def __init__(self, state: LabState):
        self.state = replace(state, holder=identify(os.getpid()))
        self.state.write()
        self._selector = selectors.DefaultSelector()

    def build(self, options: dict[str, Any]) -> None:
        """Make all of it. Raises RestowError; what was made until then is in `state`."""
        self._owner = self._watch_owner()
        network = import_network()
        self._kernel_refuses: type[Exception] = network.NetlinkError
        self._make_devices(options["share"])
        how = become_able()
        shape = Shape(rate_bits_per_s=options["rate_bits_per_s"], delay_s=options["delay_s"])
        self.network = network.Network({node: self.state.address(node) for node in self.state.node_names}, shape)
        self.state = replace(
            self.state,
            how=how,
            namespaces=self.network.namespaces,
            descriptors=self.network.descriptors,
            user_namespace=os.stat("/proc/self/ns/user").st_ino if how == "user" else None,
        )
        self._listen()
        self.state.write()

    def _watch_owner(self) -> int:
        """A descriptor that becomes readable when the owner is gone."""
        owner = self.state.owner
        assert owner, "a lab is made by somebody, who may let go of it later"
        try:
            descriptor = os.pidfd_open(owner.pid)
        except OSError:
            raise SetupError("the maker of the lab is gone") from None
        if not owner.is_alive:
            raise SetupError("the maker of the lab is gone")
        self._selector.register(descriptor, selectors.EVENT_READ, self._owner_gone)
        return descriptor

    def _make_devices(self, wanted_share: float | None) -> None:
        """Control groups (written down before they are made) and the device file of each node."""
        state, usable = self.state, cores()
        names = [f"{node}-{index}" for node in state.node_names for index in range(state.devices)]
        share = choose_share(len(names), len(usable), wanted_share) if names else 1.0
        groups, why = find_cgroups(f"restow-lab-{state.mark}")
        if groups:
            self.state = replace(state, cgroups=groups.paths(names))
            self.state.write()
            groups.create(names, share)
        else:
            note = f"devices are not bounded, only pinned to a core ({why})"
            self.state = replace(state, notes=(*state.notes, note))
        for place, node in enumerate(state.node_names):
            first = place * state.devices
            devices = [
                CpuDevice(
                    index=index,
                    share=share,
                    core=usable[(first + index) % len(usable)],
                    cgroup=str(groups.folder / f"{node}-{index}") if groups else None,
                )
                for index in range(state.devices)
            ]
            write_devices(state.devices_file(node), devices)

    def _listen(self) -> None:
        path = self.state.folder / SOCKET
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._serve(listener))

    def _owner_gone(self) -> None:
        raise SystemExit(0)

    def run(self) -> None:
        """Serve until SIGTERM or the owner's end."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _serve(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(CLIENT_TIMEOUT_S)
            try:
                request = json.loads(connection.makefile("rb").readline(REQUEST_BYTES_MAX))
                answer = {"ok": self.answer(**request)}
            except RestowError as error:
                answer = {"error": [type(error).__name__, str(error)]}
            except (ValueError, TypeError) as error:
                answer = {"error": ["SpecError", f"request not understood: {error}"]}
            except self._kernel_refuses as error:
                answer = {"error": ["SetupError", f"the kernel refuses: {error}"]}
            except OSError:  # the client left, or never wrote a line
                return
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:  # it left before the answer
                return

    def answer(self, do: str, **arguments: Any) -> Any:
        """One request. Raises RestowError for what the caller can mend."""
        if do == "set_link":
            return self._set_link(**arguments)
        if do == "counters":
            return self.network.counters(**arguments)
        if do == "links":
            return {
                "nodes": {node: asdict(shape) for node, shape in self.network.shapes.items()},
                "pairs": [[*pair, asdict(shape)] for pair, shape in self.network.pairs.items()],
            }
        if do == "detach":
            return self._detach()
        raise SpecError(f"do is {do!r}")

    def _set_link(self, a: str, b: str | None, **changes: Any) -> None:
        """Change what is named; the rest of the link stays as it is."""
        shape = replace(self.network.shape_of(a, b), **changes)
        if b is None:
            self.network.set_node(a, shape)
        else:
            self.network.set_pair(a, b, shape)

    def _detach(self) -> None:
        """The maker lets go: the lab stays until somebody takes it down."""
        if self.state.owner:
            self._selector.unregister(self._owner)
            self.state = replace(self.state, owner=None)
            self.state.write()


def _leave(*_: object) -> None:
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    if arguments == ["--probe"]:
        print(json.dumps(probe()), flush=True)
        return
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the maker, who tells us
    state = read_state(Path(arguments[0]))
    assert state, "the maker writes the state first"
    holder = Holder(state)
    try:
        try:
            holder.build(json.loads(sys.stdin.readline()))
        except RestowError as error:
            print(json.dumps({"error": [type(error).__name__, str(error)]}), flush=True)
            raise SystemExit(1) from None
        print(json.dumps({"ok": None}), flush=True)
        holder.run()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        empty(holder.state, held=True)


if __name__ == "__main__":
    main(sys.argv[1:])
