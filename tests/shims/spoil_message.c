/* Spoils the values in messages of Lapse: for LD_PRELOAD. `tests/shim.py` compiles it and sets its variables.
 *
 * LAPSE_SPOIL=KIND:N:BYTES:OLD   in every N-th message of the kind with this number that a rank sends, the first value, of
 *                                BYTES bytes, is replaced by zeros, or, if OLD is 1, by what the message of this kind
 *                                before it had there.
 *
 * A packet that does not begin with a whole message is left alone. What was spoiled is said on stderr. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct header { uint32_t bytes, count; uint16_t origin, credited_to; uint32_t kind; uint64_t operation; }
    __attribute__((packed));
enum { RECORD = 8 };

static void spoil(char *packet, int size)
{
    static long seen;
    static char before[4096];
    unsigned kind;
    long number, bytes;
    int old, at = 0;
    const char *wanted = getenv("LAPSE_SPOIL");
    if (!wanted || sscanf(wanted, "%u:%ld:%ld:%d", &kind, &number, &bytes, &old) != 4) return;
    while (at + (int)sizeof(struct header) <= size) {
        struct header frame;
        memcpy(&frame, packet + at, sizeof frame);
        if (frame.bytes < sizeof frame || at + (long)frame.bytes > size) return;
        if (frame.kind == kind && frame.count && bytes <= (long)sizeof before) {
            char *value = packet + at + sizeof frame + RECORD;
            char present[sizeof before];
            memcpy(present, value, bytes);
            if (++seen % number == 0) {
                char text[64];
                int length = snprintf(text, sizeof text, "shim: message %ld of kind %u is spoiled\n", seen, kind);
                syscall(SYS_write, 2, text, length);
                if (old) memcpy(value, before, bytes);
                else memset(value, 0, bytes);
            }
            memcpy(before, present, bytes);
        }
        at += frame.bytes;
    }
}

int MPI_Isend(const void *buffer, int size, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request)
{
    static int (*real)(const void *, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request *);
    if (!real) {
        void *library = dlopen(getenv("LAPSE_SPOIL_MPI"), RTLD_LAZY | RTLD_NOLOAD);
        real = (int (*)(const void *, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request *))
            (library ? dlsym(library, "PMPI_Isend") : dlsym(RTLD_NEXT, "PMPI_Isend"));
    }
    if (tag == 77) spoil((char *)buffer, size);  /* of Lapse's transport; others are somebody else's */
    return real(buffer, size, type, to, tag, comm, request);
}
