"""Reading a training state without running what is in it.

torch.distributed.checkpoint keeps the list of its tensors, `.metadata`, as a pickle, and a pickle may name any
function to be called. Here only the classes that such a list consists of can be named. What it lists must be tensors,
as torch unpickles entries of other kinds without any bound, in files of the folder itself, which are read with
`weights_only`.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import PurePath
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

_DTYPES = (
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "uint8", "int8", "int16", "int32", "int64",
    "bool",
)  # fmt: skip
_ALLOWED = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(("torch", name) for name in _DTYPES),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
            "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip


_PATHS = ("PosixPath", "WindowsPath")
"""What a writer may have called its folder by; which module they come from depends on Python."""


class UnsafeStateError(ValueError):
    """The list of a state's tensors holds something else than a list of tensors."""


class StateReader(FileSystemReader):
    """torch's reader of a local folder, with a list of tensors that can name nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of the state's tensors.

        Raises:
            UnsafeStateError: it names what no such list needs, or lists what is no tensor of this folder.
            OSError, EOFError: it is not there, or not whole.
        """
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            listed = _Unpickler(file).listed()
        if listed.storage_meta is None:
            listed.storage_meta = StorageMeta()
        listed.storage_meta.load_id = self.load_id
        return listed


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib" and name in _PATHS:
            return PurePath
        if (module, name) not in _ALLOWED:
            raise UnsafeStateError(f"it names {module}.{name}, which no list of tensors needs")
        return getattr(importlib.import_module(module), name)

    def listed(self) -> Metadata:
        try:
            found = self.load()
            _check(found)
        except (UnsafeStateError, OSError, EOFError):
            raise
        except Exception as error:  # a pickle that is none fails in any way it likes
            raise UnsafeStateError(f"it is no list of tensors ({error})") from error
        return found


def _check(found: Any) -> None:
    if not isinstance(found, Metadata) or not isinstance(found.storage_data, dict):
        raise UnsafeStateError("it is no list of tensors")
    for name, entry in found.state_dict_metadata.items():
        if not isinstance(name, str) or not isinstance(entry, TensorStorageMetadata):
            raise UnsafeStateError(f"its entry {name!r} is no tensor")
    for index, place in found.storage_data.items():
        path = place.relative_path
        if not isinstance(index, MetadataIndex) or PurePath(path).name != path:
            raise UnsafeStateError(f"it places a tensor in '{path}', which is no file of this folder")
