"""Headers: what safetensors writes is read, anything damaged is refused in one line."""

from __future__ import annotations

import json
import pickle
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from merger.checkpoints.headers import CODES, Header, bytes_of, pack_header, read_header
from merger.checkpoints.weight_files import open_weights, reader
from merger.errors import CheckpointError

TENSORS = {
    "half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "brain": torch.ones(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(7.0),
    "whole": torch.arange(4),
    "empty": torch.zeros(0, 5),
    "flag": torch.tensor([True, False]),
}


@pytest.fixture
def whole() -> bytes:
    return save(TENSORS, metadata={"format": "pt", "note": "grüß"})


def written(folder: Path, content: bytes) -> Path:
    file = folder / "x.safetensors"
    file.write_bytes(content)
    return file


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(written(folder, content))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_it_reads_what_safetensors_wrote(tmp_path: Path, whole: bytes) -> None:
    header = read_header(written(tmp_path, whole))
    assert header.metadata == {"format": "pt", "note": "grüß"}
    assert {key: (entry.dtype, entry.shape) for key, entry in header.tensors.items()} == {
        key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()
    }


def test_safetensors_reads_what_it_packs(tmp_path: Path) -> None:
    layout = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()}
    body = b"".join(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in TENSORS.values())
    head = pack_header(layout, {"format": "pt"})
    file = written(tmp_path, head + body)
    assert len(head) % 8 == 0
    assert list(read_header(file).tensors) == list(TENSORS)
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert all(torch.equal(opened.get_tensor(key), tensor) for key, tensor in TENSORS.items())


def test_every_dtype_survives(tmp_path: Path) -> None:
    raw = torch.arange(1, 49, dtype=torch.uint8)
    tensors = {
        code: (raw.clone() if code != "BOOL" else raw % 2).view(dtype).reshape(2, -1) for dtype, code in CODES.items()
    }
    save_file(tensors, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    layout = {code: (entry.dtype, entry.shape) for code, entry in header.tensors.items()}
    assert layout == {code: (tensor.dtype, tuple(tensor.shape)) for code, tensor in tensors.items()}
    body = b"".join(bytes_of(tensors[code]) for code in layout)
    (tmp_path / "ours.safetensors").write_bytes(pack_header(layout, {}) + body)
    assert read_header(tmp_path / "ours.safetensors") == Header(header.tensors, {})
    ours, theirs = (reader(tmp_path / f"{name}.safetensors") for name in ("ours", "x"))
    for code, tensor in tensors.items():
        assert ours.get_tensor(code).dtype == theirs.get_tensor(code).dtype == tensor.dtype
        assert bytes_of(ours.get_tensor(code)) == bytes_of(theirs.get_tensor(code)) == bytes_of(tensor)


@pytest.mark.parametrize(
    ("code", "shape", "size", "said"),
    [
        ("F6_E2M3", [2, 4], 6, "type F6_E2M3"),
        ("F6_E3M2", [4], 3, "type F6_E3M2"),
        ("F4", [4, 1], 2, r"type F4 and shape \[4, 1\]"),
        ("Q9_NEW", [3], 5, "type Q9_NEW"),
    ],
)
def test_a_type_that_torch_cannot_hold_is_said_to_be_that(
    code: str, shape: list[int], size: int, said: str, tmp_path: Path
) -> None:
    """The file is sound, so it must not be called damaged."""
    text = json.dumps({"weights.3": {"dtype": code, "shape": shape, "data_offsets": [0, size]}}).encode()
    file = written(tmp_path, len(text).to_bytes(8, "little") + text + bytes(size))
    with pytest.raises(CheckpointError, match=f"holds a tensor of {said}, which this version cannot read: 'weights.3'"):
        read_header(file)


def test_half_bytes_are_counted_as_such(tmp_path: Path) -> None:
    """Eight values of four bits are four bytes: any other number of bytes is a damaged header."""
    for size, good in ((4, True), (8, False), (3, False)):
        text = json.dumps({"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, size]}}).encode()
        file = written(tmp_path, len(text).to_bytes(8, "little") + text + bytes(size))
        if good:
            assert read_header(file).tensors["a"].shape == (2, 2)
        else:
            with pytest.raises(CheckpointError, match="does not fill bytes"):
                read_header(file)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, whole: bytes) -> None:
    for length in range(len(whole)):
        refusal(tmp_path, whole[:length])


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path, whole: bytes) -> None:
    assert "1 bytes follow" in refusal(tmp_path, whole + b"\0")


def test_messages_name_what_it_is_instead(tmp_path: Path, whole: bytes) -> None:
    assert "pickle" in refusal(tmp_path, b"PK\x03\x04" + b"archive/data.pkl" * 4)
    assert "pickle" in refusal(tmp_path, pickle.dumps({"state_dict": list(range(100))}, protocol=2))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "new.ckpt")
    assert "pickle" in refusal(tmp_path, (tmp_path / "new.ckpt").read_bytes())
    torch.save({"weight": torch.zeros(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert "pickle" in refusal(tmp_path, (tmp_path / "old.ckpt").read_bytes())
    assert "git lfs pull" in refusal(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "not a safetensors" in refusal(tmp_path, b"<!DOCTYPE html><html><body>404</body></html>")
    assert "truncated" in refusal(tmp_path, whole[:-1])
    assert "only 0 bytes" in refusal(tmp_path, b"")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=r"no such file|cannot be read"):
            read_header(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        {"a": {"dtype": "F12", "shape": [1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}},
        {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
        {"a": 3},
        {"__metadata__": 3},
        [1, 2],
        "text",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, entries: object) -> None:
    text = json.dumps(entries).encode()
    for body in (b"", bytes(8)):
        refusal(tmp_path, len(text).to_bytes(8, "little") + text + body)


def test_a_header_nested_without_end_is_refused(tmp_path: Path) -> None:
    text = b"[" * 100_000
    assert "damaged" in refusal(tmp_path, len(text).to_bytes(8, "little") + text)


def headed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def entry(shape: str) -> bytes:
    return b'{"a":{"dtype":"F32","shape":' + shape.encode() + b',"data_offsets":[0,0]}}'


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (entry("[" + "9" * 18 + ",9" * 500_000 + "]"), "dimensions"),
        (entry("[" + ",".join(["9" * 4000] * 500) + "]"), "dimensions"),
        (entry("[" + ",".join(["9" * 4000] * 16) + "]"), "no shape"),
        (entry("[" + "9" * 5000 + "]"), "damaged"),
        (entry("[1000000000,0]"), "no shape of a tensor without elements"),
        (b"[" * 1_000_000, "stands more than"),
        (b"{" + b",".join(b'"%d":[]' % i for i in range(60_000)) + b"}", "60000 tensors are more"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(3_500_000)) + b"}", "is larger than"),
        (b'{"__metadata__":{"a":' + b'{"":' * 100_000 + b"0" + b"}" * 100_000 + b"}}", "damaged"),
        (b"{" + b" " * 30_000_000 + b"}", "is larger than"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_header_takes_long_or_much_memory(header: bytes, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, headed(header))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError, match=said):
        read_header(file)
    seconds, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2, "tracing itself slows this down"
    assert peak < 200_000_000


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ('{"format":"pt","epoch":3}', "its metadata hold int under 'epoch'"),
        ('{"ss":{"a":1}}', "its metadata hold dict under 'ss'"),
        ('{"a":null}', "its metadata hold NoneType under 'a'"),
        ("[]", "its metadata are a list"),
        ('{"a":"1","a":"2"}', "'a' is there twice"),
    ],
)
def test_metadata_that_safetensors_refuses_are_refused_here(metadata: str, said: str, tmp_path: Path) -> None:
    file = written(tmp_path, headed(b'{"__metadata__":' + metadata.encode() + b"}"))
    with pytest.raises(CheckpointError, match=said):
        read_header(file)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    once = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    assert "'a' is there twice" in refusal(tmp_path, headed(b"{" + once + b"," + once + b"}", bytes(1)))


def test_whatever_safetensors_refuses_is_refused_when_a_file_is_opened(tmp_path: Path) -> None:
    """Its JSON reader takes no half of a surrogate pair and no NaN, Python's takes both."""
    about = b'"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    for header in (b'{"\\ud800":{' + about + b"}}", b'{"a":{' + about + b',"note":NaN}}'):
        file = written(tmp_path, headed(header, bytes(1)))
        assert read_header(file).tensors
        with pytest.raises(CheckpointError, match="cannot be read"):
            open_weights(file)
