"""The bound of sharing: known cases, and never below what taking turns gives."""

import random

import pytest

from restow.bound import Demand, best_total, fair_speed


def job(device_s: float, network_s: float, overlap_s: float = 0.0) -> Demand:
    return Demand(period_s=device_s + network_s - overlap_s, device_s=device_s, network_s=network_s)


@pytest.mark.parametrize(
    ("jobs", "total"),
    [
        ([job(0.130, 0.130), job(0.130, 0.130)], 2.0),  # each computes while the other waits
        ([job(0.060, 0.126), job(0.060, 0.126)], 186 / 126),  # the link is the limit
        ([job(0.200, 0.058), job(0.200, 0.058)], 258 / 200),  # the device is
        ([job(0.200, 0.0), job(0.200, 0.0)], 1.0),  # nothing to lend
        ([job(0.130, 0.126, overlap_s=0.061)] * 2, 195 / 130),  # a job that hides its communication gains less
        ([Demand(period_s=0.240, device_s=0.080, network_s=0.080)] * 3, 3.0),  # a third waits for its data
        ([job(0.1, 0.1)], 1.0),
        ([], 0.0),
    ],
)
def test_known_pairs_have_their_bound(jobs, total):
    assert best_total(jobs) == pytest.approx(total, abs=2e-3)


def test_unequal_jobs_may_do_better_than_at_equal_speeds():
    jobs = [job(0.200, 0.047), job(0.050, 0.190)]
    assert best_total(jobs) >= 2 * fair_speed(jobs)
    assert best_total(jobs) == pytest.approx(1.96, abs=0.03)


def test_the_bound_lies_between_turns_and_separate_devices_and_is_reached_by_no_random_schedule():
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(200):
        jobs = []
        for _ in range(chance.randint(1, 5)):
            device_s, network_s = chance.uniform(0, 1), chance.uniform(0, 1)
            period_s = chance.uniform(max(device_s, network_s, 0.01), device_s + network_s + 0.5)
            jobs.append(Demand(period_s=period_s, device_s=device_s, network_s=network_s))
        total = best_total(jobs)
        assert 1.0 - 1e-9 <= total <= len(jobs) + 1e-9
        assert total >= len(jobs) * fair_speed(jobs) - 1e-9
        for _ in range(20):  # any speeds that fit are no better
            speeds = [chance.random() for _ in jobs]
            device = sum(y * j.device for y, j in zip(speeds, jobs, strict=True))
            need = max(1.0, device, sum(y * j.network for y, j in zip(speeds, jobs, strict=True)))
            assert sum(speeds) / need <= total + 1e-9
