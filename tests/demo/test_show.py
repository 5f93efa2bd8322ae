import io

import pytest
from rich.console import Console

from restow.demo.alone import Comparison
from restow.demo.audience import Lines, Screen, choose_audience
from restow.demo.picture import check_name, draw
from restow.demo.result import Result, milliseconds, size
from restow.demo.scene import consolidate
from restow.demo.show import progress_line, screen
from restow.demo.timeline import Happening, Timeline
from restow.errors import SpecError
from tests.demo.scripted import MOVE, NAMES, job, moment, play

SWITCH = {"phase": "standby", "reason": "together", "placement": ["m2:0", "m2:1"]}
IDENTICAL = Comparison(is_identical=True, steps=100)


def printed(thing, width=130):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(thing)
    return console.file.getvalue()


def test_the_screen_shows_machines_devices_ranks_speed_the_link_and_what_happens():
    timeline = play()
    timeline.happenings.append(Happening(time_s=12.5, job="gpt", text="rank 0 goes on at step 24 on m2"))
    text = printed(screen(timeline, NAMES, title="demo", rate_bits_per_s=200e6, act="Look."))
    for words in ("m1", "m2", "rank 1 of 2", "free", "10.0", "200 Mbit/s", "rank 0 goes on at step 24", "Look."):
        assert words in text


def test_a_screen_without_a_moment_says_what_is_being_done():
    assert "a lab" in printed(screen(Timeline(), NAMES, title="demo", rate_bits_per_s=None, act="a lab is made"))


def test_the_machines_are_drawn_with_a_narrow_terminal_too():
    assert "gpt" in printed(screen(play(), NAMES, title="demo", rate_bits_per_s=200e6, act=""), width=60)


def test_plain_lines_tell_each_event_once_and_the_state_now_and_then():
    output = io.StringIO()
    audience, timeline = Lines(output, origin_s=0.0), play()
    moments, timeline.moments = timeline.moments, []
    timeline.happenings.append(Happening(time_s=0.0, job="gpt", text="submitted, 2 workers"))
    for seen in moments:
        timeline.moments.append(seen)
        audience.see(timeline)
    text = output.getvalue()
    assert text.count("submitted, 2 workers") == 1
    assert text.count("gpt running") == 11  # every second of 24, the first two seconds apart
    assert "gpt running on m2:0 m2:1, step 124, 10.0 steps/s" in text


def test_a_move_under_way_is_told():
    timeline = Timeline(moments=[moment(1.0, job("gpt", "m1:1 m2:1", 5, switch=SWITCH))])
    assert "gpt running, moving (standby) on m1:1 m2:1, step 5" in progress_line(timeline)


def test_the_twin_is_shown_on_the_device_where_it_waits():
    timeline = Timeline(moments=[moment(1.0, job("gpt", "m1:1 m2:1", 5, switch=SWITCH))])
    assert "twin, standby" in printed(screen(timeline, NAMES, title="demo", rate_bits_per_s=None, act=""))


def test_a_terminal_gets_the_screen_and_a_file_gets_lines():
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    assert isinstance(choose_audience(terminal, consolidate(), has_link=True, origin_s=0.0), Screen)
    assert isinstance(choose_audience(Console(file=io.StringIO()), consolidate(), has_link=True, origin_s=0.0), Lines)


def test_the_table_says_before_predicted_after_and_whether_the_numbers_agree():
    text = printed(Result(move=MOVE, comparison=IDENTICAL).table())
    for words in ("500 ms", "110 ms", "100 ms", "5.0 times as fast", "-9 % off", "71.2 ms", "12.6 KB", "yes"):
        assert words in text


def test_the_json_has_the_seven_numbers():
    numbers = Result(move=MOVE, comparison=IDENTICAL).numbers()
    seven = (
        "step_before_s",
        "step_predicted_s",
        "step_after_s",
        "downtime_s",
        "wire_bytes",
        "lost_steps",
        "bit_identical",
    )
    assert [numbers[key] for key in seven] == [0.5, 0.11, 0.1, 0.0712, 12_600, 0, True]


def test_numbers_are_written_for_people():
    assert [milliseconds(s) for s in (0.0712, 0.4)] == ["71.2 ms", "400 ms"]
    assert [size(n) for n in (17, 12_600, 1_800_000, 2_000_000_000)] == ["17 B", "12.6 KB", "1.8 MB", "2.0 GB"]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_picture_is_drawn(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="a picture needs matplotlib")
    path = tmp_path / f"timeline{ending}"
    draw(play(), NAMES, "gpt", Result(move=MOVE, comparison=IDENTICAL), path)
    assert path.stat().st_size > 5_000


def test_a_picture_that_cannot_be_written_is_refused_before_the_demo_runs(tmp_path):
    with pytest.raises(SpecError, match=r"demo\.gif; its name must end in \.png"):
        check_name(tmp_path / "demo.gif")
    with pytest.raises(SpecError, match="nowhere does not exist"):
        check_name(tmp_path / "nowhere" / "demo.png")
