"""Links, files and commands in README, CONTRIBUTING, docs/ and examples/ lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from support.pages import commands

from specport import cli
from specport.errors import InvalidInput
from specport.models.source import GGUF_ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for folder in ("docs", "examples") for path in (ROOT / folder).rglob("*.md")),
]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FOLDERS = "specport|backends|quantize|hw_profiles|tests|docs|examples"


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def _broken_links(page: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text(encoding="utf-8")))
    return [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not _leads_somewhere(page, *target.partition("#")[::2])
    ]


def _leads_somewhere(page: Path, path: str, anchor: str) -> bool:
    file = page.parent / path if path else page
    if not file.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
    return not anchor or anchor in {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings
    }


def _missing_files(text: str) -> list[str]:
    """Return the files and folders of the repository that a text names and that do not exist.

    Names in capitals, as in hw_profiles/NAME.toml, are the reader's to fill in.
    """
    named = re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w/?)", text)
    return [path for path in named if not re.search(r"[A-Z]{3}", path) and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_resolve(page: Path) -> None:
    assert _broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page: Path) -> None:
    assert _missing_files(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_options_that_exist(page: Path) -> None:
    parser = cli.make_parser(import_module(name) for name in cli.COMMANDS.values())
    for arguments in commands(page.read_text(encoding="utf-8")):
        parser.parse_args(arguments)


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](page.md#one) [b](#two) [c](gone.md) [d](https://x.y)", encoding="utf-8")
    assert _broken_links(page) == ["#two", "gone.md"]
    assert _missing_files("`specport/gone.py`, `specport/api.py`, `hw_profiles/NAME.toml`") == [
        "specport/gone.py"
    ]
    found = commands("```sh\npip install x && specport run --draft 'a|b' \\\n  --no-such  # why\n```")
    assert found == [["run", "--draft", "a|b", "--no-such"]]
    with pytest.raises(InvalidInput):
        cli.make_parser([import_module(cli.COMMANDS["run"])]).parse_args(found[0])


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


def test_the_page_on_gguf_names_every_architecture() -> None:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([\w-]+)`", "".join(table))) == sorted(GGUF_ARCHITECTURES)
    count = re.search(r"\[(\d+) architectures\]", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert count is not None
    assert int(count[1]) == len(GGUF_ARCHITECTURES)
