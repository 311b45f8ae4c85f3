"""Calibration of a guide by simulation: does it know the truth as often as it says, over data of the model's own making?"""

from guides.calibration.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
