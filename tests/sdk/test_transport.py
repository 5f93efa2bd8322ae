"""Filling tensors of one process from another: by memory, by socket, and every way in which it can go wrong."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch

from restow import wire
from restow.errors import Refused, RestowError, ScriptError, Unreachable
from restow.sdk import memory
from restow.sdk.transport import FillClient, FillServer

SECRET = b"the job's own secret of 32 bytes"
TIMEOUT_S = 20.0

Tensors = dict[str, torch.Tensor]


def tensors(value: float) -> Tensors:
    """Every kind: big and tiny, half precision, booleans, no items, channels last, with holes, expanded scalars."""
    torch.manual_seed(int(value))
    return {
        "big": torch.randn(3_000_000) + value,
        "scalar": torch.tensor(value),
        "half": torch.full((3, 5), value, dtype=torch.bfloat16),
        "flags": torch.full((7,), value > 1),
        "empty": torch.empty(0),
        "channels last": (torch.randn(2, 3, 4, 4) + value).to(memory_format=torch.channels_last),
        "transposed": (torch.randn(5, 3) + value).t(),
        "holes": (torch.randn(40, 50) + value)[:, ::7],
        "parameter": torch.nn.Parameter(torch.randn(4, 4) + value),
        "wide": torch.randn(2, 5_000_000)[:, 1:] + value,
        "counts": torch.full((2, 2), int(value)),
        "complex": torch.full((3,), complex(value, 1)),
    }


@contextmanager
def served(serve: Callable[[FillServer], None], end: Callable[[], None] = lambda: None) -> Iterator[int]:
    """The port of a server in another process, which does `serve` and then waits to be ended."""
    ready, say_ready = os.pipe()
    stop, say_stop = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(say_stop)
            server = FillServer("127.0.0.1", SECRET)
            os.write(say_ready, f"{server.port}\n".encode())
            serve(server)
            os.read(stop, 1)
            server.close()
        finally:
            os._exit(0)
    os.close(stop)
    os.close(say_ready)
    try:
        with os.fdopen(ready) as lines:
            yield int(lines.readline())
    finally:
        os.close(say_stop)  # also when we fail: its read ends
        os.waitpid(pid, 0)


@contextmanager
def connected(port: int, secret: bytes = SECRET) -> Iterator[FillClient]:
    client = FillClient("127.0.0.1", port, secret)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def here(published: Mapping[str, torch.Tensor] | None = None, private: bytes = b"") -> Iterator[FillServer]:
    """A server in this process: good enough where only words matter."""
    server = FillServer("127.0.0.1", SECRET)
    try:
        if published is not None:
            server.publish(published, private)
        yield server
    finally:
        server.close()


@pytest.fixture(params=["memory", "socket"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "socket":  # as between machines: the server was started on another boot
        monkeypatch.setattr(wire, "machine", lambda: f"machine of process {os.getpid()}")
    return request.param


def test_every_kind_of_tensor_arrives_bit_by_bit_in_place(way: str):
    theirs, mine = tensors(3.0), tensors(1.0)
    addresses = {name: tensor.data_ptr() for name, tensor in mine.items()}
    with served(lambda server: server.publish(theirs, b"private" * 1000)) as port, connected(port) as client:
        assert client.local == (way == "memory")
        assert client.fetch_private(TIMEOUT_S) == b"private" * 1000
        received = client.fill(mine, TIMEOUT_S)
        assert client.fill({"scalar": mine["scalar"]}, TIMEOUT_S) == (0 if way == "memory" else 4)
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.data_ptr() == addresses[name]
    assert received == (theirs["holes"].nbytes if way == "memory" else sum(t.nbytes for t in theirs.values()))


def test_many_small_tensors_go_together(way: str):
    theirs = {f"t{n}": torch.tensor([float(n)]) for n in range(3000)}
    mine = {name: torch.zeros(1) for name in theirs}
    with served(lambda server: server.publish(theirs, b"")) as port, connected(port) as client:
        client.fill(mine, TIMEOUT_S)
    assert all(mine[name].item() == n for n, name in enumerate(theirs))


def test_a_client_that_comes_early_waits_until_the_state_is_published():
    with here() as server, connected(server.port) as client:
        client.wait(TIMEOUT_S)
        asked = threading.Thread(target=lambda: blobs.append(client.fetch_private(TIMEOUT_S)))
        blobs: list[bytes] = []
        asked.start()
        server.publish({}, b"now")
        asked.join(TIMEOUT_S)
        assert blobs == [b"now"]
        assert server.sent_bytes == 3


def test_a_client_sees_the_server_end_without_asking_it_anything():
    with here() as server, connected(server.port) as client:
        client.wait(TIMEOUT_S)
        assert not client.is_gone()
        server.close()
        deadline_s = time.monotonic() + TIMEOUT_S
        while not client.is_gone():
            assert time.monotonic() < deadline_s
            time.sleep(0.002)


def test_several_twins_are_served_at_once(way: str):
    theirs = {"w": torch.randn(1_000_000)}
    mine = [{"w": torch.zeros(1_000_000)} for _ in range(4)]
    with served(lambda server: server.publish(theirs, b"")) as port:
        clients = [FillClient("127.0.0.1", port, SECRET) for _ in mine]
        threads = [threading.Thread(target=c.fill, args=(m, TIMEOUT_S)) for c, m in zip(clients, mine, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        for client in clients:
            client.close()
    assert all(torch.equal(m["w"], theirs["w"]) for m in mine)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"w": torch.zeros(4)}, r"w has shape \[2, 3\] at the source and \[4\] at the twin"),
        ({"w": torch.zeros(2, 3, dtype=torch.float64)}, r"w has dtype torch.float32 at the source and torch.float64"),
        ({"w": torch.zeros(3, 2).t()}, r"w has memory order \[3, 1\] at the source and \[1, 2\]"),
        ({"v": torch.zeros(1)}, r"v is wanted but is not in the state served"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(wanted: Tensors, says: str):
    with here({"w": torch.ones(2, 3)}) as server, connected(server.port) as client:
        with pytest.raises(ScriptError, match=says):
            client.fill(wanted, TIMEOUT_S)
        assert not any(tensor.any() for tensor in wanted.values())


def test_nobody_without_the_secret_gets_a_word():
    with here({"w": torch.ones(2)}, b"private") as server:
        with connected(server.port, b"guess") as client, pytest.raises(Refused, match="did not accept our secret"):
            client.fetch_private(TIMEOUT_S)
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as stranger:
            greeting = stranger.recv(4096)
            assert len(greeting) == 46 and b"private" not in greeting
            stranger.sendall(bytes(64))  # a wrong proof
            assert stranger.recv(4096) == b""
        assert server.sent_bytes == 0


def test_a_server_without_the_secret_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"restow-fill-1\n" + bytes(32))
                connection.recv(4096)
                connection.sendall(bytes(32))
                connection.recv(4096)

        thread = threading.Thread(target=pretend)
        thread.start()
        with connected(listener.getsockname()[1]) as client, pytest.raises(Refused, match="does not know the secret"):
            client.wait(TIMEOUT_S)
        thread.join(TIMEOUT_S)


def test_a_word_that_is_too_long_ends_the_connection():
    with here({}) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
        with connection:
            deadline = time.monotonic() + TIMEOUT_S
            wire.prove(connection, SECRET, deadline)
            wire.receive(connection, deadline)
            connection.sendall(struct.pack("<I", 0xFFFF_FFFF))
            with pytest.raises(ConnectionResetError):
                wire.receive(connection, deadline)


def test_a_server_that_never_answers_is_given_up_in_time():
    with here() as server, connected(server.port) as client:
        with pytest.raises(Unreachable, match=r"did not answer within 0.1 s"):
            client.fetch_private(0.1)
        with pytest.raises(Unreachable, match="was closed"):
            client.fetch_private(TIMEOUT_S)


def test_a_port_where_nobody_listens_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = FillClient("127.0.0.1", port, SECRET, connect_s=0.2)
    with pytest.raises(Unreachable, match=rf"127.0.0.1:{port}: Connection refused"):
        client.fill({}, TIMEOUT_S)
    client.close()


def test_a_server_that_dies_before_it_answers_is_noticed(way: str):
    def die(server: FillServer) -> None:
        while not server._connections:  # until the client is there
            time.sleep(0.001)
        os._exit(1)

    with served(die) as port, connected(port) as client, pytest.raises(RestowError):
        client.fetch_private(TIMEOUT_S)


def test_state_withdrawn_in_the_middle_is_never_half_installed_in_silence(monkeypatch: pytest.MonkeyPatch):
    theirs = {"w": torch.randn(1000)}
    with here(theirs) as server, connected(server.port) as client:
        client.wait(TIMEOUT_S)
        real = memory.read_process_memory

        def withdraw_then_read(pid: int, pieces: list[memory.Piece]) -> int:
            server.withdraw()
            server.publish(theirs, b"")  # of a later switch
            return real(pid, pieces)

        monkeypatch.setattr(memory, "read_process_memory", withdraw_then_read)
        with pytest.raises(Refused, match="withdrawn while it was being read"):
            client.fill({"w": torch.zeros(1000)}, TIMEOUT_S)


def test_tensors_of_another_switch_than_the_private_state_are_refused():
    with here({"w": torch.ones(1)}, b"first") as server, connected(server.port) as client:
        client.fetch_private(TIMEOUT_S)
        server.withdraw()
        server.publish({"w": torch.ones(1)}, b"second")
        with pytest.raises(Refused, match="another switch"):
            client.fill({"w": torch.zeros(1)}, TIMEOUT_S)


def test_closing_ends_every_thread():
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("restow-fill")}

    before = threads()
    with here() as server, connected(server.port) as client:
        client.wait(TIMEOUT_S)
    for thread in threads() - before:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


# ---------------------------------------------------------------- memory


def test_memory_is_read_in_any_number_of_pieces_and_by_two_threads():
    source = torch.randint(0, 256, (70 << 20,), dtype=torch.uint8)
    mine = torch.zeros_like(source)
    edges = [0, *range(1, 5000), 1 << 20, (40 << 20) + 3, len(source)]
    pieces = [(source.data_ptr() + a, b - a, mine.data_ptr() + a) for a, b in pairwise(edges)]
    assert memory.read_process_memory(os.getpid(), pieces) == len(source)
    assert torch.equal(source, mine)


def test_an_address_that_is_not_mapped_is_an_error_and_not_zeros():
    mine = ctypes.create_string_buffer(8)
    with pytest.raises(Unreachable, match="no longer there"):
        memory.read_process_memory(os.getpid(), [(8, 8, ctypes.addressof(mine))])
    assert not memory.can_read(os.getpid(), 8, b"nonce")


def test_the_same_process_number_with_other_bytes_is_not_taken_for_the_server():
    here = ctypes.create_string_buffer(b"other")
    assert not memory.can_read(os.getpid(), ctypes.addressof(here), b"nonce")
    assert memory.can_read(os.getpid(), ctypes.addressof(here), b"other")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: filling CUDA tensors was not tried here")
@pytest.mark.parametrize("is_local", [True, False])
def test_cuda_tensors_arrive_by_handle_and_by_socket(is_local: bool, monkeypatch: pytest.MonkeyPatch):
    spawn = torch.multiprocessing.get_context("spawn")
    ports, stop = spawn.Queue(), spawn.Event()
    process = spawn.Process(target=serve_cuda, args=(ports, stop), daemon=True)
    process.start()
    try:
        if not is_local:
            monkeypatch.setattr(wire, "machine", lambda: "another machine")
        mine = {"w": torch.zeros(20_000_000, device="cuda"), "holes": torch.zeros(40, 50, device="cuda")[:, ::7]}
        with connected(ports.get(timeout=120)) as client:
            received = client.fill(mine, TIMEOUT_S)
        assert (mine["w"] == torch.arange(20_000_000, device="cuda")).all()
        assert (mine["holes"] == 3).all()
        assert received == sum(t.nbytes for t in mine.values()) or is_local
    finally:
        stop.set()
        process.join(TIMEOUT_S)
        process.kill()


def serve_cuda(ports: Any, stop: Any) -> None:
    server = FillServer("127.0.0.1", SECRET)
    holes = torch.full((40, 50), 3.0, device="cuda")[:, ::7]
    server.publish({"w": torch.arange(20_000_000, dtype=torch.float32, device="cuda"), "holes": holes}, b"")
    ports.put(server.port)
    stop.wait(120)
    server.close()
