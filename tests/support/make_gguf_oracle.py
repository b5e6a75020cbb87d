"""Compares tiny GGUF files of tests with llama.cpp itself, and writes ids that it gives for vocabularies.

Made with llama.cpp's own server code, in an environment of its own: `pip install xllamacpp`. First, with
specport's environment, `python make_gguf_oracle.py files FOLDER` writes the files and what the models that
they were made from compute. Then, with the other, `python make_gguf_oracle.py compare FOLDER` prints how far
llama.cpp is from that, and writes data/gguf_splits_golden.json, the oracle of text/test_gguf_splits.py.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "data" / "gguf_splits_golden.json"
PROMPT = [0, 7, 90, 41, 33, 200, 12, 5, *range(20, 32)]
MERGES = 900
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def texts() -> tuple[list[str], list[str]]:
    """Plain texts, and some with special tokens, of `make_tokenizer_golden.py`."""
    source = (HERE / "make_tokenizer_golden.py").read_text("utf-8").replace("import xllamacpp\n", "")
    found: dict = {}
    exec(compile(source, "make_tokenizer_golden.py", "exec"), {"__name__": "texts"}, found)
    return found["PLAIN"], found["SPECIAL"]


def files(folder: Path) -> None:
    sys.path.insert(0, str(HERE.parent))
    import torch
    from specport.quantize.convert import package_faults

    package_faults.mend()
    from specport.quantize.convert.from_gguf import config as gguf_config

    from specport.text import gguf_splits
    from support.tiny import tiny_gguf

    folder.mkdir(parents=True, exist_ok=True)
    logits = {}
    for arch in gguf_config.ARCHITECTURES:
        model = tiny_gguf.hf_model(arch)
        tiny_gguf.write(folder / f"{arch}.gguf", arch, model)
        with torch.no_grad():
            logits[arch] = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).tolist()
    (folder / "logits.json").write_text(json.dumps(logits))
    words, pieces = byte_level_vocabulary(), spm_vocabulary()
    small = {}
    for name, values in (("words", words), ("pieces", pieces)):
        small[name] = tiny_gguf.hf_model("llama", vocab_size=len(values["tokens"]), num_hidden_layers=1)
    for pre in (*gguf_splits.SPLITS, *gguf_splits.NAMES):
        _vocabulary(folder / f"pre={pre}.gguf", small["words"], {**words, "pre": pre})
    for prefix in (True, False):
        changes = {**pieces, "add_space_prefix": prefix}
        _vocabulary(folder / f"spm={prefix}.gguf", small["pieces"], changes)
    kept = {"words": words, "pieces": pieces}
    (folder / "vocabularies.json").write_text(json.dumps(kept))


def _vocabulary(path: Path, model: object, values: dict) -> None:
    from support.tiny import tiny_gguf

    size = {"llama.vocab_size": len(values["tokens"])}
    changes = {f"tokenizer__ggml__{key}": value for key, value in values.items()}
    tiny_gguf.write(path, "llama", model, **changes, **{k.replace(".", "__"): v for k, v in size.items()})


def byte_level_vocabulary() -> dict:
    """A vocabulary whose merges cross the bounds of words, so that ids show where a text was cut."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(CONTROL) + MERGES, initial_alphabet=alphabet, special_tokens=[*CONTROL],
        max_token_length=6, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts()[0] * 2, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["merges"]]
    types = [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))
    return {"model": "gpt2", "tokens": tokens, "merges": merges, "token_type": types, "add_bos_token": False}


def spm_vocabulary() -> dict:
    """Pieces with scores, bytes, control tokens and one that users define, as SentencePiece has them."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=MERGES, limit_alphabet=200, max_token_length=6, show_progress=False
    )
    tokenizer.train_from_iterator([" " + text.replace("\x00", "") for text in texts()[0]] * 2, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    learnt = sorted(state["vocab"], key=state["vocab"].__getitem__)
    head = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    tokens = [*head, *(f"<0x{i:02X}>" for i in range(256)), *learnt]
    types = [2, 3, 3, 3, 3, 4, *[6] * 256, *[1] * len(learnt)]
    scores = [0.0] * (len(head) + 256) + [-float(i) for i in range(len(learnt))]
    return {
        "model": "llama", "pre": "default", "tokens": tokens, "merges": None, "token_type": types,
        "scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "padding_token_id": None, "add_bos_token": True,
    }  # fmt: skip


def compare(folder: Path) -> None:
    import xllamacpp

    wanted = json.loads((folder / "logits.json").read_text())
    plain, special = texts()
    rows: dict = {}
    for path in sorted(folder.glob("*.gguf")):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.warmup, params.verbosity = 256, False, 0
        params.hostnames, params.port = ["127.0.0.1"], 18231
        params.endpoint_props = True
        try:
            server = xllamacpp.Server(params)
        except Exception as error:
            print(f"{path.stem}: llama.cpp does not load it: {error}", flush=True)
            continue

        def ask(route, server=server, **body):
            request = urllib.request.Request(server.listening_address + route, json.dumps(body).encode())
            return json.load(urllib.request.urlopen(request, timeout=120))

        if path.stem in wanted:
            want = wanted[path.stem]
            got: dict = {}
            for seed in range(100):  # a token that ends the text, or a character's part, comes without them
                options = {"n_predict": 1, "n_probs": 500, "temperature": 1.0, "seed": seed}
                got = ask("/completion", prompt=PROMPT, **options)
                if "completion_probabilities" in got:
                    break
            tops = got["completion_probabilities"][0]["top_logprobs"]
            errors = [abs(want[top["id"]] - top["logprob"]) for top in tops if top["logprob"] > -12]
            print(f"{path.stem}: most {max(errors):.4f} in {len(errors)} log-probabilities", flush=True)
        else:
            rows[path.stem] = {
                "plain": [ask("/tokenize", content=text, add_special=True)["tokens"] for text in plain],
                "special": [
                    ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]
                    for text in special
                ],
            }
            print(path.stem, flush=True)
        del ask, server
    same: dict = {}
    for name, ids in rows.items():  # names that cut alike share a row
        same.setdefault(json.dumps(ids), []).append(name)
    vocabularies = json.loads((folder / "vocabularies.json").read_text())
    golden = {
        "made_with": f"xllamacpp {xllamacpp.__version__}", "texts": plain, "special": special,
        **vocabularies, "rows": [{"names": names, **json.loads(ids)} for ids, names in same.items()],
    }  # fmt: skip
    GOLDEN.write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    {"files": files, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
