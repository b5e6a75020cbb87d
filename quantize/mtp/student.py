"""An MTP head in training: unrolled over the tokens that follow each place of a text.

At depth 1 the head reads the target's state at token i with token i + 1, as at run time
(`models.kinds.mtp`). At depth k it reads its own state of depth k - 1 with token i + k: the same weights are
used one time after the other, as they will be when it drafts (Bebop, arXiv 2606.12370). What it attends to
is what its cache holds then: the entries of depth 1 up to place i, and its own of depths 2 to k (as in
EAGLE-3, arXiv 2503.01840).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.mtp.request import Recipe
from specport.quantize.train.losses import CHAIN_LOSSES, Drafted, overlaps
from specport.quantize.train.on_target import OnTarget

from specport.models.kinds.mtp import Join

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Level:
    """Hold what a head says at one depth.

    depth:  from 1.
    places: [chains] in the batch's list of chains, ascending; deeper levels may have fewer.
    logits: [chains, columns]. rows: [chains] of the batch's answer tokens that are predicted.
    """

    depth: int
    places: Tensor
    logits: Tensor
    rows: Tensor


class MtpStudent(OnTarget):
    """A head with its target's embeddings and cut language-model head, which are not trained.

    Called with a batch (`batches.batch`, with the states of whole texts); returns loss and hits.

    decoder: transformers decoder of one layer, as `models.kinds.mtp.write_parts` writes it.
    table:   [vocab, width] embeddings. head: [columns, width] rows of the head at the ids `columns`.
    """

    def __init__(
        self,
        decoder: Any,
        join: Join,
        table: NDArray[np.floating[Any]],
        head: NDArray[np.floating[Any]],
        columns: Any,
        recipe: Recipe,
    ) -> None:
        super().__init__(table, head, columns)
        self.body, self._recipe, self._epsilon = decoder.model.float(), recipe, join.epsilon
        self.body.embed_tokens.requires_grad_(False)  # a stand-in
        self.join = torch.nn.Linear(2 * join.width, join.width, bias=False)
        self.join.weight.data = torch.from_numpy(join.weight.astype(np.float32))
        self.token_gain = torch.nn.Parameter(torch.from_numpy(join.token_gain.copy()))
        self.state_gain = torch.nn.Parameter(torch.from_numpy(join.state_gain.copy()))

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return the loss and the hits of the first depth."""
        loss = CHAIN_LOSSES[self._recipe.loss]
        probs, answer = self.teacher(batch), self.column[batch["answer"]]
        values = []
        hits = torch.zeros((), dtype=torch.long, device=answer.device)
        for level in self.levels(batch, whole=loss.whole):
            values.append(loss.value(Drafted(level.logits, probs[level.rows], answer[level.rows])))
            if level.depth == 1:
                hits += (level.logits.argmax(dim=-1) == answer[level.rows]).sum()
        if not values or not len(values[0]):  # the answers are shorter than a chain
            return 0.0 * self.token_gain.sum(), hits
        return loss.join(values), hits

    def teacher(self, batch: dict[str, Tensor]) -> Tensor:
        """Return [answer tokens, columns] the target's probabilities at the columns, in float32.

        Its state before a token gives its logits there, up to what they are normalised by. That follows from
        a stored probability: that of its likeliest token among the columns.
        """
        with torch.no_grad(), torch.autocast(self.head.device.type, enabled=False):
            logits = states_of(batch)[batch["rows"], batch["columns"]] @ self.head.T
            columns = self.column[batch["top_ids"]]
            rank = torch.arange(columns.shape[1], 0, -1, device=columns.device)  # likeliest first
            known, place = torch.where(columns >= 0, rank, 0).max(dim=1)
            column = columns.gather(1, place[:, None]).clamp(min=0)
            share = batch["top_probs"].gather(1, place[:, None]).clamp(min=1e-6)
            probs = torch.exp(logits - logits.gather(1, column) + share.log())
            probs = probs / probs.sum(dim=1, keepdim=True).clamp(min=1.0)  # rounding may bring it above 1
            if self._recipe.top:
                least = probs.topk(min(self._recipe.top, probs.shape[1]), dim=1).values[:, -1:]
                probs = torch.where(probs >= least, probs, 0.0)
            return torch.where(known[:, None] > 0, probs, 0.0)

    def levels(self, batch: dict[str, Tensor], *, whole: bool = False) -> Iterator[Level]:
        """Yield what the head says at each depth about the answers' tokens but the first.

        whole: only chains whose tokens all lie inside the answer.
        """
        depth, text, place = self._recipe.depth, batch["rows"], batch["columns"]
        number = torch.arange(len(text), device=text.device)
        ends = torch.cat([text[1:] != text[:-1], text.new_ones(1).bool()])
        # Rows of the same answer behind each row.
        last = torch.flip(torch.cummin(torch.flip(torch.where(ends, number, len(text)), [0]), 0).values, [0])
        left = last - number
        chains = torch.nonzero(left >= (depth if whole else 1))[:, 0]
        # A chain begins at the state before its row's token: at `first` of its text, or some places behind.
        first = torch.zeros_like(batch["ids"][:, 0]).index_add(
            0, torch.cat([text[:1], text[1:][ends[:-1]]]), torch.cat([place[:1], place[1:][ends[:-1]]])
        )
        begins = place - first[text]
        places = first[:, None] + torch.arange(int(begins.max()) + 1, device=text.device)
        for level, found in enumerate(self._unrolled(batch, places), start=1):
            kept = torch.nonzero(left[chains] >= level)[:, 0]
            if not len(kept):
                return
            rows = chains[kept]
            read = found[text[rows], begins[rows]]
            yield Level(level, kept, read.to(self.head.dtype) @ self.head.T, rows + level)

    def acceptances(self, batch: dict[str, Tensor]) -> Tensor:
        """Return [chains, depth] the probability that each token of whole chains is accepted if sampled."""
        with torch.no_grad():
            probs = self.teacher(batch)
            found = [overlaps(level.logits, probs[level.rows]) for level in self.levels(batch, whole=True)]
        return torch.stack(found, dim=1) if found else probs.new_zeros(0, self._recipe.depth)

    def _unrolled(self, batch: dict[str, Tensor], places: Tensor) -> Iterator[Tensor]:
        """Yield for each depth the head's states [texts, chains, width] of chains that begin at these places.

        places: [texts, chains] ascending; those behind the end of a text give anything.
        """
        from transformers import DynamicCache

        ids, states = batch["ids"], states_of(batch)
        num_texts, count = ids.shape[0], ids.shape[1] - 1
        cache = DynamicCache()
        every = torch.arange(count, device=ids.device).expand(num_texts, -1)
        # The first depth reads whole texts, as chains attend to all before them; deeper ones the chains only.
        seen = every[:, :, None] >= every[:, None, :]
        found = self._read(ids[:, 1:], states, seen, every, cache)
        begun = places.clamp(max=count - 1)
        states = found.gather(1, begun[:, :, None].expand(-1, -1, found.shape[2]))
        yield states
        own = torch.eye(places.shape[1], dtype=torch.bool, device=ids.device).expand(num_texts, -1, -1)
        seen = begun[:, :, None] >= every[:, None, :]
        for depth in range(2, self._recipe.depth + 1):
            tokens = ids.gather(1, (begun + depth).clamp(max=count))
            seen = torch.cat([seen, own], dim=2)
            states = self._read(tokens, states, seen, begun + depth - 1, cache)
            yield states

    def _read(self, tokens: Tensor, states: Tensor, seen: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Return the states [texts, n, width] behind tokens and states before them.

        seen: [texts, n, entries] which entries of the cache, these included, each attends to.
        """
        found: Tensor = self.body(
            inputs_embeds=self._joined(self.table[tokens], states),
            attention_mask=seen[:, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return found

    def _joined(self, embedded: Tensor, states: Tensor) -> Tensor:
        parts = [self.token_gain * self._norm(embedded), self.state_gain * self._norm(states)]
        found: Tensor = self.join(torch.cat(parts, dim=-1))
        return found.float()

    def _norm(self, x: Tensor) -> Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self._epsilon)


def states_of(batch: dict[str, Tensor]) -> Tensor:
    """Return the target's states [texts, longest - 1, width] of a batch, zeros behind the end of a text."""
    inside = batch["mask"][:, 1:].bool()
    states = batch["hidden"].new_zeros((*inside.shape, batch["hidden"].shape[1]))
    states[inside] = batch["hidden"]
    return states
