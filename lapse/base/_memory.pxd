"""Floor 0. Address ranges from the system: memory is taken page by page, when it is first written."""

cdef extern from *:
    r"""
    #ifndef LAPSE_MEMORY
    #define LAPSE_MEMORY
    #include <stddef.h>
    #include <sys/mman.h>
    #include <unistd.h>
    #define LAPSE_HUGE_PAGE ((size_t)2 << 20)
    #ifndef MADV_COLLAPSE
    #define MADV_COLLAPSE 25 /* since Linux 6.1 */
    #endif
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    static inline void *lapse_reserve(size_t bytes) {
        void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return 0;
    #ifdef MADV_HUGEPAGE
        if (bytes >= ((size_t)16 << 20)) madvise(p, bytes, MADV_HUGEPAGE);
    #endif
        return p;
    }
    static inline void *lapse_map_file(void *address, int flags, int descriptor, size_t bytes) {
        void *p = mmap(address, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | flags, descriptor, 0);
        return p == MAP_FAILED ? 0 : p;
    }
    /* At a multiple of the size of a huge page: only then can pages of the file be huge. */
    static inline void *lapse_map_aligned(int descriptor, size_t bytes) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page, before;
        char *reserved = (char *)mmap(0, whole + LAPSE_HUGE_PAGE, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        void *p;
        if (reserved == (char *)MAP_FAILED) return 0;
        before = LAPSE_HUGE_PAGE - (size_t)reserved % LAPSE_HUGE_PAGE;
        munmap(reserved, before);
        if (before < LAPSE_HUGE_PAGE) munmap(reserved + before + whole, LAPSE_HUGE_PAGE - before);
        p = lapse_map_file(reserved + before, MAP_FIXED, descriptor, bytes);
        if (!p) munmap(reserved + before, whole);
        return p;
    }
    /* The same bytes for every process that maps this file; a file without a name disappears with its last user. */
    static inline void *lapse_map_shared(int descriptor, size_t bytes) {
        void *p = bytes < LAPSE_HUGE_PAGE ? lapse_map_file(0, 0, descriptor, bytes)
                                          : lapse_map_aligned(descriptor, bytes);
        if (!p) return 0;
    #ifdef MADV_HUGEPAGE
        if (bytes >= ((size_t)16 << 20)) madvise(p, bytes, MADV_HUGEPAGE);
    #endif
        return p;
    }
    /* Take memory that will be written all over, in huge pages where the system can. Shared memory gets none by itself
       unless the administrator wants it to; it does once there is something in each. */
    static inline void lapse_take(void *p, size_t bytes) {
        size_t at, whole = bytes / LAPSE_HUGE_PAGE * LAPSE_HUGE_PAGE;
        for (at = 0; at < whole; at += LAPSE_HUGE_PAGE) {
            volatile char *first = (char *)p + at;
            *first = *first;
        }
        madvise(p, whole, MADV_COLLAPSE);
    }
    static inline void lapse_release(void *p, size_t bytes) { munmap(p, bytes); }
    #endif
    """
    void* reserve "lapse_reserve"(size_t size) noexcept nogil
    void* map_shared "lapse_map_shared"(int descriptor, size_t size) noexcept nogil
    void release "lapse_release"(void* address, size_t size) noexcept nogil
    void take "lapse_take"(void* address, size_t size) noexcept nogil
