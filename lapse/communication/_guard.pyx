"""Floor 3. The guard of a process: one thread, the same for all servers, that never waits for anybody."""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport realloc
from libc.string cimport memcmp, memcpy, memset, strncpy

import contextlib
import os
import sys
from pathlib import Path

from lapse.base._sync cimport drop_latch, load, now, sleep_for, store, take_latch
from lapse.base._connections cimport ADDRESS_BYTES, HOST_NAME_BYTES, far_host_t, find_silent_host, silent_t
from lapse.base._exits cimport tell_launcher
from lapse.base._types cimport FAILURE_GRACE_SECONDS
from lapse.communication._text cimport print_text, say, seconds_of
from lapse.storage._host_peers cimport is_dead

cdef extern from *:
    r"""
    #include <dlfcn.h>
    #include <pthread.h>
    #include <signal.h>
    #include <string.h>
    #include <unistd.h>

    static volatile sig_atomic_t lapse_asked;     /* how often SIGUSR1 has come */
    static pid_t lapse_guarded_process;

    static void lapse_on_signal(int number) {
        if (getpid() == lapse_guarded_process) { lapse_asked++; return; }
        signal(number, SIG_DFL);  /* a forked child has no guard: as if there were no handler */
        raise(number);
    }

    /* Takes the signal if nobody else has, but MPI: MPICH handles it to ask its launcher for ranks that have died. */
    static void lapse_take_signal(void) {
        struct sigaction present, own;
        Dl_info where;
        memset(&own, 0, sizeof own);
        own.sa_handler = lapse_on_signal;
        own.sa_flags = SA_RESTART;
        if (sigaction(SIGUSR1, 0, &present)) return;
        if (present.sa_handler == SIG_DFL || (present.sa_handler != SIG_IGN
                && dladdr((void *)present.sa_handler, &where) && where.dli_fname && strstr(where.dli_fname, "libmpi")))
            sigaction(SIGUSR1, &own, 0);
    }

    static void (*lapse_guard_loop)(void);
    static void *lapse_guard_thread(void *unused) { (void)unused; lapse_guard_loop(); return 0; }

    /* Starts a thread that no signal interrupts; 0, or the error's number. */
    static int lapse_start_guard(void (*loop)(void)) {
        pthread_t thread;
        pthread_attr_t attributes;
        sigset_t all, before;
        int error;
        lapse_guard_loop = loop;
        lapse_guarded_process = getpid();
        sigfillset(&all);
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 256 << 10);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&thread, &attributes, lapse_guard_thread, 0);
        pthread_sigmask(SIG_SETMASK, &before, 0);
        pthread_attr_destroy(&attributes);
        return error;
    }
    """
    int lapse_asked
    void take_signal "lapse_take_signal"()
    int start_thread "lapse_start_guard"(void (*loop)() noexcept nogil)

cdef extern from "<unistd.h>" nogil:
    void _exit(int status)

cdef int64_t TICK = 250000000           # nanoseconds between two looks
cdef int64_t SECOND = 1000000000

cdef enum:
    TICKS_PER_LOOK = 4      # at connections
    SILENT_LOOKS = 3        # at which a host does not answer before it counts as silent
    SERVERS_FIRST = 3       # seconds by which heartbeats, which know the ranks, notice silence earlier than connections
    LAST_SECONDS = 3        # of a process without a server, which could not react; so that its other ranks say why, too

#: Ancestors that start and end ranks, as the kernel shows their names: cut after 15 characters.
LAUNCHERS = ("hydra_pmi_proxy", "orted", "prted", "mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun",
             "slurmstepd", "pbs_mom", "flux-shell", "jsmd", "apinit", "palsd")

cdef struct state_t:
    uint8_t latch
    guarded_t* servers
    int32_t launcher            # its process; 0: none that could be watched
    char launcher_name[32]
    int64_t end_at              # when this process must have ended; 0: it need not
    int64_t stall               # nanoseconds after which a wait is reported; 0: never
    # A wait outside of any server's calls, by one thread.
    char place[96]
    int64_t place_since
    bint place_reported
    int32_t rank
    # Other hosts of this process's jobs.
    far_host_t* hosts
    int32_t num_hosts
    int64_t silence_limit       # nanoseconds; 0: none
    int32_t silent_looks
    bint is_cut_off             # a host did not answer; this process ends

cdef state_t state
cdef text_t text                # of the guard's thread only
cdef object started_in = None   # the process in which the thread was started


def start(rank, size, double stall_seconds):
    """Start the guard unless this process has one; whether there is one now.

    Parameters
    ----------
    rank, size : int
        Of MPI.COMM_WORLD. A process alone has no launcher.
    stall_seconds : float
        After which a wait is reported; 0: never.
    """
    global started_in
    cdef int error
    state.stall = <int64_t>(stall_seconds * SECOND)
    if started_in == os.getpid():
        return True
    memset(&state, 0, sizeof(state))
    state.stall = <int64_t>(stall_seconds * SECOND)
    state.rank = rank
    if size > 1:
        _find_launcher()
    error = start_thread(loop)
    if error:
        print(f"lapse: rank {rank} has no guard, because its thread cannot be started: {os.strerror(error)}; what "
              "waits for ever will not be noticed", file=sys.stderr, flush=True)
        return False
    started_in = os.getpid()
    take_signal()
    return True


@contextlib.contextmanager
def waiting(str place):
    """Around a wait for other ranks in MPI's own calls: the guard reports one that takes long.

    Parameters
    ----------
    place : str
        Such as "the creation of a Server".
    """
    cdef bytes encoded = place.encode()
    take_latch(&state.latch)
    strncpy(state.place, encoded, sizeof(state.place) - 1)
    state.place_since = now()
    state.place_reported = False
    drop_latch(&state.latch)
    try:
        yield
    finally:
        take_latch(&state.latch)
        state.place_since = 0
        drop_latch(&state.latch)


def watch_hosts(addresses, double limit):
    """Let this process end when a host of its job does not answer at a connection, whoever has opened that.

    Parameters
    ----------
    addresses : dict of bytes to str
        Of other hosts, with their names; see `_connections.own_addresses`. Those of earlier calls are watched, too.
    limit : float
        Seconds; 0: never.

    Raises
    ------
    MemoryError
    """
    take_latch(&state.latch)
    try:
        state.silence_limit = <int64_t>(limit * SECOND)
        for address, name in addresses.items():
            watch_host(address, name.encode()[: HOST_NAME_BYTES - 1].ljust(HOST_NAME_BYTES, b"\0"))
    finally:
        drop_latch(&state.latch)


cdef int watch_host(bytes address, bytes name) except -1:
    cdef far_host_t* hosts
    cdef int32_t i
    for i in range(state.num_hosts):
        if memcmp(state.hosts[i].address, <const char*>address, ADDRESS_BYTES) == 0:
            break
    else:
        hosts = <far_host_t*>realloc(state.hosts, (state.num_hosts + 1) * sizeof(far_host_t))
        if hosts == NULL:
            raise MemoryError(f"no memory for the addresses of {state.num_hosts + 1} hosts")
        state.hosts = hosts
        i = state.num_hosts
        state.num_hosts += 1
        memcpy(hosts[i].address, <const char*>address, ADDRESS_BYTES)
    memcpy(state.hosts[i].name, <const char*>name, HOST_NAME_BYTES)
    return 0


def end_soon():
    """Let this process be ended if what comes next, an abort, does not end it."""
    end_process_after(ABORT_SECONDS)


cdef void end_process_after(int64_t seconds) noexcept nogil:
    """Let this process be ended after a time, whatever it does then."""
    cdef int64_t end_at = now() + seconds * SECOND
    if load(&state.end_at) == 0 or end_at < load(&state.end_at):
        store(&state.end_at, end_at)


cdef void guard(guarded_t* server) noexcept nogil:
    take_latch(&state.latch)
    server.next = state.servers
    state.servers = server
    drop_latch(&state.latch)


cdef void leave_unguarded(guarded_t* server) noexcept nogil:
    """After this the guard does not touch the server; it may not have been guarded."""
    cdef guarded_t** link = &state.servers
    take_latch(&state.latch)
    while link[0] != NULL and link[0] != server:
        link = &link[0].next
    if link[0] != NULL:
        link[0] = server.next
    drop_latch(&state.latch)


# The thread -------------------------------------------------------------------------------------------------------

cdef void loop() noexcept nogil:
    cdef int64_t before = now(), time
    cdef int asked = 0, ticks = 0
    while True:
        sleep_for(TICK)
        time = now()
        ticks += 1
        take_latch(&state.latch)
        if time - before > MAX_ELAPSED and state.place_since:
            state.place_since = time
        look(min(time - before, <int64_t>MAX_ELAPSED))
        if state.num_hosts and state.silence_limit and ticks % TICKS_PER_LOOK == 0:
            look_at_connections()
        if lapse_asked != asked:
            asked = lapse_asked
            describe_all()
        if state.place_since and state.stall and not state.place_reported and time - state.place_since > state.stall:
            state.place_reported = True
            text.used = 0
            describe_place()
            print_text(&text)
        drop_latch(&state.latch)
        before = time
        if load(&state.end_at) and time > load(&state.end_at):
            text.used = 0
            say(&text, "lapse: rank %d: nothing else has ended this process in time; it ends here\n", state.rank)
            print_text(&text)
            if state.is_cut_off:  # other ranks of this host may not have noticed
                sleep_for(ABORT_DELAY)
                tell_launcher(1)
                sleep_for(ABORT_DELAY)
            _exit(1)


cdef void look(int64_t elapsed) noexcept nogil:
    cdef guarded_t* server = state.servers
    while server != NULL:
        server.look(server.context, elapsed)
        server = server.next
    if state.launcher and is_dead(state.launcher):
        text.used = 0
        say(&text, "lapse: the launcher of rank %d (%s, process %d) is gone", state.rank, state.launcher_name,
            state.launcher)
        state.launcher = 0
        end_for_what_was_said()


cdef void look_at_connections() noexcept nogil:
    cdef silent_t silent
    cdef int64_t limit = state.silence_limit + (SERVERS_FIRST * SECOND if state.servers != NULL else 0)
    if state.is_cut_off:
        return
    if not find_silent_host(state.hosts, state.num_hosts, limit, &silent):
        state.silent_looks = 0
        return
    state.silent_looks += 1
    if state.silent_looks < SILENT_LOOKS:
        return
    state.is_cut_off = True
    text.used = 0
    say(&text, "lapse: %s (%s) has not answered rank %d for %.0f s: it is cut off or down. The limit is "
        "LAPSE_SILENCE_SECONDS=%g", silent.name, silent.address, state.rank, seconds_of(silent.silence),
        seconds_of(state.silence_limit))
    if state.place_since:
        say(&text, "; this rank waits in %s", state.place)
    end_for_what_was_said()


cdef void end_for_what_was_said() noexcept nogil:
    """Let all servers fail for what `text` says, and this process end."""
    cdef guarded_t* server = state.servers
    cdef int seconds = FAILURE_GRACE_SECONDS if server != NULL else LAST_SECONDS
    while server != NULL:
        server.end(server.context, text.bytes + sizeof("lapse: ") - 1)
        server = server.next
    say(&text, "; this process ends within %d s\n", seconds)
    print_text(&text)
    end_process_after(seconds)


cdef void describe_all() noexcept nogil:
    cdef guarded_t* server = state.servers
    text.used = 0
    if server == NULL and not state.place_since:
        say(&text, "lapse: rank %d has no open server\n", state.rank)
    if state.place_since:
        describe_place()
    while server != NULL:
        server.describe(server.context, &text)
        server = server.next
    print_text(&text)


cdef void describe_place() noexcept nogil:
    say(&text, "lapse: rank %d has been in %s for %.0f s, where it waits for the other ranks: all of them must come "
        "there\n", state.rank, state.place, seconds_of(now() - state.place_since))


# The launcher -----------------------------------------------------------------------------------------------------

def _find_launcher():
    """Note the ancestor that starts and ends ranks; without one that is known by its name, the parent."""
    for process, name in _ancestors(os.getppid()):
        if name in LAUNCHERS:
            break
    else:
        process, name = next(_ancestors(os.getppid()), (1, ""))
    if process > 1:
        encoded = name.encode()
        strncpy(state.launcher_name, <bytes>encoded, sizeof(state.launcher_name) - 1)
        state.launcher = process


def _ancestors(process):
    """Processes and their names, from one upwards."""
    while process > 1:
        try:
            head, _, tail = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")
        except OSError:
            return
        yield process, head.partition("(")[2]
        process = int(tail.split()[1])
