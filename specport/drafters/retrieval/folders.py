"""What the suffix drafter looks into beside the text itself: opens the folders that the user named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from specport.drafters.retrieval.datastore import open_datastore
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.history_file import open_history
from specport.drafters.spec import SUFFIX, Retrieval
from specport.errors import InvalidInput
from specport.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Folders:
    """history: where texts are kept from run to run. datastore: made by `specport datastore build`."""

    history: str | Path | None = None
    datastore: str | Path | None = None

    def check(self, parts: Iterable[str]) -> None:
        """Raises InvalidInput where a folder is named that no drafter of `parts` (drafting.parse) reads."""
        if SUFFIX not in parts and (self.history is not None or self.datastore is not None):
            raise InvalidInput(
                "a history or datastore is read by the drafter suffix only", "add --draft suffix"
            )

    def open(
        self, tokenizer: Tokenizer, vocab_size: int, *, learn: bool = True
    ) -> tuple[Retrieval, list[str]]:
        """What is in the folders, and what the user should know of it. Raises InvalidInput and ModelError.

        learn: whether texts are remembered; without a folder, until the process ends.
        """
        notes: list[str] = []
        history = History() if learn else None
        if self.history is not None:
            folder = Path(self.history).expanduser()
            history, notes = open_history(folder, tokenizer.fingerprint, vocab_size, learn=learn)
        datastore = None
        if self.datastore is not None:
            datastore = open_datastore(Path(self.datastore).expanduser(), tokenizer, vocab_size)
        return Retrieval(history, datastore), notes
