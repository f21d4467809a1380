"""What is wrong with a zip archive that torch would read: it compares no checksum by itself."""

from __future__ import annotations

import zipfile
from pathlib import Path

__all__ = ["fault", "is_archive"]

_FOLDER, _ENCRYPTED = 0x10, 0x1  # bits of a record's external attributes, and of its flags


def is_archive(path: Path) -> bool:
    """Whether ``torch.load`` takes the file for a zip archive, not for its older format."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def fault(path: Path) -> str | None:
    """Says what is wrong with an archive of ``torch.save``, or ``None``.

    Its data are read once. Torch stores them as they are, so a compressed record, perhaps a small
    one that unpacks to terabytes, is a fault too; and torch leaves memory as it finds it for a
    record that is marked as a folder.

    Raises:
        FileNotFoundError: There is no such file.
        PermissionError: It may not be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _fault(archive, path.stat().st_size)
    except (FileNotFoundError, PermissionError):
        raise
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        return str(error)  # NotImplementedError and UnicodeDecodeError are among them


def _fault(archive: zipfile.ZipFile, size: int) -> str | None:
    records = archive.infolist()
    unpacked = sum(record.file_size for record in records)
    if unpacked > size:
        return f"it would unpack to {unpacked} bytes, more than it has"
    for record in records:
        if record.external_attr & _FOLDER:
            return f"its record {record.filename} is marked as a folder"
        if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & _ENCRYPTED:
            return f"its record {record.filename} is compressed or encrypted"
    wrong = archive.testzip()
    return None if wrong is None else f"the checksum of {wrong} is wrong"
