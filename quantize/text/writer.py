"""The writer of target text: lets a target answer turns, many at a time.

A draft learns from what its target writes, so that no data set is needed. All texts share one engine: when
one ends, the next begins, so that each step reads the weights for as many texts as fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import numpy as np
from specport.quantize.text import turns
from specport.quantize.text.dialogues import TOP_K, Dialogue, TopTokens, likeliest
from specport.quantize.text.turns import Turn

from specport.core.arrays import Array, to_host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Model, Needs, Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.core.verify.rules import AcceptanceRule, Verdict, rule_for
from specport.core.verify.scores import TargetScores
from specport.core.verify.verifier import TargetVerifier, VerifyRequest
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer

ANSWER_TOKENS = 192  # of an answer, at most
AT_ONCE = 64  # texts that share a step


class _Recorded:
    """Accept by another rule, and hold the target's likeliest tokens before each token of its text."""

    def __init__(self, rule: AcceptanceRule) -> None:
        self.name, self._rule = rule.name, rule
        self.tops: list[TopTokens] = []

    def accept(self, tree: TokenTree, scores: TargetScores, sampler: Sampler) -> Verdict:
        return self._rule.accept(tree, scores, sampler)


@dataclass(eq=False)
class _Task:
    """One dialogue in progress: first its turn, where only an opening is given, then its answer.

    generation: what is being written; None once the task is done.
    record:     of the answer; None while the turn is being written.
    dialogue:   the result; None until then, and for a turn that is too long.
    """

    turn: Turn
    generation: Generation | None = None
    record: _Recorded | None = None
    dialogue: Dialogue | None = None


class TextWriter:
    """Lets a target answer turns, many at a time: greedily, or sampled where a turn has a temperature.

    at_once: texts that share a step.
    on_step: called after each step with the number of answer tokens written so far.

    Where the target pads single tokens (`Capabilities.min_width`), drafted tokens take the place of the
    padding at no cost. Greedy text does not depend on them. Sampled text would, so turns and sampled answers
    are written without.
    """

    def __init__(
        self,
        target: Model,
        tokenizer: Tokenizer,
        at_once: int = AT_ONCE,
        on_step: Callable[[int], None] = lambda num_tokens: None,
    ) -> None:
        self._target, self._tokenizer = target, tokenizer
        self._at_once, self._on_step = at_once, on_step
        self._num_tokens = 0
        spare = target.capabilities.min_width - 1
        policy: Policy | None = None
        if spare:
            policy = FirstProposal([RecycleDrafter(target.vocab_size)], lambda: Fixed(spare), tree=False)
        verifier = TargetVerifier(target, policy.needs if policy else Needs(), self._record)
        self._engine = Engine(target, policy, verifier, max_running=at_once)

    def write(self, asked: Iterable[Turn | None]) -> Generator[Dialogue | None, None, None]:
        """Yield the dialogue of each turn, in the order of the turns; None for a turn that is too long.

        asked: read ahead, as there is room for more texts. None in place of a turn means that no more are
               wanted for now; it is asked again after the next step. Writing ends when nothing is left to do.
        Close the generator to drop unfinished texts and free their memory.
        """
        source = iter(asked)
        tasks: deque[_Task] = deque()  # in the order of the turns; some behind the first may be done
        try:
            while True:
                while tasks and tasks[0].generation is None:
                    yield tasks.popleft().dialogue
                while self._engine.num_unfinished < self._at_once:
                    if (turn := next(source, None)) is None:
                        break
                    tasks.append(self._begun(turn))
                if not tasks:
                    return
                self._engine.step()
                for task in tasks:
                    if task.generation is not None and task.generation.ended:
                        self._advance(task)
                self._on_step(self._num_tokens)
        finally:
            for task in tasks:
                if task.generation is not None:
                    task.generation.cancel()
            self._engine.tidy()

    def _begun(self, turn: Turn) -> _Task:
        """Return the task of a turn, with its first text added to the engine."""
        task = _Task(turn)
        if turn.limit:
            params = SamplingParams(temperature=1.0, top_k=TOP_K, seed=turn.seed)
            prompt = turns.opening_ids(self._tokenizer, turn.text)
            task.generation = Generation(
                prompt, params, turn.limit, self._tokenizer.eos_ids, max_draft_tokens=0
            )
            self._engine.add(task.generation)
        else:
            self._answer(task, turn.text)
        return task

    def _answer(self, task: _Task, text: str) -> None:
        """Let the target answer a complete turn, unless it is too long."""
        prompt = encode(self._tokenizer, text)
        if len(prompt) + ANSWER_TOKENS > self._target.max_context:
            return
        turn = task.turn
        params = SamplingParams(temperature=turn.temperature, seed=turn.seed if turn.temperature else None)
        task.record = _Recorded(rule_for(params))
        task.generation = Generation(
            [*prompt], params, ANSWER_TOKENS, self._tokenizer.eos_ids, rule=task.record,
            max_draft_tokens=0 if turn.temperature else None,
        )  # fmt: skip
        self._engine.add(task.generation)

    def _advance(self, task: _Task) -> None:
        """Go on from a finished turn to its answer, or from a finished answer to the dialogue."""
        generation, task.generation = task.generation, None
        assert generation is not None  # called for running tasks only
        written = generation.tokens[generation.num_prompt_tokens :]
        if task.record is None:
            self._answer(task, task.turn.text + self._tokenizer.decode(written, skip_special_tokens=True))
            return
        # A text that ends inside an accepted path leaves records behind its end.
        ids, probs = zip(*task.record.tops[: len(written)], strict=True)
        tokens = np.asarray(generation.tokens, dtype=np.int32)
        task.dialogue = Dialogue(tokens, generation.num_prompt_tokens, np.stack(ids), np.stack(probs))
        task.record = None  # a finished task may wait for those before it

    def _record(self, request: VerifyRequest, verdict: Verdict, logits: Array) -> None:
        """Keep the target's likeliest tokens before each token of an answer."""
        if isinstance(request.rule, _Recorded):
            request.rule.tops += [likeliest(to_host(logits[node + 1, :])) for node in (-1, *verdict.path)]
            self._num_tokens += 1 + len(verdict.path)
