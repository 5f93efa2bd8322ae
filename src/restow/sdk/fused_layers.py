"""What stands in for some functions of torch.nn.functional while the members of a sweep go through one stacked model.

`torch.vmap` turns the script's model into one for all members. For the functions below we have rules of our own, because
vmap's would copy a shared batch once per member, draw every member's dropout from one generator, or add up sums in another
order than a lone model does. With these rules the common layers give, on a CPU, each member the very bits of its separate
run (tests/sdk/test_fuse.py says which). All other functions are vmap's.

A rule is ordinary torch on real tensors: `lifted` takes them out of vmap and puts the result back. torch's public way of
doing this (a `vmap` method on an autograd.Function) costs 0.2 ms per call, so its inside is used (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as vmap_inside
from torch.nn import functional

from restow.sdk.fused_draws import Draws

Dims = list[Any]  # per operand: which dimension is the members', None if it is the same for all

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_ONE_BY_ONE = (
    "layer_norm", "group_norm", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "kl_div", "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)  # fmt: skip
_plain = {
    name: getattr(functional, name)
    for name in ("linear", "dropout", "batch_norm", "scaled_dot_product_attention", "conv1d", "conv2d", "conv3d", *_ONE_BY_ONE)
}
_plain_recurrent = {name: getattr(torch._VF, name) for name in _RECURRENT}
_conv_block = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # channels that one vector of the CPU holds


@contextmanager
def standing_in(lane: Tensor, draws: Sequence[Draws]) -> Iterator[None]:
    """While this lasts, torch has our functions. `lane` is the member's number as vmap sees it, `draws` each one's generators."""
    lift, level = partial(lifted, lane), vmap_inside.maybe_get_level(lane)
    instead: dict[str, Callable[..., Any]] = {name: partial(_one_by_one, lift, _plain[name]) for name in _ONE_BY_ONE}
    instead |= {f"conv{n}d": partial(_conv, lift, _plain[f"conv{n}d"]) for n in (1, 2, 3)}
    instead |= {
        "linear": partial(_linear, lift),
        "batch_norm": partial(_batch_norm, lift),
        "dropout": partial(_dropout, lift, draws),
        "scaled_dot_product_attention": partial(_attention, lift, draws),
    }
    for name, function in instead.items():
        setattr(functional, name, partial(_outermost, level, function, _plain[name]))
    for name, function in _plain_recurrent.items():
        ours = partial(_recurrent, lift, draws, function)
        setattr(torch._VF, name, partial(_outermost, level, ours, function))
    try:
        yield
    finally:
        for name in instead:
            setattr(functional, name, _plain[name])
        for name in _RECURRENT:
            delattr(torch._VF, name)


def lifted(lane: Tensor, rule: Callable[..., tuple[Any, int]], *operands: Any) -> Any:
    """`rule(members, dims, *operands)` outside vmap: operands as they really are, `dims` saying where the members are in each.
    It gives a tensor (or a tuple of them) and the dimension of the members in it."""
    level = vmap_inside.maybe_get_level(lane)
    real, dims = [], []
    for operand in operands:
        is_stacked = isinstance(operand, Tensor) and vmap_inside.is_batchedtensor(operand)
        real.append(vmap_inside.get_unwrapped(operand) if is_stacked else operand)
        dims.append(vmap_inside.maybe_get_bdim(operand) if is_stacked else None)
    members = len(vmap_inside.get_unwrapped(lane))
    layer = vmap_inside.pop_dynamic_layer_stack()
    try:
        result, dim = rule(members, dims, *real)
    finally:
        vmap_inside.push_dynamic_layer_stack(layer)
    if isinstance(result, tuple):
        return tuple(vmap_inside._add_batch_dim(part, dim, level) for part in result)
    return vmap_inside._add_batch_dim(result, dim, level)


def _outermost(level: int, ours: Callable[..., Any], plain: Callable[..., Any], *operands: Any, **named: Any) -> Any:
    """Ours, unless the script is inside a vmap or grad of its own: there all is left to torch."""
    return (ours if vmap_inside.maybe_current_level() == level else plain)(*operands, **named)


def _members_first(tensor: Tensor, dim: int | None, members: int) -> Tensor:
    """(members, ...); what is the same for all is expanded, not copied."""
    return tensor.expand(members, *tensor.shape) if dim is None else tensor.movedim(dim, 0) if dim else tensor


def _lone(members: int, dims: Dims, *operands: Any) -> list[tuple[Any, ...]]:
    """The operands of each member."""
    columns = [
        [operand] * members if dim is None else operand.unbind(dim) for operand, dim in zip(operands, dims, strict=True)
    ]
    return list(zip(*columns, strict=True))


def _one_by_one(lift: Callable[..., Any], function: Callable[..., Any], *operands: Any, **named: Any) -> Any:
    """Each member's own call: nothing is gained, nothing is added up otherwise."""
    names = list(named)

    def rule(members: int, dims: Dims, *operands: Any) -> tuple[Tensor, int]:
        split = len(operands) - len(names)
        calls = _lone(members, dims, *operands)
        return torch.stack([function(*own[:split], **dict(zip(names, own[split:], strict=True))) for own in calls]), 0

    return lift(rule, *operands, *named.values())


# ---------------------------------------------------------------- linear


def _linear(lift: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return lift(_linear_rule, input, weight, bias)


def _linear_rule(members: int, dims: Dims, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
    at, weight_at, bias_at = dims
    if weight_at is None or (bias is not None and bias_at is None):  # a weight that is no parameter
        return torch.stack([_plain["linear"](*own) for own in _lone(members, dims, input, weight, bias)]), 0
    weight = _members_first(weight, weight_at, members)
    bias = None if bias is None else _members_first(bias, bias_at, members)
    outs, ins = weight.shape[1:]
    input = _members_first(input, at, members)  # expanded if shared: one wide product for all was 1.3 times slower
    rows = input if input.dim() == 3 else input.reshape(members, -1, ins)
    multiply = _products if torch.is_autocast_enabled(rows.device.type) else _Products.apply
    result = multiply(rows, weight, bias)
    return result if input.dim() == 3 else result.view(*input.shape[:-1], outs), 0


def _products(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight.mT)


class _Products(torch.autograd.Function):
    """(members, rows, ins) by (members, outs, ins): each member's own linear layer, with gradients as plain torch computes
    and lays them out for one (vmap's come transposed, which the optimizer reads slowly)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _products(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        (gradient,) = gradients
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            torch.bmm(gradient, weight) if wants_rows else None,
            torch.bmm(gradient.mT, rows) if wants_weight else None,
            gradient.sum(1) if wants_bias else None,
        )


# ---------------------------------------------------------------- convolution, normalization


def _conv(
    lift: Callable[..., Any], function: Callable[..., Any], input: Tensor, weight: Tensor, bias: Tensor | None = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    def rule(members: int, dims: Dims, input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        at, weight_at, bias_at = dims
        outs, ins = (weight if weight_at is None else weight.select(weight_at, 0)).shape[:2]
        is_batch = input.dim() - (at is not None) == weight.dim() - (weight_at is not None)
        fills_vectors = input.device.type != "cpu" or (ins % _conv_block == 0 and outs // groups % _conv_block == 0)
        together = groups == 1 if at is None else fills_vectors
        if weight_at is None or (bias is not None and bias_at is None) or not is_batch or not together:
            calls = _lone(members, dims, input, weight, bias)
            return torch.stack([function(*own, stride, padding, dilation, groups) for own in calls]), 0
        weight = _members_first(weight, weight_at, members).flatten(0, 1)
        bias = None if bias is None else _members_first(bias, bias_at, members).reshape(-1)
        if at is None:  # one batch for all: one convolution with all members' output channels
            result = function(input, weight, bias, stride, padding, dilation, 1)
        else:
            wide = input.movedim(at, 1).flatten(1, 2)
            result = function(wide, weight, bias, stride, padding, dilation, groups * members)
        return result.unflatten(1, (members, outs)), 1

    return lift(rule, input, weight, bias)


def _batch_norm(
    lift: Callable[..., Any], input: Tensor, running_mean: Tensor | None, running_var: Tensor | None,
    weight: Tensor | None = None, bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Any:  # fmt: skip
    def rule(members: int, dims: Dims, input: Tensor, *channels: Tensor | None) -> tuple[Tensor, int]:
        """Channels are normalized each for itself: the members' channels side by side are one wide batch norm."""
        wide = _members_first(input, dims[0], members).movedim(0, 1)
        flat = [
            None if t is None else _members_first(t, dim, members).reshape(-1) for t, dim in zip(channels, dims[1:], strict=True)
        ]
        result = _plain["batch_norm"](wide.flatten(1, 2), *flat, training, momentum, eps)
        return result.view(wide.shape), 1

    return lift(rule, input, running_mean, running_var, weight, bias)


# ---------------------------------------------------------------- attention, dropout, recurrent layers


def _attention(
    lift: Callable[..., Any], draws: Sequence[Draws], query: Tensor, key: Tensor, value: Tensor,
    attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # fmt: skip
    attend = partial(_plain["scaled_dot_product_attention"], dropout_p=dropout_p, is_causal=is_causal, scale=scale,
                     enable_gqa=enable_gqa)  # fmt: skip

    def rule(members: int, dims: Dims, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        has_own_mask = mask is not None and (dims[3] is not None or mask.dim() > 2)
        query_dims = query.dim() - (dims[0] is not None)
        if dropout_p > 0.0 or has_own_mask or query_dims != 4:
            calls = _lone(members, dims, query, key, value, mask)
            return torch.stack([_drawing(own, dropout_p, attend, *call) for own, call in zip(draws, calls, strict=True)]), 0
        wide = [_members_first(t, dim, members).flatten(0, 1) for t, dim in zip((query, key, value), dims[:3], strict=True)]
        return attend(*wide, mask).unflatten(0, (members, -1)), 0

    return lift(rule, query, key, value, attn_mask)


def _dropout(
    lift: Callable[..., Any], draws: Sequence[Draws], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Any:
    if not training or p == 0.0:
        return input

    def rule(members: int, dims: Dims, input: Tensor) -> tuple[Tensor, int]:
        calls = _lone(members, dims, input)
        return torch.stack([_drawing(own, p, _plain["dropout"], *call, p) for own, call in zip(draws, calls, strict=True)]), 0

    dropped = lift(rule, input)
    return input.copy_(dropped) if inplace else dropped


def _recurrent(lift: Callable[..., Any], draws: Sequence[Draws], function: Callable[..., Any], *arguments: Any) -> Any:
    """An LSTM and its like take tensors, lists of tensors and numbers, among them a dropout; all members one by one."""
    flat: list[Any] = []
    shape = [(type(a), len(a)) if isinstance(a, (list, tuple)) else None for a in arguments]
    for argument in arguments:
        flat.extend(argument if isinstance(argument, (list, tuple)) else [argument])

    def whole(own: tuple[Any, ...]) -> Iterator[Any]:
        rest = iter(own)
        for nest in shape:
            yield next(rest) if nest is None else nest[0](next(rest) for _ in range(nest[1]))

    def rule(members: int, dims: Dims, *flat: Any) -> tuple[Any, int]:
        calls = zip(draws, _lone(members, dims, *flat), strict=True)
        results = [_drawing(own, 1.0, function, *whole(call)) for own, call in calls]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(column) for column in zip(*results, strict=True)), 0

    return lift(rule, *flat)


def _drawing(draws: Draws, p: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """A call that may draw random numbers: from this member's generators."""
    with draws.lent() if p > 0.0 else nullcontext():
        return function(*arguments)
