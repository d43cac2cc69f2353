"""Fitting a converted network to its original on images without labels: closed forms and block-wise distillation."""

from chansurg.surgery.calibration.calibrating import Calibration, Fitted, calibrate

__all__ = ["Calibration", "Fitted", "calibrate"]
