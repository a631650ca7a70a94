"""ONNX models that take one batch of images: opened, and asked. onnxruntime only here.

B images, T numbers for each.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import InputError, first_line, out_of_memory

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxModel:
    """A model with one input, the images, whose first output is a row of numbers for each image.

    `shape`: the input's four dimensions, a name or None where any number will do. `width`: T, or None if the model does
    not say. Raises InputError for any other model, and as `open_onnx`.
    """

    def __init__(self, path: Path, *, device: str = "cpu", threads: int | None = None):
        self._path, self._session = path, open_onnx(path, device=device, threads=threads)
        inputs, output = self._session.get_inputs(), self._session.get_outputs()[0]
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
            raise InputError(
                f"{path}: takes {found or 'nothing'}; a tagger takes one batch of images, floats in 4 axes."
            )
        if len(output.shape) != 2:
            raise InputError(f"{path}: gives {output.name} {output.shape}; a tagger gives [batch, tags].")
        self.shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)
        self.width = output.shape[1] if isinstance(output.shape[1], int) else None
        self._names, self._dtype = (inputs[0].name, output.name), _TYPES[inputs[0].type]
        self._batch = self.shape[0] if isinstance(self.shape[0], int) else None
        if self._batch is not None and not 1 <= self._batch <= 1024:
            raise InputError(f"{path}: takes {self._batch} images at once; 1 to 1024 are possible.")

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [B, ...] in the model's own layout, B at least 1 -> float32 [B, T].

        A model that was exported for a fixed number of images gets just as many: the last image is repeated, and what
        is said of the repetitions is dropped. Raises InputError if the model cannot compute, or T is not the same, and
        MemoryError.
        """
        size = self._batch or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            parts.append(self._run(padded)[: len(part)])
        return np.concatenate(parts)

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            said = self._session.run([self._names[1]], {self._names[0]: images.astype(self._dtype, copy=False)})[0]
        except _failures() as error:
            if out_of_memory(error):
                raise MemoryError(first_line(error)) from None
            raise InputError(f"{self._path}: cannot compute ({first_line(error)}).") from None
        said = np.asarray(said)
        if said.shape[:1] != (len(images),) or said.ndim != 2 or said.shape[1] != (self.width or said.shape[1]):
            raise InputError(f"{self._path}: gives {list(said.shape)} for {len(images)} images.")
        return said.astype(np.float32, copy=False)


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
    except _failures() as error:
        if out_of_memory(error):
            raise MemoryError(first_line(error)) from None
        raise InputError(f"{path}: onnxruntime cannot load it ({first_line(error)}).") from None


def _failures() -> tuple[type[Exception], ...]:
    """The errors of onnxruntime, which share no class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as names

    found = (getattr(names, name) for name in dir(names))
    kinds = [each for each in found if isinstance(each, type) and issubclass(each, Exception)]
    return (*kinds, RuntimeError, ValueError)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
