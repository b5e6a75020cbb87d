"""Draft what a constraint leaves no choice about, such as the keys and punctuation of a JSON schema.

The target verifies these tokens as any draft, so the text is that of plain decoding under the constraint.
"""

from __future__ import annotations

from specport.core.ports import DraftRequest, Needs
from specport.core.sampling.processors import Prefix
from specport.core.tree import TokenTree
from specport.drafters.text_drafter import TextDrafter

# A certain token is accepted always. A likely one is the usual token for bytes that must follow, but the
# target may choose a longer one. The planner measures how often it does.
_CERTAIN, _LIKELY = 0.999, 0.85


class ForcedDrafter(TextDrafter):
    """Propose the tokens that the constraint of a text forces; nothing in texts without a constraint."""

    name = "forced"
    needs = Needs()
    prior = (0.1, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.9, 0.95, 0.99)

    def _propose(self, request: DraftRequest) -> TokenTree:
        constraint, depth = request.sampler.constraint, request.plan.depth
        if constraint is None or depth < 1:
            return TokenTree()
        forced = constraint.forced(Prefix(request.context))
        tokens = forced.tokens[:depth]
        confidence = tuple(_CERTAIN if i < forced.certain else _LIKELY for i in range(len(tokens)))
        return TokenTree.chain(tokens, self.name, confidence=confidence)
