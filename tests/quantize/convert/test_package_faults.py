"""What other installed packages break, or do unasked, is mended before they are used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from specport.quantize.convert import package_faults
from support.tiny import tiny_models

REASON = "operator torchvision::nms does not exist"
# Where what is imported first, transformers or optimum, must not find torchvision any more.
FIRST = """
from importlib.util import find_spec
raise ImportError(f"torchvision is there: {find_spec('torchvision') is not None}")
"""
ENTRIES = {
    "conversion to OpenVINO": "from specport.quantize.convert.export import export\nexport('x', 'y', 'int8')",
    "conversion for torch": "from specport.quantize.convert.export import save\nsave('x', 'y', 'fp32')",
    "weights for training": (
        "from pathlib import Path\nfrom specport.quantize.convert.export import load_source\n"
        "load_source(Path('.'), Path('.'), False)"
    ),
    "layout of genai": (
        "from pathlib import Path\nfrom specport.quantize.convert.to_genai import genai\n"
        "genai(Path('x'), Path('y'))"
    ),
    "layout of Hugging Face": (
        "from pathlib import Path\nfrom specport.quantize.convert.to_huggingface import to_hugging_face\n"
        "to_hugging_face(Path('x'), Path('y'))"
    ),
    "peer": (
        "from specport.bench.peers.transformers import Transformers\n"
        "Transformers('plain', 'x', None, frozenset(), None, False, {})"
    ),
    "torch backend": ("from specport.backends.torch import backend\nbackend.load(None, None)"),
}


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    paths = [*map(str, path), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with a torchvision that fails as the real one does, after half of it was imported."""
    package(tmp_path / "broken", "torchvision", f"from . import extension\nraise RuntimeError({REASON!r})")
    (tmp_path / "broken" / "torchvision" / "extension.py").write_text("")
    return tmp_path / "broken"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_it_is_hidden_before_transformers_is_imported(entry: str, broken: Path, tmp_path: Path) -> None:
    package(tmp_path / "first", "transformers", FIRST)
    package(tmp_path / "first", "optimum", FIRST)
    done = python(entry, tmp_path / "first", broken)
    assert "torchvision is there: False" in done.stderr, done.stderr


def test_one_that_imports_stays(tmp_path: Path) -> None:
    package(tmp_path, "torchvision", "")
    code = "from specport.quantize.convert import package_faults as b\nb.mend()\n"
    code += "import torchvision\nprint(b.torchvision_problem())"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_warnings_of_transformers_survive_nncf() -> None:
    """NNCF's loggers take one argument where transformers' models give more; apertus does."""
    pytest.importorskip("nncf")
    code = """
import logging, nncf
from transformers.utils.logging import get_logger
from specport.quantize.convert import package_faults
before = get_logger("transformers.before")
package_faults.mend()
for logger in (before, get_logger("transformers.after")):
    logger.warning_once("no %s here", logger.name)
print(type(logging.getLogger("nncf")).__name__)
"""
    done = python(code)
    assert (done.returncode, done.stdout) == (0, "NNCFLogger\n"), done.stderr
    assert "no transformers.before here" in done.stderr and "no transformers.after here" in done.stderr


def test_models_run_beside_it(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion in a process of its own, and the torch backend in this one."""
    pytest.importorskip("optimum.intel")
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    tiny_models.save_hf(tmp_path / "hf", "llama")
    code = f"""
import specport
for device in ("xeon", "torch-cpu"):
    pipeline = specport.load(model={str(tmp_path / "hf")!r}, device=device, precision="fp32", draft="none")
    print(pipeline.generate("hello", max_new_tokens=4).token_ids)
"""
    done = python(code, broken)
    assert done.returncode == 0, done.stderr
    texts = done.stdout.splitlines()
    assert len(texts) == 2 and texts[0] == texts[1]


def test_devices_tells(broken: Path) -> None:
    done = python("import sys\nfrom specport.cli import main\nsys.exit(main(['devices', '--json']))", broken)
    assert done.returncode == 0, done.stderr
    (problem,) = json.loads(done.stdout)["problems"]
    assert REASON in problem["reason"] and problem["remedy"] == package_faults.REMEDY
    shown = python("import sys\nfrom specport.cli import main\nsys.exit(main(['devices']))", broken).stdout
    (line,) = (line for line in shown.splitlines() if "torchvision" in line)
    assert REASON in line and line.endswith(f"fix: {package_faults.REMEDY}")


@pytest.mark.parametrize(
    ("consent", "sends"), [(None, (True, False)), ("0", (False, False)), ("1", (True, True))]
)
def test_usage_data_are_sent_for_those_who_agreed(
    consent: str | None, sends: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenVINO and NNCF begin; before and after."""
    pytest.importorskip("openvino_telemetry")
    for name in ("HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        monkeypatch.delenv(name, raising=False)
    if consent is not None:
        folder = tmp_path / ("Intel Corporation" if sys.platform == "win32" else "intel")
        folder.mkdir()
        (folder / "openvino_telemetry").write_text(consent)
    code = """
from openvino_telemetry import Telemetry
from specport.quantize.convert import package_faults
for name in "a", "b":
    telemetry = Telemetry(name, "1", "x", "ga4", enable_opt_in_dialog=False)
    telemetry.init(name, "1", "x", "ga4", enable_opt_in_dialog=False)  # there is one in a process
    print(telemetry.consent)
    package_faults.mend()
"""
    done = python(code)
    assert done.stdout == "{}\n{}\n".format(*sends), done.stderr
