"""The small parts, without processes: devices, addresses, logs, events, environment, last words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from restow import vault
from restow.agent.bootstrap import has_early_settings
from restow.agent.children import last_line
from restow.agent.devices import LocalDevice, find_cores, read_devices
from restow.agent.environment import rank_environment
from restow.agent.events import EventLog
from restow.agent.folders import Folders
from restow.agent.logs import PIECE_BYTES_MAX, list_logs, read_log, tail_of
from restow.agent.network import interface_of
from restow.agent.store import connections_to
from restow.cluster import Device
from restow.errors import NotFound, SetupError
from restow.job import JobSpec
from restow.messages import Launch, Progressed, RankStarted
from restow.placement import parse_placement


def test_devices_come_from_the_file(tmp_path: Path):
    file = tmp_path / "devices.json"
    file.write_text('{"devices": [{"index": 0, "core": 1, "share": 0.5, "cgroup": "/g"}, {"index": 3}]}')
    assert read_devices(file) == {
        0: LocalDevice(device=Device(index=0, share=0.5), core=1, cgroup="/g"),
        3: LocalDevice(device=Device(index=3)),
    }


@pytest.mark.parametrize(
    "text", ["", "{}", '{"devices": []}', '{"devices": [{"core": 1}]}', '{"devices": [{"index": 0}, {"index": 0}]}', "[7]"]
)
def test_a_wrong_device_file_is_refused_by_name(tmp_path: Path, text: str):
    file = tmp_path / "devices.json"
    file.write_text(text)
    with pytest.raises(SetupError, match=r"device file .*devices\.json"):
        read_devices(file)


def test_without_a_file_every_core_is_a_device():
    devices = find_cores()
    assert list(devices) == list(range(len(devices)))
    assert all(not device.is_gpu and device.core is not None for device in devices.values())


def test_an_address_is_found_on_its_interface_or_refused():
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(SetupError, match=r"node address is 203\.0\.113\.9"):
        interface_of("203.0.113.9")


def test_logs_are_read_by_whole_lines_and_lose_nothing(tmp_path: Path):
    path = tmp_path / "job" / "0.g1.log"
    path.parent.mkdir()
    path.write_text("first\nsecond\nhalf")
    assert read_log(path, 0, 100, is_growing=True) == {"text": "first\nsecond\n", "offset": 13}
    assert read_log(path, 13, 100, is_growing=True) == {"text": "", "offset": 13}
    assert read_log(path, 13, 100, is_growing=False) == {"text": "half", "offset": 17}
    assert read_log(path, 99, 100, is_growing=False) == {"text": "", "offset": 99}
    path.write_text("é€😀" * 1000)
    text, offset = "", 0
    while piece := read_log(path, offset, 17, is_growing=True)["text"]:
        text, offset = text + piece, offset + len(piece.encode())
    assert text == ("é€😀" * 1000)[: len(text)]
    assert len(text.encode()) > 8980
    (path.parent / "1.g2.rehearsal.log").touch()
    assert list_logs(path.parent) == [{"rank": 0, "generation": 1, "bytes": 9000}]
    with pytest.raises(NotFound, match=r"no log 5\.g1\.log of job job"):
        read_log(path.parent / "5.g1.log", 0, 10, is_growing=False)


@pytest.mark.parametrize("ending", ["\n", ""])
@pytest.mark.parametrize("width", [5, PIECE_BYTES_MAX // 3])
def test_the_tail_of_a_log_begins_where_its_last_lines_do(tmp_path: Path, ending: str, width: int):
    path = tmp_path / "0.g1.log"
    written = [f"{number:0{width}}" for number in range(10)]
    path.write_text("\n".join(written) + ending)
    for lines in range(1, 13):
        said = tail_of(path, lines)
        assert said["lines"] == min(lines, 10)
        assert path.read_bytes()[said["offset"] :].decode().splitlines() == written[-lines:]
    path.write_text("")
    assert tail_of(path, 3) == {"offset": 0, "lines": 0}
    with pytest.raises(NotFound, match=r"no log 5\.g1\.log"):
        tail_of(tmp_path / "5.g1.log", 1)


def test_events_are_kept_until_acknowledged_and_progress_only_as_its_latest():
    async def story() -> None:
        acknowledged: list[int] = []
        log = EventLog(acknowledged.append)

        def progress(step: int) -> Progressed:
            return Progressed(
                time_s=0.0, job="j", generation=1, node="a", rank=0, step=step, steps_total=None, step_s=0.0, exposed_s=0.0,
                wire_bytes=0, memory_bytes=0,
            )  # fmt: skip

        first = log.put(RankStarted(time_s=0.0, job="j", generation=1, node="a", rank=0, pid=7))
        log.put(progress(1))
        last = log.put(progress(2))
        for after in (0, 1 << 60):  # a number of another life acknowledges nothing
            answer = await log.read(after, 0.0)
            assert [number for number, _ in answer["events"]] == [first, last]
        assert (await log.read(first, 0.0))["events"][0][1]["step"] == 2
        assert acknowledged == [first]
        assert (await log.read(last, 0.01))["events"] == []
        waiting = asyncio.create_task(log.read(last, 60.0))
        await asyncio.sleep(0)
        log.put(progress(3))
        assert len((await waiting)["events"]) == 1

    asyncio.run(story())


def environment(device: LocalDevice, placement: str, rank: int, **env: str) -> dict[str, str]:
    folders = Folders(node=Path("/n"), shm=Path("/s"))
    command = Launch(
        job="j", generation=4, spec=JobSpec(command=("x",), workers=3, env=tuple(env.items())),
        placement=parse_placement(placement), store=("10.0.0.1", 99), secret="aa",
    )  # fmt: skip
    return rank_environment(
        command, rank, base={"PATH": "/bin", "CUDA_VISIBLE_DEVICES": ""}, folders=folders, node="b",
        address="10.0.0.2", interface="eth1", device=device,
    )  # fmt: skip


def test_a_rank_on_a_cpu_slot_counts_its_neighbours():
    env = environment(LocalDevice(device=Device(index=1), core=1), "a:0 b:0 b:1", 2)
    named = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    assert [env[name] for name in named] == ["2", "3", "1", "2", "1", "10.0.0.1", "99", "1"]
    assert (env["RESTOW_PAGE"], env["RESTOW_LOG"]) == ("/s/j.g4.r2.page", "/n/logs/j/2.g4.log")
    assert (env["RESTOW_STORE"], env["GLOO_SOCKET_IFNAME"], env["PATH"]) == ("10.0.0.1:99", "eth1", "/bin")


def test_a_rank_on_a_gpu_sees_that_gpu_only_and_the_spec_may_set_threads():
    env = environment(LocalDevice(device=Device(index=5, kind="NVIDIA H200")), "a:0 b:4 b:5", 2, OMP_NUM_THREADS="8", RANK="x")
    assert (env["CUDA_VISIBLE_DEVICES"], env["LOCAL_RANK"], env["OMP_NUM_THREADS"], env["RANK"]) == ("5", "0", "8", "2")


def test_settings_that_come_too_late_for_a_fork_are_known():
    inherited = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PATH": "/a"}
    assert not has_early_settings({"OMP_NUM_THREADS": "8", "PYTHONHASHSEED": "0", "PYTHONPATH": "/x", "PATH": "/b"}, inherited)
    for wanted in ({"PYTHONHASHSEED": "1"}, {}, {**inherited, "LD_PRELOAD": "x.so"}, {**inherited, "TORCH_LOGS": "all"}):
        assert has_early_settings(wanted, inherited)


def test_last_words_are_the_exception_or_the_last_line(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("x" * 100_000 + "\nTraceback (most recent call last):\n  File ...\nmy.pkg.BadError: too hot\n\n")
    assert last_line(str(log)) == "my.pkg.BadError: too hot"
    log.write_text("usage: prog\nprog: error: no input\n")
    assert last_line(str(log)) == "prog: error: no input"
    assert last_line(str(tmp_path / "none")) == ""


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path: Path):
    with pytest.raises(SetupError, match="too long for a Unix socket"):
        Folders(node=tmp_path / ("n" * 100), shm=tmp_path).make()


def test_connections_to_a_port_are_counted():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert connections_to(server.getsockname()[1]) == 1


def test_states_that_are_not_on_disk_stay_in_memory_when_all_else_is_removed(tmp_path):
    folders = Folders(node=tmp_path / "node", shm=tmp_path / "shm", disk=tmp_path / "disk")
    folders.make()
    (folders.shm / "a-1.g0.r0.page").write_bytes(b"x")
    for job, places in (("a-1", ("vault", "vault_on_disk")), ("b-1", ("vault",))):
        for place in places:
            vault.write_blob(getattr(folders, place)(job, 2), "rank0", b"state", job=job, generation=2, step=1)
    folders.remove()
    assert [path.parent.parent.name for path in folders.shm.rglob("*.state")] == ["b-1"]
    assert not (folders.shm / "a-1.g0.r0.page").exists()
    vault.write_blob(folders.vault_on_disk("b-1", 2), "rank0", b"state", job="b-1", generation=2, step=1)
    folders.remove()
    assert not folders.shm.exists()
