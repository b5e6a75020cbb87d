"""The conformance suite itself: sound backends pass it, and each fault is found by the test meant for it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.processes.suites import (
    EXAMPLE,
    FEW,
    Ran,
    Suite,
    broken_profile,
    run_suite,
    run_suites,
    with_broken_backend,
)
from support.processor import NARROW

from specport import hw_profiles
from specport.conformance.laws import Law
from specport.conformance.models import tiny
from specport.conformance.session import read_shipped_xfails, read_xfails
from specport.conformance.steps import Probe
from specport.conformance.tables.results import CHECKS
from specport.core.ports import Capabilities
from specport.runtime.devices.profiles import load_profile
from specport.text.tokenizer import load_tokenizer


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The broken backend, registered in processes that are started with this environment."""
    return with_broken_backend(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exact", [True, False])
def test_logits_are_compared_with_and_without_exact_numerics(exact: bool) -> None:
    probe = Probe(SimpleNamespace(capabilities=Capabilities(exact=exact)))  # type: ignore[arg-type]
    wanted = np.random.default_rng(0).normal(size=(3, 50))
    probe.check(wanted, wanted)
    probe.check(wanted[:0], wanted[:0])  # nothing was kept
    with pytest.raises(AssertionError, match="logits differ"):
        probe.check(wanted[::-1], wanted)
    if not exact:
        probe.check(wanted + 0.01, wanted)


# Device -> checks that it may have no capability for; on torch that depends on how the processor rounds.
HERE: dict[str, set[str]] = {
    "xeon": {"visibility", "gather", "diffusion"}, "torch-cpu": {"trees", "batch"},
    "gaudi-emulated": {"trees", "batch"},
    "core-ultra-npu-emulated": {"trees", "visibility", "gather", "diffusion", "batch", "early_exit"}
    | ({"greedy", "logprobs", "joining"} if NARROW else set()),
}  # fmt: skip


# What takes long in emulation, and is the same code as on torch-cpu.
SLOW = {"gaudi-emulated": ("leaks", "room", "diffusion")}


@pytest.mark.parametrize("device", HERE)
def test_what_is_here_passes(device: str, tmp_path: Path) -> None:
    wanted = load_profile(device)
    pytest.importorskip(wanted.backend)
    wanted_checks = [check for check in CHECKS if check not in SLOW.get(device, ())]
    tests = [f"specport.conformance.suite.test_{check}" for check in wanted_checks]
    arguments = ["--specport-device", device, *(FEW if wanted.emulated else ())]
    code, output, results = run_suite(tmp_path, os.environ, *arguments, tests=tests)
    assert code == 0, output
    passed = {result["check"] for result in results.values() if result["outcome"] == "passed"}
    assert passed >= {*wanted_checks} - HERE[device]
    known = read_shipped_xfails(device)
    assert {r["outcome"] for name, r in results.items() if name not in known} <= {"passed", "skipped"}
    assert f"specport device: {device}" in output and "processor:" in output
    assert ("EMULATED" in output) == wanted.emulated


def test_masks_and_kept_rows_of_a_plain_cache(tmp_path: Path) -> None:
    """OpenVINO takes any mask and moves rows in a plain cache, which no shipped profile has."""
    pytest.importorskip("openvino")
    profile = (Path(hw_profiles.__file__).parent / "xeon.toml").read_text(encoding="utf-8")
    plain = tmp_path / "plain-cache.toml"
    plain.write_text(
        profile.replace('name = "xeon"', 'name = "plain-cache"').replace('"u8"', '"f16"'), encoding="utf-8"
    )
    tests = ("specport.conformance.suite.test_visibility", "specport.conformance.suite.test_gather")
    code, output, results = run_suite(tmp_path, os.environ, "--specport-device", str(plain), tests=tests)
    assert code == 0, output
    assert {r["check"] for r in results.values() if r["outcome"] == "passed"} == {"visibility", "gather"}


# (fault of `broken_backend`, the test that finds it)
FAULTS = [
    ("rollback", "test_rollback.py::test_k_of_n_tokens_kept[30-2]"),
    ("path", "test_trees.py::test_any_path_can_be_committed[33]"),
    ("batch", "test_batch.py::test_ragged_rows_equal_single_ones"),
    ("mask", "test_trees.py::test_branches_do_not_see_each_other"),
    ("leak", "test_leaks.py::test_memory_is_flat_over_200_sequences"),
    ("commit", "test_errors.py::test_commits_across_branches_are_refused[0,1,2]"),
    ("limit", "test_limits.py::test_a_full_context_is_said_before_anything_changes"),
    ("raises", "test_limits.py::test_a_full_row_leaves_its_neighbours_alone[1]"),
    ("hostage", "test_room.py::test_a_refused_row_leaves_the_others_alone[0]"),
    ("refusing", "test_room.py::test_refused_rows_leave_nothing_behind"),
    ("evicts", "test_room.py::test_a_refused_row_leaves_the_others_alone[1]"),
    ("boasts", "test_room.py::test_a_sequence_can_be_given_what_it_has_room_for[31]"),
    ("forks", "test_room.py::test_forks_leave_nothing_behind"),
    ("shares", "test_fork.py::test_both_sides_write_behind_the_cut[target-33]"),
    ("shares", "test_fork.py::test_a_side_that_goes_back_into_what_is_shared[target-fork-20]"),
    ("keeps", "test_prefix.py::test_a_sequence_begins_with_blocks_of_one_that_has_ended[target-1]"),
    ("pending", "test_fork.py::test_forking_what_is_not_committed_is_refused[target-71]"),
    ("mask", "test_visibility.py::test_only_what_is_seen_has_an_effect[target-32-0]"),
    ("causal", "test_visibility.py::test_tokens_that_all_see_one_another[target-5]"),
    ("places", "test_visibility.py::test_tokens_that_are_skipped[target-5]"),
    ("path", "test_gather.py::test_the_text_goes_on_as_if_the_others_had_never_been[target-0,2,4-31]"),
    (
        "rollback",
        "test_gather.py::test_what_is_dropped_behind_the_kept_tokens_has_no_effect[target-1,4-31]",
    ),
    ("mask", "test_diffusion.py::test_flip[target-same-step-by-confidence]"),
    ("joins", "test_joining.py::test_texts_that_join_at_different_rounds[greedy-1]"),
    ("scores", "test_outputs.py::test_rows_without_logits_are_read_all_the_same[40]"),
    ("stale", "test_outputs.py::test_states_are_those_of_this_step"),
    ("offsets", "test_outputs.py::test_one_row_gets_what_it_asks_for[none-all]"),
    ("deaf", "test_conditioning.py::test_a_model_that_takes_none_says_so"),
    ("listens", "test_conditioning.py::test_a_model_that_takes_it_attends_to_it"),
    ("law", "test_logprobs.py::test_they_are_those_of_plain_decoding[model-greedy]"),
    ("law", "test_law.py::test_a_drafted_chain[block]"),
    ("greedy", "test_greedy.py::test_drafted_text_is_the_plain_text[4-model]"),
    ("hidden", "test_hidden.py::test_every_row_has_its_states"),
]


@pytest.fixture(scope="module")
def on_faulty_devices(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Ran]:
    """What became of the FAULTS that this session asks for; leaks first, as used memory would hide them."""
    asked = [
        (item.callspec.params["fault"], item.callspec.params["test"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_a_fault_is_found"
    ]
    asked.sort(key=lambda each: each[0] != "leak")
    suites = []
    for fault, test in asked:
        folder = tmp_path_factory.mktemp(fault)
        file, _, name = test.partition(".py::")
        device = str(broken_profile(folder, fault))
        suites.append(
            Suite(str(folder), ("--specport-device", device), (f"specport.conformance.suite.{file}::{name}",))
        )
    folder = tmp_path_factory.mktemp("faults")
    return dict(zip(asked, run_suites(suites, with_broken_backend(folder), folder), strict=True))


@pytest.mark.parametrize(("fault", "test"), FAULTS)
def test_a_fault_is_found(on_faulty_devices: dict[tuple[str, str], Ran], fault: str, test: str) -> None:
    """Without the fault the same model passes: it is the example's, see below."""
    if fault == "leak":
        pytest.importorskip("psutil")
    code, output, results = on_faulty_devices[fault, test]
    assert code == 1 and results[test]["outcome"] == "failed", output


def test_expected_failures(tmp_path: Path, environment: dict[str, str]) -> None:
    xfails = tmp_path / "known.txt"
    xfails.write_text(
        "# of this device\ntest_trees.py::test_branches_do_not_see_each_other  # no mask\n"
        "test_trees.py::test_siblings_with_the_same_token_have_the_same_logits # no mask\n"
        "test_trees.py::test_the_last_node_is_scored_alone # said to fail\n"
        "test_trees.py::test_of_old # gone\n"
        "test_nothing.py::test_x # gone\ntest_leaks.py::test_y # not asked\n",
        encoding="utf-8",
    )
    device = str(broken_profile(tmp_path, "mask", emulated=True))
    arguments = ["--specport-device", device, "--specport-xfail", str(xfails), "-k", "branches or last_node"]
    tests = ("specport.conformance.suite.test_trees",)
    code, output, results = run_suite(tmp_path, environment, *arguments, tests=tests)
    assert code == 0, output
    assert {id.partition("::")[2]: result["outcome"] for id, result in results.items()} == {
        "test_branches_do_not_see_each_other": "xfailed",
        "test_the_last_node_is_scored_alone": "xpassed",
    }
    assert results["test_trees.py::test_branches_do_not_see_each_other"]["reason"] == "no mask"
    assert "expected to fail, but passed: test_trees.py::test_the_last_node_is_scored_alone" in output
    stale = [line for line in output.splitlines() if "stale expected failure" in line and "warn(" not in line]
    assert [line.rpartition(" ")[2] for line in stale] == [
        "test_trees.py::test_of_old",
        "test_nothing.py::test_x",
    ]
    assert "EMULATED" in output


def test_an_expected_failure_needs_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n# only a remark\ntest_a.py::test_b\n", encoding="utf-8")
    with pytest.raises(pytest.UsageError, match=r"line 3: say why test_a\.py::test_b fails"):
        read_xfails(path)
    with pytest.raises(pytest.UsageError, match="cannot read"):
        read_xfails(tmp_path / "none.txt")


def test_a_missing_device_is_said_or_skipped(tmp_path: Path) -> None:
    asked = {
        "missing": ("--specport-device", "cuda"),
        "skipped": ("--specport-device", "cuda", "--specport-skip-missing"),
        "none": (),
        "unknown": ("--specport-device", "abacus"),
    }
    for name in asked:
        (tmp_path / name).mkdir()
    suites = [Suite(str(tmp_path / name), arguments) for name, arguments in asked.items()]
    environment = {**os.environ, "SPECPORT_BACKENDS": ""}
    ran = dict(zip(asked, run_suites(suites, environment, tmp_path), strict=True))
    code, output, _ = ran["missing"]
    assert code == pytest.ExitCode.USAGE_ERROR and "device cuda cannot be used" in output
    assert "Traceback" not in output
    code, output, results = ran["skipped"]
    assert code == 0, output
    assert {result["outcome"] for result in results.values()} == {"skipped"}
    assert all("device cuda cannot be used" in result["reason"] for result in results.values())
    code, output, _ = ran["none"]
    assert code == pytest.ExitCode.USAGE_ERROR and "--specport-device" in output
    code, output, _ = ran["unknown"]
    assert code == pytest.ExitCode.USAGE_ERROR and "unknown device 'abacus'" in output


def test_the_options_are_there_in_every_pytest_of_the_environment() -> None:
    points = importlib.metadata.entry_points(group="pytest11")
    assert "specport.conformance.plugin" in {point.value for point in points}


@pytest.mark.parametrize(("fault", "told"), [("load", "took fire"), ("crash", "ended with code 3")])
def test_a_device_that_cannot_be_loaded_fails_every_check(
    tmp_path: Path, environment: dict[str, str], fault: str, told: str
) -> None:
    device = str(broken_profile(tmp_path, fault, emulated=True))
    command = [sys.executable, "-m", "specport", "matrix", "--json", "--device", device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    (row,) = json.loads(done.stdout)["devices"]
    assert row["emulated"] and {cell["state"] for cell in row["checks"].values()} == {"fail"}
    assert all(told in cell["reason"] for cell in row["checks"].values())
    assert f"specport: {fault} (EMULATED): running" in done.stderr and f"{len(CHECKS)} fail" in done.stderr


def test_the_example_is_a_package_that_passes(tmp_path: Path) -> None:
    """README of examples/third_party_backend, with an installation that needs no network."""
    shutil.copytree(EXAMPLE, tmp_path / "source")  # building leaves files beside the source
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    install += ["--no-build-isolation", "--target", str(tmp_path / "site"), str(tmp_path / "source")]
    subprocess.run(install, check=True)
    device = str(tmp_path / "source" / "numpy-cpu.toml")
    command = [sys.executable, "-m", "specport", "matrix", "--device", device, "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out" / "matrix.json").read_text(encoding="utf-8"))
    (row,) = told["devices"]
    expected = dict.fromkeys(CHECKS, "pass") | {"early_exit": "not run"}  # a capability that it does not have
    assert {check: cell["state"] for check, cell in row["checks"].items()} == expected


def test_the_tiny_model_is_the_same_every_time(tmp_path: Path) -> None:
    folders = [*tiny.write(tmp_path / "a"), *tiny.write(tmp_path / "b")]
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        first, draft, again, _ = ((folder / name).read_bytes() for folder in folders)
        assert first == again
        assert (first != draft) == (name == "model.safetensors")
    tokenizer = load_tokenizer(folders[0])
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(folders[0] / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == (tokenizer.vocab_size, 64)
    assert tensors["lm_head.weight"].dtype == np.float32


def test_the_chi_square_test_tells_laws_apart() -> None:
    law = Law({(1,): 0.5, (2,): 0.3, (3,): 0.15})  # and 0.05 of other texts
    rng = np.random.default_rng(0)
    right = [(int(t),) for t in rng.choice([1, 2, 3, 4], 800, p=[0.5, 0.3, 0.15, 0.05])]
    statistic, critical = law.chi_square(right)
    assert statistic < 12 < critical < 40
    wrong = [(int(t),) for t in rng.choice([1, 2, 3, 4], 800, p=[0.6, 0.25, 0.1, 0.05])]
    statistic, critical = law.chi_square(wrong)
    assert statistic > critical
    statistic, critical = Law({(1,): 0.6, (2,): 0.4}).chi_square([(1,)] * 480 + [(9,)] * 320)
    assert statistic == 0  # without a rest, what the law lacks is counted with its least likely text
