"""Open the folders that the user named for the suffix drafter: a history and a datastore."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.drafters.context import Retrieval
from specport.drafters.registry import SUFFIX
from specport.drafters.retrieval.datastore import open_datastore
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.history_file import open_history
from specport.drafters.spec import DraftSpec
from specport.errors import InvalidInput
from specport.outside.places import expanded
from specport.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Folders:
    """Hold the folders that the user named.

    history:   keeps texts from run to run.
    datastore: made by `specport datastore build`.
    """

    history: str | Path | None = None
    datastore: str | Path | None = None

    def check(self, *specs: DraftSpec) -> None:
        """Raise InvalidInput where a folder is named that none of these drafters reads."""
        if not any(SUFFIX in spec.kinds for spec in specs) and (
            self.history is not None or self.datastore is not None
        ):
            raise InvalidInput(
                "a history or datastore is read by the drafter suffix only", "add --draft suffix"
            )

    def open(
        self, tokenizer: Tokenizer, vocab_size: int, *, learn: bool = True
    ) -> tuple[Retrieval, list[str]]:
        """Return the opened folders, and notes for the user.

        learn: whether to remember texts; without a history folder, until the process ends.

        Raises InvalidInput and ModelError as `open_history` and `open_datastore`.
        """
        notes: list[str] = []
        history = History() if learn else None
        if self.history is not None:
            folder = expanded(self.history)
            history, notes = open_history(folder, tokenizer.fingerprint, vocab_size, learn=learn)
        datastore = None
        if self.datastore is not None:
            datastore = open_datastore(expanded(self.datastore), tokenizer, vocab_size)
        return Retrieval(history, datastore), notes
