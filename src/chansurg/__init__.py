"""chansurg: model surgery for pretrained vision networks.

>>> import chansurg                                                      # doctest: +SKIP
>>> model = chansurg.load("resnet50.pth")                                # an nn.Module, eval mode          # doctest: +SKIP
>>> plan = chansurg.plan(model, "pix", zeta=4)                           # what it would do                 # doctest: +SKIP
>>> pix = chansurg.convert(model, "pix", zeta=4)                         # a new nn.Module                  # doctest: +SKIP
>>> chansurg.save(pix, "resnet50-pix.safetensors")                       # doctest: +SKIP

Every name below is imported when it is first used, so that ``import chansurg`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chansurg.surgery.comparison import Difference as Difference
    from chansurg.surgery.comparison import diff as diff
    from chansurg.surgery.converting import apply as apply
    from chansurg.surgery.converting import convert as convert
    from chansurg.surgery.counting import Counts as Counts
    from chansurg.surgery.counting import count as count
    from chansurg.surgery.delivery.benching import bench as bench
    from chansurg.surgery.delivery.benchmark import Benchmark as Benchmark
    from chansurg.surgery.delivery.exported_record import exported_record as exported_record
    from chansurg.surgery.delivery.exporting import Export as Export
    from chansurg.surgery.delivery.exporting import export as export
    from chansurg.surgery.delivery.optimizing import Optimization as Optimization
    from chansurg.surgery.delivery.optimizing import optimization_of as optimization_of
    from chansurg.surgery.delivery.optimizing import optimize as optimize
    from chansurg.surgery.delivery.report.page import report as report
    from chansurg.surgery.drift import Drift as Drift
    from chansurg.surgery.drifting import drift as drift
    from chansurg.surgery.errors import ChansurgError as ChansurgError
    from chansurg.surgery.errors import InputError as InputError
    from chansurg.surgery.errors import Refusal as Refusal
    from chansurg.surgery.files.lineage import history as history
    from chansurg.surgery.files.lineage import undo as undo
    from chansurg.surgery.files.modelfile import save as save
    from chansurg.surgery.files.provenance import record_of as record_of
    from chansurg.surgery.gating import masks as masks
    from chansurg.surgery.inspection import Inspection as Inspection
    from chansurg.surgery.inspection import inspect as inspect
    from chansurg.surgery.journal import Record as Record
    from chansurg.surgery.opening import load as load
    from chansurg.surgery.plan import Plan as Plan
    from chansurg.surgery.planning import plan as plan
    from chansurg.surgery.recipe import installed_recipes as installed_recipes
    from chansurg.surgery.slicing.slicing import slice as slice
    from chansurg.surgery.training.evaluation import Evaluation as Evaluation
    from chansurg.surgery.training.evaluation import evaluate as evaluate
    from chansurg.surgery.training.finetuning import finetune as finetune
    from chansurg.surgery.training.recipe_loss import recipe_loss as recipe_loss
    from chansurg.surgery.verification import Verdict as Verdict
    from chansurg.surgery.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "Benchmark": "delivery.benchmark",
    "ChansurgError": "errors",
    "Counts": "counting",
    "Difference": "comparison",
    "Drift": "drift",
    "Evaluation": "training.evaluation",
    "Export": "delivery.exporting",
    "InputError": "errors",
    "Inspection": "inspection",
    "Optimization": "delivery.optimizing",
    "Plan": "plan",
    "Record": "journal",
    "Refusal": "errors",
    "Verdict": "verification",
    "apply": "converting",
    "bench": "delivery.benching",
    "convert": "converting",
    "count": "counting",
    "diff": "comparison",
    "drift": "drifting",
    "evaluate": "training.evaluation",
    "export": "delivery.exporting",
    "exported_record": "delivery.exported_record",
    "finetune": "training.finetuning",
    "history": "files.lineage",
    "inspect": "inspection",
    "installed_recipes": "recipe",
    "load": "opening",
    "masks": "gating",
    "optimization_of": "delivery.optimizing",
    "optimize": "delivery.optimizing",
    "plan": "planning",
    "recipe_loss": "training.recipe_loss",
    "record_of": "files.provenance",
    "report": "delivery.report.page",
    "save": "files.modelfile",
    "slice": "slicing.slicing",
    "undo": "files.lineage",
    "verify": "verification",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chansurg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"chansurg.surgery.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
