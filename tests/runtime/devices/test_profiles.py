"""Profiles: the shipped ones are sound, a user's own is checked entry by entry."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from specport.errors import DeviceError
from specport.runtime.devices import profiles
from specport.runtime.devices.profiles import detect, list_profiles, load_profile

GOOD = """
name = "mine"
description = "a machine of my own"
backend = "openvino"
device = "CPU"
cost_source = "estimate"
[cost]
1 = 1.0
8 = 1.5
"""


def test_every_device_has_a_profile() -> None:
    names = {profile.name for profile in list_profiles()}
    openvino = {"xeon", "core-ultra-cpu", "core-ultra-gpu", "core-ultra-npu", "core-ultra-npu-emulated"}
    assert names == openvino | {"torch-cpu", "cuda", "gaudi", "gaudi-emulated"}
    for profile in list_profiles():
        assert profile == load_profile(profile.name)
        assert profile.backend in ("openvino", "torch")
        assert profile.cost[1] == 1.0


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD, encoding="utf-8")
    profile = load_profile(path)
    assert (profile.name, profile.device, profile.cost) == ("mine", "CPU", {1: 1.0, 8: 1.5})
    assert profile.exact == {} and profile.buckets == ()


@pytest.mark.parametrize(("written", "group"), [("0", 0), ('"64"', 64), (str(2**64 - 1), 2**64 - 1)])
def test_the_group_of_activations_is_written_as_openvino_does(
    tmp_path: Path, written: str, group: int
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"{GOOD}[exact]\n{profiles.DYNAMIC_GROUP} = {written}\n", encoding="utf-8")
    assert load_profile(path).dynamic_group() == group


def test_the_group_of_activations_fits_int4_weights(tmp_path: Path) -> None:
    xeon = load_profile("xeon")
    assert xeon.dynamic_group() == 64
    assert xeon.fitted(tmp_path) == xeon  # not an IR
    xml = tmp_path / "openvino_model.xml"
    xml.write_text('<data element_type="u8" shape="64, 576" />', encoding="utf-8")
    assert xeon.fitted(tmp_path) == xeon
    xml.write_text('<data element_type="u4" shape="64, 12, 128" />', encoding="utf-8")
    fitted = xeon.fitted(tmp_path)
    for before, after in ((xeon.exact, fitted.exact), (xeon.fast, fitted.fast), (xeon.draft, fitted.draft)):
        assert after == {**before, profiles.DYNAMIC_GROUP: 128}
    assert fitted.fallback == xeon.fallback
    # What was asked for stays, and so do devices whose runtime chooses by itself.
    assert xeon.with_dynamic_group(32).fitted(tmp_path).dynamic_group() == 32
    gpu = load_profile("core-ultra-gpu")
    assert gpu.fitted(tmp_path) == gpu and gpu.dynamic_group() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name =", "nome ="), "unknown entry 'nome'"),
        (('name = "mine"', ""), "name is missing"),
        (('device = "CPU"', "device = 3"), "device is 3"),
        (('cost_source = "estimate"', 'cost_source = "guess"'), "cost_source is 'guess'"),
        (('name = "mine"', 'name = "mine"\nprecision = "int2"'), "unknown precision 'int2'"),
        (('name = "mine"', 'name = "mine"\nsymmetric = 1'), "symmetric is 1"),
        (('name = "mine"', 'name = "mine"\nfit_dynamic_group = 1'), "fit_dynamic_group is 1"),
        (('name = "mine"', 'name = "mine"\nsymmetric = true'), "symmetric is true, but precision is int8"),
        (('name = "mine"', 'name = "mine"\npolicy = "oracle"'), "policy is 'oracle'"),
        (('name = "mine"', 'name = "mine"\nnum_draft_tokens = 0'), "num_draft_tokens is 0"),
        (('name = "mine"', 'name = "mine"\nnum_draft_tokens = true'), "num_draft_tokens is True"),
        (('name = "mine"', 'name = "mine"\nbuckets = [4, 2]'), "buckets is"),
        (("8 = 1.5", "8 = 0.5"), "cost must start"),
        (("1 = 1.0\n", ""), "cost must start"),
        (("8 = 1.5", "8 = -1"), "cost.8 is -1"),
        (("8 = 1.5", "many = 2.0"), "cost.many"),
        (("[cost]", '[recognise]\ncpu = "("\n[cost]'), "recognise.cpu"),
        (("[cost]", '[recognise]\ncolour = "x"\n[cost]'), "recognise.colour"),
        (("[cost]", "[cost"), "not a profile that can be used"),
        (("8 = 1.5", '"²" = 1.5'), "cost.²"),
        (("8 = 1.5", f"{'9' * 5000} = 1.5"), "cost.999"),
        (("[cost]", f"[exact]\na = {'9' * 5000}\n[cost]"), "not a profile that can be used"),
        (("[cost]", "[exact]\na = 1979-05-27\n[cost]"), "exact.a is"),
        (("[cost]", "[exact]\nDYNAMIC_QUANTIZATION_GROUP_SIZE = 'x'\n[cost]"), "exact.DYNAMIC"),
        (('name = "mine"', 'name = "mine"\nbuckets = [1, 9223372036854775807]'), "buckets is"),
    ],
)
def test_each_wrong_entry_is_named_with_its_file(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "mine.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change), encoding="utf-8")
    with pytest.raises(DeviceError) as caught:
        load_profile(path)
    assert message in str(caught.value) and "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["xeno", "", "xeon.toml", "../xeon"])
def test_unknown_names_and_missing_files(name: str) -> None:
    with pytest.raises(DeviceError):
        load_profile(name)


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("Intel(R) Xeon(R) Gold 6430", "xeon"),
        ("AMD EPYC", "xeon"),
        ("Intel(R) Core(TM) Ultra 7 268V", "core-ultra-cpu"),
        ("13th Gen Intel(R) Core(TM) i7-1365U", "core-ultra-cpu"),
        ("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "core-ultra-cpu"),
        ("something else", "xeon"),
        ("", "xeon"),
    ],
)
def test_detection_by_processor(cpu: str, name: str) -> None:
    assert detect(cpu).name == name


def test_a_profile_that_does_not_fit_says_so() -> None:
    assert load_profile("xeon").mismatch("AMD EPYC") is None
    assert "Ryzen" in (load_profile("xeon").mismatch("AMD Ryzen 7") or "")
    assert load_profile("cuda").mismatch("anything") is None


def test_this_machine_has_a_name() -> None:
    assert profiles.cpu_name()


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*$",
        "(a?){50}b",
        "a*a*a*a*a*b",
        "(a|a)" * 5,
        r"(\w+)\1",
        "(?=a)b",
        "(?i:a*)b",
        "x" * 101,
        "([)]+)*",
    ],
)
def test_a_pattern_that_may_never_end_is_refused(pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f"{GOOD}[recognise]\ncpu = '{pattern}'\n")
    with pytest.raises(DeviceError, match=r"recognise\.cpu cannot be used: .*(for ever|100 characters)"):
        load_profile(path)


@pytest.mark.parametrize(
    "pattern", ["core.*(?:ultra|i[3579])|ryzen", r"xeon\(r\) .*[*+?{)]+ cpu", "a*a*a*a*b"]
)
def test_patterns_that_end_soon(pattern: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f"{GOOD}[recognise]\ncpu = '{pattern}'\n")
    began = time.process_time()
    assert load_profile(path).mismatch("a" * 10_000) is not None
    assert time.process_time() - began < 2
