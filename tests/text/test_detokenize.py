"""Streaming text: whole characters, stop strings, sources; equal to the text in one piece."""

from __future__ import annotations

import random
import time

import pytest

from specport.text.detokenize import TextStream


class Bytes:
    """A tokenizer of one byte a token; 256 is a control token. Splits every character that can be split."""

    special_ids = frozenset([256])

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def test_control_tokens_are_shown_only_where_asked() -> None:
    class Marked(Bytes):
        def token_bytes(self, token: int) -> bytes:
            return b"<call>" if token == 256 else super().token_bytes(token)

    for shown, expected in ((frozenset(), "ab"), (frozenset([256]), "a<call>b")):
        out = TextStream(Marked(), shown=shown)
        for token in (97, 256, 98):
            out.push(token)
        out.finish()
        assert out.text == expected


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces given out, and whether a stop string ended the text."""
    out = TextStream(Bytes(), stop)
    pieces = []
    for byte in text.encode():
        if out.push(byte):
            pieces += [piece for piece, _ in out.finish()]
            assert out.text == "".join(pieces)
            return pieces, True
        pieces += [piece for piece, _ in out.take()]
    pieces += [piece for piece, _ in out.finish()]
    assert out.text == "".join(pieces)
    return pieces, False


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語🎉👩‍👩‍👧", "", " \n\t", "\ufffd"])
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str) -> None:
    pieces, stopped = stream(text)
    assert "".join(pieces) == text and not stopped
    assert all(piece for piece in pieces)


def test_a_cut_off_character_becomes_a_replacement_character() -> None:
    out = TextStream(Bytes())
    for byte in "né".encode()[:-1]:
        out.push(byte)
    assert [piece for piece, _ in (*out.take(), *out.finish())] == ["n", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stop", "expected", "stopped"),
    [
        ("one two three", (" two",), "one", True),
        ("one two three", ("three", "tw"), "one ", True),
        ("ababac", ("abac",), "ab", True),  # a false start inside the stop string itself
        ("aab", ("ab",), "a", True),
        ("one tw", ("two",), "one tw", False),  # held back, then given out at the end
        ("stop", ("stop",), "", True),
        ("x日本y", ("本",), "x日", True),
    ],
)
def test_stop_strings(text: str, stop: tuple[str, ...], expected: str, stopped: bool) -> None:
    pieces, ended = stream(text, stop)
    assert ("".join(pieces), ended) == (expected, stopped)


def test_no_piece_is_ever_taken_back() -> None:
    """Fuzzed: what was given out is a prefix of the final text, and the earliest stop string wins."""
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("abé", k=12))
        stop = tuple("".join(rng.choices("abé", k=rng.randint(1, 4))) for _ in range(2))
        pieces, stopped = stream(text, stop)
        # The token that completes a stop string ends the text; it is cut where its match begins.
        ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
        assert stopped == bool(ends)
        if ends:
            first_end = min(end for end, _ in ends)
            assert "".join(pieces) == text[: min(start for end, start in ends if end == first_end)]
        else:
            assert "".join(pieces) == text


def test_control_tokens_have_no_text() -> None:
    out = TextStream(Bytes())
    assert not out.push(256)
    out.push(ord("a"))
    assert out.take() == (("a", ""),)


def test_spans_carry_their_source() -> None:
    out = TextStream(Bytes(), stop=("!",))
    for byte, source in zip(b"abc", ("", "ngram", "model"), strict=True):
        out.push(byte, source)
    assert out.take() == (("a", ""), ("b", "ngram"), ("c", "model"))
    for byte in "é".encode():
        out.push(byte, "ngram")
    assert out.take() == (("é", "ngram"),)


@pytest.mark.parametrize(
    ("text", "stop", "kept"),
    [
        ("one two", (), "one two"),
        ("one two", (" tw",), "one"),
        ("stop", ("stop",), ""),
        ("x日本y", ("本",), "x日"),
        ("x日本y", ("日",), "x"),
        ("ab", ("bc",), "ab"),
    ],
)
def test_it_counts_the_tokens_that_the_text_is_made_of(text: str, stop: tuple[str, ...], kept: str) -> None:
    """One byte a token: what is held back is not given, what lies in a stop string is none of the text."""
    out = TextStream(Bytes(), stop)
    for byte in text.encode():
        stopped = out.push(byte)
        out.take()
        assert len(out.text.encode()) <= out.num_given <= out.num_tokens
        if stopped:
            break
    out.finish()
    assert out.num_given == out.num_tokens == len(kept.encode())
    assert out.text == kept


def test_a_token_without_text_counts_when_what_is_before_it_is_given() -> None:
    out = TextStream(Bytes(), ("ab",))
    out.push(ord("a"))
    out.push(256)
    out.take()
    assert (out.text, out.num_given, out.num_tokens) == ("", 0, 2)
    out.finish()
    assert (out.text, out.num_given) == ("a", 2)


def test_a_reader_that_stopped_costs_nothing() -> None:
    """Each token takes the same time, however much waits to be taken."""
    out = TextStream(Bytes(), ("never", "seen"))
    began = time.process_time()
    for _ in range(60_000):
        out.push(ord("n"))
        _ = out.num_given
    assert time.process_time() - began < 3  # 0.1 s; with a search through all of it, minutes
    assert len("".join(text for text, _ in out.take())) == 59_999  # the last may begin a stop string
    out.push(ord("x"))
    assert "".join(text for text, _ in out.take()) == "nx"
