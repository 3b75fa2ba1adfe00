"""A switch between the tap devices of emulated hosts."""

from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport int64_t
from libc.string cimport memset

cdef extern from "lapse/bench/hosts/_switch.h" nogil:
    enum:
        LAPSE_MAX_HOSTS
    ctypedef struct lapse_port:
        int device
    ctypedef struct lapse_switch:
        int num_ports
        lapse_port* ports
        int64_t delay
        double sending, receiving
        int64_t lost
    int lapse_open_tap(const char* name)
    int lapse_run_switch(lapse_switch* s, int orders)
    void lapse_free_frames(lapse_switch* s)

MAX_HOSTS = LAPSE_MAX_HOSTS


def open_tap(str name):
    """The file descriptor of a new tap device of this thread's network namespace.

    Raises
    ------
    OSError
        If the process has not the right to create one, or there is no ``/dev/net/tun``.
    """
    cdef bytes text = name.encode()
    cdef const char* c_name = text
    cdef int device
    with nogil:
        device = lapse_open_tap(c_name)
    if device < 0:
        PyErr_SetFromErrno(OSError)
    return device


def forward(devices, int orders, *, double delay_us, double sending_mbit, double receiving_mbit):
    """Forward frames between devices until the file descriptor `orders` comes to its end.

    Parameters
    ----------
    devices
        File descriptors of tap devices, at most `MAX_HOSTS`.
    orders
        A file descriptor that gives lines: ``cut 2`` drops all frames of the second host, ``join 2`` connects it again.
    delay_us
        How long a frame travels.
    sending_mbit, receiving_mbit
        The rate at which each host sends and receives, in megabits per second; 0: no limit.

    Returns
    -------
    int
        How many frames could not be delivered.
    """
    cdef lapse_switch s
    cdef int i, status
    if len(devices) > LAPSE_MAX_HOSTS:
        raise ValueError(f"there are {len(devices)} devices, but a switch has at most {LAPSE_MAX_HOSTS} ports")
    memset(&s, 0, sizeof(s))
    s.num_ports = len(devices)
    for i in range(s.num_ports):
        s.ports[i].device = devices[i]
    s.delay = <int64_t>(delay_us * 1000)
    s.sending = 8000 / sending_mbit if sending_mbit > 0 else 0
    s.receiving = 8000 / receiving_mbit if receiving_mbit > 0 else 0
    with nogil:
        status = lapse_run_switch(&s, orders)
        lapse_free_frames(&s)
    if status < 0:
        PyErr_SetFromErrno(OSError)
    return s.lost
