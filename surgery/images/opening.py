"""Images without labels that a caller may have named or opened already."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chansurg.surgery.architecture import Preprocessing
    from chansurg.surgery.images.unlabelled import Unlabelled


def opened(data: Unlabelled | str | os.PathLike[str] | None, preprocessing: Preprocessing, samples: int, seed: int) -> Unlabelled | None:
    """The images of ``data``, or ``None`` where it names none; those that are open already as they are.

    Raises:
        InputError: as :func:`~chansurg.surgery.images.unlabelled.open_unlabelled` does.
    """
    if not isinstance(data, str | os.PathLike):
        return data
    from chansurg.surgery.images.unlabelled import open_unlabelled

    return open_unlabelled(data, preprocessing, samples, seed)
