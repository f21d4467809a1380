"""Shows which regions of an image a model used: the information bottleneck, its baselines, and
their tests.
"""

from addis.explain._attribution import Attribution as Attribution
from addis.explain._baselines import BASELINES as BASELINES
from addis.explain._baselines import Baseline as Baseline
from addis.explain._bottleneck import METHOD as METHOD
from addis.explain._bottleneck import InformationBottleneck as InformationBottleneck
from addis.explain._cam import gradcam as gradcam
from addis.explain._cam import guided_gradcam as guided_gradcam
from addis.explain._cam import hirescam as hirescam
from addis.explain._cam import layercam as layercam
from addis.explain._gradients import blurred_saliency as blurred_saliency
from addis.explain._gradients import gradient as gradient
from addis.explain._gradients import gradient_x_input as gradient_x_input
from addis.explain._gradients import guided_backprop as guided_backprop
from addis.explain._gradients import integrated_gradients as integrated_gradients
from addis.explain._gradients import random_map as random_map
from addis.explain._gradients import saliency as saliency
from addis.explain._gradients import smoothgrad as smoothgrad
from addis.explain._layers import Layer as Layer
from addis.explain._layers import find_layer as find_layer
from addis.explain._lrp import lrp as lrp
from addis.explain._objectives import Objective as Objective
from addis.explain._objectives import logit_margin as logit_margin
from addis.explain._occlusion import occlusion as occlusion
from addis.explain._rise import rise as rise
from addis.explain._stats import BottleneckStats as BottleneckStats
