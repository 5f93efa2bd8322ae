"""A sweep trains many models as one; each member ends where its separate run ends."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from restow.cli.sweep import grid
from restow.errors import ScriptError, SpecError
from restow.sdk.blob import dump
from restow.sdk.boxes import StateTable
from restow.sdk.fuse import Sweep, sweep
from restow.sdk.fused_optimizer import KINDS, FusedOptimizer, complete
from restow.sdk.members import sweep_members

CLOSE = 2e-6  # after ten steps; sums in batched kernels are added up in another order than in a lone one


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mlp():
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))


def cnn(dropout: float = 0.0):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
        nn.Linear(128, 4),
    )  # fmt: skip


class Reader(nn.Module):
    """Embedding, one transformer block, and a head that shares the embedding's weight."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=True)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words):
        return self.head(self.block(self.words(words)))


def vectors(steps: int = 10, seed: int = 5):
    draws = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 20, generator=draws), torch.randint(0, 4, (6,), generator=draws)) for _ in range(steps)]


def pictures(steps: int = 10):
    draws = torch.Generator().manual_seed(6)
    return [(torch.randn(6, 1, 8, 8, generator=draws), torch.randint(0, 4, (6,), generator=draws)) for _ in range(steps)]


def texts(steps: int = 10):
    draws = torch.Generator().manual_seed(7)
    words = [torch.randint(0, 11, (3, 6), generator=draws) for _ in range(steps)]
    return [(line[:, :-1], line[:, 1:]) for line in words]


def loss_of(model, inputs, targets):
    return functional.cross_entropy(model(inputs).reshape(targets.numel(), -1), targets.reshape(-1))


MODELS = {"mlp": (mlp, vectors), "cnn": (cnn, pictures), "transformer": (Reader, texts)}
FOUR = [{"lr": 1e-3, "seed": 1}, {"lr": 1e-2, "seed": 2}, {"lr": 3e-3, "seed": 1, "weight_decay": 0.1}, {"lr": 1e-2, "seed": 4}]


def separate(make, settings, batches, kind="adamw", start=None):
    """(model, optimizer) of a plain torch run."""
    torch.manual_seed(settings.get("seed", 0))
    model = make()
    optimizer = KINDS[kind](model.parameters(), **{key: value for key, value in settings.items() if key != "seed"})
    if start:
        model.load_state_dict(start["model"])
        optimizer.load_state_dict(start["optimizer"])
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()
    return model, optimizer


def train(fused: Sweep, batches):
    for batch in batches:
        losses = fused.step(loss_of, *batch)
    return losses


def flat(state) -> dict[str, torch.Tensor]:
    """All tensors in a nest of dicts, by path."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": tensor for inner, tensor in flat(value).items()}
        elif isinstance(value, torch.Tensor):
            found[str(key)] = value
    return found


def distance(checkpoint, run) -> float:
    """Largest difference between a member's checkpoint and a run's model and optimizer, which must have the same keys."""
    model, optimizer = run
    mine = flat({"model": checkpoint["model"], "optimizer": checkpoint["optimizer"]["state"]})
    theirs = flat({"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]})
    assert mine.keys() == theirs.keys()
    return max(float((mine[key].double() - theirs[key].double()).abs().max()) for key in mine)


# ---------------------------------------------------------------- equal to separate runs


@pytest.mark.parametrize("name", MODELS)
def test_each_member_ends_where_its_separate_run_ends(name):
    make, batches_of = MODELS[name]
    fused = sweep(make, FOUR)
    train(fused, batches_of())
    for member, settings in enumerate(FOUR):
        run = separate(make, settings, batches_of())
        assert distance(fused.checkpoint(member), run) < CLOSE
        assert fused.checkpoint(member)["optimizer"]["param_groups"] == run[1].state_dict()["param_groups"]


@pytest.mark.parametrize("name", MODELS)
def test_with_exact_each_member_is_bit_equal_to_its_separate_run(name):
    make, batches_of = MODELS[name]
    fused = sweep(make, FOUR, exact=True)
    train(fused, batches_of())
    for member, settings in enumerate(FOUR):
        assert distance(fused.checkpoint(member), separate(make, settings, batches_of())) == 0


@pytest.mark.parametrize(("kind", "members"), [
    ("adam", [{"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.02, "betas": (0.8, 0.99)}, {"lr": 0.01, "eps": 1e-4}]),
    ("sgd", [{"lr": 0.1}, {"lr": 0.2, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}]),
    ("sgd", [{"lr": 0.1}, {"lr": 0.2}]),
    ("sgd", [{"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.1}]),
])  # fmt: skip
def test_every_optimizer_takes_numbers_per_member(kind, members):
    fused, exact = sweep(mlp, members, optimizer=kind), sweep(mlp, members, optimizer=kind, exact=True)
    train(fused, vectors())
    train(exact, vectors())
    for member, settings in enumerate(members):
        run = separate(mlp, settings, vectors(), kind)
        assert distance(fused.checkpoint(member), run) < CLOSE
        assert distance(exact.checkpoint(member), run) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_torchs_bit_for_bit_when_the_gradients_are(kind):
    numbers = [{"lr": 10.0 ** -number, "weight_decay": 0.03 * number} for number in range(1, 6)]
    if kind == "sgd":
        numbers = [{**own, "momentum": 0.17 * index, "nesterov": index in (2, 3)} for index, own in enumerate(numbers)]
    else:
        numbers = [{**own, "betas": (0.9 - 0.01 * index, 0.999 - 0.001 * index)} for index, own in enumerate(numbers)]
    draws = torch.Generator().manual_seed(1)
    shapes = {"wide": (70, 33), "odd": (7, 3), "one": (1,)}
    stacked = {name: torch.randn(5, *shape, generator=draws) for name, shape in shapes.items()}
    lone = [{name: nn.Parameter(tensor[member].clone()) for name, tensor in stacked.items()} for member in range(5)]
    optimizers = [KINDS[kind](list(own.values()), **n) for own, n in zip(lone, numbers, strict=True)]
    fused = FusedOptimizer(kind, {name: tensor[:0] for name, tensor in stacked.items()})
    fused.append([{}] * 5)
    for _ in range(20):
        gradients = {name: torch.randn(5, *shape, generator=draws) for name, shape in shapes.items()}
        fused.update(slice(0, 5), stacked, gradients, [complete(kind, n) for n in numbers], [n["lr"] for n in numbers])
        for member, optimizer in enumerate(optimizers):
            for name, parameter in lone[member].items():
                parameter.grad = gradients[name][member].clone()
            optimizer.step()
    for member, own in enumerate(lone):
        assert all(torch.equal(stacked[name][member], parameter) for name, parameter in own.items())


@pytest.mark.parametrize(("make", "batches_of"), [(lambda: cnn(0.4), pictures), (lambda: Reader(0.2), texts)])
@pytest.mark.parametrize("exact", [False, True])
def test_each_member_drops_out_what_its_separate_run_drops_out(make, batches_of, exact):
    own = torch.get_rng_state()
    fused = sweep(make, FOUR, exact=exact)
    train(fused, batches_of())
    assert torch.equal(torch.get_rng_state(), own)  # the members draw from their own
    for member, settings in enumerate(FOUR):
        far = distance(fused.checkpoint(member), separate(make, settings, batches_of()))
        assert far == 0 if exact else far < CLOSE


def test_batchnorm_keeps_statistics_for_each_member():
    fused = sweep(cnn, FOUR)
    train(fused, pictures(3))
    states = [fused.checkpoint(member)["model"] for member in fused.running]
    assert [int(state["1.num_batches_tracked"]) for state in states] == [3, 3, 3, 3]
    assert not torch.equal(states[0]["1.running_mean"], states[1]["1.running_mean"])


def test_a_schedule_counts_each_members_own_steps_as_lambda_lr_does():
    def rise(step, settings):
        return min(1.0, (step + 1) / settings["warm_up"])

    fused = sweep(mlp, [{"lr": 0.01, "warm_up": 4}, {"lr": 0.02, "warm_up": 8}], schedule=rise, exact=True)
    train(fused, vectors(6))
    late = fused.join({"lr": 0.01, "warm_up": 4})
    train(fused, vectors(6))
    assert fused.learning_rate(0) == 0.01
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    for batch in vectors(6):
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()
        schedule.step()
    assert distance(fused.checkpoint(late), (model, optimizer)) == 0


def test_each_member_can_have_a_batch_of_its_own():
    first, second = vectors(4, seed=1), vectors(4, seed=2)
    fused = sweep(mlp, FOUR[:2])
    for (a, x), (b, y) in zip(first, second, strict=True):
        fused.step(loss_of, torch.stack([a, b]), torch.stack([x, y]), each=True)
    assert distance(fused.checkpoint(0), separate(mlp, FOUR[0], first)) < CLOSE
    assert distance(fused.checkpoint(1), separate(mlp, FOUR[1], second)) < CLOSE
    with pytest.raises(ScriptError, match="must be 2, one batch for each"):
        fused.step(loss_of, *first[0], each=True)


@pytest.mark.parametrize("together", [1, 2, 3, 7])
def test_how_many_go_through_at_once_changes_nothing_but_rounding(together):
    members = [{"lr": 0.001 * (1 + member), "seed": member} for member in range(7)]
    fused = sweep(mlp, members, together=together)
    losses = train(fused, vectors())
    assert losses.shape == (7,)
    for member, settings in enumerate(members):
        assert distance(fused.checkpoint(member), separate(mlp, settings, vectors())) < CLOSE


def test_a_parameter_that_the_loss_does_not_use_stays_as_it_is():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(20, 4), nn.Linear(3, 3)

        def forward(self, inputs):
            return self.used(inputs)

    fused = sweep(Two, FOUR)
    train(fused, vectors(3))
    assert distance(fused.checkpoint(2), separate(Two, FOUR[2], vectors(3))) < CLOSE


def test_a_buffer_that_the_model_replaces_is_kept_too():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 4)
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, inputs):
            outputs = self.layer(inputs)
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
            return outputs - self.mean

    fused = sweep(Averaged, FOUR)
    train(fused, vectors(4))
    assert fused.checkpoint(3)["model"]["mean"].abs().sum() > 0
    assert distance(fused.checkpoint(3), separate(Averaged, FOUR[3], vectors(4))) < CLOSE


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    fused = sweep(lambda: cnn(0.5), FOUR)
    train(fused, pictures(3))
    before = pickle.loads(dump(fused.state_dict()))
    inputs, _ = pictures(1)[0]
    outputs = fused.evaluate(lambda model, inputs: model(inputs), inputs)
    assert outputs.shape == (4, 6, 4)
    for key, tensor in flat(before).items():
        assert torch.equal(flat(fused.state_dict())[key], tensor)
    model, _ = separate(lambda: cnn(0.5), FOUR[1], pictures(3))
    assert torch.allclose(outputs[1], model.eval()(inputs), atol=1e-5)
    fused.step(loss_of, *pictures(1)[0])  # in training mode again
    assert int(fused.checkpoint(0)["model"]["1.num_batches_tracked"]) == 4


# ---------------------------------------------------------------- joining, stopping


def test_who_joins_in_the_middle_starts_from_its_own_init_and_step_count():
    fused = sweep(mlp, FOUR[:2])
    train(fused, vectors(10)[:4])
    assert fused.join(FOUR[2]) == 2
    assert fused.running == (0, 1, 2)
    train(fused, vectors(10)[4:])
    assert [fused.steps_of(member) for member in fused.running] == [10, 10, 6]
    assert distance(fused.checkpoint(2), separate(mlp, FOUR[2], vectors(10)[4:])) < CLOSE
    assert distance(fused.checkpoint(0), separate(mlp, FOUR[0], vectors(10))) < CLOSE


def test_who_is_stopped_keeps_its_state_and_the_others_go_on():
    fused = sweep(cnn, FOUR)
    train(fused, pictures(10)[:5])
    fused.stop(1)
    assert (fused.running, fused.stopped) == ((0, 2, 3), (1,))
    assert train(fused, pictures(10)[5:]).shape == (3,)
    assert distance(fused.checkpoint(1), separate(cnn, FOUR[1], pictures(10)[:5])) < CLOSE
    assert distance(fused.checkpoint(3), separate(cnn, FOUR[3], pictures(10))) < CLOSE


def test_a_stopped_member_can_be_resumed():
    fused = sweep(lambda: cnn(0.3), FOUR, exact=True)
    train(fused, pictures(10)[:5])
    fused.stop(0)
    train(fused, pictures(10)[:3])
    fused.resume(0)
    assert fused.running == (1, 2, 3, 0)
    train(fused, pictures(10)[5:])
    assert distance(fused.checkpoint(0), separate(lambda: cnn(0.3), FOUR[0], pictures(10))) == 0


def test_the_last_one_may_stop_and_another_may_come():
    fused = sweep(mlp, FOUR[:1])
    fused.stop(0)
    with pytest.raises(ScriptError, match=r"no member runs; join or resume one"):
        fused.step(loss_of, *vectors(1)[0])
    fused.join(FOUR[1])
    train(fused, vectors())
    assert distance(fused.checkpoint(1), separate(mlp, FOUR[1], vectors())) < CLOSE


def test_settings_can_change_on_the_way():
    fused = sweep(mlp, FOUR[:2], exact=True)
    train(fused, vectors(8)[:4])
    fused.change(1, lr=0.05)
    train(fused, vectors(8)[4:])
    start = separate(mlp, FOUR[1], vectors(8)[:4])
    state = {"model": start[0].state_dict(), "optimizer": start[1].state_dict()}
    state["optimizer"]["param_groups"][0]["lr"] = 0.05
    assert distance(fused.checkpoint(1), separate(mlp, FOUR[1], vectors(8)[4:], start=state)) == 0


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_goes_on_in_a_separate_run_and_a_separate_run_goes_on_in_a_sweep(kind):
    members = [{"lr": 0.01, "seed": 1}, {"lr": 0.02, "seed": 2, **({"momentum": 0.9} if kind == "sgd" else {})}]
    fused = sweep(mlp, members, optimizer=kind, exact=True)
    train(fused, vectors(9)[:3])
    model, optimizer = separate(mlp, members[1], vectors(9)[3:6], kind, start=fused.checkpoint(1))
    other = sweep(mlp, members[:1], optimizer=kind, exact=True)
    back = other.join(members[1], {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 6})
    train(other, vectors(9)[6:])
    assert other.steps_of(back) == 9
    assert distance(other.checkpoint(back), separate(mlp, members[1], vectors(9), kind)) == 0


def test_a_sweep_is_state_that_goes_on_bit_for_bit_elsewhere():
    def make():
        return cnn(0.3)

    here = sweep(make, FOUR)
    train(here, pictures(10)[:4])
    here.stop(2)
    here.join({"lr": 0.02, "seed": 9})
    saved = dump(here.state_dict())
    train(here, pictures(10)[4:])

    there = sweep(make, FOUR[:1])  # a twin, after a rehearsal
    train(there, pictures(2))
    there.load_state_dict(pickle.loads(saved))
    assert (there.running, there.stopped) == ((0, 1, 3, 4), (2,))
    train(there, pictures(10)[4:])
    mine, theirs = flat(here.state_dict()), flat(there.state_dict())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_a_sweep_travels_in_the_private_state_of_a_job():
    here, there = sweep(mlp, FOUR), sweep(mlp, FOUR[:1])
    train(here, vectors(3))
    blob = StateTable({"sweep": here}).capture_private({})
    StateTable({"sweep": there}).install_private(blob)
    assert torch.equal(train(here, vectors(2)), train(there, vectors(2)))


def test_making_a_sweep_draws_nothing_from_the_scripts_generators():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    sweep(lambda: cnn(0.5), FOUR)
    assert torch.equal(torch.rand(2), expected)


# ---------------------------------------------------------------- what is refused


class Choosy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, 4)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs if outputs.sum() > 0 else -outputs


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(20, 4)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs + 0.1 * torch.randn_like(outputs)


class Writing(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(20))
        self.layer = nn.Linear(20, 4)

    def forward(self, inputs):
        shifted = torch.zeros_like(inputs)
        shifted += inputs * self.shift
        return self.layer(shifted)


@pytest.mark.parametrize(("kind", "reason"), [
    (Choosy, "what it does next depends on a tensor's values"),
    (Noisy, "it draws random numbers other than dropout"),
    (Writing, "it writes a member's own numbers in place into a tensor that all members share"),
])  # fmt: skip
def test_a_module_that_cannot_be_stacked_is_named_with_the_way_out(kind, reason):
    def make():
        return nn.Sequential(nn.Identity(), kind())

    with pytest.raises(ScriptError) as refused:
        sweep(make, FOUR).step(loss_of, *vectors(1)[0])
    assert str(refused.value).startswith(f"module 1 ({kind.__name__}) cannot be trained with its members stacked: {reason}")
    assert "exact=True" in str(refused.value)
    assert "\n" not in str(refused.value)
    fused = sweep(make, FOUR, exact=True)
    train(fused, vectors())
    assert distance(fused.checkpoint(1), separate(make, FOUR[1], vectors())) == 0


def test_the_scripts_own_mistake_is_shown_as_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sweep(mlp, FOUR).step(loss_of, torch.randn(6, 21), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ScriptError, match=r"returned a tensor of shape \(6,\); return one number per member"):
        sweep(mlp, FOUR).step(lambda model, x, y: functional.cross_entropy(model(x), y, reduction="none"), *vectors(1)[0])


@pytest.mark.parametrize(("members", "how", "line"), [
    ([], {}, "members is []; give a list with a dict"),
    ([0.1], {}, "a member is 0.1; give a dict of settings"),
    ([{"weigth_decay": 1}], {}, "a member has the setting 'weigth_decay'; did you mean 'weight_decay'?"),
    ([{"momentum": 0.9}], {}, "momentum is 0.9, but a fused adamw takes lr, betas, eps, weight_decay; leave it out"),
    ([{"lr": -1}], {}, "Invalid learning rate: -1"),
    ([{}], {"optimizer": "lion"}, "optimizer is 'lion'; a sweep has adamw, adam, sgd"),
    ([{}], {"together": 0}, "together is 0; give the number of members per pass"),
])  # fmt: skip
def test_wrong_members_are_refused_in_one_line(members, how, line):
    with pytest.raises(ScriptError) as refused:
        sweep(mlp, members, **how)
    assert line in str(refused.value)


def test_models_that_are_not_built_alike_are_refused():
    sizes = iter((8, 9))
    with pytest.raises(ScriptError, match=r"make_model built Linear\(in_features=9.* fused members differ in numbers only"):
        sweep(lambda: nn.Linear(next(sizes), 2), [{}, {}])
    rates = iter((0.1, 0.2))
    with pytest.raises(ScriptError, match=r"Dropout\(p=0.2"):
        sweep(lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(next(rates))), [{}, {}])
    with pytest.raises(ScriptError, match="make_model returned a NoneType"):
        sweep(lambda: None, [{}])
    with pytest.raises(ScriptError, match="does not know its shape yet"):
        sweep(lambda: nn.LazyLinear(2), [{}])


def test_a_member_that_is_not_there_is_named():
    fused = sweep(mlp, FOUR[:2])
    with pytest.raises(ScriptError, match="there is no member 7; the sweep has 0, 1"):
        fused.stop(7)
    fused.stop(1)
    with pytest.raises(ScriptError, match="member 1 was stopped already, after 0 steps"):
        fused.stop(1)
    with pytest.raises(ScriptError, match="member 0 was not stopped"):
        fused.resume(0)


def test_state_of_another_sweep_is_refused_before_anything_changes():
    fused, other = sweep(mlp, FOUR[:2]), sweep(lambda: nn.Linear(20, 4), FOUR[:2])
    with pytest.raises(ScriptError, match=r"exists only in"):
        fused.load_state_dict(other.state_dict())
    with pytest.raises(ScriptError, match="the state is of a sweep with sgd, this one has adamw"):
        fused.load_state_dict(sweep(mlp, [{"lr": 0.1}], optimizer="sgd").state_dict())
    assert fused.running == (0, 1)


# ---------------------------------------------------------------- members from the command line


def test_a_grid_has_every_combination_and_the_last_key_changes_fastest():
    assert grid(["lr=1e-3,.1", "seed=1,2"]) == [
        {"lr": 0.001, "seed": 1}, {"lr": 0.001, "seed": 2}, {"lr": 0.1, "seed": 1}, {"lr": 0.1, "seed": 2}
    ]  # fmt: skip
    assert grid(["betas=[0.9,0.999],[0.8,0.99]", "nesterov=true"]) == [
        {"betas": [0.9, 0.999], "nesterov": True}, {"betas": [0.8, 0.99], "nesterov": True}
    ]  # fmt: skip
    assert grid(["kind=plain,true"]) == [{"kind": "plain"}, {"kind": True}]


@pytest.mark.parametrize(("sets", "line"), [
    ([], "nothing to sweep; give at least one --set"),
    (["lr"], "--set is 'lr'; write KEY=value,value"),
    (["lr=1", "lr=2"], "--set lr is given twice"),
])  # fmt: skip
def test_a_wrong_grid_is_refused_in_one_line(sets, line):
    with pytest.raises(SpecError) as refused:
        grid(sets)
    assert str(refused.value).startswith(line)


def test_the_script_gets_the_grid_or_its_own_default(monkeypatch):
    monkeypatch.delenv("RESTOW_SWEEP", raising=False)
    assert sweep_members(default=[{"lr": 1}]) == [{"lr": 1}]
    monkeypatch.setenv("RESTOW_SWEEP", '[{"lr": 0.1}, {"lr": 0.2}]')
    assert sweep_members(default=[{"lr": 1}]) == [{"lr": 0.1}, {"lr": 0.2}]
    monkeypatch.setenv("RESTOW_SWEEP", '{"lr": 0.1}')
    with pytest.raises(ScriptError, match="must be a JSON list with one object per member"):
        sweep_members(default=[])


@pytest.mark.slow
def test_the_example_stops_the_worse_and_reads_digits(examples, tmp_path):
    pytest.importorskip("sklearn", reason="the example needs scikit-learn")
    command = [sys.executable, str(examples / "sweep_digits.py"), "--steps", "40", "--width", "4", "--save", str(tmp_path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert text.count("stopped at loss") == 4  # 6, 3, 2
    assert text.count("test accuracy") == 2
    assert len(list(tmp_path.glob("member*.pt"))) == 6
