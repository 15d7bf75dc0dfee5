"""Where a model computes: the processor, or a graphics card (CUDA, ROCm, Apple's MPS), by what torch says of it.

Comes in: the device that a user named, or none. Goes out: the device of the run, the number format that is fast on it,
its memory and its random numbers, and how numbers come from it without waiting. Other rooms ask for these by the run's
device, and know no kind of card; whether there are cards at all is asked here alone. `choice`: the device, and folders
for what is kept. `formats`: the number format, and what its products round to. `cards`: names, and why a card cannot be
used. `memory`: held, at most, free, and rows for what is free. `queue`: what computes on its own time, and random
numbers. `host`: the processor, its compiler, and the memory beside it.
"""

from afina.core.device.cards import VISIBLE as VISIBLE
from afina.core.device.cards import device_name as device_name
from afina.core.device.cards import gpu_build as gpu_build
from afina.core.device.cards import unused_card as unused_card
from afina.core.device.choice import OTHER_CACHE as OTHER_CACHE
from afina.core.device.choice import Card as Card
from afina.core.device.choice import Compute as Compute
from afina.core.device.choice import cache_folder as cache_folder
from afina.core.device.choice import is_device as is_device
from afina.core.device.choice import no_device as no_device
from afina.core.device.choice import pick_device as pick_device
from afina.core.device.choice import unkept as unkept
from afina.core.device.choice import usable_cards as usable_cards
from afina.core.device.formats import PRECISIONS as PRECISIONS
from afina.core.device.formats import Precision as Precision
from afina.core.device.formats import in_any_order as in_any_order
from afina.core.device.formats import is_deterministic as is_deterministic
from afina.core.device.formats import pick_dtype as pick_dtype
from afina.core.device.formats import precision_of as precision_of
from afina.core.device.formats import set_arithmetic as set_arithmetic
from afina.core.device.host import LARGE_BLOCK as LARGE_BLOCK
from afina.core.device.host import compiler as compiler
from afina.core.device.host import keep_freed_memory as keep_freed_memory
from afina.core.device.host import processor as processor
from afina.core.device.host import processor_features as processor_features
from afina.core.device.memory import HOST as HOST
from afina.core.device.memory import DeviceMemory as DeviceMemory
from afina.core.device.memory import device_memory as device_memory
from afina.core.device.memory import fitting as fitting
from afina.core.device.memory import forget_peak as forget_peak
from afina.core.device.memory import memory_free as memory_free
from afina.core.device.memory import memory_gb as memory_gb
from afina.core.device.memory import memory_in_words as memory_in_words
from afina.core.device.memory import memory_limit as memory_limit
from afina.core.device.memory import peak_memory_gb as peak_memory_gb
from afina.core.device.memory import rows_at_once as rows_at_once
from afina.core.device.memory import rows_within as rows_within
from afina.core.device.queue import host_buffer as host_buffer
from afina.core.device.queue import later as later
from afina.core.device.queue import on_host as on_host
from afina.core.device.queue import overlaps as overlaps
from afina.core.device.queue import random_states as random_states
from afina.core.device.queue import same_random_numbers as same_random_numbers
from afina.core.device.queue import sent as sent
from afina.core.device.queue import set_random_states as set_random_states
from afina.core.device.queue import use as use
from afina.core.device.queue import wait_for as wait_for
from afina.core.device.queue import widest as widest
