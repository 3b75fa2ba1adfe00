"""Floor 0. The last things a process does: finalize MPI, and not wait for ever if it has failed; name what it lacked.

MPI_Finalize waits for all ranks. For a rank that has done its work that is right, however long the others compute; a
rank that ends with an error status is one that they may wait for, and then nobody would ever end. Only the handlers of
`exit` know the status, in the system's C library; those of Python do not.
"""

from libc.stdint cimport uintptr_t

cdef extern from *:
    r"""
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <signal.h>
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/resource.h>
    #include <sys/stat.h>
    #include <time.h>
    #include <unistd.h>

    static struct {
        pid_t process;
        int (*finalize)(void);
        int (*is_finalized)(int *);
        int rank, seconds, status;
    } lapse_exit;

    /* As `_abort_by_launcher` in uncaught.py: else MPICH's launcher gives the status of those that it kills. */
    static void lapse_tell_launcher(int status) {
        const char *descriptor = getenv("PMI_FD");
        char text[64];
        struct stat about;
        if (!descriptor || !*descriptor || fstat(atoi(descriptor), &about) || !S_ISSOCK(about.st_mode)) return;
        snprintf(text, sizeof text, "cmd=abort exitcode=%d\n", status);
        if (write(atoi(descriptor), text, strlen(text)) < 0) { }
    }

    static void *lapse_end_late(void *unused) {
        char text[200];
        struct timespec left = {lapse_exit.seconds, 0};
        (void)unused;
        while (nanosleep(&left, &left)) { }
        snprintf(text, sizeof text, "lapse: rank %d has ended with status %d, and other ranks still wait for it after "
                 "%d s: the job is ended\n", lapse_exit.rank, lapse_exit.status, lapse_exit.seconds);
        if (write(2, text, strlen(text)) < 0) { }
        left.tv_sec = 0;
        left.tv_nsec = 300000000;  /* until the launcher has read it */
        nanosleep(&left, 0);
        lapse_tell_launcher(lapse_exit.status);
        nanosleep(&left, 0);
        _exit(lapse_exit.status);
    }

    static void lapse_on_exit(int status, void *unused) {
        int is_finalized = 1;
        pthread_t thread;
        sigset_t all, before;
        (void)unused;
        if (getpid() != lapse_exit.process || lapse_exit.is_finalized(&is_finalized) || is_finalized) return;
        fflush(0);
        if (status) {
            lapse_exit.status = status;
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
            if (pthread_create(&thread, 0, lapse_end_late, 0)) _exit(status);
            pthread_sigmask(SIG_SETMASK, &before, 0);
        }
        lapse_exit.finalize();
    }

    #ifdef __GLIBC__
    #define LAPSE_ON_EXIT(handler) on_exit(handler, 0)
    #define LAPSE_HAS_ON_EXIT 1
    #else
    #define LAPSE_ON_EXIT(handler) (-1)
    #define LAPSE_HAS_ON_EXIT 0
    #endif

    static int lapse_finalize_on_exit(void *finalize, void *is_finalized, int rank, int seconds) {
        lapse_exit.process = getpid();
        lapse_exit.finalize = (int (*)(void))finalize;
        lapse_exit.is_finalized = (int (*)(int *))is_finalized;
        lapse_exit.rank = rank;
        lapse_exit.seconds = seconds;
        return LAPSE_ON_EXIT(lapse_on_exit);
    }

    static struct {
        pid_t process;
        int rank, little;
    } lapse_memory;

    static void lapse_tell_memory(int status, void *unused) {
        struct rlimit limit;
        char text[300];
        long pages = 0, used, most;
        FILE *file;
        (void)unused;
        if (!status || getpid() != lapse_memory.process || getrlimit(RLIMIT_AS, &limit)
            || limit.rlim_cur == RLIM_INFINITY) return;
        file = fopen("/proc/self/statm", "r");  /* NULL if there is no memory for it either */
        if (file) {
            if (fscanf(file, "%ld", &pages) != 1) pages = 0;
            fclose(file);
        }
        used = pages * (sysconf(_SC_PAGESIZE) >> 10) >> 10;
        most = (long)(limit.rlim_cur >> 20);
        if (file && used + lapse_memory.little <= most) return;
        snprintf(text, sizeof text, "lapse: rank %d ends with status %d, and has less than %d MB left of the %ld MB of "
                 "memory that it may map (ulimit -v): more was probably refused\n", lapse_memory.rank, status,
                 lapse_memory.little, most);
        if (write(2, text, strlen(text)) < 0) { }
    }

    static int lapse_tell_memory_on_exit(int rank, int little) {
        lapse_memory.process = getpid();
        lapse_memory.rank = rank;
        lapse_memory.little = little;
        return LAPSE_ON_EXIT(lapse_tell_memory);
    }
    """
    bint HAS_ON_EXIT "LAPSE_HAS_ON_EXIT"
    void tell_launcher_of_end "lapse_tell_launcher"(int status) nogil
    int register_handler "lapse_finalize_on_exit"(void* finalize, void* is_finalized, int rank, int seconds)
    int register_memory "lapse_tell_memory_on_exit"(int rank, int little)


#: Whether the C library tells its handlers the status (glibc does).
KNOWS_STATUS = bool(HAS_ON_EXIT)


cdef void tell_launcher(int status) noexcept nogil:
    tell_launcher_of_end(status)


def finalize_at_exit(finalize, is_finalized, rank, seconds):
    """Let the process finalize MPI when it exits, behind Python; and end at once some time later, if it has failed.

    Parameters
    ----------
    finalize, is_finalized : int
        The addresses of MPI_Finalize and MPI_Finalized.
    rank : int
        For the message.
    seconds : int
        How long a process that exits with another status than 0 waits for the other ranks.

    Returns
    -------
    bool
        False if the C library does not know how.
    """
    return register_handler(<void*><uintptr_t>finalize, <void*><uintptr_t>is_finalized, rank, seconds) == 0


def tell_refused_memory(rank, little):
    """Let the process say when it fails that it was short of memory, as an MPI may not: MPICH then fails an assertion.

    Parameters
    ----------
    rank : int
        For the message.
    little : int
        MB. It is short if its address space is limited (`RLIMIT_AS`), and no more than that is left.
    """
    register_memory(rank, little)
