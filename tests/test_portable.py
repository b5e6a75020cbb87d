"""Nothing needs POSIX: what only some systems have is asked for first, and without it everything works.

Windows itself runs in the workflow only. Here the source is searched for what Windows lacks, and commands
run in a Python from which it was taken away.
"""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_models

from specport.cli import terminal
from specport.drafters.retrieval import datastore
from specport.errors import InvalidInput
from specport.models import atomic
from specport.models.safe_files import UnsafeFile, check_name
from specport.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for top in ("specport", "backends", "quantize") for path in sorted((ROOT / top).rglob("*.py"))
]
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline"}
NAMES = {
    "os": {
        "fork", "killpg", "getpgid", "setsid", "setpgid", "getuid", "geteuid", "getgid", "getloadavg",
        "sched_getaffinity", "sched_setaffinity", "fchmod", "chown", "fchown", "lchown", "statvfs", "sysconf",
        "uname", "nice", "setpriority", "getpriority", "mkfifo", "posix_fadvise", "register_at_fork",
        "O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_NOCTTY", "preadv",
        "pread", "pwrite", "getrusage", "openpty", "chroot", "initgroups",
    },
    "signal": {
        "SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGPIPE", "SIGSTOP", "alarm",
        "setitimer", "pause", "sigwait", "pthread_sigmask", "pthread_kill", "set_wakeup_fd",
    },
    "socket": {"AF_UNIX"},
    "time": {"tzset"},
    "select": {"poll", "epoll", "kqueue"},
}  # fmt: skip
ASKED = ("os.name", "sys.platform", "platform.system", "hasattr", "_WINDOWS")
CAUGHT = ("ImportError", "AttributeError", "NotImplementedError", "OSError", "Exception", "suppress")


class Needs(ast.NodeVisitor):
    """Find what a module needs of POSIX without having asked for it, and texts in the system's encoding."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self._safe = 0

    def _note(self, node: ast.AST, what: str) -> None:
        if not self._safe:
            self.found.append((getattr(node, "lineno", 0), what))

    def _inside(self, nodes: Any, safe: bool) -> None:
        self._safe += safe
        for node in nodes:
            self.visit(node)
        self._safe -= safe

    def visit_If(self, node: ast.If) -> None:
        safe = any(name in ast.unparse(node.test) for name in ASKED)
        self._inside([node.test, *node.body, *node.orelse], safe)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        safe = any(name in ast.unparse(node.test) for name in ASKED)
        self._inside([node.test, node.body, node.orelse], safe)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._inside(node.values, any(name in ast.unparse(node.values[0]) for name in ASKED))

    def visit_Try(self, node: ast.Try) -> None:
        caught = " ".join(ast.unparse(each.type) for each in node.handlers if each.type is not None)
        self._inside(node.body, any(name in caught for name in CAUGHT))
        self._inside([*node.handlers, *node.orelse, *node.finalbody], False)

    def visit_With(self, node: ast.With) -> None:
        safe = any("suppress" in ast.unparse(item.context_expr) for item in node.items)
        self._inside([*node.items, *node.body], safe)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            if name.name.partition(".")[0] in MODULES:
                self._note(node, f"import {name.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        names = NAMES.get(node.module or "", set())
        for name in node.names:
            if name.name in names or (node.module in MODULES and not node.level):
                self._note(node, f"from {node.module} import {name.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.attr in NAMES.get(node.value.id, ()):
            self._note(node, f"{node.value.id}.{node.attr}")
        if node.attr == "add_signal_handler":
            self._note(node, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        named = {word.arg: word.value for word in node.keywords}
        called = ast.unparse(node.func)
        text = called.endswith((".read_text", ".write_text")) or (
            called == "open" and not self._binary(node, named)
        )
        text |= called.startswith("subprocess.") and ("text" in named or "universal_newlines" in named)
        if text and "encoding" not in named and None not in named and not self._positional(node, called):
            self.found.append((node.lineno, f"{called} without an encoding"))
        self.generic_visit(node)

    @staticmethod
    def _positional(node: ast.Call, called: str) -> bool:
        return len(node.args) > (3 if called == "open" else 0) and called.endswith(("open", "read_text"))

    @staticmethod
    def _binary(node: ast.Call, named: dict[str | None, ast.expr]) -> bool:
        mode = node.args[1] if len(node.args) > 1 else named.get("mode")
        return mode is not None and (not isinstance(mode, ast.Constant) or "b" in str(mode.value))


def needs(source: str) -> list[tuple[int, str]]:
    walker = Needs()
    walker.visit(ast.parse(source))
    return walker.found


def test_nothing_is_taken_from_posix_that_was_not_asked_for() -> None:
    assert len(SOURCES) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in SOURCES
        for line, what in needs(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import os\nos.fork()", "os.fork"),
        ("import resource", "import resource"),
        ("from signal import SIGKILL", "from signal import SIGKILL"),
        ("import os\nif os.name != 'nt':\n    os.killpg(1, 9)", None),
        ("import os\nif x:\n    os.getuid()", "os.getuid"),
        ("import os\na = getattr(os, 'O_NONBLOCK', 0)", None),
        ("import os\nhasattr(os, 'getuid') and os.getuid()", None),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", None),
        ("try:\n    pass\nexcept ImportError:\n    import fcntl", "import fcntl"),
        ("open('a', 'w')", "open without an encoding"),
        ("open('a', 'rb')\nopen('a', encoding='utf-8')", None),
        ("from pathlib import Path\nPath('a').read_text()", "Path('a').read_text without an encoding"),
        ("import subprocess\nsubprocess.run([], text=True)", "subprocess.run without an encoding"),
        ("loop.add_signal_handler(1, f)", "add_signal_handler"),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, what: str | None) -> None:
    assert [each for _, each in needs(source)] == ([] if what is None else [what])


WITHOUT_POSIX = f"""
import os, signal, sys
import filelock, numpy, openvino, platformdirs, psutil, tokenizers  # on Windows they are others than here
filelock.FileLock = filelock.SoftFileLock
for name in {sorted(MODULES - {"posix"})!r}:
    sys.modules[name] = None
for module, names in ((os, {sorted(NAMES["os"])!r}), (signal, {sorted(NAMES["signal"])!r})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from specport.cli import main
"""


def without_posix(code: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """Run Python without what only POSIX has, in an environment of Windows' encodings."""
    return subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", WITHOUT_POSIX + code], cwd=folder, capture_output=True,
        check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252", "SPECPORT_CACHE": str(folder / "c")},
    )  # fmt: skip


def test_commands_run_without_posix(tmp_path: Path) -> None:
    """A datastore, the lock of a build, the facts of a machine, a command whose output is piped."""
    tiny_models.save_tokenizer(tmp_path / "modèle")
    (tmp_path / "größe 日本.txt").write_text("hello world 日本", encoding="utf-8")
    code = (
        "from pathlib import Path\n"
        "from specport.cli import terminal\n"
        "from specport.drafters.retrieval import datastore\n"
        "from specport.jobs.workdir import hold_workdir\n"
        "from specport.runtime.caches.memory import free_bytes\n"
        "from specport.runtime.devices.profiles import cpu_flags, cpu_name\n"
        "from specport.text.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer(Path('modèle'))\n"
        "datastore.build([Path('größe 日本.txt')], Path('store'), tokenizer)\n"
        "datastore.open_datastore(Path('store'), tokenizer, 1000)\n"
        "with hold_workdir(Path('made.partial'), {'a': 1}):\n"
        "    pass\n"
        "assert free_bytes() > 0 and cpu_name() and cpu_flags() is not None\n"
        "code = main(['devices'])\n"
        "terminal.write('größe 日本')\n"
        "sys.exit(code or main(['run', 'x', '--model', 'größe 日本']) - 2)\n"
    )
    done = without_posix(code, tmp_path)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    # Pipes get UTF-8 on every system.
    assert "größe 日本" in done.stdout.decode("utf-8") and "'größe 日本'" in done.stderr.decode("utf-8")


class Console(io.TextIOWrapper):
    """A console of Windows' code page 1252."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="cp1252", errors="strict", write_through=True)

    def isatty(self) -> bool:
        return True

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("cp1252")  # type: ignore[attr-defined, no-any-return]


def test_a_console_that_lacks_a_character_shows_another(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Console(), Console()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal.prepare_streams()
    terminal.write("größe 日本 🎉\n")
    terminal.complain("no model 日本")
    with terminal.progress(quiet=False) as progress:
        progress("converting 日本", 0.4)
    assert "größe ?? ?" in out.shown() and "no model ??" in err.shown() and "converting ??" in err.shown()


@pytest.mark.parametrize(
    "name",
    ["C:\\x", "c:x", "\\\\server\\share\\x", "..\\x", "a\\..\\..\\x", "a:stream", "NUL", "con.txt", "COM¹",
     "a.",
     "a ", "/x", "a//b", "aux.tar.gz", "x/lpt1"],
)  # fmt: skip
def test_names_that_mean_something_else_on_windows_are_refused_everywhere(name: str) -> None:
    with pytest.raises(UnsafeFile):
        check_name(name)


def in_use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Let moves and deletions of a folder fail as Windows does while one of its files is open or mapped."""
    real = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "rmdir")}

    def refusing(name: str) -> Any:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            if Path(path) == folder or (name == "unlink" and Path(path).parent == folder):
                raise PermissionError(13, "it is used by another process", str(path))
            return real[name](path, *more, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_WINDOWS", True)
        patch.setattr(atomic, "_WAIT_S", 0.0)
        for name in real:
            patch.setattr(os, name, refusing(name))
        yield


def test_a_datastore_that_is_open_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_models.save_tokenizer(tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    (tmp_path / "a.txt").write_text("hello world", encoding="utf-8")
    out = tmp_path / "store"
    datastore.build([tmp_path / "a.txt"], out, tokenizer)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "a.txt").write_text("another text", encoding="utf-8")
    for _ in in_use(monkeypatch, out):
        with pytest.raises(InvalidInput, match="store"):
            datastore.build([tmp_path / "a.txt"], out, tokenizer)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert datastore.open_datastore(out, tokenizer, 1000)
    datastore.build([tmp_path / "a.txt"], out, tokenizer)  # and works again when it is closed
    assert {path.name: path.read_bytes() for path in out.iterdir()} != before


def test_a_file_that_is_open_does_not_hide_why_writing_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "it is used by another process")

    monkeypatch.setattr(Path, "unlink", unlink)

    def stopped() -> None:
        with atomic.replacing(tmp_path / "a") as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
