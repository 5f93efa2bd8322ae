"""The last two of what was written is read back; what is torn is not."""

from __future__ import annotations

import pytest

from restow.slots import Slots, read


def test_the_last_two_are_there(tmp_path):
    slots = Slots(tmp_path / "s")
    for step in range(5):
        slots.write(step, b"%d" % step * (step + 1))
    assert read(tmp_path / "s") == {3: b"3333", 4: b"44444"}


def test_one_that_outgrows_its_room_keeps_the_one_before(tmp_path):
    slots = Slots(tmp_path / "s")
    slots.write(6, b"small")
    slots.write(7, bytes(5 << 20))
    slots.write(8, b"small again")
    assert read(tmp_path / "s") == {7: bytes(5 << 20), 8: b"small again"}


@pytest.mark.parametrize("at", [4096 + 30, 4096 + 1, 4096 + 10])
def test_a_torn_one_is_not_there_and_the_other_is(tmp_path, at):
    slots = Slots(tmp_path / "s")
    slots.write(2, b"even" * 100)
    slots.write(3, b"odd" * 100)
    raw = bytearray((tmp_path / "s").read_bytes())
    raw[at] ^= 0x55
    (tmp_path / "s").write_bytes(raw)
    assert read(tmp_path / "s") == {3: b"odd" * 100}


def test_no_file_and_an_empty_one_hold_nothing(tmp_path):
    (tmp_path / "empty").touch()
    assert read(tmp_path / "none") == read(tmp_path / "empty") == {}
