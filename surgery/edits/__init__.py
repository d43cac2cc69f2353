"""The elementary edits, as plain data.

Everything a recipe does to a network is a list of these. Each names one place and what happens there, with every number it needs, so that
a file can replay it without searching again and without the original weights:

========== ==============================================================================================================
`Repeat`   the module at a path, a child of an ``nn.Sequential``, is followed by a copy of itself
`Swap`     the module at a path gives way to a new layer; the code around it stays as it is
`Narrow`   a module, or a parameter of none, keeps only the named input or output channels
`Scale`    a module's filters, or its input slices, are multiplied by constants; its shapes stay
`Insert`   a new layer is put in front of one call, on its first input
`Bypass`   one call is removed: what went into it comes out; its module goes when nobody calls it any more
`Attach`   a new layer takes what one call put out, and reads what went into another; every reader of the output gets its result
`Replace`  one call gives way to a new layer on the same tensors; its module goes when nobody calls it any more
`Route`    a branch gets a selection of its input from a new layer, and another new layer fuses what it gives with what passes it by
`Inherit`  a tensor of the edited network starts with values, whole or sliced, that the network had before
========== ==============================================================================================================

`Repeat`, `Swap`, `Narrow` and `Scale` name a module by its path, `Inherit` two tensors by their names in the state dict. The others name a
call by its :class:`Address`, since one module may be called in several places. Repeats are performed first and inheritances last; the
others in the order they are listed in. No torch is imported here.
"""

from chansurg.surgery.edits.any_edit import Edit, edit_from_json, new_layers
from chansurg.surgery.edits.of_calls import Attach, Bypass, Insert, Replace, Route
from chansurg.surgery.edits.of_modules import Inherit, Narrow, Repeat, Scale, Swap
from chansurg.surgery.edits.places import Address, LayerSpec

__all__ = [
    "Address",
    "Attach",
    "Bypass",
    "Edit",
    "Inherit",
    "Insert",
    "LayerSpec",
    "Narrow",
    "Repeat",
    "Replace",
    "Route",
    "Scale",
    "Swap",
    "edit_from_json",
    "new_layers",
]
