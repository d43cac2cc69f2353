"""Fitting a converted network to its original on images without labels: closed forms, and distillation of blocks."""

from chansurg.surgery.calibration.calibrating import Calibration, Fitted, Together, calibrate

__all__ = ["Calibration", "Fitted", "Together", "calibrate"]
