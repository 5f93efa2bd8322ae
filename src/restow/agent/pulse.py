"""The pulse of a node: a small process that tells the controller ten times a second that this machine is there.

Forked by the nursery before it imports anything big, so that nothing slow ever delays it, and ended with it. It serves on one TCP
port; whoever proves to know the secret in `pulse.json` gets the node's words and answers them (restow/lease.py). What it knows of
the lease it writes into shared memory, where the agent reads it (leases.py).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from restow import wire
from restow.agent.folders import Folders
from restow.errors import RestowError
from restow.lease import ANSWER, BEAT_S, LEASE_S, WORD, LeaseFile

HELLO_S = 5.0
AGAIN_S = 1.0  # before another one is tried
NICE = -10  # before those who compute, where we may
_PR_SET_PDEATHSIG = 1


def keep(folders: Folders, address: str) -> NoReturn:
    """Serve until the parent ends; for a process that was just forked."""
    os.dup2(2, 1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # not root
        os.nice(NICE)
    try:
        Pulse(folders, address).serve()
    except OSError as error:
        print(f"pulse: {error}", file=sys.stderr, flush=True)
        time.sleep(AGAIN_S)
    os._exit(1)


class Pulse:
    """Raises OSError where no port or no shared memory is to be had."""

    def __init__(self, folders: Folders, address: str):
        self._lease = LeaseFile(folders.lease)
        if self._lease.is_over:  # it ran out while no pulse was there
            self._lease.count_lapse()
        self._secret = secrets.token_bytes(32)
        self._lines = 0  # controllers that are connected
        self._lock = threading.Lock()
        self._listener = socket.create_server((address, 0), family=wire.family_of(address))
        port = self._listener.getsockname()[1]
        draft = folders.pulse.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"host": address, "port": port, "secret": self._secret.hex(), "pid": os.getpid()}))
        draft.replace(folders.pulse)

    def serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._meet, args=(connection,), daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, RestowError):  # a stranger, or one that hung up: nothing to tell anybody
            wire.prepare(connection)
            wire.hurry(connection)
            wire.welcome(connection, self._secret, time.monotonic() + HELLO_S)
            self._beat(connection)

    def _beat(self, connection: socket.socket) -> None:
        """Until the controller hangs up, or our lease is over: then this line is worth nothing any more."""
        sent: dict[int, float] = {}  # number → when, of those that are not answered
        number, is_first, unread = 0, True, b""
        with self._lock:
            self._lines += 1
        try:
            while True:
                number += 1
                beat_s = time.monotonic()
                sent[number] = beat_s
                connection.settimeout(BEAT_S)
                connection.sendall(WORD.pack(number, self._lease.lapses))
                while (left_s := beat_s + BEAT_S - time.monotonic()) > 0:
                    connection.settimeout(left_s)
                    try:
                        piece = connection.recv(4096)
                    except TimeoutError:
                        break
                    if not piece:
                        self._hung_up()
                        return
                    unread += piece
                    answered = [
                        ANSWER.unpack_from(unread, at)[0] for at in range(0, len(unread) - ANSWER.size + 1, ANSWER.size)
                    ]
                    unread = unread[ANSWER.size * len(answered) :]
                    last = max((n for n in answered if n in sent), default=0)
                    if last and not is_first and self._lease.is_over:
                        break  # an answer that comes too late gives nothing back
                    if last:
                        give = self._lease.renew if is_first else self._lease.extend
                        give(sent[last] + LEASE_S)
                        is_first = False
                        sent = {n: when_s for n, when_s in sent.items() if n > last}
                if not is_first and self._lease.is_over:
                    self._lease.count_lapse()
                    return
        except ConnectionError as error:
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                self._hung_up()
            raise
        finally:
            with self._lock:
                self._lines -= 1

    def _hung_up(self) -> None:
        with self._lock:
            if self._lines == 1:
                self._lease.release()
