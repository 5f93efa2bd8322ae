"""Who gives an arriving rank its state: by the plan, which is the same on every member, over connections made ahead of time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist

from restow import vault
from restow.placement import nodes_of
from restow.plan import Box, Copy, Holding, plan
from restow.sdk.boxes import StateTable
from restow.sdk.terms import Terms
from restow.sdk.transport import FillClient

CONNECT_TIMEOUT = timedelta(seconds=60)

Source = tuple[str, int]  # ("rank", r): an old rank; ("twin", r): another twin; ("vault", n): the n-th node that keeps a state


class Sources:
    """Of one member, which gives (`gives`) or gets: `connect` once, then the private state and `fill`; `close` always."""

    def __init__(self, terms: Terms, rank: int, table: StateTable, secret: bytes):
        self._terms, self._rank, self._table, self._secret = terms, rank, table, secret
        self._clients: dict[Source, FillClient] = {}
        self._copies: list[Copy] = []

    def gives(self) -> bool:
        """Does a twin read the state of this rank at the switch step?"""
        return any(copy.source == ("rank", self._rank) for copy in self._planned())

    def connect(self, store: dist.Store) -> None:
        """Arriving: to all who will give."""
        self._copies = [copy for copy in self._planned() if copy.target == self._rank]
        for source in dict.fromkeys([self.own, *(self._source_of(copy) for copy in self._copies)]):
            self._clients[source] = self.client(store, source)

    def client(self, store: dist.Store, source: Source) -> FillClient:
        """A connection to a source, or to anybody else who serves; waits until it has said where."""
        key = f"source/{source[0]}/{source[1]}"
        store.wait([key], CONNECT_TIMEOUT)
        host, _, port = store.get(key).decode().rpartition(":")
        return FillClient(host, int(port), self._secret)

    @property
    def own(self) -> Source:
        """Who has the private state."""
        kept = self._terms.kept
        return ("vault", nodes_of(kept).index(kept[self._kept_rank].node)) if kept else ("rank", self._rank)

    def of_own(self) -> FillClient:
        return self._clients[self.own]

    @property
    def is_resized(self) -> bool:
        """Coming back: with another number of workers?"""
        return 0 < len(self._terms.kept) != len(self._terms.then)

    @property
    def is_new_rank(self) -> bool:
        """Coming back: was there no such rank before?"""
        return 0 < len(self._terms.kept) <= self._rank

    def is_elsewhere(self, source: Source) -> bool:
        """On another node than the arriving rank?"""
        kind, number = source
        here = self._terms.then[self._rank].node
        if kind == "vault":
            return nodes_of(self._terms.kept)[number] != here
        placement = self._terms.now if kind == "rank" else self._terms.then
        return placement[number].node != here

    def private_from_vault(self, patience_s: float) -> bytes:
        """What this rank alone held when it was suspended."""
        client = self.of_own()
        sizes = json.loads(client.fetch_private(patience_s))
        name = vault.of_rank(self._kept_rank)
        blob = torch.empty(sizes[name], dtype=torch.uint8)
        client.fill({name: blob}, patience_s)
        return blob.numpy().tobytes()

    def fill(self, kind: str, tensors: Mapping[str, torch.Tensor], patience_s: float) -> int:
        """Get what the plan has from `rank`s (or the vault), or from other `twin`s; returns the bytes that crossed a link."""
        copies = [copy for copy in self._copies if copy.source[0] == kind]
        wire_bytes = 0
        for source in dict.fromkeys(self._source_of(copy) for copy in copies):
            wanted = {copy.box.name: tensors[copy.box.name] for copy in copies if self._source_of(copy) == source}
            received = self._clients[source].fill(wanted, patience_s)
            wire_bytes += received if self.is_elsewhere(source) else 0
        return wire_bytes

    def fill_from(self, source: Source, store: dist.Store, tensors: Mapping[str, torch.Tensor], patience_s: float) -> int:
        """Get everything from one source, which the plan did not foresee; returns the bytes that crossed a link."""
        if source not in self._clients:
            self._clients[source] = self.client(store, source)
        received = self._clients[source].fill(tensors, patience_s)
        return received if self.is_elsewhere(source) else 0

    def close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    @property
    def _kept_rank(self) -> int:
        """Coming back: whose private state is ours. Where there are more workers than before, the new ones begin with a copy."""
        return self._rank % len(self._terms.kept)

    def _source_of(self, copy: Copy) -> Source:
        kind, number = copy.source
        return ("vault", number) if kind == "rank" and self._terms.kept else (kind, number)

    def _planned(self) -> list[Copy]:
        """Which boxes go to the twins at the switch step, and from whom."""
        terms = self._terms
        if terms.fill == "shadow":
            return []
        boxes = boxes_of(self._table)
        if terms.kept:
            numbered = enumerate(nodes_of(terms.kept))
            vaults = {n: Holding(node=node, device=-1, boxes=boxes) for n, node in numbered if node in terms.kept_replicas}
            return plan(vaults, {r: Holding(node=s.node, device=s.device, boxes=boxes) for r, s in enumerate(terms.then)})
        old = {r: Holding(node=s.node, device=s.device, boxes=boxes) for r, s in enumerate(terms.now)}
        new = {r: Holding(node=terms.then[r].node, device=terms.then[r].device, boxes=boxes) for r in terms.moved}
        return plan(old, new)


def boxes_of(table: StateTable) -> tuple[Box, ...]:
    """The replicated state of one rank as whole boxes, one per tensor."""
    return tuple(
        Box(name, (0,) * tensor.dim(), tuple(tensor.shape), tensor.element_size())
        for name, tensor in table.tensors().items()
    )
