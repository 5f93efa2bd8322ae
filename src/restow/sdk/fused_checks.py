"""What cannot be trained as one, said in one line with the way out. Knows models and torch's words, no sweep."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from restow.errors import ScriptError


def no_loss(found: Any) -> ScriptError:
    kind = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    return ScriptError(f"the loss function returned {kind}; return one number per member, for example losses.mean()")


def reason(line: str) -> str:
    """vmap's own sentences, told to somebody who never called vmap."""
    if "data-dependent control flow" in line or ".item()" in line:
        return "what it does next depends on a tensor's values (an `if`, a loop, .item())"
    if "in-place" in line or "inplace" in line or "doesn't match the broadcast shape" in line:
        return "it writes a member's own numbers in place into a tensor that all members share"
    if "randomness" in line or "random operation" in line:
        return "it draws random numbers other than dropout, which cannot be told apart by member"
    return line.removeprefix("vmap: ")


def check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ScriptError(f"make_model returned a {type(model).__name__}; return a torch.nn.Module")
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ScriptError(f"make_model returned a {type(model).__name__}; return the module inside it, a sweep is one process")
    for name, module in model.named_modules():
        what = f"module {name or '(the model itself)'} ({type(module).__name__})"
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise ScriptError(f"{what} does not know its shape yet; give its sizes, or run the model once in make_model")
        if getattr(module, "sparse", False) and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            raise ScriptError(f"{what} makes sparse gradients, which a sweep cannot keep; leave sparse=True out")
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ScriptError(f"{what} has extra state beside its tensors, which cannot be kept per member; use buffers for it")


def first_difference(mine: str, theirs: str) -> tuple[str, str]:
    for one, other in zip(mine.splitlines(), theirs.splitlines(), strict=False):
        if one != other:
            return one.strip(), other.strip()
    return f"{len(mine.splitlines())} layers", f"{len(theirs.splitlines())} layers"
