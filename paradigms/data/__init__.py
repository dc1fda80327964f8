"""Data sets as dicts of numpy arrays, and streams of batches for sets larger than memory.

A set in RAM is `{"image": uint8 [N, H, W, C], "label": int32 [N]}`. `text` loads texts, and
`tokens` makes numbers of them: `{"tokens": int32 [N]}`. Importing this package imports none of the
packages that decode or stream; each function imports what it needs.
"""

from paradigms.data import text as text
from paradigms.data import tokens as tokens
from paradigms.data.arrays import check_labels as check_labels
from paradigms.data.arrays import few_labels as few_labels
from paradigms.data.arrays import from_arrays as from_arrays
from paradigms.data.arrays import hide_labels as hide_labels
from paradigms.data.arrays import padded_batches as padded_batches
from paradigms.data.arrays import split as split
from paradigms.data.folder import from_folder as from_folder
from paradigms.data.mixtures import gaussian_grid as gaussian_grid
from paradigms.data.mixtures import gaussian_ring as gaussian_ring
from paradigms.data.mixtures import grid_centres as grid_centres
from paradigms.data.mixtures import ring_centres as ring_centres
from paradigms.data.sets import binarized_mnist as binarized_mnist
from paradigms.data.sets import digits as digits
from paradigms.data.sets import load as load
from paradigms.data.sets import prepare as prepare
from paradigms.data.streaming import Stream as Stream
