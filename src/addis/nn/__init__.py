"""Layers to build with, and quicker kernels for those that a model has."""

from addis.nn._winograd import Winograd as Winograd
from addis.nn._winograd import WinogradConv2d as WinogradConv2d
from addis.nn._winograd import suits as suits
