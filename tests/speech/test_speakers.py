"""Who spoke when: groups of voices, turns, both merges, and the error rate."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from specport.errors import InvalidInput
from specport.speech.audio.vad import Span
from specport.speech.speakers import diarize
from specport.speech.speakers.clustering import MOST, cluster
from specport.speech.speakers.merge import by_turns, by_words, speakers_at
from specport.speech.speakers.score import _best_pairing, diarization_error, read_rttm
from specport.speech.transcript import Segment, Turn, Word

A, B = "SPEAKER_00", "SPEAKER_01"


def voices(sizes: list[int], noise: float = 0.08, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = np.linalg.qr(random.standard_normal((32, len(sizes))))[0].T
    labels = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centres[labels] + noise * random.standard_normal((len(labels), 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("sizes", [[30], [20, 30], [15, 40, 25], [20, 20, 20, 20], [2 * MOST, MOST]])
def test_voices_are_counted_and_grouped(sizes: list[int]) -> None:
    vectors, labels = voices(sizes)
    assert cluster(vectors).tolist() == labels.tolist()
    if len(vectors) < MOST:
        assert cluster(vectors, len(sizes)).tolist() == labels.tolist()
        assert len({*cluster(vectors, 1)}) == 1


def test_few_vectors() -> None:
    vectors, _ = voices([1, 1])
    assert cluster(vectors[:0]).tolist() == [] and cluster(vectors[:1]).tolist() == [0]
    assert cluster(vectors, 2).tolist() == [0, 1] and cluster(vectors, 5).tolist() == [0, 1]


def test_turns_in_a_stretch_of_speech() -> None:
    span = Span(10.0, 18.0)
    spots = diarize._spots(span)
    assert spots[0].start == 10.0 and spots[-1].end == pytest.approx(18.0) and len(spots) == 17
    first = np.array([(s.start + s.end) / 2 < 14 for s in spots])
    likeness = np.where(first[:, None], [0.8, 0.6], [0.6, 0.8]).astype(np.float32)
    likeness[3] = [0.69, 0.71]  # a moment's doubt is no turn
    found = diarize._span_turns(span, spots, likeness)
    assert [t.speaker for t in found] == ["0", "1"] and found[0].end == pytest.approx(14.0, abs=0.25)
    assert diarize._spots(Span(1.0, 1.5)) == [Span(1.0, 1.5)]
    turns = [Turn(0, 1, "7"), Turn(1.1, 2, "7"), Turn(2, 3, "1")]
    assert diarize._named(diarize._joined(turns)) == [Turn(0, 2, A), Turn(2, 3, B)]


def words(text: str, start: float, step: float = 1.0) -> tuple[Word, ...]:
    return tuple(Word(start + i * step, start + (i + 1) * step, f" {w}") for i, w in enumerate(text.split()))


def segment(start: float, end: float, text: str) -> Segment:
    found = words(text, start, (end - start) / len(text.split()))
    return Segment(start, end, f" {text}", words=found)


def test_words_go_to_who_speaks_then() -> None:
    turns = [Turn(0, 2.1, A), Turn(2.1, 5, B)]
    found = by_words([segment(0, 4, "how are you fine"), segment(6, 7, "thanks")], turns)
    assert [(s.speaker, s.text, s.start, s.end) for s in found] == [
        (A, " how are", 0, 2), (B, " you fine", 2, 4), (B, " thanks", 6, 7),
    ]  # fmt: skip
    assert found[0].words[0].speaker == A
    plain = by_words([Segment(1, 4, " no words")], turns)
    assert [s.speaker for s in plain] == [B]
    assert by_words([segment(0, 1, "x")], []) == [segment(0, 1, "x")]


def test_turns_take_the_lines_that_end_nearest() -> None:
    lines = [Segment(0, 2, "a"), Segment(2, 4, "b"), Segment(4, 9, "c"), Segment(9, 12, "d")]
    turns = [Turn(0, 1, A), Turn(1.5, 4.2, A), Turn(4.4, 8.8, B), Turn(9.1, 12, A)]
    assert [s.speaker for s in by_turns(lines, turns)] == [A, A, B, A]
    # A turn ends where the next begins, so that a silence belongs to the one before.
    assert [s.speaker for s in by_turns(lines, [Turn(0, 2, A), Turn(8.8, 12, B)])] == [A, A, A, B]
    # Each turn takes at least one line: a short one takes its neighbour's.
    short = [Turn(0, 8.9, A), Turn(8.9, 9.0, B), Turn(9.0, 12, A)]
    assert [s.speaker for s in by_turns(lines[2:], short)] == [A, B]
    assert [s.speaker for s in by_turns(lines, [Turn(0, 2.2, A)])] == [A, None, None, None]
    assert [s.speaker for s in by_turns(lines, [])] == [None] * 4


def test_error_rate() -> None:
    truth = [Turn(0, 10, "x"), Turn(10, 20, "y")]
    assert diarization_error(truth, [Turn(0, 10, B), Turn(10, 20, A)]).rate == 0
    late = diarization_error(truth, [Turn(0, 12, A), Turn(12, 20, B)], collar=0)
    assert (late.total, late.confusion, late.missed, late.false_alarm) == pytest.approx((20, 2, 0, 0))
    assert diarization_error(truth, [Turn(0, 12, A), Turn(12, 20, B)]).confusion == pytest.approx(1.75)
    missed = diarization_error(truth, [Turn(0, 10, A)], collar=0)
    assert missed.rate == pytest.approx(0.5) and missed.missed == pytest.approx(10)
    extra = diarization_error(truth, [*truth, Turn(20, 25, "z")], collar=0)
    assert extra.false_alarm == pytest.approx(5)
    both = [Turn(0, 10, "x"), Turn(5, 10, "y")]
    assert diarization_error(both, [Turn(0, 10, A)], collar=0).missed == pytest.approx(5)
    assert diarization_error([], []).rate == 0 and diarization_error([], truth).rate == 1
    many = [Turn(i, i + 1, str(i)) for i in range(9)]
    assert diarization_error(many, many, collar=0).rate == 0


@pytest.mark.parametrize("collar", [0.0, 0.25])
def test_error_rate_is_that_of_pyannote(collar: float) -> None:
    metrics = pytest.importorskip("pyannote.metrics.diarization", reason="pip install pyannote.metrics")
    core = pytest.importorskip("pyannote.core")

    def annotation(turns: list[Turn]) -> object:
        found = core.Annotation()
        for i, turn in enumerate(turns):
            found[core.Segment(turn.start, turn.end), i] = turn.speaker
        return found

    def turns(seed: int, speakers: int) -> list[Turn]:
        """Return turns that overlap those of other speakers only."""
        rng = np.random.default_rng(seed)
        edges = [np.sort(rng.uniform(0, 60, 8)).tolist() for _ in range(speakers)]
        return [
            Turn(a, b, str(i))
            for i, each in enumerate(edges)
            for a, b in zip(each[::2], each[1::2], strict=True)
        ]

    for seed in range(8):
        truth, found = turns(seed, 3), turns(seed + 100, 4)
        # Its collar is the whole width around a border.
        rate = metrics.DiarizationErrorRate(collar=2 * collar, skip_overlap=False)
        extent = core.Timeline([core.Segment(0.0, 100.0)])
        expected = rate(annotation(truth), annotation(found), uem=extent)
        assert diarization_error(truth, found, collar).rate == pytest.approx(expected, abs=1e-6)


def test_speakers_are_paired_as_a_solver_pairs_them() -> None:
    """Taking the largest share first is wrong for half of these."""
    solver = pytest.importorskip("scipy.optimize").linear_sum_assignment
    rng = np.random.default_rng(0)
    for rows, columns in ((1, 1), (2, 2), (3, 5), (8, 3), (8, 8), (12, 9)):
        for _ in range(5):
            shared = rng.integers(0, 9, (rows, columns)).astype(float)
            pairs = _best_pairing(shared)
            assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == min(rows, columns)
            assert sum(shared[pair] for pair in pairs) == shared[solver(shared, maximize=True)].sum()


def test_rttm_and_overlap(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    path.write_text(
        "SPEAKER a 1 6.690 0.430 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 7.0 2 <NA> <NA> y <NA> <NA>\n"
    )
    assert read_rttm(path) == [Turn(6.69, pytest.approx(7.12), "x"), Turn(7.0, 9.0, "y")]
    assert [t.overlap for t in diarize.GivenTurns(path)._turns] == [True, True]
    assert not diarize.mark_overlap([Turn(0, 1, A), Turn(1, 2, B)])[0].overlap
    for wrong in (
        "x",
        "nan 1 <NA> <NA> x",
        "inf 1 <NA> <NA> x",
        "-1 1 <NA> <NA> x",
        "1 -1 <NA> <NA> x",
        "1 1",
    ):
        path.write_text(f"SPEAKER a 1 {wrong}\n")
        with pytest.raises(InvalidInput, match="no RTTM"):
            read_rttm(path)
    path.write_text("SPEAKER a 1 1 0 <NA> <NA> x <NA> <NA>\n")
    assert read_rttm(path) == []
    with pytest.raises(InvalidInput, match="regular file"):
        read_rttm(tmp_path)


def test_overlap_is_told_of_any_two_speakers() -> None:
    random = np.random.default_rng(0)
    starts, lengths = random.integers(0, 30, 40), random.integers(1, 6, 40)
    turns = [
        Turn(float(start), float(start + length), str(i % 3))
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ][:20]
    for turn in diarize.mark_overlap(turns):
        others = (other for other in turns if other.speaker != turn.speaker)
        assert turn.overlap == any(o.start < turn.end and turn.start < o.end for o in others)
    assert len({turn.overlap for turn in diarize.mark_overlap(turns)}) == 2


def random_turns(random: np.random.Generator, count: int, speakers: int) -> list[Turn]:
    starts, lengths = random.uniform(0, 60, count), random.uniform(0.1, 4, count)
    return [
        Turn(float(s), float(s + length), f"s{i % speakers}")
        for i, (s, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def test_words_are_given_as_a_search_through_all_turns_gives_them() -> None:
    random = np.random.default_rng(1)
    turns = random_turns(random, 30, 4)
    one = [turn for turn in turns if turn.speaker != "s3"]  # of the others no turns of one speaker overlap
    spans = np.cumsum([random.uniform(-5, 70, 300), random.uniform(0, 3, 300)], axis=0)
    times = [(float(start), float(end)) for start, end in spans.T]
    for found, (start, end) in zip(speakers_at(times, one), times, strict=True):
        spoken = {
            name: sum(
                any(t.speaker == name and t.start <= moment < t.end for t in one)
                for moment in np.linspace(start, end, 400, endpoint=False)
            )
            for name in ("s0", "s1", "s2")
        }
        if end - start > 0.05 and max(spoken.values()) > 8:
            assert spoken[found] >= max(spoken.values()) - 4
        elif not any(t.start < end and start < t.end for t in one):
            middle = (start + end) / 2
            away = {t.speaker: min(abs(t.start - middle), abs(t.end - middle)) for t in one}
            for t in one:
                away[t.speaker] = min(away[t.speaker], abs(t.start - middle), abs(t.end - middle))
            assert away[found] == min(away.values())


def test_a_day_of_speech_takes_a_moment() -> None:
    """20,000 words of 20,000 turns, all of which one turn overlaps: no pair of them is looked at."""
    turns = [Turn(0, 40_000, "all"), *(Turn(2 * i, 2 * i + 1, f"s{i % 8}") for i in range(20_000))]
    lines = [Segment(2 * i, 2 * i + 1, "a b", words=words("a b", 2 * i, 0.5)) for i in range(10_000)]
    began = time.process_time()
    assert by_words(lines, turns)[3].speaker == "all"
    assert len(by_turns(lines, turns)) == 10_000
    assert all(turn.overlap for turn in diarize.mark_overlap(turns))
    assert time.process_time() - began < 5  # 800 million comparisons would take minutes


def test_a_file_with_thousands_of_speakers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.rttm"
    path.write_text("".join(f"SPEAKER a 1 {i} 1 <NA> <NA> s{i} <NA> <NA>\n" for i in range(300)))
    with pytest.raises(InvalidInput, match="more than 256 speakers"):
        read_rttm(path)
