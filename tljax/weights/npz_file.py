"""NumPy's .npz archives: the names, shapes and dtypes of their arrays; no pickled object is ever read."""

import functools
import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tljax.errors import WeightsError, printable
from tljax.weights.hfconfig import AGAIN, opened, sniff
from tljax.weights.tensors import MAX_NAMES, READABLE, Tensor, aligned

BFLOAT16 = "V2"  # what .npy says of bfloat16, which NumPy does not know
FAULTS = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, NotImplementedError, RuntimeError,
          SyntaxError, tokenize.TokenError)  # fmt: skip


def scan(path: Path) -> dict[str, Tensor]:
    """The arrays of one archive, by name; a name may be "a/b/c".

    Raises:
      WeightsError: no archive of .npy files, a damaged one, a name that stands twice, or arrays of objects.
    """
    with opened(path) as stream:
        if stream.read(2) != b"PK":
            sniff(path)
            raise WeightsError(str(path), "no zip archive", "an archive as numpy.savez writes it", AGAIN)
    tensors: dict[str, Tensor] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) > MAX_NAMES or len(set(members)) != len(members):
                raise ValueError(f"{len(members)} members, some of one name or more than {MAX_NAMES}")
            for member in members:
                name = member.removesuffix(".npy")
                if name == member:
                    raise ValueError(f"{printable(member)} is no .npy file")
                shape, dtype = _header(archive, member)
                if dtype.hasobject:
                    found = f"{printable(name)} holds pickled objects; tljax does not open pickles"
                    raise WeightsError(str(path), found, "arrays of numbers", "save it anew without objects")
                kind = "bfloat16" if dtype.str[1:] == BFLOAT16 else dtype.name
                tensors[name] = Tensor(kind, shape, functools.partial(_load, path, member, shape, dtype))
    except FAULTS as error:
        raise WeightsError(str(path), f"not a whole .npz archive ({printable(error)})", "arrays", AGAIN) from None
    return tensors


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of one array; its values are not read."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{printable(member)}: .npy version {version}")
        shape, _, dtype = readers[version](stream)
        size = archive.getinfo(member).file_size - stream.tell()
        if not dtype.hasobject and math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{printable(member)}: shape {shape} of {dtype} in {size} bytes")
        return shape, dtype


def _load(path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        array = array.view(READABLE["bfloat16"]) if dtype.str[1:] == BFLOAT16 else array
        made = aligned(shape, array.dtype.newbyteorder("="))
        np.copyto(made, array)
    except FAULTS as error:
        raise WeightsError(str(path), f"{printable(member)} cannot be read ({printable(error)})", fix=AGAIN) from None
    return made
