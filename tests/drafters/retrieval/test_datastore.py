"""Datastores: built from files as people have them, refused where they are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.toys import toy_pipeline

from specport.cli import main
from specport.core.ports import DraftRequest, Plan
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.drafters.retrieval import datastore
from specport.drafters.retrieval.datastore import (
    MANIFEST_FILE,
    ORDER_FILE,
    TOKENS_FILE,
    build,
    open_datastore,
)
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.retrieval.suffix_index import GAP, Ending
from specport.errors import InvalidInput, ModelError
from specport.models import manifest


class Tokenizer(toy_pipeline.ToyTokenizer):
    vocab_size = len(toy_pipeline.LETTERS)

    def __init__(self, fingerprint: str = "toy") -> None:
        self.fingerprint = fingerprint

    def encode(self, text: str, parse_special: bool = True) -> list[int]:
        return super().encode(text)


TOY = Tokenizer()


def open_(folder: Path, tokenizer: Tokenizer = TOY):
    return open_datastore(folder, tokenizer, tokenizer.vocab_size)  # type: ignore[arg-type]


def build_(paths: list[Path], out: Path, **options: int) -> datastore.Built:
    return build(paths, out, TOY, **options)  # type: ignore[arg-type]


def texts(folder: Path) -> list[str]:
    letters = "".join("|" if t == GAP else toy_pipeline.LETTERS[t] for t in open_(folder).tokens.tolist())
    return letters.removesuffix("|").split("|")


def test_what_follows_in_a_file_is_drafted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh")
    (tmp_path / "b.txt").write_text("hgfedcba")
    built = build_([tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.txt"], tmp_path / "store")
    assert (built.num_files, built.num_tokens, built.skipped) == (2, 18, {})
    drafter = SuffixDrafter(None, open_(tmp_path / "store"), tokens_per_match=None, least=0.0)
    context = TOY.encode("j de")
    (tree,) = drafter.propose([DraftRequest(0, context, Plan(9), Sampler(SamplingParams()))])
    assert TOY.decode(tree.tokens) == "fgh"


def test_odd_files_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "src"
    (root / "sub").mkdir(parents=True)
    for folder in (".git", "node_modules", "sub/__pycache__"):
        (root / folder).mkdir()
        (root / folder / "x.txt").write_text("jjjj")
    (root / "sub" / "good.py").write_text("abc\nde")
    (root / "marked.txt").write_bytes(b"\xef\xbb\xbfaabb")
    (root / "image").write_bytes(b"\x89PNG\xff\xfe")
    (root / "nul.txt").write_bytes(b"ab\0cd")
    (root / "empty.txt").write_bytes(b" \n")
    (root / "line.js").write_text("a" * 20_000)
    (root / "data.csv").write_text("a\n" * datastore.MAX_FILE_BYTES)
    (root / "secret").write_text("jj")
    real = Path.read_text

    def read_text(path: Path, **options: str) -> str:
        if path.name == "secret":  # root may read anything
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    skipped = {"binary": 2, "empty": 1, "generated": 1, "too large": 1, "unreadable": 1}
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe")  # reading it would wait for ever
        skipped["not a regular file"] = 1
    built = build_([root], tmp_path / "store")
    assert built.skipped == skipped
    assert texts(tmp_path / "store") == [TOY.decode(TOY.encode(text)) for text in ("aabb", "abc\nde")]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text("abc")
    try:
        (tmp_path / "src" / "loop").symlink_to(tmp_path / "src", target_is_directory=True)
        (tmp_path / "src" / "b.txt").symlink_to(tmp_path / "src" / "a.txt")
        (tmp_path / "src" / "dangling").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("links are not allowed here")
    assert build_([tmp_path / "src"], tmp_path / "store").num_files == 1


def test_a_limit_leaves_files_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name * 10)
    built = build_([tmp_path / name for name in "abc"], tmp_path / "store", max_tokens=25)
    assert (built.num_files, built.num_left_out, built.num_tokens) == (2, 1, 22)


def test_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "image").write_bytes(b"\xff")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("abc")
    with pytest.raises(InvalidInput, match="no file or folder"):
        build_([tmp_path / "nothing"], tmp_path / "store")
    with pytest.raises(InvalidInput, match=r"no text .*1 binary"):
        build_([tmp_path / "image"], tmp_path / "store")
    with pytest.raises(InvalidInput, match="is no datastore"):
        build_([tmp_path / "a.txt"], tmp_path / "mine")
    with pytest.raises(InvalidInput, match="max_tokens"):
        build_([tmp_path / "a.txt"], tmp_path / "store", max_tokens=0)
    with pytest.raises(InvalidInput, match="cannot write"):
        build_([tmp_path / "a.txt"], tmp_path / "a.txt" / "store")
    with pytest.raises(InvalidInput, match="is no datastore"):
        open_(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "abc"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "image", "mine"]


def test_an_older_datastore_is_replaced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name * 5)
        build_([tmp_path / name], tmp_path / "store")
        assert texts(tmp_path / "store") == [name * 5]


def test_the_old_datastore_stays_until_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rename fails, as on Windows where a program has a file of the folder open."""

    source = tmp_path / "a"
    source.write_text("abc")
    out = tmp_path / "store"
    build_([source], out)
    before = open_(out).tokens.tolist()
    real = os.replace

    def failing(old: Path, new: Path) -> None:
        if Path(new) == out and (Path(old) / MANIFEST_FILE).is_file() and old not in aside:
            raise PermissionError(13, "in use")
        aside.append(new)
        real(old, new)

    aside: list[Path] = []
    monkeypatch.setattr(os, "replace", failing)
    source.write_text("cba")
    with pytest.raises(InvalidInput, match="in use"):
        build_([source], out)
    monkeypatch.undo()
    assert open_(out).tokens.tolist() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "store"]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    build_([tmp_path / "a"], tmp_path / "store")
    with pytest.raises(InvalidInput, match="another tokenizer"):
        open_(tmp_path / "store", Tokenizer("other"))


def forged(folder: Path, tokens: list[int], order: list[int]) -> None:
    """A datastore with a good manifest over numbers that nobody counted."""
    np.array(tokens, dtype="<i4").tofile(folder / TOKENS_FILE)
    np.array(order, dtype="<i4").tofile(folder / ORDER_FILE)
    manifest.write(folder, {"tokenizer": "toy"}, MANIFEST_FILE)


@pytest.mark.parametrize(
    ("tokens", "order"),
    [
        ([1, 2, 3], [1, 3]),  # a position outside
        ([1, 2, 3], [0, 1]),
        ([1, 2, 3], [1]),  # too few
        ([1, 99, 3], [1, 2]),  # outside the vocabulary
        ([1, -2, 3], [1, 2]),
        ([1], []),
        ([], []),
    ],
)
def test_forged_numbers_are_refused(tmp_path: Path, tokens: list[int], order: list[int]) -> None:
    forged(tmp_path, tokens, order)
    with pytest.raises(ModelError, match="out of range"):
        open_(tmp_path)


def test_an_order_that_is_none_finds_less_and_breaks_nothing(tmp_path: Path) -> None:
    forged(tmp_path, [1, 2, 3, 1, 2, 3], [2, 2, 5, 1, 4])
    index = open_(tmp_path)
    for context in ([1], [1, 2], [3, 1, 2, 3], [9]):
        found = index.find(Ending.of(context), 4)
        assert len(found.lengths) == len(found.follow)


@pytest.mark.parametrize("name", [TOKENS_FILE, ORDER_FILE, MANIFEST_FILE])
def test_a_damaged_datastore_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_text("abcabc")
    build_([tmp_path / "a"], tmp_path / "store")
    path = tmp_path / "store" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ModelError, match="damaged"):
        open_(tmp_path / "store")


def test_the_command_builds_and_says_what_was_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    loader = SimpleNamespace(
        profile=SimpleNamespace(precision="int8"),
        files=lambda model, precision: SimpleNamespace(folder=tmp_path, name=model or "default"),
    )
    monkeypatch.setattr("specport.runtime.loading.Loader.on", lambda *args, **options: loader)
    monkeypatch.setattr("specport.text.tokenizer.load_tokenizer", lambda folder: TOY)
    (tmp_path / "a").write_text("abc")
    (tmp_path / "b").write_bytes(b"\xff")
    out = tmp_path / "store"
    ask = ["datastore", "build", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--model", "m"]
    assert main(ask) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n" and "4 tokens from 1 files for m; skipped: 1 binary" in said.err
    assert json.loads((out / MANIFEST_FILE).read_text())["about"] == {
        "tokenizer": "toy", "files": 1, "tokens": 4,
    }  # fmt: skip
    assert main(["datastore", "build", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "no file or folder" in capsys.readouterr().err
