"""Set-up of the whole suite: CPU by default, one compilation cache, and the options of the golden
harness.
"""

import gc
import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

# Before anything imports jax. What stands in the environment already wins.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".cache" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Nearly all that tests cost is compiling, which takes a third of the time without optimisation.
# XLA's newer way to write fusions, which only some versions can switch off, takes long even then.
# A program in one piece costs less than one that is split for several threads, which all have
# tests of their own to run. Tests of speed or memory ask for what they need.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    )
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# tests/optimised needs XLA's default level, so it is a suite of its own: `make optimised`.
collect_ignore = ["optimised"] if "optimization_level" in os.environ["XLA_FLAGS"] else []

# Test files are imported by path (--import-mode=importlib); what they share is found here. Last, so
# that it hides no package.
sys.path.append(str(HERE))

# Checking annotations takes a quarter of the time that tracing takes, so it has runs of its own:
# `make types`, `make exhaustive` and `make optimised`.
if os.environ.get("LAMBDANET_CHECK_TYPES") == "1":
    import type_checker

    type_checker.install()

# By how much a worker's memory may grow before it forgets its compiled programs, which takes
# seconds each time.
GROWTH = 2**31

# Files whose tests train, start programs or build full-size models; `make quick` leaves them out,
# and single tests elsewhere that are marked `slow`.
SLOW_FILES = {
    *("test_benchmark_models.py", "test_benchmarks.py", "test_compare.py"),
    *("test_golden.py", "test_hierarchical_counts.py", "test_matrix.py", "test_memory_growth.py"),
    *("test_model_registry.py", "test_newcomer.py", "test_package.py", "test_parameter_counts.py"),
    *("test_recipes.py", "test_resume.py", "test_run_errors.py", "test_start_up.py"),
    *("test_data_pipeline.py", "test_transformations.py", "test_export.py", "test_run_lock.py"),
    *("test_segmentation_runs.py", "test_detection_runs.py", "test_propagation_runs.py"),
    *("test_less_attention.py", "test_neighborhood.py", "test_hierarchical.py", "test_lavit.py"),
    *("test_hierarchical_options.py", "test_closest.py"),
    *("test_presets.py", "test_side_by_side.py"),
    *("test_dense_backbones.py", "test_detectors.py", "test_heads.py", "test_resnet.py"),
    *("test_segmenter.py", "test_import_weights.py", "test_weights.py", "test_convolution.py"),
    *("test_attention_maps.py", "test_cued_digits.py", "test_data_sources.py", "test_eval.py"),
    *("test_tasks.py", "test_wrong_configs.py", "test_video_runner.py", "test_video_mode.py"),
    *("test_video_segmentation_task.py", "test_all_blocks.py", "test_video_resnet.py"),
    *("test_step.py", "test_finetuning.py", "test_segmentation_task.py", "test_nonlocal_block.py"),
    *("test_video_detection_task.py", "test_blocked_attention.py", "test_video_detector.py"),
    *("test_study.py", "test_context.py", "test_roi_align.py", "test_frozen.py", "test_slide.py"),
    *("test_video_segmenter.py", "test_ocnet.py", "test_criss_cross.py", "test_slide_mix.py"),
    *("test_interlaced.py", "test_segmentation_loss.py", "test_examples.py", "test_cost_model.py"),
    *("test_fused_lambda.py", "test_class_balance.py", "test_benchmarks_scaling.py"),
    *("test_report.py", "test_content_lambda.py", "test_clip_folders.py", "test_matching.py"),
    *("test_query_blocks.py", "test_clips_task.py", "test_whole_runs.py"),
}


# Files that take longest, to come first: else one worker is left alone with one at the end.
LONGEST = {
    *("test_golden.py", "test_resume.py", "test_detection_runs.py", "test_segmentation_runs.py"),
    *("test_data_pipeline.py", "test_dense_backbones.py", "test_matrix.py", "test_detectors.py"),
    *("test_resnet.py", "test_eval.py", "test_hierarchical.py", "test_lavit.py"),
    *("test_recipes.py", "test_video_resnet.py", "test_transformations.py"),
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.path.name in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


def pytest_addoption(parser):
    group = parser.getgroup("golden", "golden fixtures (tests/test_golden.py)")
    group.addoption(
        "--golden-dir",
        metavar="DIR",
        default=str(HERE / "golden"),
        help="directory of the fixtures (default: tests/golden)",
    )
    group.addoption(
        "--golden-family",
        metavar="GLOB",
        default="*",
        help="only fixtures whose family or file stem matches (default: all)",
    )


def pytest_collection_finish():
    gc.freeze()  # tests and modules stay; who looks for garbage need not look at them


def pytest_configure(config):
    from absl import flags

    # Grain's reader processes look at absl flags, which are parsed by absl.app.run in programs but
    # by nobody in tests.
    flags.FLAGS.mark_as_parsed()
    # A worker ends up with millions of JAX's objects, and a collector that looks through them at
    # every allocation slows late tests down up to seven times. `forget_programs` collects instead.
    gc.disable()


def resident() -> float:
    """Bytes of memory that this process holds; endless where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("inf")
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session")
def held():
    """[bytes that were held when programs were last forgotten]"""
    return [resident()]


@pytest.fixture(scope="module", autouse=True)
def forget_programs(held):
    """After a file that took the memory past a bound: drop compiled programs (the cache on disk has
    them) and what only cycles keep alive. Programs that stay are there for the files that follow.
    """
    yield
    if resident() < held[0] + GROWTH:
        return
    import jax

    jax.clear_caches()
    gc.collect()
    held[0] = resident()
