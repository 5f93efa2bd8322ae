"""State by name: what travels, what does not, and that it comes back bit by bit into the very same tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from restow.errors import ScriptError
from restow.sdk import randomness
from restow.sdk.boxes import Gradients, StateTable


class Job:
    """A small training loop with everything that must travel: BatchNorm, dropout, AdamW, a schedule."""

    def __init__(self, seed: int, optimizer: str = "AdamW"):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
        options: dict[str, Any] = {"momentum": 0.9} if optimizer == "SGD" else {}
        self.optimizer = getattr(torch.optim, optimizer)(self.model.parameters(), lr=0.1, **options)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, gamma=0.5)
        self.table = StateTable({"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule})

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(torch.randn(4, 6)).square().sum()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def move(there: StateTable, here: StateTable) -> dict[str, Any]:
    """What a switch does, without the network."""
    for name, tensor in here.tensors().items():
        tensor.copy_(there.tensors()[name])
    return here.install_private(there.capture_private({"step": 3}))


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adagrad", "RMSprop"])
def test_a_twin_goes_on_bit_by_bit_where_the_job_was(optimizer: str):
    job, twin = Job(1, optimizer), Job(2, optimizer)
    twin.step()
    for _ in range(3):
        job.step()
    addresses = {name: tensor.data_ptr() for name, tensor in twin.table.tensors().items()}
    lr_before = twin.optimizer.param_groups[0]["lr"]
    blob = job.table.capture_private({"step": 3})
    for name, tensor in twin.table.tensors().items():
        tensor.copy_(job.table.tensors()[name])
    job_losses = [job.step() for _ in range(4)]
    assert twin.table.read_extra(blob) == {"step": 3}
    assert twin.table.install_private(blob) == {"step": 3}
    assert twin.optimizer.param_groups[0]["lr"] != lr_before
    assert [twin.step() for _ in range(4)] == job_losses
    assert {name: tensor.data_ptr() for name, tensor in twin.table.tensors().items()} == addresses


def test_names_are_those_of_the_module_inside_ddp_and_compile():
    model = nn.Linear(2, 2)
    plain = StateTable({"model": model})
    assert list(plain.tensors()) == ["model.weight", "model.bias"]
    assert list(StateTable({"model": nn.DataParallel(model)}).tensors()) == ["model.weight", "model.bias"]
    compiled = nn.Module()  # what torch.compile returns keeps the module under this name; making one here takes 10 s
    compiled._orig_mod = model
    assert StateTable({"model": nn.DataParallel(compiled)}).signature() == plain.signature()


def test_tensors_are_the_live_ones_and_shared_parameters_come_once():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model["a"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    table = StateTable({"model": model, "optimizer": optimizer})
    tensors = table.tensors()
    assert list(tensors) == ["model.a.weight", "optimizer.0.step", "optimizer.0.exp_avg", "optimizer.0.exp_avg_sq"]
    assert tensors["model.a.weight"].data_ptr() == model["a"].weight.data_ptr()
    assert tensors["optimizer.0.exp_avg"] is optimizer.state[model["a"].weight]["exp_avg"]
    assert table.state_bytes() == 3 * 9 * 4 + 4


def test_parameters_that_only_an_optimizer_knows_travel_too():
    temperature = nn.Parameter(torch.ones(1))
    table = StateTable({"optimizer": torch.optim.SGD([temperature], lr=1.0)})
    assert list(table.tensors()) == ["optimizer.0"]


def test_what_is_not_moved_in_place_travels_in_the_blob():
    class History:
        def __init__(self, losses: list[float]):
            self.losses, self.best = losses, torch.tensor(9.0)

        def state_dict(self) -> dict[str, Any]:
            return {"losses": self.losses, "best": self.best}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.losses, self.best = state["losses"], state["best"]

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("mask", torch.zeros(1, 3).expand(4, 3), persistent=False)
            self.register_buffer("halves", torch.zeros(3, dtype=torch.bfloat16))
            self.register_buffer("flags", torch.zeros(5, dtype=torch.bool))
            self.register_buffer("empty", torch.zeros(0))
            self.notes = "a"

        def get_extra_state(self) -> str:
            return self.notes

        def set_extra_state(self, state: str) -> None:
            self.notes = state

    def table(value: float) -> tuple[Counting, History, torch.Tensor, torch.Generator, StateTable]:
        model, history, ema = Counting(), History([value]), torch.full((2,), value)
        model.seen.fill_(int(value))
        model.mask[:1].fill_(value)
        model.halves.fill_(value)
        model.flags.fill_(value > 1)
        model.notes = str(value)
        model.train(value > 1)
        generator = torch.Generator().manual_seed(int(value))
        objects = {"model": model, "history": history, "ema": ema, "generator": generator}
        return model, history, ema, generator, StateTable(objects)

    *_, there = table(7.0)
    model, history, ema, generator, here = table(1.0)
    here.install_private(there.capture_private({}))
    assert (model.seen.item(), model.mask[3, 2].item(), model.halves[2].item()) == (7, 7.0, 7.0)
    assert model.flags.all() and model.notes == "7.0" and model.training
    assert history.losses == [7.0] and ema.tolist() == [7.0, 7.0]
    assert generator.initial_seed() == 7
    assert "history.best" in here.private_tensors() and "model.mask" in here.private_tensors()


def test_a_learning_rate_that_is_a_tensor_stays_the_same_tensor():
    def table(lr: float) -> tuple[torch.Tensor, StateTable]:
        rate = torch.tensor(lr)
        return rate, StateTable({"optimizer": torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=rate)})

    _, there = table(0.25)
    rate, here = table(0.5)
    here.install_private(there.capture_private({}))
    assert rate.item() == 0.25


def test_random_generators_continue_after_a_move():
    job, twin = Job(1), Job(2)
    job.step()
    twin.step()
    blob = job.table.capture_private({})
    drawn = (random.random(), numpy.random.rand(), torch.rand(1).item())
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    twin.table.install_private(blob)
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == drawn


def test_a_bubble_repeats_and_disturbs_nobody():
    before = randomness.capture()
    first, second = randomness.Bubble(3), randomness.Bubble(3)
    with first.inside():
        drawn = [torch.rand(1).item()]
    with first.inside():
        drawn.append(random.random())
    with second.inside():
        assert [torch.rand(1).item(), random.random()] == drawn
    assert randomness.capture().torch == before.torch
    assert randomness.capture().python == before.python


# ---------------------------------------------------------------- honest errors


def test_state_that_only_one_side_has_yet_is_named():
    job, twin = Job(1), Job(2)
    job.step()
    with pytest.raises(ScriptError, match=r"optimizer\.0\.exp_avg exists there but not here"):
        twin.table.install_private(job.table.capture_private({}))


def test_another_model_is_named_and_nothing_is_written():
    there = StateTable({"model": nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))})
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(8))
    with pytest.raises(ScriptError, match=r"model\.1\.running_mean is \(4,\) torch.float32 there and \(8,\)"):
        StateTable({"model": model}).install_private(there.capture_private({}))
    carried = StateTable({"model": model, "history": torch.Generator()})
    with pytest.raises(ScriptError, match=r"others: history exists only here"):
        carried.install_private(there.capture_private({}))


def test_a_parameter_frozen_on_one_side_only_is_named():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    blob = StateTable({"model": model}).capture_private({})
    with pytest.raises(ScriptError, match=r"model\.weight has requires_grad=False there and True here"):
        StateTable({"model": nn.Linear(2, 2)}).install_private(blob)


def test_what_cannot_be_carried_is_refused_at_once():
    with pytest.raises(ScriptError, match="meter is a list without state_dict"):
        StateTable({"meter": [1, 2]})
    with pytest.raises(ScriptError, match=r"table is a torch\.sparse_coo tensor"):
        StateTable({"table": torch.eye(3).to_sparse()}).private_tensors()


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(ScriptError, match="the state of note cannot be pickled"):
        StateTable({"model": nn.Linear(1, 1)}).capture_private({"note": lambda: 1})


def test_the_signature_tells_another_order_or_another_optimizer():
    def signature(width: int = 3, optimizer: str = "SGD", groups: bool = False) -> str:
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 3))
        parameters: Any = [{"params": [*part.parameters()]} for part in model] if groups else model.parameters()
        return StateTable({"m": model, "o": getattr(torch.optim, optimizer)(parameters, lr=0.1)}).signature()

    assert signature() == signature()
    assert len({signature(), signature(width=4), signature(optimizer="Adam"), signature(groups=True)}) == 4


# ---------------------------------------------------------------- gradients


def live_after(*iterations: str) -> list[str]:
    """Status at the save point after each iteration; a word of letters: z zero_grad, Z the same with zeros kept, n every
    grad = None, b backward, s step."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    table = StateTable({"model": model, "optimizer": optimizer})
    seen = []
    for letters in iterations:
        for letter in letters:
            if letter == "b":
                model(torch.ones(1, 2)).sum().backward()
            elif letter == "s":
                optimizer.step()
            elif letter == "r":  # what a shadow does: updates with gradients of its own, nobody clears them
                table.watch.pause()
                for parameter in model.parameters():
                    parameter.grad = torch.ones_like(parameter)
                optimizer.step()
                for parameter in model.parameters():
                    parameter.grad = None
                table.watch.resume()
            elif letter == "n":
                for parameter in model.parameters():
                    parameter.grad = None
            else:
                optimizer.zero_grad(set_to_none=letter == "z")
        status = table.watch.status("optimizer")
        has_any = any(p.grad is not None for p in model.parameters())
        assert (status is Gradients.LIVE and has_any) == any(name.endswith(".grad") for name in table.private_tensors())
        seen.append(status.value if has_any else "none")
    return seen


def test_gradients_that_the_script_clears_first_are_spent_once_that_was_seen():
    assert live_after("zbs", "zbs", "zbs") == ["live", "spent", "spent"]
    assert live_after("Zbs", "Zbs") == ["live", "spent"]
    assert live_after("nbs", "nbs", "nbs") == ["live", "spent", "spent"]


def test_updates_that_a_shadow_repeats_teach_nothing_about_the_script():
    assert live_after("zbs", "zbs", "r", "r", "zbs", "zbs") == ["live", "spent", "none", "none", "spent", "spent"]


def test_gradients_cleared_after_the_step_are_none_or_zero():
    assert live_after("bsz", "bsz") == ["none", "none"]
    assert live_after("bsZ", "bsZ") == ["zero", "zero"]


def test_accumulated_gradients_are_live_between_the_steps_only():
    assert live_after("b", "b", "bsz", "b", "bsz") == ["live", "live", "none", "live", "none"]
    assert live_after("zb", "bs", "zb", "bs", "zb") == ["live", "live", "live", "spent", "live"]


def test_gradients_that_are_never_cleared_are_live():
    assert live_after("bs", "bs", "bs") == ["live"] * 3
    assert live_after("zbs", "zbs", "bs", "zbs") == ["live", "spent", "live", "live"]


def test_a_backward_after_the_step_makes_them_live():
    assert live_after("zbs", "zbsb", "zbs") == ["live", "live", "live"]  # and from then on we don't trust it


def test_live_gradients_arrive_and_absent_ones_stay_absent():
    def table() -> tuple[nn.Linear, StateTable]:
        model = nn.Linear(2, 2)
        return model, StateTable({"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})

    (model, there), (twin, here) = table(), table()
    model(torch.ones(1, 2)).sum().backward()
    model.bias.grad = None
    twin(torch.ones(1, 2)).mean().backward()
    here.install_private(there.capture_private({}))
    assert twin.weight.grad is not None and torch.equal(twin.weight.grad, model.weight.grad)
    assert twin.bias.grad is None


@pytest.mark.parametrize(("letters", "bytes_of_gradients"), [("zbszbs", 0), ("bszbsz", 0), ("bsZbsZ", 0), ("zbszb", 24)])
def test_what_is_known_of_gradients_travels_with_them(letters, bytes_of_gradients):
    def table() -> tuple[nn.Linear, torch.optim.Optimizer, StateTable]:
        model = nn.Linear(2, 2)
        model.unused = nn.Parameter(torch.ones(5))  # never has a gradient
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, StateTable({"model": model, "optimizer": optimizer})

    def act(model: nn.Linear, optimizer: torch.optim.Optimizer, letters: str) -> None:
        for letter in letters:
            if letter == "b":
                model(torch.ones(1, 2)).sum().backward()
            elif letter == "s":
                optimizer.step()
            else:
                optimizer.zero_grad(set_to_none=letter == "z")

    (model, optimizer, there), (twin, updating, here) = table(), table()
    act(model, optimizer, letters)
    act(twin, updating, "zbs")  # its rehearsal
    here.watch.pause()
    here.watch.resume()  # it was a shadow meanwhile
    assert here.private_bytes() == 24  # two by two and two numbers, which may be needed for all we know
    here.install_private(there.capture_private({}))
    assert here.private_bytes() == there.private_bytes() == bytes_of_gradients


def test_closing_takes_the_hooks_off():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    table = StateTable({"optimizer": optimizer})
    table.close()
    assert "zero_grad" not in optimizer.__dict__
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("draws", [0, 1, 2, 3, 700])
def test_numpys_generator_is_captured_after_any_draw(draws):
    """Every second normal number leaves its memory as it was."""
    numpy.random.seed(3)
    randomness.capture()
    numpy.random.randn()
    randomness.capture()
    for _ in range(draws):
        numpy.random.randn()
    kept = randomness.capture()
    expected = [numpy.random.randn(), numpy.random.rand(), numpy.random.randn()]
    numpy.random.seed(9)
    randomness.restore(kept)
    assert [numpy.random.randn(), numpy.random.rand(), numpy.random.randn()] == expected


@pytest.mark.parametrize("draws", [0, 1, 2, 3, 700])
def test_pythons_generator_is_captured_after_any_draw(draws):
    random.seed(3)
    randomness.capture()
    random.gauss(0, 1)
    randomness.capture()
    for _ in range(draws):
        random.gauss(0, 1)
    kept = randomness.capture()
    expected = [random.gauss(0, 1), random.random(), random.gauss(0, 1)]
    random.seed(9)
    randomness.restore(kept)
    assert [random.gauss(0, 1), random.random(), random.gauss(0, 1)] == expected


def replaced(change: str) -> dict[str, torch.Tensor]:
    """The tensors of a table that was asked before, after something of what it lists was replaced."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    table = StateTable({"model": model, "optimizer": optimizer})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    table.tensors()
    state = optimizer.state[model.weight]
    if change == "parameter":
        model.register_parameter("weight", nn.Parameter(torch.full((2, 2), 7.0)))
    elif change == "values of a parameter":
        model.weight.data = torch.full((2, 2), 7.0)
    elif change == "another group":
        optimizer.add_param_group({"params": [nn.Parameter(torch.full((2, 2), 7.0))]})
    elif change == "state":
        state["exp_avg"] = torch.full((2, 2), 7.0)
    elif change == "values of state":
        state["exp_avg"].data = torch.full((2, 2), 7.0)
    elif change == "more state":
        state["further"] = torch.full((2, 2), 7.0)
    elif change == "all state":
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.state[model.weight]["exp_avg"].fill_(7.0)
    return table.tensors()


@pytest.mark.parametrize("change", [
    "parameter", "values of a parameter", "another group", "state", "values of state", "more state", "all state",
])  # fmt: skip
def test_what_was_replaced_is_found(change):
    assert [name for name, tensor in replaced(change).items() if torch.equal(tensor, torch.full((2, 2), 7.0))]


def test_what_an_optimizer_holds_besides_tensors_is_always_looked_at():
    def table() -> tuple[dict[str, Any], StateTable]:
        optimizer = torch.optim.SGD([parameter := nn.Parameter(torch.ones(1))], lr=0.1)
        optimizer.state[parameter]["history"] = [1]
        return optimizer.state[parameter], StateTable({"optimizer": optimizer})

    (state, there), (twin, here) = table(), table()
    for change in (lambda: None, lambda: state["history"].append(2), lambda: state.update(history=[3])):
        change()
        here.install_private(there.capture_private({}))
        assert twin["history"] == state["history"]


def test_what_hardly_ever_changes_is_seen_when_it_does():
    def table() -> tuple[nn.Module, torch.optim.Optimizer, StateTable]:
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, StateTable({"model": model, "optimizer": optimizer})

    (model, optimizer, there), (twin, updating, here) = table(), table()
    there.capture_private({})
    model[1].eval()
    optimizer.param_groups[0]["lr"] = 0.3
    model[1].running_mean.fill_(5.0)
    model[0].weight.grad = torch.full((2, 2), 3.0)
    assert here.install_private(there.capture_private({"step": 4})) == {"step": 4}
    assert [part.training for part in twin] == [True, False]
    assert updating.param_groups[0]["lr"] == 0.3
    assert twin[1].running_mean.tolist() == [5.0, 5.0]
    assert twin[0].weight.grad.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    model[0].weight.grad = None
    here.install_private(there.capture_private({}))
    assert twin[0].weight.grad is None
    model[0].weight.requires_grad_(False)
    with pytest.raises(ScriptError, match=r"model\.0\.weight has requires_grad=False there"):
        here.install_private(there.capture_private({}))
