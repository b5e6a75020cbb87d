"""What a tuning has chosen: stored, found again, used by `specport.load`, or left alone with a note."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport
from specport.errors import ModelError
from specport.models.source import ModelFiles
from specport.runtime.stored import tuned
from specport.runtime.stored.tuned import Choice, Tuned

CHOICE = Choice("suffix|recycle", "0", 1.42, {"prompts": 8})


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_choice_is_found_for_its_model_and_device_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    tuned.keep("m", "xeon", "int8", CHOICE)
    assert tuned.find(str(tmp_path / "m"), "xeon") == Tuned(None, {"int8": CHOICE})
    assert tuned.find("m", "cuda") == tuned.find("n", "xeon") == tuned.find(None, "xeon") == Tuned()
    tuned.keep(None, "xeon", "int8", CHOICE)
    assert tuned.find("default", "xeon").choices == {"int8": CHOICE}


def test_weight_formats_have_choices_of_their_own() -> None:
    other = Choice("ngram", "1", 1.1)
    tuned.keep(None, "xeon", "int8", CHOICE)
    tuned.keep(None, "xeon", "int4:128", other, weights_too=True)
    assert tuned.find(None, "xeon") == Tuned("int4:128", {"int8": CHOICE, "int4:128": other})
    tuned.keep(None, "xeon", "int8", other)
    assert tuned.find(None, "xeon").precision == "int4:128"
    tuned.keep(None, "xeon", "int8", other, weights_too=True)
    assert tuned.find(None, "xeon").precision == "int8"
    assert tuned.forget(None, "xeon") and not tuned.forget(None, "xeon")
    assert tuned.find(None, "xeon") == Tuned()


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"format": 9}', '{"format": 1, "precision": null, "choices": {"int8": {}}}',
     '{"format": 1, "precision": "int5", "choices": {}}', '{"format": 1, "precision": null, "choices": []}'],
)  # fmt: skip
def test_a_damaged_file_counts_as_none(damage: str) -> None:
    tuned.keep(None, "xeon", "int8", CHOICE).write_text(damage, encoding="utf-8")
    assert tuned.find(None, "xeon") == Tuned()
    tuned.keep(None, "xeon", "int8", CHOICE)
    assert tuned.find(None, "xeon").choices == {"int8": CHOICE}


def test_an_unwritable_cache_is_said(cache: Path) -> None:
    cache.mkdir()
    (cache / "tuned").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write"):
        tuned.keep(None, "xeon", "int8", CHOICE)


@pytest.mark.parametrize(
    ("draft", "fingerprint", "words"),
    [
        ("ngram|{gone}", "0", "is gone"),
        ("ngram", "1", "toy has changed since"),
        ("nosuchdrafter", "0", "nosuchdrafter is not installed"),
        ("ngram||", "0", "cannot read the draft expression"),
    ],
)
def test_what_does_not_fit_is_ignored_with_a_note(
    draft: str, fingerprint: str, words: str, tmp_path: Path
) -> None:
    files = ModelFiles(tmp_path, "toy", "int8", "default", "0")
    choice = Choice(draft.format(gone=tmp_path / "gone"), fingerprint, 1.5)
    found, (note,) = Tuned(None, {"int8": choice}).draft(files)
    assert found is None and words in note and "specport tune" in note
    assert Tuned(None, {"int4": choice}).draft(files) == (None, [])


@pytest.mark.usefixtures("toy_backend")
def test_load_uses_drafters_and_weights() -> None:
    tuned.keep(None, "xeon", "int4:128", CHOICE, weights_too=True)
    with specport.load(device="xeon") as pipeline:
        assert pipeline.draft_name == "suffix|recycle"
        assert pipeline.notes == [
            "drafters by specport tune: suffix|recycle, measured 1.42 times as fast as plain decoding",
            "weights by specport tune: int4:128",
        ]
    with specport.load(device="xeon", precision="int8") as pipeline:  # not tuned
        assert pipeline.draft_name == "suffix" and pipeline.notes == []
    with specport.load(device="xeon", draft="none") as pipeline:
        assert pipeline.draft_name == "none" and pipeline.notes == ["weights by specport tune: int4:128"]


@pytest.mark.usefixtures("toy_backend")
def test_load_goes_on_without_a_draft_that_is_gone(tmp_path: Path) -> None:
    draft = tmp_path / "small"
    draft.mkdir()
    tuned.keep(None, "xeon", "int8", Choice(f"ngram|{draft}", "0", 1.5))
    with specport.load(device="xeon") as pipeline:
        assert pipeline.draft_name == "ngram|model" or pipeline.draft_name.count("|") == 1
    draft.rmdir()
    with specport.load(device="xeon") as pipeline:
        assert pipeline.draft_name == "suffix" and "is gone" in pipeline.notes[0]
