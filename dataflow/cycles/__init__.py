"""The exact cycle model: what a program takes on the RTL, without running it.

The sequencer takes instructions one after another, the engines work side by side, and nothing
any of them does depends on another but through queues and semaphores. So one pass over the
program gives every time as a maximum of sums: no cycle is stepped through. ``tests/cosim``
holds it to the RTL's own count, cycle for cycle. A file here models the file of its name in
``rtl/``.
"""

from sat.dataflow.cycles.sequencer import Prediction as Prediction
from sat.dataflow.cycles.sequencer import predict as predict
