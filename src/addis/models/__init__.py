"""Reference networks, pretrained weights, and models of timm, torchvision or your own by name."""

from addis.models._layers import Normalize as Normalize
from addis.models._plain import cnn5 as cnn5
from addis.models._plain import conv4 as conv4
from addis.models._plain import lenet as lenet
from addis.models._plain import mlp as mlp
from addis.models._plain import net_3c3d as net_3c3d
from addis.models._registry import create as create
from addis.models._registry import info as info
from addis.models._registry import names as names
from addis.models._resnet import cifar_resnet as cifar_resnet
from addis.models._resnet import preact_resnet18 as preact_resnet18
from addis.models._resnet import resnet20 as resnet20
from addis.models._resnet import resnet32 as resnet32
from addis.models._resnet import resnet44 as resnet44
from addis.models._resnet import resnet56 as resnet56
from addis.models._resnet import wide_resnet as wide_resnet
from addis.models._table import ModelInfo as ModelInfo
from addis.models._vgg import vgg8b as vgg8b
from addis.models._vgg import vgg9 as vgg9
from addis.models._vgg import vgg11b as vgg11b
from addis.models._vgg import vgg_small as vgg_small
from addis.models._weights import load_weights as load_weights
from addis.models._weights import read_weights as read_weights
