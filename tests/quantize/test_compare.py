"""`specport quantize compare`: fidelity against plain loops, timing on a toy, and both on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from specport.quantize.evaluate import compare
from specport.quantize.evaluate import fidelity as near
from support.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toy_model import ToyModel

from specport.calibration.target_text import Text
from specport.cli import main
from specport.models.precision import OPTIONS, form
from specport.models.source import ModelFiles
from specport.progress import silent
from specport.runtime.profiles import load_profile
from specport.runtime.registry import Loaded, LoadOptions

NONE = ToyModel(sharpness=0.0)  # every token is as likely as any other


def written(model: ToyModel, length: int = 40) -> list[Text]:
    return [Text(p, tuple(model.greedy(p, length))) for p in ((1, 2), (5, 6, 7), (3, 3))]


def test_a_model_is_as_close_to_itself_as_can_be() -> None:
    source = ToyModel()
    found = near.measure_fidelity(source, ToyModel(), written(source), silent)
    assert (found.kl, found.kl_error, found.same_top) == (0.0, 0.0, 1.0)
    assert found.perplexity == near.perplexity(source, written(source)) > 1.0


def test_figures_are_what_they_are_called() -> None:
    """Fidelity equals plain loops over the toys' tables; 40 tokens are compared in several chunks."""
    source, model = ToyModel(), ToyModel(noise=0.5)
    texts = written(source)
    losses, means, divergences, same = [], [], [], []
    for text in texts:
        own = []
        for i, token in enumerate(text.answer):
            a, b = [*text.prompt, *text.answer[:i]][-2:]
            p, q = (np.exp(m.table[a, b].astype(float)) for m in (source, model))
            p, q = p / p.sum(), q / q.sum()
            losses.append(-math.log(q[token]))
            own.append(sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
            same.append(p.argmax() == q.argmax())
        divergences += own
        means.append(np.mean(own))
    found = near.measure_fidelity(source, model, texts, silent)
    assert found.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    assert found.kl == pytest.approx(np.mean(divergences), rel=1e-6)
    assert found.kl_error == pytest.approx(np.std(means, ddof=1) / 3**0.5, rel=1e-6)
    assert found.same_top == np.mean(same) and 0 < found.same_top < 1
    assert model.num_open == source.num_open == 0


def test_a_model_that_knows_nothing() -> None:
    found = near.measure_fidelity(ToyModel(), NONE, written(ToyModel()), silent)
    assert found.perplexity == pytest.approx(11.0)
    assert near.measure_fidelity(ToyModel(), NONE, written(ToyModel())[:1], silent).kl_error == 0.0


class Ticking(ToyModel):
    """Takes a given time per new token on a shared clock; ten times as long at first."""

    now = 0.0
    order: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds

    def step(self, rows):  # type: ignore[no-untyped-def]
        width = len(rows[0].block)
        cold = len(self.widths) <= compare.DECODE_TOKENS
        Ticking.now += self.seconds * width * (10 if cold else 1)
        if width > 1:
            Ticking.order.append(self.name)
        return super().step(rows)


@pytest.mark.parametrize("together", [True, False])
def test_times(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROUNDS", 2)
    models: list[Ticking] = []

    def load(name: str, seconds: float) -> Ticking:
        models.append(Ticking(name, seconds))
        return models[-1]

    Ticking.order.clear()
    prompt = [i % 11 for i in range(30)]
    loads = [lambda: load("a", 0.001), lambda: load("b", 0.004)]
    found = compare.times(loads, prompt, together, silent, clock=lambda: Ticking.now)
    for (tpot, ttft), seconds in zip(found, (0.001, 0.004), strict=True):
        assert tpot.median == pytest.approx(1e3 * seconds) and tpot.spread == pytest.approx(0, abs=1e-9)
        assert ttft.median == pytest.approx(30e3 * seconds) and ttft.spread == pytest.approx(0, abs=1e-9)
    rounds = compare.WARM + compare.ROUNDS
    turns = ["a", "b", "b", "a"] * rounds if together else ["a"] * rounds + ["b"] * rounds
    assert Ticking.order == turns[: 2 * rounds]
    assert all(model.num_open == 0 for model in models)


def test_quartiles() -> None:
    times = compare.quartiles([0.001 * n for n in range(1, 8)])
    assert (times.low, times.median, times.high) == pytest.approx((2.0, 4.0, 6.0))
    assert times.spread == pytest.approx(1.0)


@pytest.mark.parametrize(("free", "together"), [(0, False), (5.9e6, False), (6.1e6, True)])
def test_models_are_held_together_where_memory_allows(
    free: float, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_model.xml").write_bytes(bytes(100_000))
    (tmp_path / "openvino_model.bin").write_bytes(bytes(400_000))
    files = ModelFiles(tmp_path, "m", "int8", "m", "")
    assert compare.size(files) == 500_000
    monkeypatch.setattr(compare, "free_memory", lambda: int(free))
    assert compare.fit_together([files, files]) == together
    monkeypatch.undo()
    assert compare.free_memory() > 1 << 20


def test_what_is_compared_where_nothing_is_named() -> None:
    assert compare.defaults(load_profile("xeon")) == ["fp16", "int8", "int4", "int8", "int4"]
    npu = compare.defaults(load_profile("core-ultra-npu"))
    assert npu[:3] == ["fp16", "int8:sym", "int4:sym"] and "int4:128,sym" in npu


class Noisy(ToyBackend):
    """Loads toys with noise by precision: fp16 least, int4 most. Records loads and their device."""

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        profile = options.profile
        asked = dict(profile.exact if options.exact else profile.fast)
        self.loaded.append(f"{files.precision} {profile.device} {asked.get('INFERENCE_PRECISION_HINT', '')}")
        noise = {"fp16": 0.02, "int8": 0.1}.get(files.precision, 0.5) if options.exact else 0.0
        note = ("rounded twice",) if files.precision == "int8" else ()
        return Loaded(ToyModel(noise=noise, max_context=400), note)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, toy_backend: ToyBackend, tmp_path: Path) -> Noisy:  # noqa: F811
    backend = Noisy()
    monkeypatch.setattr("specport.runtime.loading.backend_for", lambda profile: backend)
    monkeypatch.setattr("specport.runtime.loading.load_tokenizer", lambda folder: None)
    from support.toy_backend import Tokenizer

    monkeypatch.setattr(compare, "load_tokenizer", lambda folder: Tokenizer())
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_bytes(bytes(1_500_000))
    return backend


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(["quantize", "compare", *arguments, "--quiet", "--device", "xeon"]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_json(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "toy", "--json", "--precision", "int4:64", "--precision", "int8")
    found = json.loads(out)
    assert found.keys() == {
        "model", "device", "processor", "answers", "tokens", "source_perplexity", "prompt_tokens", "rounds",
        "interleaved", "rows", "versions",
    }  # fmt: skip
    assert (found["model"], found["device"], found["rounds"]) == ("toy", "xeon", compare.ROUNDS)
    assert (found["answers"], found["prompt_tokens"]) == (8, compare.PROMPT_TOKENS)
    assert found["tokens"] == 8 * compare.ANSWER_TOKENS and found["interleaved"] is True
    int4, int8 = found["rows"]
    assert (int4["precision"], int8["precision"]) == ("int4", "int8")
    assert int4["size_mb"] == 3.0 and int4["fidelity"]["kl"] > int8["fidelity"]["kl"] > 0
    assert int4["fidelity"]["perplexity"] > found["source_perplexity"] > 1
    assert int4["fidelity"].keys() == {"perplexity", "kl", "kl_error", "same_top"}
    assert int4["tpot"].keys() == int4["ttft"].keys() == {"median", "low", "high"}
    assert int8["notes"] == ["rounded twice"] and int4["notes"] == []
    # The source in f32 on the CPU first, then each to be read, then each to be timed.
    assert noisy.loaded == ["fp16 CPU f32", *["int4 CPU ", "int8 CPU "] * 2]


def test_table(noisy: Noisy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = run(capsys, "toy")
    first, read, timed, blank, header, *rows = out.splitlines()
    assert first.startswith("toy on xeon (") and f"8 answers of {8 * 96} tokens" in read and blank == ""
    assert "interleaved" in timed and "prompt of 140 tokens" in timed
    assert [row.split()[0] for row in rows] == ["fp16", "int8", "int4"]
    assert {len(line) for line in (header, *rows)} == {len(header)}  # columns are aligned
    assert err == "int8: rounded twice\n"
    monkeypatch.setattr(compare, "free_memory", lambda: 0)
    assert "one precision after another, since memory is limited" in run(capsys, "toy")[0]


def test_own_prompts(noisy: Noisy, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": i, "category": "qa", "turns": [turn]}) for i, turn in enumerate(("abc", "cab"))
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    out, _ = run(capsys, "--prompts", str(tmp_path / "own.jsonl"), "--json", "--precision", "int8")
    found = json.loads(out)
    assert found["answers"] == 2
    source = ToyModel()
    texts = [Text(tuple("abcdefghij ".find(c) for c in turn), ()) for turn in ("abc", "cab")]
    texts = [replace(t, answer=tuple(source.greedy(t.prompt, compare.ANSWER_TOKENS))) for t in texts]
    want = near.measure_fidelity(source, ToyModel(noise=0.1), texts, silent)
    assert found["rows"][0]["fidelity"]["kl"] == pytest.approx(want.kl)


def test_options_in_front_of_the_action_count(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    before = ["--precision", "int8", "--device", "core-ultra-gpu", "--quiet", "--json"]
    assert main(["quantize", *before, "compare"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "core-ultra-gpu" and [row["precision"] for row in found["rows"]] == ["int8"]
    assert noisy.loaded == ["fp16 CPU f32", "int8 GPU f16", "int8 GPU f16"]  # the source is not read there


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int2"], ["unknown precision 'int2'", "fp16, int8, int4"]),
        (["--precision", "int8", "--precision", "int4:asym,sym"], ["asym and sym exclude each other"]),
        (["--precision"], ["expected one argument", "specport quantize compare --help"]),
        (["--device", "abacus"], ["abacus", "xeon"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--threads", "two"], ["'two'", "specport quantize compare --help"]),
        (["--prompts", "no/such/file"], ["cannot read the prompt file", "no/such/file"]),
        (["no/such/model"], ["no/such/model"]),
        (["a", "b"], ["b"]),
    ],
    ids=" ".join,
)
def test_mistakes(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "compare", *arguments]) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("specport: error: ") and "Traceback" not in err
    assert all(word in last for word in words), last


def test_prompts_that_do_not_fit(noisy: Noisy, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = json.dumps({"id": 1, "category": "qa", "turns": ["a" * 390]})
    (tmp_path / "long.jsonl").write_text(line)
    assert main(["quantize", "compare", "--prompts", str(tmp_path / "long.jsonl"), "--device", "xeon"]) == 2
    assert "no prompt fits the model's context (give shorter ones" in capsys.readouterr().err


def test_help_lists_every_option_of_a_precision(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["quantize", "compare", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for name, (bases, what) in OPTIONS.items():
        assert f" {form(name)} {', '.join(bases)} {what}" in out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a tiny GGUF file with an empty cache, converted in this process."""
    pytest.importorskip("openvino")
    pytest.importorskip("optimum.intel")
    from specport.quantize.convert import export
    from support import tiny_models

    from specport.runtime import conversion

    folder = tmp_path_factory.mktemp("compare")
    tiny_models.write_gguf(folder / "tiny.gguf", "llama", tiny_models.hf_model("llama"))

    def convert(source: Path, work: Path, precision: str, **_: object) -> dict[str, str]:
        return export.export(source, work, precision)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SPECPORT_CACHE", str(folder / "cache"))
        monkeypatch.setattr(conversion, "convert", convert)
        yield folder / "tiny.gguf"


@pytest.mark.filterwarnings("ignore")  # the tracer's
def test_a_tiny_model(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages: list[float] = []
    found = compare.compare(
        str(tiny),
        precisions=["fp16", "int8", "int4"],
        prompts=["Why?", "What is 12?", "hello world", "Say it again."],
        device="xeon",
        threads=1,  # more would wait for each other where other tests run
        progress=lambda what, share: stages.append(share),
    )
    fp16, int8, int4 = found.rows
    assert [row.precision for row in found.rows] == ["fp16", "int8", "int4"]
    # Processors with bfloat16 round fp16 weights' activations: not quite 0.
    assert 0 <= fp16.fidelity.kl < min(0.005, int8.fidelity.kl)
    assert int8.fidelity.kl < 0.1 < int4.fidelity.kl
    assert fp16.fidelity.same_top > 0.9 > int4.fidelity.same_top
    assert fp16.fidelity.perplexity == pytest.approx(found.source_perplexity, rel=0.02)
    assert fp16.size_mb > int8.size_mb > int4.size_mb > 0.04
    for row in found.rows:
        assert 0 < row.tpot.low <= row.tpot.median <= row.tpot.high
        assert row.ttft.median > 0
    assert stages == sorted(stages) and stages[-1] == pytest.approx(1.0)
    capsys.readouterr()
    # The converted models are in the cache, and are no source themselves.
    from specport.models import cache

    assert len(cache.entries()) == 3
    for entry in cache.entries():
        assert main(["quantize", "compare", str(entry.folder), "--precision", "int4", "--quiet"]) == 2
        assert (
            "holds converted weights only (name the GGUF file or Hugging Face folder"
            in capsys.readouterr().err
        )
