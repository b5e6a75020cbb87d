"""User's turns with longer passages that people wrote, and a task for each.

A draft that has only seen short turns does not learn to copy from long ones, as it must where a text is
summarized, translated, corrected or searched. The passages come with every Python: its language reference,
docstrings and source code. The modules are read, not imported or run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

# Length of a passage in characters: about 60 to 700 tokens, short ones more often.
SHORTEST, LONGEST = 200, 2800
MODULES = (
    "argparse", "ast", "asyncio.queues", "asyncio.tasks", "bisect", "calendar", "cmd", "codecs",
    "collections", "configparser", "contextlib", "copy", "csv", "dataclasses", "difflib", "doctest",
    "email.message", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getopt", "glob", "gzip",
    "heapq", "html.parser", "http.client", "http.cookies", "http.server", "inspect", "ipaddress",
    "json.decoder", "json.encoder", "linecache", "locale", "logging", "mailbox", "mimetypes",
    "multiprocessing.pool", "netrc", "optparse", "pathlib", "pdb", "pprint", "queue", "quopri", "random",
    "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socketserver", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "traceback",
    "turtle", "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "wave", "weakref",
    "xml.dom.minidom", "zipfile",
)  # fmt: skip
PROSE = (
    "Summarize this text:\n\n{}", "{}\n\nSummarize the text above in one sentence.",
    "What is this text about?\n\n{}", "List the most important points of the following text.\n\n{}",
    "Rewrite this in simpler words:\n\n{}", "Correct the spelling and the style of this text:\n\n{}",
    "Explain this to a beginner, with an example:\n\n{}", "Translate into German:\n\n{}",
    "Translate into French: {}", "Translate the following into Spanish.\n\n{}",
    "Passage:\n{}\n\nAnswer from the passage: what does it say first, and what follows from it?",
    "Context: {}\n\nQuestion: What is this for?\nAnswer:",
    "Here is a page of a manual.\n\n{}\n\nWrite three questions that it answers, with their answers.",
    "{}\n\nQuote the sentence that matters most, and say why.",
)  # fmt: skip
CODE = (
    "Explain what this code does:\n\n```python\n{}\n```", "Fix any bugs in this code:\n\n```python\n{}\n```",
    "Add type hints and a docstring.\n\n```python\n{}\n```",
    "Rename the variables so that they are easier to understand, and give me the whole code.\n\n{}",
    "Rewrite this in JavaScript:\n\n```python\n{}\n```", "Write unit tests for this:\n\n{}",
    "Refactor this function and return all of it:\n\n```python\n{}\n```",
    "```python\n{}\n```\n\nAdd a comment to each step of this code.",
    "Review this change:\n\n```python\n{}\n```", "Make this faster:\n\n```python\n{}\n```",
)  # fmt: skip


def content_hash() -> str:
    """Return a hash of all that the turns depend on: this file's tables, and the texts of this Python."""
    content = json.dumps([MODULES, PROSE, CODE, SHORTEST, LONGEST, *texts()])
    return hashlib.sha256(content.encode()).hexdigest()


def turn(rng: np.random.Generator) -> str:
    """Return a task with its passage; half of them are prose, half are code."""
    prose = bool(rng.integers(2))
    pieces = texts()[0 if prose else 1]
    size = int(SHORTEST * (LONGEST / SHORTEST) ** rng.random())
    start = int(rng.integers(len(pieces)))
    passage = ""
    for piece in pieces[start:] + pieces[:start]:  # neighbouring pieces belong together
        if passage and len(passage) + len(piece) > size:
            break
        passage += ("\n\n" if passage else "") + piece
    tasks = PROSE if prose else CODE
    task = tasks[int(rng.integers(len(tasks)))]
    return task.format(shortened(passage, size, " " if prose else "\n"))


def shortened(text: str, size: int, end: str) -> str:
    """Return at most `size` characters of a text, cut behind a whole word or line (`end` separates them)."""
    return text if len(text) <= size else text[: max(text.rfind(end, 0, size), SHORTEST // 2)].rstrip()


@cache
def texts() -> tuple[list[str], list[str]]:
    """Return all paragraphs of prose, and the source of all functions."""
    from pydoc_data.topics import topics

    prose = [_joined(p) for text in topics.values() for p in text.split("\n\n")]
    code: list[str] = []
    for name in MODULES:
        for kind, text in _pieces(name):
            if kind == "prose":
                prose += [_joined(p) for p in text.split("\n\n")]
            else:
                code.append(text)
    return [p for p in prose if len(p) >= SHORTEST // 2], [c for c in code if len(c) >= SHORTEST]


def _joined(paragraph: str) -> str:
    """Return a paragraph on one line, as most pasted text is; indented lines have a meaning and stay."""
    text = paragraph.strip("\n")
    return text if "\n " in text or text.startswith(" ") else text.replace("\n", " ")


def _pieces(module: str) -> Iterator[tuple[str, str]]:
    """Yield the docstrings ("prose") and the functions ("code") of a module's source."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return
    source = Path(spec.origin).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield "prose", text
        elif isinstance(node, ast.FunctionDef):
            body = lines[node.lineno - 1 : node.end_lineno]
            yield "code", "\n".join(line[node.col_offset :] for line in body)
