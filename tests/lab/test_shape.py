"""Rates, delays, shares: the numbers of a lab."""

from __future__ import annotations

import pytest

from restow.errors import SpecError
from restow.lab.devices import choose_share, quota_us
from restow.lab.shape import Shape, burst_bytes, format_rate, parse_delay, parse_rate, queue_bytes


@pytest.mark.parametrize(
    ("text", "rate"),
    [("200mbit", 200e6), ("1gbit", 1e9), ("100kbit", 100e3), ("2.5 Gbit", 2.5e9), ("64000", 64e3), ("none", None)],
)
def test_a_rate_is_read_as_people_write_it(text: str, rate: float | None):
    assert parse_rate(text) == rate
    assert parse_rate(format_rate(rate)) == rate


@pytest.mark.parametrize("text", ["", "fast", "5potato", "-1mbit", "0", "0mbit", "1000gbit", "nan", "1e99"])
def test_a_rate_that_is_none_is_refused_in_one_line(text: str):
    with pytest.raises(SpecError, match="rate is") as error:
        parse_rate(text)
    assert "\n" not in str(error.value)


def test_a_delay_is_read_as_people_write_it():
    assert parse_delay("10ms") == pytest.approx(0.01)
    assert parse_delay("500us") == pytest.approx(0.0005)
    assert parse_delay("0.01s") == parse_delay("0.01") == 0.01
    assert parse_delay("0") == 0


@pytest.mark.parametrize("text", ["", "soon", "-1ms", "11s", "5mbit"])
def test_a_delay_that_is_none_is_refused(text: str):
    with pytest.raises(SpecError, match="delay"):
        parse_delay(text)


def test_a_shape_cannot_be_impossible():
    with pytest.raises(SpecError, match="rate is -5"):
        Shape(rate_bits_per_s=-5)
    with pytest.raises(SpecError, match="delay_s is -1"):
        Shape(delay_s=-1)


def test_fast_links_pass_whole_packets_and_slow_ones_give_no_long_free_ride():
    assert burst_bytes(200e6) > 65536 + 66 * 8  # a full GSO packet with its headers
    assert burst_bytes(10e9) == 5_000_000  # 4 ms
    assert burst_bytes(2e6) / (2e6 / 8) < 0.1  # seconds of free ride
    for rate in (10e3, 1e6, 20e6, 200e6, 10e9, 30e9):
        assert queue_bytes(rate) > burst_bytes(rate)


def test_devices_get_equal_shares_that_fit():
    assert choose_share(devices=4, cores=2) == 0.45
    assert choose_share(devices=2, cores=2) == 0.9
    assert choose_share(devices=2, cores=8) == 1.0  # never more than a core
    assert choose_share(devices=3, cores=2) == 0.5  # two of them are on one core
    assert choose_share(devices=4, cores=2, share=0.3) == 0.3


@pytest.mark.parametrize("share", [0, -1, 0.51, 2, float("nan")])
def test_a_share_that_does_not_fit_is_refused_and_says_what_does(share: float):
    with pytest.raises(SpecError, match=r"can have up to 0\.5 each"):
        choose_share(devices=4, cores=2, share=share)


def test_the_quota_has_a_short_period_unless_the_share_is_tiny():
    assert quota_us(0.45) == (4500, 10_000)
    assert quota_us(0.02) == (1000, 50_000)
