import json

from restow.demo.alone import compare

LOSSES = [(2.5).hex(), (1.25).hex(), (1.0).hex()]


def written(folder, name, *ranks):
    for rank, (losses, sha256) in enumerate(ranks):
        path = folder / (name if rank == 0 else f"{name}.rank{rank}")
        path.write_text(json.dumps({"losses": losses, "sha256": sha256}))
    return folder / name


def test_equal_losses_and_parameters_of_every_rank_are_identical(tmp_path):
    moved, alone = (written(tmp_path, name, (LOSSES, "a"), (LOSSES, "a")) for name in ("moved", "alone"))
    equal = compare(moved, alone, workers=2)
    assert (equal.is_identical, equal.steps) == (True, 3)


def test_one_bit_in_one_loss_of_one_rank_is_found_and_named(tmp_path):
    moved = written(tmp_path, "moved", (LOSSES, "a"), ([*LOSSES[:2], (1.0000000000000002).hex()], "a"))
    alone = written(tmp_path, "alone", (LOSSES, "a"), (LOSSES, "a"))
    assert compare(moved, alone, workers=2).why_not == "rank 1: the losses differ from step 3 on"


def test_a_step_too_few_is_found(tmp_path):
    moved, alone = written(tmp_path, "moved", (LOSSES[:2], "a")), written(tmp_path, "alone", (LOSSES, "a"))
    assert compare(moved, alone, workers=1).why_not == "rank 0: the losses differ from step 3 on"


def test_other_parameters_are_found(tmp_path):
    moved, alone = written(tmp_path, "moved", (LOSSES, "a")), written(tmp_path, "alone", (LOSSES, "b"))
    assert compare(moved, alone, workers=1).why_not == "rank 0: the final parameters differ"


def test_a_run_that_wrote_nothing_is_not_identical(tmp_path):
    alone = written(tmp_path, "alone", (LOSSES, "a"))
    assert compare(tmp_path / "moved", alone, workers=1).why_not == "rank 0 of the job that was moved wrote no digest"
