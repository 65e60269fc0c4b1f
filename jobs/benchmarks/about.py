"""Where and with what a benchmark ran: commit, processor, its units, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from raycurate.core.manifest import package_versions

_UNITS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "bf16", "sve",
)  # fmt: skip
_HIDDEN_BY = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")
_PACKAGES = ("ray", "torch", "transformers", "sentence-transformers", "numpy", "scikit-learn", "faiss-cpu", "pyarrow")


def about() -> dict[str, Any]:
    """Commit, processor, units, what hides some of them, cores, versions."""
    model, flags = _processor()
    return {
        "commit": _commit(),
        "processor": model,
        "units": [unit for unit in _UNITS if unit in flags],
        "set": {name: os.environ[name] for name in _HIDDEN_BY if name in os.environ},
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": package_versions(*_PACKAGES),
    }


def in_a_line(found: dict[str, Any]) -> str:
    """The same for the head of a table."""
    hidden = "".join(f", {name}={value}" for name, value in found["set"].items())
    return f"{found['cores']} cores of {found['processor']} ({' '.join(found['units'])}{hidden}); {found['commit']}"


def _commit() -> str:
    def git(*words: str) -> str:
        run = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return f"{commit}{changed}" if commit else "not a git checkout"


def _processor() -> tuple[str, set[str]]:
    """Its name and the flags that Linux lists; of another system the name alone."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for row in text.splitlines():
        name, _, value = row.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name") or platform.machine(), flags
