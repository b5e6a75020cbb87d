"""The tokenizer wrapper: BOS, chat templates, bytes, fingerprints; hostile and damaged files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from support.tiny import tiny_gguf, tiny_models
from tokenizers import AddedToken

from specport.errors import InvalidInput, ModelError
from specport.models.gguf.file import read_header
from specport.text import gguf_tokenizer
from specport.text.gguf_vocabulary import Vocabulary
from specport.text.tokenizer import Tokenizer, load_beside, load_tokenizer


@pytest.fixture
def folder(tmp_path):
    tiny_models.save_tokenizer(tmp_path / "tok")
    return tmp_path / "tok"


def from_gguf(tmp_path, **changes) -> Tokenizer:
    tiny_gguf.write(tmp_path / "m.gguf", **changes)
    (tmp_path / "tok").mkdir(exist_ok=True)
    gguf_tokenizer.save(read_header(tmp_path / "m.gguf"), tmp_path / "tok")
    return load_tokenizer(tmp_path / "tok")


TEXTS = ["hello world", "  a\n\n\tb ", "ünïcödé 😀 12", "", "\x00\x7f"]


def test_round_trip(folder):
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode([0, *tokenizer.encode("a"), 2]) == "<|endoftext|>a<|im_end|>"
    assert tokenizer.decode([0, *tokenizer.encode("a"), 2], skip_special_tokens=True) == "a"
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"
    assert tokenizer.token_bytes(-1) == tokenizer.token_bytes(10**6) == b""
    assert tokenizer.vocab_size == len(tiny_models.vocabulary())


def test_chat(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.chat([{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(1) == 2
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "x"}], False)).endswith(
        "<|im_end|>\n"
    )
    assert 1 not in tokenizer.encode("<|im_start|>", parse_special=False)
    assert tokenizer.encode("<|im_start|>") == [1]


def test_one_bos(tmp_path):
    tokenizer = from_gguf(tmp_path, tokenizer__ggml__add_bos_token=True)
    assert tokenizer.encode("hello")[0] == 0
    assert tokenizer.encode("hello").count(0) == 1
    assert tokenizer.encode("<|endoftext|>hello").count(0) == 1
    chat = tokenizer.chat([{"role": "user", "content": "hello"}])
    assert chat[:2] == [0, 1]
    with_bos = "{{ bos_token }}" + tiny_models.TEMPLATE
    tokenizer = from_gguf(tmp_path, tokenizer__ggml__add_bos_token=True, tokenizer__chat_template=with_bos)
    assert tokenizer.chat([{"role": "user", "content": "hello"}]) == chat


def test_end_ids(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (folder / "config.json").write_text('{"eos_token_id": 11}')
    assert load_tokenizer(folder).eos_ids == {0, 2, 7, 9, 11}


def test_end_ids_of_a_gguf_file(tmp_path):
    tokens = tiny_models.vocabulary()
    ids = {"eos": 0, "eot": tokens.index("a"), "eom": tokens.index("b")}
    tokenizer = from_gguf(tmp_path, **{f"tokenizer__ggml__{k}_token_id": v for k, v in ids.items()})
    config = json.loads((tmp_path / "tok" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|endoftext|>"
    vocabulary = Vocabulary(read_header(tmp_path / "m.gguf"))
    assert vocabulary.end_ids() == sorted({*ids.values(), 2})  # and <|im_end|>
    assert tokenizer.eos_ids == {0, 2}  # the other ids stand in generation_config.json
    outside = from_gguf(tmp_path, tokenizer__ggml__eos_token_id=4_000_000_000)
    assert outside.eos_ids == {0, 2}


@pytest.mark.parametrize(
    ("templates", "text"),
    [
        ({"": "plain", "default": "named", "tool_use": "tools"}, "plain"),
        ({"": None, "default": "named", "tool_use": "tools"}, "named"),
        ({"": None, "rag": "alone"}, "alone"),
        ({"": "", "rag": "alone"}, "alone"),
        ({"": None, "rag": "one", "tool_use": "two"}, None),
        ({"": None}, None),
    ],
)
def test_chat_templates_by_name(templates, text, tmp_path):
    changes = {f"tokenizer__chat_template{name and '__' + name}": each for name, each in templates.items()}
    tokenizer = from_gguf(tmp_path, **changes, tokenizer__chat_templates=[n for n in templates if n] or None)
    assert tokenizer.has_chat_template == (text is not None)
    assert text is None or tokenizer.render([{"role": "user", "content": "x"}]) == text


@pytest.mark.parametrize(("arch", "name"), [("qwen2", "qwen2"), ("llama", None), ("gpt2", "gpt-2")])
def test_old_files_that_do_not_say_how_words_are_split(arch, name, tmp_path):
    tiny_gguf.write(tmp_path / "m.gguf", arch, tokenizer__ggml__pre=None)
    vocabulary = Vocabulary(read_header(tmp_path / "m.gguf"))
    if name is None:
        with pytest.raises(ModelError, match="does not say how it splits words"):
            gguf_tokenizer.build(vocabulary)
    else:
        assert vocabulary.pre == name
        gguf_tokenizer.build(vocabulary)


def test_every_id_of_the_file_keeps_its_meaning(tmp_path):
    """Tokens that stand twice, empty ones, control tokens inside of others, tokens with spaces."""
    tokens = [*tiny_models.vocabulary(), "", "a", "<|im_start|>user", "<|two words|>", "[PAD274]"]
    types = [3] * 3 + [1] * (len(tokens) - 8) + [1, 1, 3, 3, 5]
    changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    tokenizer = from_gguf(tmp_path, **changes)
    for text in ("<|im_start|>user", "<|two words|>", "<|im_start|>"):
        assert tokenizer.encode(text) == [tokens.index(text)]
        assert tokenizer.token_bytes(tokens.index(text)) == text.encode()
    assert tokenizer.encode("a") == [tokens.index("a")]


def test_a_vocabulary_without_a_letter_is_refused(tmp_path):
    tokens = ["<|other|>" if token == "Z" else token for token in tiny_models.vocabulary()]
    with pytest.raises(ModelError, match="does not hold all of ASCII"):
        from_gguf(tmp_path, tokenizer__ggml__tokens=tokens)


def test_sentencepiece_vocabulary(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", "a", "b", "▁a", "ab", "▁ab", "bb"]
    types = [2, 3, 3, *([6] * 256), *([1] * 7)]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -3.0, -1.0, -2.0, -4.0]
    keys = {"model": "llama", "pre": None, "tokens": pieces, "token_type": types, "scores": scores}
    keys |= {"merges": None, "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": None}
    tokenizer = from_gguf(tmp_path, **{f"tokenizer__ggml__{key}": value for key, value in keys.items()})
    words = [pieces[i] for i in tokenizer.encode("ab abb é")]
    assert words == ["<s>", "▁ab", "▁ab", "b", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("ab abb é")[1:]) == " ab abb é"
    assert tokenizer.token_bytes(3 + 0xC3) == b"\xc3"
    assert tokenizer.eos_ids == {2}


def test_padding_tokens_are_no_part_of_the_vocabulary(tmp_path):
    plain = from_gguf(tmp_path)
    tokens = tiny_models.vocabulary()
    count = len(tokens)
    padded = from_gguf(
        tmp_path,
        tokenizer__ggml__tokens=[*tokens, f"[PAD{count}]", f"[PAD{count + 1}]"],
        tokenizer__ggml__token_type=[3] * 3 + [1] * (count - 3) + [5, 5],
    )
    assert padded.fingerprint == plain.fingerprint
    assert padded.mismatch(plain) is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model", "t5", "'t5' is not supported"),
        ("pre", "no-such", "'no-such' is not supported"),
        ("tokens", None, "no vocabulary"),
        ("merges", None, "no tokenizer merges"),
        ("token_type", [1, 2], "2 token types"),
    ],
)
def test_gguf_vocabulary_that_cannot_be_used(key, value, said, tmp_path):
    with pytest.raises(ModelError, match=said):
        from_gguf(tmp_path, **{f"tokenizer__ggml__{key}": value})


def change(folder: Path, edit) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit(backend)
    return Tokenizer(backend)


def test_a_draft_shares_the_tokenizer_of_an_equal_file(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert load_beside(tmp_path / "copy", tokenizer) is tokenizer
    path = tmp_path / "copy" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    other = load_beside(tmp_path / "copy", tokenizer)
    assert other is not tokenizer
    assert other.mismatch(tokenizer) is None
    path.unlink()
    with pytest.raises(ModelError, match=r"no tokenizer \(tokenizer.json\)"):
        load_beside(tmp_path / "copy", tokenizer)


def test_mismatch_names_the_first_difference(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.mismatch(load_tokenizer(folder)) is None
    wider = change(folder, lambda t: t.add_special_tokens([AddedToken("<|more|>", special=True)]))
    assert wider.fingerprint != tokenizer.fingerprint
    assert tokenizer.mismatch(wider) is None
    assert wider.mismatch(tokenizer) is None

    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    other = load_tokenizer(folder)
    said = tokenizer.mismatch(other)
    assert said == f"token {vocab['b']} is 'a' in one vocabulary and 'b' in the other"

    longer = from_gguf(tmp_path, tokenizer__ggml__merges=tiny_models.MERGES[:3])
    assert longer.mismatch(tokenizer) is None  # merges are no part of what an id means
    tokens = [*tiny_models.vocabulary(), "ab"]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    more = from_gguf(tmp_path, tokenizer__ggml__tokens=tokens, tokenizer__ggml__token_type=types)
    assert "'ab', is missing" in str(more.mismatch(tokenizer))


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ raise_exception('only one user message') }}",
    "{{ messages[0]['content'] + 1 }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_hostile_template(template, folder):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidInput):
        load_tokenizer(folder).chat([{"role": "user", "content": "x"}])


def test_unusable_templates(folder):
    (folder / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelError, match="chat template"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidInput, match="no chat template"):
        tokenizer.chat([])


def test_template_features(folder):
    (folder / "chat_template.jinja").write_text(
        "{%- for m in messages %}\n    {%- if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{%- endfor %}{{ strftime_now('%Y')[:2] }}"
    )
    text = load_tokenizer(folder).render([{"a": "<é>"}, {"b": 1}])
    assert text == '{"a": "<é>"}20'


def test_a_template_of_its_own_for_tools(folder):
    given = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | tojson }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.takes_tools and tokenizer.template_source == given[1]["template"]
    assert tokenizer.render([], tools=[{"a": 1}]) == '[{"a": 1}]' and tokenizer.render([]) == "plain"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "plain"}))
    tokenizer = load_tokenizer(folder)
    assert not tokenizer.takes_tools and tokenizer.render([], tools=[{"a": 1}]) == "plain"


def test_damaged_files(folder):
    good = (folder / "tokenizer.json").read_text()
    for text in ("", "{", "{}", "[]", good[:-50]):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match=r"tokenizer\.json"):
            load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(good)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(folder / "nowhere")


def test_text_that_is_no_unicode(folder):
    with pytest.raises(InvalidInput):
        load_tokenizer(folder).encode("\ud800")


def test_no_heavy_imports(folder):
    code = (
        "import sys; from specport.text.tokenizer import load_tokenizer; import specport.models.source; "
        f"load_tokenizer({str(folder)!r}).encode('hello'); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'openvino', 'optimum')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
