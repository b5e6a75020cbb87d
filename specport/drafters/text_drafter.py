"""What drafters have in common that read nothing but the text: no model, no states, no steps of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from specport.core.ports import DraftRequest, Outcome, Prefilled
from specport.core.tree import TokenTree


class TextDrafter(ABC):
    """Base of such drafters: they look at the text when they are asked, request by request."""

    parallel = None

    @abstractmethod
    def _propose(self, request: DraftRequest) -> TokenTree:
        """Return the proposal for one request."""

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._propose(request) for request in requests]

    def behind(self, request: DraftRequest) -> int:
        """Return 0: there is no model to feed."""
        return 0

    # Abstract methods these are not: most drafters have nothing to do here.
    def prefilled(self, events: Sequence[Prefilled]) -> None:  # noqa: B027
        """Do nothing: the text is read at the next proposal."""

    def observe(self, outcomes: Sequence[Outcome]) -> None:  # noqa: B027
        """Do nothing: the text is read at the next proposal."""

    def forget(self, key: int) -> None:  # noqa: B027
        """Do nothing: there is no state of the text."""
