"""Who may share devices with whom, how, and when they part: the rules, one by one, on literal jobs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import mean, median

import pytest

from restow.cluster import Device, Link, Node, Snapshot
from restow.job import Job, JobSpec, JobState, Profile, ShareSpec, Sharing
from restow.placement import parse_placement
from restow.policies import sharing
from restow.policies.sharing import BEST_EFFORT, ORDINARY, PROTECTED, SharingConfig

CONFIG = SharingConfig()
GB = 10**9
WAITS = Profile(step_s=0.3, exposed_s=0.2, alone_step_s=0.3)  # computes for a third of its time
COMPUTES = Profile(step_s=0.3, alone_step_s=0.3)  # all the time


def job(id: str, profile: Profile = WAITS, where: str = "m1:0 m2:0", workers: int = 2, **share: object) -> Job:
    """A job that runs there; without a place it is pending."""
    placement = parse_placement(where)
    spec = JobSpec(command=("python", "train.py"), workers=workers, share=ShareSpec(**{"link": "off", **share}))  # type: ignore[arg-type]
    return Job(
        id=id, spec=spec, state=JobState.RUNNING if where else JobState.PENDING, placement=placement, intended=placement,
        profile=profile, steps_done=100,
    )  # fmt: skip


def pending(id: str, profile: Profile = WAITS, workers: int = 2, **share: object) -> Job:
    return job(id, profile, where="", workers=workers, **share)


def cluster(*jobs: Job, memory_bytes: int = 0, now_s: float = 1000.0) -> Snapshot:
    """m1 and m2 with two devices each, joined by 200 Mbit/s."""
    devices = tuple(Device(index=index, memory_bytes=memory_bytes) for index in range(2))
    nodes = tuple(Node(name=name, address="", devices=devices) for name in ("m1", "m2"))
    return Snapshot(now_s=now_s, nodes=nodes, jobs=jobs, links={("m1", "m2"): Link(bytes_per_s=25e6)})


def why_not(newcomer: Job, *hosts: Job, memory_bytes: int = 0) -> str:
    pairing, reason = sharing.pairing_for(newcomer, cluster(*hosts, newcomer, memory_bytes=memory_bytes), CONFIG)
    assert pairing is None
    return reason


def together(*jobs: Job, mode: str = "interleave", since_s: float = 0.0, **changes: object) -> list[Job]:
    """These jobs as they have shared since then."""
    levels = sharing.levels_of(jobs)
    return [
        replace(each, sharing=Sharing(
            mode=mode, partners=tuple(other.id for other in jobs if other is not each), level=levels[each.id], since_s=since_s,
            quantum_s=5.0 if mode == "time-slice" else 0.0, total_predicted=1.5, **changes,  # type: ignore[arg-type]
        ))
        for each in jobs
    ]  # fmt: skip


def measured(first: Job, second: Job, total: float, **others: float) -> list[Job]:
    """Both remember what they reached together: taking turns inside a step, and in other modes."""
    totals = sorted({"interleave": total, **others}.items())
    return [replace(job, tried=tuple((other.id, *pair) for pair in totals)) for job, other in ((first, second), (second, first))]


# ---------------------------------------------------------------- who joins whom


def test_jobs_that_wait_for_the_link_two_thirds_of_their_time_are_admitted_by_the_bound():
    pairing, _ = sharing.pairing_for(pending("b"), cluster(job("a"), pending("b")), CONFIG)
    assert pairing
    assert round(pairing.total, 2) == 1.5  # the link is what there is too little of
    assert " ".join(map(str, pairing.placement)) == "m1:0@0.5 m2:0@0.5"


def test_jobs_that_compute_all_the_time_are_not_and_the_reason_has_both_numbers():
    reason = why_not(pending("b", COMPUTES), job("a", COMPUTES))
    assert reason == "with a it would bring 1.00 of one job alone, worth it from 1.2 on"


def test_a_job_that_never_ran_counts_as_one_that_computes_all_the_time():
    pairing, _ = sharing.pairing_for(pending("b", Profile()), cluster(job("a"), pending("b", Profile())), CONFIG)
    assert pairing
    assert round(pairing.total, 2) == 1.67  # a as fast as alone, b in the two thirds that are left


def test_of_several_groups_the_one_with_the_best_promise_is_joined():
    busy, idle = job("busy"), job("idle", Profile(step_s=0.3, data_s=0.2), where="m1:1 m2:1")  # busy needs the link, too
    pairing, _ = sharing.pairing_for(pending("b"), cluster(busy, idle, pending("b")), CONFIG)
    assert pairing
    assert [host.id for host in pairing.hosts] == ["idle"]


def test_a_third_job_joins_a_pair_and_a_fourth_does_not():
    waits = Profile(step_s=0.3, data_s=0.25)
    jobs = [job(name, waits) for name in "abc"]
    pairing, _ = sharing.pairing_for(pending("c", waits), cluster(*jobs[:2], pending("c", waits)), CONFIG)
    assert pairing
    assert (round(pairing.total, 2), len(pairing.hosts)) == (3.0, 2)
    assert why_not(pending("d", waits), *jobs) == "a and b and c share their devices already"


def test_what_was_asked_for_by_name_needs_no_promise():
    pairing, _ = sharing.pairing_for(
        pending("b", COMPUTES, mode="time-slice"), cluster(job("a", COMPUTES), pending("b")), CONFIG
    )
    assert pairing


def test_a_protected_job_joins_one_that_only_wants_idle_time_without_a_promise():
    host = job("a", COMPUTES, mode="best-effort")
    pairing, _ = sharing.pairing_for(pending("b", Profile(), protect=True), cluster(host, pending("b")), CONFIG)
    assert pairing
    assert why_not(pending("b", Profile(), protect=True), job("a", COMPUTES)).startswith("with a it would bring 1.00 ")


@pytest.mark.parametrize(
    ("newcomer", "host", "reason"),
    [
        (pending("b", allow=False), job("a"), "its spec does not let it share devices"),
        (pending("b", mode="exclusive"), job("a"), "its spec does not let it share devices"),
        (pending("b"), job("a", allow=False), "a does not share its devices"),
        (pending("b"), job("a", mode="exclusive"), "a does not share its devices"),
        (pending("b"), job("a", where="m1:0", workers=1), "a has 1 worker, and jobs that share must have the same devices"),
        (pending("b"), replace(job("a"), state=JobState.STARTING), "a is starting, moving or ending"),
        (pending("b"), replace(job("a"), intended=parse_placement("m1:0 m1:1")), "a is starting, moving or ending"),
        (pending("b"), replace(job("a"), exited=frozenset({1})), "a is starting, moving or ending"),
        (pending("b"), replace(job("a"), steps_done=7), "a has not made 20 steps yet"),
        (pending("b"), replace(job("a"), profile=Profile()), "a has not made 20 steps yet"),
        (pending("b", protect=True), job("a", protect=True), "a and it are both protected"),
        (
            pending("b"),
            replace(job("a"), tried=(("b", "interleave", 0.97),)),
            "with a it brought 0.97 of one job alone when it was tried",
        ),
    ],
)  # fmt: skip
def test_who_may_not_join_is_told_why(newcomer, host, reason):
    assert why_not(newcomer, host) == reason


def test_a_gang_that_would_overlap_others_only_partly_is_refused():
    reason = why_not(pending("b"), job("a", where="m1:0", workers=1), job("c", where="m2:0", workers=1))
    assert reason == "a has 1 worker, and jobs that share must have the same devices"


def test_a_job_that_has_missed_the_promise_with_others_is_promised_less():
    host = replace(job("a"), friendliness=0.7)
    assert why_not(pending("b"), host) == "with a it would bring 1.05 of one job alone, worth it from 1.2 on"


def test_a_job_is_not_slowed_down_by_more_than_it_says_that_it_can_bear():
    assert why_not(pending("b"), job("a", max_slowdown=0.1)) == "steps of a would take 33% longer, and it allows 10%"
    assert why_not(pending("b", max_slowdown=0.1), job("a")) == "steps of b would take 33% longer, and it allows 10%"
    for newcomer, host in ((pending("b", max_slowdown=0.5), job("a")), (pending("b"), job("a", max_slowdown=0.03, protect=True))):
        assert sharing.pairing_for(newcomer, cluster(host, newcomer), CONFIG)[0]  # enough, or its guard will see to it


# ---------------------------------------------------------------- memory


def needs(peak_gb: float, valley_gb: float) -> Profile:
    return replace(WAITS, memory_bytes=int(peak_gb * GB), valley_bytes=int(valley_gb * GB))


@pytest.mark.parametrize(
    ("first", "second", "room", "mode", "swaps"),
    [
        ((6, 4), (3, 1), "peaks", "interleave", (0, 0)),  # 6 + 3
        ((7, 4), (6, 3), "valleys", "interleave", (0, 0)),  # 4 + 3 and 3 more for one of them
        ((8, 6), (7, 6), "swap", "time-slice", (3.0003, 4.0003)),  # 6 + 6 and the other's growth, less 10; in whole MiB
    ],
)
def test_memory_is_admitted_by_peaks_else_valleys_and_one_peak_else_in_turns(first, second, room, mode, swaps):
    jobs = [job("a", needs(*first)), job("b", needs(*second))]
    snapshot = cluster(*jobs, memory_bytes=10 * GB)
    assert sharing.fits(jobs, snapshot) == room
    found = sharing.regulated(jobs, snapshot, CONFIG)
    assert {each.mode for each in found.values()} == {mode}
    assert tuple(found[id].swap_bytes / GB for id in "ab") == pytest.approx(swaps, abs=0.001)
    assert sharing.hindrance(pending("b", needs(*second)), jobs[:1], snapshot, CONFIG) == ""


def test_what_does_not_fit_alone_is_not_admitted_and_says_how_much_it_needs():
    host, newcomer = job("a", needs(6, 4)), pending("b", needs(12, 4))
    assert why_not(newcomer, host, memory_bytes=10 * GB) == "one of them alone needs 12 GB of the 10 GB of a device"


def test_a_job_that_exceeds_what_was_admitted_is_put_on_turns():
    before = together(job("a", needs(6, 4)), job("b", needs(3, 1)))
    grown = [replace(before[0], profile=needs(9, 8)), before[1]]
    found = sharing.regulated(grown, cluster(*grown, memory_bytes=10 * GB), CONFIG)
    assert (found["a"].mode, found["a"].swap_bytes // 10**8) == ("time-slice", 10)
    assert sharing.why(found["a"]) == "takes turns of 5 s with b, since their memory does not fit at once"


def test_a_limit_counts_as_the_peak_but_not_against_what_was_measured_above_it():
    declared = replace(job("a", Profile(step_s=0.3), memory_bytes=4 * GB))
    assert sharing.peak_bytes(declared) == 4 * GB
    assert sharing.peak_bytes(replace(declared, profile=needs(6, 4))) == 6 * GB  # it was born before the limit was asked for


def test_everybody_at_once_is_allowed_only_where_all_peaks_fit():
    for first, second, mode in (((6, 4), (3, 1), "free"), ((7, 4), (6, 3), "interleave")):
        jobs = [job("a", needs(*first), mode="free"), job("b", needs(*second))]
        assert sharing.mode_of(jobs, cluster(*jobs, memory_bytes=10 * GB), CONFIG) == mode


def test_a_protected_job_takes_no_turns():
    reason = why_not(pending("b", needs(7, 6)), job("a", needs(8, 6), protect=True), memory_bytes=10 * GB)
    assert reason == "they do not fit a device of 10 GB at once, and a, which is protected, takes no turns"


# ---------------------------------------------------------------- how a group shares


def test_ordinary_jobs_have_the_same_class_and_beside_a_protected_one_everybody_is_best_effort():
    assert sharing.levels_of([job("a"), job("b")]) == {"a": ORDINARY, "b": ORDINARY}
    assert sharing.levels_of([job("a", protect=True), job("b")]) == {"a": PROTECTED, "b": BEST_EFFORT}
    assert sharing.levels_of([job("a"), job("b", mode="best-effort")]) == {"a": ORDINARY, "b": BEST_EFFORT}


def test_a_pair_that_brought_nothing_inside_a_step_is_put_on_turns():
    pair = measured(*together(job("a"), job("b")), total=0.98)
    assert sharing.mode_of(pair, cluster(*pair), CONFIG) == "time-slice"
    assert sharing.regulated(pair, cluster(*pair), CONFIG)["a"].total_predicted == 1.0


def test_computing_freely_is_tried_only_where_the_device_is_scarce_memory_has_room_and_nobody_said_how():
    scarce = Profile(step_s=0.3, exposed_s=0.1)

    def mode(profile: Profile = scarce, memory_bytes: int = 0, **share: object) -> str:
        pair = measured(*together(job("a", profile, **share), job("b", profile)), total=1.3)
        return sharing.mode_of(pair, cluster(*pair, memory_bytes=memory_bytes), CONFIG)

    assert mode() == "free"
    assert mode(WAITS) == "interleave"
    assert mode(mode="interleave") == "interleave"
    assert mode(protect=True) == "interleave"
    assert mode(replace(scarce, memory_bytes=6 * GB, valley_bytes=2 * GB), memory_bytes=10 * GB) == "interleave"
    pair = measured(*together(job("a"), job("b"), mode="free"), total=1.3)
    assert sharing.mode_of(pair, cluster(*pair), CONFIG) == "free"  # until it is measured, whatever a profile says meanwhile


def test_with_nothing_new_they_share_as_before():
    pair = together(job("a"), job("b"))
    again = sharing.regulated(pair, cluster(*pair), CONFIG)
    assert [again[each.id] for each in pair] == [each.sharing for each in pair]


def guarded(step_s: float, part: float = 1.0, now_s: float = 20.0, **changes: object) -> dict[str, Sharing]:
    """A protected job of 0.3 s alone, 0.03 slower at most, beside b with that part since 0 s: how they share from now on."""
    pair = together(job("a", replace(WAITS, step_s=step_s, alone_step_s=0.3), protect=True), job("b"))
    pair[1] = replace(pair[1], sharing=replace(pair[1].sharing, part=part, **changes))
    return sharing.regulated(pair, cluster(*pair, now_s=now_s), CONFIG)


def test_the_guard_cuts_the_part_of_the_other_when_the_protected_job_is_hurt_and_gives_it_back_slowly():
    assert guarded(step_s=0.33)["b"].part == 0.7
    assert guarded(step_s=0.33, part=0.06)["b"].part == 0.0
    assert guarded(step_s=0.30, part=0.7)["b"].part == 0.75
    assert guarded(step_s=0.306, part=0.7)["b"].part == 0.7  # 2 % is between the two
    assert sharing.why(guarded(step_s=0.33)["b"]) == "runs in the idle time of a, 70% of what it asks for"
    assert sharing.why(guarded(step_s=0.33)["a"]) == "goes first; b runs in its idle time"


def test_a_little_hurt_counts_when_it_is_seen_twice_in_a_row():
    once = guarded(step_s=0.32, part=0.7)["b"]
    assert (once.part, once.is_doubted, once.since_s) == (0.7, True, 20.0)  # 15 more steps are waited for
    assert guarded(step_s=0.32, part=0.7, is_doubted=True)["b"].part == 0.7 * 0.7
    calm = guarded(step_s=0.306, part=0.7, is_doubted=True)["b"]
    assert (calm.part, calm.is_doubted) == (0.7, False)


def test_the_guard_waits_until_what_is_measured_tells_of_the_present_part():
    assert guarded(step_s=0.6, now_s=3.9)["b"].part == 1.0  # 4 s at least
    assert guarded(step_s=0.6, since_steps=(0, 86))["b"].part == 1.0  # 15 steps at least
    assert guarded(step_s=0.6, since_steps=(0, 85))["b"].part == 0.7
    assert guarded(step_s=0.0)["b"].part == 1.0  # it has just moved: nothing is measured


def test_a_background_job_that_stands_still_proves_nothing():
    assert guarded(step_s=0.30, part=0.7, since_steps=(100, 0))["b"].part == 0.7
    assert guarded(step_s=0.33, part=1.0, since_steps=(100, 0))["b"].part == 0.7  # it may be inside a long step


@pytest.mark.parametrize("step_s", [0.5, 0.2])
def test_before_it_believes_that_a_protected_job_is_another_the_guard_looks_at_it_alone(step_s: float):
    later = guarded(step_s, part=0.6, now_s=100.0)["b"]  # what it was alone is 100 s old
    assert (later.part, later.held_part) == (0.0, 0.6)
    assert sharing.why(later) == "stands still for some steps of a, so that it is known how long these take alone"
    seen = guarded(step_s, part=0.0, held_part=0.6, now_s=100.0)
    assert (seen["a"].alone_step_s, seen["a"].alone_at_s) == (step_s, 100.0)
    assert (seen["b"].part, seen["b"].held_part) == (0.6, 0.0)


def test_who_stands_still_and_cannot_be_parted_tries_again():
    assert guarded(0.30, part=0.0, now_s=29.0)["b"].part == 0.0
    assert guarded(0.30, part=0.0, now_s=30.0)["b"].part == CONFIG.protection.part_min


def test_a_background_job_has_its_part_back_when_nobody_is_protected_any_more():
    pair = together(job("a", protect=True), job("b", mode="best-effort"), part=0.0, held_part=0.4, is_doubted=True)
    pair[0] = replace(pair[0], share_asked=ShareSpec(link="off"))
    later = sharing.regulated(pair, cluster(*pair), CONFIG)["b"]
    assert (later.level, later.part, later.held_part, later.is_doubted) == (BEST_EFFORT, 1.0, 0.0, False)


def test_all_background_jobs_stand_still_for_a_look_and_all_go_on():
    three = together(job("a", replace(WAITS, step_s=0.5, alone_step_s=0.3), protect=True), job("b"), job("c"))
    three[1] = replace(three[1], sharing=replace(three[1].sharing, part=0.6))
    for number in (1, 2):  # only one of them has been as it is long enough to say that the protected job is another
        three[2] = replace(three[2], sharing=replace(three[2].sharing, part=0.2, since_s=100.0 if number == 2 else 0.0))
        found = sharing.regulated(three, cluster(*three, now_s=100.0), CONFIG)
        assert [(found[name].part, found[name].held_part) for name in "bc"] == [(0.0, 0.6), (0.0, 0.2)]
    three = [replace(each, sharing=found[each.id], steps_done=each.steps_done + 30) for each in three]
    assert sharing.regulated(three, cluster(*three, now_s=103.0), CONFIG) == found
    after = sharing.regulated(three, cluster(*three, now_s=104.0), CONFIG)
    assert (after["a"].alone_step_s, after["b"].part, after["c"].part) == (0.5, 0.6, 0.2)


def beside(alone_s: Callable[[float], float], hurt: float, until_s: float) -> list[tuple[float, float, float, float]]:
    """In virtual time: a protected job whose steps take `alone_s(now)` alone and `hurt` x part longer beside b.
    (now, part, seconds per step, what it would be alone)."""
    pair = together(job("a", replace(WAITS, step_s=0.3, alone_step_s=0.3), protect=True), job("b"))
    made, seen, last = [100.0, 100.0], [], deque[float](maxlen=15)
    for tick in range(int(until_s / 0.5)):
        now_s = tick * 0.5
        part = pair[1].sharing.part if pair[1].sharing else 1.0
        step_s = alone_s(now_s) * (1 + hurt * part)
        last.append(step_s)
        made = [made[0] + 0.5 / step_s, made[1] + 0.5 * part / 0.3]
        pair[0] = replace(pair[0], profile=replace(pair[0].profile, step_s=median(last)), steps_done=int(made[0]))
        pair[1] = replace(pair[1], steps_done=int(made[1]))
        found = sharing.regulated(pair, cluster(*pair, now_s=now_s), CONFIG)
        pair = [replace(each, sharing=found[each.id]) for each in pair]
        seen.append((now_s, part, step_s, alone_s(now_s)))
    return seen


@pytest.mark.parametrize("later_s", [0.6, 0.15, 0.3])
def test_the_guard_follows_a_protected_job_that_becomes_another_in_the_middle(later_s: float):
    """Beside b at full part its steps take 10 % longer, and after ten minutes they are others by themselves."""
    seen = beside(lambda now_s: 0.3 if now_s < 600 else later_s, hurt=0.10, until_s=2000)
    for begin_s, end_s in ((300, 600), (1500, 2000)):
        span = [(part, step_s / alone_s) for now_s, part, step_s, alone_s in seen if begin_s < now_s < end_s]
        assert mean(part for part, _ in span) > 0.15, "it gets its part of the gaps"
        assert max(slower for _, slower in span) < 1.04, "3 % are allowed, and one increase beyond"


@pytest.mark.parametrize("seed", range(5))
def test_a_machine_that_becomes_slower_and_faster_is_not_blamed_on_the_other(seed: int):
    """Neighbours outside of restow make steps up to 30 % longer for minutes, and 10 % from one to the next; b does not hurt."""
    slower = Random(seed)
    phases = [1.0 + 0.3 * slower.random() for _ in range(40)]
    seen = beside(lambda now_s: 0.3 * phases[int(now_s / 60)] * slower.uniform(0.9, 1.1), hurt=0.0, until_s=2400)
    assert mean(part for _, part, _, _ in seen) > 0.6
    assert min(mean(part for now_s, part, _, _ in seen if begin <= now_s < begin + 300) for begin in range(0, 2400, 300)) > 0.2


# ---------------------------------------------------------------- when they part


def leaver(*jobs: Job, now_s: float = 100.0) -> tuple[str, str] | None:
    found = sharing.who_leaves(jobs, now_s, CONFIG)
    return (found[0].id, found[1]) if found else None


def test_a_pair_that_brings_something_stays():
    assert leaver(*measured(*together(job("a"), job("b")), total=1.4)) is None


def test_the_younger_of_a_pair_that_brings_nothing_leaves():
    pair = measured(*together(replace(job("a"), submitted_s=9.0), job("b")), total=0.97)
    assert leaver(*pair) == ("a", "together they bring 0.97 of one job alone")


def test_who_stands_still_beside_a_protected_job_leaves():
    pair = together(job("a", protect=True), job("b"), part=0.04)
    assert leaver(*pair) == ("b", "its share beside a protected job has become too small")


def test_a_job_that_was_told_not_to_share_any_more_keeps_its_devices():
    pair = together(job("a"), job("b"))
    alone = replace(pair[1], share_asked=ShareSpec(allow=False))
    assert leaver(pair[0], alone) == ("a", "b does not share its devices any more")
    exclusive = replace(pair[1], share_asked=ShareSpec(mode="exclusive"))
    assert leaver(pair[0], exclusive) == ("a", "b does not share its devices any more")


def test_a_job_that_takes_longer_than_it_allows_keeps_its_devices():
    slow = replace(WAITS, step_s=0.36, alone_step_s=0.3)
    pair = together(job("a"), job("b", slow, max_slowdown=0.1))
    assert leaver(*pair) == ("a", "steps of b take 20% longer than alone, and it allows 10%")
    assert leaver(*pair, now_s=3.0) is None  # not measured yet
    in_turns = together(job("a"), job("b", max_slowdown=0.5), mode="time-slice")
    assert leaver(*in_turns) == ("a", "steps of b take 100% longer than alone, and it allows 50%")


def test_of_two_protected_jobs_one_leaves():
    assert leaver(*together(job("a", protect=True), job("b", protect=True))) == ("b", "more than one of them is protected")
