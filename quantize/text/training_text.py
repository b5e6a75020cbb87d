"""The text that drafts and models learn from: what their target writes, and the ids that occur in it most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specport.quantize.text import dialogues, shards

from specport.calibration import heads
from specport.models.source import ModelFiles
from specport.progress import Progress
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer


def write(
    loader: Loader,
    files: ModelFiles,
    tokenizer: Tokenizer,
    num_tokens: int,
    seed: int,
    prompts: Sequence[str],
    progress: Progress,
    elsewhere: shards.ShardWriter | None = None,
    temperature: float = 0.0,
) -> list[Path]:
    """Return shards of `num_tokens` tokens that a target answers; two at least, as one is held out.

    They are kept in the cache, where other builds for this target find them. The target runs with its fast
    kernels: training text need not be bit-exact.

    files: the target's. Others as for `shards.write_shards`. Raises ModelError.
    """
    folder = shards.folder_for(files.fingerprint, prompts, seed, temperature)
    return shards.write_shards(
        lambda: loader.target_with(files, exact=False).model, tokenizer, folder, num_tokens, seed, prompts,
        progress, least=2, elsewhere=elsewhere, temperature=temperature,
    )  # fmt: skip


def frequent_ids(size: int, tokenizer: Tokenizer, written: Sequence[Path]) -> tuple[int, ...] | None:
    """Return the `size` most frequent ids of shards and all special ids, ascending; None = all ids.

    size: 0 or the whole vocabulary = all ids. Raises ModelError for shards that cannot be read.
    """
    if not 0 < size < tokenizer.vocab_size:
        return None
    always = {*tokenizer.special_ids, *tokenizer.eos_ids}
    return heads.kept_ids(size, tokenizer.vocab_size, always, dialogues.token_counts(written))
