"""The programs that some tests need beside Python, git, make and a C++ compiler.

python3 tests/tools.py     # the Debian packages of those that are missing, which .ci/run installs
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin"
# The Python that has larq-compute-engine (dmsflow.environment.witness_python), which make witness installs.
WITNESS = Path(os.environ.get("DMSFLOW_WITNESS") or Path(__file__).parents[1] / ".witness", "bin", "python").absolute()
# Each tool: the names of its program, the Debian packages, and what `brew install` takes (empty: Homebrew has none).
TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "ssh": (("ssh",), ("openssh-client",), "openssh"),
    "sshd": (("sshd",), ("openssh-server",), "openssh"),
    "browser": (("chromium", "chromium-browser", "google-chrome"), ("chromium",), "chromium"),
    "aarch64-compiler": (("aarch64-linux-gnu-g++",), ("g++-aarch64-linux-gnu", "libc6-dev-arm64-cross"), ""),
    "qemu": (("qemu-aarch64",), ("qemu-user",), ""),
    "llvm-mca": (("llvm-mca-19",), ("llvm-19",), ""),
    "witness": ((str(WITNESS),), (), ""),
}
SERVER = ("ssh", "sshd")  # what the tests of ssh start
ARM_CORE = ("aarch64-compiler", "llvm-mca", "qemu")  # what the emulated device is made of
# What tests need, by their file or by file::test.
NEEDED_BY: dict[str, tuple[str, ...]] = (
    {
        "test_site.py::test_pages_load_nothing_from_the_network_and_fit": ("browser",),
        "measuring/test_ssh.py::test_what_a_login_prints_does_no_harm": SERVER,
        "measuring/test_ssh.py::test_a_full_disk_when_files_are_copied": SERVER,
        "measuring/test_ssh.py::test_no_room_for_a_folder": SERVER,
        "measuring/test_ssh.py::test_the_machine_is_gone_midway": SERVER,
        "native/test_native.py::test_the_wheels_say_where_they_run": ("aarch64-compiler",),
        "native/test_native.py::test_a_wheel_holds_all_that_an_installation_needs": ("aarch64-compiler",),
        "modelfile/test_delegate.py::test_random_operators_give_the_official_interpreters_bits": ("witness",),
        "native/test_kernels.py::test_on_emulated_arm": ("aarch64-compiler", "qemu"),
        "native/test_kernels.py::test_training_finds_the_same_bits_on_every_processor": ("aarch64-compiler", "qemu"),
    }
    | {
        f"measuring/test_llvm_mca.py::{name}": ("llvm-mca",)
        for name in (
            "test_a_chain_takes_its_latencies",
            "test_what_does_not_wait_for_each_other_shares_the_pipes",
            "test_popcounts_take_two_pipes",
            "test_a_call_is_no_more_than_its_jump",
            "test_data_among_the_code_takes_no_time",
            "test_blocks_are_weighed_by_how_often_they_ran",
            "test_cold_blocks_run_as_fast_as_the_hot_ones",
            "test_what_was_analysed_is_kept",
            "test_a_damaged_record_is_made_again",
        )
    }
    | {
        f"measuring/test_qemu.py::{name}": ARM_CORE
        for name in (
            "test_vgg11_and_resnet18_give_the_logits_of_x86_64",
            "test_random_operators_give_the_official_interpreters_bits",
            "test_the_wheel_gives_the_top1_of_x86_64",
            "test_times_are_modelled_and_repeat",
            "test_the_first_measurement_compiles_no_python",
            "test_operations_are_those_of_the_file",
            "test_classes_of_cores_differ",
            "test_other_runtimes_are_modelled_beside_it",
            "test_bench_says_modelled",
            "test_a_profile_of_it_is_modelled",
            "test_several_threads_are_refused",
            "test_a_damaged_file_is_one_line",
            "test_a_runtime_that_has_no_wheel_there_is_named",
            "test_a_cached_device_needs_no_network",
        )
    }
)
# And by a fixture that they use, or that a parameter names.
NEEDED_BY_FIXTURE: dict[str, tuple[str, ...]] = {
    "lce": ("witness",),
    "arm_wheel": ("aarch64-compiler",),
    "arm_program": ("aarch64-compiler",),
    "started": SERVER,
    "tab": ("browser",),
    "arm": ("aarch64-compiler", "qemu"),  # the program for phones
}

# What --without-torch leaves out: folders, files, tests, and whatever uses these fixtures.
NEED_TORCH = (
    "benchmarks/test_ablations.py",
    "benchmarks/test_campaign.py::test_a_part_of_the_campaign_finds_no_fault",
    "benchmarks/test_front.py",
    "benchmarks/test_gpu.py",
    "benchmarks/test_int8.py",
    "benchmarks/test_kernel_sizes.py",
    "benchmarks/test_larq_zoo.py",
    "benchmarks/test_modules.py",
    "benchmarks/test_pairs.py",
    "benchmarks/test_recipe.py",
    "benchmarks/test_rows.py",
    "benchmarks/test_search_cost.py",
    "benchmarks/test_size.py",
    "benchmarks/test_table1.py",
    "benchmarks/test_take_home.py",
    "deploying/test_compact.py",
    "deploying/test_export.py::test_a_float_network_goes_to_onnx_and_nowhere_else",
    "deploying/test_export.py::test_a_float_file_of_other_weights_is_refused",
    "deploying/test_stem.py",
    "deploying/test_onnx_int8.py",
    "deploying/test_onnx.py::test_the_float_file_computes_the_float_network",
    "importing",
    "network/test_cost.py",
    "network/test_latency.py",
    "network/test_architectures.py::test_resnet18_goes_through_all_stages_at_224_pixels",
    "searching",
    "sweeping/test_sweep.py",
    "test_api.py",
    "test_cli.py::test_a_missing_file[train]",
    "test_cli.py::test_a_dry_run_writes_nothing_and_decodes_nothing",
    "test_cli.py::test_a_budget_of_the_file_is_refused_for_other_files",
    "test_cli.py::test_a_search_says_what_it_assumed",
    "test_cli.py::test_doctor_reports_the_cpp_part_of_training",
    "test_cli.py::test_a_name_that_no_file_can_keep_is_refused_before_any_work[arguments0]",
    "test_cli.py::test_a_name_that_no_file_can_keep_is_refused_before_any_work[arguments3]",
    "test_security.py::test_an_archive_with_a_pickle_is_refused",
    "test_security.py::test_an_image_that_unpacks_to_too_much_is_refused",
    "tiny_run",
    "training",
)


def find_program(tool: str) -> str | None:
    """The path of a tool's program; None: it is not installed."""
    return next((found for name in TOOLS[tool][0] if (found := shutil.which(name, path=SEARCHED))), None)


def find_missing() -> list[str]:
    return [tool for tool in TOOLS if not find_program(tool)]


def describe_install(missing: list[str], system: str = sys.platform) -> str:
    """The line that installs some tools."""
    made = ["make witness"] if "witness" in missing else []
    others = [tool for tool in missing if tool != "witness"]
    if system != "darwin":
        packages = " ".join(package for tool in others for package in TOOLS[tool][1])
        return "; ".join([f"apt install {packages}"] * bool(packages) + made)
    brews = " ".join(dict.fromkeys(TOOLS[tool][2] for tool in others if TOOLS[tool][2]))
    absent = ", ".join(tool for tool in others if not TOOLS[tool][2])
    lines = (f"brew install {brews}" if brews else "", f"Homebrew does not have {absent}" if absent else "", *made)
    return "; ".join(line for line in lines if line)


if __name__ == "__main__":
    print(*(package for tool in find_missing() for package in TOOLS[tool][1]))
