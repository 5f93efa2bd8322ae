"""A small GPT learns to write Python, character by character, from the source of Python's own standard library.

    python examples/chars_gpt.py                                        alone
    torchrun --nproc-per-node 2 examples/chars_gpt.py                   data-parallel
    restow submit -n 2 -- python examples/chars_gpt.py --layers 6       under restow, may be moved while it trains

The text is on every machine that has Python. A machine with another Python version has another text: compare runs only
under the same version.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import restow
from digest import History, plain, write_digest

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
UNKNOWN = len(ALPHABET)  # the index of everything else


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps in all")
    parser.add_argument("--batch", type=int, default=8, help="pieces of text per rank and step")
    parser.add_argument("--context", type=int, default=64, help="characters that the model sees")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--characters", type=int, default=2_000_000, help="how much text to read")
    parser.add_argument("--loader-workers", type=int, default=0, help="processes that load text, per rank")
    parser.add_argument("--write", type=int, default=0, metavar="N", help="let the model write N characters at the end")
    parser.add_argument("--log-every", type=int, default=20, metavar="N", help="print the loss every N steps; 0: never")
    parser.add_argument("--digest", default="", metavar="FILE", help="write all losses and a fingerprint of the end")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if min(chosen.steps, chosen.batch, chosen.context, chosen.layers, chosen.heads) < 1:
        parser.error("--steps, --batch, --context, --layers and --heads must be at least 1")
    if chosen.width % chosen.heads:
        parser.error(f"--width {chosen.width} cannot be divided among --heads {chosen.heads}")
    if chosen.characters <= chosen.context:
        parser.error(f"--characters {chosen.characters} must be more than --context {chosen.context}")
    return chosen


def read_text(characters: int) -> Tensor:
    """The first so many characters of the standard library's own files, by name, as indices into ALPHABET."""
    pieces, length = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        pieces.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(pieces[-1])
        if length >= characters:
            break
    index = {character: number for number, character in enumerate(ALPHABET)}
    text = "".join(pieces)[:characters]
    return torch.tensor([index.get(character, UNKNOWN) for character in text], dtype=torch.uint8)


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Pieces of `context` characters, each with the same piece one character further on."""

    def __init__(self, text: Tensor, context: int) -> None:
        self.text, self.context = text, context

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        piece = self.text[number * self.context : (number + 1) * self.context + 1].long()
        return piece[:-1], piece[1:]


class Block(nn.Module):
    """Attention to what came before, then a small network per character."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.gather = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attend(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.gather(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.network(self.norm_network(x))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, context: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.characters, self.places = nn.Embedding(UNKNOWN + 1, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.guess = nn.LayerNorm(width), nn.Linear(width, UNKNOWN + 1)

    def forward(self, text: Tensor) -> Tensor:
        """(batch, length) characters → (batch, length, alphabet) scores of the next one."""
        x = self.characters(text) + self.places.weight[: text.shape[1]]
        return self.guess(self.norm(self.blocks(x)))


def write(model: nn.Module, characters: int, context: int, device: torch.device) -> str:
    """What the model would write, most likely character first; no chance in it."""
    model.eval()
    text = torch.zeros(1, 1, dtype=torch.long, device=device)
    with torch.no_grad():
        for _ in range(characters):
            scores = model(text[:, -context:])[0, -1, : len(ALPHABET)]
            text = torch.cat([text, scores.argmax().view(1, 1)], 1)
    return "".join(ALPHABET[int(number)] for number in text[0, 1:])


def main() -> None:
    chosen = options()
    job = restow.init(seed=chosen.seed)
    loader = DataLoader(
        Text(read_text(chosen.characters), chosen.context),
        chosen.batch,
        shuffle=True,
        drop_last=True,
        num_workers=chosen.loader_workers,
    )
    model = GPT(chosen.layers, chosen.width, chosen.heads, chosen.context, chosen.dropout).to(job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.lr, weight_decay=0.1)
    warm_up = max(1, chosen.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * (0.55 + 0.45 * math.cos(math.pi * step / chosen.steps)),
    )
    if job.rank == 0:
        print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    model, optimizer, schedule = job.prepare(model, optimizer, schedule)
    history = History()
    job.carry("history", history)

    for text, following in job.steps(loader, total=chosen.steps):
        scores = model(text.to(job.device))
        loss = functional.cross_entropy(scores.flatten(0, 1), following.to(job.device).flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        value = loss.item()
        history.losses.append(value)
        job.report(loss=value)
        made = len(history.losses)
        if job.rank == 0 and chosen.log_every and made % chosen.log_every == 0:
            print(f"step {made} loss {value:.4f} {value.hex()}", flush=True)

    if chosen.digest:
        write_digest(chosen.digest, job.rank, history, model, optimizer)
    if chosen.write and job.rank == 0:
        print(write(plain(model), chosen.write, chosen.context, job.device), flush=True)


if __name__ == "__main__":
    main()
