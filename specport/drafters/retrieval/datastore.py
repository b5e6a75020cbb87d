"""A datastore: the user's own files as token ids, sorted for lookup (REST, arXiv 2311.08252).

`specport datastore build` makes it once; the suffix drafter reads it. It is a folder with two files of raw
32-bit numbers and a manifest. It is untrusted: a wrong datastore can only cause wrong drafts.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specport.drafters.retrieval.suffix_index import GAP, Ints, SuffixIndex
from specport.errors import InvalidInput, ModelError
from specport.models import manifest
from specport.models.atomic import new_folder, recovered, remove_stale_folders, replace_folder
from specport.models.os_errors import cause
from specport.models.safe_files import UnsafeFile, inside
from specport.outside.places import expanded
from specport.progress import Progress, silent
from specport.text.tokenizer import Tokenizer

MANIFEST_FILE = "specport-datastore.json"
TOKENS_FILE, ORDER_FILE = "tokens.i32", "order.i32"
MAX_TOKENS = 20_000_000  # takes a quarter of a gigabyte of memory
MAX_FILE_BYTES, MAX_LINE = 1 << 20, 10_000  # larger files and longer lines are data or generated
SKIPPED_FOLDERS = ("node_modules", "__pycache__", "venv", "site-packages")  # besides hidden folders


@dataclass(frozen=True)
class Built:
    """Report the inputs of a datastore.

    skipped:      reason -> number of files.
    num_left_out: number of files beyond the token limit.
    """

    num_files: int
    num_tokens: int
    skipped: dict[str, int]
    num_left_out: int


def build(
    paths: Sequence[Path],
    out: Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int = MAX_TOKENS,
    progress: Progress = silent,
) -> Built:
    """Tokenize text files and folders of them into a datastore at `out`; replace an older datastore there.

    Links and hidden folders are ignored; binary, generated and unreadable files are skipped and counted.

    Raises InvalidInput for a path that does not exist, for no text at all, and where `out` exists and is not
    a datastore.
    """
    if max_tokens < 1:
        raise InvalidInput(f"max_tokens is {max_tokens}; it must be 1 or more")
    if out.exists() and not (out.is_dir() and (_is_datastore(out) or not any(out.iterdir()))):
        raise InvalidInput(f"{out} is there and is no datastore", "name another folder with --out")
    files = [*dict.fromkeys(file for path in paths for file in _files(path))]
    skipped: Counter[str] = Counter()
    pieces: list[Ints] = []
    num_tokens, used, num_left_out = 0, 0, 0
    for i, file in enumerate(files):
        progress("reading files", 0.9 * i / len(files))
        text, reason = _text(file)
        if reason:
            skipped[reason] += 1
            continue
        ids = [*tokenizer.encode(text, parse_special=False), GAP]
        if num_tokens + len(ids) > max_tokens:
            num_left_out += 1
            continue
        pieces.append(np.array(ids, dtype=np.int32))
        num_tokens, used = num_tokens + len(ids), used + 1
    if not pieces:
        why = ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "no files"
        raise InvalidInput(f"there is no text for a datastore ({why})", "name text or code files")
    progress("sorting", 0.9)
    index = SuffixIndex(np.concatenate(pieces))
    built = Built(used, num_tokens, dict(skipped), num_left_out)
    try:
        _write(out, index, {"tokenizer": tokenizer.fingerprint, "files": used, "tokens": num_tokens})
    except OSError as error:
        message, hint = cause(error)
        raise InvalidInput(f"cannot write the datastore {out}: {message}", hint) from error
    progress("done", 1.0)
    return built


def open_datastore(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> SuffixIndex:
    """Return the index of a datastore, with ids below `vocab_size`.

    Raises InvalidInput where there is no datastore or one of another tokenizer, and ModelError where it is
    damaged.
    """
    if not _is_datastore(recovered(folder.absolute())):
        raise InvalidInput(f"{folder} is no datastore", "make one: specport datastore build PATH --out DIR")
    again = "build it again: specport datastore build"
    if wrong := manifest.damage(folder, MANIFEST_FILE):
        raise ModelError(f"the datastore {folder} is damaged: {wrong}", again)
    about = (manifest.read(folder, MANIFEST_FILE) or {}).get("about", {})
    if about.get("tokenizer") != tokenizer.fingerprint:
        raise InvalidInput(
            f"the datastore {folder} was built for another tokenizer", f"{again} --model MODEL"
        )
    try:
        # Check these names here, since the untrusted manifest may not list them.
        paths = [inside(folder, name) for name in (TOKENS_FILE, ORDER_FILE)]
        tokens, order = (np.fromfile(path, dtype="<i4") for path in paths)
    except UnsafeFile as error:
        raise ModelError(f"the datastore {folder} is damaged: {error}", again) from error
    except OSError as error:
        raise ModelError(f"cannot read the datastore {folder}: {error.strerror or error}") from error
    whole = len(tokens) > 1 and len(order) == len(tokens) - 1
    if not (whole and _within(tokens, GAP, vocab_size) and _within(order, 1, len(tokens))):
        raise ModelError(f"the datastore {folder} is damaged: its numbers are out of range", again)
    return SuffixIndex(tokens.astype(np.int32), order.astype(np.int32))


def _is_datastore(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()


def _within(numbers: Ints, low: int, high: int) -> bool:
    return bool(low <= numbers.min() and numbers.max() < high)


def _files(path: Path) -> Iterator[Path]:
    """Yield the file itself, or the files below a folder in a stable order, without following links."""
    path = expanded(path).resolve()
    if not path.exists():
        raise InvalidInput(f"there is no file or folder {path}")
    if not path.is_dir():
        yield path
        return
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(".") and n not in SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names) if not Path(folder, name).is_symlink())


def _text(path: Path) -> tuple[str, str]:
    """Return a file's text and "", or the reason why it is skipped."""
    try:
        if not path.is_file():
            return "", "not a regular file"
        if path.stat().st_size > MAX_FILE_BYTES:
            return "", "too large"
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return "", "binary"
    except OSError:
        return "", "unreadable"
    reason = ""
    if "\0" in text:
        reason = "binary"
    elif not text.strip():
        reason = "empty"
    elif max(map(len, text.splitlines())) > MAX_LINE:
        reason = "generated"
    return text, reason


def _write(out: Path, index: SuffixIndex, about: dict[str, object]) -> None:
    """Write a datastore atomically: build it in a temporary folder beside `out`, then move it there."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_folders(out.parent, f".{out.name[:100]}")
    work = new_folder(out.parent, f".{out.name[:100]}")
    try:
        index.tokens.astype("<i4").tofile(work / TOKENS_FILE)
        index.order.astype("<i4").tofile(work / ORDER_FILE)
        manifest.write(work, about, MANIFEST_FILE)
        replace_folder(work, out)
    except BaseException:  # Ctrl-C as well
        shutil.rmtree(work, ignore_errors=True)
        raise
