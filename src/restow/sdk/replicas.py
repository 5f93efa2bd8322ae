"""What a rank alone holds is also kept on another node, so that it outlives its machine.

Each rank of a gang on several nodes has a *buddy*: the next rank, in order, that is on another node. A thread sends the newest
private state to it, older ones are left out if the way is slow; the buddy puts it into slots of its own node, under the sender's
rank, where that node's agent finds it when the sender's node is gone. Who is where is said in the store of the generation.

Both ends prove that they know the job's secret; the bytes are for a process of the same job only (they are unpickled there).
"""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from restow import wire
from restow.errors import RestowError
from restow.sdk.environment import Environment
from restow.slots import Slots

BLOB_BYTES_MAX = 64 << 20
CONNECT_S = 30.0
SEND_S = 10.0
MEMBERS_WAIT = timedelta(seconds=120)


class Replicas:
    """Of one process: what it sends, and what others send to it."""

    def __init__(self, environment: Environment):
        self._env = environment
        self._changed = threading.Condition()
        self._newest: tuple[int, bytes] | None = None
        self._round = 0  # of the membership; a thread of an earlier one ends
        self._listener: socket.socket | None = None
        self._received: dict[int, Slots] = {}

    def put(self, step: int, blob: bytes) -> None:
        """Send this, too, as soon as the way is free. Costs next to nothing."""
        with self._changed:
            self._newest = (step, blob)
            self._changed.notify_all()

    def join(self, generation: int, store: tuple[str, int]) -> None:
        """We are a member of this generation: find the others anew, beside the training."""
        with self._changed:
            self._round += 1
            number = self._round
            self._changed.notify_all()
        threading.Thread(target=self._send, args=(number, generation, store), name="restow-replicas", daemon=True).start()

    # ------------------------------------------------------------ sending

    def _send(self, number: int, generation: int, at: tuple[str, int]) -> None:
        try:
            buddy = self._find_buddy(generation, at)
            if buddy is None:
                return
            connection = socket.create_connection(buddy, CONNECT_S)
            wire.prepare(connection)
            wire.prove(connection, self._env.secret, time.monotonic() + CONNECT_S)
        except (OSError, RestowError, dist.DistError, RuntimeError):
            return  # the gang is ending, or changing again
        sent = -1
        while True:
            with self._changed:
                while number == self._round and (self._newest is None or self._newest[0] == sent):
                    self._changed.wait()
                if number != self._round or self._newest is None:
                    connection.close()
                    return
                sent, blob = self._newest
            try:
                deadline = time.monotonic() + SEND_S
                wire.send(connection, {"rank": self._env.rank, "step": sent, "bytes": len(blob)}, deadline)
                wire.send_views(connection, [memoryview(blob)], deadline)
            except OSError:
                connection.close()
                return

    def _find_buddy(self, generation: int, at: tuple[str, int]) -> tuple[str, int] | None:
        """Where the next rank on another node listens; None: there is no other node."""
        env = self._env
        port = self._listen()
        store = dist.TCPStore(*at, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
        store.set(f"replicas/{generation}/{env.rank}", f"{env.node} {env.address}|{port}")
        for distance in range(1, env.world_size):
            rank = (env.rank + distance) % env.world_size
            key = f"replicas/{generation}/{rank}"
            store.wait([key], MEMBERS_WAIT)
            node, _, where = store.get(key).decode().partition(" ")
            if node != env.node:
                host, _, theirs = where.rpartition("|")
                return host, int(theirs)
        return None

    # ------------------------------------------------------------ receiving

    def _listen(self) -> int:
        if self._listener is None:
            self._listener = socket.create_server((self._env.address, 0), family=wire.family_of(self._env.address))
            threading.Thread(target=self._accept, name="restow-replicas", daemon=True).start()
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        assert self._listener
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._receive, args=(connection,), name="restow-replicas", daemon=True).start()

    def _receive(self, connection: socket.socket) -> None:
        """One sender, until it leaves. Whatever it does wrong ends its connection and nothing else."""
        try:
            wire.prepare(connection)
            wire.welcome(connection, self._env.secret, time.monotonic() + CONNECT_S)
            while True:
                word, _ = wire.receive(connection, None)
                rank, step, length = int(word["rank"]), int(word["step"]), wire.whole(word, "bytes")
                if not 0 <= rank < self._env.world_size or rank == self._env.rank or length > BLOB_BYTES_MAX:
                    return
                blob = bytearray(length)
                wire.receive_views(connection, [memoryview(blob)], time.monotonic() + SEND_S)
                self._slots_of(rank).write(step, bytes(blob))
        except (OSError, RestowError, KeyError, ValueError, TypeError):
            pass  # it left, or was never one of us, or there is no room for what it sent
        finally:
            connection.close()

    def _slots_of(self, rank: int) -> Slots:
        if rank not in self._received:
            own = Path(self._env.slots)
            name = own.name.removesuffix(f".r{self._env.rank}.slots")
            self._received[rank] = Slots(own.with_name(f"{name}.r{rank}.replica"))  # its own may lie here, and be removed
        return self._received[rank]
