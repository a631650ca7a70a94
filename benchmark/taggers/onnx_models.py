"""Opening ONNX models. onnxruntime only here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmark.errors import InputError, first_line


def open_onnx(path: Path, *, device: str = "cpu", threads: int | None = None) -> Any:
    """An `InferenceSession`, on the GPU if `device` names one and onnxruntime supports it.

    `threads` None takes OMP_NUM_THREADS, or all cores this process may use. Raises InputError for a file that is no
    ONNX model, is cut short, or cannot be run.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or _cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; the warnings speak of graph details nobody here can mend
    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(path, options, providers=[*providers, "CPUExecutionProvider"])
    except failures.InvalidProtobuf as error:
        raise InputError(f"{path}: is no ONNX model, or was cut short ({error}).") from None
    except (failures.Fail, failures.InvalidGraph, failures.NotImplemented, failures.NoSuchFile) as error:
        raise InputError(f"{path}: onnxruntime cannot load it ({first_line(error)}).") from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
