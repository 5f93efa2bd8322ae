"""States in files: what is written is read back bit for bit, and what is damaged or unfinished is refused."""

from __future__ import annotations

import json

import pytest
import torch

from restow import vault
from restow.errors import Refused
from restow.sdk.vault import map_state, room_for, tensors_of, write_tensors

ABOUT = {"job": "a-1", "generation": 3, "step": 7}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    return {
        "weights": torch.randn(5, 7),
        "transposed": torch.randn(4, 6).t(),
        "image": image,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "half": torch.randn(3).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "count": torch.tensor([1, -2], dtype=torch.int64),
        "every other": torch.arange(10.0)[::2],
        "complex": torch.randn(3, dtype=torch.complex64),
    }


def test_every_kind_of_tensor_comes_back_bit_for_bit(tmp_path):
    written = write_tensors(tmp_path / "v", "replica", state(), **ABOUT)
    manifest, flat = map_state(tmp_path / "v", "replica")
    found = tensors_of(manifest, flat)
    assert (manifest.job, manifest.generation, manifest.step, manifest.bytes) == ("a-1", 3, 7, written)
    assert list(found) == list(state())
    for name, tensor in state().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert found["image"].stride() == state()["image"].stride()


def test_what_is_written_into_room_made_ahead_is_the_same(tmp_path):
    tensors = {**state(), "large": torch.randn(700_000)}  # more than one piece
    write_tensors(tmp_path / "a", "replica", tensors, **ABOUT)
    room = room_for(tmp_path / "b", "replica", tensors)
    write_tensors(tmp_path / "b", "replica", tensors, room=room, **ABOUT)
    assert room
    room.close()
    for name in ("replica.state", "replica.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_room_for_other_tensors_is_not_used(tmp_path):
    room = room_for(tmp_path, "replica", {"weights": torch.zeros(3)})
    write_tensors(tmp_path, "replica", state(), room=room, **ABOUT)
    manifest, flat = map_state(tmp_path, "replica")
    assert torch.equal(tensors_of(manifest, flat)["weights"], state()["weights"])
    assert room_for(tmp_path, "other", {}) is None


def test_without_room_nothing_is_left(tmp_path):
    with pytest.raises(OSError):
        vault.Room(tmp_path, "replica", 1 << 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("blob", [b"", b"x", bytes(range(256)) * 1000])
def test_bytes_come_back(tmp_path, blob):
    vault.write_blob(tmp_path, vault.of_rank(2), blob, **ABOUT)
    _, flat = map_state(tmp_path, vault.of_rank(2))
    assert flat.numpy().tobytes() == blob


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: flip(folder / "replica.state"), "its checksum is not"),
        (lambda folder: (folder / "replica.state").write_bytes(b"short"), "has 5 bytes, not"),
        (lambda folder: (folder / "replica.state").unlink(), "cannot be read: No such file"),
        (lambda folder: (folder / "replica.json").unlink(), "there is no state replica"),
        (lambda folder: (folder / "replica.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "replica.json").write_text("[]"), "cannot be read"),
        (lambda folder: (folder / "replica.json").write_text(json.dumps({"format": 99})), "another version"),
        (lambda folder: (folder / "replica.json").write_text(json.dumps({"format": 1})), "cannot be read"),
    ],
)
def test_a_damaged_state_is_refused_with_its_name(tmp_path, damage, line):
    write_tensors(tmp_path, "replica", state(), **ABOUT)
    damage(tmp_path)
    with pytest.raises(Refused, match="replica") as caught:
        map_state(tmp_path, "replica")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_that_could_not_be_written_is_none(tmp_path, monkeypatch):
    def full(descriptor, view):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vault.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path, "replica", state(), **ABOUT)
    assert list(tmp_path.iterdir()) == []
