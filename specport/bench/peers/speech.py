"""Other systems that transcribe: transformers, openvino-genai, faster-whisper; and Whisper's normalizers.

Each gets the same samples and does long audio its own way, by its defaults for accuracy: greedy first, with
temperature fallback and the text before as context where it has them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from specport.errors import InvalidInput, SpecportError
from specport.models.json_file import TOKENIZER_FILE
from specport.quantize.convert import package_faults, whole_model
from specport.speech.audio.read import RATE, Samples

PEERS = ("transformers:plain", "transformers:draft", "genai:plain", "faster-whisper:plain")
_HUGGING_FACE = "model.safetensors"
_STAMPS, _STAMP_S = 1501, 0.02  # timestamps of Whisper, and seconds from one to the next
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class SpeechPeer(Protocol):
    """Transcribe samples at 16 kHz."""

    def __call__(self, samples: Samples, language: str | None) -> str: ...


def make(name: str, model: Path, draft: Path | None, threads: int) -> SpeechPeer:
    """Load a peer. Raises SpecportError with the next step."""
    if name not in PEERS:
        raise InvalidInput(f"unknown peer {name!r}", f"peers: {', '.join(PEERS)}")
    system, _, mode = name.partition(":")
    if mode == "draft" and draft is None:
        raise InvalidInput(f"{name} needs a draft model", "give one with --draft")
    try:
        return _SYSTEMS[system](model, draft if mode == "draft" else None, threads)
    except SpecportError:
        raise
    except Exception as error:  # these packages raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SpecportError(f"{name} cannot load {model}: {reason}", "leave this --method out") from error


class _Transformers:
    def __init__(self, model: Path, draft: Path | None, threads: int) -> None:
        torch = _package("torch", "specport[openvino]")
        transformers = _transformers("transformers")
        _needs(model, _HUGGING_FACE, "transformers")
        torch.set_num_threads(threads)
        self._torch = torch
        self._features = transformers.WhisperFeatureExtractor.from_pretrained(
            model, trust_remote_code=False, local_files_only=True
        )
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(
            model, trust_remote_code=False, local_files_only=True
        )
        self._model = self._loaded(transformers, model)
        self._draft = self._loaded(transformers, draft) if draft is not None else None

    def _loaded(self, transformers: Any, folder: Path) -> Any:
        kind = transformers.WhisperForConditionalGeneration
        with whole_model.no_bars():
            found = kind.from_pretrained(
                folder,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
                dtype=self._torch.float32,
            )
        if getattr(found.generation_config, "no_timestamps_token_id", None) is None:
            _complete(found.generation_config, self._tokenizer, found.config)
        return found.eval()

    def __call__(self, samples: Samples, language: str | None) -> str:
        given = self._features(
            samples, sampling_rate=RATE, return_tensors="pt", truncation=False, padding="longest",
            return_attention_mask=True,
        )  # fmt: skip
        if given["input_features"].shape[-1] < 3000:
            given = self._features(
                samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
            )
        # With timestamps its assisted generation leaves words out (5.2); longer audio needs them.
        long = given["input_features"].shape[-1] > 3000
        options: dict[str, Any] = {"return_timestamps": self._draft is None or long}
        if getattr(self._model.generation_config, "is_multilingual", False):
            options |= {"language": language, "task": "transcribe"}
        if self._draft is not None:
            options["assistant_model"] = self._draft
        elif long:
            options |= {
                "temperature": _TEMPERATURES, "compression_ratio_threshold": 2.4, "logprob_threshold": -1.0,
                "no_speech_threshold": 0.6, "condition_on_prev_tokens": True,
            }  # fmt: skip
        with self._torch.no_grad():
            ids = self._model.generate(**given, **options)
        return str(self._tokenizer.batch_decode(ids, skip_special_tokens=True)[0])


def _complete(config: Any, tokenizer: Any, model: Any) -> None:
    """Say which ids are special, and how long a text may be, for a folder without a generation config."""
    config.max_length = model.max_target_positions  # else 20 tokens a window
    first = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
    config.no_timestamps_token_id = first
    config.is_multilingual = model.vocab_size >= 51865
    config.return_timestamps = True
    config.max_initial_timestamp_index = 50
    config.prev_sot_token_id = tokenizer.convert_tokens_to_ids("<|startofprev|>")
    if config.is_multilingual:
        names = [token for token in tokenizer.get_vocab() if token.startswith("<|") and 6 <= len(token) <= 7]
        config.lang_to_id = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
        config.task_to_id = {
            task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")
        }


class _Genai:
    def __init__(self, model: Path, draft: Path | None, threads: int) -> None:
        genai = _package("openvino_genai", "specport[bench]")
        _needs(model, "openvino_encoder_model.xml", "genai")
        self._pipe = genai.WhisperPipeline(str(model), "CPU", INFERENCE_NUM_THREADS=threads)

    def __call__(self, samples: Samples, language: str | None) -> str:
        options: dict[str, Any] = {"return_timestamps": True}
        if self._pipe.get_generation_config().is_multilingual:
            options["task"] = "transcribe"
            if language is not None:
                options["language"] = f"<|{language}|>"
        return str(self._pipe.generate(samples.tolist(), **options).texts[0])


class _FasterWhisper:
    def __init__(self, model: Path, draft: Path | None, threads: int) -> None:
        faster_whisper = _package("faster_whisper", "faster-whisper")
        _needs(model, "model.bin", "faster-whisper")
        self._model = faster_whisper.WhisperModel(
            str(model), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True,
            files=_with_vocabulary(model),
        )  # fmt: skip

    def __call__(self, samples: Samples, language: str | None) -> str:
        segments, _ = self._model.transcribe(
            samples, language=language, beam_size=1, best_of=1, temperature=[*_TEMPERATURES]
        )
        return "".join(segment.text for segment in segments)


def _with_vocabulary(folder: Path) -> dict[str, bytes] | None:
    """Return the files of a CTranslate2 model with a vocabulary; None where it has one or no tokenizer.

    CTranslate2 needs the list of all tokens, which folders that come in packages often lack.
    """
    if [*folder.glob("vocabulary.*")] or not (folder / TOKENIZER_FILE).is_file():
        return None
    known = _package("tokenizers", "faster-whisper").Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    vocab = known.get_vocab(with_added_tokens=True)
    first = vocab["<|notimestamps|>"] + 1
    vocab |= {f"<|{_STAMP_S * i:.2f}|>": first + i for i in range(_STAMPS)}
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    names = ("model.bin", "config.json", TOKENIZER_FILE)
    found = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    return found | {"vocabulary.json": json.dumps(tokens).encode()}


_SYSTEMS: dict[str, Callable[[Path, Path | None, int], SpeechPeer]] = {
    "transformers": _Transformers, "genai": _Genai, "faster-whisper": _FasterWhisper,
}  # fmt: skip


def normalizer(language: str) -> Callable[[str], str]:
    """Return what makes two spellings of one text equal: Whisper's, for English or any language."""
    module = _transformers("transformers.models.whisper.english_normalizer")
    found = module.EnglishTextNormalizer({}) if language == "en" else module.BasicTextNormalizer()
    return lambda text: str(found(text))


# How a folder of each system's format is made of a Hugging Face folder.
_MADE = {
    "genai": "optimum-cli export openvino --model {} --weight-format int8 DIR",
    "faster-whisper": "ct2-transformers-converter --model {} --output_dir DIR --copy_files tokenizer.json",
}


def _needs(folder: Path, file: str, system: str) -> None:
    if (folder / file).is_file():
        return
    hint = f"name its folder: --peer-model {system}=DIR"
    if system in _MADE:
        source = folder if (folder / _HUGGING_FACE).is_file() else "HUGGING_FACE_DIR"
        hint = f"{hint}; make it with {_MADE[system].format(source)}"
    raise InvalidInput(f"{system} needs {file}, which {folder} does not have", hint)


def _transformers(module: str) -> Any:
    """Import a module of transformers. One of a model that fails to import once stays broken."""
    package_faults.mend()
    return _package(module, "specport[openvino]")


def _package(name: str, requirement: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise SpecportError(
            f"this needs the package {name.partition('.')[0]}", f"pip install '{requirement}'"
        ) from error
