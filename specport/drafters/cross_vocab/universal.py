"""Universal assistance: draft with a model whose tokenizer differs from the target's.

The context is translated into the assistant's ids, the assistant drafts like any draft model, and its draft
is translated back. The method depends on the request (Timor et al., arXiv 2502.05202):

- Greedy: re-encoding (their SLEM). The drafted bytes are encoded with the target's tokenizer after the end of
  the context. The assistant may use its whole vocabulary. This gives no probabilities of target tokens, which
  greedy verification does not need.
- Sampled: token-level intersection (their TLI). The lossless acceptance rule needs the distribution that each
  target token was sampled from. So the assistant's head is restricted to the tokens that both vocabularies
  have, and renormalized. The target's probability of all other tokens bounds acceptance.

A wrong translation is a wrong draft: it costs time, but never changes the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from array_api_compat import array_namespace, device

from specport.core.ports import Array, DraftRequest, Model, Needs, Outcome, Plan, Prefilled
from specport.core.prefix_cache import PrefixCache
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.cross_vocab.translation import Translation
from specport.drafters.cross_vocab.translator import Intersection, Translator, Vocabulary
from specport.drafters.model.drafter import ModelDrafter
from specport.errors import ModelError

# Probability that the last re-encoded token is right if the drafted text is. The text may continue inside it
# ("the" may become "there"); earlier tokens are right in 99 to 100 % of cases. Measured at 75 to 98 % on code
# and prose with the tokenizers of Qwen2.5, SmolLM2 and Gemma 3.
_LAST_HOLDS = 0.87
_MOST_TOKENS = 4.0  # maximum assistant tokens per target token of a draft
_SKIP_BEYOND = 4  # windows of context that are translated at first; the assistant reads one


class UniversalDrafter:
    """Draft with a model of the vocabulary `assistant` for a target of the vocabulary `target`.

    Greedy requests get chains, sampled ones the trees of their plans.

    target_vocab:      width of the target's logits.
    token_map, window, prefixes: as for `ModelDrafter`; the ids are the assistant's.

    Raises ModelError for a tokenizer that changes ordinary text.
    """

    needs = Needs()
    parallel = None  # drafts are translated token by token

    def __init__(
        self,
        model: Model,
        target_vocab: int,
        target: Vocabulary,
        assistant: Vocabulary,
        token_map: Sequence[int] | None = None,
        *,
        window: int = 256,
        prefixes: PrefixCache | None = None,
        name: str = "universal",
    ) -> None:
        self.name = name
        self._target_vocab = target_vocab
        self._translator = Translator(target, assistant)
        width = 1 + max(assistant.table)
        self._width = width if token_map is not None else min(model.vocab_size, width)
        self._drafted = range(self._width) if token_map is None else token_map
        self._drafter = ModelDrafter(
            model, self._width, token_map, window=window, prefixes=prefixes, name=name
        )
        self._most_context = _SKIP_BEYOND * window
        self._translations: dict[int, Translation] = {}
        self._head: _SharedHead | None = None

    @property
    def prior(self) -> Sequence[float]:
        return self._drafter.prior

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        trees = [TokenTree()] * len(requests)
        translated = {i: self._translated(request) for i, request in enumerate(requests)}
        asked = [i for i in translated if self._translations[requests[i].key].complete]
        drafted = self._drafter.propose([self._inner(translated[i]) for i in asked]) if asked else []
        for i, tree in zip(asked, drafted, strict=True):
            request = requests[i]
            if request.sampler.params.greedy:
                trees[i] = self._encoded(self._translations[request.key], tree, request.plan.depth)
            else:
                trees[i] = self._shared_head().to_target(tree)
        return trees

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        """Do nothing: the context is translated and read at the next proposal."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        """Do nothing: the next proposal compares the assistant's cache with the context."""

    def forget(self, key: int) -> None:
        self._translations.pop(key, None)
        self._drafter.forget(key)

    def behind(self, request: DraftRequest) -> int:
        """Return how many tokens of its own the assistant must read before the first draft token."""
        translated = self._translated(request)
        read = self._drafter.behind(translated)
        # A planner compares this with the context's length to learn whether the draft reads all of it.
        return len(request.context) if read == len(translated.context) else read

    def _translated(self, request: DraftRequest) -> DraftRequest:
        """Return the request with its context in the assistant's ids."""
        translation = self._translations.get(request.key)
        if translation is None:
            skip = max(0, len(request.context) - self._most_context)
            translation = self._translations[request.key] = Translation(self._translator, skip)
        before = len(translation.ids)
        kept = translation.read(request.context)
        if kept < before:
            self._drafter.rewind(request.key, kept)
        return replace(request, context=translation.ids)

    def _inner(self, translated: DraftRequest) -> DraftRequest:
        """Return the assistant's request, with its own plan and sampler, for a translated request."""
        params, plan = translated.sampler.params, translated.plan
        if not params.greedy:
            return replace(translated, sampler=self._shared_head().sampler(translated.sampler))
        ratio = self._translations[translated.key].ratio
        depth = math.ceil(plan.depth * min(max(ratio, 1 / _MOST_TOKENS), _MOST_TOKENS))
        # A new sampler: repetition penalties apply to the assistant's ids, which are not append-only. The
        # request's own logits processors need target ids, so the assistant does without them.
        return replace(translated, plan=Plan(depth, stop=plan.stop), sampler=Sampler(params))

    def _encoded(self, translation: Translation, tree: TokenTree, depth: int) -> TokenTree:
        """Return a greedy chain of assistant tokens as a chain of at most `depth` target tokens."""
        assistant = self._translator.assistant
        data, starts = bytearray(), []
        control: int | None = None
        ended = False
        for token in tree.tokens:
            ended = token in assistant.special_ids
            if ended:
                control = self._translator.to_target.get(token)
                break
            starts.append(len(data))
            data += assistant.table.get(token, b"")
        encoded = translation.to_target(_whole_characters(bytes(data)))
        confidence: list[float] = []
        if tree.confidence:
            confidence = _confidence(tree.confidence, starts, [end for _, end in encoded])
            if confidence and not ended:
                confidence[-1] *= _LAST_HOLDS
        tokens = [token for token, _ in encoded]
        if control is not None and (encoded[-1][1] if encoded else 0) == len(data):
            tokens.append(control)
            confidence += tree.confidence[len(starts) : len(starts) + 1]
        fitting = next((i for i, token in enumerate(tokens) if token >= self._target_vocab), len(tokens))
        fitting = min(fitting, depth)
        return TokenTree.chain(tokens[:fitting], self.name, confidence=tuple(confidence[:fitting]))

    def _shared_head(self) -> _SharedHead:
        """Return the restricted head, made at the first call: matching vocabularies takes up to a second.

        Raises ModelError where the vocabularies have no token in common.
        """
        if self._head is None:
            shared = self._translator.intersection(self._target_vocab, self._width)
            if not (shared.to_target[list(self._drafted)] >= 0).any():
                raise ModelError(
                    "the vocabularies of draft and target have no token in common", "choose another draft"
                )
            self._head = _SharedHead(shared)
        return self._head


class _SharedHead:
    """Restrict the assistant's head to the tokens that both vocabularies have."""

    def __init__(self, shared: Intersection) -> None:
        self._shared = shared
        self._arrays: dict[object, tuple[Array, Array]] = {}  # device -> allowed, columns

    def sampler(self, base: Sampler) -> _SharedSampler:
        return _SharedSampler(base, self)

    def restricted(self, logits: Array) -> Array:
        """Return logits [assistant vocab], -inf at tokens that the target lacks."""
        xp = array_namespace(logits)
        return xp.where(self._on(logits)[0], logits, -xp.inf)

    def to_target(self, tree: TokenTree) -> TokenTree:
        """Return a sampled tree in the target's ids, with its distributions over [target vocab]."""
        tokens = tuple(int(self._shared.to_target[token]) for token in tree.tokens)
        rows = {id(q): self._row(q) for q in tree.probs or () if q is not None}
        return replace(tree, tokens=tokens, probs=[rows[id(q)] for q in tree.probs or ()] or None)

    def _row(self, q: Array) -> Array:
        xp = array_namespace(q)
        absent = xp.zeros((1,), dtype=q.dtype, device=device(q))
        return xp.take(xp.concat([q, absent]), self._on(q)[1])

    def _on(self, like: Array) -> tuple[Array, Array]:
        where = device(like)
        if where not in self._arrays:
            xp = array_namespace(like)
            both = self._shared.to_target >= 0, self._shared.columns
            self._arrays[where] = xp.asarray(both[0], device=where), xp.asarray(both[1], device=where)
        return self._arrays[where]


class _SharedSampler(Sampler):
    """Sample from a restricted head with another sampler's parameters and random stream.

    Prefixes are in the assistant's ids. Penalties on them change the draft's distribution only; verification
    is lossless for any draft distribution.
    """

    def __init__(self, base: Sampler, head: _SharedHead) -> None:
        super().__init__(base.params)
        self._base = base
        self._head = head

    def uniform(self) -> float:
        return self._base.uniform()

    def distribution(self, logits: Array, prefix: Sequence[int]) -> Array:
        return super().distribution(self._head.restricted(logits), prefix)


def _confidence(given: Sequence[float], starts: Sequence[int], ends: Sequence[int]) -> list[float]:
    """Return [len(ends)] the probability of each target token given those before it.

    Each assistant token counts for the target token in which it begins; the rest of it is then certain.
    """
    out: list[float] = []
    start = 0
    for end in ends:
        inside = (p for p, at in zip(given, starts, strict=False) if start <= at < end)
        out.append(math.prod(inside))
        start = end
    return out


def _whole_characters(data: bytes) -> bytes:
    """Return the data without an incomplete last character, unless that is all the data."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] or data if back < needed else data
        if byte < 0x80:
            break
    return data
