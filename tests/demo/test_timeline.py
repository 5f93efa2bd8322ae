from restow.demo.timeline import Stay, Timeline
from restow.placement import Slot
from tests.demo.scripted import job, moment, play


def test_the_speed_is_the_slope_of_the_last_two_seconds():
    assert play().steps_per_s("gpt") == 10.0


def test_there_is_no_speed_before_there_are_two_seconds_of_steps():
    timeline = play()
    del timeline.moments[2:]
    assert timeline.steps_per_s("gpt") is None
    assert timeline.steps_per_s("nobody") is None


def test_a_job_that_has_ended_has_no_speed():
    assert play().steps_per_s("neighbour") is None


def test_the_speeds_over_time_show_the_move():
    speeds = dict(play().speeds("gpt"))
    assert speeds[10.0] == 2.0
    assert speeds[20.0] == 10.0


def test_stays_say_who_sat_where_and_end_when_the_job_goes():
    stays = play().stays()
    assert Stay(device=Slot("m1", 1), job="gpt", begin_s=0, end_s=13) in stays
    assert Stay(device=Slot("m2", 0), job="neighbour", begin_s=0, end_s=11) in stays
    assert Stay(device=Slot("m2", 0), job="gpt", begin_s=13, end_s=23) in stays
    assert Stay(device=Slot("m2", 1), job="gpt", begin_s=0, end_s=23) in stays


def test_a_twin_that_waits_is_a_stay_of_its_own_until_the_gang_is_there():
    switch = {"phase": "standby", "reason": "together", "placement": ["m2:0", "m2:1"]}
    timeline = Timeline(
        moments=[
            moment(1.0, job("gpt", "m1:1 m2:1", 5)),
            moment(2.0, job("gpt", "m1:1 m2:1", 6, switch=switch)),
            moment(3.0, job("gpt", "m2:0 m2:1", 8)),
            moment(4.0, job("gpt", "m2:0 m2:1", 9)),
        ]
    )
    assert [stay for stay in timeline.stays() if stay.device == Slot("m2", 0)] == [
        Stay(device=Slot("m2", 0), job="gpt", begin_s=2.0, end_s=3.0, is_twin=True),
        Stay(device=Slot("m2", 0), job="gpt", begin_s=3.0, end_s=4.0),
    ]


def test_a_job_that_made_its_last_step_has_no_speed_any_more():
    timeline = Timeline(
        moments=[moment(float(time_s), job("gpt", "m1:0", min(100, 10 + 30 * time_s))) for time_s in range(6)]
    )
    assert timeline.steps_per_s("gpt") is None
    assert max(time_s for time_s, _ in timeline.speeds("gpt")) < 3


def test_the_link_is_measured_over_the_last_second_and_unknown_without_a_lab():
    timeline = play()
    assert timeline.link_bytes_per_s() == 0
    del timeline.moments[10:]
    assert timeline.link_bytes_per_s() == 10_000_000
    timeline.moments.append(moment(30.0, job("gpt", "m1:0", 7)))
    assert timeline.link_bytes_per_s() is None
