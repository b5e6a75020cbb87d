"""Drafts for speech: the cut, what the target hears, the training, and the command from end to end."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
for package in ("accelerate", "av", "openvino"):
    pytest.importorskip(package)

from specport.quantize.convert.whisper import export, source  # noqa: E402
from specport.quantize.speech import about, recordings, training  # noqa: E402
from specport.quantize.speech.build import TRAIN, build  # noqa: E402
from specport.quantize.speech.cut import cut, kept_layers, with_mask  # noqa: E402
from specport.quantize.speech.material import Material, Part  # noqa: E402
from specport.quantize.speech.measure import measure  # noqa: E402
from specport.quantize.speech.recipe import Recipe  # noqa: E402
from specport.quantize.text.dialogues import Dialogue  # noqa: E402
from specport.quantize.train import batches  # noqa: E402
from specport.quantize.train.parallel.chains import packed_whole  # noqa: E402
from support.tiny import tiny_whisper  # noqa: E402
from support.toys.scripted_speech import tone, write_wav  # noqa: E402
from transformers import WhisperForConditionalGeneration  # noqa: E402

from specport import speech  # noqa: E402
from specport.cli import main  # noqa: E402
from specport.jobs import worker  # noqa: E402
from specport.models import tensors  # noqa: E402
from specport.models.kinds.whisper import (  # noqa: E402
    FACTS,
    find_encoder_key,
    find_head_tokens,
    find_parallel,
    read_shape,
)

LAYERS, SIZE = 3, (4, 2)
VOCAB = 286  # ids of text of the tiny models
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "target"
    return tiny_whisper.make(folder, layers=LAYERS, frames=1500, context=64)


def test_which_layers_are_kept() -> None:
    assert [kept_layers(6, n) for n in (1, 2, 3)] == [(0,), (0, 5), (0, 2, 5)]
    assert kept_layers(32, 4) == (0, 10, 21, 31)
    for count in (0, -1, 6):
        with pytest.raises(InvalidInput, match="keep 1 to 5"):
            kept_layers(6, count)


def test_a_cut_that_keeps_all_layers_changes_nothing(target: Path, tmp_path: Path) -> None:
    found = source.read(target)
    logits = []
    for name, layers in (("all", (0, 1, 2)), ("swapped", (0, 2))):
        (folder := tmp_path / name).mkdir()
        export.write(target, folder, cut(found, layers))
        assert find_encoder_key(folder) == find_encoder_key(target)
        logits.append(_logits(folder))
    assert np.array_equal(logits[0], _logits(target))
    by_hand = WhisperForConditionalGeneration.from_pretrained(target).eval()
    del by_hand.model.decoder.layers[1]
    assert np.array_equal(logits[1], _logits(by_hand))
    assert not np.allclose(logits[0], logits[1])
    heads = json.loads((tmp_path / "swapped" / "generation_config.json").read_text())["alignment_heads"]
    assert heads == [[1, 1]]  # of layer 2; that of layer 1 is gone


def _logits(model: Any) -> np.ndarray:
    if isinstance(model, Path):
        model = WhisperForConditionalGeneration.from_pretrained(model).eval()
    features = np.random.default_rng(0).normal(size=(1, tiny_whisper.MELS, 3000)).astype(np.float32)
    with torch.no_grad():
        ids = torch.tensor([[287, 5, 9, 70]])
        found: np.ndarray = model(
            torch.from_numpy(features), decoder_input_ids=ids, use_cache=False
        ).logits.numpy()
    return found


def _text(length: int) -> Dialogue:
    top = np.arange(2 * length).reshape(length, 2)
    return Dialogue(
        np.arange(length + 1, dtype=np.int32), 1, top.astype(np.int32), np.full((length, 2), 0.5, "f4")
    )


def test_what_a_killed_run_left_half_written_is_forgotten(tmp_path: Path) -> None:
    material = Material(tmp_path, SIZE)
    first = [np.full(SIZE, i, np.float32) for i in range(2)]
    material.add(Part(0, "en", (0, 480000), (), 960000, 2, (1, 2)), [_text(3), _text(2)], first)
    with open(tmp_path / "states.bin", "ab") as file:
        file.write(b"half of a window")
    again = Material(tmp_path, SIZE)
    assert again.parts[-1].state.context == (1, 2) and not again.parts[-1].ended
    again.add(Part(0, "en", (960000,), ended=True), [_text(4)], [np.full(SIZE, 7, np.float32)])
    texts = Material(tmp_path, SIZE).texts()
    assert [len(text.tokens) for text in texts] == [4, 3, 5]
    assert [float(text.hidden.mean()) for text in texts if text.hidden is not None] == [0, 1, 7]
    (tmp_path / "states.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="is damaged"):
        again.texts()


@pytest.mark.parametrize(
    ("counts", "held"), [((20,), 2), ((3, 1), 1), ((10, 1, 1, 8), 2), ((5, 5), 1), ((1, 1), 1)], ids=str
)
def test_a_tenth_is_held_out_whole_recordings_where_some_fit(
    counts: tuple[int, ...], held: int, tmp_path: Path
) -> None:
    material = Material(tmp_path, SIZE)
    for file, count in enumerate(counts):
        places = tuple(range(count))
        states = [np.zeros(SIZE, np.float32)] * count
        material.add(Part(file, "en", places, ended=True), [_text(2)] * count, states)
    chosen = material.held_out(0)
    assert len(chosen) == held and chosen == sorted({*chosen})
    owners = [file for file, _, _ in material.windows]
    if 1 in counts and sum(counts) > 3:
        assert {owners[i] for i in chosen}.isdisjoint(
            owners[i] for i in range(len(owners)) if i not in chosen
        )


def test_the_command_from_end_to_end(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped while it listens, and again while it trains: the model of one run, and the same ids with it."""
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("specport.quantize.speech.build.HEAD", 64)
    (talks := tmp_path / "talks").mkdir()
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000).astype(np.float32)
    for number, samples in enumerate((tone(0.8), noise, tone(1.0) + noise)):
        write_wav(talks / f"{number}.wav", samples)
    (talks / "broken.wav").write_bytes(b"RIFF, no more")
    out, recipe = tmp_path / "draft", Recipe(epochs=8.0, learning_rate=3e-3)
    work, copy = tmp_path / "draft.partial", tmp_path / "copy"

    def stop(stage: str, share: float) -> None:
        if stage.startswith(("listening to 2", "distilling")) and share > 0.5 * (stage[0] == "d"):
            raise KeyboardInterrupt

    def measured(*given: Any) -> Any:
        shutil.copytree(work, copy)
        return measure(*given)

    with pytest.raises(KeyboardInterrupt):
        build(str(target), [talks], out, recipe, precision="fp32", progress=stop)
    assert not out.exists() and work.is_dir()
    run_job = worker.run

    def run(job: worker.Job, arguments: Any, *given: Any, **more: Any) -> Any:
        if job is not TRAIN:
            return run_job(job, arguments, *given, **more)
        return training.train(**arguments, progress=more["progress"])  # a process would import torch again

    monkeypatch.setattr(worker, "run", run)
    monkeypatch.setattr("specport.quantize.speech.build.measure", measured)
    command = ["quantize", "speech", "--audio", str(talks), "--model", str(target), "--precision", "fp32"]
    assert main([*command, "--out", str(out), "--epochs", "8", "--learning-rate", "3e-3"]) == 0
    shown, said = capsys.readouterr()
    assert "2 of 3: 0, 2" in shown and "1 files could not be read" in shown
    assert f"next: specport transcribe --model {target} --draft {out}" in said
    assert out.is_dir() and not work.exists()

    material = Material(copy / "heard", (1500, 32))
    (alone := tmp_path / "alone").mkdir()
    given = (str(copy / "start"), str(copy / "heard"), str(alone), str(alone / "out"), material.held_out(0))
    with pytest.raises(KeyboardInterrupt):
        training.train(*given, asdict(recipe), stop)
    result = training.train(*given, asdict(recipe), lambda *_: None)
    whole, found = (tensors.in_folder(folder) for folder in (alone / "out", out))
    assert {*whole} == {*found} and all(np.array_equal(whole[n].array(), found[n].array()) for n in whole)
    assert result["losses"][-1] < 0.9 * result["losses"][0]
    facts = about.read(out)
    assert facts.agreement == result["agreement"] and facts.windows == len(material.windows)
    assert facts.measured.same == facts.measured.greedy and len(facts.measured.survival) > 0

    assert find_encoder_key(out) == find_encoder_key(target)
    assert len(_head(out, material)) == facts.head == 64 + read_shape(target).vocab - VOCAB
    ids = _transcribed(target, "none", talks / "2.wav")
    assert ids and ids == _transcribed(target, str(out), talks / "2.wav")
    assert main(["quantize", "inspect", str(out)]) == 0
    assert capsys.readouterr().out == shown
    assert main([*command, "--out", str(out)]) == 2


def test_a_draft_of_several_tokens_a_pass(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    (talks := tmp_path / "talks").mkdir()
    for number, length in enumerate((0.8, 1.0, 1.2)):
        write_wav(talks / f"{number}.wav", tone(length))
    out = tmp_path / "draft"
    command = ["quantize", "speech", "--audio", str(talks), "--model", str(target), "--precision", "fp32"]
    asked = ["--epochs", "30", "--learning-rate", "3e-3", "--parallel", "3"]
    assert main([*command, *asked, "--out", str(out)]) == 0
    shown, _ = capsys.readouterr()
    assert "3 tokens a pass; of held-out chains" in shown
    facts, vocab = about.read(out), read_shape(target).vocab
    assert facts.parallel == len(facts.survival) == 3 and facts.trained
    assert sum(facts.survival) > sum(facts.survival_before) and facts.survival[1] > facts.survival_before[1]
    assert facts.agreement == facts.survival[0]
    assert facts.measured.same == facts.measured.greedy and facts.measured.survival[0] > 0
    parallel = find_parallel(out, read_shape(out).vocab)
    assert parallel is not None and (parallel.depth, parallel.mask_token_id) == (3, vocab)
    assert read_shape(out).vocab == vocab + 1
    table, before = (
        tensors.in_folder(folder)["model.decoder.embed_tokens.weight"].array() for folder in (out, target)
    )
    assert np.array_equal(table[:vocab], before) and not np.allclose(table[vocab], before.mean(axis=0))
    ids = _transcribed(target, "none", talks / "2.wav")
    assert ids and ids == _transcribed(target, str(out), talks / "2.wav")
    assert ids == _transcribed(target, f"suffix|{out}", talks / "2.wav")
    # Alone, it writes no MASK.
    said = _transcribed(out, "none", talks / "2.wav")
    assert max(max(segment, default=0) for segment in said) < vocab
    wrong = json.loads((out / FACTS).read_text())
    for changes in ({"mask_token_id": 5}, {"depth": 99}, {"bigrams": True}, {"temperatures": "hot"}):
        (out / FACTS).write_text(json.dumps({**wrong, "parallel": {**wrong["parallel"], **changes}}))
        with pytest.raises(ModelError):
            find_parallel(out, vocab + 1)


@pytest.mark.stack
def test_a_packed_row_gives_what_the_decoder_gives_alone(target: Path, tmp_path: Path) -> None:
    """Each chain stepped alone, as at run time, with the states of its own window."""
    export.write(target, tmp_path, with_mask(source.read(target)))
    whole = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval().model
    mask, rng = read_shape(target).vocab, np.random.default_rng(0)
    texts = []
    for length in (9, 12):
        tokens = rng.integers(5, 200, length).astype(np.int32)
        top = tokens[3:, None]
        states = rng.normal(size=(1500, 32)).astype(np.float16)
        texts.append(Dialogue(tokens, 3, top, np.ones(top.shape, np.float32), hidden=states))
    student = training.ParallelSpeechStudent(whole.decoder, Recipe(parallel=3), None, mask).eval()
    packed = packed_whole(batches.batch(texts, "cpu"), 3, mask)
    with torch.no_grad():
        outputs = student.outputs(packed)
        for i, (text, place) in enumerate(zip(packed.texts.tolist(), packed.places.tolist(), strict=True)):
            anchor, depth = (int(array[text, place]) for array in (packed.anchors, packed.depths))
            ids = torch.tensor([[*texts[text].tokens[: anchor + 1].tolist(), *[mask] * depth]])
            states = torch.from_numpy(texts[text].hidden.astype(np.float32))[None]
            alone = whole.decoder(ids, encoder_hidden_states=states).last_hidden_state[0, -1]
            assert torch.allclose(outputs[i], alone, atol=2e-4 * float(alone.abs().max())), (anchor, depth)
        assert len(outputs) > 30
        ((log_q, _, column),) = [*student.pieces(outputs, packed)]
        assert log_q.shape[1] == mask and int(column[mask]) == -1


def _head(draft: Path, material: Material) -> tuple[int, ...]:
    """Return the ids of a draft's head: no other one was said more often in what it learnt from."""
    head, held = find_head_tokens(draft, 1 << 16), {*material.held_out(0)}
    texts = [text for i, text in enumerate(material.texts()) if i not in held]
    said = Counter(int(i) for text in texts for i in text.tokens)
    assert head is not None and len(said) > 3
    dropped = {*range(VOCAB)} - {*head}
    assert max(said[i] for i in dropped) <= min(said[i] for i in head if i < VOCAB)
    return head


def _transcribed(target: Path, draft: str, audio: Path) -> list[tuple[int, ...]]:
    """Return the ids of each segment."""
    with speech.load(str(target), draft=draft, precision="fp32") as transcriber:
        talk = transcriber.transcribe(audio, language="en", temperature=(0.0,))
    assert (talk.counts.drafted > 0) == (draft != "none")
    return [segment.ids for segment in talk.segments]


def test_wrong_wishes(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = str(write_wav(tmp_path / "a.wav", tone(1.0)))
    (tmp_path / "empty").mkdir()
    for extra, words in (
        ([], "--audio is missing"),
        (["--audio", "nothing.wav"], "no file or folder"),
        (["--audio", str(tmp_path / "empty")], "no audio in"),
        (["--audio", wav, "--epochs", "0"], "greater than 0"),
        (["--audio", wav, "--layers", "3", "--model", str(target)], "keep 1 to 2"),
        (["--audio", wav, "--model", "nothing"], "no file or folder"),
        (["--audio", wav, "--model", str(tmp_path)], "is no Whisper model"),
    ):
        assert main(["quantize", "speech", "--out", str(tmp_path / "x"), *extra]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1
    assert recordings.find([tmp_path]) == [(tmp_path / "a.wav", False)]
    assert recordings.find([wav, tmp_path]) == [(tmp_path / "a.wav", True)]
