"""Random use of a model by several sequences, each of which must hold its text and nothing else."""

from __future__ import annotations

import numpy as np

from specport.conformance.steps import Probe
from specport.core.ports import Block, CacheHandle, Model, Row


class Texts:
    """Three sequences of a model and the texts that they should hold."""

    def __init__(self, model: Model, plain: Model, seed: int) -> None:
        self.model, self.probe, self.plain = model, Probe(model), Probe(plain)
        self.rng = np.random.default_rng(seed)
        self.handles: list[CacheHandle] = [model.open() for _ in range(3)]
        self.texts: list[list[int]] = [[], [], []]
        self.num_refused = 0

    def step(self) -> None:
        """Step some of them with chains and trees, and keep some path."""
        rows, plans = [], []
        for i, handle in enumerate(self.handles):
            if self.rng.random() < 0.3 or len(self.texts[i]) > 150:
                continue
            truth = [int(token) for token in self.rng.integers(3, 60, self.rng.integers(1, 9))]
            block, path, kind = Block.chain(truth), [*range(len(truth))], self.rng.random()
            if kind < 0.4:
                tree, path = self.probe.random_tree(self.rng, truth, 10)
                block = tree.as_block()
            rows.append(Row(handle, block, logits="all" if kind < 0.8 else "last"))
            plans.append((i, path[: self.rng.integers(len(path) + 1)]))
        output = self.model.step(rows)
        self.num_refused += len(output.refused)
        for number, (i, path) in enumerate(plans):
            if number not in output.refused:
                self.model.commit(self.handles[i], path)
                self.texts[i] += [rows[number].block.tokens[node] for node in path]

    def change(self) -> None:
        """Cut one, replace one by a fork of another, step one in vain, or do nothing."""
        i = int(self.rng.integers(3))
        length, action = int(self.rng.integers(len(self.texts[i]) + 1)), self.rng.random()
        if action < 0.3:
            self.model.truncate(self.handles[i], length)
            self.texts[i] = self.texts[i][:length]
        elif action < 0.5:
            self.model.close(self.handles[i - 1])
            self.handles[i - 1] = self.model.fork(self.handles[i], length)
            self.texts[i - 1] = self.texts[i][:length]
        elif action < 0.6:
            self.model.step([Row(self.handles[i], Block.chain([5, 6, 7, 8]))])

    def check(self, i: int) -> None:
        """Compare what follows a text with a model that has read it in one step."""
        output = self.model.step([Row(self.handles[i], Block.chain([11, 12]))])
        self.num_refused += len(output.refused)
        if not output.refused:
            (found,) = self.probe.split(output)
            fresh = self.plain.opened(self.texts[i])
            (expected,) = self.plain.step(Row(fresh, Block.chain([11, 12])))
            self.plain.model.close(fresh)
            self.probe.check(found, expected)
