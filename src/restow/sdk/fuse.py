"""A sweep: many small models of the same shape, trained as one in one process.

    sweep = restow.sweep(make_model, [{"lr": 1e-3, "seed": 1}, {"lr": 1e-2, "seed": 1}], optimizer="adamw")
    job.prepare(sweep)
    for images, labels in job.steps(loader, total=1000):
        losses = sweep.step(loss_of, images, labels)          # one for each of sweep.running
        for member, loss in zip(sweep.running, losses.tolist()):
            if loss > 10: sweep.stop(member)                  # the others go on, and faster

    def loss_of(model, images, labels):                       # written for one model
        return cross_entropy(model(images), labels)

What a member is: after `torch.manual_seed(seed)` its model is made, and nobody else draws from its generator (its dropout
does); its optimizer is torch's own with its settings; its learning rate is `lr * schedule(steps made, settings)`. So its
checkpoint is that of a separate run that sees the same batches. Bit for bit on a CPU: always with `exact=True`; without it
with one thread (MKL, AVX2) for models of the layers in fused_layers.py; else up to the rounding of sums that batched
kernels add up in another order, which Adam can magnify where a gradient is zero but for rounding (the bias of a convolution
before BatchNorm, of attention's keys). On a GPU two separate runs of a convolution differ from each other already, and `exact`
comes as near as that. Does not know where data comes from; a sweep is one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from restow.errors import ScriptError
from restow.sdk.fused_batch import merged
from restow.sdk.fused_draws import Draws
from restow.sdk.fused_member import Member, Settings, make_as_alone, read
from restow.sdk.fused_model import LossFunction, Stack
from restow.sdk.fused_optimizer import KINDS, FusedOptimizer

Schedule = Callable[[int, Settings], float]

FIRST_TOGETHER = 16  # members per pass on a CPU while it is not known how much memory one needs
PASS_BYTES = 28 << 20  # of the biggest tensor of a pass on a CPU: malloc gives more than 32 MB back at once, and fetches it anew


class Sweep:
    """Models that train side by side. Made by `restow.sweep`; state in the sense of `job.prepare` and `job.carry`."""

    updates_itself = True  # for job.steps: there is no torch optimizer to give to job.prepare

    def __init__(
        self,
        make_model: Callable[[], nn.Module],
        members: Sequence[Settings],
        *,
        optimizer: str = "adamw",
        schedule: Schedule | None = None,
        device: torch.device | str | None = None,
        fused: bool = False,
        exact: bool = False,
        together: int | None = None,
    ):
        if optimizer not in KINDS:
            raise ScriptError(f"optimizer is {optimizer!r}; a sweep has {', '.join(KINDS)}")
        if together is not None and together < 1:
            raise ScriptError(f"together is {together}; give the number of members per pass, or leave it out")
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise ScriptError(f"a sweep is one process, this job has {dist.get_world_size()}; submit it with one worker")
        self._make, self._schedule, self._exact, self._together = make_model, schedule, exact, together
        self._kind, self._fused, self._device = optimizer, fused, None if device is None else torch.device(device)
        self._members: dict[int, Member] = {}  # all that there ever were, by number
        self._running: list[int] = []  # in the order of the rows
        self._stopped: dict[int, dict[str, Any]] = {}  # number → its tensors and optimizer state
        self._next = 0
        self._stack: Stack | None = None
        self._optimizer: FusedOptimizer | None = None
        if not isinstance(members, Sequence) or not members:
            raise ScriptError(
                f"members is {members!r}; give a list with a dict of settings per member, for example [{{'lr': 0.1}}]"
            )
        self._add([(settings, None) for settings in members])

    # ------------------------------------------------------------ members

    @property
    def running(self) -> tuple[int, ...]:
        """The members that train, in the order of `step`'s losses. Numbered from 0 as they came."""
        return tuple(self._running)

    @property
    def stopped(self) -> tuple[int, ...]:
        return tuple(self._stopped)

    def settings(self, member: int) -> dict[str, Any]:
        """What the member was given, with what `change` changed."""
        return dict(self._known(member).settings)

    def steps_of(self, member: int) -> int:
        """Updates that this member has made."""
        return self._known(member).steps

    def learning_rate(self, member: int) -> float:
        """Of the member's next update."""
        known = self._known(member)
        factor = self._schedule(known.steps, known.settings) if self._schedule else 1.0
        return float(known.numbers["lr"]) * factor

    def join(self, settings: Settings, checkpoint: Mapping[str, Any] | None = None) -> int:
        """Begin to train one more member, from its own init and step 0, or from a `checkpoint` (a member's, or a separate
        run's: "model", "optimizer", and if you have them "step" and "random"). Returns its number."""
        return self._add([(settings, checkpoint)])[0]

    def stop(self, member: int) -> None:
        """Train the member no further; its state is kept and the others move up. `resume` is the way back."""
        known = self._known(member)
        if member not in self._running:
            raise ScriptError(f"member {member} was stopped already, after {known.steps} steps")
        self._stopped[member] = _copied(self._row(member))
        left = [index for index, other in enumerate(self._running) if other != member]
        self._parts[0].keep(left)
        self._parts[1].keep(left)
        self._running.remove(member)

    def resume(self, member: int) -> None:
        """Go on with a stopped member where it stopped."""
        self._known(member)
        if member not in self._stopped:
            raise ScriptError(f"member {member} was not stopped; it trains")
        row = self._stopped.pop(member)
        self._parts[0].append([row["tensors"]])
        self._parts[1].append([row["optimizer"]])
        self._running.append(member)

    def change(self, member: int, **settings: Any) -> None:
        """New settings for a member from its next step on, for example `lr=1e-4`. Its seed stays."""
        known = self._known(member)
        if "seed" in settings:
            raise ScriptError(f"member {member} was made from its seed; join another member to have another seed")
        known.numbers = read(self._kind, {**known.settings, **settings})
        known.settings.update(settings)

    # ------------------------------------------------------------ training

    def step(self, function: LossFunction, *batch: Any, each: bool = False) -> Tensor:
        """One update of every running member on this batch; returns their losses before it, (running,), detached.

        `function(model, *batch)` gives one member's loss as a tensor without dimensions. All members see the same batch; with
        `each=True` every tensor in it has a dimension of running members in front, one batch for each.
        """
        stack, optimizer = self._parts
        losses = []
        for rows in self._passes(batch if each else ()):
            draws = [self._members[number].draws for number in self._running[rows]]
            loss, gradients = stack.gradients(rows, function, batch, each, draws, self._exact)
            here = [self._members[number] for number in self._running[rows]]
            rates = [self.learning_rate(number) for number in self._running[rows]]
            optimizer.update(rows, stack.parameters, gradients, [member.numbers for member in here], rates)
            losses.append(loss)
        for number in self._running:
            self._members[number].steps += 1
        return torch.cat(losses)

    def evaluate(self, function: LossFunction, *batch: Any, each: bool = False) -> Any:
        """What `function(model, *batch)` gives for every running member, stacked; models in evaluation mode, no gradients."""
        stack, _ = self._parts
        found = []
        for rows in self._passes(batch if each else ()):
            draws = [self._members[number].draws for number in self._running[rows]]
            found.append(stack.results(rows, function, batch, each, draws, self._exact))
        return merged(found, torch.cat)

    def _passes(self, own_batches: tuple[Any, ...]) -> Iterator[slice]:
        count = len(self._running)
        if not count:
            raise ScriptError("no member runs; join or resume one, or leave the loop when sweep.running is empty")
        for tensor in own_batches:
            if isinstance(tensor, Tensor) and (not tensor.dim() or len(tensor) != count):
                raise ScriptError(
                    f"each=True was given a batch of shape {tuple(tensor.shape)}; its first dimension must be {count}, "
                    "one batch for each of sweep.running"
                )
        stack, _ = self._parts
        size = self._together or count
        if not self._together and stack.device.type == "cpu":
            size = max(1, PASS_BYTES // stack.biggest_bytes) if stack.biggest_bytes else FIRST_TOGETHER
        parts = -(-count // size)
        for part in range(parts):  # of equal size, so that none is left with one member
            yield slice(count * part // parts, count * (part + 1) // parts)

    # ------------------------------------------------------------ state

    def checkpoint(self, member: int) -> dict[str, Any]:
        """What the member's separate run would save, in tensors of its own: "model" and "optimizer" (each a torch state_dict),
        "step", "settings", and "random" (device type → state, for `torch.set_rng_state` and its like)."""
        known, row = self._known(member), self._row(member)
        stack, optimizer = self._parts
        return {
            "model": stack.saved(row["tensors"]),
            "optimizer": optimizer.exported(row["optimizer"], known.numbers, self.learning_rate(member)),
            "step": known.steps,
            "settings": dict(known.settings),
            "random": known.draws.state(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The whole sweep: every member that runs or was stopped. As with torch, the tensors are the live ones."""
        members = {}
        for number in (*self._running, *self._stopped):
            member = self._members[number]
            about = {"settings": member.settings, "steps": member.steps, "random": member.draws.state()}
            members[number] = {**about, **self._row(number)}
        return {"optimizer": self._kind, "running": list(self._running), "next": self._next, "members": members}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be the sweep that `state` was taken of, with its members in place of these. Checks before it changes anything:
        raises ScriptError."""
        stack, optimizer = self._parts
        if state["optimizer"] != self._kind:
            raise ScriptError(
                f"the state is of a sweep with {state['optimizer']}, this one has {self._kind}; both must run the same script"
            )
        members = {}
        for number, saved in state["members"].items():
            stack.check_rows(saved["tensors"])
            numbers = read(self._kind, saved["settings"])
            draws = Draws(stack.device).restore(saved["random"])
            members[number] = Member(dict(saved["settings"]), numbers, draws, saved["steps"])
        rows = {number: {key: saved[key] for key in ("tensors", "optimizer")} for number, saved in state["members"].items()}
        stack.keep([])
        optimizer.keep([])
        stack.append([rows[number]["tensors"] for number in state["running"]])
        optimizer.append([rows[number]["optimizer"] for number in state["running"]])
        self._members, self._next, self._running = members, state["next"], list(state["running"])
        self._stopped = {number: _copied(row) for number, row in rows.items() if number not in self._running}

    # ------------------------------------------------------------ inside

    @property
    def _parts(self) -> tuple[Stack, FusedOptimizer]:
        assert self._stack is not None
        assert self._optimizer is not None
        return self._stack, self._optimizer

    def _known(self, member: int) -> Member:
        if member not in self._members:
            raise ScriptError(f"there is no member {member!r}; the sweep has {', '.join(map(str, self._members))}")
        return self._members[member]

    def _row(self, member: int) -> dict[str, Any]:
        """One member's tensors and optimizer state: live views if it runs, what was kept if it was stopped."""
        if member in self._stopped:
            return self._stopped[member]
        stack, optimizer = self._parts
        index = self._running.index(member)
        return {"tensors": stack.row(index), "optimizer": optimizer.row(index)}

    def _add(self, wanted: Sequence[tuple[Settings, Mapping[str, Any] | None]]) -> list[int]:
        members, tensors, states = [], [], []
        for settings, checkpoint in wanted:
            numbers = read(self._kind, settings)
            model, draws = make_as_alone(self._make, settings, self._device)
            if checkpoint is not None:
                try:
                    model.load_state_dict(checkpoint["model"])
                except RuntimeError as error:
                    raise ScriptError(f"the checkpoint is of another model: {' '.join(str(error).split())}") from None
                draws.restore(checkpoint.get("random", {}))
            if self._stack is None:
                self._stack = Stack(model)
                self._optimizer = FusedOptimizer(self._kind, self._stack.parameters, self._fused)
            steps = int(checkpoint.get("step", 0)) if checkpoint else 0
            tensors.append({name: tensor.clone() for name, tensor in self._stack.rows_of(model).items()})
            saved = checkpoint.get("optimizer") if checkpoint else None
            states.append(self._parts[1].imported(saved, steps) if saved else {})
            members.append(Member(dict(settings), numbers, draws, steps))
        self._parts[0].append(tensors)
        self._parts[1].append(states)
        numbers_given = list(range(self._next, self._next + len(members)))
        self._members.update(zip(numbers_given, members, strict=True))
        self._running += numbers_given
        self._next += len(members)
        return numbers_given


def sweep(
    make_model: Callable[[], nn.Module],
    members: Sequence[Settings],
    *,
    optimizer: str = "adamw",
    schedule: Schedule | None = None,
    device: torch.device | str | None = None,
    fused: bool = False,
    exact: bool = False,
    together: int | None = None,
) -> Sweep:
    """Many models, one per entry of `members`, to be trained as one.

    `make_model()` builds one model; it is called once per member, after `torch.manual_seed(settings["seed"])` (0 if not given).
    `members`: settings of each: the optimizer's ("lr", "weight_decay", "betas", "eps"; for "sgd" "lr", "momentum", "dampening",
    "weight_decay", "nesterov"), "seed", and keys of your own for `schedule`. `optimizer`: "adamw", "adam" or "sgd".
    `schedule(step, settings)` gives a factor of the learning rate; step counts the member's own updates, as in LambdaLR.
    `device`: where models are moved after they were made. `fused`: the optimizer's arithmetic is that of torch's `fused=True`,
    three times faster on a CPU. `exact`: members one after the other, bit-equal to separate runs on a CPU, any model, little faster
    than they are. `together`: members per pass; by default as many as a CPU's memory is fast for, on a GPU all.
    """
    return Sweep(
        make_model, members, optimizer=optimizer, schedule=schedule, device=device, fused=fused, exact=exact, together=together
    )


def _copied(row: dict[str, Any]) -> dict[str, Any]:
    """The same with tensors of its own."""
    return {key: value.detach().clone() if isinstance(value, Tensor) else _copied(value) if isinstance(value, dict) else value
            for key, value in row.items()}  # fmt: skip
