import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from restow.bound import Demand
from restow.cli import demo as cli
from restow.demo import perform, watch
from restow.demo.alone import Comparison, compare_losses
from restow.demo.multiplex import gates
from restow.demo.multiplex.gates import GateSeen
from restow.demo.multiplex.result import MultiplexResult, Protection, rows_of
from restow.demo.multiplex.scene import multiplex
from restow.demo.multiplex.show import SharingLook
from restow.demo.scene import consolidate
from restow.demo.timeline import Timeline
from restow.gate import INTERLEAVE, Gate, Keeper
from restow.placement import Slot
from tests.demo.scripted import job

NODES = [{"name": name, "devices": [{"index": 0}]} for name in ("m1", "m2")]
DEMAND = Demand(period_s=0.25, device_s=0.12, network_s=0.13)  # two of these: 1.92 at best
SPEEDS = [[0.51, 0.49], [0.72, 0.70], [0.92, 0.90]]
IDENTICAL = {"gpt-a": Comparison(is_identical=True, steps=120), "gpt-b": Comparison(is_identical=True, steps=80)}
PROTECTION = Protection(alone_s=0.25, shared_s=0.255, background_alone_s=0.12, background_shared_s=0.3)


def result(**changes):
    values = {
        "names": ("gpt-a", "gpt-b"),
        "demands": (DEMAND, DEMAND),
        "rows": rows_of([("turns", "in turns"), ("free", "all at once"), ("gate", "through the gate")], SPEEDS, [DEMAND] * 2),
        "protection": PROTECTION,
        "comparisons": IDENTICAL,
    }
    return MultiplexResult(**{**values, **changes})


def printed(*things, width=110):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    for thing in things:
        console.print(thing)
    return console.file.getvalue()


def shared(name, steps, mode="interleave", level=1):
    return job(name, "m1:0@0.5 m2:0@0.5", steps, sharing={"mode": mode, "level": level, "part": 0.4}, steps_total=None)


def look_at_both():
    """gpt-a at 4 and gpt-b at 3 steps per second, for 6 s; gpt-a holds m1:0 and had it for half of the time."""
    scene, timeline = multiplex(), Timeline(speed_window_s=4.0)
    look = SharingLook(scene=scene, has_link=True, phase="gate", alone_s={"gpt-a": 0.225, "gpt-b": 0.25}, bound=1.92)
    for time_s in range(7):
        jobs = [shared("gpt-a", 10 + 4 * time_s), shared("gpt-b", 5 + 3 * time_s)]
        timeline.moments.append(watch.moment(float(time_s), jobs, NODES, 20_000_000 * time_s))
        for node in ("m1", "m2"):
            held_s = {"gpt-a-1": 0.5 * time_s, "gpt-b-1": 0.4 * time_s}
            look.gates.append(
                GateSeen(time_s=float(time_s), device=Slot(node, 0), is_free=False, holder="gpt-a-1", held_s=held_s)
            )
    return look, timeline


# ---------------------------------------------------------------- the table and the JSON


def test_the_table_has_each_phase_with_both_speeds_their_sum_the_bound_and_how_much_of_it():
    text = printed(result().table())
    for words in ("alone", "turns", "0.51", "0.49", "1.00", "52%", "free", "1.42", "74%", "gate", "1.82", "1.92", "95%"):
        assert words in text


def test_below_it_stands_what_a_step_needs_what_protection_was_worth_and_that_the_losses_are_the_same():
    text = printed(*result().closing_lines(), width=200)
    assert "gpt-a 250 ms (120 ms computing, 130 ms on the link)" in text
    assert "+2.0%" in text and "0.40 of its own speed" in text
    assert "yes" in text and "120 steps of gpt-a, 80 steps of gpt-b" in text


def test_a_loss_that_differs_is_named():
    wrong = Comparison(is_identical=False, steps=6, why_not="rank 1: the losses differ from step 7 on")
    found = result(comparisons={**IDENTICAL, "gpt-b": wrong})
    assert not found.is_identical
    assert "no, gpt-b: rank 1: the losses differ from step 7 on" in printed(*found.closing_lines(), width=200)


def test_a_machine_that_was_busy_with_other_things_is_told_of():
    assert result().cautions() == ()
    busy = result(protection=Protection(alone_s=0.4, shared_s=0.41, background_alone_s=0.1, background_shared_s=0.2))
    assert busy.cautions()[0].startswith("a step of gpt-a alone took 250 ms at first and 400 ms later")


def test_the_json_has_the_rows_fairness_and_what_protection_was_worth():
    numbers = json.loads(json.dumps(result().numbers()))
    assert [row["phase"] for row in numbers["rows"]] == ["turns", "free", "gate"]
    assert numbers["rows"][2] == {
        "phase": "gate", "speeds": [0.92, 0.90], "sum": pytest.approx(1.82), "bound": pytest.approx(1.923, abs=1e-3),
        "ratio_to_bound": pytest.approx(0.9464),
    }  # fmt: skip
    assert numbers["fairness"] == pytest.approx(0.92 / 0.90 - 1)
    assert numbers["bit_identical"] is True
    assert numbers["protected_slowdown_mean"] == pytest.approx(0.02)
    assert numbers["background_share"] == pytest.approx(0.4)


def test_a_run_that_was_ended_in_the_middle_is_compared_by_its_losses():
    assert compare_losses((["a", "b"], ["c", "d"]), (["a", "b"], ["c", "d"])) == Comparison(is_identical=True, steps=2)
    assert compare_losses((["a", "b"], ["c", "d"]), (["a", "b"], ["c", "x"])).why_not == "rank 1: the losses differ from step 2 on"
    assert compare_losses((["a", "b"],), (["a"],)).why_not == "rank 0: the losses differ from step 2 on"
    assert not compare_losses(([], []), ([], [])).is_identical


# ---------------------------------------------------------------- the display


def test_the_screen_shows_who_holds_each_device_both_speeds_and_what_they_make_together():
    look, timeline = look_at_both()
    text = printed(look.screen(timeline, "Look."), width=130)
    for words in ("m1:0", "● gpt-a, rank 0", "holds 50%", "○ gpt-b, rank 1", "holds 40%", "200 Mbit/s", "4.0", "0.90", "0.75"):
        assert words in text
    assert "1.65 times one alone; no schedule can make more than 1.92" in text
    assert "Look." in text and "interleave" in text


def test_without_a_gate_nobody_is_said_to_hold_a_device():
    look, timeline = look_at_both()
    look.gates = [GateSeen(time_s=9.0, device=Slot("m1", 0), is_free=True, holder="", held_s={})]
    text = printed(look.screen(timeline, ""), width=130)
    assert "no gate, all at once" in text and "holds" not in text


def test_a_screen_without_a_moment_says_what_is_being_done():
    assert "a lab" in printed(SharingLook(scene=multiplex(), has_link=False).screen(Timeline(), "a lab is made"))


def test_a_line_has_the_phase_the_speeds_and_their_sum():
    look, timeline = look_at_both()
    line = look.line(timeline)
    assert "gate: gpt-a 4.0 steps/s, 0.90 of its own; gpt-b 3.0 steps/s, 0.75 of its own; together 1.65 of 1.92" in line
    assert "now computing: m1:0 gpt-a-1, m2:0 gpt-a-1" in line


def test_a_protected_and_a_best_effort_job_are_told_apart():
    moment = watch.moment(0.0, [shared("gpt-a", 1, level=0), shared("background", 1, level=2)], NODES, None)
    assert [job.sharing for job in moment.jobs] == ["protected", "best effort, 40%"]


def test_a_gate_is_looked_at_without_taking_part(tmp_path):
    assert gates.look(tmp_path, Slot("m1", 0)) is None
    keeper = Keeper(tmp_path, 0)
    member = Gate.join(tmp_path, 0, job="gpt-a-1", rank=0)
    try:
        assert gates.look(tmp_path, Slot("m1", 0)).is_free
        keeper.set_mode(INTERLEAVE)
        assert member.acquire(timeout_s=1.0)
        earlier = gates.look(tmp_path, Slot("m1", 0))
        later = gates.look(tmp_path, Slot("m1", 0))
        assert (later.is_free, later.holder) == (False, "gpt-a-1")
        assert later.parts(earlier)["gpt-a-1"] == pytest.approx(1.0, abs=0.01)
        member.release()
        assert gates.look(tmp_path, Slot("m1", 0)).holder == ""
    finally:
        member.leave()
        keeper.close()


# ---------------------------------------------------------------- the option


def test_both_scenes_can_be_chosen_and_the_help_names_them():
    assert tuple(perform.SCENES) == cli.SCENES
    text = CliRunner().invoke(cli.demo, ["--help"]).output
    assert "consolidate" in text and "multiplex" in text


def test_an_unknown_scene_is_refused_with_the_choice():
    refused = CliRunner().invoke(cli.demo, ["--scene", "opera"])
    assert refused.exit_code == 2
    assert "'opera' is not one of 'consolidate', 'multiplex'" in refused.output


def test_the_gangs_ask_to_share_and_the_jobs_of_the_other_scene_do_not():
    assert [part.share["mode"] for part in multiplex().parts] == ["interleave", "interleave", "best-effort"]
    assert all(phase.length_s % 2 == 0 for phase in multiplex().phases if phase.mode == "time-slice")  # whole rounds of turns
    assert all(part.share == {"allow": False} for part in consolidate().parts)
