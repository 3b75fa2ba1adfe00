"""Floor 4. What users pass as keys and values, as arrays that C code can use; errors that say what is wrong."""

import numpy as np

from lapse.base.checks import brief

cimport numpy as cnp
from libc.stdint cimport int64_t

cnp.import_array()


cdef cnp.ndarray as_keys(keys, int64_t num_keys):
    """A C-contiguous int64 array of the shape that the caller gave."""
    cdef cnp.ndarray array
    if cnp.PyArray_CheckExact(keys):
        array = <cnp.ndarray>keys
        if cnp.PyArray_TYPE(array) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(array):
            return array
    return convert_keys(keys, num_keys)


def convert_keys(keys, num_keys):
    """The keys as a C-contiguous int64 array of the shape that the caller gave; not checked for their range.

    Raises
    ------
    TypeError
        If they are not integers.
    IndexError
        If one does not fit into 64 bits.
    """
    if is_tensor(keys) and keys.device.type != "cpu":
        raise TypeError(f"the tensor given as keys is on {keys.device}, but the server reads the host's memory: give "
                        "keys.cpu()")
    if isinstance(keys, range) and max(abs(keys.start), abs(keys.stop)) < 1 << 62:
        return np.arange(keys.start, keys.stop, keys.step, dtype=np.int64)  # asarray goes through it number by number
    try:
        array = np.asarray(keys.detach() if is_tensor(keys) else keys)
    except ValueError:
        raise ValueError(f"keys are lists of different lengths or depths, {brief(keys)}: give one array of integers, "
                         "such as np.concatenate(keys)") from None
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() >= 1 << 63:
            raise IndexError(outside(array.max(), num_keys))
        return np.ascontiguousarray(array, dtype=np.int64).reshape(array.shape)
    if isinstance(keys, (int, list, tuple, range)) and not isinstance(keys, bool):
        if array.size == 0:
            return np.empty(array.shape, dtype=np.int64)
        if array.dtype == object and all(type(key) is int for key in array.flat):
            raise IndexError(outside(max(array.flat, key=abs), num_keys))
    raise TypeError(f"keys must be integers, not {describe(keys, array)}")


def outside(key, num_keys):
    return f"key {key} is outside the range 0 .. {num_keys - 1} of this server"


def describe(given, array):
    if isinstance(given, (list, tuple)):
        return f"a {type(given).__name__} of {array.dtype}"
    return f"{type(given).__name__}" if array.ndim == 0 and array.dtype == object else f"{array.dtype}"


def is_tensor(given):
    """Whether it is a tensor of PyTorch, which need not be installed."""
    return hasattr(given, "requires_grad") and hasattr(given, "detach")


def as_array(given, dtype, name):
    """The array that shares memory with what the caller gave as `name`."""
    if isinstance(given, np.ndarray):
        return given
    if is_tensor(given):
        check_tensor(given, dtype, name)
        return given.detach().numpy()
    return np.asarray(memoryview(given))


def check_tensor(tensor, dtype, name):
    """Raise what keeps a PyTorch tensor from being used as an array, with the call that helps."""
    if tensor.device.type != "cpu":
        raise TypeError(f"the tensor given as {name} is on {tensor.device}, but the server reads and writes the host's "
                        f"memory: give {name}.cpu()")
    if tensor.requires_grad:
        raise TypeError(f"the tensor given as {name} has requires_grad=True, but autograd does not follow it into the "
                        f"server: give {name}.detach(), or use lapse.torch.Embedding")
    if str(tensor.dtype) != f"torch.{dtype}":
        raise TypeError(f"{name} are {tensor.dtype}, but the server holds {dtype}: give {name}.to(torch.{dtype})")


def check_dtype(array, dtype, name):
    if array.dtype != dtype:
        raise TypeError(f"{name} are {array.dtype}, but the server holds {dtype}: convert with .astype({dtype.name!r})")


def check_shape(given, shape, elements, name):
    if given.size != elements or (given.shape != shape and given.ndim > 1):
        raise ValueError(f"{name} have shape {given.shape} ({given.size} elements), but these keys take "
                         f"shape {shape} ({elements} elements)")


def as_values(given, dtype, shape, elements, name):
    """A C-contiguous array of the server's dtype; a copy only if the memory cannot be used as it is."""
    if isinstance(given, (list, tuple, int, float, np.number)):
        if isinstance(given, np.number) and given.dtype != dtype:
            raise TypeError(f"{name} are {given.dtype}, but the server holds {dtype}")
        try:
            array = np.asarray(given)
        except ValueError:
            raise ValueError(f"{name} are lists of different lengths or depths, {brief(given)}: give one array of "
                             f"{dtype}") from None
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be numbers that fit {dtype}, not {describe(given, array)}")
        array = array.astype(dtype)
    else:
        try:
            array = as_array(given, dtype, name)
        except TypeError:
            if is_tensor(given):
                raise
            raise TypeError(f"{name} must be an array, tensor, buffer, list or number, not {type(given).__name__}"
                            f"{': wait() returns its values' if hasattr(given, 'wait') else ''}") from None
    check_dtype(array, dtype, name)
    check_shape(array, shape, elements, name)
    return np.ascontiguousarray(array)


def as_weights(given, count):
    """The weights of so many updates, as a float32 array."""
    try:
        weights = np.ascontiguousarray(given, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise TypeError(f"weights must be numbers, one for each key, not {brief(given)}") from None
    if len(weights) != count:
        raise ValueError(f"weights has {len(weights)} elements for {count} keys; give one weight for each key")
    if not (weights >= 0).all():  # which no NaN is
        raise ValueError(f"weights has {weights[~(weights >= 0)][0]}, but weights are at least 0")
    return weights


def as_out(out, dtype, shape, elements):
    """The array behind `out`, into which a pull writes."""
    array = as_target(out, dtype)
    check_shape(array, shape, elements, "the elements of out")
    return array


def as_room(out, dtype, elements):
    """The array behind an `out` that may be larger than what is written."""
    array = as_target(out, dtype)
    if array.size < elements:
        raise ValueError(f"out has {array.size} elements, but needs room for {elements}: when lengths vary, "
                         "space for the longest value for every requested key")
    return array


def as_target(out, dtype):
    try:
        array = as_array(out, dtype, "out")
    except TypeError:
        if is_tensor(out):
            raise
        raise TypeError(f"out must be an array, tensor or writable buffer, not {type(out).__name__}") from None
    if array.dtype != dtype:  # a converted copy would be filled instead
        raise TypeError(f"the elements of out are {array.dtype}, but the server holds {dtype}: create out with "
                        f"dtype={dtype.name!r}, as in np.empty(shape, {dtype.name!r})")
    check_writable(array, "out")
    return array


def check_writable(array, name):
    if not array.flags.writeable:
        raise ValueError(f"{name} is read-only: give a writable array")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} of shape {array.shape} is not C-contiguous: give a contiguous array, "
                         "or copy afterwards")


def as_key_buffer(keys, count):
    """The array behind `keys`, into which a call writes so many of them."""
    try:
        array = as_array(keys, np.dtype(np.int64), "keys")
    except TypeError:
        if is_tensor(keys):
            raise
        raise TypeError(f"keys must be an array, tensor or writable buffer, not {type(keys).__name__}") from None
    if array.dtype != np.int64:
        raise TypeError(f"keys are {array.dtype}, but a buffer for them must be int64")
    check_writable(array, "keys")
    if array.size != count:
        raise ValueError(f"keys have shape {array.shape} ({array.size} elements), but {count} keys are requested")
    return array


def last_occurrences(keys):
    """Positions of the last occurrence of each key, ascending."""
    _, from_the_end = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - from_the_end)


def rows_at(values, lengths, positions):
    """The values at some positions, one after another; `lengths` is one number, or one for each value."""
    if np.ndim(lengths) == 0:
        return np.ascontiguousarray(values.reshape(-1, lengths)[positions])
    parts = np.split(values.reshape(-1), np.cumsum(lengths))
    return np.concatenate([parts[position] for position in positions])
