"""`specport quantize compare`: fidelity against plain loops, timing on a toy, and both on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from specport.quantize.evaluate import compare, compare_drafts, formats, step_times
from specport.quantize.evaluate import fidelity as near
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyModel

from specport.calibration.target_text import Text
from specport.cli import main
from specport.models.precision import OPTIONS, form
from specport.models.source import ModelFiles
from specport.progress import silent
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import Loaded, LoadOptions, Weights
from specport.runtime.loading import Loader

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


@pytest.mark.parametrize(("free", "together"), [(0, False), (5.9e6, False), (6.1e6, True)])
def test_models_are_held_together_where_memory_allows(
    free: float, together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_model.xml").write_bytes(bytes(100_000))
    (tmp_path / "openvino_model.bin").write_bytes(bytes(400_000))
    loader = Loader(load_profile("xeon"), Noisy(), None, None, False, silent)
    (one,) = formats.formats(loader, [ModelFiles(tmp_path, "m", "int8", "m", "")])
    assert one.size == 500_000
    monkeypatch.setattr(formats, "free_bytes", lambda: int(free))
    assert formats.fit_together([one, one]) == together
    monkeypatch.undo()
    assert formats.free_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("shape", "fitting", "row"), [("9, 12, 128", 128, 128), ("9, 576", 256, 576), (None, 64, 64)]
)
def test_each_group_of_activations_is_a_format(
    shape: str | None, fitting: int, row: int, tmp_path: Path
) -> None:
    text = f'<data element_type="u4" shape="{shape}" />' if shape else "<net></net>"
    (tmp_path / "openvino_model.xml").write_text(text, encoding="utf-8")
    loader = Loader(load_profile("xeon"), Noisy(), None, None, False, silent)
    files = [ModelFiles(tmp_path, "m", "int4", "m", ""), ModelFiles(tmp_path, "m", "int8", "m", "")]
    (fit, _) = formats.formats(loader, files)
    assert fit.dynamic_group == fitting
    found = formats.formats(loader, files, ["fit", "32", "row", "32", "0"])
    want = [*dict.fromkeys((fitting, 32, row, 0))]
    assert [each.dynamic_group for each in found] == want * 2
    assert [each.name for each in found] == ["int4"] * len(want) + ["int8"] * len(want)
    for each in found:  # it is what will be loaded
        profile = each.loader.profile.fitted(tmp_path)
        assert profile.exact["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == each.dynamic_group


def test_what_is_compared_where_nothing_is_named() -> None:
    assert compare.defaults(load_profile("xeon")) == ["fp16", "int8", "int4", "int8", "int4:128"]
    npu = compare.defaults(load_profile("core-ultra-npu"))
    assert npu[:3] == ["fp16", "int8:sym", "int4:sym"] and "int4:128,sym" in npu


class Noisy(ToyBackend):
    """Loads toys with noise by precision: fp16 least, int4 most.

    Records loads with their device, and the groups of activations.
    """

    weights: Weights = "ir"

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[str] = []

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        profile = options.profile
        asked = dict(profile.exact if options.exact else profile.fast)
        self.groups.append(str(asked.get("DYNAMIC_QUANTIZATION_GROUP_SIZE", "")))
        self.loaded.append(f"{files.precision} {profile.device} {asked.get('INFERENCE_PRECISION_HINT', '')}")
        noise = {"fp16": 0.02, "int8": 0.1}.get(files.precision, 0.5) if options.exact else 0.0
        if files.name == "target":
            noise = 0.0
        note = ("rounded twice",) if files.precision == "int8" else ()
        return Loaded(ToyModel(noise=noise, max_context=400), note)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, toy_backend: ToyBackend, tmp_path: Path) -> Noisy:  # noqa: F811
    backend = Noisy()
    monkeypatch.setattr("specport.runtime.loading.backend_for", lambda profile: backend)
    from support.toys.toy_backend import Tokenizer

    for module in (compare, compare_drafts):
        monkeypatch.setattr(module, "load_tokenizer", lambda folder: Tokenizer())
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
        "model", "device", "processor", "answers", "tokens", "source_perplexity", "prompt_tokens", "context",
        "rounds", "exact", "interleaved", "baseline", "rows", "versions",
    }  # fmt: skip
    assert (found["model"], found["device"], found["rounds"]) == ("toy", "xeon", step_times.ROUNDS)
    assert (found["answers"], found["prompt_tokens"]) == (8, compare.PROMPT_TOKENS)
    assert found["tokens"] == 8 * compare.ANSWER_TOKENS and found["interleaved"] is True
    int4, int8 = found["rows"]
    assert (int4["precision"], int8["precision"]) == ("int4", "int8")
    assert int4["size_mb"] == 3.0 and int4["fidelity"]["kl"] > int8["fidelity"]["kl"] > 0
    assert int4["fidelity"]["perplexity"] > found["source_perplexity"] > 1
    assert int4["fidelity"].keys() == {"perplexity", "kl", "kl_error", "same_top"}
    assert int4["tpot"].keys() == int4["ttft"].keys() == {"median", "low", "high"}
    assert [*int4["steps"]] == ["1", "2", "4", "8", "16"]
    assert int4["steps"]["16"].keys() == {"median", "low", "high"}
    assert int4["prompt_rate"] == pytest.approx(1e3 * 140 / int4["ttft"]["median"])
    # The device's own default is int8, whose quality int4 does not keep.
    assert (found["baseline"], found["context"]) == ("int8", step_times.CONTEXT)
    assert (int8["place"], int8["keeps_quality"], int8["cost"]) == (1, True, 1.0)
    assert (int4["place"], int4["keeps_quality"]) == (2, False)
    assert int4["dynamic_group"] == int8["dynamic_group"] == 64
    assert int8["notes"] == ["rounded twice"] and int4["notes"] == []
    # The source in f32 on the CPU first, then each to be read, then each to be timed.
    assert noisy.loaded == ["fp16 CPU f32", *["int4 CPU ", "int8 CPU "] * 2]


def test_table(noisy: Noisy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = run(capsys, "toy", "--context", "100", "--rounds", "2")
    first, read, timed, _, quality, *lines = out.splitlines()
    assert first.startswith("toy on xeon (") and f"8 answers of {8 * 96} tokens" in read
    assert timed == "timed: 2 rounds, interleaved; prompt of 140 tokens, steps behind 100 tokens, ms"
    near, (blank, header, *costs, blank2, best) = lines[:4], lines[4:]
    assert (blank, blank2) == ("", "")
    for title, rows in ((quality, near), (header, costs)):
        assert {len(line) for line in rows} == {len(title)}  # columns are aligned
    assert header.split()[:6] == ["rank", "precision", "act", "group", "T(1)", "T(2)"]
    ranked = [row.split()[:2] for row in costs]
    assert [place for place, _ in ranked] == ["1", "2", "-", "-"]
    assert {name for _, name in ranked[2:]} == {"int4", "int4:128"}
    assert [row.split()[0] for row in near] == [name for _, name in ranked]
    assert best.startswith(f"best: {ranked[0][1]}; its steps cost ") and "of int8's at KL" in best
    assert err == "int8: rounded twice\n"
    monkeypatch.setattr(formats, "free_bytes", lambda: 0)
    assert "one format after another, since memory is limited" in run(capsys, "toy", "--rounds", "2")[0]


def test_a_device_without_compressed_weights_is_refused(
    noisy: Noisy, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy.weights = "huggingface"
    for more in ([], ["--target", "target"]):
        assert main(["quantize", "compare", "toy", "--device", "torch-cpu", *more]) == 2
        assert "torch-cpu runs no compressed weights" in capsys.readouterr().err


def test_the_baseline_is_measured_too(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "toy", "--json", "--precision", "int8", "--baseline", "int4", "--rounds", "2")
    found = json.loads(out)
    assert found["baseline"] == "int4" and [row["precision"] for row in found["rows"]] == ["int8", "int4"]
    assert all(row["keeps_quality"] for row in found["rows"]) and found["rows"][1]["cost"] == 1.0


def test_groups_of_activations(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--precision", "int4", "--dynamic-group", "fit", "--dynamic-group", "32"]
    out, _ = run(capsys, "toy", "--json", "--rounds", "2", *wanted)
    rows = json.loads(out)["rows"]
    assert [(row["precision"], row["dynamic_group"]) for row in rows] == [("int4", 64), ("int4", 32)]
    assert noisy.groups == ["0", *["64", "32"] * 2]  # the source, then to be read, then to be timed


def test_fast(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    """The backend of this test adds noise in exact mode only."""
    out, _ = run(capsys, "toy", "--json", "--fast", "--precision", "int4", "--rounds", "2")
    found = json.loads(out)
    assert found["exact"] is False and found["rows"][0]["fidelity"]["kl"] == 0.0
    for more in ([], ["--target", "target"]):
        out, _ = run(capsys, "toy", "--fast", "--precision", "int4", "--rounds", "2", *more)
        assert ", fast mode\n" in out


def test_drafts(noisy: Noisy, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--target", "target", "--precision", "int4", "--precision", "int8", "--rounds", "2"]
    out, _ = run(capsys, "toy", "--json", *wanted)
    found = json.loads(out)
    assert (found["model"], found["target"], found["target_precision"]) == ("toy", "target", "int8")
    assert (found["prompts"], found["context"], found["rounds"]) == (8, step_times.CONTEXT, 2)
    int4, int8 = found["rows"]
    for row in (int4, int8):
        assert len(row["survival"]) == compare_drafts.DEPTH and row["rounds"] > 8
        assert row["survival"] == sorted(row["survival"], reverse=True)
        assert 1 <= row["length"] <= compare_drafts.DEPTH and row["speed_up"] > 0
        assert [*row["steps"]] == [*found["target_steps"]] == ["1", "2", "4", "8", "16"]
    assert int8["survival"][0] > int4["survival"][0] > 0.05  # the noisier toy guesses worse
    assert sorted(row["place"] for row in (int4, int8)) == [1, 2]
    assert (int8["place"] < int4["place"]) == (int8["speed_up"] > int4["speed_up"])
    out, _ = run(capsys, "toy", *wanted)
    first, drafted, timed, blank, header, *rows, last = out.splitlines()
    assert first.startswith("toy as a draft for target (int8) on xeon (") and blank == ""
    assert drafted == "drafted: 8 tokens a round, 8 prompts" and "interleaved" in timed
    assert [row.split()[0] for row in rows] == ["1", "2"] and last.split()[0] == "(target)"
    column = header.index("T(16)") + len("T(16)")
    assert all(row[column - 1].isdigit() and row[column] == " " for row in rows)
    assert len(last) == column


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
        (["--precision"], ["--precision needs a value", "specport quantize compare --help"]),
        (["--device", "abacus"], ["abacus", "xeon"]),
        (["--threads", "0"], ["threads is 0"]),
        (["--threads", "two"], ["'two'", "specport quantize compare --help"]),
        (["--prompts", "no/such/file"], ["cannot read no/such/file", "there is no such file"]),
        (["no/such/model"], ["no/such/model"]),
        (["a", "b"], ["b"]),
        (["--baseline", "int3"], ["unknown precision 'int3'"]),
        (["--precision", "int4:row"], ["'row' is not an option of int4", "N, channel, asym"]),
        (["--dynamic-group", "all"], ["'all' is no group of activations", "fit", "row"]),
        (["--context", "0"], ["context is 0; it must be 1 or more"]),
        (["--rounds", "1"], ["rounds is 1; it must be 2 or more"]),
        (["--target-precision", "int8"], ["--target-precision needs --target"]),
        (["--target", "default", "--baseline", "int8"], ["--baseline is for targets"]),
        (["--target", "no/such/model", "--precision", "int2"], ["unknown precision 'int2'"]),
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
    from support.tiny import tiny_gguf, tiny_models

    from specport.runtime import conversion

    folder = tmp_path_factory.mktemp("compare")
    tiny_gguf.write(folder / "tiny.gguf", "llama", tiny_models.hf_model("llama"))

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
        assert row.ttft.median > 0 and row.prompt_rate > 0
        assert [*row.steps] == [1, 2, 4, 8, 16] and all(each.median > 0 for each in row.steps.values())
    # Groups of 64 in rows of 64 and 128; INT8 keeps the profile's group.
    assert [row.dynamic_group for row in found.rows] == [64, 64, 64]
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
