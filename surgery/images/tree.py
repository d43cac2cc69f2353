"""Where images lie: a folder of class folders, or a zip of one, under the same three questions.

A tree answers which folders lie in a folder, which images lie below one, and what bytes an image has. Names are relative, with forward
slashes, on every system. Nothing is ever unpacked.
"""

from __future__ import annotations

import os
import zipfile
from bisect import bisect_left
from pathlib import Path
from typing import Any, Protocol

from chansurg.surgery.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class ImageTree(Protocol):
    """Folders of images, read by relative name; ``""`` is the top."""

    path: Path

    def folders(self, at: str) -> list[str]:
        """Names of the folders directly in ``at``, sorted; hidden ones are left out."""

    def images(self, at: str) -> list[str]:
        """Relative names of all images below ``at``, at any depth, sorted."""

    def read(self, name: str) -> bytes:
        """The bytes of one image."""


class FolderTree:
    """A tree on disk. Links to folders are followed, as data sets are often assembled from links."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self, at: str) -> list[str]:
        """See :class:`ImageTree`."""
        with os.scandir(self.path / at) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))

    def images(self, at: str) -> list[str]:
        """See :class:`ImageTree`."""
        found: list[str] = []
        for folder, below, files in os.walk(self.path / at, followlinks=True):
            below[:] = [name for name in below if not _hidden(name)]
            relative = Path(folder).relative_to(self.path)
            found.extend((relative / name).as_posix() for name in files if _is_image(name))
        return sorted(found)

    def read(self, name: str) -> bytes:
        """See :class:`ImageTree`."""
        return (self.path / name).read_bytes()


class ZipTree:
    """A tree inside a zip file.

    The archive is opened once a process: data loading workers that were forked would otherwise share one file position, and those that
    were spawned cannot be sent an open file.

    Raises:
        InputError: where the file is no zip or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._process = -1
        self._images: list[str] = []
        self._folders: set[str] = set()
        for name in self._open().namelist():
            if any(_hidden(part) for part in name.split("/")):
                continue
            above = name.split("/")[:-1]
            self._folders.update("/".join(above[: depth + 1]) for depth in range(len(above)))
            if not name.endswith("/") and _is_image(name):
                self._images.append(name)
        self._images.sort()

    def folders(self, at: str) -> list[str]:
        """See :class:`ImageTree`."""
        return sorted(name.rpartition("/")[2] for name in self._folders if name.rpartition("/")[0] == at)

    def images(self, at: str) -> list[str]:
        """See :class:`ImageTree`."""
        if not at:
            return list(self._images)
        first = bisect_left(self._images, at + "/")
        return self._images[first : bisect_left(self._images, at + chr(ord("/") + 1), first)]

    def read(self, name: str) -> bytes:
        """See :class:`ImageTree`."""
        return self._open().read(name)

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._process != os.getpid():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
                raise InputError(
                    f"The zip file cannot be read: {error}.",
                    where=str(self.path),
                    not_done="No image was read.",
                    to_do="It may be cut short: download or copy it again, and try `python -m zipfile -t FILE`.",
                ) from error
            self._process = os.getpid()
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}


def open_tree(path: str | os.PathLike[str]) -> FolderTree | ZipTree:
    """The tree at ``path``.

    Raises:
        InputError: where there is nothing, or neither a folder nor a zip file that can be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            tree = FolderTree(path)
            tree.folders("")
            return tree
        if path.is_file():
            return ZipTree(path)
    except OSError as error:
        raise InputError(
            f"The data cannot be opened: {error.strerror or error}.",
            where=str(path),
            not_done="No image was read.",
            to_do="Check that you may read it.",
        ) from error
    raise InputError(
        "There is no such file or folder.",
        where=str(path),
        not_done="No image was read.",
        to_do="Pass a folder of class folders (or one with train/ and val/ above them), or a zip of one.",
    )


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not _hidden(name.rpartition("/")[2])
