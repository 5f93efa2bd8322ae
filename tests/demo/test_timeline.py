from restow.demo.timeline import Stay
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


def test_the_link_is_measured_over_the_last_second_and_unknown_without_a_lab():
    timeline = play()
    assert timeline.link_bytes_per_s() == 0
    del timeline.moments[10:]
    assert timeline.link_bytes_per_s() == 10_000_000
    timeline.moments.append(moment(30.0, job("gpt", "m1:0", 7)))
    assert timeline.link_bytes_per_s() is None
