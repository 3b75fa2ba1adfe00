"""Floor 3. Text that is written without the GIL, to a standard error that may be a full pipe. Declarations only."""

from libc.stdint cimport int64_t

cdef extern from *:
    r"""
    #ifndef LAPSE_TEXT
    #define LAPSE_TEXT
    #include <poll.h>
    #include <stdarg.h>
    #include <stdio.h>
    #include <unistd.h>

    #define LAPSE_TEXT_BYTES 32768

    typedef struct {
        int used;
        char bytes[LAPSE_TEXT_BYTES];
    } lapse_text;

    static __attribute__((unused, format(printf, 2, 3))) void lapse_say(lapse_text *text, const char *format, ...) {
        int room = LAPSE_TEXT_BYTES - text->used, length;
        va_list values;
        va_start(values, format);
        length = vsnprintf(text->bytes + text->used, room, format, values);
        va_end(values);
        text->used += length < room ? length : room - 1;
    }

    /* Writes as much as goes without waiting long for a reader: a launcher that is cut off or stopped reads nothing,
       and the threads that write here must not wait for it. */
    static __attribute__((unused)) void lapse_print(const lapse_text *text) {
        struct pollfd standard_error = {2, POLLOUT, 0};
        int done = 0;
        while (done < text->used && poll(&standard_error, 1, 200) == 1 && standard_error.revents & POLLOUT) {
            int size = text->used - done < 4096 ? text->used - done : 4096;  /* a pipe that can be written takes it */
            ssize_t written = write(2, text->bytes + done, size);
            if (written <= 0) return;
            done += (int)written;
        }
    }
    #endif
    """
    ctypedef struct text_t "lapse_text":
        int used
        char* bytes
    void say "lapse_say"(text_t* text, const char* format, ...) noexcept nogil
    void print_text "lapse_print"(const text_t* text) noexcept nogil


cdef inline double seconds_of(int64_t nanoseconds) noexcept nogil:
    return nanoseconds / 1e9
