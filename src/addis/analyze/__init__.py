"""Analyses of training: where a model stands between too small and interpolating, and what its
width does.
"""

from addis.analyze._curve import Curve as Curve
from addis.analyze._curve import Failure as Failure
from addis.analyze._data import check_disjoint as check_disjoint
from addis.analyze._decomposition import Decomposition as Decomposition
from addis.analyze._decomposition import decompose_error as decompose_error
from addis.analyze._decomposition import rf_decomposition as rf_decomposition
from addis.analyze._emc import EMCPoint as EMCPoint
from addis.analyze._emc import EMCResult as EMCResult
from addis.analyze._emc import effective_model_complexity as effective_model_complexity
from addis.analyze._epoch_risk import TWO_SPEEDS as TWO_SPEEDS
from addis.analyze._epoch_risk import OrthogonalDesign as OrthogonalDesign
from addis.analyze._epoch_risk import epoch_risk as epoch_risk
from addis.analyze._epoch_risk import simulated_epoch_risk as simulated_epoch_risk
from addis.analyze._epoch_risk import turning_points as turning_points
from addis.analyze._intervals import Interval as Interval
from addis.analyze._intervals import interpolation_threshold as interpolation_threshold
from addis.analyze._label_noise import LabelNoise as LabelNoise
from addis.analyze._label_noise import noisy_labels as noisy_labels
from addis.analyze._least_squares import LeastSquaresPath as LeastSquaresPath
from addis.analyze._least_squares import least_squares_path as least_squares_path
from addis.analyze._random_features import Features as Features
from addis.analyze._random_features import random_features as random_features
from addis.analyze._rf_curve import rf_curve as rf_curve
from addis.analyze._sweep import Config as Config
from addis.analyze._sweep import sweep as sweep
from addis.analyze._verdict import Mitigation as Mitigation
from addis.analyze._verdict import Point as Point
from addis.analyze._verdict import Verdict as Verdict
from addis.analyze._verdict import double_descent_verdict as double_descent_verdict
from addis.analyze._verdict import mitigation_panel as mitigation_panel
