"""The C-level door: `cimport lapse` in a kernel gives the worker and the types of its calls."""

from lapse.base._types cimport key_t, operation_t
from lapse.worker._worker cimport Worker
