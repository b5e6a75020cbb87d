"""Every kind of file that comes from outside, damaged: it is read, or there is one error that says so.

`pytest tests/fuzz --fuzz-seconds 600` goes on with new inputs, for ten minutes a test.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("tokenizers")

from specport.quantize.train.diffusion import about as training
from support.faults.fuzzing import Case, fuzz_case, of_file
from support.tiny import tiny_models
from support.toys.scripted_speech import tone, write_wav

from specport import hw_profiles
from specport.bench import record, recording
from specport.bench.prompts import read_prompts
from specport.bench.report import markdown
from specport.bench.summary import summarise
from specport.calibration import exits
from specport.cli.quantize import inspect
from specport.cli.quantize.diffusion import show as show_diffusion
from specport.conformance.tables import results, table
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.stop_classifier import NUM_FEATURES, fit
from specport.drafters.retrieval import datastore
from specport.drafters.retrieval.history_file import open_history
from specport.drafters.tree.graft import Checkpoint as GraftCheckpoint
from specport.drafters.tree.graft import Variant
from specport.errors import SpecportError
from specport.models import bundle, manifest, tensors
from specport.models.bundle import Bundle
from specport.models.cache import cache_root
from specport.models.gguf import file as gguf
from specport.models.kinds import diffusion, layer_mask, mtp, pipo, whisper
from specport.models.kinds.layer_mask import LayerMask
from specport.models.kinds.mtp_head import MtpHead
from specport.models.kinds.parallel import Parallel
from specport.models.weight_sketch import sketch
from specport.progress import silent
from specport.runtime import numerics
from specport.runtime.devices import profiles
from specport.runtime.stored import measurements, tuned
from specport.runtime.stored.measurements import Calibration, Pair
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.source import Source
from specport.speech.checkpoint import Checkpoint
from specport.speech.decoding.sequential import State
from specport.speech.speakers.diarize import mark_overlap
from specport.speech.speakers.score import read_rttm
from specport.speech.transcript import Counts, Segment, Word
from specport.text.tokenizer import load_tokenizer
from specport.traffic import log as traffic
from specport.traffic.dialogues import Dialogue, read_shard, save_shard

COSTS = StepCosts((1, 2), (0, 64), ((0.1, 0.2), (0.2, 0.3)), 0.1, measured=True)
MEASURED = {
    "device": "xeon", "processor": "cpu", "date": "today", "draft_ms": 5.0, "target_ms": 40.0, "cost": 0.125,
    "mean_acceptance_length": 2.5, "acceptance_by_depth": [0.7, 0.5], "speed_up": 1.4,
    "speed_up_range": [1.1, 1.8], "same_text": 8, "prompts": 8, "max_new_tokens": 64,
    "ms_by_width": {"width": [1, 2], "draft": [1.0, 2.0], "target": [4.0, 5.0]},
}  # fmt: skip
DISTILLED = {
    "mlp_channels": [3, 4], "agreement": 0.5, "agreement_before": 0.4, "trained": True, "tokens_read": 10,
    "seconds": 3, "survival": [0.5], "survival_before": [0.4], "seed": 0, "loss": "kl",
}  # fmt: skip
ADAPTED = {
    "own": [1.0, 2.0],
    "old": [1.0, 2.0],
    "times": 1,
    "date": "today",
    "tokens_read": 3,
    "seconds": 1.0,
}
BUNDLE = Bundle(
    target="big", target_shape="s", target_fingerprint="f" * 64, tokenizer="t", source="small",
    precision="int4", layers=(0, 2), num_layers=3, head=((0, 5), (9, 10)), distilled=DISTILLED,
    measured=MEASURED, provenance={"adapted": ADAPTED, "target_sha256": "0"}, target_sketch=(0.1, 0.2),
    parallel=Parallel(2, 100, (1.0, 1.5)), mtp=MtpHead(5, "e2e-tv"),
)  # fmt: skip
METRICS = {
    "num_steps": 3, "num_accepted_tokens": 2, "drafted_per_depth": [3], "accepted_per_depth": [2],
    "decode_s": 1.0, "draft_s": 0.2, "verify_s": 0.5,
}  # fmt: skip
ROW = {
    "id": "1", "category": "qa", "method": "plain", "n": 0, "num_prompt_tokens": 3, "tokens": [1, 2, 3],
    "ttft_s": 0.1, "total_s": 0.5, "num_first": 1, "metrics": METRICS,
}  # fmt: skip
PROMPT = {"id": 1, "category": "qa", "turns": ["Why?"]}


def of_calibration(tmp: Path) -> Case:
    path = measurements.save("k", Calibration(COSTS, {"device": "x"}))
    return of_file(path, lambda: measurements.find("k"))


def of_pair(tmp: Path) -> Case:
    classifier = fit(np.eye(NUM_FEATURES).tolist(), [True, False] * (NUM_FEATURES // 2))
    pair = Pair((0, 1, 5), classifier, Variant((GraftCheckpoint(1, 0.5, 0.5), GraftCheckpoint(2, 0.2, 1.0))))
    path = measurements.save_pair("k", "d", pair)
    assert path is not None
    return of_file(path, lambda: measurements.find_pair("k", "d"))


def of_exit(tmp: Path) -> Case:
    return of_file(measurements.save_exit("f", "xeon", 3), lambda: measurements.find_exit("f", "xeon"))


def of_cut(tmp: Path) -> Case:
    return of_file(measurements.save_cut("f", "xeon", (1, 2, 9)), lambda: measurements.find_cut("f", "xeon"))


def of_tuned(tmp: Path) -> Case:
    path = tuned.keep(None, "xeon", "int8", tuned.Choice("suffix", "0", 1.4, {"a": 1}), weights_too=True)
    return of_file(path, lambda: tuned.find(None, "xeon"))


def of_answers(tmp: Path) -> Case:
    answers = numerics.Answers(tmp / "exact.json")
    answers.put("key", True)
    return of_file(tmp / "exact.json", lambda: answers.get("key"))


def of_bundle(tmp: Path) -> Case:
    (tmp / "openvino_model.bin").write_bytes(b"weights")
    bundle.write(tmp, BUNDLE)
    about = (manifest.read(tmp, bundle.BUNDLE_FILE) or {})["about"]

    def write(data: bytes) -> None:
        # Signed, so that what is behind the check sum is reached.
        try:
            manifest.write(tmp, json.loads(data), bundle.BUNDLE_FILE)
        except (ValueError, TypeError, RecursionError):
            (tmp / bundle.BUNDLE_FILE).write_bytes(data)

    def read() -> None:
        found = bundle.read(tmp)
        assert found.pays in (True, False) and len(found.reach) < 100
        assert len(found.head_tokens or ()) <= 1 << 20
        inspect.show(found)

    return Case(json.loads(json.dumps(about)), read, write)


def of_registered(tmp: Path) -> Case:
    bundle.register(tmp, "f" * 64)
    path = cache_root() / "drafts" / f"{'f' * 24}.json"
    return of_file(path, lambda: bundle.registered("f" * 64))


def of_manifest(tmp: Path) -> Case:
    (tmp / "weights").write_bytes(b"weights")
    manifest.write(tmp, {"name": "x"})
    return of_file(tmp / manifest.MANIFEST_FILE, lambda: manifest.damage(tmp))


def of_record(tmp: Path) -> Case:
    record.Record(tmp, {"a": 1})
    (tmp / record.ROWS).write_text(json.dumps(ROW))

    def write(data: bytes) -> None:
        (tmp / record.ROWS).write_bytes(json.dumps(ROW).encode() + b"\n" + data + b"\n")

    def read() -> None:
        rows = record.Record(tmp, {"a": 1}).rows
        markdown(summarise(rows), {})

    return Case(ROW, read, write)


def of_about(tmp: Path) -> Case:
    record.Record(tmp, {"a": {"b": [1]}})
    (tmp / record.ROWS).write_text("")
    return of_file(tmp / record.ABOUT, lambda: record.Record(tmp, {"a": {"b": [1]}}))


def of_recording(tmp: Path) -> Case:
    text = recording.RecordedText("1", "qa", (1, 2), (3, 4), ((5, 6),), ((0.5, 0.5),))
    costs = {"xeon": recording.Costs(COSTS, COSTS)}
    recording.Recording({"model": "x"}, costs, 8, (text,)).save(tmp / "r.json")
    return of_file(tmp / "r.json", lambda: recording.Recording.load(tmp / "r.json"))


def of_prompts(tmp: Path) -> Case:
    (tmp / "p.jsonl").write_text(json.dumps(PROMPT))
    return of_file(tmp / "p.jsonl", lambda: read_prompts(tmp / "p.jsonl"))


def of_matrix(tmp: Path) -> Case:
    row = results.DeviceRun("xeon", False, "n", "m", 1.0, {"a": "b"}, {"law": results.Cell("fail", "why")})
    (tmp / "matrix.json").write_text(results.Matrix([row], [{"a": "b"}]).as_json())

    def read() -> None:
        found = results.read(tmp / "matrix.json")
        for shown in (table.text, table.markdown, table.page):
            assert "\x1b" not in shown(found) or shown is table.text

    return of_file(tmp / "matrix.json", read)


def of_settings(tmp: Path) -> Case:
    log = traffic.TrafficLog("f" * 64)
    log.save(traffic.Settings(True, "d", "t", last={"state": "kept"}))
    return of_file(log.folder / traffic.SETTINGS, log.settings)


def of_tokenizer(name: str) -> Callable[[Path], Case]:
    def case(tmp: Path) -> Case:
        tiny_models.save_tokenizer(tmp)
        (tmp / "config.json").write_text(json.dumps({
            "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "eos_token_id": [1, 2],
            "text_config": {"num_hidden_layers": 2, "max_position_embeddings": 64},
        }))  # fmt: skip
        (tmp / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
        whole = json.loads((tmp / name).read_bytes())

        def read() -> None:
            tokenizer = load_tokenizer(tmp)
            tokenizer.encode("abc")
            bundle.shape(tmp)
            exits.num_layers(tmp)

        if name == "tokenizer.json":  # the vocabulary has thousands of parts
            return of_file(tmp / name, read, (tmp / name).read_bytes())
        return of_file(tmp / name, read, whole)

    return case


def of_tensors(tmp: Path) -> Case:
    entries = {
        "model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]},
        "__metadata__": {"format": "pt"},
    }

    def write(data: bytes) -> None:
        content = len(data).to_bytes(8, "little") + data + np.ones(64, "<f4").tobytes()
        (tmp / "model.safetensors").write_bytes(content)

    def read() -> None:
        with suppress(ValueError):
            tensors.header(tmp / "model.safetensors")
        sketch(tmp)
        mtp.find(tmp)

    return Case(entries, read, write)


def _write_pipo(folder: Path) -> None:
    sizes = {"up": (4, 8), "down": (4, 4), "pad": (4,), "gain": (8,), "judge": (4, 8), "score": (1, 4)}
    arrays = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    pipo.write(folder, pipo.PairConfig(4, 10, source="m"), pipo.PairWeights(**arrays))


def of_pair_model(tmp: Path) -> Case:
    _write_pipo(tmp)
    return of_file(tmp / "config.json", lambda: pipo.is_pair_folder(str(tmp)) and pipo.read(tmp))


def of_pair_weights(tmp: Path) -> Case:
    _write_pipo(tmp)
    path = tmp / pipo.WEIGHTS
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")

    def write(data: bytes) -> None:
        path.write_bytes(len(data).to_bytes(8, "little") + data + whole[8 + size :])

    return Case(json.loads(whole[8 : 8 + size]), lambda: pipo.read(tmp), write)


def of_pair_training(tmp: Path) -> Case:
    from specport.quantize.pipo import about

    from specport.cli.quantize.pipo import show

    found = dict.fromkeys(("first", "second", "loss_first", "loss_second", "kept", "right"), 0.5)
    facts = {
        "source": "m", "recipe": {"rank": 4}, "before": found, "after": found, "distilled": found,
        "tokens_read": 3, "seconds": 1.0, "date": "today", "versions": {"torch": "2"},
    }  # fmt: skip
    about.write(tmp, facts)

    def read() -> None:
        for as_json in (False, True):
            show(about.read(tmp), as_json)

    return of_file(tmp / about.NAME, read)


def of_shard(tmp: Path) -> Case:
    one = Dialogue(
        np.arange(6, dtype=np.int32), 3, np.zeros((3, 2), np.int32), np.full((3, 2), 0.5, np.float32),
        weights=np.ones(3, np.float32),
    )  # fmt: skip
    save_shard(tmp / "s.npz", [one, one])
    return of_file(tmp / "s.npz", lambda: read_shard(tmp / "s.npz"), (tmp / "s.npz").read_bytes())


def of_datastore(tmp: Path) -> Case:
    tiny_models.save_tokenizer(tmp / "model")
    tokenizer = load_tokenizer(tmp / "model")
    (tmp / "a.txt").write_text("some text to look up, some text")
    datastore.build([tmp / "a.txt"], tmp / "store", tokenizer)
    path = tmp / "store" / datastore.MANIFEST_FILE
    return of_file(path, lambda: datastore.open_datastore(tmp / "store", tokenizer, 1000))


def of_history(tmp: Path) -> Case:
    history, _ = open_history(tmp, "f" * 32, 100)
    path = tmp / f"{'f' * 32}.sqlite"
    assert history is not None
    return of_file(path, lambda: open_history(tmp, "f" * 32, 100), path.read_bytes())


def of_profile(tmp: Path) -> Case:
    whole = (Path(hw_profiles.__file__).parent / "core-ultra-npu.toml").read_bytes()
    (tmp / "p.toml").write_bytes(whole)
    return of_file(tmp / "p.toml", lambda: profiles.load_profile(tmp / "p.toml"), whole)


MASK = LayerMask("big", "s", "f" * 64, (0.1, 0.2), 6, (2, 3), 0.4, 0.9, {"tokens": 9}, {"date": "today"})


def of_mask(tmp: Path) -> Case:
    layer_mask.write(tmp, MASK)
    layer_mask.register(tmp, MASK.target_fingerprint)

    def read() -> None:
        layer_mask.registered(MASK.target_fingerprint)
        found = layer_mask.read(tmp)
        assert 0 < found.skipped[0] <= found.skipped[-1] < found.num_layers - 1 < layer_mask.MOST_LAYERS

    return of_file(tmp / layer_mask.MASK_FILE, read)


def of_registered_mask(tmp: Path) -> Case:
    layer_mask.register(tmp, "f" * 64)
    path = cache_root() / "verifiers" / f"{'f' * 24}.json"
    return of_file(path, lambda: layer_mask.registered("f" * 64))


def of_trials(tmp: Path) -> Case:
    """The trials of a mask search: a damaged file is as none, and the search begins anew."""
    pytest.importorskip("openvino")
    pytest.importorskip("optuna")
    from specport.quantize.slim.search import search

    def find(num: int) -> None:
        found = search(lambda skipped: (sum(skipped), 0.5), 5, 2, num, 0, tmp / "trials.json", silent)
        assert len(found) == num and all(len({*trial.skipped}) == 2 for trial in found)

    find(2)
    return of_file(tmp / "trials.json", lambda: find(2))


def of_plan(tmp: Path) -> Case:
    pytest.importorskip("openvino")
    from specport.quantize.plan import Plan
    from specport.quantize.prune.choose import Choice

    from specport.calibration.heads import Head

    choice = Choice(4, 1, ((), (2,)), (0.9, 0.8), (0.1, 0.08), (10.0, 11.0))
    Plan((Head((0, 1), 2, 0.1, 0.9, 12.0),), (0, 1, 5), choice).save(tmp / "plan.json")
    return of_file(tmp / "plan.json", lambda: Plan.load(tmp / "plan.json"))


def of_steps(tmp: Path) -> Case:
    from specport.quantize.rl import record, report

    step = record.Step(0, 0.5, 1.0, 9, 3, 9, 6, 1.0, 1.5, 2.0, 0.1, 1e-3, 1e-2)
    record.write(tmp, [step])
    path = tmp / record.NAME
    return of_file(path, lambda: report.table({"a": record.read(tmp)}))


def of_diffusion(tmp: Path) -> Case:
    """Return the configuration of a diffusion model."""
    whole = {"model_type": "sdar", "vocab_size": 320, "mask_token_id": 300, "block_size": 4}
    (tmp / "config.json").write_text(json.dumps(whole))
    return of_file(tmp / "config.json", lambda: diffusion.find_facts(tmp))


def of_training(tmp: Path) -> Case:
    """Return the record of a diffusion training."""
    quality = {"accuracy": [0.5, 0.4], "loss": [1.0, 2.0], "perplexity": 9.0}
    facts = {
        "target": "big", "start": "big", "layers": 2, "dropped": [1], "mask": 300, "recipe": {"block": 2},
        "target_perplexity": 1.4, "before": quality, "after": quality, "tokens_read": 10, "steps": 2,
        "seconds": 3.0, "date": "today", "versions": {"torch": "2"},
    }  # fmt: skip
    training.write(tmp, facts)

    def read() -> None:
        show_diffusion(training.read(tmp), as_json=False)

    return of_file(tmp / training.NAME, read)


def of_rttm(tmp: Path) -> Case:
    whole = b"SPEAKER a 1 6.690 0.430 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 7.0 2 <NA> <NA> y <NA> <NA>\n"
    path = tmp / "a.rttm"
    return of_file(path, lambda: mark_overlap(read_rttm(path)), whole)


def of_speech_state(tmp: Path) -> Case:
    checkpoint = Checkpoint(tmp / "state.json", {"audio": "a"})
    words = (Word(0.0, 1.0, " Hello"),)
    segment = Segment(0.0, 1.0, " Hello", (1, 2), words=words, speaker="x")
    checkpoint.write("en", State(16000, 1, (7, 8)), [segment], Counts(tokens=3), now=True)
    return of_file(checkpoint.path, checkpoint.read)


def of_speech_facts(tmp: Path) -> Case:
    path = tmp / whisper.FACTS
    parallel = Parallel(2, 8, (1.0, 1.5))
    path.write_text(json.dumps(whisper.noted("0" * 64, [0, 1, 2, 7], parallel)))

    def read() -> None:
        whisper.find_encoder_key(tmp)
        found = whisper.find_head_tokens(tmp, 9)
        assert found is None or (found[0] >= 0 and found[-1] < 9)
        about = whisper.find_parallel(tmp, 9)
        assert about is None or about.mask_token_id == 8

    return of_file(path, read)


def of_gguf(tmp: Path) -> Case:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    keys = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    keys += text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b")
    tensor = text(b"t") + struct.pack("<I2QIQ", 2, 8, 2, 0, 0)
    whole = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + keys + tensor + bytes(31 + 64)

    def read() -> None:
        found = gguf.read_header(tmp / "m.gguf")
        for name in found.tensors:
            found.floats(name)

    return of_file(tmp / "m.gguf", read, whole)


def of_audio(tmp: Path) -> Case:
    pytest.importorskip("av")
    path = write_wav(tmp / "a.wav", tone(0.05))
    return of_file(path, lambda: AudioBuffer(Source(path).blocks()).finish(), path.read_bytes())


CASES: dict[str, Callable[[Path], Case]] = {
    "speech facts": of_speech_facts,
    "calibration": of_calibration, "pair": of_pair, "exit": of_exit, "cut": of_cut, "tuned": of_tuned,
    "answers": of_answers, "bundle": of_bundle, "registered": of_registered, "manifest": of_manifest,
    "record": of_record, "about": of_about, "recording": of_recording, "prompts": of_prompts,
    "matrix": of_matrix, "settings": of_settings, "config": of_tokenizer("config.json"),
    "generation config": of_tokenizer("generation_config.json"),
    "tokenizer config": of_tokenizer("tokenizer_config.json"), "tokenizer": of_tokenizer("tokenizer.json"),
    "tensors": of_tensors, "shard": of_shard, "datastore": of_datastore, "history": of_history,
    "rttm": of_rttm, "speech state": of_speech_state, "gguf": of_gguf, "audio": of_audio,
    "profile": of_profile, "plan": of_plan, "steps": of_steps, "diffusion": of_diffusion,
    "training": of_training,
    "pair model": of_pair_model, "pair weights": of_pair_weights, "pair training": of_pair_training,
    "mask": of_mask, "registered mask": of_registered_mask, "trials": of_trials,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_file_is_one_error(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "files").mkdir()
    fuzz_case(pytestconfig, CASES[name](tmp_path / "files"), (SpecportError,))
