"""A folder of results, one JSON file each, so that what is finished is never run again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class ResultFolder:
    """A folder of results, all of one set of settings.

    Args:
        path: the folder; made if it is not there.
        settings: what every result depends on, as JSON values.

    Raises:
        SystemExit: where the folder holds results of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        kept = path / "settings.json"
        if kept.exists() and json.loads(kept.read_text()) != settings:
            raise SystemExit(f"{path} holds results of other settings ({kept}). Pass another folder with --out, or delete it.")
        self.write(kept, settings)

    def named(self, *names: object, suffix: str = ".json") -> Path:
        """Where the result of these names is, or what belongs to it."""
        return self.path / f"{'-'.join(map(str, names))}{suffix}"

    def write(self, path: Path, document: dict[str, Any]) -> None:
        """Write a result, whole or not at all."""
        temporary = path.with_suffix(f".{os.getpid()}.part")  # several processes may fill one folder
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(path)

    def documents(self) -> list[dict[str, Any]]:
        """Every result in the folder, in the order of their files' names."""
        return [json.loads(file.read_text()) for file in sorted(self.path.glob("*.json")) if file.name != "settings.json"]
