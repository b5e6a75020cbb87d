"""Files that builds and trainings keep, damaged, as in `test_formats.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("tokenizers")

from specport.quantize.adapt import mixing
from specport.quantize.convert.whisper import vocabulary
from specport.quantize.speech import about as speech_about
from specport.quantize.speech.material import INDEX, Material, Part
from specport.quantize.train import distilled
from specport.quantize.train.layerskip import about as layerskip_about
from support.faults.fuzzing import Case, fuzz_case, of_file

from specport.bench.clips import read_clips
from specport.cli.quantize import layerskip as show_layerskip
from specport.cli.quantize import speech as show_speech
from specport.errors import SpecportError
from specport.models import shipped
from specport.models.bundle import BUNDLE_FILE
from specport.models.kinds import mtp, whisper
from specport.tune import build as tune_build
from specport.tune import promise
from specport.tune import weights as tune_weights

PACE = {"recipe": {"rank": 4}, "date": "today", "versions": {"torch": "2"}}


def of_json(folder: Path, name: str, whole: Any, read: Callable[[], object]) -> Case:
    (folder / name).write_text(json.dumps(whole), encoding="utf-8")
    return of_file(folder / name, read)


def of_compared_weights(tmp: Path) -> Case:
    row = {
        "precision": "int8", "size_mb": 1.0, "cost": 1.0, "tpot_ms": 1.0, "ttft_ms": 1.0, "kl": 0.1,
        "same_top": 0.9, "keeps": True,
    }  # fmt: skip
    whole = {"format": tune_weights.FORMAT, "rows": [row, {**row, "precision": "int4"}]}

    def read() -> None:
        found = tune_weights._STORED.find(tmp / "weights.json")
        assert found is None or found.rows

    return of_json(tmp, "weights.json", whole, read)


def of_promise(tmp: Path) -> Case:
    def read() -> None:
        found = promise._STORED.find(tmp / promise.FILE)
        assert found is None or 0.0 < found.speed_up < float("inf")

    return of_json(tmp, promise.FILE, {"format": promise.FORMAT, "speed_up": 1.2}, read)


def of_noted_build(tmp: Path) -> Case:
    return of_json(tmp, "plan.json", {"tokens": 9}, lambda: tune_build._NOTED.find(tmp / "plan.json"))


def of_clips(tmp: Path) -> Case:
    whole = {"id": 1, "audio": "a.wav", "text": "a", "language": "en", "rttm": "a.rttm", "speakers": 2}
    return of_json(tmp, "c.jsonl", whole, lambda: read_clips(tmp / "c.jsonl"))


def of_whisper_words(tmp: Path) -> Case:
    from tokenizers.pre_tokenizers import ByteLevel

    whole = [*sorted(ByteLevel.alphabet()), "ab", "abc", "<|endoftext|>", "<|en|>"]
    return of_json(tmp, "vocabulary.json", whole, lambda: vocabulary.write(tmp, tmp))


def of_whisper(tmp: Path) -> Case:
    sizes = dict.fromkeys(whisper._NAMES.values(), 4)
    whole = {"model_type": "whisper", **sizes}

    def read() -> None:
        if whisper.speech_form(tmp):
            whisper.read_shape(tmp)

    return of_json(tmp, "config.json", whole, read)


def of_written(tmp: Path) -> Case:
    pytest.importorskip("openvino")
    from specport.quantize.slim import build

    whole = {"texts": [{"prompt": [1, 2], "answer": [3, 4]}]}
    return of_json(tmp, "texts.json", whole, lambda: build._WRITTEN.find(tmp / "texts.json"))


def of_dropping(tmp: Path) -> Case:
    pytest.importorskip("openvino")
    from specport.quantize.prune import choose

    def read() -> None:
        found = choose._DROPPING.find(tmp / "layers.json")
        assert found is None or found.reaches(4, 1) in (True, False)

    whole = {"dropped_by_count": [[], [2]], "agreements": [1.0, 0.9]}
    return of_json(tmp, "layers.json", whole, read)


def of_heard(tmp: Path) -> Case:
    Material(tmp, (2, 3)).add(Part(0, "en", (0, 9), (True, False), 9, 1, (5,)), [], [])
    return of_file(tmp / INDEX, lambda: (Material(tmp, (2, 3)).windows, Material(tmp, (2, 3)).greedy))


def of_speech_draft(tmp: Path) -> Case:
    measured = {
        "windows": 2, "tokens": 9, "greedy": 2, "same": 2, "survival": [0.5], "rounds": 3, "wer": None,
        "draft_ms": 1.0, "target_ms": 3.0, "encoder_ms": 9.0, "speed_up": 1.2, "speed_up_whole": 1.1,
        "length": 3,
    }  # fmt: skip
    facts = {
        "target": "base", "layers": [0, 5], "num_layers": 6, "files": 2, "unreadable": 1, "windows": 3,
        "held_out": 1, "tokens_read": 9, "agreement_before": 0.1, "agreement": 0.5, "trained": True,
        "train_seconds": 2.0, "measured": measured, "device": "xeon", "processor": "cpu", **PACE,
    }  # fmt: skip
    speech_about.write(tmp, facts)

    def read() -> None:
        for as_json in (False, True):
            show_speech.show(speech_about.read(tmp), as_json)

    return of_file(tmp / speech_about.NAME, read)


def of_layerskip(tmp: Path) -> Case:
    sweep = {"agreement": [0.1, 1.0], "perplexity": 3.0}
    facts = {"source": "m", "before": sweep, "after": sweep, "tokens_read": 9, "seconds": 2.0, **PACE}
    layerskip_about.write(tmp, facts)

    def read() -> None:
        for as_json in (False, True):
            show_layerskip.show(layerskip_about.read(tmp), as_json)

    return of_file(tmp / layerskip_about.NAME, read)


def of_distilled(tmp: Path) -> Case:
    distilled.write(tmp, {"layers": 3, "precision": "int8", "loss": "kl"}, [[0, 5], [9, 10]])
    return of_file(tmp / distilled.NAME, lambda: distilled.read(tmp))


def of_pruned(tmp: Path) -> Case:
    pytest.importorskip("openvino")
    from specport.quantize.train import draft

    whole = {"dropped": [1], "mlp": 0.5, "channels": [3, 4]}
    return of_json(tmp, draft.PRUNED, whole, lambda: draft._stored_request(tmp))


def of_mixture(tmp: Path) -> Case:
    whole = {"own_tokens": 9, "old_tokens": 9, "epochs": 1.0, "notes": ["a"]}
    return of_json(tmp, mixing.PLAN, whole, lambda: mixing.Mixture.stored(tmp))


def of_join(tmp: Path) -> Case:
    """The configuration of an MTP head, whose join is read with it."""
    width = 4
    join = mtp.Join(np.ones((width, 2 * width), np.float16), *np.ones((2, width), np.float32), 1e-5)
    config = {"hidden_size": width, "rms_norm_eps": 1e-5, "num_hidden_layers": 2, "model_type": "llama"}
    mtp.write_parts(tmp, config, 1, {}, np.ones(width, np.float16), join)
    return of_file(tmp / "config.json", lambda: mtp.read_join(tmp))


def of_shipped(tmp: Path) -> Case:
    whole = {"about": {"target_shape": "s", "recurrent": {"width": 4}}}
    (tmp / shipped.WEIGHTS).write_bytes(b"")
    return of_json(tmp, BUNDLE_FILE, whole, lambda: shipped.is_head(tmp))


def of_checkpoint(tmp: Path) -> Case:
    """What a checkpoint says of its training, in the header of its tensors."""
    torch = pytest.importorskip("torch")
    from specport.quantize.train.trainer import Run

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    path = tmp / "checkpoint.safetensors"
    run = Run("identity", path, [weight], optimizer)
    run.record(0.5, 0.5)
    run.save()
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def write(about: bytes) -> None:
        header["__metadata__"]["about"] = about.decode("utf-8", "replace")
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])

    def read() -> None:
        run = Run("identity", path, [weight], optimizer)
        assert not run.load() or run.step + len(run.losses) >= 0

    return Case(json.loads(header["__metadata__"]["about"]), read, write)


def of_request(tmp: Path) -> Case:
    """A request to the server, as far as nothing has to be computed for it."""
    pytest.importorskip("starlette")
    from specport.serve.openai import body
    from specport.serve.openai.errors import ApiError

    whole = {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "stop": ["a"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }  # fmt: skip
    given: list[bytes] = []

    def read() -> None:
        try:
            body.parse(given[-1], 16)
        except ApiError as error:
            raise SpecportError(str(error)) from error

    return Case(whole, read, given.append)


CASES: dict[str, Callable[[Path], Case]] = {
    "compared weights": of_compared_weights, "noted build": of_noted_build, "promise": of_promise,
    "clips": of_clips, "whisper's words": of_whisper_words, "whisper": of_whisper, "written": of_written,
    "dropping": of_dropping, "heard": of_heard, "speech draft": of_speech_draft, "layerskip": of_layerskip,
    "distilled": of_distilled, "pruned": of_pruned, "mixture": of_mixture, "join": of_join,
    "shipped": of_shipped, "checkpoint": of_checkpoint, "request": of_request,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_one_error(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "files").mkdir()
    fuzz_case(pytestconfig, CASES[name](tmp_path / "files"), (SpecportError,))
