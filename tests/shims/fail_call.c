/* Lets one call of a rank fail: for LD_PRELOAD. `tests/shim.py` compiles it and sets its variables.
 *
 * LAPSE_FAIL=NAME:N[:RANK]   the N-th call (from 1) of the function NAME fails, on this rank only, or on every one; with
 *                            N+ instead of N every call from the N-th on. Several, separated by commas.
 *
 * A function of MPI returns MPI_ERR_OTHER and is not carried out. MPI_Test_completed is a call of MPI_Test that completes
 * its request, which MPI frees, and returns an error all the same, as for a message that was cut. pthread_create returns
 * EAGAIN, write, pwrite and fsync set ENOSPC (files only, not pipes or standard streams), malloc, mmap and memfd_create
 * set ENOMEM (malloc: of LAPSE_FAIL_BYTES or more only, 1 MiB by default). What failed is said on stderr, once for each.
 *
 * LAPSE_FAIL_COUNT=PREFIX    at its end each rank writes how often it has called each function into a file PREFIX.RANK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <mpi.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void say(const char *name, long number)
{
    char text[128];
    int length = snprintf(text, sizeof text, "shim: call %ld of %s fails\n", number, name);
    syscall(SYS_write, 2, text, length);
}

static int is_this_rank(const char *wanted)
{
    const char *names[] = {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        const char *rank = getenv(names[i]);
        if (rank) return atoi(rank) == atoi(wanted);
    }
    return 0;
}

static struct { const char *name; long *calls; } counted[64];
static int functions_counted;

static void note_function(const char *name, long *calls)
{
    int place = __atomic_fetch_add(&functions_counted, 1, __ATOMIC_RELAXED);
    if (place >= 64) return;
    counted[place].calls = calls;
    counted[place].name = name;
}

__attribute__((destructor)) static void tell_counts(void)
{
    const char *prefix = getenv("LAPSE_FAIL_COUNT"), *rank = getenv("PMI_RANK");
    char path[4096];
    FILE *file;
    if (!rank) rank = getenv("OMPI_COMM_WORLD_RANK");
    if (!prefix || !rank) return;
    snprintf(path, sizeof path, "%s.%s", prefix, rank);
    if (!(file = fopen(path, "w"))) return;
    for (int i = 0; i < functions_counted && i < 64; i++)
        if (counted[i].name) fprintf(file, "%s %ld\n", counted[i].name, *counted[i].calls);
    fclose(file);
}

/* Whether the call that has just been counted is to fail. */
static int must_fail(const char *name, long *calls)
{
    const char *at = getenv("LAPSE_FAIL");
    size_t length = strlen(name);
    long number;
    if (!at) return 0;
    number = __atomic_add_fetch(calls, 1, __ATOMIC_RELAXED);
    if (number == 1) note_function(name, calls);
    for (; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char *end;
        long wanted;
        int and_later;
        if (strncmp(at, name, length) || at[length] != ':') continue;
        wanted = strtol(at + length + 1, &end, 10);
        and_later = *end == '+';
        end += and_later;
        if (and_later ? number < wanted : number != wanted) continue;
        if (*end == ':' && !is_this_rank(end + 1)) continue;
        if (number == wanted) say(name, number);
        return 1;
    }
    return 0;
}

/* The library that the program uses is loaded later than this one, and not for all to see. */
static void *of_mpi(const char *name)
{
    static void *library;
    const char *path = getenv("LAPSE_FAIL_MPI");
    void *found;
    if (!library && path) library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    found = library ? dlsym(library, name) : dlsym(RTLD_NEXT, name);
    if (!found) { say(name, -1); _exit(99); }
    return found;
}

#define MPI_CALL(name, parameters, ...)                                                     \
    int name parameters                                                                     \
    {                                                                                       \
        static long calls;                                                                  \
        static int (*real) parameters;                                                      \
        if (!real) real = (int (*) parameters)of_mpi("P" #name);                            \
        return must_fail(#name, &calls) ? MPI_ERR_OTHER : real(__VA_ARGS__);                \
    }

MPI_CALL(MPI_Isend, (const void *b, int n, MPI_Datatype t, int to, int tag, MPI_Comm c, MPI_Request *r),
         b, n, t, to, tag, c, r)
MPI_CALL(MPI_Irecv, (void *b, int n, MPI_Datatype t, int from, int tag, MPI_Comm c, MPI_Request *r),
         b, n, t, from, tag, c, r)
MPI_CALL(MPI_Testsome, (int n, MPI_Request r[], int *count, int which[], MPI_Status s[]), n, r, count, which, s)
MPI_CALL(MPI_Get_count, (const MPI_Status *s, MPI_Datatype t, int *count), s, t, count)
MPI_CALL(MPI_Cancel, (MPI_Request *r), r)
MPI_CALL(MPI_Wait, (MPI_Request *r, MPI_Status *s), r, s)
MPI_CALL(MPI_Comm_dup, (MPI_Comm c, MPI_Comm *made), c, made)
MPI_CALL(MPI_Comm_free, (MPI_Comm *c), c)
MPI_CALL(MPI_Comm_split, (MPI_Comm c, int color, int key, MPI_Comm *made), c, color, key, made)
MPI_CALL(MPI_Comm_split_type, (MPI_Comm c, int type, int key, MPI_Info info, MPI_Comm *made), c, type, key, info, made)
MPI_CALL(MPI_Barrier, (MPI_Comm c), c)
MPI_CALL(MPI_Bcast, (void *b, int n, MPI_Datatype t, int root, MPI_Comm c), b, n, t, root, c)
MPI_CALL(MPI_Allgather, (const void *b, int n, MPI_Datatype t, void *o, int m, MPI_Datatype u, MPI_Comm c),
         b, n, t, o, m, u, c)
MPI_CALL(MPI_Allgatherv, (const void *b, int n, MPI_Datatype t, void *o, const int m[], const int d[], MPI_Datatype u,
                          MPI_Comm c), b, n, t, o, m, d, u, c)
MPI_CALL(MPI_Allreduce, (const void *b, void *o, int n, MPI_Datatype t, MPI_Op op, MPI_Comm c), b, o, n, t, op, c)

int MPI_Test(MPI_Request *r, int *flag, MPI_Status *s)
{
    static long calls, completions;
    static __typeof__(&MPI_Test) real;
    int code;
    if (!real) real = (__typeof__(&MPI_Test))of_mpi("PMPI_Test");
    if (must_fail("MPI_Test", &calls)) return MPI_ERR_OTHER;
    code = real(r, flag, s);
    return code == MPI_SUCCESS && *flag && must_fail("MPI_Test_completed", &completions) ? MPI_ERR_OTHER : code;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    static long calls;
    static __typeof__(&pthread_create) real;
    if (!real) real = REAL(pthread_create);
    return must_fail("pthread_create", &calls) ? EAGAIN : real(thread, attributes, start, argument);
}

static int is_file(int descriptor)
{
    struct stat found;
    return descriptor > 2 && !fstat(descriptor, &found) && S_ISREG(found.st_mode);
}

ssize_t write(int descriptor, const void *bytes, size_t size)
{
    static long calls;
    if (getenv("LAPSE_FAIL") && is_file(descriptor) && must_fail("write", &calls)) { errno = ENOSPC; return -1; }
    return syscall(SYS_write, descriptor, bytes, size);
}

int fsync(int descriptor)
{
    static long calls;
    if (must_fail("fsync", &calls)) { errno = ENOSPC; return -1; }
    return (int)syscall(SYS_fsync, descriptor);
}

static size_t large(void)
{
    const char *bytes = getenv("LAPSE_FAIL_BYTES");
    return bytes ? strtoul(bytes, NULL, 10) : 1 << 20;
}

extern void *__libc_malloc(size_t);

void *malloc(size_t size)
{
    static long calls;
    static __thread int is_inside;  /* must_fail prints */
    if (size >= 65536 && !is_inside && getenv("LAPSE_FAIL") && size >= large()) {
        is_inside = 1;
        int fails = must_fail("malloc", &calls);
        is_inside = 0;
        if (fails) { errno = ENOMEM; return NULL; }
    }
    return __libc_malloc(size);
}

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    static long calls;
    if (size >= 65536 && getenv("LAPSE_FAIL") && size >= large() && must_fail("mmap", &calls)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, size, protection, flags, descriptor, offset);
}

int memfd_create(const char *name, unsigned flags)
{
    static long calls;
    if (must_fail("memfd_create", &calls)) { errno = ENOMEM; return -1; }
    return (int)syscall(SYS_memfd_create, name, flags);
}
