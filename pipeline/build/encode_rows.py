"""Encode the rows of a log as far as one block of them allows, measure them, and hand them to the exchange.

Ids that need no learnt state are final here. A value with a vocabulary becomes a code, its place among the block's
tokens; a number with quantiles and one that is standardised stay numbers until everything is learnt.
"""

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.disk.dataset import SPLITS
from features.encode import Prepared, prepare
from features.hashing import hash_array, hash_slices, mix, salt_seed
from features.raw_block import RawBlock, RejectedLine, Wanted
from features.read.portions import Portion, read_portion
from features.schema import VOCABULARY_KINDS, FeatureSchema
from pipeline.build.cardinality import ValueSketch
from pipeline.build.counts import Codes, number_counts, token_counts
from pipeline.build.exchange import KEY, SPLIT, row_keys, sort_rows, write_block
from pipeline.build.measure import Sums, add_up
from pipeline.build.moments import Moments
from pipeline.build.split import draws, split_of
from pipeline.config import HashSplit, PipelineConfig
