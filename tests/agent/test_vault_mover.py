"""Which folder a state is read from and which one it is put into, without processes of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from restow import vault
from restow.agent import vault_mover
from restow.agent.vault_mover import Orders, fetch, load, pieces_of
from restow.errors import Refused
from restow.sdk.transport import FillServer
from restow.sdk.vault import write_tensors

SECRET = "5e" * 16
ABOUT = {"job": "a-1", "generation": 3, "step": 7}
OWN = {"rank2": b"two"}  # of the taker's node
NAMES = ("replica", "rank0")


@pytest.fixture
def given(tmp_path: Path) -> Orders:
    """What the giver's node has, in memory and on disk."""
    write_tensors(tmp_path / "given", vault.REPLICA, {"weights": torch.arange(1000.0)}, **ABOUT)
    vault.write_blob(tmp_path / "given", "rank0", b"zero", **ABOUT)
    vault.copy_whole(tmp_path / "given", tmp_path / "given on disk")
    return Orders(
        **ABOUT, names=NAMES, memory=str(tmp_path / "given"), disk=str(tmp_path / "given on disk"), host="127.0.0.1", attempt=1,
        secret=SECRET,
    )  # fmt: skip


@pytest.fixture
def wanted(tmp_path: Path, given: Orders) -> Iterator[Orders]:
    server = FillServer("127.0.0.1", bytes.fromhex(SECRET))
    manifests, published = load(given)
    server.publish(pieces_of(published), json.dumps(manifests).encode())
    yield replace(given, memory=str(tmp_path / "memory"), disk=str(tmp_path / "disk"), port=server.port)
    server.close()


def put_own(folder: str) -> None:
    for name, blob in OWN.items():
        vault.write_blob(Path(folder), name, blob, **ABOUT)


def is_whole(folder: Path) -> bool:
    names = vault.names_in(folder)
    for name in names:
        vault.map_bytes(folder, name)
    return names >= set(NAMES)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (lambda folder: cut(folder / "replica.state"), "it is damaged"),
        (lambda folder: (folder / "rank0.json").unlink(), "there is no state rank0"),
        (shutil.rmtree, "not in this vault any more"),
    ],
)
def test_what_is_harmed_in_memory_comes_from_disk_and_what_is_harmed_on_both_is_refused(given, harm, line):
    whole = load(given)[0]
    harm(Path(given.memory))
    assert load(given)[0] == whole
    harm(Path(given.disk))
    with pytest.raises(Refused, match=line):
        load(given)


def test_it_goes_into_memory_and_beside_what_is_there(wanted):
    put_own(wanted.memory)
    assert fetch(wanted) == Path(wanted.memory)
    assert is_whole(Path(wanted.memory))
    assert vault.names_in(Path(wanted.memory)) == {*NAMES, *OWN}
    assert not Path(wanted.disk).exists()


def test_a_large_state_comes_in_pieces(given, wanted, monkeypatch):
    monkeypatch.setattr(vault_mover, "PIECE_BYTES", 1500)
    server = FillServer("127.0.0.1", bytes.fromhex(SECRET))
    manifests, published = load(given)
    assert [len(piece) for piece in pieces_of(published).values()] == [1500, 1500, 1032, 4]
    server.publish(pieces_of(published), json.dumps(manifests).encode())
    fetch(replace(wanted, port=server.port))
    server.close()
    assert is_whole(Path(wanted.memory))


def test_where_the_nodes_own_part_is_on_disk_only_it_goes_there(wanted):
    put_own(wanted.disk)
    assert fetch(wanted) == Path(wanted.disk)
    assert vault.names_in(Path(wanted.disk)) == {*NAMES, *OWN}
    assert is_whole(Path(wanted.disk))


@pytest.mark.parametrize("has_part", [False, True])
def test_without_room_in_memory_it_goes_to_disk_with_what_the_node_has_of_it(wanted, monkeypatch, has_part):
    class Bounded(vault.Room):
        def __init__(self, folder: Path, name: str, size: int):
            if folder == Path(wanted.memory) and name == "rank0":
                raise OSError(28, "No space left on device")
            super().__init__(folder, name, size)

    if has_part:
        put_own(wanted.memory)
    monkeypatch.setattr(vault, "Room", Bounded)
    assert fetch(wanted) == Path(wanted.disk)
    assert vault.names_in(Path(wanted.disk)) == {*NAMES, *(OWN if has_part else ())}
    assert is_whole(Path(wanted.disk))


def test_what_would_fill_memory_goes_to_disk_at_once(wanted, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=10_000, free=6_001))  # 4 kB are to come
    assert fetch(wanted) == Path(wanted.disk)
    assert not Path(wanted.memory).exists()


def test_without_room_anywhere_it_is_told_and_nothing_is_left(wanted, monkeypatch):
    def full(folder: Path, name: str, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vault, "Room", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(wanted)
    assert not vault.names_in(Path(wanted.memory)) | vault.names_in(Path(wanted.disk))


@pytest.mark.parametrize(
    ("other", "line"),
    [({"step": 8}, "of step 7, not of step 8"), ({"job": "b-1"}, "gives out a-1"), ({"names": ("rank5",)}, "rank5")],
)
def test_another_state_than_is_wanted_is_refused(wanted, other, line):
    with pytest.raises(Refused, match=line):
        fetch(replace(wanted, **other))


def test_bytes_that_changed_on_their_way_are_no_state(given, wanted, tmp_path):
    manifest = vault.read_manifest(Path(given.memory), "rank0")

    def fill(memory) -> None:
        memory[:] = b"nero"

    with pytest.raises(Refused, match="did not arrive as it was sent"):
        vault.receive(tmp_path / "r", "rank0", manifest, fill)
    assert not list((tmp_path / "r").iterdir())
    assert vault.manifest_of(json.loads(json.dumps(asdict(manifest))), "") == manifest
