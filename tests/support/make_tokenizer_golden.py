"""Writes tokenizer_golden.json: token ids as llama.cpp gives them, the oracle of text/test_gguf_golden.py.

Made with llama.cpp's own server code, in an environment of its own: `pip install xllamacpp`, then
`python make_tokenizer_golden.py NAME=FILE.gguf ...`. The chat texts are rendered by llama.cpp's own
template engine (/apply-template), the ids come from its vocabulary (/tokenize).
"""

# ruff: noqa: RUF001
import json
import pathlib
import sys
import urllib.request

import xllamacpp

PLAIN = [
    "Hello, world!",
    " leading and trailing  ",
    "The year 2024 had 366 days; pi is 3.14159265, 1,000,000 is a million and ½ is a half.",
    "0 00 000 0000 12345678901234567890 v1.2.3 0x1F ٣٤٥ १२३ 五 Ⅷ ²",
    "don't can't I'll we've they're he'd it's 'tis O'Neill DON'T I'LL",
    "  two spaces\n\n\nthree newlines\t\ttabs \r\n windows\n ",
    "\n",
    "\n\n\n\n\n\n",
    "                                        x",
    "a  b   c    d     e\t\t\tf \t g",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; } /* C */",
    '{"key": [1, 2.5, -3e-10, null, true], "s": "a\\"b\\\\c\\n"}',
    "SELECT * FROM t WHERE a<>b AND c>=10;--x",
    '<html><body class="a">&nbsp;</body></html>',
    "https://example.org/a?b=c&d=%20e#f user@example.org",
    "Ünïcödé naïve café Zürich Straße Œuvre",
    "e\u0301 a\u030a n\u0303 (combining)",
    "Привет, мир! Как дела?",
    "你好，世界！今天天气怎么样？",
    "こんにちは世界。カタカナ ひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α∧β, ∑∫√≈≠≤",
    "\u00a0nbsp\u2003em\u200bzero\ufeffbom\u2028line",
    "—“quotes”‘single’…«guillemets»",
    "word" * 20,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===***___~~~```$$$^^^|||",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𐍈 \U0001fae0",
    "\x00\x01\x7f control",
    "ſſ'ſ K K",
    "1️⃣ 2² x₁ ①",
    "Mr. O'Brien's 3rd-party\u2019s",
]
SPECIAL = [
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_start|> <|im_end|>x<|endoftext|>",
    "<start_of_turn>user\nHi 12<end_of_turn>\n<bos><eos>",
    "a<|im_end|> b <|im_end|>\n\n<|fim_prefix|>x<|fim_suffix|>",
    "<tool_call>\n{}</tool_call> <unk> <pad> <|file_sep|>",
    "<|im_start|",
]
CHATS = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "system", "content": "Answer in 2 words."},
        {"role": "user", "content": "  1+1?  "},
        {"role": "assistant", "content": "It's 2.\n"},
        {"role": "user", "content": "Sure? 😀\n\n"},
    ],
]


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.warmup, params.use_jinja, params.verbosity = 256, False, True, 0
    params.hostnames, params.port = ["127.0.0.1"], 18231
    params.endpoint_props = True
    return xllamacpp.Server(params)


def main():
    out = {"made_with": f"xllamacpp {xllamacpp.__version__}", "models": {}}
    for argument in sys.argv[1:]:
        name, path = argument.split("=", 1)
        server = serve(path)

        def ask(route, server=server, **body):
            request = urllib.request.Request(server.listening_address + route, json.dumps(body).encode())
            return json.load(urllib.request.urlopen(request, timeout=60))

        def ids(text, parse=True, ask=ask):
            return ask("/tokenize", content=text, add_special=True, parse_special=parse)["tokens"]

        rows = {"plain": [[text, ids(text)] for text in PLAIN]}
        rows["special"] = [[text, ids(text), ids(text, False)] for text in SPECIAL]
        rows["chat"] = []
        for messages in CHATS:
            try:
                prompt = ask("/apply-template", messages=messages)["prompt"]
            except urllib.error.HTTPError:
                continue  # a model without a template, or one that knows no system role
            rows["chat"].append([messages, prompt, ids(prompt)])
        out["models"][name] = rows
        del ask, ids, server
    target = pathlib.Path(__file__).parents[1] / "data" / "tokenizer_golden.json"
    target.write_text(json.dumps(out, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
