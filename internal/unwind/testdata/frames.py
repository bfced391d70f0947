# Prints the frames of all threads of the process that gdb is attached to:
# "thread TID", then "frame PC TYPE" for each, then "end REASON". Those are left
# out that gdb deduces from debug information and that have nothing on the
# stack: inlined functions, and functions that ended with a tail call.
import gdb

for thread in gdb.selected_inferior().threads():
    thread.switch()
    print("thread %d" % thread.ptid[1])
    frame, last, n = gdb.newest_frame(), None, 0
    try:
        while frame is not None and n < 2000:
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                print("frame %#x %d" % (frame.pc(), frame.type()))
            last, frame, n = frame, frame.older(), n + 1
        reason = last.unwind_stop_reason()
        print("end %s" % gdb.frame_stop_reason_string(reason))
    except gdb.error as e:
        print("end %s" % e)
