"""Text to numbers, without the GIL: cuts lines into words, and finds the number of each in a hash table."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy

import numpy as np


cdef struct word_t:
    int64_t start               # in `letters`; the next word's start is the end
    uint32_t hash
    int64_t count


cdef class Encoder:
    """Turns sentences into numbers of words, and collects them until they are taken.

    For one thread at a time. Words are byte strings between white space, which is what `str.split` takes for it.

    Parameters
    ----------
    words : iterable of str, optional
        Those that have a number, in order; all others get -1. Without it each new word gets the next number.
    """

    cdef bint learns
    cdef bint keeps
    cdef char* letters          # of all words, one after another
    cdef int64_t num_letters, letters_room
    cdef word_t* words_         # one more than there are words: its start is the end of the last
    cdef int64_t num_words, words_room
    cdef int32_t* table         # numbers of words + 1, 0 for none: open addressing, at most half full
    cdef uint64_t mask
    cdef int32_t* ids
    cdef int64_t num_ids, ids_room
    cdef int64_t* ends
    cdef int64_t num_ends, ends_room
    cdef readonly int64_t total  # words encoded since the beginning

    def __cinit__(self, words=None):
        self.mask = (1 << 10) - 1
        self.table = <int32_t*>calloc(self.mask + 1, sizeof(int32_t))
        self.words_ = <word_t*>calloc(16, sizeof(word_t))
        if self.table == NULL or self.words_ == NULL:
            raise MemoryError("no memory for an encoder")
        self.words_room = 16
        self.learns, self.keeps = True, True
        if words is not None:
            for word in words:
                self._learn(word.encode("utf-8"))
            self.learns = False
            self.num_ids = self.total = 0  # the words themselves are no text

    def __dealloc__(self):
        free(self.letters)
        free(self.words_)
        free(self.table)
        free(self.ids)
        free(self.ends)

    def add_text(self, const unsigned char[::1] text, int64_t longest):
        """Encode lines, each a sentence.

        Parameters
        ----------
        text : bytes
            ASCII only.
        longest : int
            Sentences of more words are cut into pieces of so many.
        """
        if text.shape[0]:
            with nogil:
                self.encode(<const char*>&text[0], text.shape[0], longest)

    def add_sentence(self, words):
        """Encode a sentence: a list of str, not empty."""
        for word in words:
            self._learn(word.encode("utf-8"))
        self.end_sentence()

    def _learn(self, bytes word):
        cdef const char* letters = word
        cdef int64_t length = len(word)
        self.add_word(letters, length)

    def forget(self):
        """Drop what was collected, and collect nothing more: only count."""
        self.keeps = False
        self.num_ids = self.num_ends = 0
        free(self.ids)
        free(self.ends)
        self.ids, self.ends, self.ids_room, self.ends_room = NULL, NULL, 0, 0

    def take(self):
        """What was collected since the last time.

        Returns
        -------
        ids : int32 array
            The numbers of the words of all sentences.
        ends : int64 array
            Where each sentence ends in them.
        """
        ids, ends = np.empty(self.num_ids, np.int32), np.empty(self.num_ends, np.int64)
        cdef int32_t[::1] id_view = ids
        cdef int64_t[::1] end_view = ends
        if self.num_ids:
            memcpy(&id_view[0], self.ids, self.num_ids * sizeof(int32_t))
        if self.num_ends:
            memcpy(&end_view[0], self.ends, self.num_ends * sizeof(int64_t))
        self.num_ids = self.num_ends = 0
        return ids, ends

    @property
    def collected(self):
        """How many words are waiting to be taken."""
        return self.num_ids

    def words(self):
        """All words that have a number, in order: a list of str."""
        cdef int64_t i
        return [self.letters[self.words_[i].start : self.words_[i + 1].start].decode("utf-8")
                for i in range(self.num_words)]

    def counts(self):
        """How often each of them was encoded: an int64 array."""
        cdef int64_t i
        counts = np.empty(self.num_words, np.int64)
        cdef int64_t[::1] view = counts
        for i in range(self.num_words):
            view[i] = self.words_[i].count
        return counts

    # --- cutting

    cdef int encode(self, const char* text, int64_t size, int64_t longest) except -1 nogil:
        cdef int64_t at = 0, start, words = 0
        while at < size:
            if is_space(text[at]):
                if text[at] == b"\n" and words:
                    self.end_sentence()
                    words = 0
                at += 1
                continue
            start = at
            while at < size and not is_space(text[at]):
                at += 1
            self.add_word(text + start, at - start)
            words += 1
            if words == longest:
                self.end_sentence()
                words = 0
        if words:
            self.end_sentence()
        return 0

    cdef int end_sentence(self) except -1 nogil:
        if self.keeps:
            self.ends = <int64_t*>grown(self.ends, self.num_ends + 1, &self.ends_room, sizeof(int64_t))
            self.ends[self.num_ends] = self.num_ids
            self.num_ends += 1
        return 0

    # --- the table

    cdef int add_word(self, const char* letters, int64_t length) except -1 nogil:
        cdef int32_t number = self.number_of(letters, length)
        self.total += 1
        if number >= 0:
            self.words_[number].count += 1
        if self.keeps:
            if self.num_ids == self.ids_room:
                self.ids = <int32_t*>grown(self.ids, self.num_ids + 1, &self.ids_room, sizeof(int32_t))
            self.ids[self.num_ids] = number
            self.num_ids += 1
        return 0

    cdef int32_t number_of(self, const char* letters, int64_t length) except -2 nogil:
        cdef uint32_t hash = hash_of(letters, length)
        cdef uint64_t at = hash & self.mask
        cdef word_t* word
        while self.table[at]:
            word = &self.words_[self.table[at] - 1]
            if (word.hash == hash and word[1].start - word.start == length
                    and memcmp(self.letters + word.start, letters, length) == 0):
                return self.table[at] - 1
            at = (at + 1) & self.mask
        return self.new_word(letters, length, hash, at) if self.learns else -1

    cdef int32_t new_word(self, const char* letters, int64_t length, uint32_t hash, uint64_t at) except -2 nogil:
        cdef word_t* word
        self.letters = <char*>grown(self.letters, self.num_letters + length, &self.letters_room, 1)
        self.words_ = <word_t*>grown(self.words_, self.num_words + 2, &self.words_room, sizeof(word_t))
        memcpy(self.letters + self.num_letters, letters, length)
        word = &self.words_[self.num_words]
        word.start, word.hash, word.count = self.num_letters, hash, 0
        self.num_letters += length
        word[1].start = self.num_letters
        self.num_words += 1
        self.table[at] = <int32_t>self.num_words
        if 2 * <uint64_t>self.num_words > self.mask:
            self.enlarge_table()
        return <int32_t>(self.num_words - 1)

    cdef int enlarge_table(self) except -1 nogil:
        cdef uint64_t mask = 4 * self.mask + 3, at
        cdef int32_t i
        cdef int32_t* table = <int32_t*>calloc(mask + 1, sizeof(int32_t))
        if table == NULL:
            no_memory()
        for i in range(<int32_t>self.num_words):
            at = self.words_[i].hash & mask
            while table[at]:
                at = (at + 1) & mask
            table[at] = i + 1
        free(self.table)
        self.table, self.mask = table, mask
        return 0


cdef inline bint is_space(char c) noexcept nogil:
    return c == b" " or b"\t" <= c <= b"\r" or 28 <= c <= 31


cdef inline uint32_t hash_of(const char* letters, int64_t length) noexcept nogil:
    """FNV-1a (Fowler, Noll, Vo), its halves folded."""
    cdef uint64_t hash = <uint64_t>0xCBF29CE484222325
    cdef int64_t i
    for i in range(length):
        hash = (hash ^ <unsigned char>letters[i]) * <uint64_t>0x100000001B3
    return <uint32_t>(hash ^ (hash >> 32))


cdef void* grown(void* memory, int64_t wanted, int64_t* room, size_t size) except NULL nogil:
    """The memory with room for so many elements: twice as much if it was too small. A failure leaves it as it was."""
    cdef void* larger
    cdef int64_t more
    if wanted <= room[0] and memory != NULL:
        return memory
    more = max(2 * wanted, <int64_t>1024)
    larger = realloc(memory, more * size)
    if larger == NULL:
        no_memory()
    room[0] = more
    return larger


cdef int no_memory() except -1 with gil:
    raise MemoryError("no memory for the text")
