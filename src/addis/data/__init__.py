"""Data sets by name, decoded once and mapped from a cache, and fast batches of them."""

from addis.data._batches import Batches as Batches
from addis.data._batches import random_crop as random_crop
from addis.data._batches import random_flip as random_flip
from addis.data._cache import cache_folder as cache_folder
from addis.data._images import Images as Images
from addis.data._images import scaled as scaled
from addis.data._load import load as load
from addis.data._load import names as names
from addis.data._load import splits as splits
from addis.data._photos import Photos as Photos
from addis.data._segmentation import Segmentation as Segmentation
from addis.data._sprites import sprites as sprites
from addis.data._table import Table as Table
from addis.data._text import Text as Text
