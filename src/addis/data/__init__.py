"""Data sets by name, decoded once and mapped from a cache, and fast batches of them."""

from addis.data._batches import Batches as Batches
from addis.data._batches import random_crop as random_crop
from addis.data._batches import random_flip as random_flip
from addis.data._cache import cache_folder as cache_folder
from addis.data._images import Images as Images
from addis.data._load import load as load
from addis.data._load import names as names
from addis.data._load import splits as splits
from addis.data._table import Table as Table
