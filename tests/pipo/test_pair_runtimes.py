"""Pair models on real runtimes: each step computes what training computes, and texts end as they should."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.tiny import tiny_models, tiny_pipo  # noqa: E402

import specport  # noqa: E402
from specport.cli import main  # noqa: E402
from specport.core.engine import Engine  # noqa: E402
from specport.core.sampling.params import SamplingParams  # noqa: E402
from specport.core.sequence import Generation  # noqa: E402
from specport.errors import InvalidInput, ModelError  # noqa: E402
from specport.pipeline import Pipeline  # noqa: E402
from specport.pipo.decoding import METHOD, PairDecoding  # noqa: E402
from specport.pipo.load import load  # noqa: E402
from specport.pipo.model import PairModel, PairRow  # noqa: E402

BOTH = ("torch-cpu", "xeon")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 60)]
GREEDY = SamplingParams()
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more are slower for layers of this size
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> Any:
    return tiny_pipo.network()


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipo.save(tmp_path_factory.mktemp("pair"), network)


@pytest.fixture(scope="module")
def pipelines(folder: Path) -> Iterator[dict[tuple[str, float], Pipeline]]:
    """Return a pipeline by device and threshold; about half of the random second tokens are kept at 0.5."""
    found = {}
    for device in BOTH:
        found[device, 0.5] = pipeline = load(str(folder), device=device, precision="fp32", pair_threshold=0.5)
        model = pipeline.engine.model
        single = PairModel(model._body, model.pairs, module=False)  # type: ignore[attr-defined]
        engine = Engine(single, decoding=PairDecoding(single, 1.5))
        found[device, 1.5] = Pipeline(engine, pipeline.tokenizer, lossy=METHOD)
    yield found
    for pipeline in found.values():
        pipeline.close()


def written(pipeline: Pipeline, prompt: list[int], count: int = 24, **options: Any) -> Generation:
    """Return a text that was written behind a prompt."""
    generation = Generation([*prompt], options.pop("params", GREEDY), count, **options)
    generation.parts = [commit.sources for commit in pipeline.engine.run([generation])]  # type: ignore[attr-defined]
    return generation


def output(generation: Generation) -> list[int]:
    return generation.tokens[generation.num_prompt_tokens :]


def check_steps(pipeline: Pipeline, network: Any, text: list[int], reads: list[int], start: int = 0) -> None:
    """Check all that a pair model proposes against one pass over the text. reads: tokens read at a time."""
    model = pipeline.engine.model
    handle = model.open(len(text))
    widths: list[int] = []
    seen = []
    for count in reads:
        at = sum(widths)
        (logits,) = model.read([PairRow(handle, text[at : at + count], True)])  # type: ignore[attr-defined]
        widths += [2] * (count // 2) + [1] * (count % 2)
        logits = np.array(logits)
        second = model.second(handle, text[sum(widths)])  # type: ignore[attr-defined]
        seen.append(
            (len(widths) - 1, logits, second and np.array(second.logits), second and second.confidence)
        )
    assert handle.length == sum(widths) and handle.body.length == len(widths)  # type: ignore[attr-defined]
    first, then, confidence = tiny_pipo.reference(network, text[: sum(widths) + 1], widths)
    for place, logits, seconds, sure in seen:
        np.testing.assert_allclose(logits, first[place], atol=2e-3)
        if seconds is not None:
            np.testing.assert_allclose(seconds, then[place], atol=2e-3)
            assert sure == pytest.approx(confidence[place], abs=1e-3)
    model.close(handle)


@pytest.mark.parametrize("device", BOTH)
def test_steps_compute_what_training_computes(device: str, pipelines: Any, network: Any) -> None:
    check_steps(pipelines[device, 0.5], network, IDS, [6, 2, 1, 1, 2, 8, 1, 2, 3, 2])


@pytest.mark.parametrize("device", BOTH)
def test_one_token_a_pair_computes_what_training_computes(device: str, pipelines: Any, network: Any) -> None:
    """A threshold above 1: each token of the answer stands with PAD."""
    check_steps(pipelines[device, 1.5], network, IDS, [7, *[1] * 12])


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_other_decoders(kind: str, tmp_path: Path) -> None:
    network = tiny_pipo.network(kind)
    with load(str(tiny_pipo.save(tmp_path, network)), device="torch-cpu", precision="fp32") as pipeline:
        check_steps(pipeline, network, IDS, [4, 2, 1, 2])


@pytest.mark.parametrize("threshold", [0.5, 1.5])
def test_runtimes_write_the_same_greedy_texts(threshold: float, pipelines: Any) -> None:
    for prompt in (IDS[:1], IDS[:6], IDS[:31]):
        one, other = (written(pipelines[device, threshold], prompt) for device in BOTH)
        assert output(one) == output(other)
        assert one.metrics.num_accepted_tokens == other.metrics.num_accepted_tokens
        if threshold > 1:
            assert one.metrics.num_drafts == 0 and one.metrics.num_steps == 23
        else:
            assert 0 < one.metrics.num_accepted_tokens < one.metrics.num_drafts


def test_a_text_is_the_greedy_choice_of_training(pipelines: Any, network: Any) -> None:
    text = written(pipelines["torch-cpu", 0.5], IDS[:9])
    parts = text.parts  # type: ignore[attr-defined]
    firsts = [i for i, sources in enumerate(parts) if sources == ("",)]
    widths = [2, 2, 2, 2, 1, *(1 + (parts[i + 1 : i + 2] not in ([], [("",)])) for i in firsts)]
    first, then, sure = tiny_pipo.reference(network, [*text.tokens, 0], widths)
    place = 9
    for i, width in enumerate(widths[5:], 4):
        assert text.tokens[place] == first[i].argmax()
        if width == 2:
            assert text.tokens[place + 1] == then[i].argmax()
        if place + 1 < len(text.tokens):
            assert (sure[i] >= 0.5) == (width == 2)
        place += width
    assert place == len(text.tokens)


def test_the_cache_is_half_as_long(pipelines: Any) -> None:
    model = pipelines["torch-cpu", 0.5].engine.model
    handle = model.open(41)
    model.read([PairRow(handle, IDS[:41], True)])
    assert (handle.length, handle.body.length, handle.module.length) == (41, 21, 20)
    model.truncate(handle, 30)
    assert handle.length == 28 and handle.body.length == handle.module.length == 14
    model.close(handle)


@pytest.mark.parametrize("place", ["first", "second"])
def test_an_end_token_in_either_place(place: str, pipelines: Any) -> None:
    pipeline = pipelines["torch-cpu", 0.5]
    whole = written(pipeline, IDS[:6])
    sources = [source for commit in whole.parts for source in commit]  # type: ignore[attr-defined]
    wanted = next(
        i for i, source in enumerate(sources)
        if bool(source) == (place == "second") and output(whole).index(output(whole)[i]) == i and i
    )  # fmt: skip
    cut = written(pipeline, IDS[:6], eos_ids=frozenset({output(whole)[wanted]}))
    assert output(cut) == output(whole)[: wanted + 1] and cut.finish_reason == "stop"


def test_lengths_stops_and_streams(pipelines: Any) -> None:
    pipeline = pipelines["torch-cpu", 0.5]
    whole = pipeline.generate("hello world", max_new_tokens=20, ignore_eos=True)
    for count in (1, 2, 3, 7):
        cut = pipeline.generate("hello world", max_new_tokens=count, ignore_eos=True)
        assert cut.token_ids == whole.token_ids[:count] and cut.finish_reason == "length"
    assert (
        "".join(c.text for c in pipeline.stream("hello world", max_new_tokens=20, ignore_eos=True))
        == whole.text
    )
    stop = whole.text[4:6]
    stopped = pipeline.generate("hello world", max_new_tokens=20, ignore_eos=True, stop=[stop])
    assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop"


def test_several_texts_at_once_are_those_written_alone(pipelines: Any) -> None:
    for device in BOTH:
        pipeline = pipelines[device, 0.5]
        prompts = [IDS[:3], IDS[:10], IDS[5:22]]
        alone = [output(written(pipeline, prompt)) for prompt in prompts]
        together = [Generation([*prompt], GREEDY, 24) for prompt in prompts]
        for _ in pipeline.engine.run(together):
            pass
        assert [output(generation) for generation in together] == alone


@pytest.mark.parametrize("length", [3, 60])
def test_a_preempted_text_is_the_one_it_would_have_been(
    length: int, pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again in the pairs in which it was written, also where that takes several rounds."""
    monkeypatch.setattr("specport.core.scheduler.PREFILL_CHUNK", 7)
    pipeline, prompt = pipelines["torch-cpu", 0.5], IDS[:length]
    alone = output(written(pipeline, prompt))
    for every in (1, 2, 5):
        again, rounds = Generation([*prompt], GREEDY, 24), 0
        pipeline.engine.add(again)
        while not again.ended:
            pipeline.engine.step()
            rounds += 1
            if rounds % every == 0 and again.num_output_tokens in range(1 + every, 18):
                before, count = again.metrics.num_preemptions, again.num_output_tokens
                pipeline.engine._scheduler.restart()
                assert again.metrics.num_preemptions == before + 1
                while again.num_output_tokens == count and not again.ended:
                    pipeline.engine.step()
        pipeline.engine.tidy()
        assert again.metrics.num_preemptions > 0
        assert output(again) == alone


def test_seeds(pipelines: Any) -> None:
    pipeline = pipelines["torch-cpu", 0.5]
    texts = [
        output(written(pipeline, IDS[:6], params=SamplingParams(temperature=1.0, top_p=0.9, seed=seed)))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_sampled_tokens_have_the_law_of_either_head(pipelines: Any, network: Any) -> None:
    """The first two tokens of 250 texts, against their exact joint probabilities."""
    pipeline, count = pipelines["torch-cpu", 0.5], 250
    params = [SamplingParams(temperature=0.5, top_k=4, seed=seed) for seed in range(count)]
    texts = [Generation(IDS[:6], each, 2) for each in params]
    for _ in pipeline.engine.run(texts):
        pass

    def law(scores: Any) -> dict[int, float]:
        top = np.argsort(-scores)[:4]
        weights = np.exp((scores[top] - scores[top].max()) / 0.5)
        return dict(zip(top.tolist(), (weights / weights.sum()).tolist(), strict=True))

    first, _, _ = tiny_pipo.reference(network, IDS[:7], [2, 2, 2])
    expected: dict[tuple[int, int], float] = {}
    kept = 0.0
    for token, weight in law(first[2]).items():
        begun = [*IDS[:6], token]
        _, then, sure = tiny_pipo.reference(network, begun, [2, 2, 2])
        if sure[2] >= 0.5:
            behind, kept = then[2], kept + weight
        else:  # the next step writes it, behind the token with PAD
            behind = tiny_pipo.reference(network, [*begun, 0], [2, 2, 2, 1])[0][3]
        expected |= {(token, second): weight * p for second, p in law(behind).items()}
    counts = Counter(tuple(text.tokens[6:]) for text in texts)
    assert {*counts} <= {*expected} and 0 < kept < 1  # both heads write second tokens
    distance = 0.5 * sum(abs(counts[pair] / count - p) for pair, p in expected.items())
    assert distance < 0.12


def test_a_conversation_keeps_its_cache(pipelines: Any) -> None:
    pipeline = pipelines["torch-cpu", 0.5]
    with closing(pipeline.chat(max_new_tokens=9, ignore_eos=True)) as chat:
        chat.send("hello").result  # noqa: B018
        second = chat.send("world").result
    assert second.metrics.num_cached_tokens > 10
    assert not pipeline.engine.num_unfinished


def test_a_full_context_ends_a_text(folder: Path) -> None:
    with load(
        str(folder), device="torch-cpu", precision="fp32", max_context=24, pair_threshold=0.5
    ) as pipeline:
        text = written(pipeline, IDS[:15], 100)
        assert text.finish_reason == "length" and 24 < len(text.tokens) <= 26  # two that were not read yet


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--model", str(folder), "--device", "torch-cpu", "--precision", "fp32"]
    arguments += ["--max-new-tokens", "8", "--ignore-eos", "hello"]
    assert main([*arguments, "--pair-threshold", "0.5", "--explain", "--show-drafts"]) == 0
    told = capsys.readouterr().err
    assert told.count("lossy (PIPO)") == 1 and "draft none, lossy" in told and "Lossy (pipo): " in told
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["lossy"] == report["metrics"]["lossy"] == "pipo"
    assert len(report["token_ids"]) == 8


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--draft", "ngram"], "--draft does not apply to a pair model"),
        (["--policy", "fixed"], "--policy does not apply"),
        (["--no-prefix-cache"], "--no-prefix-cache does not apply"),
        (["--num-draft-tokens", "3"], "--num-draft-tokens does not apply"),
        (["--pair-threshold", "-1"], "pair_threshold is -1.0"),
        (["--pair-threshold", "nan"], "--pair-threshold: nan is no finite number"),
    ],
)
def test_options_that_do_not_apply(
    option: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--model", str(folder), *option, "hello"]) == 2
    assert words in capsys.readouterr().err


def test_other_commands_refuse_a_pair_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="holds a pair model"):
        specport.load(str(folder))
    assert main(["run", "--pair-threshold", "0.9", "hello"]) == 2
    assert "applies to pair models only" in capsys.readouterr().err
    with pytest.raises(ModelError, match="no pair model"):
        load(str(folder / "decoder"))
    with pytest.raises(InvalidInput, match="pair_threshold"):
        load(str(folder), pair_threshold=3.0)


def test_a_decoder_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "pipo")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "pipo" / "config.json").write_text(
        json.dumps({**config, "vocab": len(tiny_models.vocabulary()) + 1})
    )
    with pytest.raises(ModelError, match="decoder has"):
        load(str(tmp_path / "pipo"), device="torch-cpu", precision="fp32")


def test_ids_of_pairs_fit_the_device(network: Any) -> None:
    """On Gaudi (emulated), whose graphs have ids of 32 bits, a large vocabulary is refused."""
    from specport.backends.torch.pipo.embedding import install_pairs

    from specport.models.kinds.pipo import PairConfig, Pairs

    table = torch.nn.Embedding(64, 8)
    weights = network.pair_weights()
    for vocab, words in ((49152, "do not fit the ids of hpu"), (64 + 1, "has 64 tokens")):
        model = SimpleNamespace(get_input_embeddings=lambda: table)
        with pytest.raises(ModelError, match=words):
            install_pairs(model, Pairs(PairConfig(8, vocab), weights), "hpu")
