"""Tiny random models for the tests: a byte-level tokenizer, Hugging Face folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "Ċ Ċ"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json with tokenizer_config.json and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(vocabulary())}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "chat_template": TEMPLATE}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def hf_model(kind: str, num_hidden_layers: int = 2, **changes: Any) -> Any:
    """A random model of `kind` (llama, qwen2, qwen3, gemma3_text), 64 wide; `changes` to its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": len(vocabulary()), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": num_hidden_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": 0, "sliding_window": 128,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**shape, **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(torch.randn_like(parameter) * 0.05)
    return model


def save_hf(folder: Path, kind: str, num_hidden_layers: int = 2, **changes: Any) -> Any:
    model = hf_model(kind, num_hidden_layers, **changes)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_kinds(root: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """A folder of each kind below `root`."""
    for kind in kinds:
        save_hf(root / kind, kind)
    return {kind: root / kind for kind in kinds}
