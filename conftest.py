"""What holds for all tests, and for the kernels that run chapters as tests."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several at once: a core each, before PyTorch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

for name in ("LRC_DATA", "LRC_CACHE"):  # the kernel of a chapter runs in the chapter's folder
    if os.environ.get(name):
        os.environ[name] = str(Path(os.environ[name]).resolve())

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # never a kernel from the user's own folder


def pytest_configure() -> None:
    import matplotlib

    matplotlib.use("Agg")  # not by MPLBACKEND: kernels would inherit it


collect_ignore_glob = [
    "tests/benchmarks/*",  # scripts, some with packages that only the extra `peers` brings
    "tests/second_device.py",  # whoever imports it has another accelerator: a process of its own does
]


def pytest_collection_modifyitems(items: list) -> None:
    """Cells with the tag `stored-profile` show figures of one profile, and the last digit may be that of one machine.

    LRC_STORED=1 compares them, on the machine that stored them and in the profile that was stored.
    """
    if os.environ.get("LRC_STORED") != "1":
        for item in items:
            if "stored-profile" in getattr(item, "cell", {}).get("metadata", {}).get("tags", []):
                item.options["check"] = False
