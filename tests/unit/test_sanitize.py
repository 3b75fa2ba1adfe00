"""What sanitizers have written is counted, report by report."""

import sanitize

RACES = """\
==================
WARNING: ThreadSanitizer: data race (pid=7)
  Write of size 4 at 0x7b0c by thread T1:
    #0 hand_over lapse/protocol/_relocation.pyx:475 (_relocation.so+0x1)
SUMMARY: ThreadSanitizer: data race lapse/protocol/_relocation.pyx:475 in hand_over
==================
==================
WARNING: ThreadSanitizer: data race (pid=7)
SUMMARY: ThreadSanitizer: data race lapse/_store.pxd:120 in is_here
==================
"""
OVERFLOW = """\
=================================================================
==8==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x6020
    #0 0x7f in read_value lapse/_store.pyx:72
SUMMARY: AddressSanitizer: heap-buffer-overflow lapse/_store.pyx:72 in read_value
==8==ABORTING
"""
UNDEFINED = """\
lapse/_store.pyx:86:21: runtime error: load of misaligned address 0x7f for type 'float'
    #0 0x7f in change_value lapse/_store.pyx:86
lapse/base/_random.h:12:3: runtime error: signed integer overflow
"""


def test_each_report_is_found_with_its_text():
    assert [summary.rpartition(" ")[2] for summary, _ in sanitize.reports_in(RACES)] == ["hand_over", "is_here"]
    assert "by thread T1" in sanitize.reports_in(RACES)[0][1]
    assert [summary.rpartition(" ")[2] for summary, _ in sanitize.reports_in(OVERFLOW)] == ["read_value"]
    assert [summary.partition(": ")[0] for summary, _ in sanitize.reports_in(UNDEFINED)] == [
        "lapse/_store.pyx:86:21",
        "lapse/base/_random.h:12:3",
    ]
    assert "in change_value" in sanitize.reports_in(UNDEFINED)[0][1]


def test_other_text_is_no_report():
    assert sanitize.reports_in("ThreadSanitizer: Matched 3 suppressions (pid=7):\n3 race:libmpi.so\n") == []
